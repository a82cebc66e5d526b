"""What can be known before any work starts: data, sizes, noise, backbones, devices. All errors at once."""

from __future__ import annotations

import socket
from collections.abc import Callable, Hashable, Iterable, Mapping

import numpy as np

from harness import PROTOCOL_VERSION
from harness.backbones import backbone_setup
from harness.config.resources import Resources
from harness.config.search import stage_error
from harness.config.sweep_file import Sweep
from harness.config.trial import Trial, method_class
from harness.data import load_dataset
from harness.data.base import DataError, DataSet
from harness.lib.console import console
from harness.lib.processes import in_own_process
from harness.lib.registry import UnknownName
from harness.record.bundle import Bundle
from harness.record.store import Store
from harness.record.types import TrialRecord
from harness.training.sampling import PoolTooNarrow, epoch_batches

Check = Callable[[Trial, DataSet], str]
"""What would stop a trial on its data set; empty if nothing does."""


def check_sweep(sweep: Sweep, *, elsewhere: bool = False) -> tuple[list[str], dict[str, DataSet]]:
    """Everything that would stop a trial, and the data sets by `data_key`.

    Args:
        elsewhere: the devices are not this machine's (a Ray cluster's are checked there).
    """
    errors = [] if elsewhere else check_devices(sweep.file.resources)
    data: dict[str, DataSet] = {}
    for trial in {data_key(t): t for t in sweep.trials}.values():
        loaded, error = _load(trial)
        if loaded is None:
            errors.append(error)
        else:
            data[data_key(trial)] = loaded
    for check, key in _CHECKS.items():
        distinct = {(data_key(t), key(t)): t for t in sweep.trials if data_key(t) in data}
        errors += [e for t in distinct.values() if (e := check(t, data[data_key(t)]))]
    return errors, data


def check_trial(trial: Trial) -> list[str]:
    """The same for one trial, run by hand: its devices are those that its launcher gave it."""
    data, error = _load(trial)
    if data is None:
        return [error]
    return [e for check in _CHECKS if (e := check(trial, data))]


def data_key(trial: Trial) -> str:
    """Trials with equal keys are on the same data set."""
    return f"{trial.dataset} {sorted(trial.dataset_options.items())}"


def _load(trial: Trial) -> tuple[DataSet | None, str]:
    """The trial's data set, or why it cannot be loaded."""
    try:
        return load_dataset(trial.dataset, **trial.dataset_options), ""
    except Exception as error:  # a data set of the user's own can raise anything
        kind = "" if isinstance(error, (UnknownName, DataError)) else f"{type(error).__name__}: "
        return None, f"dataset {trial.dataset!r}: {kind}{error}"


# A trial on its data set ---------------------------------------------------------------------------


def _largest_batch(trial: Trial) -> int:
    """Pairs in the largest batch that the trial asks for."""
    return method_class(trial.method).largest_batch(trial.batch_size, trial.hyper)


def _check_batch(trial: Trial, data: DataSet) -> str:
    train, size = data["train"], _largest_batch(trial)
    if size > len(train.captions):
        return f"batch_size = {size}: larger than the {len(train.captions)} training pairs of {data.name!r}"
    if not data.distinct_groups:
        return ""
    groups = train.caption_group
    try:
        epoch_batches(np.arange(len(groups)), groups, size=size, steps=1, seed=(0,))
    except PoolTooNarrow:
        count = len(np.unique(train.image_group))
        return (
            f"batch_size = {size}: {data.name!r} allows one pair of a group in a batch and has {count} "
            f"groups, so at most {count}"
        )
    return ""


def _networks(trial: Trial) -> int:
    """How many networks the trial makes, those that it begins anew with among them."""
    return int(max(trial.hyper.get("n_networks", 1), trial.hyper.get("restarts", 0) + 1))


def _check_backbone(trial: Trial, data: DataSet) -> str:
    """Whether the backbone takes such data."""
    return backbone_setup(trial.backbone).check_data(data, _networks(trial)) or ""


def _check_alignment(trial: Trial, data: DataSet) -> str:
    if not method_class(trial.method).needs_alignment(trial.hyper) or backbone_setup(trial.backbone).aligned:
        return ""
    way_out = " (estimator: warmup judges after some epochs)" if "estimator" in trial.hyper else ""
    return (
        f"method {trial.method!r} judges pairs before any training, and the weights of this backbone "
        f"({trial.backbone['kind']}) were never trained to compare images with texts{way_out}"
    )


def _check_stage(trial: Trial, data: DataSet) -> str:
    return stage_error(trial) if method_class(trial.method).trains else ""


def _check_clean(trial: Trial, data: DataSet) -> str:
    if method_class(trial.method).uses_clean_data and "meta" not in data.splits:
        return (
            f"method {trial.method!r} needs a clean set, and data set {data.name!r} has no split 'meta' "
            "(dataset_options.meta_share draws one from dev)"
        )
    return ""


def _check_noise(trial: Trial, data: DataSet) -> str:
    """Whether the noise can be injected: a file may not fit, one group may be too large for a derangement."""
    if not trial.noise.ground_truth_known and method_class(trial.method).uses_ground_truth:
        return (
            f"method {trial.method!r} needs the ground truth, which is unknown for noise "
            f"{trial.noise.model!r} (data that is noisy by nature)"
        )
    if not trial.noise_ratio or not trial.noise.may_fail:
        return ""
    try:
        trial.noise_index(data)
    except (ValueError, OSError) as error:
        return f"noise of {data.name!r} at noise_ratio {trial.noise_ratio:g}: {error}"
    return ""


_CHECKS: dict[Check, Callable[[Trial], Hashable]] = {
    _check_batch: _largest_batch,
    _check_backbone: lambda t: (repr(t.backbone), _networks(t)),
    _check_alignment: lambda t: (t.method, repr(t.backbone), repr(t.hyper)),
    _check_stage: lambda t: (t.method, repr(t.hyper), t.epochs),
    _check_clean: lambda t: t.method,
    _check_noise: lambda t: (repr(t.noise), t.noise_ratio, t.noise_granularity, t.noise_seed, t.method),
}
"""Each check with what it depends on besides the data set: trials that share it are checked once."""


def check_version(name: str, store: Store | None) -> list[str]:
    """Whether a sweep is on record under another protocol version, in the store or in its bundle, whose plan
    must stay for its records to be readable.
    """
    bundle = Bundle(name)
    places = [
        (store.planned_version(name) if store else None, "name another store with --tracking-uri"),
        (bundle.planned_version(), f"move {bundle.folder} away"),
    ]
    return [
        f"sweep {name!r} is on record under protocol version {version}, and this is {PROTOCOL_VERSION}: give "
        f"the sweep another `name`, or {otherwise}"
        for version, otherwise in places
        if version not in (None, PROTOCOL_VERSION)
    ]


def check_same_data(
    trials: Iterable[Trial], records: Mapping[str, TrialRecord], now: Mapping[str, str]
) -> list[str]:
    """Which data are not those of the records: a table over two states of a data set would be wrong
    unnoticed.

    Args:
        records: what is on record, by trial id.
        now: fingerprints of the data, by trial id.
    """
    errors = {}
    for trial in trials:
        known = records[trial.id].tags.get("data_fingerprint") if trial.id in records else None
        if known and known != now[trial.id]:
            errors[data_key(trial), known] = (
                f"the data of {trial.dataset_label!r} (or its noise files) have changed since the sweep was "
                f"started: fingerprint {known} then, {now[trial.id]} now. Restore the data, or give the "
                "sweep another `name` to run it on the data of today"
            )
    return list(errors.values())


# The machine ---------------------------------------------------------------------------------------


def check_devices(resources: Resources) -> list[str]:
    """What this machine lacks of the devices that a trial asks for."""
    import torch

    errors = []
    available = torch.cuda.device_count()
    if resources.gpus * resources.processes > available:
        errors.append(
            f"resources.gpus = {resources.gpus:g} for {resources.processes} process(es): this machine has "
            f"{available} GPUs"
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
    # Ray's client runs Tune on the cluster, without our progress and records
    if address.startswith("ray://"):
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


def prepare_features(trials: Iterable[Trial], data: Mapping[str, DataSet]) -> None:
    """Compute the features and store the pictures that the trials will read, before they are scheduled;
    nothing where they are cached.

    With a GPU it is done in a process of its own: a process that has used a GPU keeps memory there until it
    ends, and the sweep's lives as long as the sweep.

    Args:
        data: the data sets, by `data_key`.

    Raises:
        DataError: weights, model config or a picture cannot be read.
    """
    import torch

    trials = list({(data_key(t), repr(t.backbone)): t for t in trials}.values())
    cached = [t for t in trials if backbone_setup(t.backbone).uses_cache]
    if cached and torch.cuda.is_available():
        in_own_process(_compute_features, cached)
    else:
        _compute_features(cached, data)
    for trial in trials:
        if trial.backbone.get("pretrained") == "none":
            console.print(f"backbone {trial.backbone_label}: random weights, as asked for (pretrained: none)")


def _compute_features(trials: Iterable[Trial], data: Mapping[str, DataSet] | None = None) -> None:
    """Features of the trials' data sets, which are loaded where they are not given."""
    import torch

    from harness.training.accelerator import make_deterministic

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":  # as in a trial, which may compute them too: convolutions are in TF32 by default
        make_deterministic()
    for trial in trials:
        try:
            loaded = data[data_key(trial)] if data else load_dataset(trial.dataset, **trial.dataset_options)
            setup = backbone_setup(trial.backbone)
            for split in loaded.splits:
                setup.inputs(loaded, split, device=device, quiet=False)
        except Exception as error:  # a checkpoint, a model config or a picture that cannot be read
            name = f"inputs of {trial.dataset!r} under {trial.backbone_label}"
            raise DataError(f"{name}: {type(error).__name__}: {error}") from error
