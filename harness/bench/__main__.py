"""`python -m harness.bench`: what a step of each method costs, as a ratio to the cheapest, measured in one
run; or, as `python -m harness.bench sgraf`, what SGR's tiles gain over going caption by caption; or, as
`python -m harness.bench loader [FOLDER]`, whether reading and decoding pictures keeps a trainer busy; or, as
`python -m harness.bench sweep`, what a sweep costs beside its trials.

Methods take turns, step by step, so that a machine whose speed drifts slows all of them alike. Absolute times
belong to this machine; the ratios are what to quote.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from itertools import cycle, islice
from pathlib import Path

import torch
import yaml
from rich.table import Table

from harness.config.sweep_file import method_class, parse_sweep
from harness.data import load_dataset, recognise
from harness.data.base import DataError
from harness.lib.console import console, fail
from harness.noise.inject import make_noise
from harness.training.loading import load
from harness.training.run_trial import build_trainer
from harness.training.trainer import Trainer, make_accelerator
from methods import METHODS


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m harness.bench", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["methods", "sgraf", "loader", "sweep"], default="methods")
    parser.add_argument(
        "folder",
        nargs="?",
        help="loader: a data set's folder (default: pictures of Flickr30K's size, made here)",
    )
    parser.add_argument(
        "--options", default="{}", help="loader: further dataset_options of the folder: '{held_out: 500}'"
    )
    parser.add_argument(
        "--model",
        default="ViT-B-32",
        help="loader: the open_clip model whose trainer is measured (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=int, default=0, help="loader: worker processes (default: %(default)s)"
    )
    parser.add_argument(
        "--steps",
        type=int,
        help="measured steps of each (default: 30 of methods, 3 of sgraf and of loader's trainer)",
    )
    parser.add_argument("--trials", type=int, default=2000, help="sweep: how many (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns of random weights, which are meant here
    if options.what == "sgraf":
        from harness.bench.sgraf import bench_sgraf

        bench_sgraf(options.steps or 3)
        return 0
    if options.what == "sweep":
        from harness.bench.overhead import bench_sweep

        bench_sweep(options.trials)
        return 0
    if options.what == "loader":
        from harness.bench.loader import bench_loader

        try:
            given = yaml.safe_load(options.options)
            data = (
                load_dataset(recognise(Path(options.folder)), folder=options.folder, **given)
                if options.folder
                else None
            )
        except (DataError, TypeError, yaml.YAMLError) as error:
            return fail([str(error)])
        bench_loader(
            data,
            model=options.model,
            batch_size=options.batch_size,
            workers=options.workers,
            steps=options.steps or 3,
        )
        return 0
    trainers = {name: _trainer(name, options) for name in METHODS if method_class(name).trains}
    seconds = _interleaved(trainers, options.steps or 30)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    base = min(median.values())
    device = next(iter(trainers.values())).accelerator.device
    table = Table(
        "method",
        "ms a step",
        "ratio",
        "networks",
        title=f"batch {options.batch_size}, {device}, {options.threads} threads",
    )
    for name, value in median.items():
        table.add_row(
            name, f"{1000 * value:.1f}", f"{value / base:.2f}", str(trainers[name].method.n_networks)
        )
    console.print(table)
    return 0


def _trainer(name: str, options: argparse.Namespace) -> Trainer:
    head = {"hidden": options.hidden, "dim": options.hidden, "dropout": 0.2}
    fixed = {
        "backbone": {"head": head},
        "batch_size": options.batch_size,
        "lr": 1e-3,
        "dataset": "emoji",
        "noise_ratio": 0.4,
        "seed": 0,
    }
    trial = parse_sweep({"name": "bench", "grid": {"method": [name]}, "fixed": fixed}).trials[0]
    # Past the warm-up: what a method costs when it does its own work.
    trial = trial.model_copy(
        update={
            "hyper": {k: 0 if k in ("warmup_epochs", "noisy_after") else v for k, v in trial.hyper.items()}
        }
    )
    data = load_dataset("emoji")
    noise = make_noise(data["train"], ratio=0.4, granularity="caption", seed=0)
    trainer = build_trainer(trial, data, noise, make_accelerator("auto"))
    trainer.method.eval()
    trainer.method.start_epoch(0, 0, trainer._scan)
    trainer.method.train()
    return trainer


def _interleaved(trainers: dict[str, Trainer], steps: int) -> dict[str, list[float]]:
    """Seconds of each measured step; three steps of each come first and do not count."""
    streams = {}
    for name, trainer in trainers.items():
        batches, _ = trainer._batches(0, 0)
        plans = trainer._plans(
            list(islice(cycle(batches), steps + 3)), 0, 0, trainer._pool_batches(0, 0, steps + 3)
        )
        streams[name] = load(plans, trainer._fetch(), workers=0)
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for step in range(steps + 3):
        for name, trainer in trainers.items():
            trainer.optimizers.at_step(step)
            batch = next(streams[name]).to(trainer.accelerator.device, trainer.dtype)
            _wait()
            began = time.perf_counter()
            with trainer.accelerator.autocast():
                trainer.method.step(batch, trainer.optimizers, 0)
            _wait()
            if step >= 3:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
