"""Trainers and methods on the small data set, put together as a trial puts them together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.data.base import DataSet
from harness.training.accelerator import make_accelerator
from harness.training.checkpoint import Checkpoints
from harness.training.run_trial import build_trainer
from harness.training.trainer import Trainer
from methods.base import Batch, Method
from tests import small


def trainer(
    name: str,
    *,
    folder: Path | None = None,
    hyper: dict[str, Any] | None = None,
    scramble_truth: bool = False,
    data: DataSet | None = None,
    **fixed: Any,
) -> Trainer:
    trial = small.trial(name, **fixed)
    if hyper:
        trial = trial.model_copy(update={"hyper": {**trial.hyper, **hyper}})
    data = data or (small.regions() if trial.backbone["kind"] == "sgraf" else small.load())
    noise = trial.noise_index(data)
    if scramble_truth:
        noise.matched[:] = ~noise.matched
    return build_trainer(
        trial, data, noise, make_accelerator(trial.precision), checkpoints=folder and Checkpoints(folder)
    )


def few_pairs(name: str) -> Trainer:
    return trainer(name, precision="fp64", data=small.few(), **small.FEW_PAIRS[name])


def method(name: str, **changes: Any) -> Method:
    return trainer(name, **changes).method


def first_batch(made: Trainer, *, epoch: int = 0, network: int = 0) -> Batch:
    return next(made.batches(epoch, network))
