"""Data sets. A new one is a file here with a `load(**options) -> DataSet`, and a line in `DATASETS`.

Data sets that are read from a directory are layouts. A layout module also has `OPTIONS`, `listing(options)`
and `recognise(directory)`, and its name is in `LAYOUTS`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.lib.registry import resolve

if TYPE_CHECKING:  # command lines read the names below, and must not wait for NumPy and PyArrow
    from harness.data.base import DataSet

LAYOUTS = ("scan", "npc", "karpathy", "table", "webdataset")
"""Names of layouts, in the order in which a directory is tried: the most specific first."""
DATASETS = {name: f"harness.data.{name}:load" for name in ("emoji", "icons", *LAYOUTS)}


def load_dataset(name: str, **options: Any) -> DataSet:
    """Load a data set.

    Args:
        name: a name in `DATASETS`, or `package.module:function`. The function must be declared to return a
            `DataSet`, because names come from files: a file must not make the harness call anything else.
        options: arguments of the function: `dataset_options` of a sweep file.

    Raises:
        UnknownName: the name is in no registry and no module.
        DataError: the data set is missing or invalid, or the function is not declared to return a `DataSet`
            or returns something else.
    """
    from harness.data.base import DataError, DataSet

    load = resolve("data set", name, DATASETS)
    if getattr(load, "__annotations__", {}).get("return") not in (DataSet, "DataSet"):
        raise DataError(
            f"{name!r} is not a function that is declared to return a DataSet (def load(...) -> DataSet)"
        )
    data = load(**options)
    if not isinstance(data, DataSet):
        raise DataError(f"{name!r} returned a {type(data).__name__}, expected a DataSet")
    return data


def recognise(directory: Path) -> str:
    """Name of the layout of a directory.

    Raises:
        DataError: the directory has no known layout.
    """
    from harness.data.base import DataError

    for name in LAYOUTS:
        if importlib.import_module(f"harness.data.{name}").recognise(directory):
            return name
    content = ", ".join(sorted(p.name for p in directory.iterdir())[:12]) or "nothing"
    raise DataError(f"{directory} has no known layout (allowed: {', '.join(LAYOUTS)}); it contains {content}")
