"""What MS-COCO's test split is measured by besides its 5,000 images at once.

The 1K protocol is the mean over five folds of 1,000 images and their captions, in file order (SCAN, NCR and
NPC alike). ECCV Caption (Chun et al., ECCV 2022) adds matches that the captions' owners miss: mAP@R,
R-Precision and R@1, from the package `eccv_caption`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.base import DataSet
from harness.evaluation.metrics import RECALLS, rank_queries, recalls

FOLD_MEASURES = tuple(f"1k_{m}" for m in (*RECALLS, "rsum"))
ECCV_MEASURES = tuple(f"eccv_{d}_{m}" for d in ("i2t", "t2i") for m in ("map_at_r", "rprecision", "r1"))


def coco_metrics(scores: NDArray[np.floating], data: DataSet) -> dict[str, float]:
    """From similarities [images, captions] of test; percent. Empty for other data sets.

    `1k_...`: means over the folds. `eccv_...`: where the package is installed and the data set knows
        MS-COCO's numbers.
    """
    return fold_metrics(scores, data) | eccv_metrics(scores, data)


def fold_metrics(scores: NDArray[np.floating], data: DataSet) -> dict[str, float]:
    """`1k_...`: recalls, means over the data set's folds of test; empty where it has none."""
    test, folds = data["test"], data.folds
    found = []
    for fold in range(folds):
        part = test.part(fold, folds)
        images = np.arange(len(test.images)) * folds // len(test.images) == fold
        own = scores[np.ix_(images, images[test.owner])]
        groups = part.image_group, part.caption_group
        found.append(recalls(rank_queries(own, *groups), rank_queries(own.T, *reversed(groups))))
    return {f"1k_{k}": float(np.mean([f[k] for f in found])) for k in found[0]} if found else {}


def eccv_metrics(scores: NDArray[np.floating], data: DataSet) -> dict[str, float]:
    """`eccv_...`: empty where the package or MS-COCO's numbers are missing, or test is not the split that it
    judges.
    """
    if data.coco_ids is None or not data.folds or importlib.util.find_spec("eccv_caption") is None:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a faster JSON reader that it would like to have
        import eccv_caption

    judge = eccv_caption.Metrics()
    images, captions = data.coco_ids
    retrieved = {}
    for direction, matrix, queries, candidates in (
        ("i2t", scores, images, captions),
        ("t2i", scores.T, captions, images),
    ):
        truth = judge.eccv_gts[direction]
        rows = np.flatnonzero(np.isin(queries, list(truth)))
        if len(rows) < len(truth):  # not the test split that the judgements are about
            return {}
        retrieved[direction] = _best(matrix, queries, candidates, rows, max(map(len, truth.values())))
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        found = judge.eccv_metrics(retrieved, "all")
    return {
        f"eccv_{d}_{name.removeprefix('eccv_')}": 100 * float(v)
        for name, both in found.items()
        for d, v in both.items()
    }


def _best(
    scores: Any,
    queries: NDArray[np.int64],
    candidates: NDArray[np.int64],
    rows: NDArray[np.int64],
    count: int,
) -> dict[int, list[int]]:
    """The best candidates' numbers for some queries, best first."""
    return {int(queries[r]): candidates[np.argsort(-scores[r], kind="stable")[:count]].tolist() for r in rows}
