"""WebDataset tar shards: samples of `KEY.jpg` with `KEY.txt`, or with `KEY.json`.

The JSON contains `caption`, or `captions` and optionally `group`. The shards are read in place. Their index
(shard, first byte and length of each picture) is built once, cached, and read as a memory map. A picture is
then one read at its offset: pairs can be addressed by index, and every noise model and method works as on
other data sets. An epoch reads a few shards at a time in a seeded order (see `harness.training.sampling`).
Shards of `harness.data prepare` are read in the order of an ordinary epoch, so that a trial on them differs
from a trial on the originals in the pictures only.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from filelock import FileLock
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from harness.data.base import DataError, DataSet, Strings
from harness.data.layout import WORDS, HeldOut, Listed, Listing, read_options, split_name
from harness.data.pictures import PICTURE_SUFFIXES, Slices
from harness.lib.console import progress
from harness.lib.files import atomic_write, cache_directory, file_digest

ABOUT = "dataset.json"
"""Name of the file about the data set, in a directory of `harness.data prepare`; see `About`."""
_MOST_TEXT = 1_000_000  # bytes of a .txt or .json; a sparse member can claim any size at no cost
_INDEX = pa.schema(
    {
        "key": pa.large_string(),
        "start": pa.int64(),
        "length": pa.int64(),
        "captions": pa.list_(pa.large_string()),
        "places": pa.list_(pa.int64()),
        "group": pa.int64(),
    }
)


class ShardOptions(HeldOut):
    """`dataset_options` of this layout; see also `HeldOut`.

    Attributes:
        shards: the shards of each split, as file patterns in `folder` ({train: "cc3m-train-*.tar", dev:
            ...}). Default: by file name (`train-000000.tar` or `train/000000.tar`); names without a split
            belong to train.
    """

    shards: dict[str, str] = Field(default_factory=dict)


OPTIONS = ShardOptions


def load(**options: Any) -> DataSet:
    """Read the data set; see `ShardOptions`.

    Raises:
        DataError: an option is wrong, a shard is damaged, or a sample has no picture or no caption.
    """
    given = read_options(OPTIONS, options)
    return listing(given).dataset(given)


def recognise(directory: Path) -> bool:
    """Whether a directory has this layout. Subdirectories with prepared copies do not count."""
    return any(directory.glob("*.tar")) or any(
        not (f.parent / ABOUT).exists() for f in directory.glob("*/*.tar")
    )


def listing(options: ShardOptions) -> Listing:
    """Read the index of each shard. Incomplete samples and damaged shards are errors."""
    root = Path(options.folder)
    listing = Listing(root.name)
    about = _about(root, listing)
    shards = _shards(root, options.shards, listing)
    for name, files in shards.items():
        listing.splits[name] = _split(name, files, listing)
    listing.draw_missing(options.held_out)
    listing.by_shard = about is None  # prepared pictures are small: reading them in any order is fast
    if about is not None:
        _add_about(listing, about, root / ABOUT)
    return listing


class About(BaseModel):
    """Content of `dataset.json`, which `harness.data prepare` writes to the directory of its shards.

    Attributes:
        name: name of the original data set.
        note: see `DataSet`.
        made_from: fingerprint of the original data set.
        size: shorter side of the pictures in pixels.
        format: image format, a key of `harness.data_tools.prepare.FORMATS`.
        pillow: version of Pillow that wrote the pictures.
        skipped: see `DataSet`.
        coco_ids: see `DataSet`.
    """

    name: str
    note: str = ""
    made_from: str
    size: int
    format: str
    pillow: str
    skipped: dict[str, int] = {}
    coco_ids: (
        tuple[list[Annotated[int, Field(ge=-1, lt=2**63)]], list[Annotated[int, Field(ge=-1, lt=2**63)]]]
        | None
    ) = None


def _add_about(listing: Listing, about: About, file: Path) -> None:
    listing.name, listing.note, listing.skipped = about.name, about.note, about.skipped
    if about.coco_ids is None:
        return
    images, captions = (np.array(ids, np.int64) for ids in about.coco_ids)
    listing.coco_ids = images, captions
    test = listing.splits.get("test")
    if test and (len(test.images), len(test.captions)) != (len(images), len(captions)):
        listing.errors.append(
            f"{file}: coco_ids has {len(images)} images and {len(captions)} captions, and the test split has "
            f"{len(test.images)} and {len(test.captions)}"
        )


def _about(root: Path, listing: Listing) -> About | None:
    """The content of `dataset.json`, if the file exists and is valid."""
    try:
        about = About.model_validate_json((root / ABOUT).read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        listing.errors.append(f"{root / ABOUT} cannot be read: {error.strerror}")
        return None
    except ValidationError as error:
        details = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        listing.errors.append(
            f"{root / ABOUT} does not have the form that `harness.data prepare` writes: {details}"
        )
        return None
    listing.content.append(about.model_dump_json())
    return about


def _shards(root: Path, patterns: dict[str, str], listing: Listing) -> dict[str, list[Path]]:
    """The shards of each split, by the patterns of `dataset_options.shards` or else by name."""
    return _shards_by_pattern(root, patterns, listing) if patterns else _shards_by_name(root)


def _shards_by_pattern(root: Path, patterns: dict[str, str], listing: Listing) -> dict[str, list[Path]]:
    shards = {}
    for word, pattern in patterns.items():
        split = split_name(word)
        try:
            files = sorted(root.glob(pattern))
        except (ValueError, NotImplementedError):
            listing.errors.append(
                f"dataset_options.shards: {pattern!r} is not a pattern of files in {root} (allowed: relative "
                f"patterns such as 'train-*.tar')"
            )
            continue
        if split is None or not files:
            reason = (
                f"no shard in {root} matches {pattern!r}"
                if split
                else f"unknown split {word!r} (allowed: {', '.join(WORDS)})"
            )
            listing.errors.append(f"dataset_options.shards: {reason}")
        else:
            shards[split] = files
    counts = Counter(f for files in shards.values() for f in files)
    duplicates = sorted(f.name for f, count in counts.items() if count > 1)
    listing.errors += [f"dataset_options.shards: {name} would be in two splits" for name in duplicates]
    return shards


def _shards_by_name(root: Path) -> dict[str, list[Path]]:
    shards: dict[str, list[Path]] = {}
    for file in sorted(
        [*root.glob("*.tar"), *(f for f in root.glob("*/*.tar") if not (f.parent / ABOUT).exists())]
    ):
        words = re.split(r"[^A-Za-z]+", str(file.relative_to(root)))
        split = next((s for s in map(split_name, words) if s), "train")
        shards.setdefault(split, []).append(file)
    return {name: shards[name] for name in WORDS if name in shards}


def _split(name: str, files: list[Path], listing: Listing) -> Listed:
    """All samples of a split, from the index of each shard; errors are added to the listing."""
    slow = len(files) > 8 and not all(_index_file(f).exists() for f in files)
    tables = []
    for file in progress(files, f"index of {len(files)} shards ({name})" if slow else None):
        table, errors = shard_index(file)
        listing.errors += errors
        tables.append(table)
    shard = np.repeat(np.arange(len(files)), [len(t) for t in tables])
    samples = pa.concat_tables(tables).combine_chunks()
    start, length, group = (samples[c].to_numpy() for c in ("start", "length", "group"))
    if (group < 0).any() and (group >= 0).any():
        listing.errors.append(
            f"{name}: {int((group >= 0).sum())} samples have a group, and {int((group < 0).sum())} have none"
        )
    captions, owner = _captions(name, samples, listing)
    pictures = Slices(files, shard, start=start, length=length, keys=Strings(_single_chunk(samples["key"])))
    listed = Listed(pictures, captions, owner, None if (group < 0).any() else group)
    listing.content.append((name, [(f.name, file_digest(f)) for f in files], *listed.content()))
    return listed


def _captions(name: str, samples: pa.Table, listing: Listing) -> tuple[Strings, NDArray[np.int64]]:
    """The C captions of a split, and the index of the sample of each, int64 [C]."""
    lists = _single_chunk(samples["captions"])
    captions = Strings(lists.flatten())
    owner = np.repeat(np.arange(len(samples)), np.diff(lists.offsets.to_numpy()))
    places = _single_chunk(samples["places"]).flatten().to_numpy()
    if len(places) == len(owner):  # prepared shards store the index of each caption in the original
        order = np.argsort(places, kind="stable")
        captions, owner = captions.only(order), owner[order]
    if len(places) and not np.array_equal(np.sort(places), np.arange(len(owner))):
        listing.errors.append(
            f"{name}: the order of the captions is lost (expected 'places' to be 0 to {len(owner) - 1}, each "
            f"once)"
        )
    return captions, owner


def _single_chunk(column: pa.ChunkedArray) -> Any:
    combined = column.combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined


# The index of a shard -------------------------------------------------------------------------------


@dataclass(slots=True)
class _Sample:
    """One sample of a shard, while its members are read.

    Attributes:
        start: offset of the first byte of the picture; -1 without a picture.
        length: number of bytes of the picture.
        captions: the captions.
        places: index of each caption in the original data set, in prepared shards.
        group: group of the image; -1 without a group.
        text: whether the captions are from a .txt.
        other: names of members that are not read.
    """

    start: int = -1
    length: int = 0
    captions: list[str] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    group: int = -1
    text: bool = False
    other: list[str] = field(default_factory=list)


def shard_index(file: Path) -> tuple[pa.Table, list[str]]:
    """The complete samples of a shard, and its errors; cached until the shard changes.

    Returns:
        A table with one row per sample (columns of `_INDEX`), and the error messages.

    Raises:
        DataError: the file is missing or its status cannot be read.
    """
    index = _index_file(file)
    index.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(index.with_suffix(".lock")):
        if not _readable(index):
            samples, errors = _read_shard(file)
            columns = {
                "key": list(samples),
                "start": [s.start for s in samples.values()],
                "length": [s.length for s in samples.values()],
                "captions": [s.captions for s in samples.values()],
                "places": [s.places for s in samples.values()],
                "group": [s.group for s in samples.values()],
            }
            table = pa.table(columns, schema=_INDEX).replace_schema_metadata({"faults": json.dumps(errors)})
            with atomic_write(index) as stream, pa.ipc.new_file(stream, table.schema) as writer:
                writer.write_table(table)
    table = pa.ipc.open_file(pa.memory_map(str(index))).read_all()
    return table, json.loads(table.schema.metadata[b"faults"])


def _readable(index: Path) -> bool:
    try:
        return bool(pa.ipc.open_file(pa.memory_map(str(index))).schema.equals(_INDEX))
    except (OSError, pa.ArrowException):
        return False


def _index_file(file: Path) -> Path:
    try:
        status = file.stat()
    except OSError as error:
        raise DataError(f"shard {file} cannot be read: {error.strerror}") from None
    stamp = f"2 {file.resolve()} {status.st_size} {status.st_mtime_ns}"
    return cache_directory() / "shards" / f"{hashlib.sha256(stamp.encode()).hexdigest()[:24]}.arrow"


def _read_shard(file: Path) -> tuple[dict[str, _Sample], list[str]]:
    """The complete samples of a shard by key, and an error for each other sample and for damage."""
    samples: dict[str, _Sample] = {}
    errors: list[str] = []
    try:
        with tarfile.open(file, "r:") as tar:
            for member in _members(tar):
                error_text = _read_member(member, tar, samples)
                if error_text:
                    errors.append(f"{file}: {error_text}")
            end = tar.offset  # type: ignore[attr-defined]
        with open(file, "rb") as stream:
            stream.seek(end)
            if stream.read(512) != bytes(512):
                errors.append(f"{file} is truncated after {len(samples)} samples: it has no end mark")
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        with open(file, "rb") as stream:
            compressed = stream.read(2) == b"\x1f\x8b"
        reason = (
            "is compressed (allowed: a plain tar)"
            if compressed
            else f"is damaged or truncated after {len(samples)} samples: {error}"
        )
        errors.append(f"{file} {reason}")
    for key, sample in samples.items():
        if sample.start < 0 or not (sample.captions or sample.group >= 0):
            other = (
                f" (found {', '.join(sample.other[:3])}; allowed: {', '.join(PICTURE_SUFFIXES)}, .txt, .json)"
                if sample.other
                else ""
            )
            errors.append(f"{file}: {key} has no {'picture' if sample.start < 0 else 'caption'}{other}")
    return {k: s for k, s in samples.items() if s.start >= 0 and (s.captions or s.group >= 0)}, errors


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The regular files of a tar, one at a time. The list that `tarfile` keeps is emptied to bound the
    memory.
    """
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]
        if member.isfile():
            yield member


def _read_member(member: tarfile.TarInfo, tar: tarfile.TarFile, samples: dict[str, _Sample]) -> str:
    """Add a member to its sample. Returns what is wrong with it; empty if nothing is."""
    if not member.name.isprintable():
        return f"{member.name.encode(errors='backslashreplace').decode()}: the name is not printable UTF-8"
    directory, _, base = member.name.rpartition("/")
    key, _, kind = base.partition(".")
    key, kind = f"{directory}/{key}" if directory else key, kind.lower()
    sample = samples.setdefault(key, _Sample())
    if f".{kind}" not in PICTURE_SUFFIXES and kind not in ("txt", "json"):
        sample.other.append(base)
        return ""
    if f".{kind}" in PICTURE_SUFFIXES:
        if sample.start >= 0:
            return f"{key} has two pictures (duplicate key)"
        sample.start, sample.length = member.offset_data, member.size
        return ""
    if member.size > _MOST_TEXT:
        return f"{member.name}: larger than {_MOST_TEXT:,} bytes, the maximum of a text"
    stream = tar.extractfile(member)
    content = stream.read() if stream else b""
    try:
        if kind == "txt":
            if sample.text:
                return f"{key} has two .txt (duplicate key)"
            sample.text = True
            # img2dataset writes both, and the .txt takes precedence over the .json.
            sample.captions = [" ".join(content.decode("utf-8-sig").split())]
        else:
            _read_json(json.loads(content), sample)
    except UnicodeDecodeError as error:
        return f"{member.name}: expected UTF-8, found the byte {error.object[error.start]:#x}"
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        return f"{member.name}: {error}"
    return ""


def _read_json(about: Any, sample: _Sample) -> None:
    """Add the content of a .json to its sample. Raises ValueError if it has the wrong form."""
    if not isinstance(about, dict):
        raise ValueError(f"expected an object, found {type(about).__name__}")
    group, places = about.get("group", -1), about.get("places", [])
    if type(group) is not int or not -1 <= group < 2**63:
        raise ValueError(f"group: expected an integer from -1, found {group!r}")
    texts = about.get("captions", about.get("caption")) or []
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
        raise ValueError(f"expected text in 'caption' (or a list in 'captions'), found {texts!r}"[:200])
    "".join(texts).encode()  # half of a surrogate pair is not text
    sample.group = group
    if places and isinstance(places, list) and len(places) == len(texts):
        if not all(type(p) is int and 0 <= p < 2**40 for p in places):
            raise ValueError(f"places: expected integers from 0, found {places!r}"[:200])
        sample.captions, sample.places = texts, places
    elif not sample.captions:
        sample.captions = [" ".join(t.split()) for t in texts]
