"""What a step of each registered method costs. Methods take turns, step by step, so that a machine whose
speed drifts slows all of them alike.
"""

from __future__ import annotations

import itertools
import statistics
import time

import torch
from rich.table import Table

from harness.config.sweep_file import parse_sweep
from harness.config.trial import method_class
from harness.data import load_dataset
from harness.lib.console import console
from harness.training.accelerator import make_accelerator
from harness.training.cost import synchronize
from harness.training.run_trial import build_trainer
from harness.training.trainer import Trainer
from methods import METHODS

UNMEASURED = 3
"""Steps of each method that come first and do not count."""
LATE = 1000
"""An epoch after the warm-up of any method: what it costs when it does its own work."""


def bench_methods(*, batch_size: int, hidden: int, steps: int) -> None:
    """Print the median time of a step of each method, and its ratio to the cheapest.

    Args:
        batch_size: pairs in a batch.
        hidden: width of the heads on the locked towers.
        steps: measured steps of each method.
    """
    trainers = {name: _trainer(name, batch_size, hidden) for name in METHODS if method_class(name).trains}
    seconds = interleaved(trainers, steps)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    cheapest = min(medians.values())
    device = next(iter(trainers.values())).accelerator.device
    title = f"batch {batch_size}, {device}, {torch.get_num_threads()} threads"
    table = Table("method", "ms a step", "ratio", "networks", title=title)
    for name, value in medians.items():
        networks = str(trainers[name].method.n_networks)
        table.add_row(name, f"{1000 * value:.1f}", f"{value / cheapest:.2f}", networks)
    console.print(table)


def _trainer(name: str, batch_size: int, hidden: int) -> Trainer:
    fixed = {
        "backbone": {"head": {"hidden": hidden, "dim": hidden, "dropout": 0.2}},
        "batch_size": batch_size,
        "lr": 1e-3,
        "dataset": "emoji",
        "noise_ratio": 0.4,
        "seed": 0,
    }
    trial = parse_sweep({"name": "bench", "grid": {"method": [name]}, "fixed": fixed}).trials[0]
    data = load_dataset("emoji")
    trainer = build_trainer(trial, data, trial.noise_index(data), make_accelerator("auto"))
    trainer.method.eval()
    trainer.method.start_epoch(LATE, 0, trainer.scan)
    trainer.method.train()
    return trainer


def interleaved(trainers: dict[str, Trainer], steps: int) -> dict[str, list[float]]:
    """Seconds of each measured step, by name; the trainers take turns."""
    streams = {
        name: itertools.chain.from_iterable(map(trainer.batches, itertools.count(LATE)))
        for name, trainer in trainers.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for step in range(steps + UNMEASURED):
        for name, trainer in trainers.items():
            trainer.optimizers.at_step(step)
            batch = next(streams[name])
            synchronize()
            began = time.perf_counter()
            with trainer.accelerator.autocast():
                trainer.method.step(batch, trainer.optimizers, 0)
            synchronize()
            if step >= UNMEASURED:
                seconds[name].append(time.perf_counter() - began)
    return seconds
