"""A command as a process of its own. Only the standard library is loaded, so that `--help` opens at once."""

from __future__ import annotations

import gc
import io
import sys
from collections.abc import Callable
from typing import NoReturn


def run(main: Callable[[], int]) -> NoReturn:
    """Run a command and leave with its exit code.

    The libraries that a command imports make hundreds of thousands of objects that live until its end:
    looking for garbage among them, while they are loaded and once more at exit, took 40 % of the time of
    `--dry-run` (`python -m harness.bench startup`).
    """
    gc.set_threshold(100_000)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold bytes that no terminal can show
            stream.reconfigure(errors="backslashreplace")
    code = main()
    gc.freeze()
    sys.exit(code)
