"""Pictures in files: read and decoded when asked for, and refused by name where they cannot be."""

from __future__ import annotations

import io
import os
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.data.base import DataError, Strings

MAX_PIXELS = 89_478_485  # PIL's own bound: a small file that unpacks to more is taken for a decompression bomb

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class BadPicture(DataError):
    """A picture that is missing or cannot be decoded; the text names it."""


class Pictures(Sequence[Image.Image]):
    """Pictures by position. A kind says how many there are, what each is called, and where its bytes come from."""

    @abstractmethod
    def name(self, i: int) -> str:
        """What a person would look for: a file, or a member of one."""

    @abstractmethod
    def read(self, i: int) -> bytes:
        """The encoded picture. Raises OSError where it is not there."""

    def __getitem__(self, i: Any) -> Any:
        try:
            content = self.read(int(i))
        except OSError as error:
            raise BadPicture(f"picture {self.name(int(i))} cannot be read: {error.strerror or error}") from None
        return decode(content, self.name(int(i)))


def decode(content: bytes, name: str) -> Image.Image:
    """An encoded picture as RGB, decoded to its last row.

    Raises:
        BadPicture: it is no picture, cut off, damaged, or larger than `MAX_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of size, which is looked at here
            picture = Image.open(io.BytesIO(content))
            if picture.width * picture.height > MAX_PIXELS:
                raise BadPicture(f"picture {name} is {picture.width} x {picture.height}: more than {MAX_PIXELS:,} pixels")
            return picture.convert("RGB")
    except BadPicture:
        raise
    except Exception as error:  # decoders raise many kinds
        reason = " ".join(str(error).split()).replace(f"{io.BytesIO}", "") or type(error).__name__
        reason = "not a picture in a known format" if "cannot identify image file" in reason else reason
        raise BadPicture(f"picture {name} cannot be decoded: {reason}") from None


class InMemory(Pictures):
    """Encoded pictures in memory."""

    def __init__(self, encoded: Sequence[bytes], file: str = "") -> None:
        self.encoded, self.file = encoded, file

    def __len__(self) -> int:
        return len(self.encoded)

    def name(self, i: int) -> str:
        return f"number {i} of {self.file}"

    def read(self, i: int) -> bytes:
        return self.encoded[i]


class Files(Pictures):
    """Pictures that are files under a folder."""

    def __init__(self, folder: Path, paths: Strings) -> None:
        self.folder, self.paths = folder, paths

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, i: int) -> str:
        return str(self.folder / self.paths[i])

    def read(self, i: int) -> bytes:
        return Path(self.folder, str(self.paths[i])).read_bytes()

    def only(self, rows: NDArray[np.int64]) -> Files:
        return Files(self.folder, self.paths.only(rows))

    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each file, -1 where it is missing."""
        return np.array([_size(os.path.join(self.folder, path.as_py())) for path in self.paths.array], np.int64)


class Slices(Pictures):
    """Pictures that lie in larger files (tar shards): file, first byte and length of each."""

    def __init__(self, files: Sequence[Path], file: NDArray[np.int64], start: NDArray[np.int64], length: NDArray[np.int64], keys: Strings) -> None:
        self.files, self.file, self.start, self.length, self.keys = files, file, start, length, keys

    def __len__(self) -> int:
        return len(self.start)

    def name(self, i: int) -> str:
        return f"{self.keys[i]} in {self.files[self.file[i]]}"

    def read(self, i: int) -> bytes:
        with open(self.files[self.file[i]], "rb", buffering=0) as stream:
            return os.pread(stream.fileno(), int(self.length[i]), int(self.start[i]))

    def only(self, rows: NDArray[np.int64]) -> Slices:
        return Slices(self.files, self.file[rows], self.start[rows], self.length[rows], self.keys.only(rows))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def leaves_folder(path: str) -> bool:
    """Whether a path from a data file leads out of the data folder."""
    return os.path.isabs(path) or os.path.normpath(path).startswith("..")
