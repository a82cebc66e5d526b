"""Retrieval recalls and noise-detection scores, defined once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CUTOFFS = (1, 5, 10)
RECALLS = tuple(f"{direction}_r{k}" for direction in ("i2t", "t2i") for k in CUTOFFS)
"""The six recalls whose sum is rSum."""
PERFECT = 600.0
"""The highest rSum."""
_BLOCK = 1024  # queries ranked at a time


@dataclass(frozen=True)
class Ranking:
    """One direction of retrieval.

    Attributes:
        rank: int64 [Q], candidates that are no match and score at least as high as the query's best
            match: 0 is a hit at 1. Ties count against the model.
        top: int64 [Q, 5] (fewer if there are fewer candidates), the best candidates, best first.
    """

    rank: NDArray[np.int64]
    top: NDArray[np.int64]


def rank_queries(similarity: NDArray[np.floating], query_group: NDArray, candidate_group: NDArray) -> Ranking:
    """Rank all candidates for each query: [Q, C], [Q], [C].

    Raises:
        ValueError: a similarity is not finite (every comparison with NaN is false, so a broken model would
            come out perfect), or a query has no match among the candidates.
    """
    if not np.isfinite(similarity).all():
        raise ValueError("similarities are not finite: the model has diverged")
    unmatched = int((~np.isin(query_group, candidate_group)).sum())
    if unmatched:
        raise ValueError(f"{unmatched} queries have no match among the candidates")
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(similarity), _BLOCK)]
    ranks, tops = zip(
        *(_rank_block(similarity[b], query_group[b], candidate_group) for b in blocks), strict=True
    )
    return Ranking(np.concatenate(ranks), np.concatenate(tops))


def _rank_block(
    similarity: NDArray[np.floating], query_group: NDArray, candidate_group: NDArray
) -> tuple[NDArray, NDArray]:
    """Ranks and best candidates of a few queries: what is made beside the matrix stays small."""
    match = query_group[:, None] == candidate_group[None, :]
    best = np.where(match, similarity, -np.inf).max(1, keepdims=True)
    rank = ((similarity >= best) & ~match).sum(1)
    width = min(5, similarity.shape[1])
    head = np.argpartition(-similarity, width - 1, axis=1)[:, :width]
    # The order of a tie: a match last, then by position, as for the rank.
    keys = (head, np.take_along_axis(match, head, 1), -np.take_along_axis(similarity, head, 1))
    order = np.lexsort(keys, axis=1)
    return rank.astype(np.int64), np.take_along_axis(head, order, 1).astype(np.int64)


def recalls(i2t: Ranking, t2i: Ranking) -> dict[str, float]:
    """R@1, 5, 10 of both directions in percent, their sum `rsum`, and median and mean rank (from 1)."""
    out: dict[str, float] = {}
    for name, ranking in (("i2t", i2t), ("t2i", t2i)):
        out |= {f"{name}_r{k}": 100 * float((ranking.rank < k).mean()) for k in CUTOFFS}
        out[f"{name}_median_rank"] = float(np.floor(np.median(ranking.rank)) + 1)
        out[f"{name}_mean_rank"] = float(ranking.rank.mean() + 1)
    return out | {"rsum": sum(out[name] for name in RECALLS)}


def chance_rsum(image_group: NDArray, caption_group: NDArray) -> float:
    """rSum to be expected of a random order, both directions: group of each image and each caption."""
    total = 0.0
    for queries, candidates in ((image_group, caption_group), (caption_group, image_group)):
        groups, sizes = np.unique(candidates, return_counts=True)
        matches = sizes[np.searchsorted(groups, queries)]
        others = len(candidates) - matches
        for k in CUTOFFS:
            # None of the first k matches: (others / all) ((others - 1) / (all - 1)) ... k times.
            missed = np.prod(
                [np.clip(others - i, 0, None) / max(len(candidates) - i, 1) for i in range(k)], axis=0
            )
            total += 100 * float((1 - missed).mean())
    return total


@dataclass(frozen=True)
class Calibration:
    """Pairs by their confidence, in `BINS` equal bins of [0, 1].

    Attributes:
        matched, mismatched: pairs of each kind in each bin, [BINS].
        confidence: mean confidence of the bin's pairs, NaN where it is empty, [BINS].
    """

    matched: NDArray[np.int64]
    mismatched: NDArray[np.int64]
    confidence: NDArray[np.float64]

    @property
    def share(self) -> NDArray[np.float64]:
        """Share of matched pairs in each bin, NaN where it is empty."""
        count = self.matched + self.mismatched
        share: NDArray[np.float64] = np.divide(
            self.matched, count, out=np.full(BINS, np.nan), where=count > 0
        )
        return share

    @property
    def error(self) -> float:
        """Expected calibration error (Guo et al., ICML 2017, eq. 3): |share matched - mean confidence| over
        bins, weighted by pairs.
        """
        count = self.matched + self.mismatched
        return float(np.nansum(count * np.abs(self.share - self.confidence)) / count.sum())


BINS = 20


def calibration(confidence: NDArray[np.floating], matched: NDArray[np.bool_]) -> Calibration:
    """Matched and mismatched pairs by confidence, [N] in [0, 1] and [N]."""
    place = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    total = np.bincount(place, confidence, BINS)
    mean = np.divide(total, count, out=np.full(BINS, np.nan), where=count > 0)
    of_matched = np.bincount(place[matched], minlength=BINS)
    return Calibration(of_matched, count - of_matched, mean)


DETECTION = ("auroc", "average_precision", "f1", "ece")


def detection(confidence: NDArray[np.floating], matched: NDArray[np.bool_]) -> dict[str, float]:
    """How well confidence tells mismatched from matched pairs, [N] in [0, 1] and [N].

    `auroc`, `average_precision` and `f1` (mismatched: below 0.5) are of mismatched pairs, and are left out
    where all pairs are of one kind:
    there is nothing to tell apart. `ece`: expected calibration error as a belief that a pair matches.
    """
    from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

    found = {"ece": calibration(confidence, matched).error}
    if matched.all() or not matched.any():
        return found
    return found | {
        "auroc": float(roc_auc_score(matched, confidence)),
        "average_precision": float(average_precision_score(~matched, -confidence)),
        "f1": float(f1_score(~matched, confidence < 0.5, zero_division=0)),
    }
