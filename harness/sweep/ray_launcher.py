"""Ray Tune runs the trials: how many at the same time, with which resources, and again where a machine
failed.

No other module imports Ray, and it is imported when the launcher starts. A one-process trial runs in a Tune
actor that is reused for the next one. For several processes a Tune function drives Ray Train's TorchTrainer.
The code around a trial (`harness.sweep.attempt`) sees neither.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.config.resources import Resources
from harness.config.search import EarlyStopping
from harness.config.trial import Trial
from harness.lib.locks import acquire
from harness.record.provenance import harness_digest
from harness.sweep.attempt import (
    DONE,
    FAILED,
    RETRIES,
    Ending,
    EpochEnded,
    Task,
    attempt,
    ending,
    record_lost,
    record_stopped,
    work,
)
from harness.sweep.launcher import LaunchError, OnEnd, OnStart, report_end
from harness.sweep.probe import SERVER, probe

_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
"""What Ray reads when it is imported."""
_EPOCHS, _SCORE = "epochs", "dev_rsum"
"""What a trial reports to Tune after an epoch: epochs trained, and dev rSum."""


class RayLauncher:
    """Runs trials under Ray, started here or joined at an address.

    Args:
        address: of a running cluster (HOST:PORT or `auto`); None: Ray is started on this machine.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = address

    def start(self, resources: Resources) -> None:
        """Start Ray, or join the cluster.

        Raises:
            LaunchError: no cluster at the address, or it lacks what a trial needs.
        """
        ray = _ray()
        # The user's settings for the tracking store (a password, the number of retries) hold on every node.
        mlflow = {k: v for k, v in os.environ.items() if k.startswith("MLFLOW_")}
        path = os.pathsep.join(p for p in [os.getcwd(), *sys.path] if p)
        options: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "runtime_env": {"env_vars": {"PYTHONPATH": path, **mlflow}},
        }
        on_termination = signal.getsignal(signal.SIGTERM)
        try:
            if self.address:
                ray.init(address=self.address, ignore_reinit_error=True, **options)
            elif not ray.is_initialized():
                slots = {"trial_slot": 1000} if resources.processes > 1 else None
                # Without an address Ray would join any cluster that somebody has started on this machine.
                ray.init(address="local", include_dashboard=False, resources=slots, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise LaunchError(f"Ray does not start (--address {self.address}): {reason}") from None
        finally:
            signal.signal(signal.SIGTERM, on_termination)  # Ray's own would end this process without a record
        _check_resources([n["Resources"] for n in ray.nodes() if n["Alive"]], resources)

    def check(self, storage: Path, uri: str) -> list[str]:
        """What the nodes of a cluster cannot reach: the storage, the working directory, the tracking store,
        the same code. A single node has it all.

        Each node reads a file that this machine writes, writes one that this machine reads, and tries a lock
        that this machine holds.
        """
        ray = _ray()
        nodes = [n for n in ray.nodes() if n["Alive"]]
        if len(nodes) < 2:
            return []
        if uri.startswith("sqlite"):
            return [
                f"tracking store {uri} is a file on this machine, and the cluster has {len(nodes)} nodes: "
                f"start {SERVER} where all reach it, and name it with --tracking-uri http://HOST:5000"
            ]
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        directory = storage / f"probe-{os.getpid()}-{time.time_ns()}"
        remote = ray.remote(num_cpus=0, max_retries=0)(probe)
        errors = []
        with acquire(directory):
            (directory / "ours").write_text(directory.name)
            answers = {}
            for node in nodes:
                strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                answers[node["NodeID"]] = remote.options(scheduling_strategy=strategy).remote(
                    node["NodeID"], directory, os.getcwd(), uri, harness_digest()
                )
            for node in nodes:
                name = f"node {node['NodeManagerAddress']} ({node['NodeManagerHostname']})"
                answer = _answer(answers[node["NodeID"]], directory / node["NodeID"], storage)
                errors += [f"{name}: {error}" for error in answer]
        shutil.rmtree(directory, ignore_errors=True)
        return errors

    def run(self, trials: Iterable[Trial], task: Task, *, on_start: OnStart, on_end: OnEnd) -> None:
        """Run the trials; each ends as a record in the store, finished or failed.

        Where Ray kills a worker because memory runs out, Tune may give up altogether: it is started again
        with the trials that are left, and a trial that was running each time has failed.

        Raises:
            StoreGone: the store stopped answering; trials that were running are ended, and their checkpoints
                stay.
        """
        watcher = _Watcher(task, on_start, on_end)
        crashes: Counter[str] = Counter()
        left = list(trials)
        while left:
            try:
                _tune(left, task, watcher)
                return
            except Exception as error:
                running = list(watcher.running.values())
                if not running:
                    raise
                self.stop()
                for trial in running:
                    crashes[trial.id] += 1
                    if crashes[trial.id] > RETRIES:
                        watcher.lost(trial, f"Ray ended its worker: {_innermost(error)}"[:500])
                self.start(task.resources)
                left = [t for t in left if t.id not in watcher.ended]

    def stop(self) -> None:
        """End Ray and all trials that it runs here; leave a cluster that was joined."""
        _ray().shutdown()


def _ray() -> Any:
    """Ray, with the switches that it reads on import."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    return ray


def _check_resources(nodes: list[dict[str, float]], resources: Resources) -> None:
    """Raises LaunchError where a cluster lacks what a trial needs, or none of its nodes has what a process
    does: such a trial would wait without an end.

    Args:
        nodes: what each has.
    """
    available = {k: sum(node.get(k, 0) for node in nodes) for node in nodes for k in node}
    needs = {"CPU": resources.cores * resources.processes, "GPU": resources.gpus * resources.processes}
    if resources.processes > 1:
        needs["trial_slot"] = 1
    missing = [
        f"{k} {v:g} (there: {available.get(k, 0):g})" for k, v in needs.items() if v > available.get(k, 0)
    ]
    if needs["CPU"] > available.get("CPU", 0) and resources.workers:
        missing[0] += f": {resources.cpus:g} and {resources.workers} loader workers for each process"
    if missing:
        hint = (
            "; start the cluster's head with --resources='{\"trial_slot\": 8}'"
            if "trial_slot" in str(missing)
            else ""
        )
        raise LaunchError(f"resources: a trial needs {', '.join(missing)}{hint}")
    if not any(n.get("CPU", 0) >= resources.cores and n.get("GPU", 0) >= resources.gpus for n in nodes):
        there = "; ".join(f"CPU {n.get('CPU', 0):g}, GPU {n.get('GPU', 0):g}" for n in nodes)
        raise LaunchError(
            f"resources: a process needs CPU {resources.cores:g}, GPU {resources.gpus:g} on one node, and "
            f"the nodes have: {there}"
        )


def _answer(answer: Any, written: Path, storage: Path) -> list[str]:
    """What a node answered, and whether the file that it wrote is visible here."""
    try:
        errors: list[str] = _ray().get(answer, timeout=120)
    except Exception as error:
        return [f"the probe failed there: {' '.join(str(error).split())[-300:]}"]
    if not errors and not written.is_file():
        errors.append(
            f"what it writes to {storage} is not visible here: name a directory on storage that all nodes "
            "see with --storage"
        )
    return errors


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


# Tune ----------------------------------------------------------------------------------------------


def _tune(trials: list[Trial], task: Task, watcher: _Watcher) -> None:
    _ray()
    from ray import tune

    several = task.resources.processes > 1
    run = tune.with_parameters(_drive_processes if several else _run_here, task=task)
    scheduler = _asha(task.asha, max(t.epochs for t in trials)) if task.asha else None
    needs = {"trial_slot": 1} if several else {"cpu": task.resources.cores, "gpu": task.resources.gpus}
    scratch = tempfile.mkdtemp(prefix="harness-ray-")
    tuner = tune.Tuner(
        tune.with_resources(run, needs),
        # As text: Tune copies the whole list for each trial, and takes some mappings for instructions of its
        # own.
        param_space={"trial": tune.grid_search([t.model_dump_json() for t in trials])},
        tune_config=tune.TuneConfig(
            reuse_actors=not (several or scheduler),
            max_concurrent_trials=_at_once(task.resources),
            scheduler=scheduler,
        ),
        run_config=tune.RunConfig(
            storage_path=scratch,
            name="sweep",
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            callbacks=[_callback(watcher)],
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
    available = _ray().cluster_resources()
    fit = available.get("CPU", 0) / (resources.cores * resources.processes)
    if resources.gpus:
        fit = min(fit, available.get("GPU", 0) / (resources.gpus * resources.processes))
    return max(1, int(fit))


def _run_here(config: dict[str, Any], task: Task) -> dict[str, str]:
    """A one-process trial inside a Tune actor; where trials may be stopped early, it reports its epochs."""
    trial = _trial(config)
    return _result(attempt(trial, task, epoch_ended=_reporter(trial) if task.asha else None))


def _reporter(trial: Trial) -> EpochEnded:
    """Reports dev rSum to Tune, which does not return from it where it stops the trial. The last epoch's
    comes too late to stop anything.
    """
    from ray import tune

    def report(epochs: int, rsum: float | None) -> None:
        if rsum is not None and epochs < trial.epochs:
            tune.report({_EPOCHS: epochs, _SCORE: rsum})

    return report


def _asha(settings: EarlyStopping, epochs: int) -> Any:
    """A scheduler for Tune: one ASHA for each method, data set, noise and seed: others are no measure of a
    try.
    """
    from ray.tune.schedulers import ASHAScheduler, TrialScheduler

    class OnePerCell(TrialScheduler):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            # Without a metric of its own: Tune would ask for it in the result at the end of a trial too.
            self._of_cell: dict[Any, Any] = {}

        def _of(self, trial: Any) -> Any:
            given = _trial(trial.config)
            noise = (given.noise_ratio, given.noise_granularity, repr(given.noise), given.noise_seed)
            data = (given.dataset, repr(given.dataset_options), repr(given.backbone))
            key = (given.method, given.seed, noise, data)
            if key not in self._of_cell:
                self._of_cell[key] = ASHAScheduler(
                    time_attr=_EPOCHS,
                    metric=_SCORE,
                    mode="max",
                    max_t=epochs,
                    grace_period=settings.grace_epochs,
                    reduction_factor=settings.reduction,
                    stop_last_trials=False,
                )
            return self._of_cell[key]

        def on_trial_add(self, controller: Any, trial: Any) -> None:
            self._of(trial).on_trial_add(controller, trial)

        def on_trial_error(self, controller: Any, trial: Any) -> None:
            self._of(trial).on_trial_error(controller, trial)

        def on_trial_result(self, controller: Any, trial: Any, result: Any) -> str:
            return str(self._of(trial).on_trial_result(controller, trial, result))

        def on_trial_complete(self, controller: Any, trial: Any, result: Any) -> None:
            self._of(trial).on_trial_complete(controller, trial, result)

        def on_trial_remove(self, controller: Any, trial: Any) -> None:
            self._of(trial).on_trial_remove(controller, trial)

        def choose_trial_to_run(self, controller: Any, **_: Any) -> Any:
            waiting = ("PENDING", "PAUSED")
            return next((t for t in controller.get_trials() if t.status in waiting), None)

        def debug_string(self) -> str:
            return f"ASHA for each of {len(self._of_cell)} cells"

    return OnePerCell()


def _drive_processes(config: dict[str, Any], task: Task) -> dict[str, str]:
    """A trial over several processes: Ray Train starts them, each does its `work`."""
    _ray()
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    resources, trial = task.resources, _trial(config)
    on_gpu = resources.gpus > 0
    per_worker = {"CPU": resources.cores, **({"GPU": resources.gpus} if on_gpu else {})}
    scratch = tempfile.mkdtemp(prefix="harness-train-")
    no_retry = FailureConfig(max_failures=0, controller_failure_limit=0)  # Tune starts the trial again
    try:
        TorchTrainer(
            _run_worker,
            train_loop_config={**config, "task": task},
            torch_config=_torch_config(resources),
            scaling_config=ScalingConfig(
                num_workers=resources.processes, use_gpu=on_gpu, resources_per_worker=per_worker
            ),
            run_config=RunConfig(name=trial.id, storage_path=scratch, failure_config=no_retry),
        ).fit()
    except Exception as error:
        cause = _cause(error)
        if cause is None:
            raise
        return _result(ending(trial, task, cause))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return _result(Ending(trial, DONE))


def _torch_config(resources: Resources) -> Any:
    """How the processes of a trial talk to each other."""
    from ray.train.torch import TorchConfig

    return TorchConfig(
        backend="nccl" if resources.gpus > 0 else "gloo", timeout_s=math.ceil(resources.collective_timeout)
    )


def _run_worker(config: dict[str, Any]) -> None:
    """One process of a trial. An exception here ends all of them, and the driver records it."""
    work(_trial(config), config["task"])


def _trial(config: dict[str, Any]) -> Trial:
    return Trial.model_validate_json(config["trial"])


def _result(ended: Ending) -> dict[str, str]:
    return {"outcome": ended.outcome, "reason": ended.reason}


def _cause(error: BaseException) -> BaseException | None:
    """The exception that a trial's own code raised, out of what Ray Train wraps it in, by rank; None where a
    process died.

    The other processes then raise too, since the dead one does not answer: that is no cause.
    """
    raised = list(getattr(error, "worker_failures", {}).values())
    if any(type(e).__module__.partition(".")[0] == "ray" for e in raised):  # a process does not answer
        return None
    return next((e for e in raised if not _lost_another(e)), None)


def _lost_another(error: BaseException) -> bool:
    import torch

    network = (torch.distributed.DistBackendError, torch.distributed.DistNetworkError)
    return isinstance(error, network) or (
        isinstance(error, RuntimeError) and "gloo" in str(error) and "onnection" in str(error)
    )


# What the driver sees ------------------------------------------------------------------------------


class _Watcher:
    """Reports to the sweep what started and ended, and records trials whose process died once too often."""

    def __init__(self, task: Task, on_start: OnStart, on_end: OnEnd) -> None:
        self.task, self.on_start, self.on_end = task, on_start, on_end
        self.running: dict[str, Trial] = {}
        self.started: dict[str, float] = {}
        self.ended: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks to restore a sweep; a sweep here resumes from the store instead. (What
        shows the progress on a terminal cannot be pickled.)
        """
        return {}

    def begin(self, trial: Trial) -> None:
        """A trial has started, perhaps again after a failure."""
        if trial.id not in self.started:
            self.started[trial.id] = time.monotonic()
            self.on_start(trial)
        self.running[trial.id] = trial

    def lost(self, trial: Trial, reason: str, details: str = "") -> None:
        """Its process died once too often."""
        self.end(record_lost(trial, self.task, reason, details))

    def end(self, ended: Ending) -> None:
        """Report an end. Raises StoreGone where it could not be recorded."""
        trial = ended.trial
        self.running.pop(trial.id, None)
        self.ended.add(trial.id)
        seconds = time.monotonic() - self.started[trial.id]
        report_end(dataclasses.replace(ended, seconds=seconds), self.task, self.on_end)


def _callback(watcher: _Watcher) -> Any:
    """A callback for Tune that reports to the watcher."""
    from ray import tune

    class Callback(tune.Callback):  # type: ignore[misc]
        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            watcher.begin(_trial(trial.config))

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            result = trial.last_result or {}
            if "outcome" not in result and _EPOCHS in result:
                watcher.end(
                    record_stopped(_trial(trial.config), watcher.task, result[_EPOCHS], result[_SCORE])
                )
                return
            outcome, reason = result.get("outcome", FAILED), result.get("reason", "it ended without a result")
            watcher.end(Ending(_trial(trial.config), outcome, reason))

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            error = trial.get_pickled_error() if hasattr(trial, "get_pickled_error") else None
            kind = f" ({type(error).__name__})" if error else ""
            reason = f"the worker process died{kind}, {RETRIES + 1} times"
            watcher.lost(_trial(trial.config), reason, str(error or ""))

    return Callback()
