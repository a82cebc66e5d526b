"""Pictures in files: read and decoded when asked for, and refused by name where they cannot be."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
import zipfile
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.data.base import DataError, Strings
from harness.lib.console import progress
from harness.lib.files import atomic_write, cache_directory

MAX_PIXELS = (
    89_478_485  # PIL's own bound: a small file that unpacks to more is taken for a decompression bomb
)

FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
    "JPEG2000",
)  # PIL knows others that start programs (EPS)
MOST_BYTES = 2**28  # of an encoded picture
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class BadPicture(DataError):
    """A picture that is missing or cannot be decoded; the text names it."""


class Pictures(Sequence[Image.Image]):
    """Pictures by position. A kind says how many there are, what each is called, and where its bytes come
    from.
    """

    @abstractmethod
    def name(self, i: int) -> str:
        """What a person would look for: a file, or a member of one."""

    @abstractmethod
    def read(self, i: int) -> bytes:
        """The encoded picture. Raises OSError where it is not there."""

    def __getitem__(self, i: Any) -> Any:
        try:
            content = self.read(int(i))
        except (OSError, ValueError) as error:
            raise BadPicture(
                f"picture {self.name(int(i))} cannot be read: {getattr(error, 'strerror', None) or error}"
            ) from None
        return decode(content, self.name(int(i)))


def decode(content: bytes, name: str) -> Image.Image:
    """An encoded picture as RGB, decoded to its last row.

    Raises:
        BadPicture: it is no picture, cut off, damaged, or larger than `MAX_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of size, which is looked at here
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
            if picture.width * picture.height > MAX_PIXELS:
                raise BadPicture(
                    f"picture {name} is {picture.width} x {picture.height}: more than {MAX_PIXELS:,} pixels"
                )
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
        path = str(self.paths[i])
        if leaves_folder(path):
            raise OSError("it leads out of the data folder")
        with open(os.path.join(self.folder, path), "rb", opener=_without_waiting) as stream:
            known = os.fstat(stream.fileno())
            if not stat.S_ISREG(known.st_mode):  # a device may have no end
                raise OSError("it is no regular file")
            if known.st_size > MOST_BYTES:
                raise OSError(f"it has {known.st_size:,} bytes, and a picture at most {MOST_BYTES:,}")
            return stream.read()

    def only(self, rows: NDArray[np.int64]) -> Files:
        return Files(self.folder, self.paths.only(rows))

    def digests(self) -> NDArray[np.bytes_]:
        """SHA-256 of each file, empty where it cannot be read; remembered for as long as a file's size and
        time of change stay.

        The first look at a data set reads it all (4 GB of Flickr30K: seconds to a minute), every later one
        asks for the times only.
        """
        stamps = np.empty((len(self), 2), np.int64)
        for i, path in enumerate(self.paths):
            stamps[i] = _stamp(os.path.join(self.folder, path))
        place = hashlib.sha256(f"{self.folder.resolve()} {self.paths.digest()}".encode()).hexdigest()[:24]
        memo = cache_directory() / "digests" / f"files-{place}.npz"
        known, found = _remembered(memo, stamps.shape)
        changed = np.flatnonzero((known != stamps).any(1) & (stamps[:, 0] >= 0))
        found[stamps[:, 0] < 0] = b""
        label = (
            f"reading {len(changed):,} pictures in {self.folder} for the fingerprint"
            if len(changed) > 2000
            else None
        )
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            digests = (
                d
                for start in range(0, len(changed), 256)
                for d in pool.map(self._digest, changed[start : start + 256].tolist())
            )
            for k, digest in zip(progress(range(len(changed)), label), digests, strict=True):
                found[changed[k]] = digest
        if len(changed):
            with atomic_write(memo) as stream:
                np.savez(stream, stamps=stamps, digests=found)
        return found

    def _digest(self, i: int) -> bytes:
        try:
            return hashlib.sha256(self.read(i)).digest()
        except OSError:
            return b""


class Slices(Pictures):
    """Pictures that lie in larger files (tar shards): file, first byte and length of each."""

    def __init__(
        self,
        files: Sequence[Path],
        file: NDArray[np.int64],
        start: NDArray[np.int64],
        length: NDArray[np.int64],
        keys: Strings,
    ) -> None:
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


def _without_waiting(path: str, flags: int) -> int:
    """A pipe is opened at once, to be refused."""
    return os.open(path, flags | os.O_NONBLOCK)


def _stamp(path: str) -> tuple[int, int]:
    """Size and time of change of a file; -1 where there is none."""
    try:
        known = os.stat(path)
    except (OSError, ValueError):
        return -1, -1
    return (known.st_size, known.st_mtime_ns) if stat.S_ISREG(known.st_mode) else (-1, -1)


def _remembered(memo: Path, shape: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.bytes_]]:
    try:
        with np.load(memo, allow_pickle=False) as kept:
            if kept["stamps"].shape == shape:
                return kept["stamps"], kept["digests"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    return np.full(shape, -2, np.int64), np.zeros(shape[0], "S32")


def leaves_folder(path: str) -> bool:
    """Whether a path from a data file leads out of the data folder."""
    return os.path.isabs(path) or os.path.normpath(path).split(os.sep)[0] == ".."
