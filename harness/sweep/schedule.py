"""Ray Tune runs the trials: how many at once, with what, and again where a machine failed. No other module
imports Ray.

One process: the trial runs in a Tune actor that is used again for the next one. More: a Tune function that
drives Ray Train's TorchTrainer. Our own trial code sees neither.

What a trial raises ends it as failed. A process that dies (killed, out of memory, its machine gone, hung) is
another matter: the trial is started again, up to `RETRIES` times, and goes on from its last epoch.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.config.sweep_file import Resources, Trial
from harness.lib.files import source_digest
from harness.lib.locks import Busy, acquire
from harness.lib.watchdog import take_termination_report
from harness.record.store import MlflowRecorder, Store, SweepHandle, describe_failure
from harness.record.verify import Comparison
from harness.sweep.probe import probe
from harness.training.run_trial import (
    AlreadyDone,
    AlreadyFailed,
    PrintRecorder,
    Recorder,
    limit_threads,
    run_trial,
)

for _name, _value in {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402  (the switches above are read on import)
from ray import tune  # noqa: E402

RETRIES = 2
DONE, FAILED, BUSY, UNRECORDED = "done", "failed", "busy", "unrecorded"


class ClusterError(RuntimeError):
    """Ray cannot give what the sweep asks for; the text is for the user."""


class StoreGone(BaseException):
    """The tracking store does not take results any more; the text is for the user. (Tune goes on after an
    `Exception` in a callback.)
    """


@dataclass(frozen=True)
class Task:
    """What every trial of a sweep is run with; plain data, so that it travels to other processes.

    `expected` [trial id] are the fingerprints of the data, `since` is when the sweep was started, `address`
    that of a cluster. `again`: the trial is on record, and is run once more to compare.
    """

    place: SweepHandle
    resources: Resources
    expected: Mapping[str, str]
    storage: Path
    folder: str
    since: float
    address: str | None = None
    again: bool = False


@dataclass(frozen=True)
class Finished:
    """A trial that ended: `done`, `failed`, `busy` (another process is running it) or `unrecorded` (the store
    is gone), and why.
    """

    trial: Trial
    seconds: float
    outcome: str
    reason: str


def start_ray(resources: Resources, address: str | None) -> None:
    """Start Ray here, or join a running cluster.

    Raises:
        ClusterError: no cluster at the address, or it lacks what a trial needs.
    """
    # What a user sets for the tracking store (a password, how often to try again) holds on every node.
    own = {k: v for k, v in os.environ.items() if k.startswith("MLFLOW_")}
    environment = {
        "env_vars": {"PYTHONPATH": os.pathsep.join(p for p in [os.getcwd(), *sys.path] if p), **own}
    }
    quiet: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": environment,
    }
    try:
        if address:
            ray.init(address=address, ignore_reinit_error=True, **quiet)
        elif not ray.is_initialized():
            slots = {"trial_slot": 1000} if resources.processes > 1 else None
            # By itself Ray would join a cluster that somebody has started on this machine.
            ray.init(address="local", include_dashboard=False, resources=slots, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClusterError(
            f"Ray does not start (--address {address}): {' '.join(str(error).split())[:200]}"
        ) from None
    have = ray.cluster_resources()
    needs = {"CPU": resources.cpus * resources.processes, "GPU": resources.gpus * resources.processes}
    if resources.processes > 1:
        needs["trial_slot"] = 1
    missing = [f"{k} {v:g} (there: {have.get(k, 0):g})" for k, v in needs.items() if v > have.get(k, 0)]
    if missing:
        hint = (
            "; start the cluster's head with --resources='{\"trial_slot\": 8}'"
            if "trial_slot" in str(missing)
            else ""
        )
        raise ClusterError(f"resources: a trial needs {', '.join(missing)}{hint}")


def stop_ray() -> None:
    """End Ray and every trial that it runs here; leave a cluster that we joined."""
    ray.shutdown()


def check_nodes(storage: Path, uri: str) -> list[str]:
    """What the nodes of a cluster cannot reach: the storage, the working folder, the tracking store, this
    very code. One node has it all.

    The probe: each node reads a file that we write, writes one that we read, and tries a lock that we hold.
    """
    nodes = [n for n in ray.nodes() if n["Alive"]]
    if len(nodes) < 2:
        return []
    if uri.startswith("sqlite"):
        return [
            f"tracking store {uri} is a file on this machine, and the cluster has {len(nodes)} nodes: "
            f"start `mlflow server --host 0.0.0.0` where all reach it, and name it with --tracking-uri "
            f"http://HOST:5000"
        ]
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    folder = storage / f"probe-{os.getpid()}-{time.time_ns()}"
    ask = ray.remote(num_cpus=0, max_retries=0)(probe)
    with acquire(folder):
        (folder / "ours").write_text(folder.name)
        asked = {
            n["NodeID"]: ask.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(n["NodeID"], soft=False)
            ).remote(n["NodeID"], folder, os.getcwd(), uri, source_digest())
            for n in nodes
        }
        faults = [
            f"node {n['NodeManagerAddress']} ({n['NodeManagerHostname']}): {fault}"
            for n in nodes
            for fault in _probed(asked[n["NodeID"]], folder / n["NodeID"], storage)
        ]
    shutil.rmtree(folder, ignore_errors=True)
    return faults


def _probed(answer: Any, written: Path, storage: Path) -> list[str]:
    """What a node answered, and whether what it wrote is here."""
    try:
        faults: list[str] = ray.get(answer, timeout=120)
    except Exception as error:
        return [f"the probe failed there: {' '.join(str(error).split())[-300:]}"]
    if not faults and not written.is_file():
        faults.append(
            f"what it writes to {storage} is not seen here: name a folder on storage that all nodes see "
            f"with --storage"
        )
    return faults


def run_trials(
    trials: list[Trial], task: Task, *, on_start: Callable[[Trial], None], on_end: Callable[[Finished], None]
) -> None:
    """Run the trials; each ends as a record in the store, finished or failed. Ray is started already.

    Where Ray kills a worker because memory runs out, Tune gives up altogether, so it is started again with
    what is left; a trial that was running each time has failed.

    Raises:
        StoreGone: the store stopped answering; trials that were running are ended, and their checkpoints
            stay.
    """
    watch = _Watch(task, on_start, on_end)
    crashes: Counter[str] = Counter()
    left = trials
    while left:
        try:
            _tune(left, task, watch)
            return
        except Exception as error:
            running = list(watch.running.values())
            if not running:
                raise
            stop_ray()
            for trial in running:
                crashes[trial.id] += 1
                if crashes[trial.id] > RETRIES:
                    watch.lost(trial, f"Ray ended its worker: {_innermost(error)}"[:500])
            start_ray(task.resources, task.address)
            left = [t for t in left if t.id not in watch.ended]


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _tune(trials: list[Trial], task: Task, watch: _Watch) -> None:
    several = task.resources.processes > 1
    run = tune.with_parameters(_drive_processes if several else _run_here, task=task)
    needs = {"trial_slot": 1} if several else {"cpu": task.resources.cpus, "gpu": task.resources.gpus}
    scratch = tempfile.mkdtemp(prefix="harness-ray-")
    tuner = tune.Tuner(
        tune.with_resources(run, needs),
        # As text: Tune copies the whole list for each trial, and takes some mappings for instructions of its
        # own.
        param_space={"trial": tune.grid_search([t.model_dump_json() for t in trials])},
        tune_config=tune.TuneConfig(reuse_actors=not several, max_concurrent_trials=_at_once(task.resources)),
        run_config=tune.RunConfig(
            storage_path=scratch,
            name="sweep",
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            callbacks=[watch],
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _at_once(resources: Resources) -> int:
    """0 is no limit; trials that drive their own workers must not start more than fit."""
    if resources.at_once:
        return resources.at_once
    if resources.processes == 1:
        return 0
    have = ray.cluster_resources()
    fit = have.get("CPU", 0) / (resources.cpus * resources.processes)
    if resources.gpus:
        fit = min(fit, have.get("GPU", 0) / (resources.gpus * resources.processes))
    return max(1, int(fit))


def _run_here(config: dict[str, Any], task: Task) -> dict[str, str]:
    """A one-process trial inside a Tune actor."""
    trial = Trial.model_validate_json(config["trial"])
    try:
        _work(trial, task)
    except Exception as error:
        return _ended(trial, task, error)
    return {"outcome": DONE, "reason": ""}


def _work(trial: Trial, task: Task, *, main: bool = True) -> None:
    """One process's part in a trial."""
    limit_threads(task.resources.cpus)
    folder = None if task.again else task.place.folder(task.storage, trial)
    recorder: Recorder = PrintRecorder()
    if main:
        recorder = (
            Comparison(task.place, trial)
            if task.again
            else MlflowRecorder(task.place, trial, folder=folder, since=task.since)
        )
    with _in_folder(task.folder):
        run_trial(trial, recorder, folder=folder, resources=task.resources, expected=task.expected[trial.id])


def _in_folder(folder: str) -> contextlib.AbstractContextManager[None]:
    """Ray's workers stand in folders of their own; paths in a sweep file are relative to where the sweep was
    started.
    """
    return contextlib.chdir(folder) if os.path.isdir(folder) else contextlib.nullcontext()


def _ended(trial: Trial, task: Task, error: BaseException) -> dict[str, str]:
    """What an exception out of a trial means; a failure ends as its record and not as an exception."""
    reason, details = describe_failure(error)
    if isinstance(error, AlreadyDone):
        return {"outcome": DONE, "reason": ""}
    if isinstance(error, (Busy, AlreadyFailed)):
        return {"outcome": BUSY if isinstance(error, Busy) else FAILED, "reason": str(error)}
    return {
        "outcome": FAILED if task.again else _record_failure(trial, task, reason, details),
        "reason": reason,
    }


def _record_failure(trial: Trial, task: Task, reason: str, details: str) -> str:
    """The outcome: failed, unrecorded where the store does not answer any more, done where the trial is on
    record as that.
    """
    try:
        Store(task.place.uri).fail(task.place, trial, reason, details)
    except AlreadyDone:
        return DONE
    except Exception as error:
        logging.getLogger(__name__).warning(
            "cannot record the failure of %s (%s): %s", trial.id, reason, error
        )
        return UNRECORDED
    return FAILED


def _drive_processes(config: dict[str, Any], task: Task) -> dict[str, str]:
    """A trial over several processes: Ray Train starts them, each runs the same `run_trial`."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources, trial = task.resources, Trial.model_validate_json(config["trial"])
    on_gpu = resources.gpus > 0
    per_worker = {"CPU": resources.cpus, **({"GPU": resources.gpus} if on_gpu else {})}
    scratch = tempfile.mkdtemp(prefix="harness-train-")
    try:
        TorchTrainer(
            _run_worker,
            train_loop_config={"trial": config["trial"], "task": task},
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=resources.processes, use_gpu=on_gpu, resources_per_worker=per_worker
            ),
            run_config=RunConfig(
                name=trial.id,
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            ),
        ).fit()
    except Exception as error:
        cause = _cause(error)
        if cause is None:
            raise  # Tune starts the trial again
        return _ended(trial, task, cause)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return {"outcome": DONE, "reason": ""}


def _cause(error: BaseException) -> BaseException | None:
    """What a trial's own code raised, out of what Ray Train wraps it in, by rank; None where a process died.

    The others then raise too, for the one that they wait for does not answer: that is no cause.
    """
    raised = list(getattr(error, "worker_failures", {}).values())
    if any(
        type(e).__module__.partition(".")[0] == "ray" for e in raised
    ):  # Ray tells that a process does not answer
        return None
    return next((e for e in raised if not _lost_another(e)), None)


def _lost_another(error: BaseException) -> bool:
    network = (torch.distributed.DistBackendError, torch.distributed.DistNetworkError)
    return isinstance(error, network) or (
        isinstance(error, RuntimeError) and "gloo" in str(error) and "onnection" in str(error)
    )


def _run_worker(config: dict[str, Any]) -> None:
    """One process of a trial. An exception here ends all of them, and the driver records it."""
    from ray import train

    _work(
        Trial.model_validate_json(config["trial"]),
        config["task"],
        main=train.get_context().get_world_rank() == 0,
    )


class _Watch(tune.Callback):
    """Tells the sweep what started and ended, and records trials whose process died once too often."""

    def __init__(
        self, task: Task, on_start: Callable[[Trial], None], on_end: Callable[[Finished], None]
    ) -> None:
        self.task, self.on_start, self.on_end = task, on_start, on_end
        self.running: dict[str, Trial] = {}
        self.started: dict[str, float] = {}
        self.ended: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its settings to restore a sweep by itself; ours continues from the store, so nothing
        is kept.
        """
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ours = _ours(trial)
        if ours.id not in self.started:  # and not its second start after a failure
            self.started[ours.id] = time.monotonic()
            self.on_start(ours)
        self.running[ours.id] = ours

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result or {}
        self.tell(
            _ours(trial), result.get("outcome", FAILED), result.get("reason", "it ended without a result")
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        cause = trial.get_pickled_error() if hasattr(trial, "get_pickled_error") else None
        self.lost(
            _ours(trial),
            f"the worker process died{f' ({type(cause).__name__})' if cause else ''}, {RETRIES + 1} times",
            str(cause or ""),
        )

    def lost(self, trial: Trial, reason: str, details: str = "") -> None:
        """A trial whose process could not say how it ended: record it, with its last words where it left
        some.
        """
        words, told = take_termination_report(self.task.place.folder(self.task.storage, trial))
        reason = words or reason
        self.tell(
            trial,
            FAILED if self.task.again else _record_failure(trial, self.task, reason, told or details),
            reason,
        )

    def tell(self, trial: Trial, outcome: str, reason: str) -> None:
        """Pass on how a trial ended. Raises StoreGone where that could not be recorded."""
        self.running.pop(trial.id, None)
        self.ended.add(trial.id)
        self.on_end(Finished(trial, time.monotonic() - self.started[trial.id], outcome, reason))
        if outcome == UNRECORDED:
            raise StoreGone(f"{self.task.place.uri} does not take results any more ({reason})")


def _ours(trial: Any) -> Trial:
    return Trial.model_validate_json(trial.config["trial"])
