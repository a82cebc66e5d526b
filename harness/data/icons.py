"""The embedded data set `icons`: black glyphs of 7,603 concepts by up to four icon sets (9,802 images), five
captions per training concept.

A concept is a name that one set or several draw; 6,128 have one picture. Train has five captions a concept,
because the field's layouts assume five per image: concepts whose names, aliases and tags do not give five
distinct ones are left out. In dev and test a concept has two to five captions, and none whose string belongs
to another concept. Large families (arrows, devices, letters) are in train only, so that none dominates dev
(400 concepts) or test (500).

It is an icon retrieval benchmark, no substitute for Flickr30K or MS-COCO, and its numbers are not averaged
with those of `emoji`. It is built by `harness/data_tools/build_icons.py`; licences and attribution are in
`icons/NOTICE.md`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from harness.data.base import DataSet
from harness.data.concepts import load_concepts

FILE = Path(__file__).parent / "icons" / "icons.parquet"


def load(*, file: str | None = None, meta: Literal["unseen", "seen"] = "unseen") -> DataSet:
    """Read the shipped file: 2 to 5 captions for a concept of dev and test, five for others.

    Args:
        file: another Parquet file with the same columns.
        meta: whether the clean set is of concepts that training never sees (60), or of as many that it does,
            whose pairs are in `train` too, with noise.

    Raises:
        DataError: the file is missing, unreadable, or lacks a column; or `meta` is another value.
    """
    return load_concepts(
        "icons",
        Path(file) if file else FILE,
        meta=meta,
        note="icon retrieval benchmark: unseen concepts, a match is a match of concept",
    )
