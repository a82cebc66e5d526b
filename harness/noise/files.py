"""Published noise-index files: read in each form, written in each form, and described.

- `caption` (the NCR line, `.npy`): for each caption the image that it is trained with, [C]. Published by NCR,
  BiCro, PC2, L2RM.
- `image` (DECL and RCL, `noise_inx_0.4.npy`): a permutation of the images, [N]; captions of image i are
  trained with image index[i].
- `text` (NPC, `0.4_noise_train_caps.txt`): the captions themselves in their new order, one a line. Which
  caption a line was is recovered from its text (white space aside); where a text stands several times, a line
  is taken for the caption that is in its own place, then for one of the same image, then in order. That
  changes nothing about which image is trained with which text; which of two equal
  captions it was, and so whether it matches, cannot be known: `ambiguous` counts them.

A file goes by position: it fits a data set with the same images and captions in the same order.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.base import DataError, Split, read_array
from harness.data.layout import read_lines

_FEWER = (
    " (an index goes by position: it fits the data set without on_bad_image: skip, train_groups, or "
    "drawn splits)"
)


@dataclass(frozen=True)
class IndexFile:
    """What a file says of a training split.

    Attributes:
        form: one of `harness.noise.FORMS`.
        image: int64 [C], image of each caption.
        matched: bool [C], whether they are of one group.
        ambiguous: captions whose text stands several times, where the form goes by text.
    """

    form: str
    image: NDArray[np.int64]
    matched: NDArray[np.bool_]
    owner: NDArray[np.int64]
    ambiguous: int = 0

    @property
    def granularity(self) -> str:
        """`image` where the captions of every image go to one image all together, else `caption`; `none`
        without noise.
        """
        if self.matched.all():
            return "none"
        count = np.bincount(self.owner)
        first = np.zeros(len(count), np.int64)
        first[self.owner[::-1]] = self.image[::-1]
        return "image" if count.max() > 1 and (self.image == first[self.owner]).all() else "caption"

    @property
    def wrong_captions(self) -> NDArray[np.int64]:
        """int64 [0 ... most captions of an image]: how many images own so many captions that are trained with
        a wrong one.
        """
        return np.bincount(
            np.bincount(self.owner, weights=~self.matched).astype(np.int64),
            minlength=int(np.bincount(self.owner).max()) + 1,
        )


def read_index(path: Path, split: Split) -> IndexFile:
    """Read a noise-index file of any form for a training split.

    Raises:
        DataError: it cannot be read, or does not fit the split; the text says why.
    """
    if path.suffix == ".txt":
        return _read_text(path, split)
    index = _whole_numbers(path)
    images, captions = len(split.images), len(split.captions)
    if len(index) not in (images, captions):
        raise DataError(
            f"noise file {path} has {len(index):,} entries, and train has {captions:,} captions of "
            f"{images:,} images{_FEWER}"
        )
    if index.min() < 0 or index.max() >= images:
        wrong = int(index.min() if index.min() < 0 else index.max())
        raise DataError(f"noise file {path}: {wrong} is no image of train (0 to {images - 1:,})")
    if len(index) == captions:
        image, form = index, "caption"
    elif (np.bincount(index, minlength=images) != 1).any():
        raise DataError(
            f"noise file {path} has an entry for each image, and is not a permutation of the images"
        )
    else:
        image, form = index[split.owner], "image"
    return IndexFile(form, image, split.image_group[image] == split.caption_group, split.owner)


def _whole_numbers(path: Path) -> NDArray[np.int64]:
    """Those of an `.npy` file. Raises DataError if it holds anything else."""
    index = read_array(path, "noise file")
    if index.ndim != 1 or not np.issubdtype(index.dtype, np.integer) or not len(index):
        raise DataError(
            f"noise file {path}: expected a list of whole numbers, found {index.dtype} {index.shape}"
        )
    if index.max() >= 2**63:
        raise DataError(f"noise file {path}: {index.max()} is no image of train")
    return index.astype(np.int64)


def _read_text(path: Path, split: Split) -> IndexFile:
    try:
        lines = [
            " ".join(line.split())
            for line in path.read_bytes().decode("utf-8-sig").removesuffix("\n").split("\n")
        ]
    except OSError as error:
        raise DataError(f"noise file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"noise file {path}: expected UTF-8, found the byte {error.object[error.start]:#x} at "
            f"{error.start}"
        ) from None
    own = [" ".join(caption.split()) for caption in split.captions]
    if len(lines) != len(own):
        twice = (
            " (NPC's code adds to a file that is there already: remove it and make it again)"
            if len(lines) % len(own) == 0
            else ""
        )
        raise DataError(
            f"noise file {path} has {len(lines):,} lines, and train has {len(own):,} "
            f"captions{twice or _FEWER}"
        )
    known = set(own)
    unknown = [k for k, line in enumerate(lines) if line not in known]
    if unknown:
        raise DataError(
            f"noise file {path}: {len(unknown):,} lines are no caption of train, the first is line "
            f"{unknown[0] + 1}: {lines[unknown[0]][:80]!r}"
        )
    place = _places(lines, own, split)
    if place is None:
        raise DataError(
            f"noise file {path}: its captions are not those of train in another order (some stand there "
            f"too often)"
        )
    image = split.owner[place]
    texts = np.unique(own, return_inverse=True)[1]
    count = np.bincount(texts)
    ambiguous = int((count[texts] > 1).sum())
    return IndexFile("text", image, split.image_group[image] == split.caption_group, split.owner, ambiguous)


def _places(lines: list[str], own: list[str], split: Split) -> NDArray[np.int64] | None:
    """For each caption the line where it stands now; None where that cannot be."""
    group = split.caption_group.tolist()
    same = np.flatnonzero([a == b for a, b in zip(lines, own, strict=True)])
    place = np.full(len(own), -1)
    place[same] = same
    at_home: dict[tuple[str, int], deque[int]] = defaultdict(deque)
    for c in np.flatnonzero(place < 0).tolist():
        at_home[own[c], group[c]].append(c)
    others = []
    for line in np.setdiff1d(np.arange(len(lines)), same).tolist():
        waiting = at_home[lines[line], group[line]]
        if waiting:
            place[waiting.popleft()] = line
        else:
            others.append(line)
    anywhere: dict[str, deque[int]] = defaultdict(deque)
    for c in np.flatnonzero(place < 0).tolist():
        anywhere[own[c]].append(c)
    for line in others:
        if not anywhere[lines[line]]:
            return None
        place[anywhere[lines[line]].popleft()] = line
    return place


def write_index(image: NDArray[np.int64], split: Split, path: Path, form: str) -> None:
    """Write an index [C] in a published form.

    Raises:
        DataError: the form cannot hold it, the file exists, or its name does not end as the form wants it.
    """
    suffix = ".txt" if form == "text" else ".npy"
    if path.suffix != suffix:
        raise DataError(f"{path}: form {form!r} is a {suffix} file")
    if path.exists():
        raise DataError(f"{path} exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    if form == "caption":
        np.save(path, image.astype(np.int64))
    elif form == "image":
        moved = np.arange(len(split.images))
        moved[split.owner] = image
        if (moved[split.owner] != image).any() or (np.bincount(moved, minlength=len(moved)) != 1).any():
            raise DataError(
                "form 'image' holds a permutation of images, and this index moves single captions: use "
                "noise_granularity 'image', or another form"
            )
        np.save(path, moved)
    else:
        path.write_text("".join(f"{line}\n" for line in _lines_of(image, split)), encoding="utf-8")


def _lines_of(image: NDArray[np.int64], split: Split) -> list[str]:
    """Captions in the order of their new places: those that stay keep theirs, the others take what their new
    image has free.
    """
    line = np.full(len(image), -1)
    stays = np.flatnonzero(image == split.owner)
    line[stays] = stays
    free: dict[int, deque[int]] = defaultdict(deque)
    for c in np.setdiff1d(np.arange(len(image)), stays).tolist():
        free[int(split.owner[c])].append(c)
    for c in np.flatnonzero(line < 0).tolist():
        if not free[int(image[c])]:
            raise DataError(
                "form 'text' needs as many captions of each image as before, and this index gives some "
                "image more: use form 'caption'"
            )
        line[c] = free[int(image[c])].popleft()
    lines = [""] * len(image)
    for c, at in enumerate(line.tolist()):
        lines[at] = split.captions[c]
    return lines


def guessed_split(path: Path) -> Split:
    """A training split for a file that stands alone, as far as it can be told: five captions an image, or one
    each.

    Raises:
        DataError: the file goes by text (and needs its data set), or cannot be read.
    """
    if path.suffix == ".txt":
        beside = path.with_name("train_caps.txt")
        if not beside.is_file():
            raise DataError(
                f"noise file {path} goes by text: name the data set with --data (or put its train_caps.txt "
                f"beside it)"
            )
        faults: list[str] = []
        captions = read_lines(beside, faults)
        ids = path.with_name("train_ids.txt")
        images = len(read_lines(ids, faults)) if ids.is_file() else len(captions) // 5
        if faults:
            raise DataError("; ".join(faults))
        return _plain(images, captions)
    index = _whole_numbers(path)
    images = len(index)
    if len(np.unique(index)) < len(index) and len(index) % 5 == 0 and index.max() < len(index) // 5:
        images = len(index) // 5
    return _plain(images, [""] * len(index) if images < len(index) else [""] * (5 * images))


def _plain(images: int, captions: list[str]) -> Split:
    if not images or len(captions) % images:
        raise DataError(
            f"{len(captions)} captions do not go evenly into {images} images: name the data set with --data"
        )
    return Split(
        range(images), captions, np.repeat(np.arange(images), len(captions) // images), np.arange(images)
    )


def describe(found: IndexFile, split: Split) -> Mapping[str, Any]:
    """What a person asks about a file: form, granularity, ratio, fixed points, wrong captions an image."""
    kept = (
        np.bincount(found.image, minlength=len(split.images))
        == np.bincount(split.owner, minlength=len(split.images))
    ).all()
    return {
        "form": found.form,
        "images": len(split.images),
        "captions": len(split.captions),
        "granularity": found.granularity,
        "realised ratio": float(1 - found.matched.mean()),
        "moved to another image": float((found.image != split.owner).mean()),
        "captions an image stay as many": bool(kept),
        "ambiguous texts": found.ambiguous,
    }
