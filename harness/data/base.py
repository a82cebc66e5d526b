"""What a data set is, for the harness: images, captions, who owns which, and what counts as a match.

A split carries Flickr30K-like sets (five captions an image, the image is the group), one-caption sets
(`owner` = 0, 1, 2, ...), sets where several images are one concept (`emoji`), and precomputed region
features (`kind` is "regions").
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

DataKind = Literal["pictures", "regions"]
"""What a split holds for each image: a PIL picture, or precomputed region features."""
COCO_FOLDS = 5  # MS-COCO's 1K protocol: the mean over so many parts of the 5,000 test images, in file order


class DataError(ValueError):
    """A data set that is missing, corrupt or not what it should be; the text is for the user."""


class Strings(Sequence[str]):
    """Many strings without an object for each: a million captions take 60 MB, and loader workers
    share them.
    """

    def __init__(self, values: Iterable[str] | pa.Array) -> None:
        self.array = values if isinstance(values, pa.Array) else pa.array(values, pa.large_string())

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, i: Any) -> Any:
        return self.array[int(i)].as_py()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self.array), 8192):
            yield from self.array.slice(start, 8192).to_pylist()

    def digest(self) -> str:
        """SHA-256 of the strings and where each ends."""
        found = hashlib.sha256()
        for start in range(0, len(self.array), 8192):
            part = self.array.slice(start, 8192).to_pylist()
            found.update(f"{len(part)} {' '.join(str(len(p)) for p in part)} {''.join(part)}".encode())
        return found.hexdigest()

    def only(self, rows: NDArray[np.int64]) -> Strings:
        return Strings(self.array.take(pa.array(rows)))


class Chosen(Sequence[Any]):
    """Some entries of a sequence: those numbered `rows`."""

    def __init__(self, whole: Sequence[Any], rows: NDArray[np.int64]) -> None:
        self.whole, self.rows = whole, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        return self.whole[int(self.rows[i])]


def choose(whole: Any, rows: NDArray[np.int64]) -> Any:
    """Entries of a sequence by number; kinds that can do better than `Chosen` have a method `only`."""
    return whole.only(rows) if hasattr(whole, "only") else Chosen(whole, rows)


@dataclass(frozen=True)
class Split:
    """Images and captions of one split.

    Attributes:
        images: N pictures (PIL, RGB), decoded when they are read by index; or region features with
            `shape` [N, R, F], read by index or by an array of indices.
        captions: C strings.
        owner: int64 [C], the image that each caption belongs to (the truth).
        image_group: int64 [N], group of each image; images and captions of one group match at test.
        altered: what changed the captions' words (a digest), where noise did; empty for those of the data
            set.
        kind: what `images` holds: "pictures" or "regions". It decides which backbones can use the split.

    Raises:
        DataError: lengths differ, an owner is out of range, or the split is empty.
    """

    images: Sequence[Any]
    captions: Sequence[str]
    owner: NDArray[np.int64]
    image_group: NDArray[np.int64]
    altered: str = ""
    kind: DataKind = "pictures"

    def __post_init__(self) -> None:
        if not len(self.images) or not len(self.captions):
            raise DataError("a split needs at least one image and one caption")
        if len(self.owner) != len(self.captions) or len(self.image_group) != len(self.images):
            raise DataError(
                f"{len(self.captions)} captions with {len(self.owner)} owners, "
                f"{len(self.images)} images with {len(self.image_group)} groups"
            )
        if self.owner.min() < 0 or self.owner.max() >= len(self.images):
            raise DataError(f"an owner is outside the {len(self.images)} images")

    @property
    def caption_group(self) -> NDArray[np.int64]:
        """int64 [C], group of each caption: that of the image that owns it."""
        return self.image_group[self.owner]

    def only(self, kept: NDArray[np.bool_]) -> Split:
        """The split without the other images and their captions; `kept` is bool [N]."""
        place = np.cumsum(kept) - 1
        captions = np.flatnonzero(kept[self.owner])
        return dataclasses.replace(
            self,
            images=choose(self.images, np.flatnonzero(kept)),
            captions=choose(self.captions, captions),
            owner=place[self.owner[captions]],
            image_group=np.unique(self.image_group[kept], return_inverse=True)[1].astype(np.int64),
        )

    def part(self, number: int, of: int) -> Split:
        """One of `of` equal parts, by image in file order."""
        kept = np.arange(len(self.images)) * of // len(self.images) == number
        return self.only(kept)


@dataclass(frozen=True)
class DataSet:
    """A data set: `train`, `dev`, `test`, and `meta` (a small clean set) where there is one.

    Attributes:
        fingerprint: hash of the content; stands in every record, and keys cached features.
        distinct_groups: no batch may hold two pairs whose images are of one group (where a group has
            many pairs, true matches would stand among a batch's negatives).
        note: one line for tables: what it is and what it must not be taken for.
        vocabularies: files of word ids that came with the data set, for backbones that need one.
        shard: int64 [N], the file that each training image is read from, where an epoch should go through
            them file by file.
        coco_ids: MS-COCO's numbers of the test images and of the test captions, where they are known.
        skipped: images left out of each split because they cannot be decoded (`on_bad_image: skip`).
    """

    name: str
    splits: Mapping[str, Split]
    fingerprint: str
    distinct_groups: bool = False
    note: str = ""
    vocabularies: tuple[Path, ...] = ()
    shard: NDArray[np.int64] | None = None
    coco_ids: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    skipped: Mapping[str, int] = field(default_factory=dict)

    def __getitem__(self, split: str) -> Split:
        if split not in self.splits:
            raise DataError(f"data set {self.name!r} has no split {split!r}, only {', '.join(self.splits)}")
        return self.splits[split]

    @property
    def folds(self) -> int:
        """Parts that test is evaluated in besides the whole: 5 for MS-COCO's 5,000 images with five captions
        each, else none.
        """
        test = self["test"]
        five_each = len(test.captions) == 25_000 and bool((np.bincount(test.owner, minlength=1) == 5).all())
        return COCO_FOLDS if len(test.images) == 5_000 and five_each else 0


def read_array(path: Path, what: str, *, mapped: bool = False) -> NDArray[Any]:
    """The array of an `.npy` file, whoever made it; with `mapped` as a memory map. Pickles are not opened.

    Raises:
        DataError: there is no such file, or it holds something else; the text begins with `what`.
    """
    try:
        found = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{what} {path} is missing") from None
    except Exception as error:  # a header can be wrong in many ways
        hint = ""
        if "allow_pickle" in str(error):
            hint = (
                " (a pickle can run code when it is opened, so it is not; if it comes from somebody you "
                "trust: python -m harness.data unpickle)"
            )
            error = ValueError("it is a pickle, not an array of numbers")
        raise DataError(
            f"{what} {path} cannot be read as an array of numbers: "
            f"{' '.join(str(error).split())[:300] or type(error).__name__}{hint}"
        ) from None
    if not isinstance(found, np.ndarray):
        found.close()
        raise DataError(
            f"{what} {path} cannot be read as an array of numbers: it is an archive of several (.npz)"
        )
    return found
