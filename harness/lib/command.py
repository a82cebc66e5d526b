"""A command as a process of its own. Only the standard library is loaded, so that `--help` opens at once."""

from __future__ import annotations

import argparse
import gc
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

_OF_TRAINING = frozenset(
    {
        "accelerate",
        "nltk",
        "open_clip",
        "ray",
        "safetensors",
        "sklearn",
        "timm",
        "torch",
        "torchvision",
        "transformers",
    }
)
"""Modules that the extra `train` installs, and that a light install lacks."""


def run(main: Callable[[], int]) -> NoReturn:
    """Run a command and leave with its exit code.

    The libraries that a command imports make hundreds of thousands of objects that live until its end:
    looking for garbage among them, while they are loaded and once more at exit, took 40 % of the time of
    `--dry-run` (`python -m harness.bench startup`).

    Where a module of the extra `train` is missing, the command says so, and ends with exit code 2.

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
    except ModuleNotFoundError as error:
        if not is_of_training(error):
            raise
        sys.stderr.write(f"{needs_training(error)}\n")
        sys.exit(2)
    # Triton's nanobind reports all its objects as leaked if they are not collected at exit.
    if "triton" not in sys.modules:
        gc.freeze()
    sys.exit(code)


def is_of_training(error: ModuleNotFoundError) -> bool:
    """Whether what is missing comes with the extra `train`."""
    return (error.name or "").partition(".")[0] in _OF_TRAINING


def needs_training(error: ModuleNotFoundError) -> str:
    """What to say where a module of the extra `train` is missing."""
    return (
        f"this needs the extra `train`, for {(error.name or '').partition('.')[0]} is not installed: "
        "pip install 'noisy-correspondence-harness[train]', or in a checkout "
        "pip install -c constraints.txt -e '.[train]'"
    )


def count(text: str) -> int:
    """A number of things, as argparse reads an option."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer of at least 0, found {text!r}")
    return int(text)
