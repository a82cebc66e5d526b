"""Retrieval recalls and noise-detection scores.

Q queries are ranked against C candidates. A query matches the candidates of its group: in image-to-text
retrieval (i2t), an image matches the captions of its group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.evaluation.ranking import Ranking as Ranking
from harness.evaluation.ranking import missed
from harness.evaluation.ranking import rank_queries as rank_queries

CUTOFFS = (1, 5, 10)
"""The k of R@k."""
RECALLS = tuple(f"{direction}_r{k}" for direction in ("i2t", "t2i") for k in CUTOFFS)
"""The six recalls whose sum is rSum."""
PERFECT = 600.0
"""The highest rSum."""


def recalls(i2t: Ranking, t2i: Ranking) -> dict[str, float]:
    """Recalls and ranks of both directions (VSE++'s released code, whose definitions the field shares).

    Args:
        i2t: images as queries, captions as candidates.
        t2i: captions as queries, images as candidates.

    Returns:
        `i2t_r1`, ..., `t2i_r10`: percent of queries with a match among the first k, in expectation over
        random orders of ties. `rsum`: their sum. `i2t_median_rank`, `i2t_mean_rank` and those of `t2i`:
        expected ranks of the best match, from 1.
    """
    metrics: dict[str, float] = {}
    for name, ranking in (("i2t", i2t), ("t2i", t2i)):
        metrics |= {f"{name}_r{k}": 100 * float(ranking.hits(k).mean()) for k in CUTOFFS}
        metrics[f"{name}_median_rank"] = float(np.floor(np.median(ranking.expected)) + 1)
        metrics[f"{name}_mean_rank"] = float(ranking.expected.mean() + 1)
    return metrics | {"rsum": sum(metrics[name] for name in RECALLS)}


def chance_rsum(image_group: NDArray, caption_group: NDArray) -> float:
    """Expected rSum of a random order of the candidates.

    Args:
        image_group: int64 [N], group of each image.
        caption_group: int64 [C], group of each caption.
    """
    total = 0.0
    for queries, candidates in ((image_group, caption_group), (caption_group, image_group)):
        groups, sizes = np.unique(candidates, return_counts=True)
        matches = sizes[np.searchsorted(groups, queries)]
        for k in CUTOFFS:
            first = missed(len(candidates) - matches, matches, np.full(len(queries), k))
            total += 100 * float((1 - first).mean())
    return total


@dataclass(frozen=True)
class Calibration:
    """Pairs by confidence, in `BINS` bins of equal width over [0, 1].

    Attributes:
        matched: int64 [BINS], matched pairs in each bin.
        mismatched: int64 [BINS], mismatched pairs in each bin.
        confidence: float64 [BINS], mean confidence of the pairs in each bin, NaN in an empty bin.
    """

    matched: NDArray[np.int64]
    mismatched: NDArray[np.int64]
    confidence: NDArray[np.float64]

    @property
    def share(self) -> NDArray[np.float64]:
        """float64 [BINS], share of matched pairs in each bin, NaN in an empty bin."""
        count = self.matched + self.mismatched
        share: NDArray[np.float64] = np.divide(
            self.matched, count, out=np.full(BINS, np.nan), where=count > 0
        )
        return share

    @property
    def error(self) -> float:
        """Expected calibration error, in [0, 1] (Guo et al., ICML 2017, equation 3).

        The mean over bins of |share - confidence|, weighted by pairs.
        """
        count = self.matched + self.mismatched
        return float(np.nansum(count * np.abs(self.share - self.confidence)) / count.sum())


BINS = 20
"""Bins of `Calibration`."""


def calibration(confidence: NDArray[np.floating], matched: NDArray[np.bool_]) -> Calibration:
    """Count matched and mismatched pairs by confidence.

    Args:
        confidence: [P] in [0, 1], belief that each pair matches.
        matched: bool [P], the ground truth.
    """
    bin_index = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(bin_index, minlength=BINS)
    total = np.bincount(bin_index, confidence, BINS)
    mean = np.divide(total, count, out=np.full(BINS, np.nan), where=count > 0)
    matched_count = np.bincount(bin_index[matched], minlength=BINS)
    return Calibration(matched_count, count - matched_count, mean)


DETECTION = ("auroc", "average_precision", "f1", "ece")
"""Names of the noise-detection scores."""


def detection(confidence: NDArray[np.floating], matched: NDArray[np.bool_]) -> dict[str, float]:
    """Scores of the detection of mismatched pairs by their confidence.

    scikit-learn is imported here: it takes a second.

    Args:
        confidence: [P] in [0, 1], belief that each pair matches.
        matched: bool [P], the ground truth.

    Returns:
        `auroc`, `average_precision` and `f1` of mismatched pairs, in [0, 1]; for `f1` a pair is detected if
        its confidence is below 0.5. They are left out if all pairs match or none does. `ece`: expected
        calibration error of the confidence, in [0, 1].
    """
    from sklearn.metrics import average_precision_score, f1_score

    scores = {"ece": calibration(confidence, matched).error, **separation(confidence, matched)}
    if matched.all() or not matched.any():
        return scores
    return scores | {
        "average_precision": float(average_precision_score(~matched, -confidence)),
        "f1": float(f1_score(~matched, confidence < 0.5, zero_division=0)),
    }


def separation(values: NDArray[np.floating], matched: NDArray[np.bool_]) -> dict[str, float]:
    """`auroc`, in [0, 1]: how well values, larger for matched pairs, separate them from mismatched ones.
    Empty if all pairs match or none does.

    Args:
        values: [P], of any scale.
        matched: bool [P], the ground truth.
    """
    from sklearn.metrics import roc_auc_score

    if matched.all() or not matched.any():
        return {}
    return {"auroc": float(roc_auc_score(matched, values))}
