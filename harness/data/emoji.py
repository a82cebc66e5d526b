"""The embedded data set `emoji`: pictures of 1,633 concepts by up to three vendors, five captions each.

An emoji retrieval benchmark, and nothing else: never a stand-in for Flickr30K or MS-COCO. Built by
`harness/data/build_emoji.py`; licences and attribution are in `emoji/NOTICE.md`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness.data.base import DataError, DataSet, Split
from harness.data.pictures import InMemory

FILE = Path(__file__).parent / "emoji" / "emoji.parquet"
_COLUMNS = ("split", "concept", "captions", "image")


def load(*, file: str | None = None) -> DataSet:
    """Read the shipped file (or another of its form).

    In `train` and `meta` every image has its concept's five captions; in `dev` and `test` each
    concept's captions stand once, owned by its first image, and a match is a match of concept.

    Raises:
        DataError: the file is missing, unreadable, or lacks a column.
    """
    path = Path(file) if file else FILE
    if not path.is_file():
        raise DataError(
            f"data file {path} is missing; the shipped one is part of the package: reinstall, or "
            f"run `python -m harness.data build emoji`"
        )
    try:
        table = pq.read_table(path, columns=list(_COLUMNS))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"data file {path} cannot be read as the emoji Parquet: {error}") from None
    missing = [c for c in _COLUMNS if c not in table.column_names]
    if missing:
        raise DataError(f"data file {path} lacks the columns {', '.join(missing)}")
    split_of = np.array(table["split"].to_pylist())
    splits = {
        name: _split(table.filter(pa.array(split_of == name)), once=name in ("dev", "test"))
        for name in ("train", "dev", "test", "meta")
    }
    return DataSet(
        name="emoji",
        splits=splits,
        fingerprint=hashlib.sha256(path.read_bytes()).hexdigest()[:16],
        distinct_groups=True,
        note="emoji retrieval benchmark: unseen concepts, a match is a match of concept",
    )


def _split(rows: pa.Table, *, once: bool) -> Split:
    concepts = rows["concept"].to_pylist()
    group_of = {concept: i for i, concept in enumerate(dict.fromkeys(concepts))}
    group = np.array([group_of[c] for c in concepts], np.int64)
    captions: list[str] = []
    owner: list[int] = []
    seen: set[str] = set()
    for i, (concept, texts) in enumerate(zip(concepts, rows["captions"].to_pylist(), strict=True)):
        if once and concept in seen:
            continue
        seen.add(concept)
        captions += texts
        owner += [i] * len(texts)
    return Split(InMemory(rows["image"].to_pylist(), FILE.name), captions, np.array(owner, np.int64), group)
