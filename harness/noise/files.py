"""Published noise-index files: read, written and described.

Three forms are published (released code of the methods named):

- `caption` (NCR, BiCro, PC2, L2RM; `.npy`): int [C], for each caption the image that it is trained with.
- `image` (DECL, RCL; `noise_inx_0.4.npy`): int [N], a permutation of the images; the captions of image i are
  trained with image index[i].
- `text` (NPC; `0.4_noise_train_caps.txt`): the captions in their new order, one a line. Each line is
  identified with a caption by its text (white space aside). A duplicate text is identified with the caption
  at the same index, else with one of the same image, else in order. Which image is trained with which text
  is the same in any case; which of the equal captions it was, and so whether the pair matches, cannot be
  known. `IndexFile.ambiguous` counts such captions.

Entries correspond to captions and images by index: a file fits a data set with the same images and captions
in the same order.
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

_SIZE_HINT = (
    " (the file and the data set must have the same captions in the same order: load the data set without "
    "on_bad_image: skip, train_groups, or drawn splits)"
)


@dataclass(frozen=True)
class IndexFile:
    """The contents of an index file, for a training split with C captions of N images.

    Attributes:
        form: form of the file, one of `harness.noise.FORMS`.
        image: int64 [C], index of the image that each caption is trained with.
        matched: bool [C], whether caption and image are of one group.
        owner: int64 [C], index of the image that each caption belongs to.
        ambiguous: number of captions with a duplicate text, in the form `text`; else 0.
    """

    form: str
    image: NDArray[np.int64]
    matched: NDArray[np.bool_]
    owner: NDArray[np.int64]
    ambiguous: int = 0

    @property
    def granularity(self) -> str:
        """`image` where all captions of each image are trained with one image, else `caption`; `none` where
        all pairs match.
        """
        if self.matched.all():
            return "none"
        count = np.bincount(self.owner)
        first = np.zeros(len(count), np.int64)
        first[self.owner[::-1]] = self.image[::-1]
        return "image" if count.max() > 1 and (self.image == first[self.owner]).all() else "caption"

    @property
    def wrong_captions(self) -> NDArray[np.int64]:
        """int64 [K + 1], where K is the largest number of captions of an image: entry k is the number of
        images with k captions that are trained with a wrong image.
        """
        return np.bincount(
            np.bincount(self.owner, weights=~self.matched).astype(np.int64),
            minlength=int(np.bincount(self.owner).max()) + 1,
        )


def read_index(path: Path, split: Split) -> IndexFile:
    """Read a noise-index file of any form for a training split.

    The suffix `.txt` means the form `text`; the length of an array separates `caption` from `image`.

    Raises:
        DataError: the file cannot be read, or does not fit the split.
    """
    if path.suffix == ".txt":
        return _read_text(path, split)
    index = _read_integers(path)
    images, captions = len(split.images), len(split.captions)
    if len(index) not in (images, captions):
        raise DataError(
            f"noise file {path} has {len(index):,} entries, and train has {captions:,} captions of "
            f"{images:,} images{_SIZE_HINT}"
        )
    if index.min() < 0 or index.max() >= images:
        wrong = int(index.min() if index.min() < 0 else index.max())
        raise DataError(f"noise file {path}: {wrong} is not an image index of train (0 to {images - 1:,})")
    if len(index) == captions:
        image, form = index, "caption"
    elif (np.bincount(index, minlength=images) != 1).any():
        raise DataError(
            f"noise file {path} has an entry for each image, and is not a permutation of the images"
        )
    else:
        image, form = index[split.owner], "image"
    return IndexFile(form, image, split.image_group[image] == split.caption_group, split.owner)


def _read_integers(path: Path) -> NDArray[np.int64]:
    """The integers of an `.npy` file. Raises DataError if it holds anything else."""
    index = read_array(path, "noise file")
    if index.ndim != 1 or not np.issubdtype(index.dtype, np.integer) or not len(index):
        raise DataError(
            f"noise file {path}: expected a one-dimensional array of integers, found {index.dtype} "
            f"{index.shape}"
        )
    if index.max() >= 2**63:
        raise DataError(f"noise file {path}: {index.max()} is not an image index of train")
    return index.astype(np.int64)


def _read_text(path: Path, split: Split) -> IndexFile:
    lines = _normalised_lines(path)
    captions = [" ".join(caption.split()) for caption in split.captions]
    if len(lines) != len(captions):
        appended = (
            " (NPC's code appends to an existing file: remove the file and write it again)"
            if len(lines) % len(captions) == 0
            else ""
        )
        raise DataError(
            f"noise file {path} has {len(lines):,} lines, and train has {len(captions):,} "
            f"captions{appended or _SIZE_HINT}"
        )
    texts = set(captions)
    unknown = [k for k, line in enumerate(lines) if line not in texts]
    if unknown:
        raise DataError(
            f"noise file {path}, line {unknown[0] + 1}: {lines[unknown[0]][:80]!r} is not a caption of train "
            f"(lines like this: {len(unknown):,})"
        )
    line_of = _identify(lines, captions, split)
    if line_of is None:
        raise DataError(
            f"noise file {path}: its lines are not the captions of train in another order (some occur more "
            f"often than in train)"
        )
    image = split.owner[line_of]
    text = np.unique(captions, return_inverse=True)[1]
    count = np.bincount(text)
    ambiguous = int((count[text] > 1).sum())
    return IndexFile("text", image, split.image_group[image] == split.caption_group, split.owner, ambiguous)


def _normalised_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 file with single spaces. Raises DataError if it cannot be read."""
    try:
        return [
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


def _identify(lines: list[str], captions: list[str], split: Split) -> NDArray[np.int64] | None:
    """int64 [C], the line index of each caption; None if the lines are not the captions in another order."""
    group = split.caption_group.tolist()
    unmoved = np.flatnonzero([a == b for a, b in zip(lines, captions, strict=True)])
    line_of = np.full(len(captions), -1)
    line_of[unmoved] = unmoved
    same_group: dict[tuple[str, int], deque[int]] = defaultdict(deque)
    for c in np.flatnonzero(line_of < 0).tolist():
        same_group[captions[c], group[c]].append(c)
    remaining = []
    for line in np.setdiff1d(np.arange(len(lines)), unmoved).tolist():
        candidates = same_group[lines[line], group[line]]
        if candidates:
            line_of[candidates.popleft()] = line
        else:
            remaining.append(line)
    any_group: dict[str, deque[int]] = defaultdict(deque)
    for c in np.flatnonzero(line_of < 0).tolist():
        any_group[captions[c]].append(c)
    for line in remaining:
        if not any_group[lines[line]]:
            return None
        line_of[any_group[lines[line]].popleft()] = line
    return line_of


def write_index(image: NDArray[np.int64], split: Split, path: Path, form: str) -> None:
    """Write a noise index in a published form.

    Args:
        image: int64 [C], index of the image that each caption is trained with.
        split: the training split.
        path: the file to write, `.txt` for the form `text`, else `.npy`.
        form: one of `harness.noise.FORMS`.

    Raises:
        DataError: the form cannot represent the index, the file exists, or it has the wrong suffix.
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
        permutation = np.arange(len(split.images))
        permutation[split.owner] = image
        if (permutation[split.owner] != image).any() or (
            np.bincount(permutation, minlength=len(permutation)) != 1
        ).any():
            raise DataError(
                "form 'image' holds a permutation of images, and this index moves single captions: use "
                "noise_granularity 'image', or another form"
            )
        np.save(path, permutation)
    else:
        path.write_text("".join(f"{line}\n" for line in _reordered(image, split)), encoding="utf-8")


def _reordered(image: NDArray[np.int64], split: Split) -> list[str]:
    """The captions in the order of the form `text`.

    Captions that keep their image keep their line; the others take the free lines of their new image.
    """
    line_of = np.full(len(image), -1)
    unmoved = np.flatnonzero(image == split.owner)
    line_of[unmoved] = unmoved
    free: dict[int, deque[int]] = defaultdict(deque)
    for c in np.setdiff1d(np.arange(len(image)), unmoved).tolist():
        free[int(split.owner[c])].append(c)
    for c in np.flatnonzero(line_of < 0).tolist():
        if not free[int(image[c])]:
            raise DataError(
                "form 'text' needs an index in which each image keeps its number of captions, and in this "
                "one some images have more: use form 'caption'"
            )
        line_of[c] = free[int(image[c])].popleft()
    lines = [""] * len(image)
    for c, line in enumerate(line_of.tolist()):
        lines[line] = split.captions[c]
    return lines


def guessed_split(path: Path) -> Split:
    """A training split for a file without its data set: five captions for each image, or one.

    For the form `text`, `train_caps.txt` in the same directory gives the captions, and `train_ids.txt` the
    number of images.

    Raises:
        DataError: the file cannot be read, or needs its data set.
    """
    if path.suffix == ".txt":
        captions_file = path.with_name("train_caps.txt")
        if not captions_file.is_file():
            raise DataError(
                f"noise file {path} identifies captions by their text: name the data set with --data, or put "
                f"its train_caps.txt into the same directory"
            )
        errors: list[str] = []
        captions = read_lines(captions_file, errors)
        ids = path.with_name("train_ids.txt")
        images = len(read_lines(ids, errors)) if ids.is_file() else len(captions) // 5
        if errors:
            raise DataError("; ".join(errors))
        return _plain_split(images, captions)
    index = _read_integers(path)
    images = len(index)
    if len(np.unique(index)) < len(index) and len(index) % 5 == 0 and index.max() < len(index) // 5:
        images = len(index) // 5
    return _plain_split(images, [""] * len(index) if images < len(index) else [""] * (5 * images))


def _plain_split(images: int, captions: list[str]) -> Split:
    if not images or len(captions) % images:
        raise DataError(
            f"{len(captions)} captions are not the same number for each of {images} images: name the data "
            f"set with --data"
        )
    return Split(
        range(images), captions, np.repeat(np.arange(images), len(captions) // images), np.arange(images)
    )


def describe(index: IndexFile, split: Split) -> Mapping[str, Any]:
    """Properties of an index file by name, for a person to read: form, sizes, granularity, realised ratio."""
    counts_preserved = (
        np.bincount(index.image, minlength=len(split.images))
        == np.bincount(split.owner, minlength=len(split.images))
    ).all()
    return {
        "form": index.form,
        "images": len(split.images),
        "captions": len(split.captions),
        "granularity": index.granularity,
        "realised ratio": float(1 - index.matched.mean()),
        "moved to another image": float((index.image != split.owner).mean()),
        "captions per image preserved": bool(counts_preserved),
        "ambiguous texts": index.ambiguous,
    }
