"""CyCLIP (NeurIPS 2022): InfoNCE whose similarities are consistent across and within modalities."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from methods.base import Batch, NonNegative, Report
from methods.losses import pair_losses
from methods.precision import full_precision
from methods.predicting import Predicting


class CyCLIP(Predicting):
    """InfoNCE and two consistency terms: image i is as similar to caption j as image j to caption i,
    and images i and j are as similar as their captions.

    Source: Goel et al., NeurIPS 2022, section 3; the two terms are means over B x B entries, times B. On
    region features the similarity within a modality is that of global vectors (ours).

    Args:
        cross: weight of the term across modalities (0.25; not confirmed from the paper's text).
        within: weight of the term within modalities (0.25; not confirmed from the paper's text).
        common: the arguments of `Method`.
    """

    paper = "CyCLIP (NeurIPS 2022)"

    def __init__(self, *, cross: NonNegative = 0.25, within: NonNegative = 0.25, **common: Any) -> None:
        super().__init__(**common)
        self.cross, self.within = cross, within

    def loss(self, batch: Batch) -> tuple[Tensor, Report]:
        """The mean of `pair_losses`, and the two weighted terms."""
        network = self.networks[batch.network]
        images, texts = network(batch)
        similarity = network.similarity(images, texts)
        logits = network.scaled(similarity)
        self.remember(batch, logits)
        cross = asymmetry(similarity)
        within = disagreement(network.pooled(images), network.pooled(texts))
        return pair_losses(logits).mean() + self.cross * cross + self.within * within, {}


@full_precision
def asymmetry(similarity: Tensor) -> Tensor:
    """B times the mean of (s_ij - s_ji)^2: [B, B] -> scalar."""
    return len(similarity) * (similarity - similarity.T).square().mean()


@full_precision
def disagreement(images: Tensor, texts: Tensor) -> Tensor:
    """B times the mean of squared differences of similarities within each modality: unit [B, D] -> scalar."""
    return len(images) * (images @ images.T - texts @ texts.T).square().mean()
