"""The SCAN layout: region features and captions, as NCR, MSCN and most of the field read them.

A folder with, for each split, `train_ims.npy` (N x 36 x 2048, read as a memory map) and `train_caps.txt`
(five lines an image), or `train_caps.tsv` (image name, caption; one caption an image, as CC152K has it); the
same for `dev` and `test` (`testall` where it is there: all 5,000 of MS-COCO). Some published files repeat
each image's rows five times: shapes are looked at, not assumed. Beside them there may be a `*_vocab.json`, a
clean set `meta_ims.npy` and `meta_caps.txt` (MSCN), and of our exports `train_groups.npy`: the group of each
image, where images of one group match each other.
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

CAPTIONS = 5  # for each image, in a .txt


class Regions(Sequence[NDArray[np.float32]]):
    """Rows of a file of region features, read when asked for: by number, or several at once by an array."""

    def __init__(self, features: NDArray[Any], rows: NDArray[np.int64]) -> None:
        self.features, self.rows = features, rows
        self.shape = (len(rows), *features.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return np.asarray(self.features[self.rows[index]], np.float32)

    def only(self, kept: NDArray[Any]) -> Regions:
        return Regions(self.features, self.rows[kept])


OPTIONS = Options


def load(**options: Any) -> DataSet:
    """Read a folder in this layout; see `Options`.

    Raises:
        DataError: an option is wrong; a file is missing or its shape does not fit; the text names it, what
            was expected and what was found.
    """
    given = read_options(OPTIONS, options)
    return listing(given).dataset(given)


def recognise(folder: Path) -> bool:
    return (folder / "train_ims.npy").is_file()


def listing(options: Options) -> Listing:
    """What the files say; each split that cannot be read is a fault."""
    root = Path(options.folder)
    found = Listing(root.name)
    # SCAN's coco_precomp has the 5,000 test images as `testall`, and its first fold as `test`.
    files_of = {name: name for name in SPLITS}
    if (root / "meta_ims.npy").exists():
        files_of["meta"] = "meta"
    if (root / "testall_ims.npy").exists():
        files_of["test"] = "testall"
    for name, prefix in files_of.items():
        try:
            _split(root, name, prefix, found)
        except DataError as error:
            found.faults.append(str(error))
    if found.faults or not found.splits:
        return found
    shapes = {name: split.images.shape[1:] for name, split in found.splits.items()}
    for name, shape in shapes.items():
        if shape != shapes["train"]:
            found.faults.append(
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
    found.content = [(f.name, file_digest(f)) for f in [*files, *vocabularies]]
    found.note = f"region features {' x '.join(map(str, shapes['train']))}"
    found.published = {"f30k": "flickr30k", "coco": "coco", "cc152k": "cc152k"}.get(
        root.name.partition("_")[0], ""
    )
    found.vocabularies = tuple(vocabularies)
    return found


def _split(root: Path, split: str, name: str, found: Listing) -> None:
    """Read a split from the files that are called `name`."""
    features = _features(root / f"{name}_ims.npy")
    captions, single = _captions(root, name)
    rows = np.arange(len(features))
    if len(features) == len(captions):
        repeats = not single and len(features) % CAPTIONS == 0 and _repeats(features)
        if repeats:
            rows = rows[::CAPTIONS]
    elif single or CAPTIONS * len(features) != len(captions):
        expected = f"{len(captions)}" if single else f"{len(captions) / CAPTIONS:g} or {len(captions)}"
        raise DataError(
            f"{root / f'{name}_ims.npy'}: expected {expected} rows for the {len(captions)} captions of the "
            f"split, found shape {features.shape}"
        )
    owner = np.arange(len(captions)) * len(rows) // len(captions)
    found.add(
        split,
        Regions(features, rows),
        Strings(captions),
        owner,
        _groups(root / f"{name}_groups.npy", len(rows)),
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


def _captions(root: Path, name: str) -> tuple[list[str], bool]:
    """Captions, and whether there is one for each image by the form of the file."""
    lines, table = root / f"{name}_caps.txt", root / f"{name}_caps.tsv"
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
    """Whether every five rows are one image: told by the first region of each."""
    first = features[:, 0].reshape(-1, CAPTIONS, features.shape[2])
    return np.array_equal(first, np.broadcast_to(first[:, :1], first.shape), equal_nan=True)


def _groups(path: Path, count: int) -> NDArray[np.int64]:
    if not path.exists():
        return np.arange(count)
    groups = read_array(path, "groups")
    if groups.shape != (count,) or not np.issubdtype(groups.dtype, np.integer):
        raise DataError(f"{path}: expected {count} whole numbers, found {groups.dtype} {groups.shape}")
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)
