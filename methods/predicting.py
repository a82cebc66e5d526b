"""Methods that need nothing but a batch: their prediction of each pair is kept as it is made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from methods.base import Batch, Method, Positive, Report
from methods.losses import match_probability


class Predicting(Method):
    """Keeps what the network predicts of each pair in the step that trains on it, at no cost.

    A subclass calls `remember` in `loss`. The prediction is that of the last step on the pair, among the
    pairs of its batch and with dropout; 1 for a pair that no batch has had. The losses have no confidence of
    their own (ours). It costs no pass over the pairs, which a plain loss does not need, and is a little
    noisier than the confidence of methods that make one.

    Args:
        common: the arguments of `Method`.
    """

    family = "loss"

    predicted: Tensor

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        self.register_buffer("predicted", torch.ones(self.n_networks, len(self.pairs)))

    def remember(self, batch: Batch, logits: Tensor) -> None:
        """Keep the probability that each pair of the batch matches.

        Args:
            batch: the batch.
            logits: [B, B], similarities divided by the temperature.
        """
        self.predicted[batch.network, batch.index] = match_probability(logits).to(self.predicted)

    def confidence(self) -> Tensor | None:
        """The mean prediction over the networks, [N] in [0, 1]."""
        return self.predicted.mean(0)


class OnLogits(Predicting):
    """A loss of each pair from logits at a fixed temperature; a subclass defines `losses`.

    Args:
        temperature: in units of the similarity (released code of RCL and L2RM: 0.05).
        common: the arguments of `Method`.
    """

    def __init__(self, *, temperature: Positive = 0.05, **common: Any) -> None:
        super().__init__(**common)
        self.temperature = temperature

    def losses(self, logits: Tensor) -> Tensor:
        """The loss of each pair: [B, B] -> [B]."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> tuple[Tensor, Report]:
        """The mean over the batch of `losses`."""
        network = self.networks[batch.network]
        logits = network.similarity(*network(batch)) / self.temperature
        self.remember(batch, logits)
        return self.losses(logits).mean(), {}
