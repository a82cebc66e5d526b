"""InfoNCE weighted by the posterior that a pair's loss is small: a baseline for sample weighting."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from methods.base import Batch, Count, Method, Report, Scan, Size
from methods.losses import pair_losses, weighted_mean
from methods.mixtures import low_loss_posterior
from methods.seeding import seed_of


class SmallLoss(Method):
    """Weights from a Gaussian mixture over the losses of all training pairs, fitted before each epoch.

    Networks fit matched pairs first (Arpit et al., ICML 2017), so a small loss indicates a matched pair. The
    weight of a pair is its posterior of the component with the smaller mean.

    Source: the mixture of DivideMix (Li et al., ICLR 2020, section 3.1), here with one network. Ours: weights
    are divided by their mean over the batch, so that the step size does not fall with the noise ratio.

    Args:
        warmup_epochs: number of first epochs with plain InfoNCE (default 2: ours).
        n_networks: number of networks, each with a mixture over its own losses; their similarities are
            averaged at test.
        common: the arguments of `Method`.
    """

    paper = "baseline (mixture of DivideMix, ICLR 2020)"
    family = "weighting"
    id_neutral_defaults: ClassVar = {"n_networks": 1}

    weight: Tensor
    fitted: Tensor

    def __init__(self, *, warmup_epochs: Count = 2, n_networks: Size = 1, **common: Any) -> None:
        super().__init__(n_networks=n_networks, **common)
        self.warmup_epochs = warmup_epochs
        self.register_buffer("weight", torch.ones(n_networks, len(self.pairs)))
        self.register_buffer("fitted", torch.tensor(False))

    def start_epoch(self, epoch: int, network: int, scan: Scan) -> Report:
        """After the warm-up: compute all losses [N], fit the mixture and set the network's weights [N]."""
        if epoch < self.warmup_epochs:
            return {}
        net = self.networks[network]
        losses = scan(
            lambda images, texts: {"loss": pair_losses(net.logits(images, texts))}, network=network
        )["loss"]
        seed = seed_of(self.seed, "mixture", epoch, network)
        posterior = low_loss_posterior(losses.numpy(), seed=seed)
        self.weight[network] = torch.from_numpy(posterior).to(self.weight)
        self.fitted.fill_(True)
        return {"mean_weight": float(self.weight[network].mean())}

    def loss(self, batch: Batch) -> tuple[Tensor, Report]:
        """The weighted mean of `pair_losses` over the batch."""
        network = self.networks[batch.network]
        losses = pair_losses(network.logits(*network(batch)))
        return weighted_mean(losses, self.weight[batch.network, batch.index]), {}

    def confidence(self) -> Tensor | None:
        """The mean weight over the networks, [N] in [0, 1]; None during the warm-up."""
        return self.weight.mean(0) if self.fitted else None

    def training_weight(self, network: int) -> Tensor | None:
        """The network's weights."""
        return self.weight[network]
