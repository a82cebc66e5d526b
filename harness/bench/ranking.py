"""Ranking MS-COCO's 5K test set in both directions, against the loop of argsorts that the field's code uses
(VSE++, released code: `i2t` and `t2i`), in turn in one run.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from harness.evaluation.metrics import rank_queries
from harness.lib.console import console

IMAGES, EACH = 5_000, 5

Ranks = tuple[NDArray[np.int64], NDArray[np.int64]]


def bench_ranking(steps: int) -> None:
    """Print the best time of each in `steps` turns, their ratio, and the peak memory beside the matrix.

    Raises:
        AssertionError: ranks differ by more than ties.
    """
    similarity = np.random.default_rng(0).normal(size=(IMAGES, IMAGES * EACH)).astype(np.float32)
    versions: dict[str, Callable[[NDArray], Ranks]] = {"loop of argsorts": _loop, "rank_queries": _ours}
    seconds: dict[str, list[float]] = {name: [] for name in versions}
    ranks: dict[str, Ranks] = {}
    for _ in range(steps):
        for name, rank in versions.items():
            began = time.perf_counter()
            ranks[name] = rank(similarity)
            seconds[name].append(time.perf_counter() - began)
    for loop, ours in zip(*ranks.values(), strict=True):
        # Where similarities tie, the loop takes an order by chance; random numbers have a few.
        assert np.abs(ours - loop).max() <= 1
        assert (ours != loop).mean() < 1e-2
    table = Table(
        "", "s", "times as fast", "peak MB", title=f"{IMAGES:,} x {IMAGES * EACH:,}, both directions"
    )
    base = min(seconds["loop of argsorts"])
    for name, rank in versions.items():
        best = min(seconds[name])
        table.add_row(name, f"{best:.2f}", f"{base / best:.1f}", f"{_peak_mb(rank, similarity):.0f}")
    console.print(table)


def _ours(similarity: NDArray) -> Ranks:
    images = np.arange(IMAGES)
    captions = np.repeat(images, EACH)
    return (
        rank_queries(similarity, images, captions).rank,
        rank_queries(similarity.T, captions, images).rank,
    )


def _loop(similarity: NDArray) -> Ranks:
    i2t, t2i = np.zeros(IMAGES, np.int64), np.zeros(IMAGES * EACH, np.int64)
    for image, row in enumerate(similarity):
        order = np.argsort(row)[::-1]
        i2t[image] = min(
            int(np.where(order == caption)[0][0]) for caption in range(EACH * image, EACH * image + EACH)
        )
    for caption, row in enumerate(similarity.T):
        order = np.argsort(row)[::-1]
        t2i[caption] = np.where(order == caption // EACH)[0][0]
    return i2t, t2i


def _peak_mb(rank: Callable[[NDArray], Ranks], similarity: NDArray) -> float:
    """Of the arrays that NumPy makes."""
    tracemalloc.start()
    rank(similarity)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20
