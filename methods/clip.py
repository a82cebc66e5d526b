"""Symmetric InfoNCE with a learned temperature: what everybody fine-tunes with, and the baseline of the
field.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from methods.base import Batch, Method, Report
from methods.losses import pair_losses


class Clip(Method):
    """Radford et al. 2021, section 2.3: cross-entropy over the batch in both directions, equal weight to
    every pair.
    """

    paper = "CLIP (ICML 2021)"
    published: ClassVar[tuple[str, ...]] = ("CLIP", "CLIP fine-tuned", "CLIP ViT-B/32")

    def loss(self, batch: Batch) -> tuple[Tensor, Report]:
        (network,) = self.networks
        return pair_losses(network.logits(*network(batch))).mean(), {}
