"""The data set contract: images, captions, the image that owns each caption, and groups of matches.

One form covers Flickr30K-like sets (five captions per image, each image is a group), sets with one caption
per image (`owner` = 0, 1, 2, ...), sets with several images of one concept (`emoji`), and precomputed region
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
COCO_FOLDS = 5
"""MS-COCO's 1K protocol: metrics are means over 5 folds of the 5,000 test images, in file order."""


class DataError(ValueError):
    """A data set is missing, corrupt or inconsistent; the message is written for the user."""


class Strings(Sequence[str]):
    """A sequence of strings in one Arrow array.

    A million captions take 60 MB, and loader workers share the memory.

    Args:
        values: the strings, or an Arrow array of them.
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
        """SHA-256 of the strings and their lengths, as hexadecimal digits."""
        digest = hashlib.sha256()
        for start in range(0, len(self.array), 8192):
            part = self.array.slice(start, 8192).to_pylist()
            digest.update(f"{len(part)} {' '.join(str(len(p)) for p in part)} {''.join(part)}".encode())
        return digest.hexdigest()

    def only(self, rows: NDArray[np.int64]) -> Strings:
        """The strings at the indices `rows` (int64 [R]), in that order."""
        return Strings(self.array.take(pa.array(rows)))


class Chosen(Sequence[Any]):
    """A view of a sequence: its entries at the indices `rows` (int64 [R]), in that order."""

    def __init__(self, sequence: Sequence[Any], rows: NDArray[np.int64]) -> None:
        self.sequence, self.rows = sequence, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        return self.sequence[int(self.rows[i])]


def choose(sequence: Any, rows: NDArray[np.int64]) -> Any:
    """Entries of a sequence at the indices `rows` (int64 [R]).

    Uses the method `only` of the sequence where there is one, else a `Chosen` view.
    """
    return sequence.only(rows) if hasattr(sequence, "only") else Chosen(sequence, rows)


@dataclass(frozen=True)
class Split:
    """Images and captions of one split.

    Attributes:
        images: N pictures (PIL, RGB), decoded when they are read by index; or region features with
            `shape` [N, R, F], read by index or by an array of indices.
        captions: C strings.
        owner: int64 [C], index of the image that each caption belongs to (the ground truth).
        image_group: int64 [N], group of each image; images and captions of one group match in evaluation.
        altered: digest of the noise that changed the words of captions; empty for the original captions.
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
                f"{len(self.captions)} captions with {len(self.owner)} owners, {len(self.images)} images "
                f"with {len(self.image_group)} groups"
            )
        if self.owner.min() < 0 or self.owner.max() >= len(self.images):
            raise DataError(
                f"an owner is outside the {len(self.images)} images (allowed: 0 to {len(self.images) - 1})"
            )

    @property
    def caption_group(self) -> NDArray[np.int64]:
        """Group of each caption, int64 [C]: the group of the image that owns it."""
        return self.image_group[self.owner]

    def only(self, images: NDArray[np.bool_]) -> Split:
        """The images selected by a mask (bool [N]) and their captions; groups are renumbered from 0."""
        new_index = np.cumsum(images) - 1
        captions = np.flatnonzero(images[self.owner])
        return dataclasses.replace(
            self,
            images=choose(self.images, np.flatnonzero(images)),
            captions=choose(self.captions, captions),
            owner=new_index[self.owner[captions]],
            image_group=np.unique(self.image_group[images], return_inverse=True)[1].astype(np.int64),
        )

    def part(self, number: int, of: int) -> Split:
        """Part `number` (from 0) of `of` equal parts of the images, in file order, with their captions."""
        return self.only(np.arange(len(self.images)) * of // len(self.images) == number)


@dataclass(frozen=True)
class DataSet:
    """A data set: the splits `train`, `dev` and `test`, and optionally `meta`, a small clean set.

    Attributes:
        name: the name in records and tables.
        splits: the splits by name.
        fingerprint: hash of the content; part of every record and of the keys of cached features.
        distinct_groups: whether a batch must not contain two pairs of one image group. If groups have many
            pairs, a batch would otherwise contain true matches among its negatives.
        note: one line for tables, about what the data set is and is not.
        vocabularies: files of word ids that belong to the data set, for backbones that need one.
        shard: int64 [N], index of the file that each training image is read from, if an epoch should read
            file by file; else None.
        coco_ids: MS-COCO's ids of the test images (int64 [N]) and of the test captions (int64 [C]), if known.
        skipped: number of images per split that were left out because they cannot be decoded
            (`on_bad_image: skip`).
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
            raise DataError(
                f"data set {self.name!r} has no split {split!r} (allowed: {', '.join(self.splits)})"
            )
        return self.splits[split]

    @property
    def folds(self) -> int:
        """Number of folds of the test split: 5 for MS-COCO's 5,000 images with five captions each, else 0.

        Folds are evaluated in addition to the complete split.
        """
        test = self["test"]
        five_each = len(test.captions) == 25_000 and bool((np.bincount(test.owner, minlength=1) == 5).all())
        return COCO_FOLDS if len(test.images) == 5_000 and five_each else 0


def _no_array(path: Path) -> tuple[ValueError, str]:
    """What a file is that NumPy takes for a pickle, and what to do about it."""
    with open(path, "rb") as stream:
        beginning = stream.read(8)
    if beginning.startswith((b"\x80", b"\x93NUMPY")):  # a pickle, also within an array of objects
        return ValueError("it is a pickle, not an array of numbers"), (
            " (opening a pickle can run code; if you trust its author, convert it with: "
            "python -m harness.data unpickle)"
        )
    return ValueError("it is no .npy file, which numpy.save writes"), ""


def read_array(path: Path, what: str, *, mapped: bool = False) -> NDArray[Any]:
    """Read the array of an `.npy` file of unknown origin. Pickles are refused.

    Args:
        path: the file.
        what: what the file is, as the first words of error messages.
        mapped: return a memory map instead of reading the content.

    Raises:
        DataError: the file is missing or is not one array of numbers or strings.
    """
    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{what} {path} is missing") from None
    except Exception as error:  # a header can be wrong in many ways
        hint = ""
        if "pickle" in str(error).lower():  # as NumPy takes all that it does not know
            error, hint = _no_array(path)
        raise DataError(
            f"{what} {path} cannot be read as an array of numbers: "
            f"{' '.join(str(error).split())[:300] or type(error).__name__}{hint}"
        ) from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError(
            f"{what} {path} cannot be read as an array of numbers: it is an archive of several arrays (.npz)"
        )
    return array
