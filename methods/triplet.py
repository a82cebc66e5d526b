"""Hardest-negative triplet loss (VSE++, BMVC 2018), the loss that the region-feature methods build on."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from methods.base import Batch, Count, Method, Positive, Report, Scan
from methods.losses import hardest_triplet_of, mean_triplet


class Triplet(Method):
    """VSE++ eq. (6): the hardest negative of the batch in both directions, margin 0.2 (paper, section 4.1).

    Args:
        margin: of the triplet loss.
        warmup_epochs: epochs of the mean over all negatives first. From random weights the hardest negatives
            alone can end in equal scores for all pairs (VSE-infinity's released code takes one such epoch;
            VSE++ none).
    """

    paper = "VSE++ (BMVC 2018)"
    published = ("SGR", "SAF")
    id_neutral_defaults: ClassVar = {"warmup_epochs": 0}

    def __init__(self, *, margin: Positive = 0.2, warmup_epochs: Count = 0, **common: Any) -> None:
        super().__init__(**common)
        self.margin = margin
        self.warmup_epochs = warmup_epochs
        self.warming_up = False

    def start_epoch(self, epoch: int, network: int, scan: Scan) -> Report:
        self.warming_up = epoch < self.warmup_epochs
        return {}

    def loss(self, batch: Batch) -> tuple[Tensor, Report]:
        (network,) = self.networks
        images, texts = network(batch)
        if self.warming_up:
            return mean_triplet(network.similarity(images, texts), self.margin).mean(), {}
        return hardest_triplet_of(network, images, texts, self.margin).mean(), {}
