"""The SCAN layout: region features and captions, as NCR, MSCN and most of the field read them.

A folder with, for each split, `train_ims.npy` (N x 36 x 2048, read as a memory map) and `train_caps.txt` (five
lines an image), or `train_caps.tsv` (image name, caption; one caption an image, as CC152K has it); the same for `dev` and
`test`. Some published files repeat each image's rows five times: shapes are looked at, not assumed. Beside them there may be a
`*_vocab.json`, a clean set `meta_ims.npy` and `meta_caps.txt` (MSCN), and of our exports `train_groups.npy`: the
group of each image, where images of one group match each other.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.cache import file_digest
from harness.data.base import DataError, DataSet, Split
from methods.seeding import numpy_generator

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


class Options(BaseModel):
    """`dataset_options` of a sweep file for this layout.

    Attributes:
        folder: where the files are.
        meta_share: make a clean set `meta` of images drawn from dev, as large as this share of the training pairs
            (MSCN: 0.02). They leave dev, so that no method is selected on pairs it has trained on.
        meta_leak: they stay in dev too, as in MSCN's released code (field notes 3.5).
        train_groups: train on the first so many images (groups of images, where there are any) only.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    folder: str
    meta_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    meta_leak: bool = False
    train_groups: Annotated[int, Field(ge=1)] | None = None


def load(**options: Any) -> DataSet:
    """Read a folder in this layout; see `Options`.

    Raises:
        DataError: an option is wrong; a file is missing or its shape does not fit; the text names it, what was
            expected and what was found.
    """
    try:
        given = Options.model_validate(options)
    except ValidationError as error:
        found = [(".".join(map(str, e["loc"])), e) for e in error.errors()]
        texts = [f"dataset_options.{k}: {e['msg']}" + ("" if e["type"] == "missing" else f", found {e['input']!r}") for k, e in found]
        raise DataError("; ".join(texts) + f" (allowed: {', '.join(Options.model_fields)})") from None
    if given.meta_leak and given.meta_share is None:
        raise DataError("dataset_options.meta_leak: there is nothing to leak without meta_share")
    meta_share, meta_leak, train_groups = given.meta_share, given.meta_leak, given.train_groups
    root = Path(given.folder)
    if not root.is_dir():
        raise DataError(f"folder {root} does not exist; expected train_ims.npy, train_caps.txt and so on in it")
    names = ["train", "dev", "test"] + (["meta"] if (root / "meta_ims.npy").exists() else [])
    faults: list[str] = []
    splits: dict[str, Split] = {}
    for name in names:
        try:
            splits[name] = _split(root, name)
        except DataError as error:
            faults.append(str(error))
    if not faults:
        faults += _differing_regions(root, splits)
    if faults:
        raise DataError("; ".join(faults))
    if train_groups is not None:
        have = len(np.unique(splits["train"].image_group))
        if train_groups > have:
            raise DataError(f"dataset_options.train_groups = {train_groups}: train has {have} groups of images")
        splits["train"] = _only_images(splits["train"], splits["train"].image_group < train_groups)
    if meta_share is not None:
        splits |= _meta_from_dev(splits, meta_share, leak=meta_leak)
    files = [f for n in names for f in sorted(root.glob(f"{n}_*")) if f.suffix in (".npy", ".txt", ".tsv")]
    files += sorted(root.glob("*_vocab.json"))
    content = [(f.name, file_digest(f)) for f in files]
    train = splits["train"]
    return DataSet(
        name=root.name,
        splits=splits,
        fingerprint=hashlib.sha256(repr((content, meta_share, meta_leak, train_groups)).encode()).hexdigest()[:16],
        distinct_groups=len(np.unique(train.image_group)) < len(train.images),
        note=f"region features {' x '.join(map(str, train.images.shape[1:]))}",  # type: ignore[attr-defined]
        vocabularies=tuple(sorted(root.glob("*_vocab.json"))),
    )


def _split(root: Path, name: str) -> Split:
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
            f"{root / f'{name}_ims.npy'}: expected {expected} rows for the {len(captions)} captions of the split, found shape {features.shape}"
        )
    owner = np.arange(len(captions)) * len(rows) // len(captions)
    return Split(Regions(features, rows), captions, owner, _groups(root / f"{name}_groups.npy", len(rows)))


def _features(path: Path) -> NDArray[Any]:
    try:
        features: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read as an array of numbers: {' '.join(str(error).split())}") from None
    if features.ndim != 3 or not np.issubdtype(features.dtype, np.floating) or not features.size:
        raise DataError(f"{path}: expected floating-point numbers of shape (images, regions, width), found {features.dtype} {features.shape}")
    return features


def _captions(root: Path, name: str) -> tuple[list[str], bool]:
    """Captions, and whether there is one for each image by the form of the file."""
    lines, table = root / f"{name}_caps.txt", root / f"{name}_caps.tsv"
    path = lines if lines.exists() else table
    if not path.exists():
        raise DataError(f"{lines} (or {table.name}) is missing")
    try:
        if path is lines:
            text = path.read_text(encoding="utf-8")
            return [line.strip() for line in text.removesuffix("\n").split("\n")], False
        with open(path, encoding="utf-8", newline="") as stream:
            return [row[1].strip() for row in csv.reader(stream, delimiter="\t")], True
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8, found the byte {error.object[error.start]:#x} at {error.start}") from None
    except IndexError:
        raise DataError(f"{path}: expected an image name, a tab and a caption in every line") from None


def _repeats(features: NDArray[Any]) -> bool:
    """Whether every five rows are one image: told by the first region of each."""
    first = features[:, 0].reshape(-1, CAPTIONS, features.shape[2])
    return bool((first == first[:, :1]).all())


def _groups(path: Path, count: int) -> NDArray[np.int64]:
    if not path.exists():
        return np.arange(count)
    try:
        groups = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if groups.shape != (count,) or not np.issubdtype(groups.dtype, np.integer):
        raise DataError(f"{path}: expected {count} whole numbers, found {groups.dtype} {groups.shape}")
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def _differing_regions(root: Path, splits: dict[str, Split]) -> list[str]:
    shapes = {name: split.images.shape[1:] for name, split in splits.items()}  # type: ignore[attr-defined]
    return [
        f"{root / f'{name}_ims.npy'}: expected regions of shape {shapes['train']} as in train, found {shape}"
        for name, shape in shapes.items() if shape != shapes["train"]
    ]


def _only_images(split: Split, kept: NDArray[np.bool_]) -> Split:
    """The split without the other images and their captions."""
    place = np.cumsum(kept) - 1
    captions = kept[split.owner]
    return dataclasses.replace(
        split,
        images=split.images.only(kept),  # type: ignore[attr-defined]
        captions=[c for c, stays in zip(split.captions, captions, strict=True) if stays],
        owner=place[split.owner[captions]],
        image_group=np.unique(split.image_group[kept], return_inverse=True)[1].astype(np.int64),
    )


def _meta_from_dev(splits: dict[str, Split], share: float, *, leak: bool) -> dict[str, Split]:
    if "meta" in splits:
        raise DataError("meta_share: the folder has a clean set of its own (meta_ims.npy)")
    train, dev = splits["train"], splits["dev"]
    each = len(dev.captions) / len(dev.images)
    wanted = round(share * len(train.captions) / each)
    if not 0 < wanted < len(dev.images):
        raise DataError(f"meta_share = {share}: {wanted} images, and dev has {len(dev.images)}, of which some must stay")
    drawn = np.zeros(len(dev.images), bool)
    drawn[numpy_generator("meta images").permutation(len(drawn))[:wanted]] = True
    return {"meta": _only_images(dev, drawn)} | ({} if leak else {"dev": _only_images(dev, ~drawn)})
