"""A filter by score, as data sets from the web are filtered: train on the pairs with the best similarity."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from methods.base import PositiveShare, Report, Scan
from methods.estimating import Estimating


class ScoreFilter(Estimating):
    """InfoNCE on the share of the pairs with the largest similarity under an estimator.

    Source: the CLIP score baseline of DataComp (NeurIPS 2023), which takes as many steps as
    without a filter. The share is one for all noise ratios: the method does not know the ratio.

    Args:
        keep: share of the pairs that is kept (DataComp: 0.3).
        common: the arguments of `Estimating` and `Method`.
    """

    paper = "score filter (DataComp, NeurIPS 2023)"
    family = "filter"

    rank: Tensor

    def __init__(self, *, keep: PositiveShare = 0.3, **common: Any) -> None:
        super().__init__(**common)
        self.keep = keep
        self.register_buffer("rank", torch.ones(len(self.pairs)))

    def estimate(self, scan: Scan) -> Report:
        """Rank all pairs by their similarity; pairs that come first win ties."""
        net = self.networks[0]
        scores = scan(lambda images, texts: {"score": net.pair_similarity(images, texts)})["score"]
        order = scores.argsort(stable=True, descending=True)
        places = torch.linspace(1, 0, len(order))
        self.rank[order.to(self.rank.device)] = places.to(self.rank)
        return {"least_score": float(scores[order[self._count - 1]])}

    @property
    def _count(self) -> int:
        return max(2, round(self.keep * len(self.pairs)))

    def selected(self, network: int) -> Tensor | None:
        """Indices of the pairs that are kept; all pairs during the warm-up."""
        return self.rank.topk(self._count).indices.sort().values if self.judged else None

    def confidence(self) -> Tensor | None:
        """The rank of each pair's similarity, [N], from 0 to 1; None during the warm-up."""
        return self.rank if self.judged else None
