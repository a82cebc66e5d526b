"""One trial: data, noise, backbone, method and trainer, put together. No Ray and no MLflow in here."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch

from harness import PROTOCOL_VERSION
from harness.backbones import BACKBONES
from harness.config.sweep_file import Resources, Trial, method_class
from harness.data import load_dataset
from harness.data.base import DataSet
from harness.lib.files import file_digest, source_digest
from harness.lib.locks import acquire
from harness.lib.registry import resolve
from harness.lib.watchdog import Watchdog
from harness.noise.inject import NoiseIndex, make_noise, source_files
from harness.training.trainer import (
    Accelerator,
    DataChanged,
    EpochRecord,
    Outcome,
    Settings,
    Trainer,
    make_accelerator,
)
from methods.base import Method, Pairs

STORAGE = Path(".harness") / "trials"
"""Where checkpoints are kept while trials run, unless told otherwise: relative to where a command is run."""
PACKAGES = ("torch", "accelerate", "open_clip_torch", "timm", "transformers", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Setup:
    """What is known about a trial before it trains; it goes into the record."""

    trial: Trial
    data: DataSet
    noise: NoiseIndex
    fingerprint: str
    uses_clean_data: bool
    uses_ground_truth: bool
    n_networks: int
    trains: bool
    parameters: int
    environment: dict[str, str]


class AlreadyDone(RuntimeError):
    """The trial is on record as finished."""


class AlreadyFailed(RuntimeError):
    """Another sweep that runs at the same time has seen it fail."""


class Recorder(Protocol):
    """Where a trial's results go. Called on the main process only, which holds the trial's folder."""

    def start(self, setup: Setup) -> float:
        """Begin, or go on. Returns how many epochs are on record: a checkpoint of more would leave a hole.

        Raises:
            AlreadyDone, AlreadyFailed: it is on record as finished, or as just failed.
            DataChanged: what is on record of it is of other data.
        """

    def note(self, text: str) -> None: ...
    def epoch(self, record: EpochRecord) -> None: ...
    def finish(self, outcome: Outcome) -> None: ...


def run_trial(
    trial: Trial,
    recorder: Recorder,
    *,
    folder: Path | None = None,
    resources: Resources | None = None,
    expected: str | None = None,
    accelerator: Accelerator | None = None,
) -> Outcome:
    """Run one trial to its end, from its last sound checkpoint in `folder` if there is one.

    Args:
        folder: the trial's own, on storage that all its processes see; it goes when the trial is done. None:
            nothing is kept.
        resources: loader processes, and how long it may take.
        expected: the fingerprint that its data must have.

    Raises:
        Busy: another process is running it.
        AlreadyDone: it is on record as finished.
        DataChanged: its data are not those that it, or its sweep, was begun with.
        OutOfTime: its deadline has passed.
        Diverged: the loss is not finite; and whatever a method raises.
    """
    accelerator = accelerator or make_accelerator(trial.precision)
    main, resources = accelerator.is_main_process, resources or Resources()
    with contextlib.ExitStack() as stack:
        watch = Watchdog(
            folder,
            stall=resources.stall_minutes * 60,
            deadline=resources.deadline_hours and resources.deadline_hours * 3600,
            writes=main,
        )
        if folder and main:
            stack.enter_context(acquire(folder))
        stack.enter_context(watch)
        data = load_dataset(trial.dataset, **trial.dataset_options)
        if expected and fingerprint(trial, data) != expected:
            raise DataChanged(
                f"the data have changed since the sweep started: fingerprint {expected} then, "
                f"{fingerprint(trial, data)} now"
            )
        noise = noise_of(trial, data)
        trainer = build_trainer(
            trial,
            data,
            noise,
            accelerator,
            folder=folder,
            workers=resources.workers,
            heartbeat=watch.heartbeat,
        )
        recorded = recorder.start(_describe(trial, data, noise, trainer)) if main else 0
        notes = trainer.resume(at_most=recorded)
        for text in notes if main else ():
            recorder.note(text)
        outcome = trainer.fit(recorder.epoch if main else lambda record: None)
        if main:
            recorder.finish(outcome)
            if folder:
                shutil.rmtree(folder, ignore_errors=True)
        accelerator.wait_for_everyone()
    return outcome


def noise_of(trial: Trial, data: DataSet) -> NoiseIndex:
    """The noise index of a trial. Raises what `make_noise` raises."""
    return make_noise(
        data["train"],
        ratio=trial.noise_ratio,
        granularity=trial.noise_granularity,
        seed=trial.noise_seed,
        model=trial.noise,
    )


def fingerprint(trial: Trial, data: DataSet) -> str:
    """What a trial's numbers follow from beside its settings: the data set, and the files that its noise is
    made from.
    """
    files = source_files(trial.noise, trial.noise_ratio, trial.noise_seed)
    return "+".join([data.fingerprint, *(file_digest(f)[:16] for f in files)])


def build_trainer(
    trial: Trial,
    data: DataSet,
    noise: NoiseIndex,
    accelerator: Accelerator,
    *,
    folder: Path | None = None,
    workers: int = 0,
    heartbeat: Callable[[str], None] = lambda where: None,
) -> Trainer:
    """The method with its networks, and the loop around it. The truth and the clean set go to those that
    declare them.
    """
    data = replace(data, splits={**data.splits, "train": noise.words_of(data["train"])})
    kind = resolve("backbone", trial.backbone["kind"], BACKBONES)
    backbone = kind(kind.Config.model_validate(trial.backbone))
    cls = method_class(trial.method)
    splits = ["train", "dev", "test"] + (["meta"] if cls.uses_clean_data else [])
    with accelerator.main_process_first():
        inputs = {s: backbone.inputs(data, s, device=accelerator.device) for s in splits}
    given: dict[str, Any] = {}
    if cls.uses_ground_truth:
        if noise.matched is None:
            raise ValueError(
                f"method {trial.method!r} needs to know which pairs match, and of this noise nobody does"
            )
        given["ground_truth"] = torch.from_numpy(noise.matched)
    if cls.uses_clean_data:
        meta = data["meta"]
        given["clean"] = Pairs(torch.from_numpy(meta.owner), torch.arange(len(meta.captions)), "meta")
    method = cls(
        make_backbone=lambda network: backbone.make(network, trial.seed, inputs["train"]),
        pairs=Pairs(torch.from_numpy(noise.image), torch.arange(len(noise.image))),
        batch_size=trial.batch_size,
        seed=trial.seed,
        **given,
        **trial.hyper,
    )
    settings = Settings(
        epochs=trial.epochs,
        batch_size=trial.batch_size,
        lr=trial.lr,
        seed=trial.seed,
        weight_decay=trial.weight_decay,
        betas=trial.betas,
        eps=trial.eps,
        warmup_steps=trial.warmup_steps,
        clip_norm=trial.clip_norm,
        precision=trial.precision,
        decay_epochs=trial.decay_epochs,
        evaluate_every=trial.evaluate_every,
    )
    identity = backbone.identity(data)
    return Trainer(
        method,
        data,
        inputs,
        noise,
        settings,
        accelerator,
        backbone=identity,
        folder=folder,
        workers=workers,
        heartbeat=heartbeat,
    )


def _describe(trial: Trial, data: DataSet, noise: NoiseIndex, trainer: Trainer) -> Setup:
    method, accelerator = trainer.method, trainer.accelerator
    cls: Any = type(method)
    environment = {
        **_versions(),
        "python": platform.python_version(),
        "git_commit": _LOADED_COMMIT,
        "code": code_digest(cls),
        "protocol_version": str(PROTOCOL_VERSION),
        "backbone_digest": trainer.backbone,
        "device": torch.cuda.get_device_name()
        if accelerator.device.type == "cuda"
        else f"cpu ({platform.machine()})",
        "precision": "bf16"
        if accelerator.mixed_precision == "bf16"
        else str(trainer.dtype).removeprefix("torch."),
        "processes": str(accelerator.num_processes),
        "threads": str(torch.get_num_threads()),
    }
    return Setup(
        trial,
        data,
        noise,
        fingerprint(trial, data),
        method.uses_clean_data,
        method.uses_ground_truth,
        method.n_networks,
        method.trains,
        sum(p.numel() for p in method.parameters() if p.requires_grad),
        environment,
    )


def git_commit() -> str:
    """The commit that the code is at, with `+changes` if tracked files differ from it; `unknown` outside a
    checkout.
    """
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        changed = git(
            "status",
            "--porcelain",
            "--untracked-files=no",
            "--",
            "harness",
            "methods",
            ":/harness",
            ":/methods",
        )
        return git("rev-parse", "HEAD")[:12] + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@lru_cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


@lru_cache
def code_digest(method: Any) -> str:
    """Of a method class, 12 hex digits over the source of what makes a trial's numbers: the harness (less its
    reports), `methods/`, and the method's own classes.
    """
    own = "".join(inspect.getsource(cls) for cls in method.__mro__[: method.__mro__.index(Method)])
    return hashlib.sha256(f"{source_digest()} {own}".encode()).hexdigest()[:12]


# When this code is loaded: a worker may run trials long after the checkout has moved on.
_LOADED_COMMIT = git_commit()
source_digest()


def limit_threads(cpus: float) -> None:
    """As many threads as the trial has CPUs: more would fight with the trials beside it."""
    threads = max(1, int(cpus))
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)


class PrintRecorder:
    """Keeps nothing, prints a line an epoch: for `--no-tracking`."""

    def start(self, setup: Setup) -> float:
        noise = setup.noise
        print(
            f"trial {setup.trial.id}: {setup.trial.method} on {setup.trial.dataset}, "
            f"{len(noise.image)} pairs, noise {noise.nominal} (realised {noise.realised:.4f}, index "
            f"{noise.digest}), "
            f"{setup.parameters:,} parameters, {setup.environment['device']}, "
            f"{setup.environment['precision']}",
            flush=True,
        )
        return float("inf")

    def note(self, text: str) -> None:
        print(text, flush=True)

    def epoch(self, record: EpochRecord) -> None:
        shown = ("train/loss", "dev/rsum", "detection/auroc", "seconds/train")
        values = "  ".join(f"{k} {record.metrics[k]:.4g}" for k in shown if k in record.metrics)
        print(f"epoch {record.epoch}  {values}", flush=True)

    def finish(self, outcome: Outcome) -> None:
        for key in sorted(outcome.metrics):
            print(f"{key} {outcome.metrics[key]:.4f}", flush=True)
        print(f"weights {outcome.weights}", flush=True)
