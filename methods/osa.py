"""OSA (arXiv 2410.01944): one look at all pairs by an estimator gives the weights of InfoNCE."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from methods.base import Batch, Report, Scan
from methods.estimating import Estimating
from methods.losses import off_diagonal_mean, pair_losses


class OSA(Estimating):
    """One-step anti-noise: weights from how far a pair's similarity is above that of a random pair.

    Embeddings lie in a cone, so that random pairs have a similarity b above 0. A pair below b counts nothing;
    above it, the weight grows with the distance and falls again for pairs that are sure.

    Source: arXiv 2410.01944; released code (main_clip.py:36-53, 111-168), which takes b from one batch of
    random images and words. Ours: b is the mean similarity of mismatched pairs in the estimator's pass, and
    the estimator is asked once for each pair, as its answer does not change. After a warm-up (ours) the
    weights are divided by their mean over all pairs: they are 0.15 at most, and Adam, which has seen
    gradients of weight 1, would go on at a fraction of its learning rate. (As released, a weight depends on
    its batch, and the mean is that over batches of neighbouring pairs.)

    Args:
        variant: `paper` -(s - b)^2 (s - b - 1), or `released`: x^2 (1 - x^2) with x the distance as a part of
            the batch's largest, by which the best pair of every batch has the weight 0 (main_clip.py:36-41).
        common: the arguments of `Estimating` and `Method`.
    """

    paper = "OSA (arXiv 2410.01944)"
    family = "weighting"
    published = ("CLIP+OSA",)

    above: Tensor
    weight: Tensor
    scale: Tensor

    def __init__(self, *, variant: Literal["paper", "released"] = "paper", **common: Any) -> None:
        super().__init__(**common)
        self.variant = variant
        self.register_buffer("above", torch.zeros(len(self.pairs)))
        self.register_buffer("weight", torch.ones(len(self.pairs)))
        self.register_buffer("scale", torch.ones(()))

    def estimate(self, scan: Scan) -> Report:
        """How far each pair's similarity is above that of random pairs."""
        net = self.networks[0]

        def look(images: Tensor, texts: Tensor) -> dict[str, Tensor]:
            similarity = net.similarity(images, texts)
            return {"own": similarity.diagonal(), "others": off_diagonal_mean(similarity)}

        found = scan(look)
        threshold = found["others"].mean()
        self.above = (found["own"] - threshold).clamp(min=0).to(self.above)
        # Of batches, since the weights as released depend on their best pair.
        self.weight = torch.cat([self._weights(part) for part in self.above.split(self.batch_size)])
        if self.due:
            self.scale = 1 / self.weight.mean().clamp(min=torch.finfo(self.weight.dtype).tiny)
        return {"threshold": float(threshold), "above": float((self.above > 0).float().mean())}

    def loss(self, batch: Batch) -> tuple[Tensor, Report]:
        """The mean over the batch of `pair_losses` times the weights and their common scale."""
        network = self.networks[batch.network]
        losses = pair_losses(network.logits(*network(batch)))
        if not self.warming_up:
            self.weight[batch.index] = self._weights(self.above[batch.index])
        return self.scale * (self.weight[batch.index] * losses).mean(), {}

    def _weights(self, above: Tensor) -> Tensor:
        return paper_weights(above) if self.variant == "paper" else released_weights(above)

    def confidence(self) -> Tensor | None:
        """The distance above random pairs, [N] in [0, 1]; None during the warm-up."""
        return self.above.clamp(max=1) if self.judged else None

    def training_weight(self, network: int) -> Tensor | None:
        """The weight of each pair in its last step."""
        return self.weight


def paper_weights(above: Tensor) -> Tensor:
    """x^2 (1 - x): [B] -> [B], largest at 2/3.

    Args:
        above: x, distance above random pairs, at least 0.
    """
    return above.square() * (1 - above).clamp(min=0)


def released_weights(above: Tensor) -> Tensor:
    """x^2 (1 - x^2) with x as a part of the largest; 0 for all where none is above 0: [B] -> [B].

    Args:
        above: distance above random pairs, at least 0.
    """
    share = (above / above.amax().clamp(min=torch.finfo(above.dtype).tiny)).square()
    return share * (1 - share)
