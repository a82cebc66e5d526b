"""Locks on directories: one process at a time. The system releases them when the process ends, however it
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


class Busy(RuntimeError):
    """Another process is running this trial."""


@contextlib.contextmanager
def acquire(directory: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a directory, which is made if it is missing.

    Raises:
        Busy: another process holds it, and `wait` is false.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = _lock(directory)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except filelock.Timeout:
        raise Busy(f"it is being run by {owner(directory) or 'another process'}") from None
    try:
        (directory / "owner").write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        lock.release()


def is_locked(directory: Path) -> bool:
    """Whether a process holds the lock of a directory. (To find out, it is acquired for a moment.)"""
    if not directory.is_dir():
        return False
    lock = _lock(directory)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return True
    lock.release()
    return False


def owner(directory: Path) -> str:
    """The last process that held the lock of a directory, as text; empty where there is none."""
    with contextlib.suppress(OSError):
        return (directory / "owner").read_text()
    return ""


def _lock(directory: Path) -> filelock.BaseFileLock:
    logging.getLogger("filelock").setLevel(logging.ERROR)
    return filelock.FileLock(directory / "lock")
