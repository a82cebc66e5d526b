"""MLflow, the one record of every result. No other module imports it.

A sweep is an experiment: a parent run that holds the plan, and one child run for each trial. A trial is
done when its run is FINISHED and carries its test metrics.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import random
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from harness import PROTOCOL_VERSION
from harness.config.sweep_file import Sweep, Trial
from harness.lib.watchdog import take_termination_report
from harness.training.run_trial import AlreadyDone, AlreadyFailed, Setup
from harness.training.trainer import DataChanged, EpochRecord, Outcome

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from mlflow import MlflowClient as MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

for _name in ("mlflow", "mlflow.store.db.utils", "alembic"):
    logging.getLogger(_name).setLevel(logging.ERROR)

TRIAL, PARENT, RUN_NAME = "trial_id", "mlflow.parentRunId", "mlflow.runName"
_PATIENCE = 300.0  # seconds that a busy store is asked again
_BUSY_STORE = (
    "QueuePool limit",
    "database is locked",
    "deadlock detected",
    "could not serialize",
    "too many clients",
)
PER_ATTEMPT_TAGS = ("git_commit", "device", "processes", "threads")
"""What may differ between attempts at one trial. Code, versions and the rest may not: its numbers could not
be repeated.
"""


class StoreError(RuntimeError):
    """The tracking store does not answer, or does not hold what is asked for; the text is for the user."""


@dataclass(frozen=True)
class SweepHandle:
    """Where a sweep's runs go; plain data, so that it travels to other processes."""

    uri: str
    sweep: str
    experiment_id: str
    parent_run: str

    def folder(self, storage: Path, trial: Trial) -> Path:
        """Where a trial keeps its checkpoints: a sweep of one name in another store has others."""
        store = hashlib.sha256(f"{self.uri} {self.experiment_id}".encode()).hexdigest()[:6]
        return storage / f"{self.sweep}-{store}" / trial.id


@dataclass(frozen=True)
class TrialRecord:
    """What the store holds of one trial."""

    trial: Trial
    run_id: str
    status: str
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return self.status == "FINISHED" and "test/rsum" in self.metrics


@dataclass(frozen=True)
class Speed:
    """How fast a finished trial trained."""

    method: str
    dataset: str
    backbone: dict[str, Any]
    batch_size: int
    steps_per_second: float
    device: str
    processes: str


@dataclass(frozen=True)
class SweepRecord:
    """The plan of a sweep, and what the store holds of it: at most one record for each planned trial."""

    name: str
    description: str
    select: bool
    planned: tuple[Trial, ...]
    records: dict[str, TrialRecord]
    reference: str | None = None


def absolute_uri(uri: str | None) -> str:
    """The URI with absolute paths (workers change directory); default: `mlflow.db` in the working folder."""
    if uri is None:
        return f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        return f"sqlite:///{Path.cwd() / uri.removeprefix('sqlite:///')}"
    return uri


class _Persistent:
    """A client that asks again where the store is only busy. (MLflow itself tries again where a server cannot
    be reached.)

    Every call of ours may be made twice: values are told apart by key, step and time.

    Raises (each of its methods):
        StoreError: the server does not answer any more.
    """

    def __init__(self, client: Any, *, seconds: float) -> None:
        self._client, self._seconds = client, seconds

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            end, pause = time.monotonic() + self._seconds, 0.2
            while True:
                try:
                    return function(*args, **kwargs)
                except MlflowException as error:
                    if "API request to" in str(error):
                        raise StoreError(
                            f"the tracking store does not answer any more: "
                            f"{' '.join(str(error).split())[:300]}"
                        ) from error
                    if time.monotonic() > end or not any(words in str(error) for words in _BUSY_STORE):
                        raise
                time.sleep(pause * (1 + random.random()))
                pause = min(10.0, 2 * pause)

        return call


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Before a sweep a dead server is told at once; during one it gets MLflow's retries, or as many as the
    user has set.
    """
    own = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    before = {key: os.environ.get(key) for key in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


class Store:
    """A tracking store that answered.

    Raises:
        StoreError: it does not answer, or cannot be opened.
    """

    def __init__(self, uri: str | None = None, *, patient: bool = True) -> None:
        self.uri = absolute_uri(uri)
        with contextlib.nullcontext() if patient else _impatient():
            try:
                self.client: Any = _Persistent(MlflowClient(self.uri), seconds=_PATIENCE if patient else 0)
                self.client.search_experiments(max_results=1)
            except Exception as error:  # MLflow raises many kinds here
                reason = (
                    str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
                )
                raise StoreError(
                    f"tracking store {self.uri} does not answer: {reason} (allowed: sqlite:///FILE, or the "
                    f"http(s) address of a running `mlflow server`)"
                ) from None

    # A sweep ----------------------------------------------------------------------------------

    def open_sweep(self, sweep: Sweep) -> SweepHandle:
        """The sweep's experiment and parent run, made on the first start and found again later; the plan is
        kept current.
        """
        experiment = self.client.get_experiment_by_name(sweep.name)
        if experiment is None:
            experiment_id = self.client.create_experiment(sweep.name, self._artifact_location(sweep.name))
        else:
            experiment_id = experiment.experiment_id
        parents = self._search(experiment_id, "tags.kind = 'sweep'")
        if parents:
            parent = parents[0].info.run_id
            self.client.update_run(parent, status="RUNNING")
        else:
            tags = {
                "kind": "sweep",
                RUN_NAME: f"sweep {sweep.name}",
                "mlflow.note.content": sweep.file.description,
            }
            parent = self.client.create_run(experiment_id, tags=tags).info.run_id
        plan = {
            "name": sweep.name,
            "description": sweep.file.description,
            "select": sweep.file.select,
            "reference": sweep.file.reference,
            "protocol_version": PROTOCOL_VERSION,
            "trials": [t.model_dump(mode="json") for t in sweep.trials],
        }
        self.client.log_text(parent, json.dumps(plan, indent=1), "plan.json")
        self.client.log_text(parent, sweep.text, "sweep.yaml")
        return SweepHandle(self.uri, sweep.name, experiment_id, parent)

    def close_sweep(self, place: SweepHandle, status: str, **counts: int) -> None:
        """Say how a sweep ended: FINISHED, FAILED or KILLED."""
        for key, value in counts.items():
            self.client.set_tag(place.parent_run, key, str(value))
        self.client.set_terminated(place.parent_run, status)

    def read_sweep(self, name: str) -> SweepRecord:
        """Plan and records of a sweep.

        Raises:
            StoreError: there is no such sweep, or its plan is of another protocol version.
        """
        experiment = self.client.get_experiment_by_name(name)
        parents = self._search(experiment.experiment_id, "tags.kind = 'sweep'") if experiment else []
        if not experiment or not parents:
            names = [e.name for e in self.client.search_experiments() if e.name != "Default"]
            raise StoreError(
                f"no sweep {name!r} in {self.uri} (it holds: {', '.join(sorted(names)) or 'none'})"
            )
        plan = json.loads(self._read_artifact(parents[0].info.run_id, "plan.json"))
        if plan["protocol_version"] != PROTOCOL_VERSION:
            raise StoreError(
                f"sweep {name!r} was made under protocol version {plan['protocol_version']}, this is version "
                f"{PROTOCOL_VERSION}: records of different versions are not merged"
            )
        planned = tuple(Trial.model_validate(t) for t in plan["trials"])
        place = SweepHandle(self.uri, name, experiment.experiment_id, parents[0].info.run_id)
        records = self.records(place, planned)
        return SweepRecord(name, plan["description"], plan["select"], planned, records, plan.get("reference"))

    def records(self, place: SweepHandle, trials: Iterable[Trial]) -> dict[str, TrialRecord]:
        """What the store holds of these trials, by id. A finished run wins over others of the same trial,
        then the last one begun.
        """
        wanted = {t.id: t for t in trials}
        found: dict[str, TrialRecord] = {}
        for run in self._search(place.experiment_id, "tags.kind = 'trial'"):
            trial = wanted.get(run.data.tags.get(TRIAL, ""))
            if trial is None or (
                trial.id in found and (found[trial.id].done or run.info.status != "FINISHED")
            ):
                continue
            tags = {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.")}
            found[trial.id] = TrialRecord(
                trial, run.info.run_id, run.info.status, dict(run.data.metrics), tags
            )
        return found

    def find_records(self, sweep: Sweep) -> dict[str, TrialRecord]:
        """Records of a sweep's trials without opening it: empty if it was never started."""
        place = self.find_sweep(sweep.name)
        return self.records(place, sweep.trials) if place else {}

    def find_sweep(self, name: str) -> SweepHandle | None:
        """Where a sweep's runs are, without its parent run; None if it was never started."""
        experiment = self.client.get_experiment_by_name(name)
        return SweepHandle(self.uri, name, experiment.experiment_id, "") if experiment else None

    def speeds(self) -> list[Speed]:
        """Of every finished trial in the store that the plan of its sweep still names."""
        found = []
        for experiment in self.client.search_experiments():
            for parent in self._search(experiment.experiment_id, "tags.kind = 'sweep'"):
                try:
                    plan = json.loads(self._read_artifact(parent.info.run_id, "plan.json"))
                    trials = (
                        [Trial.model_validate(t) for t in plan["trials"]]
                        if plan["protocol_version"] == PROTOCOL_VERSION
                        else []
                    )
                except (
                    StoreError,
                    ValueError,
                    KeyError,
                    TypeError,
                ):  # another sweep's plan that is damaged, or names a method that is not here
                    continue
                for r in self.records(
                    SweepHandle(self.uri, experiment.name, experiment.experiment_id, parent.info.run_id),
                    trials,
                ).values():
                    pairs = r.metrics.get("cost/pairs_per_second")
                    if r.done and pairs:
                        t, tags = r.trial, r.tags
                        found.append(
                            Speed(
                                t.method,
                                t.dataset_label,
                                t.backbone,
                                t.batch_size,
                                pairs / t.batch_size,
                                tags.get("device", "?"),
                                tags.get("processes", "?"),
                            )
                        )
        return found

    def read_array(self, run_id: str, path: str) -> Mapping[str, np.ndarray]:
        """An `.npz` artifact of a run."""
        with np.load(io.BytesIO(self._read_artifact(run_id, path)), allow_pickle=False) as content:
            return {k: content[k] for k in content.files}

    def artifacts(self, run_id: str, folder: str) -> list[str]:
        """The artifacts in a folder of a run, sorted; empty where there is none."""
        return sorted(file.path for file in self.client.list_artifacts(run_id, folder))

    def parameters(self, run_id: str) -> dict[str, str]:
        return dict(self.client.get_run(run_id).data.params)

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """Steps and values of a metric, as they were logged."""
        return [(m.step, m.value) for m in self.client.get_metric_history(run_id, metric)]

    def runs_address(self, sweep: str) -> str:
        """What the addresses of a sweep's runs begin with in the MLflow UI: on the server, or where `mlflow
        ui` serves a database file by default.
        """
        experiment = self.client.get_experiment_by_name(sweep)
        given = urlsplit(self.uri)
        # Without a name and password that may stand before the host.
        server = (
            f"{given.scheme}://{given.netloc.rpartition('@')[2]}{given.path.rstrip('/')}"
            if given.netloc
            else "http://127.0.0.1:5000"
        )
        return f"{server}/#/experiments/{experiment.experiment_id if experiment else 0}/runs/"

    # A trial ----------------------------------------------------------------------------------

    def fail(self, place: SweepHandle, trial: Trial, reason: str, details: str = "") -> None:
        """Record that a trial failed, and why. Its run is made if it had not got that far."""
        found = self.unfinished_run(place, trial)
        run_id = found.info.run_id if found else self.create_run(place, trial, {"attempts": "1"})
        self.client.set_tag(run_id, "failure", reason[:5000])
        if details:
            self.client.log_text(run_id, details, "failure.txt")
        self.client.set_terminated(run_id, "FAILED")

    def stop(self, place: SweepHandle, trial: Trial, reason: str) -> None:
        """Record that a trial was stopped from outside, if it had begun."""
        found = self.unfinished_run(place, trial)
        if found and found.info.status == "RUNNING":
            self.client.set_tag(found.info.run_id, "failure", reason[:5000])
            self.client.set_terminated(found.info.run_id, "KILLED")

    def unfinished_run(self, place: SweepHandle, trial: Trial) -> Run | None:
        """The run that an attempt at a trial goes on with, if there is one.

        Raises:
            AlreadyDone: the trial is on record as finished.
        """
        runs = self._search(place.experiment_id, f"tags.{TRIAL} = '{trial.id}'")
        for run in runs:
            if run.info.status == "FINISHED":
                raise AlreadyDone(f"trial {trial.id} is done already: run {run.info.run_id}")
        return next((r for r in runs if "given_up" not in r.data.tags), None)

    def create_run(self, place: SweepHandle, trial: Trial, tags: Mapping[str, str]) -> str:
        """A new run of a trial, with its parameters."""
        own = {
            "kind": "trial",
            TRIAL: trial.id,
            PARENT: place.parent_run,
            RUN_NAME: f"{trial.method} noise={trial.noise_ratio:g} seed={trial.seed}",
            "cell": f"{trial.method} {trial.dataset} noise={trial.noise_ratio:g} {trial.cell_id[:6]}",
            "cell_id": trial.cell_id,
            "protocol_version": str(PROTOCOL_VERSION),
        }
        run = self.client.create_run(place.experiment_id, tags={**own, **tags})
        self.client.log_batch(
            run.info.run_id, params=[Param(k, str(v)[:6000]) for k, v in parameters(trial).items()]
        )
        return str(run.info.run_id)

    def _artifact_location(self, name: str) -> str | None:
        """A server decides for itself; beside a database file, a folder next to it."""
        if not self.uri.startswith("sqlite:///"):
            return None
        return (Path(self.uri.removeprefix("sqlite:///")).parent / "mlartifacts" / name).as_uri()

    def _search(self, experiment_id: str, query: str) -> list[Run]:
        found: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs([experiment_id], query, max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    def _read_artifact(self, run_id: str, path: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            try:
                return Path(self.client.download_artifacts(run_id, path, folder)).read_bytes()
            except (MlflowException, OSError) as error:
                raise StoreError(f"run {run_id} has no artifact {path}: {error}") from None


class MlflowRecorder:
    """Writes a trial into its run as it goes; steps that an interrupted attempt already logged are not logged
    twice.

    The run's tag `attempts` counts the starts, and `history` says in words how each attempt but the last
    ended, and what the next went on from.

    Args:
        folder: the trial's own, where an attempt may have left its last words.
        since: when the sweep was started: what another sweep has seen fail after that is not tried again.
    """

    def __init__(
        self, place: SweepHandle, trial: Trial, *, folder: Path | None = None, since: float = float("inf")
    ) -> None:
        self.place, self.trial, self.folder, self.since = place, trial, folder, since

    def start(self, setup: Setup) -> float:
        self.store = Store(self.place.uri)
        self.client = self.store.client
        self.test, self.logged = setup.data["test"], -1
        noise = setup.noise
        tags = {
            **setup.environment,
            "data_fingerprint": setup.fingerprint,
            "noise_digest": noise.digest,
            "noise_granularity": noise.granularity,
            "noise_model": noise.model,
            "uses_clean_data": str(setup.uses_clean_data).lower(),
            "uses_ground_truth": str(setup.uses_ground_truth).lower(),
        }
        before = self.store.unfinished_run(self.place, self.trial)
        if before and before.info.status == "FAILED" and before.info.end_time > self.since * 1000:
            raise AlreadyFailed(before.data.tags.get("failure", "it failed in another sweep"))
        before = before and self._fitting(before, tags)
        if before:
            self.run_id = before.info.run_id
            tags = self._again(before, tags)
        else:
            tags["attempts"] = "1"
            self.run_id, self.history = self.store.create_run(self.place, self.trial, tags), ""
        metrics = {"cost/parameters": float(setup.parameters), "noise/ambiguous": float(noise.ambiguous)}
        metrics |= {} if noise.matched is None else {"noise/realised_ratio": noise.realised}
        metrics |= {f"skipped/{split}_images": float(count) for split, count in setup.data.skipped.items()}
        known = before.data.metrics if before else {}
        self._log({k: v for k, v in metrics.items() if k not in known}, step=0, tags=tags if before else None)
        self._log_array(
            "noise_index", image=noise.image, **({} if noise.matched is None else {"matched": noise.matched})
        )
        if not before or not before.inputs or not before.inputs.dataset_inputs:
            self._log_noise(setup)
        return self.logged + 1 if setup.trains else float("inf")

    def _fitting(self, run: Run, tags: Mapping[str, str]) -> Run | None:
        """The run, if an attempt as described by these tags may go on with it; else it is given up.

        Raises:
            DataChanged: it is of other data.
        """
        known = run.data.tags
        for key, words in (("data_fingerprint", "data"), ("noise_digest", "noise index")):
            if known.get(key, tags[key]) != tags[key]:
                raise DataChanged(
                    f"the {words} of this trial changed since it was begun: {known[key]} then, "
                    f"{tags[key]} now"
                )
        changed = [
            f"{k} {known[k]} -> {v}"
            for k, v in tags.items()
            if k not in PER_ATTEMPT_TAGS and known.get(k, v) != v
        ]
        if not changed:
            return run
        self.client.set_tag(
            run.info.run_id, "given_up", f"begun anew in another run: {', '.join(changed)}"[:5000]
        )
        self.client.set_terminated(run.info.run_id, "KILLED")
        return None

    def _again(self, run: Run, tags: dict[str, str]) -> dict[str, str]:
        """Take up a run: what is on record of it, how the attempt before ended, and its tags from now on."""
        known = run.data.tags
        self.logged = max((step for step, _ in self.store.history(self.run_id, "seconds/train")), default=-1)
        words, details = take_termination_report(self.folder) if self.folder else ("", "")
        if details:
            self.client.log_text(self.run_id, details, "termination_report.txt")
        ended = known.get("failure") or words or "its process ended without a word"
        attempt = int(known.get("attempts", "0"))
        self.history = known.get("history", "")
        tags["attempts"] = str(attempt + 1)
        if attempt:
            moved = "".join(
                f"; {k} {known[k]} -> {tags[k]}"
                for k in PER_ATTEMPT_TAGS
                if k in known and known[k] != tags[k]
            )
            tags["history"] = self._add(
                f"attempt {attempt}, {self.logged + 1} epochs on record: {ended}{moved}"
            )
        if "failure" in known:
            self.client.delete_tag(self.run_id, "failure")
        self.client.update_run(self.run_id, status="RUNNING")
        return tags

    def note(self, text: str) -> None:
        self.client.set_tag(self.run_id, "history", self._add(text))

    def _add(self, text: str) -> str:
        self.history = f"{self.history}\n{text}".strip()[-5000:]
        return self.history

    def _log_noise(self, setup: Setup) -> None:
        noise = setup.noise
        profile = json.dumps(
            {
                "pairs": len(noise.image),
                "nominal": noise.nominal,
                "realised": None if noise.matched is None else noise.realised,
            }
        )
        source = json.dumps(
            {
                "seed": noise.seed,
                "granularity": noise.granularity,
                "model": noise.model,
                "data": setup.fingerprint,
            }
        )
        name = f"{setup.data.name} noise {noise.nominal:g} {noise.granularity} seed {noise.seed}"
        index = Dataset(
            name=name, digest=noise.digest, source_type="noise index", source=source, profile=profile
        )
        self._log_input(DatasetInput(index, [InputTag("mlflow.data.context", "train")]))

    def epoch(self, record: EpochRecord) -> None:
        if record.epoch <= self.logged:
            return
        if record.confidence is not None:
            self._log_array(f"confidence/epoch_{record.epoch:03d}", confidence=record.confidence)
        self._log(
            record.metrics, step=record.epoch
        )  # last: what is looked for when an interrupted trial goes on

    def finish(self, outcome: Outcome) -> None:
        i2t, t2i = outcome.i2t, outcome.t2i
        groups = {"i2t_group": self.test.image_group, "t2i_group": self.test.caption_group}
        self._log_array(
            "test_rankings", i2t_rank=i2t.rank, i2t_top=i2t.top, t2i_rank=t2i.rank, t2i_top=t2i.top, **groups
        )
        self._log(outcome.metrics, step=0, tags={"weights_digest": outcome.weights})
        self.client.set_terminated(self.run_id, "FINISHED")  # last: a run that says so is whole

    def _log(self, metrics: Mapping[str, float], *, step: int, tags: Mapping[str, str] | None = None) -> None:
        now = int(time.time() * 1000)
        found = [Metric(k, float(v), now, step) for k, v in metrics.items()]
        self.client.log_batch(
            self.run_id, metrics=found, tags=[RunTag(k, v) for k, v in (tags or {}).items()]
        )

    def _log_input(self, given: DatasetInput) -> None:
        """Trials of one seed share their noise index, and MLflow fails where two runs are the first to name
        it at once: the second try finds it there."""
        for attempt in range(5):
            try:
                self.client.log_inputs(self.run_id, [given])
                return
            except MlflowException:
                if attempt == 4:
                    raise
                time.sleep(0.1 * 2**attempt)

    def _log_array(self, path: str, **arrays: np.ndarray) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{Path(path).name}.npz"
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
            self.client.log_artifact(self.run_id, str(file), str(Path(path).parent) if "/" in path else None)


def parameters(trial: Trial) -> dict[str, Any]:
    """A trial as flat MLflow parameters; hyper-parameters as `METHOD.KEY`, the words of a sweep file."""
    fields = trial.model_dump(mode="json")
    hyper, backbone, options, noise = (
        fields.pop(k) for k in ("hyper", "backbone", "dataset_options", "noise")
    )
    fields["backbone"] = trial.backbone_label
    if trial.noise != Trial.model_fields["noise"].default:
        fields |= {f"noise.{k}": v for k, v in noise.items()}
    for prefix, nested in (
        (f"{trial.method.rpartition(':')[2]}.", hyper),
        ("backbone.", backbone),
        ("dataset.", options),
    ):
        fields |= {f"{prefix}{k}": v for k, v in nested.items()}
    return fields


def describe_failure(error: BaseException) -> tuple[str, str]:
    """A failure in one line, and its traceback."""
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
    return reason, "".join(traceback.format_exception(error))
