"""MLflow, the one record of every result. No other module imports it, and it is imported when a store is
opened.

A sweep is an experiment: a parent run that holds the plan, and a child run for each trial. A trial is done
when its run is FINISHED and carries its test metrics.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import random
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from urllib.parse import unquote, urlsplit

import numpy as np

from harness import PROTOCOL_VERSION
from harness.config.trial import Trial
from harness.lib.registry import UnknownName
from harness.record.types import (
    AlreadyDone,
    MethodFacts,
    Speed,
    StoreError,
    SweepHandle,
    SweepRecord,
    TrialRecord,
)

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

    from harness.config.sweep_file import Sweep

TRIAL, PARENT, RUN_NAME, CREATION = "trial_id", "mlflow.parentRunId", "mlflow.runName", "creation_id"
SUPERSEDED = ("superseded", "given_up")
"""Tags of a run whose trial was restarted in another run: of today, and of older versions."""
_PATIENCE = 300.0  # seconds for which a busy store is asked again
_BUSY_STORE = (
    "QueuePool limit",
    "database is locked",
    "deadlock detected",
    "could not serialize",
    "too many clients",
)
Value = TypeVar("Value")


@dataclass(frozen=True)
class Run:
    """What the store holds of a run.

    Attributes:
        end_time: milliseconds since 1970; 0 while it runs.
        artifact_uri: where its artifacts are.
        has_dataset: whether a data-set input is logged.
    """

    run_id: str
    experiment_id: str
    status: str
    end_time: int
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    has_dataset: bool
    artifact_uri: str

    @classmethod
    def of(cls, run: MlflowRun) -> Run:
        """From MLflow's own type."""
        info, data = run.info, run.data
        inputs = bool(run.inputs and run.inputs.dataset_inputs)
        return cls(
            info.run_id,
            info.experiment_id,
            info.status,
            int(info.end_time or 0),
            data.tags,
            data.params,
            data.metrics,
            inputs,
            info.artifact_uri,
        )


class Client:
    """The calls to MLflow that the harness makes.

    A call to a store that is only busy is repeated. (MLflow itself repeats calls to a server that cannot be
    reached.) Values are identified by key, step and time, so a call may be made twice; a run is identified by
    a tag of its creation, so that it is never made twice.

    Raises (each method):
        StoreError: the server does not answer any more.
    """

    seconds_in_mlflow: ClassVar[float] = 0.0
    """Seconds that this process has spent in calls to MLflow."""

    def __init__(self, uri: str, *, seconds: float) -> None:
        began = time.perf_counter()
        self._mlflow = _mlflow_client(uri)
        Client.seconds_in_mlflow += time.perf_counter() - began
        self._seconds = seconds
        self._artifact_uris: dict[str, str] = {}
        self._remote = bool(urlsplit(uri).netloc)

    # Experiments

    def experiments(self) -> dict[str, str]:
        """Ids of all experiments, by name."""
        listed = self._call(lambda: self._mlflow.search_experiments())
        return {e.name: e.experiment_id for e in listed}

    def experiment_id(self, name: str) -> str | None:
        """The id of an experiment, or None."""
        experiment = self._call(lambda: self._mlflow.get_experiment_by_name(name))
        return experiment.experiment_id if experiment else None

    def create_experiment(self, name: str, artifact_location: str | None) -> str:
        """A new experiment, or the one that another process has just made. Returns its id."""

        def create() -> str:
            known = self._mlflow.get_experiment_by_name(name)
            return str(
                known.experiment_id if known else self._mlflow.create_experiment(name, artifact_location)
            )

        return self._call(create)

    # Runs

    def search_runs(self, experiment_id: str, query: str) -> list[Run]:
        """All runs of an experiment that a query names, the newest first."""
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = self._call(
                lambda token=token: self._mlflow.search_runs(  # type: ignore[misc]
                    [experiment_id], query, max_results=1000, page_token=token
                )
            )
            runs += map(self._known, page)
            token = page.token
            if not token:
                return runs

    def get_run(self, run_id: str) -> Run:
        """A run by its id."""
        return self._known(self._call(lambda: self._mlflow.get_run(run_id)))

    def _known(self, run: MlflowRun) -> Run:
        """A run in our own type; where its artifacts are is remembered."""
        known = Run.of(run)
        self._artifact_uris[known.run_id] = known.artifact_uri
        return known

    def create_run(self, experiment_id: str, tags: Mapping[str, str]) -> str:
        """Make one run, whatever is repeated on the way. Returns its id."""
        creation = uuid.uuid4().hex
        query = f"tags.{CREATION} = '{creation}'"
        tried = False

        def create() -> str:
            nonlocal tried
            known = self._mlflow.search_runs([experiment_id], query) if tried else []
            tried = True
            run = (
                known[0]
                if known
                else self._mlflow.create_run(experiment_id, tags={**tags, CREATION: creation})
            )
            return str(run.info.run_id)

        run_id: str = self._call(create)
        # A server may have made a run whose answer was lost on the way: MLflow then asks again by itself.
        for run in self.search_runs(experiment_id, query) if self._remote else ():
            if run.run_id != run_id:
                self._call(lambda lost=run.run_id: self._mlflow.delete_run(lost))  # type: ignore[misc]
        return run_id

    def set_status(self, run_id: str, status: str) -> None:
        """RUNNING, or how the run ended: FINISHED, FAILED or KILLED."""
        if status == "RUNNING":
            self._call(lambda: self._mlflow.update_run(run_id, status=status))
        else:
            self._call(lambda: self._mlflow.set_terminated(run_id, status))

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        """Set a tag of a run."""
        self._call(lambda: self._mlflow.set_tag(run_id, key, value))

    def delete_tag(self, run_id: str, key: str) -> None:
        """Remove a tag of a run."""
        self._call(lambda: self._mlflow.delete_tag(run_id, key))

    def log(
        self,
        run_id: str,
        *,
        metrics: Mapping[str, float] | None = None,
        step: int = 0,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Metrics at a step, parameters and tags of a run, in one call."""
        from mlflow.entities import Metric, Param, RunTag

        now = int(time.time() * 1000)
        batch = {
            "metrics": [Metric(k, float(v), now, step) for k, v in (metrics or {}).items()],
            "params": [Param(k, v) for k, v in (params or {}).items()],
            "tags": [RunTag(k, v) for k, v in (tags or {}).items()],
        }
        self._call(lambda: self._mlflow.log_batch(run_id, **batch))

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """Steps and values of a metric, as they were logged."""
        listed = self._call(lambda: self._mlflow.get_metric_history(run_id, metric))
        return [(m.step, m.value) for m in listed]

    def log_dataset(
        self, run_id: str, *, name: str, digest: str, kind: str, source: str, profile: str
    ) -> None:
        """The data-set input of a run.

        Trials of one seed share their noise index, and MLflow fails where two runs are the first to name it
        at
        once: a later try finds it there.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        dataset = Dataset(name=name, digest=digest, source_type=kind, source=source, profile=profile)
        given = DatasetInput(dataset, [InputTag("mlflow.data.context", "train")])
        for attempt in range(5):
            try:
                self._call(lambda: self._mlflow.log_inputs(run_id, [given]))
                return
            except MlflowException:
                if attempt == 4:
                    raise
                time.sleep(0.1 * 2**attempt)

    # Artifacts

    def log_text(self, run_id: str, text: str, path: str) -> None:
        """A text file among the artifacts of a run."""
        self._call(lambda: self._mlflow.log_text(run_id, text, path))

    def log_file(self, run_id: str, file: Path, directory: str | None = None) -> None:
        """A file among the artifacts of a run."""
        self._call(lambda: self._mlflow.log_artifact(run_id, str(file), directory))

    def artifacts(self, run_id: str, directory: str) -> list[str]:
        """The artifacts in a directory of a run, sorted; empty where there is none."""
        local = self._local(run_id)
        if local:
            return sorted(f"{directory}/{file.name}" for file in (local / directory).glob("*"))
        listed = self._call(lambda: self._mlflow.list_artifacts(run_id, directory))
        return sorted(file.path for file in listed)

    def read(self, run_id: str, path: str) -> bytes:
        """The content of an artifact. Raises StoreError where there is none."""
        from mlflow.exceptions import MlflowException

        local = self._local(run_id)
        with tempfile.TemporaryDirectory() as directory:
            try:
                if local:
                    return (local / path).read_bytes()
                file = self._call(lambda: self._mlflow.download_artifacts(run_id, path, directory))
                return Path(file).read_bytes()
            except (MlflowException, OSError) as error:
                raise StoreError(f"run {run_id} has no artifact {path}: {error}") from None

    def _local(self, run_id: str) -> Path | None:
        """The directory of a run's artifacts where it is on this machine: MLflow's download asks the database
        three times and copies each file, which makes up a quarter of the time of a report.
        """
        if run_id not in self._artifact_uris:
            self.get_run(run_id)
        scheme, _, path = self._artifact_uris[run_id].partition("://")
        directory = Path(unquote(path)) if scheme == "file" else None
        return directory if directory and directory.is_dir() else None

    def _call(self, function: Callable[[], Value]) -> Value:
        from mlflow.exceptions import MlflowException

        end, pause = time.monotonic() + self._seconds, 0.2
        while True:
            began = time.perf_counter()
            try:
                return function()
            except MlflowException as error:
                if "API request to" in str(error):
                    text = " ".join(str(error).split())[:300]
                    raise StoreError(f"the tracking store does not answer any more: {text}") from error
                if time.monotonic() > end or not any(words in str(error) for words in _BUSY_STORE):
                    raise
            finally:
                Client.seconds_in_mlflow += time.perf_counter() - began
            time.sleep(pause * (1 + random.random()))
            pause = min(10.0, 2 * pause)


def _mlflow_client(uri: str) -> Any:
    """MLflow's own client, quiet. What is set here holds before MLflow is imported, unless the user has set
    it.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    from mlflow import MlflowClient

    for name in ("mlflow", "mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(uri)


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Before a sweep a dead server is reported at once; during one it gets MLflow's retries, or
    the user's.
    """
    settings = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def absolute_uri(uri: str | None) -> str:
    """The URI with absolute paths (workers change directory); default: `mlflow.db` in the working
    directory.
    """
    if uri is None:
        return f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        return f"sqlite:///{Path.cwd() / uri.removeprefix('sqlite:///')}"
    return uri


def is_missing(uri: str | None) -> bool:
    """Whether a URI names a database file that does not exist; opening it would make it."""
    path = absolute_uri(uri).removeprefix("sqlite:///")
    return path != absolute_uri(uri) and not Path(path).exists()


class Store:
    """A tracking store that answered.

    Raises:
        StoreError: it does not answer, or cannot be opened.
    """

    def __init__(self, uri: str | None = None, *, patient: bool = True) -> None:
        self.uri = absolute_uri(uri)
        with contextlib.nullcontext() if patient else _impatient():
            try:
                self.client = Client(self.uri, seconds=_PATIENCE if patient else 0)
                self.client.experiment_id("Default")
            except Exception as error:  # MLflow raises many kinds here
                text = str(error).strip()
                reason = text.splitlines()[0][:200] if text else type(error).__name__
                raise StoreError(
                    f"tracking store {self.uri} does not answer: {reason} (allowed: sqlite:///FILE, or the "
                    "http(s) address of a running `mlflow server`)"
                ) from None

    # A sweep ----------------------------------------------------------------------------------

    def open_sweep(self, sweep: Sweep) -> SweepHandle:
        """The sweep's experiment and parent run, made on the first start and reused later; the plan is kept
        current.
        """
        experiment_id = self.client.experiment_id(sweep.name)
        if experiment_id is None:
            location = self._artifact_location(sweep.name)
            experiment_id = self.client.create_experiment(sweep.name, location)
        parents = self._parents(experiment_id)
        if parents:
            parent = parents[0].run_id
            self.client.set_status(parent, "RUNNING")
        else:
            tags = {
                "kind": "sweep",
                RUN_NAME: f"sweep {sweep.name}",
                "mlflow.note.content": sweep.file.description,
            }
            parent = self.client.create_run(experiment_id, tags)
        self.client.log_text(parent, json.dumps(plan_of(sweep), indent=1), "plan.json")
        self.client.log_text(parent, sweep.text, "sweep.yaml")
        return SweepHandle(self.uri, sweep.name, experiment_id, parent)

    def close_sweep(self, handle: SweepHandle, status: str, **counts: int) -> None:
        """Record how a sweep ended: FINISHED, FAILED or KILLED."""
        for key, value in counts.items():
            self.client.set_tag(handle.parent_run, key, str(value))
        self.client.set_status(handle.parent_run, status)

    def read_sweep(self, name: str) -> SweepRecord:
        """Plan and records of a sweep. Loads no method where the plan has what a reader must know of them.

        Raises:
            StoreError: there is no such sweep, or its plan is of another protocol version.
        """
        experiment_id = self.client.experiment_id(name)
        parents = self._parents(experiment_id) if experiment_id else []
        if not experiment_id or not parents:
            names = sorted(n for n in self.client.experiments() if n != "Default")
            raise StoreError(f"no sweep {name!r} in {self.uri} (it holds: {', '.join(names) or 'none'})")
        plan = json.loads(self.client.read(parents[0].run_id, "plan.json"))
        if plan["protocol_version"] != PROTOCOL_VERSION:
            raise StoreError(
                f"sweep {name!r} was made under protocol version {plan['protocol_version']}, this is version "
                f"{PROTOCOL_VERSION}: records of different versions are not merged"
            )
        trials = trials_of(plan)
        facts = plan.get("methods") or {}
        methods = {
            t.method: MethodFacts(**{**facts[t.method], "published": tuple(facts[t.method]["published"])})
            if t.method in facts
            else MethodFacts.of(t.method)
            for t in trials
        }
        handle = SweepHandle(self.uri, name, experiment_id, parents[0].run_id)
        records = self.records(handle, trials)
        return SweepRecord(
            name, plan["description"], plan["select"], trials, records, methods, plan.get("reference")
        )

    def planned(self, name: str, text: str) -> tuple[Trial, ...] | None:
        """The trials of a sweep's plan, if it was made from a file of this text under this
        protocol version.
        """
        experiment_id = self.client.experiment_id(name)
        parents = self._parents(experiment_id) if experiment_id else []
        try:
            if not parents or self.client.read(parents[0].run_id, "sweep.yaml").decode() != text:
                return None
            plan = json.loads(self.client.read(parents[0].run_id, "plan.json"))
        except (StoreError, ValueError):  # a lost artifact
            return None
        return trials_of(plan) if plan["protocol_version"] == PROTOCOL_VERSION else None

    def records(self, handle: SweepHandle, trials: Iterable[Trial]) -> dict[str, TrialRecord]:
        """What the store holds of these trials, by id. A finished run wins over others of the same trial,
        then the last one started.
        """
        wanted = {t.id: t for t in trials}
        records: dict[str, TrialRecord] = {}
        for run in self.client.search_runs(handle.experiment_id, "tags.kind = 'trial'"):
            trial = wanted.get(run.tags.get(TRIAL, ""))
            if trial is None:
                continue
            known = records.get(trial.id)
            if known and (known.done or run.status != "FINISHED"):
                continue
            tags = {k: v for k, v in run.tags.items() if not k.startswith("mlflow.")}
            records[trial.id] = TrialRecord(trial, run.run_id, run.status, dict(run.metrics), tags)
        return records

    def find_records(self, name: str, trials: Iterable[Trial]) -> dict[str, TrialRecord]:
        """Records of a sweep's trials without opening it: empty if it was never started."""
        handle = self.find_sweep(name)
        return self.records(handle, trials) if handle else {}

    def find_sweep(self, name: str) -> SweepHandle | None:
        """The handle of a sweep, without its parent run; None if it was never started."""
        experiment_id = self.client.experiment_id(name)
        return SweepHandle(self.uri, name, experiment_id, "") if experiment_id else None

    def speeds(self) -> list[Speed]:
        """The speed of each finished trial in the store that the plan of its sweep still names."""
        speeds = []
        for name, experiment_id in self.client.experiments().items():
            for parent in self._parents(experiment_id):
                try:
                    plan = json.loads(self.client.read(parent.run_id, "plan.json"))
                    trials = trials_of(plan) if plan["protocol_version"] == PROTOCOL_VERSION else ()
                    records = self.records(SweepHandle(self.uri, name, experiment_id, parent.run_id), trials)
                except (StoreError, UnknownName, ValueError, KeyError, TypeError):
                    continue  # another sweep's plan that is damaged, or names a method that is not here
                speeds += [speed for r in records.values() if (speed := _speed(r))]
        return speeds

    def read_array(self, run_id: str, path: str) -> Mapping[str, np.ndarray]:
        """The arrays of an `.npz` artifact of a run. Raises StoreError where there is none."""
        with np.load(io.BytesIO(self.client.read(run_id, path)), allow_pickle=False) as content:
            return {k: content[k] for k in content.files}

    def runs_address(self, sweep: str) -> str:
        """What the addresses of a sweep's runs begin with in the MLflow UI: on the server, or where `mlflow
        ui` serves a database file by default.
        """
        experiment_id = self.client.experiment_id(sweep)
        given = urlsplit(self.uri)
        # Without a name and password that may stand before the host.
        host = given.netloc.rpartition("@")[2]
        server = f"{given.scheme}://{host}{given.path.rstrip('/')}" if host else "http://127.0.0.1:5000"
        return f"{server}/#/experiments/{experiment_id or 0}/runs/"

    # A trial ----------------------------------------------------------------------------------

    def fail(self, handle: SweepHandle, trial: Trial, reason: str, details: str = "") -> None:
        """Record that a trial failed, and why. Its run is made if it had not got that far."""
        run = self.unfinished_run(handle, trial)
        run_id = run.run_id if run else self.create_run(handle, trial, {"attempts": "1"})
        self.client.set_tag(run_id, "failure", reason[:5000])
        if details:
            self.client.log_text(run_id, details, "failure.txt")
        self.client.set_status(run_id, "FAILED")

    def stop(self, handle: SweepHandle, trial: Trial, reason: str) -> None:
        """Record that a trial was stopped from outside, if it had started."""
        run = self.unfinished_run(handle, trial)
        if run and run.status == "RUNNING":
            self.client.set_tag(run.run_id, "failure", reason[:5000])
            self.client.set_status(run.run_id, "KILLED")

    def unfinished_run(self, handle: SweepHandle, trial: Trial) -> Run | None:
        """The run that an attempt at a trial resumes, if there is one.

        Raises:
            AlreadyDone: the trial is on record as finished.
        """
        runs = self.client.search_runs(handle.experiment_id, f"tags.{TRIAL} = '{trial.id}'")
        for run in runs:
            if run.status == "FINISHED":
                raise AlreadyDone(f"trial {trial.id} is done already: run {run.run_id}")
        return next((r for r in runs if not r.tags.keys() & set(SUPERSEDED)), None)

    def create_run(self, handle: SweepHandle, trial: Trial, tags: Mapping[str, str]) -> str:
        """A new run of a trial, with its parameters. Returns its id."""
        identity = {
            "kind": "trial",
            TRIAL: trial.id,
            PARENT: handle.parent_run,
            RUN_NAME: f"{trial.method} noise={trial.noise_ratio:g} seed={trial.seed}",
            "cell": f"{trial.method} {trial.dataset} noise={trial.noise_ratio:g} {trial.cell_id[:6]}",
            "cell_id": trial.cell_id,
            "protocol_version": str(PROTOCOL_VERSION),
        }
        run_id = self.client.create_run(handle.experiment_id, {**identity, **tags})
        self.client.log(run_id, params={k: str(v)[:6000] for k, v in trial.parameters().items()})
        return run_id

    def _parents(self, experiment_id: str) -> list[Run]:
        return self.client.search_runs(experiment_id, "tags.kind = 'sweep'")

    def _artifact_location(self, name: str) -> str | None:
        """A server decides for itself; for a database file it is a directory next to it."""
        if not self.uri.startswith("sqlite:///"):
            return None
        return (Path(self.uri.removeprefix("sqlite:///")).parent / "mlartifacts" / name).as_uri()


def plan_of(sweep: Sweep) -> dict[str, Any]:
    """The plan of a sweep as JSON: what a report needs to know of it without its file and its methods."""
    facts = {t.method: MethodFacts.of(t.method) for t in sweep.trials}
    return {
        "name": sweep.name,
        "description": sweep.file.description,
        "select": sweep.file.select,
        "reference": sweep.file.reference,
        "protocol_version": PROTOCOL_VERSION,
        "methods": {name: vars(fact) for name, fact in facts.items()},
        "ids": [t.id for t in sweep.trials],
        "trials": [t.model_dump(mode="json") for t in sweep.trials],
    }


def trials_of(plan: Mapping[str, Any]) -> tuple[Trial, ...]:
    """The trials of a plan; plans of older versions have no ids, which then take the methods' classes."""
    contents: Sequence[Any] = plan["trials"]
    ids = plan.get("ids") or [None] * len(contents)
    return tuple(Trial.recorded(content, i) for content, i in zip(contents, ids, strict=True))


def _speed(record: TrialRecord) -> Speed | None:
    """How fast a finished trial trained; None where the record does not say."""
    pairs = record.metrics.get("cost/pairs_per_second")
    if not record.done or not pairs:
        return None
    trial, tags = record.trial, record.tags
    return Speed(
        trial.method,
        trial.dataset_label,
        trial.backbone,
        trial.batch_size,
        pairs / trial.batch_size,
        tags.get("device", "?"),
        tags.get("processes", "?"),
    )
