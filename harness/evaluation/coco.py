"""Measures of MS-COCO's test split in addition to the recalls over all 5,000 images.

The 1K protocol is the mean over five folds of 1,000 images and their captions, in file order (released code
of SCAN, NCR and NPC). ECCV Caption (Chun et al., ECCV 2022) adds judgements of further matching pairs; its
package `eccv_caption` computes mAP@R, R-Precision and R@1.
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

FOLD_IMAGES = 1000
"""Images of a fold of the 1K protocol."""
FOLD_MEASURES = tuple(f"1k_{m}" for m in (*RECALLS, "rsum"))
"""Names of the 1K recalls and their sum."""
ECCV_MEASURES = tuple(f"eccv_{d}_{m}" for d in ("i2t", "t2i") for m in ("map_at_r", "rprecision", "r1"))
"""Names of the measures of ECCV Caption."""


def coco_metrics(scores: NDArray[np.floating], data: DataSet) -> dict[str, float]:
    """All measures of MS-COCO's test split.

    Args:
        scores: similarities of the test split, [N images, C captions].
        data: the data set.

    Returns:
        The measures in percent: `1k_...` and `eccv_...`, see `fold_metrics` and `eccv_metrics`. Empty for
        other data sets.
    """
    return fold_metrics(scores, data) | eccv_metrics(scores, data)


def fold_metrics(scores: NDArray[np.floating], data: DataSet) -> dict[str, float]:
    """Recalls as means over folds of the test split (the 1K protocol).

    Args:
        scores: similarities of the test split, [N images, C captions].
        data: the data set; `data.folds` is the number of folds.

    Returns:
        `1k_i2t_r1`, ..., `1k_rsum` in percent, and mean and median ranks. Empty if the data set has no folds.

    Raises:
        ValueError: see `rank_queries`.
    """
    test = data["test"]
    return fold_recalls(scores, test.image_group, test.caption_group, data.folds) if data.folds else {}


def fold_recalls(
    scores: NDArray[np.floating],
    image_group: NDArray[np.int64],
    caption_group: NDArray[np.int64],
    folds: int,
) -> dict[str, float]:
    """Recalls as means over so many folds of images in their order, with the captions of their groups: see
    `fold_metrics`.

    Args:
        scores: similarities, [N images, C captions].
        image_group: int64 [N], distinct.
        caption_group: int64 [C].
        folds: their number.
    """
    metrics = []
    for images in np.array_split(np.arange(len(image_group)), folds):
        captions = np.flatnonzero(np.isin(caption_group, image_group[images]))
        similarity = scores[np.ix_(images, captions)]
        groups = image_group[images], caption_group[captions]
        metrics.append(
            recalls(rank_queries(similarity, *groups), rank_queries(similarity.T, *reversed(groups)))
        )
    return {f"1k_{k}": float(np.mean([m[k] for m in metrics])) for k in metrics[0]}


def eccv_metrics(scores: NDArray[np.floating], data: DataSet) -> dict[str, float]:
    """Measures of ECCV Caption (Chun et al., ECCV 2022).

    Args:
        scores: similarities of the test split, [N images, C captions].
        data: the data set; `data.coco_ids` has MS-COCO's ids of the test images and captions.

    Returns:
        `eccv_i2t_map_at_r`, ..., `eccv_t2i_r1` in percent. Empty if the package is not installed, the ids are
        unknown, or the test split lacks images or captions that have judgements.
    """
    if data.coco_ids is None or not data.folds or importlib.util.find_spec("eccv_caption") is None:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package recommends a faster JSON reader
        import eccv_caption

    judge = eccv_caption.Metrics()
    images, captions = data.coco_ids
    retrieved = {}
    for direction, matrix, queries, candidates in (
        ("i2t", scores, images, captions),
        ("t2i", scores.T, captions, images),
    ):
        ground_truth = judge.eccv_gts[direction]
        rows = np.flatnonzero(np.isin(queries, list(ground_truth)))
        if len(rows) < len(ground_truth):  # not the test split that was judged
            return {}
        count = max(map(len, ground_truth.values()))
        retrieved[direction] = _best(matrix, queries, candidates, rows, count)
    with contextlib.redirect_stderr(io.StringIO()):  # the package shows progress bars
        measures = judge.eccv_metrics(retrieved, "all")
    return {
        f"eccv_{d}_{name.removeprefix('eccv_')}": 100 * float(v)
        for name, by_direction in measures.items()
        for d, v in by_direction.items()
    }


def _best(
    scores: Any,
    queries: NDArray[np.int64],
    candidates: NDArray[np.int64],
    rows: NDArray[np.int64],
    count: int,
) -> dict[int, list[int]]:
    """Ids of the `count` best candidates of the queries in `rows`, best first, by the query's id."""
    return {int(queries[r]): candidates[np.argsort(-scores[r], kind="stable")[:count]].tolist() for r in rows}
