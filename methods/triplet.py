"""Hardest-negative triplet loss (VSE++, BMVC 2018), the loss that the region-feature methods build on."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from methods.base import Batch, Method, Positive, Report
from methods.losses import hardest_triplet_of


class Triplet(Method):
    """VSE++ eq. (6): the hardest negative of the batch in both directions, margin 0.2 (paper, section 4.1)."""

    paper = "VSE++ (BMVC 2018)"

    def __init__(self, *, margin: Positive = 0.2, **common: Any) -> None:
        super().__init__(**common)
        self.margin = margin

    def loss(self, batch: Batch) -> tuple[Tensor, Report]:
        (network,) = self.networks
        return hardest_triplet_of(network, *network(batch), self.margin).mean(), {}
