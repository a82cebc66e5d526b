"""VSE++ (BMVC 2018): hardest-negative triplet loss, which methods on region features build on."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from methods.base import Batch, Count, Method, Positive, Report, Scan
from methods.losses import hardest_triplet_of, mean_triplet


class Triplet(Method):
    """Triplet loss with the hardest negative of the batch in both directions.

    Source: Faghri et al., BMVC 2018, eq. (6). Ours: the mean over the batch, where the released code of the
    field takes the sum.

    Args:
        margin: margin of the loss, in units of the similarity (paper, section 4.1: 0.2).
        warmup_epochs: number of first epochs with the mean over all negatives (VSE++: 0). From random weights
            the hardest negatives alone can end in equal scores for all pairs; VSE-infinity's released code
            takes one such epoch.
        common: the arguments of `Method`.
    """

    paper = "VSE++ (BMVC 2018)"
    family = "loss"
    published = ("SGR", "SAF")
    id_neutral_defaults: ClassVar = {"warmup_epochs": 0}

    def __init__(self, *, margin: Positive = 0.2, warmup_epochs: Count = 0, **common: Any) -> None:
        super().__init__(**common)
        self.margin = margin
        self.warmup_epochs = warmup_epochs
        self.warming_up = False

    def start_epoch(self, epoch: int, network: int, scan: Scan) -> Report:
        """Choose the loss of the epoch: mean over negatives in the warm-up, hardest negative after it."""
        self.warming_up = epoch < self.warmup_epochs
        return {}

    def loss(self, batch: Batch) -> tuple[Tensor, Report]:
        """The mean over the batch of `mean_triplet` in the warm-up, and of `hardest_triplet` after it."""
        network = self.networks[batch.network]
        images, texts = network(batch)
        if self.warming_up:
            return mean_triplet(network.similarity(images, texts), self.margin).mean(), {}
        return hardest_triplet_of(network, images, texts, self.margin).mean(), {}
