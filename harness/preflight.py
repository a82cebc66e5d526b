"""What can be known before any work starts: data, sizes, devices. All faults at once."""

from __future__ import annotations

import socket
from collections.abc import Iterable

import numpy as np
import torch

from harness.backbones import BACKBONES
from harness.console import console
from harness.data import DataError, DataSet, load_dataset
from harness.noise import make_noise
from harness.registry import UnknownName, resolve
from harness.sampling import PoolTooNarrow, epoch_batches
from harness.spec import Resources, Sweep, Trial, method_class


def check_sweep(sweep: Sweep, *, cluster: bool = False) -> tuple[list[str], dict[str, DataSet]]:
    """Everything that would stop a trial, and the data sets by their options.

    `cluster`: devices belong to a Ray cluster and are checked there.
    """
    errors = [] if cluster else _check_devices(sweep.file.resources)
    data: dict[str, DataSet] = {}
    for trial in sweep.trials:
        key = data_key(trial)
        if key not in data:
            try:
                data[key] = load_dataset(trial.dataset, **trial.dataset_options)
            except (UnknownName, DataError, TypeError) as error:
                errors.append(f"dataset {trial.dataset!r}: {error}")
                data[key] = None  # type: ignore[assignment]
    sizes = {(data_key(t), t.batch_size, t.noise_granularity) for t in sweep.trials}
    for key, size, _ in sorted(sizes):
        if data[key] is not None:
            errors += _check_batch(data[key], size)
    for name in {t.method for t in sweep.trials if method_class(t.method).uses_clean_data}:
        for found in data.values():
            if found is not None and "meta" not in found.splits:
                errors.append(f"method {name!r} needs a clean set, and data set {found.name!r} has no split 'meta'")
    return errors, data


def data_key(trial: Trial) -> str:
    return f"{trial.dataset} {sorted(trial.dataset_options.items())}"


def check_trial(trial: Trial) -> list[str]:
    """The same for one trial, run by hand."""
    try:
        data = load_dataset(trial.dataset, **trial.dataset_options)
    except (UnknownName, DataError, TypeError) as error:
        return [f"dataset {trial.dataset!r}: {error}"]
    return _check_batch(data, trial.batch_size)


def _check_batch(data: DataSet, size: int) -> list[str]:
    train = data["train"]
    if size > len(train.captions):
        return [f"batch_size = {size}: larger than the {len(train.captions)} training pairs of {data.name!r}"]
    if not data.distinct_groups:
        return []
    groups = make_noise(train, ratio=0, granularity="caption", seed=0)
    try:
        epoch_batches(np.arange(len(groups.image)), train.image_group[groups.image], size=size, steps=1, seed=(0,))
    except PoolTooNarrow:
        count = len(np.unique(train.image_group))
        return [f"batch_size = {size}: {data.name!r} allows one pair of a group in a batch and has {count} groups, so at most {count}"]
    return []


def _check_devices(resources: Resources) -> list[str]:
    errors = []
    have = torch.cuda.device_count()
    wanted = resources.gpus * resources.processes
    if wanted > have:
        errors.append(f"resources.gpus = {resources.gpus:g} for {resources.processes} process(es): this machine has {have} GPUs")
    if resources.processes > 1 and 0 < resources.gpus < 1:
        errors.append(f"resources.gpus = {resources.gpus:g}: a share of a GPU works with one process only, not {resources.processes}")
    return errors


def check_address(address: str) -> list[str]:
    """Whether something answers at a Ray cluster's address: Ray itself ends the process where nothing does."""
    if address == "auto":
        return []
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        return [f"--address {address!r}: no Ray cluster answers there ({error}); expected HOST:PORT, ray://HOST:PORT or 'auto'"]
    return []


def prepare_features(trials: Iterable[Trial], data: dict[str, DataSet]) -> None:
    """Compute the features that the trials will read, before they are scheduled; nothing where they are cached."""
    seen = set()
    for trial in trials:
        key = (data_key(trial), repr(trial.backbone))
        if key in seen:
            continue
        seen.add(key)
        kind = resolve("backbone", trial.backbone["kind"], BACKBONES)
        backbone = kind(kind.Config.model_validate(trial.backbone))
        if backbone.uses_cache:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            for split in data[data_key(trial)].splits:
                backbone.inputs(data[data_key(trial)], split, device=device, quiet=False)
        elif trial.backbone.get("pretrained") == "none":
            console.print(f"backbone {trial.backbone_label}: random weights, as asked for (pretrained: none)")
