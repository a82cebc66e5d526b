"""Drawing of figures in a background process while the tables are computed: drawing takes half of the time of
a report.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec

Arguments = ParamSpec("Arguments")


class _Background:
    """The process that draws, while there is one, and the figures that it has been given."""

    pool: ProcessPoolExecutor | None = None
    pending: list[Future[None]]


@contextmanager
def in_background() -> Iterator[None]:
    """Within the block, figures are drawn by another process; it starts, and imports matplotlib, at once."""
    # A new process and not a fork: threads of other libraries may hold locks here.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        _Background.pool, _Background.pending = pool, [pool.submit(_prepare)]
        try:
            yield
        finally:
            _Background.pool = None


def drawn(function: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """A function that draws a figure: called at once, or handed to the process that draws."""

    @functools.wraps(function)
    def draw(*arguments: Arguments.args, **options: Arguments.kwargs) -> None:
        if _Background.pool is None:
            function(*arguments, **options)
        else:
            _Background.pending.append(_Background.pool.submit(draw, *arguments, **options))

    return draw


def finish() -> None:
    """Wait until all figures are written. Raises what drawing one of them raised."""
    if _Background.pool is not None:
        for future in _Background.pending:
            future.result()
        _Background.pending = []


def _prepare() -> None:
    """Import what drawing takes, while the process that computes the tables still reads the store."""
    import matplotlib.figure  # noqa: F401

    import harness.report.figures  # noqa: F401
