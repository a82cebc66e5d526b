"""Ray Tune runs the trials: how many at once, with what. No other module imports Ray.

One process: the trial runs in a Tune actor that is used again for the next one. More: a Tune function that
drives Ray Train's TorchTrainer. Our own trial code sees neither.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.console import console
from harness.spec import Resources, Trial
from harness.tracking import MlflowRecorder, Place, Store, describe_failure
from harness.trial import PrintRecorder, limit_threads, run_trial

for _name, _value in {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402  (the switches above are read on import)
from ray import tune  # noqa: E402


class ClusterError(RuntimeError):
    """Ray cannot give what the sweep asks for; the text is for the user."""


@dataclass(frozen=True)
class Finished:
    """A trial that ended; `failure` is the reason, or empty."""

    trial: Trial
    seconds: float
    failure: str


def start_ray(resources: Resources, address: str | None) -> None:
    """Start Ray here, or join a running cluster.

    Raises:
        ClusterError: no cluster at the address, or it lacks what a trial needs.
    """
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(p for p in [os.getcwd(), *sys.path] if p)}}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "runtime_env": environment}
    try:
        if address:
            ray.init(address=address, ignore_reinit_error=True, **quiet)
        elif not ray.is_initialized():
            slots = {"trial_slot": 1000} if resources.processes > 1 else None
            ray.init(include_dashboard=False, resources=slots, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClusterError(f"Ray does not start (--address {address}): {' '.join(str(error).split())[:200]}") from None
    have = ray.cluster_resources()
    needs = {"CPU": resources.cpus * resources.processes, "GPU": resources.gpus * resources.processes}
    if resources.processes > 1:
        needs["trial_slot"] = 1
    missing = [f"{k} {v:g} (there: {have.get(k, 0):g})" for k, v in needs.items() if v > have.get(k, 0)]
    if missing:
        hint = "; start the cluster's head with --resources='{\"trial_slot\": 8}'" if "trial_slot" in str(missing) else ""
        raise ClusterError(f"resources: a trial needs {', '.join(missing)}{hint}")


def run_trials(
    trials: list[Trial], place: Place, resources: Resources, *, storage: Path, on_start: Callable[[], None], on_end: Callable[[Finished], None]
) -> None:
    """Run the trials; each ends as a record in the store, finished or failed. Ray is started already."""
    config = {"place": place, "resources": resources, "storage": str(storage), "folder": os.getcwd()}
    several = resources.processes > 1
    run = tune.with_parameters(_drive_processes if several else _run_here, shared=config)
    needs = {"trial_slot": 1} if several else {"cpu": resources.cpus, "gpu": resources.gpus}
    scratch = tempfile.mkdtemp(prefix="harness-ray-")
    tuner = tune.Tuner(
        tune.with_resources(run, needs),
        param_space={"trial": tune.grid_search([t.model_dump(mode="json") for t in trials])},
        tune_config=tune.TuneConfig(reuse_actors=not several, max_concurrent_trials=_at_once(resources)),
        run_config=tune.RunConfig(
            storage_path=scratch, name="sweep", verbose=0, failure_config=tune.FailureConfig(max_failures=0),
            callbacks=[_Watch(place, on_start, on_end)],
        ),
    )
    tuner.fit()


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


def _run_here(config: dict[str, Any], shared: dict[str, Any]) -> dict[str, str]:
    """A one-process trial inside a Tune actor."""
    limit_threads(shared["resources"].cpus)
    with _in_folder(shared["folder"]):
        return {"failure": _attempt(Trial.model_validate(config["trial"]), shared)}


def _in_folder(folder: str) -> contextlib.AbstractContextManager[None]:
    """Ray's workers stand in folders of their own; paths in a sweep file are relative to where the sweep was started."""
    return contextlib.chdir(folder) if os.path.isdir(folder) else contextlib.nullcontext()


def _attempt(trial: Trial, shared: dict[str, Any]) -> str:
    """Run a trial; what goes wrong ends as its record and not as an exception. Returns the reason, or nothing."""
    place: Place = shared["place"]
    try:
        run_trial(trial, MlflowRecorder(place, trial), storage=Path(shared["storage"]), workers=shared["resources"].workers)
    except Exception as error:
        reason, details = describe_failure(error)
        Store(place.uri).fail(place, trial, reason, details)
        return reason
    return ""


def _drive_processes(config: dict[str, Any], shared: dict[str, Any]) -> dict[str, str]:
    """A trial over several processes: Ray Train starts them, each runs the same `run_trial`."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    resources: Resources = shared["resources"]
    trial = Trial.model_validate(config["trial"])
    on_gpu = resources.gpus > 0
    per_worker = {"CPU": resources.cpus, **({"GPU": resources.gpus} if on_gpu else {})}
    scratch = tempfile.mkdtemp(prefix="harness-train-")
    try:
        TorchTrainer(
            _run_worker,
            train_loop_config={"trial": config["trial"], "shared": shared},
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo"),
            scaling_config=ScalingConfig(num_workers=resources.processes, use_gpu=on_gpu, resources_per_worker=per_worker),
            run_config=RunConfig(name=trial.id, storage_path=scratch, failure_config=FailureConfig(max_failures=0, controller_failure_limit=0)),
        ).fit()
    except Exception as error:  # what a worker raised comes wrapped, by rank
        causes = list(getattr(error, "worker_failures", {}).values()) or [error]
        reason, details = describe_failure(getattr(causes[0], "cause", None) or causes[0])
        Store(shared["place"].uri).fail(shared["place"], trial, reason, details)
        return {"failure": reason}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return {"failure": ""}


def _run_worker(config: dict[str, Any]) -> None:
    """One process of a trial. An exception here ends all of them, and the driver records it."""
    from ray import train

    shared, trial = config["shared"], Trial.model_validate(config["trial"])
    limit_threads(shared["resources"].cpus)
    main = train.get_context().get_world_rank() == 0
    recorder = MlflowRecorder(shared["place"], trial) if main else PrintRecorder()
    with _in_folder(shared["folder"]):
        run_trial(trial, recorder, storage=Path(shared["storage"]), workers=shared["resources"].workers)


class _Watch(tune.Callback):
    """Tells the sweep what started and ended, and records trials whose worker died before it could."""

    def __init__(self, place: Place, on_start: Callable[[], None], on_end: Callable[[Finished], None]) -> None:
        self.place, self.on_start, self.on_end = place, on_start, on_end
        self.started: dict[str, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its settings to restore a sweep by itself; ours continues from the store, so nothing is kept."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.started[trial.trial_id] = time.monotonic()
        self.on_start()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, (trial.last_result or {}).get("failure", ""))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        cause = trial.get_pickled_error() if hasattr(trial, "get_pickled_error") else None
        reason = f"the worker process died ({type(cause).__name__ if cause else 'no cause given'})"
        ours = Trial.model_validate(trial.config["trial"])
        try:
            Store(self.place.uri).fail(self.place, ours, reason, str(cause or ""))
        except Exception as error:  # a store that is gone must not end the other trials
            console.print(f"cannot record the failure of {ours.id}: {error}", markup=False)
        self._end(trial, reason)

    def _end(self, trial: Any, failure: str) -> None:
        seconds = time.monotonic() - self.started.get(trial.trial_id, time.monotonic())
        self.on_end(Finished(Trial.model_validate(trial.config["trial"]), seconds, failure))
