"""What a step of each registered method costs, and how much of it is not arithmetic.

Methods take turns, step by step, so that a machine whose speed drifts slows all of them alike.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Mapping

import torch
from rich.table import Table
from torch.profiler import profile

from harness.config.sweep_file import parse_sweep
from harness.config.trial import method_class
from harness.data import load_dataset
from harness.lib.console import console
from harness.training.accelerator import make_accelerator
from harness.training.cost import synchronize
from harness.training.run_trial import build_trainer
from harness.training.trainer import Trainer
from methods import METHODS
from methods.base import Batch

UNMEASURED = 3
"""Steps of each method that come first and do not count."""
LATE = 1000
"""An epoch after the warm-up of any method: what it costs when it does its own work."""


NOT_ARITHMETIC = {
    "empty", "empty_like", "empty_strided", "new_empty", "resize_", "as_strided", "view", "_reshape_alias",
    "_unsafe_view", "reshape", "flatten", "t", "transpose", "numpy_T", "permute", "expand", "select", "slice",
    "narrow", "split", "split_with_sizes", "unsqueeze", "squeeze", "diagonal", "detach", "detach_", "alias",
    "lift_fresh", "to", "item", "_local_scalar_dense", "is_nonzero", "result_type",
}  # fmt: skip
"""Operators that allocate, take views or read a number."""


def bench_methods(*, batch_size: int, hidden: int, steps: int) -> None:
    """Print the median time of a step of each method, its ratio to the cheapest, and its overhead.

    Args:
        batch_size: pairs in a batch.
        hidden: width of the heads on the locked towers.
        steps: measured steps of each method.
    """
    trainers = {name: _trainer(name, batch_size, hidden) for name in METHODS if method_class(name).trains}
    streams = {name: late_batches(trainer) for name, trainer in trainers.items()}
    seconds = interleaved(trainers, streams, steps)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    cheapest = min(medians.values())
    device = next(iter(trainers.values())).accelerator.device
    title = f"batch {batch_size}, {device}, {torch.get_num_threads()} threads"
    table = Table("method", "ms a step", "ratio", "overhead", "networks", title=title)
    for name, value in medians.items():
        networks = str(trainers[name].method.n_networks)
        share = f"{overhead(trainers[name], streams[name], steps):.0%}"
        table.add_row(name, f"{1000 * value:.1f}", f"{value / cheapest:.2f}", share, networks)
    console.print(table)
    console.print("overhead: share of the loop's time, loading included, in which no kernel computes")


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


def late_batches(trainer: Trainer) -> Iterator[Batch]:
    """Batches of the epochs from `LATE` on, without end."""
    return itertools.chain.from_iterable(map(trainer.batches, itertools.count(LATE)))


def interleaved(
    trainers: Mapping[str, Trainer], streams: Mapping[str, Iterator[Batch]], steps: int
) -> dict[str, list[float]]:
    """Seconds of each measured step, by name; the trainers take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for step in range(steps + UNMEASURED):
        for name, trainer in trainers.items():
            batch = next(streams[name])
            synchronize()
            began = time.perf_counter()
            _step(trainer, batch, step)
            synchronize()
            if step >= UNMEASURED:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def _step(trainer: Trainer, batch: Batch, step: int) -> None:
    trainer.optimizers.at_step(step)
    with trainer.accelerator.autocast():
        trainer.method.step(batch, trainer.optimizers, 0)


def overhead(trainer: Trainer, batches: Iterator[Batch], steps: int) -> float:
    """Share of the time of `steps` steps, with the loading of their batches, in which no kernel computes.

    The time is the median of three runs without the profiler; that of kernels is taken with it.
    """

    def run() -> float:
        began = time.perf_counter()
        for step, batch in enumerate(itertools.islice(batches, steps)):
            _step(trainer, batch, step)
        synchronize()
        return time.perf_counter() - began

    seconds = statistics.median(run() for _ in range(3))
    with profile() as profiled:
        run()
    return 1 - _seconds_of_kernels(profiled) / seconds


def _seconds_of_kernels(profiled: profile) -> float:
    operators = [event for event in profiled.key_averages() if event.key.startswith("aten::")]
    if torch.cuda.is_available():
        return float(sum(event.self_device_time_total for event in operators)) / 1e6
    kernels = [e for e in operators if e.key.removeprefix("aten::") not in NOT_ARITHMETIC]
    return float(sum(event.self_cpu_time_total for event in kernels)) / 1e6
