"""WebDataset tar shards: samples `KEY.jpg` with `KEY.txt`, or with `KEY.json` that has `caption` (or
`captions`, and `group`).

The shards are read in place. Their index (shard, first byte and length of each picture) is made once, kept in
the cache, and read from there as a memory map; a picture is then one read at its place, so pairs can be
addressed, and any noise model and method works as on any other data set. An epoch goes through the shards a
few at a time in a seeded order (see `harness.training.sampling`), and through those of `harness.data prepare`
in any order, so that a trial on them differs from one on the originals in nothing but the pictures.
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
from pydantic import BaseModel, Field, ValidationError

from harness.data.base import DataError, DataSet, Strings
from harness.data.layout import WORDS, HeldOut, Listed, Listing, read_options, split_name
from harness.data.pictures import PICTURE_SUFFIXES, Slices
from harness.lib.console import progress
from harness.lib.files import atomic_write, cache_directory, file_digest

ABOUT = "dataset.json"  # beside the shards of `harness.data prepare`: what they were made from
_MOST_TEXT = (
    1_000_000  # bytes of a .txt or .json: a member that says more (a sparse one takes no room) is not read
)
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
    """`dataset_options`: see `HeldOut`, and

    Attributes:
        shards: the shards of each split, as file patterns in `folder` ({train: "cc3m-train-*.tar", dev:
            ...}); default: by name (`train-000000.tar` or `train/000000.tar`), and those that name no split
            are train.
    """

    shards: dict[str, str] = Field(default_factory=dict)


OPTIONS = ShardOptions


def load(**options: Any) -> DataSet:
    """Read the data set; see `ShardOptions`.

    Raises:
        DataError: an option is wrong, a shard is damaged, or a sample lacks its picture or its caption.
    """
    given = read_options(OPTIONS, options)
    return listing(given).dataset(given)


def recognise(folder: Path) -> bool:
    return any(folder.glob("*.tar")) or any(not (f.parent / ABOUT).exists() for f in folder.glob("*/*.tar"))


def listing(options: ShardOptions) -> Listing:
    """What the shards hold; samples without picture or caption, and shards that end early, are faults."""
    root = Path(options.folder)
    found = Listing(root.name)
    about = _about(root, found)
    shards = _shards(root, options.shards, found)
    for name, files in shards.items():
        found.splits[name] = _split(name, files, found)
    found.draw_missing(options.held_out)
    found.by_shard = about is None  # prepared pictures are small, and read in any order
    if about is not None:
        found.name, found.note, found.skipped = about.name, about.note, about.skipped
        found.coco_ids = about.coco_ids and (
            np.array(about.coco_ids[0], np.int64),
            np.array(about.coco_ids[1], np.int64),
        )
        test = found.splits.get("test")
        if (
            found.coco_ids
            and test
            and [len(test.images), len(test.captions)] != [len(ids) for ids in found.coco_ids]
        ):
            found.faults.append(
                f"{root / ABOUT}: coco_ids are of {len(found.coco_ids[0])} images and "
                f"{len(found.coco_ids[1])} captions, and test has {len(test.images)} and {len(test.captions)}"
            )
    return found


class About(BaseModel):
    """What `harness.data prepare` writes beside its shards."""

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


def _about(root: Path, found: Listing) -> About | None:
    try:
        about = About.model_validate_json((root / ABOUT).read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        found.faults.append(f"{root / ABOUT} cannot be read: {error.strerror}")
        return None
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        found.faults.append(f"{root / ABOUT} is not what `harness.data prepare` writes: {wrong}")
        return None
    found.content.append(about.model_dump_json())
    return about


def _shards(root: Path, given: dict[str, str], found: Listing) -> dict[str, list[Path]]:
    if given:
        shards = {}
        for word, pattern in given.items():
            split = split_name(word)
            try:
                files = sorted(root.glob(pattern))
            except (ValueError, NotImplementedError):
                found.faults.append(
                    f"dataset_options.shards: {pattern!r} is no pattern of files in {root} (allowed: as "
                    f"'train-*.tar')"
                )
                continue
            if split is None or not files:
                reason = (
                    f"no shard in {root} is called {pattern!r}"
                    if split
                    else f"unknown split {word!r} (allowed: {', '.join(WORDS)})"
                )
                found.faults.append(f"dataset_options.shards: {reason}")
            else:
                shards[split] = files
        twice = sorted(
            f.name for f, count in Counter(f for files in shards.values() for f in files).items() if count > 1
        )
        found.faults += [f"dataset_options.shards: {name} would be in two splits" for name in twice]
        return shards
    shards = {}
    for file in sorted(
        [*root.glob("*.tar"), *(f for f in root.glob("*/*.tar") if not (f.parent / ABOUT).exists())]
    ):
        words = re.split(r"[^A-Za-z]+", str(file.relative_to(root)))
        split = next((s for s in map(split_name, words) if s), "train")
        shards.setdefault(split, []).append(file)
    return {name: shards[name] for name in WORDS if name in shards}


def _split(name: str, files: list[Path], found: Listing) -> Listed:
    """All samples of a split, from the index of each shard."""
    tables = []
    for file in progress(
        files,
        f"index of {len(files)} shards ({name})"
        if len(files) > 8 and not all(_index_file(f).exists() for f in files)
        else None,
    ):
        table, faults = shard_index(file)
        found.faults += faults
        tables.append(table)
    shard = np.repeat(np.arange(len(files)), [len(t) for t in tables])
    whole = pa.concat_tables(tables).combine_chunks()
    keys, captions = Strings(_one(whole["key"])), _one(whole["captions"])
    start, length, group = (whole[c].to_numpy() for c in ("start", "length", "group"))
    owner = np.repeat(np.arange(len(whole)), np.diff(captions.offsets.to_numpy()))
    texts = Strings(captions.flatten())
    places = _one(whole["places"]).flatten().to_numpy()
    if len(places) == len(owner):  # prepared: the captions have an order of their own
        order = np.argsort(places, kind="stable")
        texts, owner = texts.only(order), owner[order]
    if (group < 0).any() and (group >= 0).any():
        found.faults.append(
            f"{name}: {int((group >= 0).sum())} samples say their group, and {int((group < 0).sum())} do not"
        )
    if len(places) and not np.array_equal(np.sort(places), np.arange(len(owner))):
        found.faults.append(
            f"{name}: the captions have lost their order ('places' should be 0 to {len(owner) - 1}, "
            f"each once)"
        )
    listed = Listed(
        Slices(files, shard, start, length, keys), texts, owner, None if (group < 0).any() else group
    )
    found.content.append((name, [(f.name, file_digest(f)) for f in files], *listed.content()))
    return listed


def _one(column: pa.ChunkedArray) -> Any:
    combined = column.combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined


# The index of a shard -------------------------------------------------------------------------------


@dataclass(slots=True)
class _Sample:
    start: int = -1
    length: int = 0
    captions: list[str] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    group: int = -1
    text: bool = False
    other: list[str] = field(default_factory=list)


def shard_index(file: Path) -> tuple[pa.Table, list[str]]:
    """Samples of a shard (columns of `_INDEX`), and its faults; read from the cache where the shard is as it
    was.

    Raises:
        DataError: the shard cannot be read at all.
    """
    place = _index_file(file)
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):
        if not _readable(place):
            samples, faults = _read_shard(file)
            columns = {
                "key": list(samples),
                "start": [s.start for s in samples.values()],
                "length": [s.length for s in samples.values()],
                "captions": [s.captions for s in samples.values()],
                "places": [s.places for s in samples.values()],
                "group": [s.group for s in samples.values()],
            }
            table = pa.table(columns, schema=_INDEX).replace_schema_metadata({"faults": json.dumps(faults)})
            with atomic_write(place) as stream, pa.ipc.new_file(stream, table.schema) as writer:
                writer.write_table(table)
    table = pa.ipc.open_file(pa.memory_map(str(place))).read_all()
    return table, json.loads(table.schema.metadata[b"faults"])


def _readable(index: Path) -> bool:
    try:
        return bool(pa.ipc.open_file(pa.memory_map(str(index))).schema.equals(_INDEX))
    except (OSError, pa.ArrowException):
        return False


def _index_file(file: Path) -> Path:
    try:
        known = file.stat()
    except OSError as error:
        raise DataError(f"shard {file} cannot be read: {error.strerror}") from None
    stamp = f"2 {file.resolve()} {known.st_size} {known.st_mtime_ns}"
    return cache_directory() / "shards" / f"{hashlib.sha256(stamp.encode()).hexdigest()[:24]}.arrow"


def _read_shard(file: Path) -> tuple[dict[str, _Sample], list[str]]:
    """Samples that are whole, and a fault for each that is not."""
    samples: dict[str, _Sample] = {}
    faults: list[str] = []
    try:
        with tarfile.open(file, "r:") as tar:
            for member in _members(tar):
                fault = _take(member, tar, samples)
                if fault:
                    faults.append(f"{file}: {fault}")
            end = tar.offset  # type: ignore[attr-defined]
        with open(file, "rb") as stream:
            stream.seek(end)
            if stream.read(512) != bytes(512):
                faults.append(f"{file} is cut off after {len(samples)} samples: it has no end mark")
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        with open(file, "rb") as stream:
            packed = stream.read(2) == b"\x1f\x8b"
        reason = (
            "is compressed, and a shard must be a plain tar"
            if packed
            else f"is damaged or cut off after {len(samples)} samples: {error}"
        )
        faults.append(f"{file} {reason}")
    for key, sample in samples.items():
        if sample.start < 0 or not (sample.captions or sample.group >= 0):
            there = (
                f" (it has {', '.join(sample.other[:3])}; read are {', '.join(PICTURE_SUFFIXES)}, .txt, "
                f".json)"
                if sample.other
                else ""
            )
            faults.append(f"{file}: {key} has no {'picture' if sample.start < 0 else 'caption'}{there}")
    return {k: s for k, s in samples.items() if s.start >= 0 and (s.captions or s.group >= 0)}, faults


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Members one at a time; the list that `tarfile` keeps of them is emptied as it grows."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]
        if member.isfile():
            yield member


def _take(member: tarfile.TarInfo, tar: tarfile.TarFile, samples: dict[str, _Sample]) -> str:
    """Add what a member says of its sample; returns what is wrong with it."""
    if not member.name.isprintable():
        return f"{member.name.encode(errors='backslashreplace').decode()}: not a name in UTF-8"
    folder, _, base = member.name.rpartition("/")
    key, _, kind = base.partition(".")
    key, kind = f"{folder}/{key}" if folder else key, kind.lower()
    sample = samples.setdefault(key, _Sample())
    if f".{kind}" not in PICTURE_SUFFIXES and kind not in ("txt", "json"):
        sample.other.append(base)
        return ""
    if f".{kind}" in PICTURE_SUFFIXES:
        if sample.start >= 0:
            return f"{key} stands there twice"
        sample.start, sample.length = member.offset_data, member.size
        return ""
    if member.size > _MOST_TEXT:
        return f"{member.name}: larger than {_MOST_TEXT:,} bytes, and no caption"
    stream = tar.extractfile(member)
    content = stream.read() if stream else b""
    try:
        if kind == "txt":
            if sample.text:
                return f"{key} has two .txt"
            sample.text = True
            sample.captions = [
                " ".join(content.decode("utf-8-sig").split())
            ]  # wins over the json's, as img2dataset writes both
        else:
            _take_json(json.loads(content), sample)
    except UnicodeDecodeError as error:
        return f"{member.name}: expected UTF-8, found the byte {error.object[error.start]:#x}"
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        return f"{member.name}: {error}"
    return ""


def _take_json(about: Any, sample: _Sample) -> None:
    if not isinstance(about, dict):
        raise ValueError(f"expected an object, found {type(about).__name__}")
    group, places = about.get("group", -1), about.get("places", [])
    if type(group) is not int or not -1 <= group < 2**63:
        raise ValueError(f"group: expected a whole number, found {group!r}")
    texts = about.get("captions", about.get("caption")) or []
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
        raise ValueError(f"expected text in 'caption' (or a list in 'captions'), found {texts!r}"[:200])
    "".join(texts).encode()  # half of a surrogate pair is no text
    sample.group = group
    if places and isinstance(places, list) and len(places) == len(texts):
        if not all(type(p) is int and 0 <= p < 2**40 for p in places):
            raise ValueError(f"places: expected whole numbers, found {places!r}"[:200])
        sample.captions, sample.places = texts, places
    elif not sample.captions:
        sample.captions = [" ".join(t.split()) for t in texts]
