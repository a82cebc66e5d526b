"""Work in a process of its own, whose memory (a GPU's too) is free when it ends."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


def in_own_process(function: Callable[..., None], *arguments: Any) -> None:
    """Call a module's function in a new process, and wait for it; an interruption here ends it.

    Raises:
        RuntimeError: the process died.
        Exception: what the function raised.
    """
    context = multiprocessing.get_context("spawn")  # a fork of a process that has used a GPU cannot use it
    answer, end = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(end, function, *arguments))
    process.start()
    end.close()
    try:
        error = answer.recv()
    except EOFError:
        process.join()
        error = RuntimeError(f"the process of {function.__name__} died (exit code {process.exitcode})")
    finally:
        process.terminate()
        process.join()
    if error is not None:
        raise error


def _call(end: Connection, function: Callable[..., None], *arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes, and the other ends this one
    try:
        function(*arguments)
    except Exception as error:
        error.__cause__ = error.__context__ = None  # may not travel between processes
        end.send(error)
    else:
        end.send(None)
