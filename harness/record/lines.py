"""The lines of a bundle: a JSON object for each trial that is over, in `records.jsonl`, or, of many trials,
compressed in `records.jsonl.gz`. Where both are, a process was killed between the two, and the plain file
counts.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from harness.lib.files import atomic_write
from harness.record.types import StoreError

_PLAIN_BYTES = 500_000
"""Up to here a file is shown in a review; larger ones are compressed, for the size of the repository."""


def records_text(folder: Path) -> bytes:
    """The lines of a bundle.

    Raises:
        OSError: there is no file of them.
        StoreError: it is damaged.
    """
    with _opened(folder) or open(folder / "records.jsonl", "rb") as stream:
        return _text(stream)


def _opened(folder: Path) -> BinaryIO | None:
    """The file of a bundle's lines; None where there is none."""
    plain, packed = folder / "records.jsonl", folder / "records.jsonl.gz"
    for file in (plain, packed, plain):  # another process may compress the one or unpack the other meanwhile
        with contextlib.suppress(FileNotFoundError):
            return open(file, "rb")
    return None


def _text(stream: BinaryIO) -> bytes:
    content = stream.read()
    if not stream.name.endswith(".gz"):
        return content
    try:
        text = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise StoreError(f"{stream.name} is damaged: {error}") from None
    if not content:
        raise StoreError(f"{stream.name} is damaged: it is empty")
    return text


class Lines:
    """The lines of a bundle by trial; of several lines of a trial the last counts.

    Whoever appends or tidies holds the bundle's lock.

    Args:
        folder: of the bundle.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._plain, self._packed = folder / "records.jsonl", folder / "records.jsonl.gz"
        self._known: dict[str, dict[str, Any]] = {}
        self._stamp: tuple[object, ...] = ()

    def read(self) -> dict[str, dict[str, Any]]:
        """All lines, read again where the file is not as it was. Raises StoreError for a damaged file."""
        stream = _opened(self._folder)
        if stream is None:
            return self._known
        with stream:
            stamp = _stamp(stream)
            if stamp != self._stamp:
                self._known, self._stamp = _by_trial(_text(stream)), stamp
        return self._known

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Add lines, to the plain file."""
        text = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        if not text:
            return
        if not self._plain.is_file() and self._packed.is_file():
            self._rewrite(packed=False)
        with open(self._plain, "ab+") as stream:
            known = self._stamp == _stamp(stream)
            end = stream.tell()
            stream.seek(max(0, end - 1))
            begun = stream.read() not in (b"", b"\n")  # a line that a killed process has begun
            stream.write(b"\n" * begun + text)
            stream.flush()
            if known:  # not all of it again for each trial
                self._known, self._stamp = {**self._known, **_by_trial(text)}, _stamp(stream)

    def tidy(self, *, plain_bytes: int = _PLAIN_BYTES) -> None:
        """Leave one line of each trial, compressed where they are more than `plain_bytes`."""
        self._rewrite(packed=len(self._tidied()) > plain_bytes)

    def _rewrite(self, *, packed: bool) -> None:
        text = self._tidied()
        target, other = (self._packed, self._plain) if packed else (self._plain, self._packed)
        if not (target.is_file() or other.is_file()):
            return
        if other.is_file() or text != records_text(self._folder):
            # On the disk before the other goes: of a file under a new name a crash may leave nothing.
            with atomic_write(target, sync=True) as stream:
                stream.write(gzip.compress(text, mtime=0) if packed else text)
        other.unlink(missing_ok=True)

    def _tidied(self) -> bytes:
        return "".join(json.dumps(line) + "\n" for line in self.read().values()).encode()


def _stamp(stream: BinaryIO) -> tuple[object, ...]:
    """What tells a file from another one, and from itself with other content."""
    status = os.fstat(stream.fileno())
    # Not the number alone: file systems give that of a removed file to the next one.
    return str(stream.name), status.st_ino, status.st_size, status.st_mtime_ns


def _by_trial(text: bytes) -> dict[str, dict[str, Any]]:
    found = {}
    for one in text.splitlines():
        with contextlib.suppress(ValueError):  # a line that a killed process has begun
            line = json.loads(one)
            found[line["trial"]] = line
    return found
