"""Data sets. A new one is a file here with a `load(**options) -> DataSet`, and a line in `DATASETS`."""

from __future__ import annotations

from typing import Any

from harness.data.base import DataError, DataSet, Split
from harness.registry import resolve

DATASETS = {"emoji": "harness.data.emoji:load", "scan": "harness.data.scan:load"}


def load_dataset(name: str, **options: Any) -> DataSet:
    """Load a data set by name or as `package.module:function`.

    Raises:
        UnknownName: no such data set.
        DataError: it is missing or corrupt.
    """
    data: DataSet = resolve("data set", name, DATASETS)(**options)
    return data


__all__ = ["DATASETS", "DataError", "DataSet", "Split", "load_dataset"]
