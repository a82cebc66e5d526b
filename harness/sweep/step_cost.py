"""FLOPs and memory of a step of each cell, counted by `--dry-run --cost` and kept in the cache directory.

Importing this module loads no torch: a plain dry run shows what is in the cache.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.config.trial import Trial, method_class
from harness.data.base import DataSet
from harness.lib.console import progress
from harness.lib.files import atomic_write, cache_directory
from harness.sweep.preflight import data_key

_UNRELATED = (
    "seed",
    "noise_seed",
    "noise_ratio",
    "noise",
    "noise_granularity",
    "lr",
    "weight_decay",
    "betas",
    "eps",
    "warmup_steps",
    "decay_epochs",
    "evaluate_every",
)
"""Fields of a trial that the cost of a step does not follow from."""


@dataclass(frozen=True)
class StepCost:
    """What a step was counted to take; `reason` says why it could not be counted."""

    tflop: float | None = None
    gib: float | None = None
    reason: str = ""


def cached_costs(trials: Iterable[Trial], data: Mapping[str, DataSet], *, gpu: bool) -> dict[str, StepCost]:
    """What the cache has, by trial id; computes nothing.

    Args:
        data: data sets by `data_key`.
        gpu: whether the trials run on a GPU, which decides their precision.
    """
    if not _directory().is_dir():
        return {}
    files = _files(trials, data, gpu=gpu)
    read = {file: _read(file) for file in set(files.values())}
    return {i: cost for i, file in files.items() if (cost := read[file])}


def count_costs(trials: Iterable[Trial], data: Mapping[str, DataSet], *, gpu: bool) -> None:
    """Count what the cache does not have, or could not be counted, once for trials whose steps cost the same.
    See `cached_costs`.
    """
    trials = list(trials)
    files = _files(trials, data, gpu=gpu)
    known = {file: _read(file) for file in set(files.values())}
    # What could not be counted is tried again: weights may be there now.
    missing = {files[t.id]: t for t in trials if not (cost := known[files[t.id]]) or cost.reason}
    for file, trial in progress(list(missing.items()), "counting steps"):
        with atomic_write(file, "w") as stream:
            json.dump(asdict(_count(trial, data[data_key(trial)], gpu=gpu)), stream)


def _count(trial: Trial, data: DataSet, *, gpu: bool) -> StepCost:
    from harness.sweep.estimate import estimate_step

    if not method_class(trial.method).trains:
        return StepCost(reason="does not train")
    try:
        estimate = estimate_step(trial, data, gpu=gpu)
    except Exception as error:  # an operation that fake tensors do not know, weights that are not there
        return StepCost(reason=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    return StepCost(estimate.tflop, estimate.gib)


def _directory() -> Path:
    return cache_directory() / "steps"


def _files(trials: Iterable[Trial], data: Mapping[str, DataSet], *, gpu: bool) -> dict[str, Path]:
    """The file of each trial's cost, by trial id."""
    code = _code_of_steps()
    files = {}
    for trial in trials:
        settings = {k: v for k, v in trial.model_dump(mode="json").items() if k not in _UNRELATED}
        own = hashlib.sha256(Path(inspect.getfile(method_class(trial.method))).read_bytes()).hexdigest()
        key = [code, own, data[data_key(trial)].fingerprint, settings, gpu]
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
        files[trial.id] = _directory() / f"{digest}.json"
    return files


def _code_of_steps() -> str:
    """A digest of the files that a step follows from. (The numeric digest of records takes a second.)"""
    harness = Path(__file__).parents[1]
    folders = (harness / "backbones", harness / "training", harness.parent / "methods")
    files = [harness / "sweep" / "estimate.py", *(f for folder in folders for f in folder.glob("*.py"))]
    return hashlib.sha256(b"".join(f.read_bytes() for f in sorted(files))).hexdigest()


def _read(file: Path) -> StepCost | None:
    try:
        return StepCost(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None
