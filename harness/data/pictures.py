"""Pictures in files, memory and tar shards: read and decoded on access."""

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

MAX_PIXELS = 89_478_485
"""Maximum size of a picture: PIL's limit against decompression bombs."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000")
"""Formats that are decoded. PIL knows others, of which some start programs (EPS)."""
MOST_BYTES = 2**28
"""Maximum size of an encoded picture in bytes."""
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""File name suffixes of pictures."""


class BadPicture(DataError):
    """A picture is missing or cannot be decoded; the message names it."""


class Pictures(Sequence[Image.Image]):
    """A sequence of pictures (PIL, RGB), decoded on access.

    A subclass defines the number of pictures, and the name and the encoded bytes of each. Access raises
    `BadPicture` if a picture cannot be read or decoded.
    """

    @abstractmethod
    def name(self, i: int) -> str:
        """Name of picture `i` for messages: its file, or the member of a file."""

    @abstractmethod
    def read(self, i: int) -> bytes:
        """The encoded bytes of picture `i`.

        Raises:
            OSError: it is missing or cannot be read.
        """

    def __getitem__(self, i: Any) -> Any:
        """The decoded picture at an index. Raises BadPicture."""
        try:
            content = self.read(int(i))
        except (OSError, ValueError) as error:
            raise BadPicture(
                f"picture {self.name(int(i))} cannot be read: {getattr(error, 'strerror', None) or error}"
            ) from None
        return decode(content, self.name(int(i)))


def decode(content: bytes, name: str) -> Image.Image:
    """Decode a picture completely and convert it to RGB.

    Args:
        content: the encoded picture.
        name: name of the picture in messages.

    Raises:
        BadPicture: it is not a picture, truncated, damaged, or larger than `MAX_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata, and about the size, which is checked here
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
    """Encoded pictures in memory.

    Args:
        encoded: the pictures.
        file: the file that they are from, for messages.
    """

    def __init__(self, encoded: Sequence[bytes], file: str = "") -> None:
        self.encoded, self.file = encoded, file

    def __len__(self) -> int:
        return len(self.encoded)

    def name(self, i: int) -> str:
        """The index of the picture, and the file that it comes from."""
        return f"{i} of {self.file}"

    def read(self, i: int) -> bytes:
        """The encoded bytes in memory."""
        return self.encoded[i]


class Files(Pictures):
    """Pictures in files.

    Args:
        folder: the directory of the pictures.
        paths: path of each, relative to `folder`. Paths that lead out of it are not read.
    """

    def __init__(self, folder: Path, paths: Strings) -> None:
        self.folder, self.paths = folder, paths

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, i: int) -> str:
        """The path of the file."""
        return str(self.folder / self.paths[i])

    def read(self, i: int) -> bytes:
        """The content of the file."""
        path = str(self.paths[i])
        if leaves_folder(path):
            raise OSError("its path leads out of the data directory")
        with open(os.path.join(self.folder, path), "rb", opener=_open_nonblocking) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):  # a device may have no end
                raise OSError("it is not a regular file")
            if status.st_size > MOST_BYTES:
                raise OSError(f"it has {status.st_size:,} bytes (allowed: at most {MOST_BYTES:,})")
            return stream.read()

    def only(self, rows: NDArray[np.int64]) -> Files:
        """The pictures at the indices `rows` (int64 [R]), in that order."""
        return Files(self.folder, self.paths.only(rows))

    def digests(self) -> NDArray[np.bytes_]:
        """SHA-256 of each file, bytes [N, 32]; empty for a file that cannot be read.

        Digests are cached until a file's size or modification time changes. The first call reads all files
        (4 GB of Flickr30K: seconds to a minute); later calls read the modification times only.
        """
        stamps = np.empty((len(self), 2), np.int64)
        for i, path in enumerate(self.paths):
            stamps[i] = _stamp(os.path.join(self.folder, path))
        key = hashlib.sha256(f"{self.folder.resolve()} {self.paths.digest()}".encode()).hexdigest()[:24]
        memo = cache_directory() / "digests" / f"files-{key}.npz"
        cached_stamps, digests = _cached_digests(memo, stamps.shape)
        changed = np.flatnonzero((cached_stamps != stamps).any(1) & (stamps[:, 0] >= 0))
        digests[stamps[:, 0] < 0] = b""
        label = (
            f"reading {len(changed):,} pictures in {self.folder} for the fingerprint"
            if len(changed) > 2000
            else None
        )
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            computed = (
                d
                for start in range(0, len(changed), 256)
                for d in pool.map(self._digest, changed[start : start + 256].tolist())
            )
            for k, digest in zip(progress(range(len(changed)), label), computed, strict=True):
                digests[changed[k]] = digest
        if len(changed):
            with atomic_write(memo) as stream:
                np.savez(stream, stamps=stamps, digests=digests)
        return digests

    def _digest(self, i: int) -> bytes:
        try:
            return hashlib.sha256(self.read(i)).digest()
        except OSError:
            return b""


class Slices(Pictures):
    """Pictures inside larger files (tar shards).

    Args:
        files: the S larger files.
        file: int64 [N], index in `files` of the file of each picture.
        start: int64 [N], offset of the first byte of each picture.
        length: int64 [N], number of bytes of each picture.
        keys: N names for messages.
    """

    def __init__(
        self,
        files: Sequence[Path],
        file: NDArray[np.int64],
        *,
        start: NDArray[np.int64],
        length: NDArray[np.int64],
        keys: Strings,
    ) -> None:
        self.files, self.file, self.start, self.length, self.keys = files, file, start, length, keys

    def __len__(self) -> int:
        return len(self.start)

    def name(self, i: int) -> str:
        """The key of the picture, and the file that it is in."""
        return f"{self.keys[i]} in {self.files[self.file[i]]}"

    def read(self, i: int) -> bytes:
        """The picture's part of its file."""
        with open(self.files[self.file[i]], "rb", buffering=0) as stream:
            return os.pread(stream.fileno(), int(self.length[i]), int(self.start[i]))

    def only(self, rows: NDArray[np.int64]) -> Slices:
        """The pictures at the indices `rows` (int64 [R]), in that order."""
        return Slices(
            self.files,
            self.file[rows],
            start=self.start[rows],
            length=self.length[rows],
            keys=self.keys.only(rows),
        )


def _open_nonblocking(path: str, flags: int) -> int:
    """An opener that does not wait for the writer of a pipe; pipes are refused after opening."""
    return os.open(path, flags | os.O_NONBLOCK)


def _stamp(path: str) -> tuple[int, int]:
    """Size in bytes and modification time in ns of a file; -1, -1 if there is no regular file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return -1, -1
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (-1, -1)


def _cached_digests(memo: Path, shape: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.bytes_]]:
    """Stamps of `shape` [N, 2] and digests [N] from the cache; stamps of no file if there are none."""
    try:
        with np.load(memo, allow_pickle=False) as cached:
            if cached["stamps"].shape == shape:
                return cached["stamps"], cached["digests"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    return np.full(shape, -2, np.int64), np.zeros(shape[0], "S32")


def leaves_folder(path: str) -> bool:
    """Whether a path in a data file leads out of the data directory: it is absolute, or begins with `..`."""
    return os.path.isabs(path) or os.path.normpath(path).split(os.sep)[0] == ".."
