"""Co-teaching: two networks, each of which selects the training pairs of the other.

`CoTeaching` divides the pairs, and `TwoPart` trains on both parts. They are the base classes of the files
that import them.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from methods.base import Count, Method, Pairs, Positive, Report, Scan, Share, Size
from methods.losses import mean_triplet
from methods.mixtures import low_loss_beta_posterior


class CoTeaching(Method):
    """After a warm-up, each network trains on the pairs that the other network classifies as matched.

    A subclass defines how a network divides the pairs (`divide`) and the training step. Test similarities of
    the networks are averaged.

    Source: the co-divide of DivideMix (Li et al., ICLR 2020, section 3.1), as NCR and MSCN use it.

    Args:
        warmup_epochs: number of first epochs on all pairs (NCR, released code: 5 on Flickr30K, 10 on MS-COCO
            and CC152K; MSCN: 5).
        warmup_batch: factor on the sweep's batch size in the warm-up (NCR: 1; MSCN, released code: 2).
        keep_above: threshold that the posterior of a match must exceed (released code of NCR and MSCN: 0.5).
        n_networks: number of networks (papers: 2); with 1 the network divides the pairs for itself.
        common: the arguments of `Method`.
    """

    in_turn: ClassVar[bool] = False
    """Whether a network divides the pairs right before the other network's pass, so after its own pass if
    that comes first. Otherwise all networks divide before the first pass.
    """

    posterior: Tensor
    divided: Tensor

    def __init__(
        self,
        *,
        warmup_epochs: Count = 5,
        warmup_batch: Size = 1,
        keep_above: Share = 0.5,
        n_networks: Size = 2,
        **common: Any,
    ) -> None:
        super().__init__(n_networks=n_networks, **common)
        self.warmup_epochs = warmup_epochs
        self.warmup_batch = warmup_batch
        self.keep_above = keep_above
        self.register_buffer("posterior", torch.ones(n_networks, len(self.pairs)))
        self.register_buffer("divided", torch.tensor(False))
        self.epoch = 0

    def divide(self, judge: int, scan: Scan) -> Tensor:
        """Posterior of a match for every training pair according to network `judge`, [N] in [0, 1]."""
        raise NotImplementedError

    @property
    def warming_up(self) -> bool:
        """Whether the current epoch belongs to the warm-up."""
        return self.epoch < self.warmup_epochs

    def judge(self, network: int) -> int:
        """The network that selects the training pairs of `network`."""
        return (network + 1) % self.n_networks

    def start_epoch(self, epoch: int, network: int, scan: Scan) -> Report:
        """After the warm-up, divide the pairs with the networks that are due before this pass."""
        self.epoch = epoch
        if self.warming_up:
            return {}
        for judge in self._judges_before(network):
            self.posterior[judge] = self.divide(judge, scan).to(self.posterior)
        self.divided.fill_(True)
        return {"kept": float(self.kept(network).float().mean())}

    def _judges_before(self, network: int) -> list[int]:
        """The networks that divide the pairs right before the pass of `network`."""
        if self.in_turn:
            return [self.judge(network)]
        return list(range(self.n_networks)) if network == self.passes()[0] else []

    def kept(self, network: int) -> Tensor:
        """Whether each training pair is classified as matched for the pass of `network`: bool [N]."""
        return self.posterior[self.judge(network)] > self.keep_above

    def selected(self, network: int) -> Tensor | None:
        """Indices of the pairs classified as matched; all pairs during the warm-up."""
        return None if self.warming_up else self.kept(network).nonzero().flatten()

    def batch_scale(self, epoch: int) -> int:
        """`warmup_batch` during the warm-up, 1 after it."""
        return self.warmup_batch if epoch < self.warmup_epochs else 1

    @classmethod
    def largest_batch(cls, batch_size: int, hyper: Any) -> int:
        """Number of pairs in a warm-up batch, or `batch_size` without a warm-up."""
        return batch_size * (hyper["warmup_batch"] if hyper["warmup_epochs"] else 1)

    def confidence(self) -> Tensor | None:
        """The mean posterior over the networks, [N] in [0, 1]; None during the warm-up."""
        return self.posterior.mean(0) if self.divided else None


def clean_part(posterior: Tensor, keep_above: float) -> Tensor:
    """Whether each pair is in the clean part by one network's posterior: [N] -> bool [N].

    If all pairs are above the threshold, the hundredth with the lowest posterior is not (released code of
    NCR, co_train.py:452-460, and of CREAM; for L2RM it is ours).
    """
    clean = posterior > keep_above
    return posterior > posterior.sort().values[len(posterior) // 100] if clean.all() else clean


class TwoPart(CoTeaching):
    """Co-teaching that trains on the noisy part too, with labels of its own, from some epoch on.

    A subclass defines the training step.

    Source: NCR, whose released code BiCro and others have grown from.

    Args:
        margin: alpha of the triplet losses, in units of the similarity (NCR: 0.2).
        noisy_after: number of epochs after the warm-up without the noisy part (released code: half of all;
            20 of 40 on Flickr30K).
        common: the arguments of `CoTeaching` and `Method`.
    """

    def __init__(self, *, margin: Positive = 0.2, noisy_after: Count = 20, **common: Any) -> None:
        super().__init__(**common)
        self.margin = margin
        self.noisy_after = noisy_after

    def divide(self, judge: int, scan: Scan) -> Tensor:
        """Posterior of a low triplet loss under network `judge`, [N], by a Beta mixture (BiCro, L2RM)."""
        return torch.from_numpy(low_loss_beta_posterior(self.triplet_losses(judge, scan)))

    def triplet_losses(self, judge: int, scan: Scan) -> np.ndarray:
        """`mean_triplet` of every training pair under network `judge`: [N]."""
        net = self.networks[judge]
        losses: np.ndarray = scan(
            lambda images, texts: {"loss": mean_triplet(net.similarity(images, texts), self.margin)},
            network=judge,
        )["loss"].numpy()
        return losses

    def kept(self, network: int) -> Tensor:
        """Whether each training pair is in the clean part for the pass of `network`: bool [N]."""
        return clean_part(self.posterior[self.judge(network)], self.keep_above)

    def auxiliary_pools(self, network: int) -> dict[str, Tensor | Pairs]:
        """The noisy part, as the pool `noisy`, in the epochs that train on it."""
        if self.epoch < self.warmup_epochs + self.noisy_after:
            return {}
        return {"noisy": (~self.kept(network)).nonzero().flatten()}
