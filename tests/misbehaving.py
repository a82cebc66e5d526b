"""Methods that fail in every way a method can, until a file says that they are mended."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from methods.clip import Clip


def mended() -> bool:
    return Path(os.environ["HARNESS_CACHE"], "mended").exists()


class Raises(Clip):
    def loss(self, batch):
        if not mended():
            raise RuntimeError("no such luck [/tmp/a]")
        return super().loss(batch)


class Diverges(Clip):
    def loss(self, batch):
        loss, report = super().loss(batch)
        return (loss if mended() else loss * torch.nan), report


class OutOfMemory(Clip):
    def loss(self, batch):
        if not mended():
            torch.empty(1 << 50)
        return super().loss(batch)


class Dies(Clip):
    def start_epoch(self, epoch, network, scan):
        if epoch == 1 and not mended():
            os._exit(9)
        return super().start_epoch(epoch, network, scan)
