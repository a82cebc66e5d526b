"""Methods that fail in every way a method can, until a file says that they are mended; interruptions."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from harness.data.base import DataSet
from harness.lib import watchdog
from methods.clip import Clip
from tests import small


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


class Paced(Clip):
    """Leaves a file with its process for each epoch (`SEED.EPOCH.RANK`), and takes its time (`pause` says how
    long); where a file `hang` is, it hangs once; where a file `late` is, an hour passes at once.
    """

    def __init__(self, *, folder: str, **common):
        super().__init__(**common)
        self.folder, self.seed = Path(folder), common["seed"]

    def start_epoch(self, epoch, network, scan):
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        aside = self.folder / f"aside.{os.getpid()}"
        aside.write_text(str(os.getpid()))
        aside.rename(self.folder / f"{self.seed}.{epoch}.{rank}")
        time.sleep(float((self.folder / "pause").read_text()))
        if epoch == 1 and (self.folder / "hang").exists():
            (self.folder / "hang").unlink()
            time.sleep(600)
        if epoch == 1 and (self.folder / "late").exists():
            (self.folder / "late").unlink()
            watchdog.time = SimpleNamespace(monotonic=lambda: time.monotonic() + 3600, time=time.time)
        return super().start_epoch(epoch, network, scan)


class Interrupts(Clip):
    """Sends its process the signal that a file `interrupt` names, as a user does who stops it."""

    def loss(self, batch):
        file = Path(os.environ["HARNESS_CACHE"], "interrupt")
        if file.exists():
            os.kill(os.getpid(), signal.Signals[file.read_text()])
        return super().loss(batch)


class _Interrupting(list):
    def __getitem__(self, index):
        os.kill(os.getpid(), signal.Signals[self.sign])
        return super().__getitem__(index)


def interrupted(*, sign: str) -> DataSet:
    """A data set: its first picture that is read sends the process a signal."""
    data = small.load()
    images = _Interrupting(data["train"].images)
    images.sign = sign
    splits = {**data.splits, "train": dataclasses.replace(data["train"], images=images)}
    return dataclasses.replace(data, splits=splits, fingerprint=f"{sign}-{data.fingerprint[:8]}")
