"""The rankings of `harness.evaluation.ranking` of similarities on an accelerator, which stay there."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.evaluation.ranking import ROUNDING, TOP, Matches, Ranking, in_order, rank_queries

_BLOCK = 2**25  # similarities of the queries that are ranked at a time


def rank_on_device(similarity: Tensor, query_group: NDArray, candidate_group: NDArray) -> Ranking:
    """What `rank_queries` says, computed where `similarity` [Q, C] is. The host gets a rank and the best
    candidates of each query, and the similarities of queries whose last place is tied.

    Raises:
        ValueError: see `rank_queries`.
    """
    matches = Matches(query_group, candidate_group)
    size = max(1, _BLOCK // similarity.shape[1])
    blocks = [
        _rank_block(similarity[start : start + size], *matches.of(slice(start, start + size)))
        for start in range(0, len(similarity), size)
    ]
    rank, tied, matched, index, values, shared, finite = (
        torch.cat(parts).cpu().numpy() for parts in zip(*blocks, strict=True)
    )
    if not finite.all():
        raise ValueError("similarities are not finite: the model has diverged")
    top = in_order(index, values, query_group, candidate_group)
    if shared.any():
        rows = torch.from_numpy(np.flatnonzero(shared)).to(similarity.device)
        top[shared] = rank_queries(similarity[rows].cpu().numpy(), query_group[shared], candidate_group).top
    return Ranking(rank, tied, matched, top)


def _rank_block(similarity: Tensor, members: NDArray, real: NDArray) -> tuple[Tensor, ...]:
    """Of each query of a block: its rank, tied mismatches and matches (see `Ranking`), its best candidates
    [q, TOP], their similarities, whether others tie with the last of them, and whether all its similarities
    are finite.
    """
    device = similarity.device
    scores = similarity.gather(1, torch.from_numpy(members).to(device))
    best = scores.amax(1, keepdim=True)
    width = ROUNDING * best.abs().clamp(min=1)
    matched = ((scores >= best - width) & torch.from_numpy(real).to(device)).sum(1)
    higher = (similarity > best + width).sum(1)
    tied = (similarity >= best - width).sum(1) - higher - matched
    values, index = similarity.topk(min(TOP, similarity.shape[1]))
    shared = (similarity >= values[:, -1:]).sum(1) > values.shape[1]
    return higher, tied, matched, index, values, shared, similarity.isfinite().all(1)
