"""GSC (CVPR 2024): pairs are weighted by how alike the geometry around image and caption is."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.base import Batch, Method, Positive, Report, Scan, Share, Size
from methods.losses import match_probability, pair_losses
from methods.mixtures import low_loss_posterior
from methods.precision import full_precision
from methods.seeding import seed_of


class GSC(Method):
    """Geometrical structure consistency.

    In each step the similarities among the images of a batch and among its captions are compared, row by row
    (`compare_structure`). From what the steps of an epoch saw of a pair come two targets, moving averages
    over epochs: one of the posterior that its geometry is consistent, one of the probability that the batch
    gives to it. The smaller one is its weight.

    Source: Zhao et al., CVPR 2024 (arXiv 2405.16996), from the formulas: the released code has no licence.
    Ours: the similarity within a modality is the sigmoid of the cosine of `pooled` vectors on both backbones,
    where the released code runs its similarity network on image with image and caption with caption, at three
    times the cost.

    Args:
        temperature: of the cross-entropy, in units of the similarity (released code: 0.07).
        momentum: beta, the weight of the newest epoch in a target (released code: 0.7).
        structure: gamma, the weight of the structure loss (scripts of the released code: 0.01).
        n_networks: 1, or 2 (GSC+), where each network is weighted by the other's targets.
        common: the arguments of `Method`.
    """

    paper = "GSC (CVPR 2024)"
    family = "weighting"
    published = ("GSC",)

    target: Tensor
    consistency_target: Tensor
    prediction_target: Tensor
    consistency: Tensor
    prediction: Tensor

    def __init__(
        self,
        *,
        temperature: Positive = 0.07,
        momentum: Share = 0.7,
        structure: Share = 0.01,
        n_networks: Size = 1,
        **common: Any,
    ) -> None:
        super().__init__(n_networks=n_networks, **common)
        self.temperature, self.momentum, self.structure = temperature, momentum, structure
        for name in ("target", "consistency_target", "prediction_target", "consistency", "prediction"):
            self.register_buffer(name, torch.ones(n_networks, len(self.pairs)))

    def start_epoch(self, epoch: int, network: int, scan: Scan) -> Report:
        """Before the first pass of an epoch, update all targets from what the steps of the last one saw."""
        if epoch and network == self.passes()[0]:
            for number in range(self.n_networks):
                self._update_targets(epoch, number)
        return {"mean_target": float(self.target[network].mean())}

    def _update_targets(self, epoch: int, network: int) -> None:
        seed = seed_of(self.seed, "mixture", epoch, network)
        distance = -self.consistency[network].double().cpu().numpy()
        consistent = torch.from_numpy(low_loss_posterior(distance, seed=seed, max_iter=10))
        for target, newest in (
            (self.consistency_target[network], consistent.to(self.target)),
            (self.prediction_target[network], self.prediction[network]),
        ):
            target.lerp_(newest, self.momentum)
        self.target[network] = torch.minimum(
            self.consistency_target[network], self.prediction_target[network]
        )

    def loss(self, batch: Batch) -> tuple[Tensor, Report]:
        """The mean over the batch of the cross-entropy and the structure loss, both times the target."""
        network, other = self.networks[batch.network], (batch.network + 1) % self.n_networks
        images, texts = network(batch)
        logits = network.similarity(images, texts) / self.temperature
        target = self.target[other][batch.index]
        structure, consistency = compare_structure(network.pooled(images), network.pooled(texts), target)
        self.prediction[batch.network, batch.index] = match_probability(logits).to(self.prediction)
        self.consistency[batch.network, batch.index] = consistency.detach().to(self.consistency)
        return (target * (pair_losses(logits) + self.structure * structure)).mean(), {}

    def confidence(self) -> Tensor | None:
        """The mean target over the networks, [N] in [0, 1]."""
        return self.target.mean(0)

    def training_weight(self, network: int) -> Tensor | None:
        """The targets of the other network."""
        return self.target[(network + 1) % self.n_networks]


@full_precision
def compare_structure(images: Tensor, texts: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The structure loss of each pair, and how consistent its geometry is, in [-1, 1]: -> [B], [B].

    Row k of each matrix of similarities within a modality is the place of pair k among the others, whose
    columns count by their targets. The loss is the cross-entropy of finding the caption's row by the image's.

    Args:
        images: unit vectors [B, D].
        texts: unit vectors [B, D].
        target: [B].
    """
    by_image, by_text = (target * (x @ x.T).sigmoid() for x in (images, texts))
    places = torch.arange(len(target), device=target.device)
    loss = F.cross_entropy(by_image @ by_text.T, places, reduction="none")
    return loss, F.cosine_similarity(by_image, by_text)
