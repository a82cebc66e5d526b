"""What the co-teaching methods share: two networks, each of which divides the training pairs for
the other.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from methods.base import Count, Method, Report, Scan, Share, Size


class CoTeaching(Method):
    """After a warm-up, each network's pass draws from the pairs that the other one believes to match.

    A method on top says how a network divides the pairs (`divide`) and what a step is; test similarities are
    averaged.

    Args:
        warmup_epochs: epochs on all pairs first.
        warmup_batch: factor by which batches of the warm-up exceed the sweep's batch size.
        keep_above: posterior of a match that a pair must exceed.
        n_networks: 2 as published; with 1 the network divides for itself.
    """

    in_turn: ClassVar[bool] = False
    """Whether a network divides the pairs right before the other's pass (and after its own); else all divide
    first.
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
        """What network `judge` believes of every training pair: the posterior of a match, [N]."""
        raise NotImplementedError

    @property
    def warming_up(self) -> bool:
        return self.epoch < self.warmup_epochs

    def judge(self, network: int) -> int:
        """The network whose division the pass of `network` trains on."""
        return (network + 1) % self.n_networks

    def start_epoch(self, epoch: int, network: int, scan: Scan) -> Report:
        self.epoch = epoch
        if self.warming_up:
            return {}
        first = network == self.passes()[0]
        for judge in [self.judge(network)] if self.in_turn else range(self.n_networks) if first else []:
            self.posterior[judge] = self.divide(judge, scan).to(self.posterior)
        self.divided.fill_(True)
        return {"kept": float(self.kept(network).float().mean())}

    def kept(self, network: int) -> Tensor:
        """Whether a pair is believed to match, for the pass of `network`: bool [N]."""
        return self.posterior[self.judge(network)] > self.keep_above

    def selected(self, network: int) -> Tensor | None:
        return None if self.warming_up else self.kept(network).nonzero().flatten()

    def batch_scale(self, epoch: int) -> int:
        return self.warmup_batch if epoch < self.warmup_epochs else 1

    @classmethod
    def largest_batch(cls, batch_size: int, hyper: Any) -> int:
        return batch_size * (hyper["warmup_batch"] if hyper["warmup_epochs"] else 1)

    def confidence(self) -> Tensor | None:
        return self.posterior.mean(0) if self.divided else None
