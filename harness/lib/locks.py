"""One process at a time: locks on folders that the system lets go of when their process ends, however it
ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock

logging.getLogger("filelock").setLevel(logging.ERROR)


class Busy(RuntimeError):
    """Another process is running this trial."""


@contextlib.contextmanager
def acquire(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder for this process; the system lets go of it when the process ends, however it ends.

    Raises:
        Busy: another process holds it, and we are not to wait.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except filelock.Timeout:
        raise Busy(f"it is being run by {owner(folder) or 'another process'}") from None
    try:
        (folder / "owner").write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process holds a folder. (Looking takes hold of it for a moment.)"""
    if not folder.is_dir():
        return False
    lock = _lock(folder)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return True
    lock.release()
    return False


def owner(folder: Path) -> str:
    """Who held a folder last, in words."""
    with contextlib.suppress(OSError):
        return (folder / "owner").read_text()
    return ""


def _lock(folder: Path) -> filelock.BaseFileLock:
    return filelock.FileLock(folder / "lock")
