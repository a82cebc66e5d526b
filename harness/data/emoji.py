"""The embedded data set `emoji`: images of 1,633 concepts by up to three vendors, five captions per training
concept.

Second version: dev has 300 concepts (150 before, so train has 1,009 of 1,159: 3,001 images and 15,005 pairs
of 3,447 and 17,235), and captions of dev and test whose string belongs to several concepts are left out.

It is an emoji retrieval benchmark and no substitute for Flickr30K or MS-COCO. It is built by
`harness/data_tools/build_emoji.py`; licences and attribution are in `emoji/NOTICE.md`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from harness.data.base import DataSet
from harness.data.concepts import load_concepts

FILE = Path(__file__).parent / "emoji" / "emoji.parquet"


def load(*, file: str | None = None, meta: Literal["unseen", "seen"] = "unseen") -> DataSet:
    """Read the shipped file: 2 to 5 captions for a concept of dev and test, five for others.

    Args:
        file: another Parquet file with the same columns.
        meta: whether the clean set is of concepts that training never sees (24), or of as many that it does,
            whose pairs are in `train` too, with noise.

    Raises:
        DataError: the file is missing, unreadable, or lacks a column; or `meta` is another value.
    """
    return load_concepts(
        "emoji",
        Path(file) if file else FILE,
        meta=meta,
        note="emoji retrieval benchmark: unseen concepts, a match is a match of concept",
    )
