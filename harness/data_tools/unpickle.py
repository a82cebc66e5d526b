"""Conversion of pickled `.npy` files (such as NPC's memory banks) to plain arrays.

A pickle is a program that runs when it is opened. The unpickler here allows arrays, numbers, text, lists and
dictionaries, and refuses everything else. No other part of the project opens pickles of unknown origin.
"""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from harness.data.base import DataError

_MULTIARRAY = importlib.import_module("numpy._core.multiarray")
_ALLOWED = {
    **{("numpy", name): getattr(np, name) for name in ("dtype", "ndarray")},
    **{
        (f"numpy.{core}.multiarray", name): getattr(_MULTIARRAY, name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    },
    ("collections", "OrderedDict"): dict,
}


class _RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that resolves the names in `_ALLOWED` only."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise DataError(
                f"it asks for {module}.{name} (allowed: arrays, numbers, text, lists and dictionaries)"
            )
        return _ALLOWED[module, name]


def unpickle(source: Path, target: Path) -> dict[str, np.ndarray]:
    """Convert a pickled `.npy` to an `.npz` of plain arrays.

    A dictionary with names as keys becomes one array per key, another dictionary becomes the arrays `keys`
    and `values`, and anything else becomes `values`.

    Args:
        source: the `.npy` file.
        target: the `.npz` file to write.

    Returns:
        The written arrays by name.

    Raises:
        DataError: the file is not a pickled `.npy`, contains anything but data, or cannot be represented by
            plain arrays.
    """
    try:
        with open(source, "rb") as stream:
            version = npy.read_magic(stream)
            shape, _, dtype = (
                npy.read_array_header_1_0(stream) if version == (1, 0) else npy.read_array_header_2_0(stream)
            )
            if not dtype.hasobject:
                raise DataError("it is an array of numbers already, not a pickle")
            content = _RestrictedUnpickler(stream).load()
        arrays = _plain_arrays(content.item() if shape == () and isinstance(content, np.ndarray) else content)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    except Exception as error:  # unpicklers raise many kinds
        raise DataError(
            f"{source} cannot be read as a pickled .npy: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None
    with open(target, "wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return arrays


def _plain_arrays(content: Any) -> dict[str, np.ndarray]:
    if not isinstance(content, dict):
        return {"values": _array(content)}
    if content and all(isinstance(k, str) and k.isidentifier() for k in content):
        return {k: _array(v) for k, v in content.items()}
    return {"keys": _array(list(content)), "values": _array(list(content.values()))}


def _array(values: Any) -> np.ndarray:
    try:
        array = np.array(
            values.tolist() if isinstance(values, np.ndarray) and values.dtype == object else values
        )
    except ValueError:
        raise DataError("it contains lists of unequal lengths, which cannot be a plain array") from None
    if array.dtype == object:
        raise DataError("it contains values that cannot be a plain array")
    return array
