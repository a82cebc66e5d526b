"""TAL, the loss of RDE (CVPR 2024): a smooth upper bound of the hardest-negative triplet loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from methods.base import Batch, Positive, Report
from methods.predicting import Predicting


class TAL(Predicting):
    """Triplet alignment loss: the log-sum-exp over all negatives stands in for the hardest one.

    Source: Qin et al., CVPR 2024; released code (model/objectives.py:67-80), with one positive for each
    image and caption. Ours: the mean over the batch, where the released code takes the sum. RDE's division of
    the pairs is not part of it.

    Args:
        temperature: tau, in units of the similarity; towards 0 the loss is that of `triplet` (released code:
            0.015).
        margin: m, in units of the similarity (released code: 0.1).
        common: the arguments of `Method`.
    """

    paper = "TAL, the loss of RDE (CVPR 2024)"

    def __init__(self, *, temperature: Positive = 0.015, margin: Positive = 0.1, **common: Any) -> None:
        super().__init__(**common)
        self.temperature, self.margin = temperature, margin

    def loss(self, batch: Batch) -> tuple[Tensor, Report]:
        """The mean over the batch of `alignment_losses`."""
        network = self.networks[batch.network]
        similarity = network.similarity(*network(batch))
        self.remember(batch, similarity / self.temperature)
        return alignment_losses(similarity, self.temperature, self.margin).mean(), {}


def alignment_losses(similarity: Tensor, temperature: float, margin: float) -> Tensor:
    """[m - s_kk + tau log sum_{j != k} e^(s_kj / tau)]_+, both directions added: [B, B] -> [B].

    Args:
        similarity: [B, B].
        temperature: tau.
        margin: m.
    """
    diagonal = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    negatives = (similarity / temperature).masked_fill(diagonal, -torch.inf)
    bound = margin - similarity.diagonal()
    by_image, by_text = ((bound + temperature * negatives.logsumexp(d)).clamp(min=0) for d in (1, 0))
    return by_image + by_text
