"""The SCAN layout: region features and captions, as NCR, MSCN and most of the field read them.

Files of the split `train` (`dev` and `test` alike; `testall`, MS-COCO's 5,000 test images, replaces `test`):

- `train_ims.npy`: region features, N x 36 x 2048, read as a memory map.
- `train_caps.txt`: five lines per image; or `train_caps.tsv`: image name and caption, one caption per image
  (CC152K).
- `train_groups.npy` (optional, in our exports): group of each image; images of one group match.

There may also be a `*_vocab.json`, and a clean set `meta_ims.npy` with `meta_caps.txt` (MSCN). Some published
files repeat the features of each image five times; this is detected from the shapes and the content.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.base import DataError, DataSet, Strings, read_array
from harness.data.layout import SPLITS, Listing, Options, read_options
from harness.lib.files import file_digest

CAPTIONS = 5
"""Captions per image in a .txt file."""


class Regions(Sequence[NDArray[np.float32]]):
    """Region features of images, read on access.

    An index gives float32 [R, D]; an array of B indices gives float32 [B, R, D].

    Args:
        features: [M, R, D], R regions of width D for each row; may be a memory map.
        rows: int64 [N], row in `features` of each image.
    """

    def __init__(self, features: NDArray[Any], rows: NDArray[np.int64]) -> None:
        self.features, self.rows = features, rows
        self.shape = (len(rows), *features.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return np.asarray(self.features[self.rows[index]], np.float32)

    def only(self, images: NDArray[Any]) -> Regions:
        """The images at the given indices, in that order."""
        return Regions(self.features, self.rows[images])


OPTIONS = Options


def load(**options: Any) -> DataSet:
    """Read the data set; see `Options`.

    Raises:
        DataError: an option is wrong, or files are missing or have the wrong shape. The message names each
            file, what was expected and what was found.
    """
    given = read_options(OPTIONS, options)
    return listing(given).dataset(given)


def recognise(directory: Path) -> bool:
    """Whether a directory has this layout."""
    return (directory / "train_ims.npy").is_file()


def listing(options: Options) -> Listing:
    """Read the files. Each split that cannot be read is an error."""
    root = Path(options.folder)
    listing = Listing(root.name)
    # SCAN's coco_precomp has the 5,000 test images as `testall`, and their first fold as `test`.
    files_of = {name: name for name in SPLITS}
    if (root / "meta_ims.npy").exists():
        files_of["meta"] = "meta"
    if (root / "testall_ims.npy").exists():
        files_of["test"] = "testall"
    for name, prefix in files_of.items():
        try:
            _add_split(listing, name, root=root, prefix=prefix)
        except DataError as error:
            listing.errors.append(str(error))
    if listing.errors or not listing.splits:
        return listing
    shapes = {name: split.images.shape[1:] for name, split in listing.splits.items()}
    for name, shape in shapes.items():
        if shape != shapes["train"]:
            listing.errors.append(
                f"{root / f'{files_of[name]}_ims.npy'}: expected regions of shape {shapes['train']} as in "
                f"train, found {shape}"
            )
    files = [
        f
        for n in files_of.values()
        for f in sorted(root.glob(f"{n}_*"))
        if f.suffix in (".npy", ".txt", ".tsv")
    ]
    vocabularies = sorted(root.glob("*_vocab.json"))
    listing.content = [(f.name, file_digest(f)) for f in [*files, *vocabularies]]
    listing.note = f"region features {' x '.join(map(str, shapes['train']))}"
    listing.published = {"f30k": "flickr30k", "coco": "coco", "cc152k": "cc152k"}.get(
        root.name.partition("_")[0], ""
    )
    listing.vocabularies = tuple(vocabularies)
    return listing


def _add_split(listing: Listing, name: str, *, root: Path, prefix: str) -> None:
    """Add the split `name` from the files `PREFIX_*`. Raises DataError if they cannot be used."""
    features = _features(root / f"{prefix}_ims.npy")
    captions, single = _captions(root, prefix)
    rows = np.arange(len(features))
    if len(features) == len(captions):
        repeats = not single and len(features) % CAPTIONS == 0 and _repeats(features)
        if repeats:
            rows = rows[::CAPTIONS]
    elif single or CAPTIONS * len(features) != len(captions):
        expected = f"{len(captions)}" if single else f"{len(captions) / CAPTIONS:g} or {len(captions)}"
        raise DataError(
            f"{root / f'{prefix}_ims.npy'}: expected {expected} rows for the {len(captions)} captions of the "
            f"split, found shape {features.shape}"
        )
    owner = np.arange(len(captions)) * len(rows) // len(captions)
    listing.add_split(
        name,
        Regions(features, rows),
        captions=Strings(captions),
        owner=owner,
        group=_groups(root / f"{prefix}_groups.npy", len(rows)),
        kind="regions",
    )


def _features(path: Path) -> NDArray[Any]:
    features = read_array(path, "features", mapped=True)
    if features.ndim != 3 or not np.issubdtype(features.dtype, np.floating) or not features.size:
        raise DataError(
            f"{path}: expected floating-point numbers of shape (images, regions, width), found "
            f"{features.dtype} {features.shape}"
        )
    return features


def _captions(root: Path, prefix: str) -> tuple[list[str], bool]:
    """The captions, and whether the form of the file means one caption per image."""
    lines, table = root / f"{prefix}_caps.txt", root / f"{prefix}_caps.tsv"
    path = lines if lines.exists() else table
    if not path.exists():
        raise DataError(f"{lines} (or {table.name}) is missing")
    try:
        if path is lines:
            text = path.read_bytes().decode("utf-8-sig")
            return [line.strip() for line in text.removesuffix("\n").split("\n")], False
        with open(path, encoding="utf-8-sig", newline="") as stream:
            return [row[1].strip() for row in csv.reader(stream, delimiter="\t")], True
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected UTF-8, found the byte {error.object[error.start]:#x} at {error.start}"
        ) from None
    except IndexError:
        raise DataError(f"{path}: expected an image name, a tab and a caption in every line") from None
    except (OSError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def _repeats(features: NDArray[Any]) -> bool:
    """Whether five consecutive rows are always one image: their first regions are equal."""
    first = features[:, 0].reshape(-1, CAPTIONS, features.shape[2])
    return np.array_equal(first, np.broadcast_to(first[:, :1], first.shape), equal_nan=True)


def _groups(path: Path, count: int) -> NDArray[np.int64]:
    if not path.exists():
        return np.arange(count)
    groups = read_array(path, "groups")
    if groups.shape != (count,) or not np.issubdtype(groups.dtype, np.integer):
        raise DataError(f"{path}: expected {count} integers, found {groups.dtype} {groups.shape}")
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)
