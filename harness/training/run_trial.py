"""One trial: data, noise, backbone, method and trainer, put together. No Ray and no MLflow in here."""

from __future__ import annotations

import contextlib
import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from harness import PROTOCOL_VERSION
from harness.backbones import backbone_setup
from harness.backbones.features import Inputs, first_of_equal
from harness.config.resources import Resources
from harness.config.trial import Trial, method_class
from harness.data import load_dataset
from harness.data.base import DataSet
from harness.lib.locks import acquire
from harness.lib.watchdog import Watchdog
from harness.noise.index import NoiseIndex
from harness.record.types import DataChanged, EpochRecord, Outcome, Recorder, Setup
from harness.training.accelerator import Accelerator, device_name, make_accelerator, release_memory
from harness.training.checkpoint import Checkpoints
from harness.training.trainer import Trainer
from methods.base import Pairs
from methods.seeding import torch_generator

PERTURBATION = 1e-6
"""Relative change of an initial weight in a perturbed trial: some ten steps of single precision."""


def run_trial(
    trial: Trial,
    recorder: Recorder,
    *,
    directory: Path | None = None,
    resources: Resources | None = None,
    expected: str | None = None,
    environment: Mapping[str, str] | None = None,
    accelerator: Accelerator | None = None,
    epoch_ended: Callable[[int, float | None], None] | None = None,
) -> Outcome:
    """Run one trial to its end, from its last valid checkpoint in `directory` if there is one.

    Args:
        directory: the trial's own, on storage that all its processes see; removed when the trial is done.
            None: no checkpoint is kept.
        resources: loader processes, and limits on the time.
        expected: the fingerprint that its data must have.
        environment: further tags of the record: versions, commit, digest of the code.
        epoch_ended: called after each epoch with the epochs trained and dev rSum (None: not evaluated).

    Raises:
        Busy: another process is running it.
        AlreadyDone: it is on record as finished.
        DataChanged: its data are not those that it, or its sweep, was started with.
        OutOfTime: its deadline has passed.
        Diverged: the loss is not finite; and whatever a method raises.
    """
    resources, environment = resources or Resources(), environment or {}
    accelerator = accelerator or make_accelerator(trial.precision, resources)
    main = accelerator.is_main_process
    deadline = resources.deadline_hours and resources.deadline_hours * 3600
    with contextlib.ExitStack() as stack:
        stack.callback(release_memory)
        watchdog = Watchdog(directory, stall=resources.stall_minutes * 60, deadline=deadline, writes=main)
        if directory and main:
            stack.enter_context(acquire(directory))
        stack.enter_context(watchdog)
        data = load_dataset(trial.dataset, **trial.dataset_options)
        fingerprint = trial.fingerprint(data)
        if expected and fingerprint != expected:
            raise DataChanged(
                f"the data have changed since the sweep started: fingerprint {expected} then, "
                f"{fingerprint} now"
            )
        noise = trial.noise_index(data)
        trainer = build_trainer(
            trial,
            data,
            noise,
            accelerator,
            code=environment.get("code", ""),
            checkpoints=Checkpoints(directory, resources.checkpoint_minutes) if directory else None,
            workers=resources.workers,
            heartbeat=watchdog.heartbeat,
        )
        setup = describe(trial, data, noise, trainer, fingerprint=fingerprint, environment=environment)
        recorded = recorder.start(setup) if main else 0
        notes = trainer.resume(at_most=recorded)
        for text in notes if main else ():
            recorder.note(text)

        def on_epoch(record: EpochRecord) -> None:
            if main:
                recorder.epoch(record)
            watchdog.epoch_ended(record.epoch + 1, record.metrics.get("dev/rsum"))
            if epoch_ended:
                epoch_ended(record.epoch + 1, record.metrics.get("dev/rsum"))

        watchdog.epoch_ended(trainer.state.epoch, None)
        outcome = trainer.fit(on_epoch)
        if main:
            recorder.finish(outcome)
            if directory:
                shutil.rmtree(directory, ignore_errors=True)
        accelerator.wait_for_everyone()
    return outcome


def build_trainer(
    trial: Trial,
    data: DataSet,
    noise: NoiseIndex,
    accelerator: Accelerator,
    *,
    code: str = "",
    checkpoints: Checkpoints | None = None,
    workers: int = 0,
    heartbeat: Callable[[str], None] = lambda where: None,
    inputs: Mapping[str, Inputs] | None = None,
) -> Trainer:
    """The method with its networks, and the loop around it.

    Args:
        inputs: what the networks take, by split; None: made by the backbone.

    Only a method that declares it gets the ground truth or the clean set.

    Raises:
        ValueError: the method needs the ground truth, and it is unknown for this noise.
    """
    data = replace(data, splits={**data.splits, "train": noise.words_of(data["train"])})
    backbone = backbone_setup(trial.backbone)
    cls = method_class(trial.method)
    splits = ["train", "dev", "test"] + (["meta"] if cls.uses_clean_data else [])
    if inputs is None:
        with accelerator.main_process_first():
            inputs = {s: backbone.inputs(data, s, device=accelerator.device) for s in splits}
    given: dict[str, Any] = {}
    if cls.uses_ground_truth:
        if noise.matched is None:
            raise ValueError(
                f"method {trial.method!r} needs the ground truth, which is unknown for noise {noise.model!r}"
            )
        given["ground_truth"] = torch.from_numpy(noise.matched)
    if cls.uses_clean_data:
        meta = data["meta"]
        groups = torch.from_numpy(meta.caption_group) if data.distinct_groups else None
        captions = first_of_equal(meta.captions)
        given["clean"] = Pairs(torch.from_numpy(meta.owner), captions, "meta", groups=groups)
    method = cls(
        make_backbone=lambda network: backbone.make(network, trial.seed, inputs["train"]),
        pairs=Pairs(torch.from_numpy(noise.image), first_of_equal(data["train"].captions)),
        batch_size=trial.batch_size,
        seed=trial.seed,
        **given,
        **trial.hyper,
    )
    if trial.perturbed:
        perturb(method, trial.seed, trial.perturbed)
    return Trainer(
        method,
        data,
        inputs,
        noise,
        trial,
        accelerator,
        backbone=backbone.identity(data),
        code=code,
        checkpoints=checkpoints,
        workers=workers,
        heartbeat=heartbeat,
    )


@torch.no_grad()
def perturb(method: torch.nn.Module, seed: int, number: int) -> None:
    """Multiply each trained weight by 1 + `PERTURBATION` z, z standard normal, in draw `number` of a seed."""
    draw = torch_generator(seed, "perturbation", number)
    for weight in method.parameters():
        if weight.requires_grad:
            weight.mul_(1 + PERTURBATION * torch.randn(weight.shape, generator=draw))


def describe(
    trial: Trial,
    data: DataSet,
    noise: NoiseIndex,
    trainer: Trainer,
    *,
    fingerprint: str,
    environment: Mapping[str, str],
) -> Setup:
    """What the record of a trial starts with."""
    method, accelerator = trainer.method, trainer.accelerator
    bf16 = accelerator.mixed_precision == "bf16"
    return Setup(
        trial=trial,
        data=data,
        noise=noise,
        fingerprint=fingerprint,
        uses_clean_data=method.uses_clean_data,
        uses_ground_truth=method.uses_ground_truth,
        n_networks=method.n_networks,
        trains=method.trains,
        parameters=sum(p.numel() for p in method.parameters() if p.requires_grad),
        environment={
            **environment,
            "python": platform.python_version(),
            "protocol_version": str(PROTOCOL_VERSION),
            "backbone_digest": trainer.backbone,
            "device": device_name(accelerator.device),
            "precision": "bf16" if bf16 else str(trainer.dtype).removeprefix("torch."),
            "processes": str(accelerator.num_processes),
            "threads": str(torch.get_num_threads()),
        },
    )
