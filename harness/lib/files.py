"""What is computed once and kept on disk: where it lies, folders that are whole or absent, and digests of
large files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def cache_folder() -> Path:
    """`HARNESS_CACHE`, or `~/.cache/noisy-correspondence`."""
    return Path(os.environ.get("HARNESS_CACHE") or Path.home() / ".cache" / "noisy-correspondence")


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder beside the one that is to be, which becomes it at the end of the block, or goes where the
    block fails.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        part.chmod(0o755)
        yield part
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def is_file(path: str | Path) -> bool:
    """Whether there is such a file; a name that no file can have is none."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def file_digest(path: Path) -> str:
    """SHA-256 of a file, remembered for as long as its size and time of change stay (33 GB of features take a
    minute).
    """
    place, known = str(path.resolve()), path.stat()
    stamp = [place, known.st_size, known.st_mtime_ns]
    memo = cache_folder() / "digests" / hashlib.sha256(place.encode()).hexdigest()[:24]
    try:
        kept, digest = json.loads(memo.read_text())
        if kept == stamp:
            return str(digest)
    except (OSError, ValueError, TypeError):
        pass
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    memo.parent.mkdir(parents=True, exist_ok=True)
    temporary = memo.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps([stamp, digest]))
    temporary.replace(memo)
    return str(digest)
