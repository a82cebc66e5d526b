"""A command as a process of its own. Only the standard library is loaded, so that `--help` opens at once."""

from __future__ import annotations

import gc
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn


def run(main: Callable[[], int]) -> NoReturn:
    """Run a command and leave with its exit code.

    The libraries that a command imports make hundreds of thousands of objects that live until its end:
    looking for garbage among them, while they are loaded and once more at exit, took 40 % of the time of
    `--dry-run` (`python -m harness.bench startup`).

    A command ends quietly, with exit code 1, when the reader of its output is gone (`... | head -1`), and
    with 130 when Ctrl-C stops it before it can say more.
    """
    gc.set_threshold(100_000)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold bytes that no terminal can show
            stream.reconfigure(errors="backslashreplace")
    try:
        code = main()
        sys.stdout.flush()  # here and not at exit, where a closed pipe can no longer be handled
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):  # what is still buffered is written at exit
            os.dup2(nowhere, stream.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        sys.exit(130)
    # Triton's nanobind reports all its objects as leaked if they are not collected at exit.
    if "triton" not in sys.modules:
        gc.freeze()
    sys.exit(code)
