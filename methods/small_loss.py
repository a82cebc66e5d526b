"""InfoNCE weighted by how likely a pair's loss is small: the shortest use of the memorisation effect."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from methods.base import Batch, Count, Method, Report, Scan
from methods.losses import pair_losses
from methods.mixtures import low_loss_posterior
from methods.seeding import seed_of


class SmallLoss(Method):
    """Networks fit matched pairs first (Arpit et al. 2017), so small losses mark them.

    After `warmup_epochs` of plain InfoNCE, a two-component Gaussian mixture is fitted to the losses of
    all pairs before each epoch (as in DivideMix, ICLR 2020, section 3.1, with one network); the
    posterior of the low-loss component weighs each pair. Weights are normalised to mean 1 over the
    batch (ours), so that the size of a step does not fall with the noise ratio.
    """

    paper = "baseline (mixture of DivideMix, ICLR 2020)"

    weight: Tensor
    fitted: Tensor

    def __init__(self, *, warmup_epochs: Count = 2, **common: Any) -> None:
        super().__init__(**common)
        self.warmup_epochs = warmup_epochs
        self.register_buffer("weight", torch.ones(len(self.pairs)))
        self.register_buffer("fitted", torch.tensor(False))

    def start_epoch(self, epoch: int, network: int, scan: Scan) -> Report:
        if epoch < self.warmup_epochs:
            return {}
        losses = scan(lambda images, texts: {"loss": pair_losses(self.networks[0].logits(images, texts))})[
            "loss"
        ]
        posterior = low_loss_posterior(losses.numpy(), seed=seed_of(self.seed, "mixture", epoch))
        self.weight.copy_(torch.from_numpy(posterior))
        self.fitted.fill_(True)
        return {"mean_weight": float(self.weight.mean())}

    def loss(self, batch: Batch) -> tuple[Tensor, Report]:
        (network,) = self.networks
        losses = pair_losses(network.logits(*network(batch)))
        weight = self.weight[batch.index].to(losses.dtype)
        return (weight * losses).sum() / weight.sum().clamp(min=1e-6), {}

    def confidence(self) -> Tensor | None:
        return self.weight if self.fitted else None
