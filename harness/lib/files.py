"""Files that are complete or absent, the cache directory, and digests of large files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

STORAGE = Path(".harness") / "trials"
RESULTS = Path("results")
"""Where checkpoints are kept while trials run, unless the user names another directory: relative to where a
command is run."""


def cache_directory() -> Path:
    """The directory of cached results: `HARNESS_CACHE`, or `~/.cache/noisy-correspondence`."""
    return Path(os.environ.get("HARNESS_CACHE") or Path.home() / ".cache" / "noisy-correspondence")


@contextlib.contextmanager
def atomic_write(
    path: Path,
    mode: Literal["w", "wb"] = "wb",
    *,
    sync: bool = False,
    final_name: Callable[[Path], str] | None = None,
) -> Iterator[IO[Any]]:
    """Write a file that appears under its name only when it is complete.

    The stream goes to a temporary file `.NAME.*.tmp` in the same directory, which is made if needed. At the
    end of the block the temporary file is renamed to `path` and replaces what was there; if the block raises,
    it is removed and `path` stays as it was. Text is UTF-8.

    Args:
        path: the file to write.
        mode: `wb` for bytes, `w` for text.
        sync: whether the content must be on the disk before the rename, for files that must survive a crash
            of the machine.
        final_name: the file's name where it depends on the content: called with the closed temporary file,
            returns a name in the directory of `path`.

    Yields:
        The stream. Its attribute `name` is the path of the temporary file.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A process id would not do: processes of several machines may write to one shared directory. `mkstemp`
    # would not either: its files are private to their owner.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, mode.replace("w", "x"), encoding="utf-8" if mode == "w" else None) as stream:
            yield stream
            if sync:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(temporary, path.with_name(final_name(temporary)) if final_name else path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def complete_directory(directory: Path) -> Iterator[Path]:
    """Write a directory that appears under its name only when it is complete.

    Yields:
        A temporary directory next to `directory`. It is renamed at the end of the block, and removed if the
        block raises.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}-"))
    try:
        temporary.chmod(0o755)
        yield temporary
        temporary.rename(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def is_file(path: str | Path) -> bool:
    """Whether a regular file exists; False for a name that no file can have."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def file_digest(path: Path) -> str:
    """SHA-256 of a file as hexadecimal digits.

    The digest is cached until the file's size or modification time changes: hashing 33 GB of features takes a
    minute.
    """
    location, status = str(path.resolve()), path.stat()
    stamp = [location, status.st_size, status.st_mtime_ns]
    memo = cache_directory() / "digests" / hashlib.sha256(location.encode()).hexdigest()[:24]
    try:
        cached_stamp, digest = json.loads(memo.read_text())
        if cached_stamp == stamp:
            return str(digest)
    except (OSError, ValueError, TypeError):
        pass
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    with atomic_write(memo, "w") as stream:
        json.dump([stamp, digest], stream)
    return str(digest)
