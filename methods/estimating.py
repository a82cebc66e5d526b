"""Methods that judge all pairs once, by the network as it comes or after a warm-up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from methods.base import Batch, Method, Report, Scan, Size
from methods.losses import pair_losses

Estimator = Literal["pretrained", "warmup"]
"""What judges the pairs: the network as it comes, or after a warm-up."""


class Estimating(Method):
    """Plain InfoNCE until the pairs are judged, in one pass over them. A subclass defines `estimate`.

    Args:
        estimator: `pretrained`, the network before training, which must have been trained to compare images
            and texts; or `warmup`, the network after `warmup_epochs` (ours).
        warmup_epochs: number of first epochs with plain InfoNCE, where the estimator is `warmup`.
        common: the arguments of `Method`.
    """

    judged: Tensor

    def __init__(
        self, *, estimator: Estimator = "pretrained", warmup_epochs: Size = 2, **common: Any
    ) -> None:
        super().__init__(**common)
        self.due = warmup_epochs if estimator == "warmup" else 0
        self.warming_up = True
        self.register_buffer("judged", torch.tensor(False))

    @classmethod
    def needs_alignment(cls, hyper: Mapping[str, Any]) -> bool:
        """Whether the estimator is the network before training."""
        return bool(hyper["estimator"] == "pretrained")

    def estimate(self, scan: Scan) -> Report:
        """Judge all pairs, and keep in buffers what comes of it."""
        raise NotImplementedError

    def start_epoch(self, epoch: int, network: int, scan: Scan) -> Report:
        """Judge the pairs when it is due."""
        self.warming_up = epoch < self.due
        if epoch != self.due:
            return {}
        report = self.estimate(scan)
        self.judged.fill_(True)
        return report

    def loss(self, batch: Batch) -> tuple[Tensor, Report]:
        """The mean over the batch of `pair_losses`."""
        network = self.networks[batch.network]
        return pair_losses(network.logits(*network(batch))).mean(), {}
