"""The lines of a bundle: a JSON object for each trial that is over, in `records.jsonl`, or compressed in
`records.jsonl.gz`. Where both are, a process was killed between the two, and the plain file counts.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.lib.files import atomic_write


def records_file(folder: Path) -> Path:
    """The file of a bundle's lines: the compressed one only where there is no plain one."""
    plain, packed = folder / "records.jsonl", folder / "records.jsonl.gz"
    return packed if packed.is_file() and not plain.is_file() else plain


def records_text(folder: Path) -> bytes:
    """The lines of a bundle. Raises OSError where its file is missing or damaged."""
    file = records_file(folder)
    return _text(file, file.read_bytes())


def _text(file: Path, content: bytes) -> bytes:
    if file.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise OSError(f"{file} is damaged: {error}") from None


class Lines:
    """The lines of a bundle by trial; of several lines of a trial the last counts.

    Whoever appends or tidies holds the bundle's lock.

    Args:
        folder: of the bundle.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read = 0  # bytes of a file,
        self._inode = 0  # which is another file once a process has written it anew
        self._known: dict[str, dict[str, Any]] = {}

    def read(self) -> dict[str, dict[str, Any]]:
        """All lines; what was added since the last call is read. Raises OSError for a damaged file."""
        file = records_file(self.folder)
        if not file.is_file():
            return self._known
        with open(file, "rb") as stream:
            inode = os.fstat(stream.fileno()).st_ino
            self._read = self._read if inode == self._inode else 0
            self._inode = inode
            stream.seek(self._read)
            content = stream.read()
        self._read += len(content)
        if file.suffix != ".gz":  # a line that a killed process has begun is not counted as read
            self._read -= len(content) - (content.rfind(b"\n") + 1)
        for text in _text(file, content).rpartition(b"\n")[0].splitlines():
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                self._known[line["trial"]] = line
        return self._known

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Add lines, to the plain file."""
        text = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        if not text:
            return
        if self.read() and records_file(self.folder).suffix == ".gz":
            self.tidy(packed=False)
            self.read()
        with open(self.folder / "records.jsonl", "ab") as stream:
            torn = stream.tell() > self._read
            stream.write(b"\n" * torn + text)

    def tidy(self, *, packed: bool) -> None:
        """Leave one line of each trial, compressed or not."""
        text = "".join(json.dumps(line) + "\n" for line in self.read().values()).encode()
        there = records_file(self.folder)
        if not there.is_file() or ((there.suffix == ".gz") == packed and text == records_text(self.folder)):
            return
        with atomic_write(self.folder / ("records.jsonl.gz" if packed else "records.jsonl")) as stream:
            stream.write(gzip.compress(text, mtime=0) if packed else text)
        (self.folder / ("records.jsonl" if packed else "records.jsonl.gz")).unlink(missing_ok=True)
