"""Pickled `.npy` files (NPC's memory banks are some) to plain arrays. Nothing else in the project opens a
pickle from somewhere else.

A pickle is a program that runs when it is opened. This one is read by an unpickler that knows arrays,
numbers, text, lists and dictionaries, and refuses whatever else the file asks for.
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
_KNOWN = {
    **{("numpy", name): getattr(np, name) for name in ("dtype", "ndarray")},
    **{
        (f"numpy.{core}.multiarray", name): getattr(_MULTIARRAY, name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    },
    ("collections", "OrderedDict"): dict,
}


class _Careful(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise DataError(
                f"it asks for {module}.{name}, and only arrays, numbers, text, lists and dictionaries "
                f"are read"
            )
        return _KNOWN[module, name]


def unpickle(source: Path, target: Path) -> dict[str, np.ndarray]:
    """Read a pickled `.npy` and write it as `.npz` of plain arrays. Returns what was written, by name.

    A dictionary becomes `keys` and `values`, or, where its keys are text, an array for each; anything else
    becomes `values`.

    Raises:
        DataError: it is no pickled `.npy`, asks for something else than data, or does not make plain arrays.
    """
    try:
        with open(source, "rb") as stream:
            version = npy.read_magic(stream)
            shape, _, dtype = (
                npy.read_array_header_1_0(stream) if version == (1, 0) else npy.read_array_header_2_0(stream)
            )
            if not dtype.hasobject:
                raise DataError("it is an array of numbers already, and no pickle")
            content = _Careful(stream).load()
        found = _plain(content.item() if shape == () and isinstance(content, np.ndarray) else content)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    except Exception as error:  # unpicklers raise all kinds
        raise DataError(
            f"{source} cannot be read as a pickled .npy: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None
    with open(target, "wb") as stream:
        np.savez_compressed(stream, **found)  # type: ignore[arg-type]
    return found


def _plain(content: Any) -> dict[str, np.ndarray]:
    if (
        isinstance(content, dict)
        and content
        and all(isinstance(k, str) and k.isidentifier() for k in content)
    ):
        found = {k: _array(v) for k, v in content.items()}
    elif isinstance(content, dict):
        found = {"keys": _array(list(content)), "values": _array(list(content.values()))}
    else:
        found = {"values": _array(content)}
    return found


def _array(values: Any) -> np.ndarray:
    try:
        array = np.array(
            values.tolist() if isinstance(values, np.ndarray) and values.dtype == object else values
        )
    except ValueError:
        raise DataError("it holds lists of unequal lengths, which make no plain array") from None
    if array.dtype == object:
        raise DataError("it holds values that make no plain array")
    return array
