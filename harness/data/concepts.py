"""The reader of embedded data sets: one Parquet file with pictures and captions of concepts.

`emoji` and `icons` are read by it. Columns: `split`, `concept`, `name`, `vendor`, `captions`, `image`; a row
is a picture, and all pictures of a concept have the same captions. `harness/data_tools/building.py` writes
such files.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness.data.base import DataError, DataSet, Split
from harness.data.pictures import InMemory
from methods.seeding import numpy_generator

_COLUMNS = ("split", "concept", "captions", "image")


def load_concepts(name: str, path: Path, *, meta: Literal["unseen", "seen"], note: str) -> DataSet:
    """Read a Parquet file of concepts.

    In `train` and `meta` every image has the captions of its concept. In `dev` and `test` the captions of a
    concept occur once, owned by its first image; an image and a caption match if their concepts do.

    Args:
        name: of the data set.
        path: the file.
        meta: whether the clean set is of concepts that training never sees, or of as many that it does, whose
            pairs are in `train` too, with noise.
        note: what the data set is, for reports.

    Raises:
        DataError: the file is missing, unreadable, or lacks a column; or `meta` is another value.
    """
    if meta not in ("unseen", "seen"):
        raise DataError(f"meta = {meta!r}: expected unseen or seen")
    if not path.is_file():
        raise DataError(
            f"data file {path} is missing; the shipped file is part of the package: reinstall it, or "
            f"run `python -m harness.data build {name}`"
        )
    try:
        table = pq.read_table(path, columns=list(_COLUMNS))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"data file {path} cannot be read as the {name} Parquet: {error}") from None
    missing = [c for c in _COLUMNS if c not in table.column_names]
    if missing:
        raise DataError(f"data file {path} has no columns {', '.join(missing)}")
    split_names = np.array(table["split"].to_pylist())
    source = f"{name}.parquet"
    splits = {
        split: _split(table.filter(pa.array(split_names == split)), source, once=split in ("dev", "test"))
        for split in ("train", "dev", "test", "meta")
    }
    fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    if meta == "seen":
        splits["meta"] = _seen(name, splits["train"], len(set(splits["meta"].image_group)))
        fingerprint += "-seen"
    return DataSet(
        name=name,
        splits=splits,
        fingerprint=fingerprint,
        distinct_groups=True,
        note=note,
    )


def _seen(name: str, train: Split, count: int) -> Split:
    """The pairs of randomly drawn training concepts, as they were before the noise."""
    concepts = numpy_generator(name, "seen meta").permutation(train.image_group.max() + 1)[:count]
    return train.only(np.isin(train.image_group, concepts))


def _split(rows: pa.Table, source: str, *, once: bool) -> Split:
    """A split of the Parquet rows; with `once`, only the first image of a concept owns captions."""
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
    return Split(InMemory(rows["image"].to_pylist(), source), captions, np.array(owner, np.int64), group)
