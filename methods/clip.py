"""CLIP fine-tuning: symmetric InfoNCE with a learned temperature, the baseline of the field."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from methods.base import Batch, Method, Report
from methods.losses import pair_losses


class Clip(Method):
    """Cross-entropy over the batch in both directions, with equal weight for every pair.

    Source: Radford et al., ICML 2021, section 2.3. It has no hyper-parameters.
    """

    paper = "CLIP (ICML 2021)"
    published: ClassVar[tuple[str, ...]] = ("CLIP", "CLIP fine-tuned", "CLIP ViT-B/32")

    def loss(self, batch: Batch) -> tuple[Tensor, Report]:
        """The mean over the batch of `pair_losses`."""
        (network,) = self.networks
        return pair_losses(network.logits(*network(batch))).mean(), {}
