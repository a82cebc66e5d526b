"""What can be known before any work starts: data, sizes, devices. All faults at once."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from harness.backbones import BACKBONES
from harness.config.sweep_file import Resources, Sweep, Trial, method_class
from harness.data import load_dataset
from harness.data.base import DataError, DataSet
from harness.lib.console import console
from harness.lib.registry import UnknownName, resolve
from harness.noise.inject import Natural, Partial, Shuffle, make_noise
from harness.training.run_trial import noise_of
from harness.training.sampling import PoolTooNarrow, epoch_batches

if TYPE_CHECKING:  # a trial by hand runs without MLflow
    from harness.record.store import TrialRecord


def check_sweep(sweep: Sweep, *, elsewhere: bool = False) -> tuple[list[str], dict[str, DataSet]]:
    """Everything that would stop a trial, and the data sets by their options.

    `elsewhere`: the devices are not this machine's (a Ray cluster's are checked there).
    """
    errors = [] if elsewhere else check_devices(sweep.file.resources)
    data: dict[str, DataSet] = {}
    for trial in sweep.trials:
        key = data_key(trial)
        if key not in data:
            data[key], found = _load(trial)
            errors += found
    for key, size in sorted({(data_key(t), largest_batch(t)) for t in sweep.trials}):
        errors += _check_batch(data[key], size) if data[key] else []
    for trial in {
        (data_key(t), repr(t.backbone), t.hyper.get("n_networks", 1)): t for t in sweep.trials
    }.values():
        errors += _check_backbone(trial, data[data_key(trial)]) if data[data_key(trial)] else []
    for key, method in sorted({(data_key(t), t.method) for t in sweep.trials}):
        errors += _check_clean(method, data[key]) if data[key] else []
    for trial in {
        (data_key(t), repr(t.noise), t.noise_ratio, t.noise_granularity, t.noise_seed, t.method): t
        for t in sweep.trials
    }.values():
        errors += _check_noise(trial, data[data_key(trial)]) if data[data_key(trial)] else []
    return errors, data


def _load(trial: Trial) -> tuple[DataSet, list[str]]:
    """The trial's data set (None where it cannot be had), and why not."""
    try:
        return load_dataset(trial.dataset, **trial.dataset_options), []
    except Exception as error:  # a data set of the user's own can raise anything
        kind = "" if isinstance(error, (UnknownName, DataError)) else f"{type(error).__name__}: "
        return None, [f"dataset {trial.dataset!r}: {kind}{error}"]  # type: ignore[return-value]


def _check_clean(method: str, data: DataSet) -> list[str]:
    if method_class(method).uses_clean_data and "meta" not in data.splits:
        return [
            f"method {method!r} needs a clean set, and data set {data.name!r} has no split 'meta' (data "
            f"set scan makes one from dev: dataset_options.meta_share)"
        ]
    return []


def _check_noise(trial: Trial, data: DataSet) -> list[str]:
    """Whether the noise can be made: what comes from a file is looked at, and one group may be too large for
    a derangement.
    """
    if isinstance(trial.noise, Natural) and method_class(trial.method).uses_ground_truth:
        return [
            f"method {trial.method!r} needs to know which pairs match, and of noise 'none' (data that is "
            f"noisy by nature) nobody does"
        ]
    if not trial.noise_ratio:
        return []
    try:
        if not isinstance(trial.noise, (Shuffle, Partial)):
            noise_of(trial, data)
    except (ValueError, OSError) as error:
        return [f"noise of {data.name!r} at noise_ratio {trial.noise_ratio:g}: {error}"]
    return []


def data_key(trial: Trial) -> str:
    return f"{trial.dataset} {sorted(trial.dataset_options.items())}"


def check_trial(trial: Trial) -> list[str]:
    """The same for one trial, run by hand: devices are what the launcher gave it."""
    data, errors = _load(trial)
    if errors:
        return errors
    return (
        _check_batch(data, largest_batch(trial))
        + _check_clean(trial.method, data)
        + _check_backbone(trial, data)
        + _check_noise(trial, data)
    )


def largest_batch(trial: Trial) -> int:
    """Pairs in the largest batch that the trial asks for."""
    return method_class(trial.method).largest_batch(trial.batch_size, trial.hyper)


def _check_backbone(trial: Trial, data: DataSet) -> list[str]:
    """Whether the backbone takes such data."""
    kind = resolve("backbone", trial.backbone["kind"], BACKBONES)
    fault = kind(kind.Config.model_validate(trial.backbone)).check_data(
        data, trial.hyper.get("n_networks", 1)
    )
    return [fault] if fault else []


def _check_batch(data: DataSet, size: int) -> list[str]:
    train = data["train"]
    if size > len(train.captions):
        return [f"batch_size = {size}: larger than the {len(train.captions)} training pairs of {data.name!r}"]
    if not data.distinct_groups:
        return []
    groups = make_noise(train, ratio=0, granularity="caption", seed=0)
    try:
        epoch_batches(
            np.arange(len(groups.image)), train.image_group[groups.image], size=size, steps=1, seed=(0,)
        )
    except PoolTooNarrow:
        count = len(np.unique(train.image_group))
        return [
            f"batch_size = {size}: {data.name!r} allows one pair of a group in a batch and has {count} "
            f"groups, so at most {count}"
        ]
    return []


def check_devices(resources: Resources) -> list[str]:
    """What this machine lacks of them."""
    errors = []
    have = torch.cuda.device_count()
    wanted = resources.gpus * resources.processes
    if wanted > have:
        errors.append(
            f"resources.gpus = {resources.gpus:g} for {resources.processes} process(es): this machine has "
            f"{have} GPUs"
        )
    if resources.processes > 1 and 0 < resources.gpus < 1:
        errors.append(
            f"resources.gpus = {resources.gpus:g}: a share of a GPU works with one process only, not "
            f"{resources.processes}"
        )
    return errors


def check_address(address: str) -> list[str]:
    """Whether something answers at a Ray cluster's address: Ray itself ends the process where
    nothing does.
    """
    if address == "auto":
        return []
    if address.startswith(
        "ray://"
    ):  # Ray's client runs Tune on the cluster, where our progress and records are not
        return [
            f"--address {address!r}: a sweep is started on a node of the cluster, with HOST:PORT or 'auto'"
        ]
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        return [
            f"--address {address!r}: no Ray cluster answers there ({error}); expected HOST:PORT or 'auto'"
        ]
    return []


def check_same_data(
    trials: Iterable[Trial], records: Mapping[str, TrialRecord], now: Mapping[str, str]
) -> list[str]:
    """Which data are not those that records were made on: a table over two states of a data set would be
    wrong without anybody seeing it.

    `records` and `now` (fingerprints) by trial id.
    """
    errors = {}
    for trial in trials:
        known = records[trial.id].tags.get("data_fingerprint") if trial.id in records else None
        if known and known != now[trial.id]:
            errors[data_key(trial), known] = (
                f"the data of {trial.dataset_label!r} (or its noise files) have changed since the sweep "
                f"was begun: fingerprint {known} then, "
                f"{now[trial.id]} now. Put them back as they were, or give the sweep another `name` to run "
                f"it on what is there now"
            )
    return list(errors.values())


def prepare_features(trials: Iterable[Trial], data: dict[str, DataSet]) -> None:
    """Compute the features that the trials will read, before they are scheduled; nothing where they are
    cached.

    Raises:
        DataError: weights, model config or a picture cannot be read.
    """
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
            try:
                for split in data[data_key(trial)].splits:
                    backbone.inputs(data[data_key(trial)], split, device=device, quiet=False)
            except Exception as error:  # a checkpoint, a model config or a picture that cannot be read
                raise DataError(
                    f"features of {trial.dataset!r} under {trial.backbone_label}: {type(error).__name__}: "
                    f"{error}"
                ) from error
        if trial.backbone.get("pretrained") == "none":
            console.print(f"backbone {trial.backbone_label}: random weights, as asked for (pretrained: none)")
