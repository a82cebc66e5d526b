"""Data sets. A new one is a file here with a `load(**options) -> DataSet`, and a line in `DATASETS`.

Those that are read from a folder are layouts: they have `OPTIONS`, `listing(options)` and `recognise(folder)`
too, and a name in `LAYOUTS`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from harness.data.base import DataError, DataSet, Split
from harness.lib.registry import resolve

LAYOUTS = ("scan", "npc", "karpathy", "table", "webdataset")
"""In the order in which a folder is tried: the most particular first."""
DATASETS = {"emoji": "harness.data.emoji:load", **{name: f"harness.data.{name}:load" for name in LAYOUTS}}


def load_dataset(name: str, **options: Any) -> DataSet:
    """Load a data set by name or as `package.module:function`.

    Raises:
        UnknownName: no such data set.
        DataError: it is missing or corrupt, or the name leads to something else: what a file names is not
            called unless it says of itself that it returns a `DataSet`.
    """
    load = resolve("data set", name, DATASETS)
    if getattr(load, "__annotations__", {}).get("return") not in (DataSet, "DataSet"):
        raise DataError(
            f"{name!r} is no function that is declared to return a DataSet (def load(...) -> DataSet)"
        )
    data = load(**options)
    if not isinstance(data, DataSet):
        raise DataError(f"{name!r} gives a {type(data).__name__}, and no DataSet")
    return data


def recognise(folder: Path) -> str:
    """The layout of a folder.

    Raises:
        DataError: it is none that is known.
    """
    for name in LAYOUTS:
        if importlib.import_module(f"harness.data.{name}").recognise(folder):
            return name
    there = ", ".join(sorted(p.name for p in folder.iterdir())[:12]) or "nothing"
    raise DataError(
        f"{folder} is of no layout that is known (allowed: {', '.join(LAYOUTS)}); it holds {there}"
    )


__all__ = ["DATASETS", "LAYOUTS", "DataError", "DataSet", "Split", "load_dataset", "recognise"]
