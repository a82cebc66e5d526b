"""The embedded data set `emoji`: images of 1,633 concepts by up to three vendors, five captions per training
concept.

Second version: dev has 300 concepts (150 before, so train has 1,009 of 1,159: 3,001 images and 15,005 pairs
of 3,447 and 17,235), and captions of dev and test whose string belongs to several concepts are left out.

It is an emoji retrieval benchmark and no substitute for Flickr30K or MS-COCO. It is built by
`harness/data_tools/build_emoji.py`; licences and attribution are in `emoji/NOTICE.md`.
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

FILE = Path(__file__).parent / "emoji" / "emoji.parquet"
_COLUMNS = ("split", "concept", "captions", "image")


def load(*, file: str | None = None, meta: Literal["unseen", "seen"] = "unseen") -> DataSet:
    """Read the shipped file.

    In `train` and `meta` every image has the five captions of its concept. In `dev` and `test` the captions
    of a concept (2 to 5) occur once, owned by its first image; an image and a caption match if their concepts
    do.

    Args:
        file: another Parquet file with the same columns.
        meta: whether the clean set is of concepts that training never sees (24), or of as many that it does,
            whose pairs are in `train` too, with noise.

    Raises:
        DataError: the file is missing, unreadable, or lacks a column; or `meta` is another value.
    """
    if meta not in ("unseen", "seen"):
        raise DataError(f"meta = {meta!r}: expected unseen or seen")
    path = Path(file) if file else FILE
    if not path.is_file():
        raise DataError(
            f"data file {path} is missing; the shipped file is part of the package: reinstall it, or "
            f"run `python -m harness.data build emoji`"
        )
    try:
        table = pq.read_table(path, columns=list(_COLUMNS))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"data file {path} cannot be read as the emoji Parquet: {error}") from None
    missing = [c for c in _COLUMNS if c not in table.column_names]
    if missing:
        raise DataError(f"data file {path} has no columns {', '.join(missing)}")
    split_names = np.array(table["split"].to_pylist())
    splits = {
        name: _split(table.filter(pa.array(split_names == name)), once=name in ("dev", "test"))
        for name in ("train", "dev", "test", "meta")
    }
    fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    if meta == "seen":
        splits["meta"] = _seen(splits["train"], len(set(splits["meta"].image_group)))
        fingerprint += "-seen"
    return DataSet(
        name="emoji",
        splits=splits,
        fingerprint=fingerprint,
        distinct_groups=True,
        note="emoji retrieval benchmark: unseen concepts, a match is a match of concept",
    )


def _seen(train: Split, count: int) -> Split:
    """The pairs of randomly drawn training concepts, as they were before the noise."""
    concepts = numpy_generator("emoji", "seen meta").permutation(train.image_group.max() + 1)[:count]
    return train.only(np.isin(train.image_group, concepts))


def _split(rows: pa.Table, *, once: bool) -> Split:
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
    return Split(InMemory(rows["image"].to_pylist(), FILE.name), captions, np.array(owner, np.int64), group)
