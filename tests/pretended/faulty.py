"""Methods with faults that only a device shows."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.base import Batch, Report
from methods.clip import Clip


class Mixes(Clip):
    """Weights that are made on the CPU meet losses on the device."""

    def loss(self, batch: Batch) -> tuple[Tensor, Report]:
        loss, report = super().loss(batch)
        return (loss * torch.ones(batch.total)).mean(), report


class Reads(Clip):
    """The loss is read in each step, and its gradient in the backward pass."""

    def loss(self, batch: Batch) -> tuple[Tensor, Report]:
        loss, report = super().loss(batch)
        loss.register_hook(read)
        return loss, {**report, "read": loss.item()}


def read(gradient: Tensor) -> None:
    gradient.item()
