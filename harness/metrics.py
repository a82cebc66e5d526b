"""Retrieval recalls and noise-detection scores, defined once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CUTOFFS = (1, 5, 10)
RECALLS = tuple(f"{direction}_r{k}" for direction in ("i2t", "t2i") for k in CUTOFFS)
"""The six recalls whose sum is rSum."""
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
    ranks, tops = zip(*(_rank_block(similarity[b], query_group[b], candidate_group) for b in blocks), strict=True)
    return Ranking(np.concatenate(ranks), np.concatenate(tops))


def _rank_block(similarity: NDArray[np.floating], query_group: NDArray, candidate_group: NDArray) -> tuple[NDArray, NDArray]:
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


def detection(confidence: NDArray[np.floating], matched: NDArray[np.bool_]) -> dict[str, float]:
    """How well confidence tells matched from mismatched pairs: AUROC and average precision of mismatch.

    Empty where all pairs are of one kind: there is nothing to tell apart.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    if matched.all() or not matched.any():
        return {}
    return {
        "auroc": float(roc_auc_score(matched, confidence)),
        "average_precision": float(average_precision_score(~matched, -confidence)),
    }
