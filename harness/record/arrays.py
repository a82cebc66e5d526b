"""Arrays as they lie in a bundle: compressed `.npz` files, in types as small as their values allow."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

from harness.lib.files import atomic_write
from harness.record.types import StoreError


def read_arrays(file: Path, part: str = "") -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file whose names begin with `part`, without it.

    Raises:
        StoreError: the file is missing or damaged.
    """
    with _opened(file) as content:
        return {name.removeprefix(part): content[name] for name in content.files if name.startswith(part)}


def array_names(file: Path) -> list[str]:
    """The names of the arrays of an `.npz` file. Raises StoreError where it is missing or damaged."""
    with _opened(file) as content:
        return list(content.files)


def save_arrays(file: Path, arrays: Mapping[str, np.ndarray], *, sync: bool = False) -> None:
    """Write arrays as a compressed `.npz` file (the same arrays as the same bytes), on the disk if `sync`.

    By LZMA, which `numpy.load` reads, too: a tenth less than what `numpy.savez_compressed` writes.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file, sync=sync) as stream, zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")  # without the time, which would be in the bytes
            entry.compress_type = zipfile.ZIP_LZMA
            with archive.open(entry, "w") as content:
                np.lib.format.write_array(content, np.asanyarray(array), allow_pickle=False)


def coarse(confidence: np.ndarray) -> np.ndarray:
    """Confidences as multiples of 1/256, in half precision, as a bundle keeps them: a third of the size."""
    rounded: np.ndarray = (np.round(confidence.astype(np.float32) * 256) / 256).astype(np.float16)
    return rounded


def smallest(integers: np.ndarray) -> np.ndarray:
    """Integers from 0 in the smallest type that holds them."""
    return integers.astype(np.min_scalar_type(integers.max(initial=0)))


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[NpzFile]:
    try:
        if file.is_file() and not zipfile.is_zipfile(file):
            raise ValueError("numpy.savez writes them")
        with np.load(file, allow_pickle=False) as content:
            yield content
    except FileNotFoundError:
        raise StoreError(f"{file} is missing") from None
    except Exception as error:  # a file of unknown origin can be wrong in many ways
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise StoreError(f"{file} cannot be read as an .npz file: {reason}") from None
