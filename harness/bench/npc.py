"""What a step of NPC costs on whole towers, against a step of plain InfoNCE, in turn in one run.

By count of forward passes (a backward pass is two): InfoNCE 3, `released` 7, `paper` 13.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from rich.table import Table

from harness.bench.methods import interleaved, late_batches
from harness.config.sweep_file import parse_sweep
from harness.data import load_dataset
from harness.lib.console import console
from harness.training.accelerator import make_accelerator
from harness.training.run_trial import build_trainer
from harness.training.trainer import Trainer
from methods.npc import NPC
from methods.seeding import torch_generator

VERSIONS: dict[str, dict[str, Any]] = {
    "clip": {"method": "clip"},
    "npc, released": {"method": "npc", "npc.variant": "released"},
    "npc, paper": {"method": "npc", "npc.variant": "paper"},
}


def bench_npc(*, model: str, batch_size: int, steps: int) -> None:
    """Print the median time of a step and its ratio to a step of `clip`.

    Args:
        model: an open_clip name; its weights are random.
        batch_size: pairs in a batch; the bank adds two distinct entries for each.
        steps: measured steps of each.
    """
    trainers = {name: _trainer(version, model, batch_size) for name, version in VERSIONS.items()}
    streams = {name: late_batches(trainer) for name, trainer in trainers.items()}
    seconds = interleaved(trainers, streams, steps)
    base = statistics.median(seconds["clip"])
    table = Table("", "s a step", "ratio to clip", title=f"{model}, batch {batch_size}")
    for name, values in seconds.items():
        median = statistics.median(values)
        table.add_row(name, f"{median:.2f}", f"{median / base:.2f}")
    console.print(table)


def _trainer(version: dict[str, Any], model: str, batch_size: int) -> Trainer:
    backbone = {"model": model, "pretrained": "none", "locked": False, "head": None, "pixel_cache": False}
    fixed = {"backbone": backbone, "batch_size": batch_size, "lr": 1e-5, "seed": 0}
    fixed |= {"dataset": "emoji", "noise_ratio": 0.4}
    grid = {key: [value] for key, value in version.items()}
    trial = parse_sweep({"name": "bench", "grid": grid, "fixed": fixed}).trials[0]
    data = load_dataset("emoji")
    trainer = build_trainer(trial, data, trial.noise_index(data), make_accelerator("auto"))
    if isinstance(trainer.method, NPC):
        _fill_bank(trainer.method)
    trainer.method.train()
    return trainer


def _fill_bank(method: NPC) -> None:
    """Entries that are distinct, as for pairs of a large data set."""
    count, generator = len(method.pairs), torch_generator(0, "bench bank")
    method.bank = torch.stack([torch.randperm(count, generator=generator) for _ in range(2)])
    method.entries.copy_(method.bank)
    method.has_bank.fill_(True)
