"""CLIP fine-tuning: symmetric InfoNCE with a learned temperature, the baseline of the field."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from methods.base import Batch, Method, Report, Size
from methods.losses import pair_losses


class Clip(Method):
    """Cross-entropy over the batch in both directions, with equal weight for every pair.

    Source: Radford et al., ICML 2021, section 2.3. With `n_networks: 2`, networks are trained independently
    and their similarities averaged at test: the baseline of methods that have two.

    Args:
        n_networks: number of networks.
        common: the arguments of `Method`.
    """

    paper = "CLIP (ICML 2021)"
    family = "loss"
    published: ClassVar[tuple[str, ...]] = ("CLIP", "CLIP fine-tuned", "CLIP ViT-B/32")

    id_neutral_defaults: ClassVar = {"n_networks": 1}

    def __init__(self, *, n_networks: Size = 1, **common: Any) -> None:
        super().__init__(n_networks=n_networks, **common)

    def loss(self, batch: Batch) -> tuple[Tensor, Report]:
        """The mean over the batch of `pair_losses`."""
        network = self.networks[batch.network]
        return pair_losses(network.logits(*network(batch))).mean(), {}
