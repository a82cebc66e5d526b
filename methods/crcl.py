"""CRCL (NeurIPS 2023): an active and a complementary loss, balanced by labels that refine themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Batch, Count, Method, Positive, Report, Scan, Share, Size
from methods.losses import match_probability, pair_losses


class CRCL(Method):
    """Cross-modal robust complementary learning.

    Every pair has a label y in [0, 1], 1 at the start. After the warm-up y is an average of its past and of
    the probability p that the batch gives to the pair; a label below `least_label` becomes 0. The loss is
    y times cross-entropy (active), and a complementary term that pushes negatives away, of bounded force
    where y is small.

    With restarts, network and optimizer begin anew after each round, and the labels stay: training early on
    and forgetting all but the labels. Within the same number of steps the last network has fewer of them.

    Source: Qin et al., NeurIPS 2023; released code (CRCL_NeurIPS23/model/CRCL.py:57-117, train.py:223-266).
    The equations of the paper could not be compared. Ours: softmax without the 1e-10 that the released code
    adds to denominators. The released code starts each round with a learning
    rate of its own; here the schedule of the sweep goes on.

    Args:
        temperature: tau, in units of the similarity (released code: 0.05).
        warmup_epochs: first epochs of each round in which labels stay as they are (released code: 2).
        momentum: alpha, the weight of a label's past (released code: 0.8).
        least_label: labels below it become 0 (released code: 0.1).
        complementary: weight of the complementary term (released code: 5).
        restarts: number of restarts (released code: 3; 0: ours, to train one network with all steps). Only
            networks of the last round are selected on dev.
        round_epochs: epochs of each round but the last, which has the rest (scripts of the released code: 7,
            with the warm-up); the trial needs more than `restarts` times as many.
        common: the arguments of `Method`.
    """

    paper = "CRCL (NeurIPS 2023)"
    family = "label refinement"
    published = ("CRCL",)

    label: Tensor

    def __init__(
        self,
        *,
        temperature: Positive = 0.05,
        warmup_epochs: Count = 2,
        momentum: Share = 0.8,
        least_label: Share = 0.1,
        complementary: Positive = 5.0,
        restarts: Count = 0,
        round_epochs: Size = 7,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.temperature, self.complementary = temperature, complementary
        self.warmup_epochs, self.momentum, self.least_label = warmup_epochs, momentum, least_label
        self.restarts, self.round_epochs = restarts, round_epochs
        self.round, self.epoch = 0, 0
        self.register_buffer("label", torch.ones(len(self.pairs)))

    def replacement(self, epoch: int, network: int) -> nn.Module | None:
        """A new network at the start of each round but the first."""
        number, within = self._place(epoch)
        return self.make_backbone(number) if number and not within else None

    def start_epoch(self, epoch: int, network: int, scan: Scan) -> Report:
        """Find the epoch's place in its round."""
        self.round, self.epoch = self._place(epoch)
        return {"mean_label": float(self.label.mean())}

    def _place(self, epoch: int) -> tuple[int, int]:
        """The round of an epoch, and its number within the round."""
        number = min(epoch // self.round_epochs, self.restarts)
        return number, epoch - number * self.round_epochs

    def loss(self, batch: Batch) -> tuple[Tensor, Report]:
        """The mean over the batch of the active and the complementary loss."""
        network = self.networks[batch.network]
        logits = network.similarity(*network(batch)) / self.temperature
        label, stored = self.refined(self.label[batch.index], match_probability(logits))
        self.label[batch.index] = stored.to(self.label)
        active = 2 * label * pair_losses(logits)
        return (active + self.complementary * complementary(logits, label)).mean(), {}

    def refined(self, label: Tensor, probability: Tensor) -> tuple[Tensor, Tensor]:
        """Labels that a step trains with, and those that are stored: [B], [B] -> [B], [B].

        The last warm-up epoch of the first round stores the probabilities: labels begin with them.
        """
        if self.epoch >= self.warmup_epochs:
            label = self.momentum * label + (1 - self.momentum) * probability.to(label)
        label = label.where(label >= self.least_label, 0)
        first = self.round == 0 and self.epoch == self.warmup_epochs - 1
        return label, probability if first else label

    def confidence(self) -> Tensor | None:
        """The labels, [N] in [0, 1]."""
        return self.label

    def training_weight(self, network: int) -> Tensor | None:
        """The labels; in the first warm-up all pairs are alike."""
        return None if self.round == 0 and self.epoch < self.warmup_epochs else self.label


def complementary(logits: Tensor, label: Tensor) -> Tensor:
    """Sum of tan p over negatives, divided by the sum over all to the power of 1 - y, both directions added.

    At y = 1 it is the sum, at y = 0 a share of at most 1.

    Args:
        logits: [B, B], similarities divided by the temperature.
        label: y, [B].
    """
    losses = torch.zeros_like(label)
    for p in (logits.softmax(1), logits.T.softmax(1)):
        tangents = p.tan()
        everything = tangents.sum(1)
        losses = losses + (everything - tangents.diagonal()) / everything ** (1 - label)
    return losses
