"""The one record of every result, in MLflow.

A sweep is an experiment: a parent run that holds the plan, and a child run for each trial. A trial is done
when its run is FINISHED and carries its test metrics.
"""

from __future__ import annotations

import contextlib
import getpass
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from harness import PROTOCOL_VERSION
from harness.config.external import trial_type
from harness.config.search import Search
from harness.config.trial import Trial
from harness.lib.registry import UnknownName
from harness.record.client import Client, Run
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
    from harness.config.sweep_file import Sweep

TRIAL, PARENT, RUN_NAME, NOTE = "trial_id", "mlflow.parentRunId", "mlflow.runName", "mlflow.note.content"
SOURCE = ("mlflow.source.name", "mlflow.source.type", "mlflow.user")
"""Tags that say where a run comes from: the sweep file, that it was run by hand, and by whom."""
EXPERIMENT_KIND = ("mlflow.experimentKind", "custom_model_development")
"""The tag that keeps MLflow from taking an experiment for GenAI work."""
SUPERSEDED = ("superseded", "given_up")
"""Tags of a run whose trial was restarted in another run: of today, and of older versions."""
_PATIENCE = 300.0  # seconds for which a busy store is asked again


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


def require(uri: str | None) -> None:
    """Raise StoreError where a URI names a database file that does not exist, for commands that only read."""
    if is_missing(uri):
        raise StoreError(
            f"there is no tracking store {absolute_uri(uri)}: nothing was recorded there "
            "(--tracking-uri names another)"
        )


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
                self.client.ask()
            except Exception as error:  # MLflow raises many kinds here
                text = str(error).strip()
                reason = text.splitlines()[0][:200] if text else type(error).__name__
                raise StoreError(
                    f"tracking store {self.uri} does not answer: {reason} (allowed: sqlite:///FILE, or the "
                    "http(s) address of a running `mlflow server`)"
                ) from None

    # A sweep ----------------------------------------------------------------------------------

    def open_sweep(self, sweep: Sweep, file: str = "", *, running: bool = True) -> SweepHandle:
        """The sweep's experiment and parent run, made on the first start and reused later; the plan is kept
        current.

        Args:
            file: the sweep file, as it was named.
            running: whether the sweep is about to run. If not (one of its trials is run by hand), the parent
                run keeps its status, and a new one is SCHEDULED.
        """
        experiment_id = self.client.experiment_id(sweep.name)
        if experiment_id is None:
            location = self._artifact_location(sweep.name)
            experiment_id = self.client.create_experiment(sweep.name, location)
        self.client.set_experiment_tag(experiment_id, *EXPERIMENT_KIND)
        source = dict(zip(SOURCE, (file, "LOCAL", _user()), strict=True)) if file else {}
        parents = self.parents(experiment_id)
        if parents:
            parent = parents[0].run_id
            if running:
                self.client.set_status(parent, "RUNNING")
            self.client.log(parent, tags=source)
        else:
            tags = {"kind": "sweep", RUN_NAME: f"sweep {sweep.name}", NOTE: sweep.file.description, **source}
            parent = self.client.create_run(experiment_id, tags)
            if not running:
                self.client.set_status(parent, "SCHEDULED")
        self.client.log_text(parent, json.dumps(plan_of(sweep), indent=1), "plan.json")
        self.client.log_text(parent, sweep.text, "sweep.yaml")
        return SweepHandle(self.uri, sweep.name, experiment_id, parent)

    def close_sweep(self, handle: SweepHandle, status: str, **counts: int) -> None:
        """Record how a sweep ended: FINISHED, FAILED or KILLED."""
        parent = self.parents(handle.experiment_id)[0].run_id  # another sweep may have renewed it
        self.client.log(parent, tags={key: str(value) for key, value in counts.items()})
        self.client.set_status(parent, status)

    def read_sweep(self, name: str) -> SweepRecord:
        """Plan and records of a sweep. Loads no method where the plan has what a reader must know of them.

        A sweep of an older protocol version is read as it was recorded.

        Raises:
            StoreError: there is no such sweep, or its plan is of a later protocol version.
        """
        handle = self._handle(name)
        plan = json.loads(self.client.read(handle.parent_run, "plan.json"))
        return sweep_of_plan(name, plan, lambda trials: self.records(handle, trials))

    def plan(self, name: str) -> tuple[dict[str, Any], str]:
        """The plan of a sweep as JSON, and the text of its file. Raises StoreError as `read_sweep` does."""
        run = self._handle(name).parent_run
        return json.loads(self.client.read(run, "plan.json")), self.client.read(run, "sweep.yaml").decode()

    def _handle(self, name: str) -> SweepHandle:
        experiment_id = self.client.experiment_id(name)
        parents = self.parents(experiment_id) if experiment_id else []
        if not experiment_id or not parents:
            names = sorted(n for n in self.client.experiments() if n != "Default")
            raise StoreError(f"no sweep {name!r} in {self.uri} (it holds: {', '.join(names) or 'none'})")
        return SweepHandle(self.uri, name, experiment_id, parents[0].run_id)

    def planned(self, name: str, text: str) -> tuple[Trial, ...] | None:
        """The trials of a sweep's plan, if it was made from a file of this text under this
        protocol version.
        """
        experiment_id = self.client.experiment_id(name)
        parents = self.parents(experiment_id) if experiment_id else []
        try:
            if not parents or self.client.read(parents[0].run_id, "sweep.yaml").decode() != text:
                return None
            plan = json.loads(self.client.read(parents[0].run_id, "plan.json"))
        except (StoreError, ValueError):  # a lost artifact
            return None
        return trials_of(plan) if plan["protocol_version"] == PROTOCOL_VERSION else None

    def planned_version(self, name: str) -> int | None:
        """The protocol version of a sweep's plan; None where it was never started, or its plan is lost."""
        experiment_id = self.client.experiment_id(name)
        parents = self.parents(experiment_id) if experiment_id else []
        try:
            plan = json.loads(self.client.read(parents[0].run_id, "plan.json")) if parents else {}
        except (StoreError, ValueError):
            return None
        version: int | None = plan.get("protocol_version")
        return version

    def records(self, handle: SweepHandle, trials: Iterable[Trial]) -> dict[str, TrialRecord]:
        """What the store holds of these trials, by id. A finished run wins over others of the same trial,
        then the last one started.
        """
        wanted = {t.id: t for t in trials}
        records: dict[str, TrialRecord] = {}
        query = f"tags.{TRIAL} = '{next(iter(wanted))}'" if len(wanted) == 1 else "tags.kind = 'trial'"
        for run in self.client.search_runs(handle.experiment_id, query):
            trial = wanted.get(run.tags.get(TRIAL, ""))
            if trial is None:
                continue
            known = records.get(trial.id)
            if known and (known.done or run.status != "FINISHED"):
                continue
            tags = {k: v for k, v in run.tags.items() if not k.startswith("mlflow.")}
            records[trial.id] = TrialRecord(trial, run.run_id, run.status, dict(run.metrics), tags)
        return records

    def record(self, handle: SweepHandle, trial: Trial) -> TrialRecord | None:
        """What the store holds of one trial."""
        return self.records(handle, [trial]).get(trial.id)

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
            for parent in self.parents(experiment_id):
                try:
                    plan = json.loads(self.client.read(parent.run_id, "plan.json"))
                    trials = trials_of(plan) if plan["protocol_version"] == PROTOCOL_VERSION else ()
                    records = self.records(SweepHandle(self.uri, name, experiment_id, parent.run_id), trials)
                except (StoreError, UnknownName, ValueError, KeyError, TypeError):
                    continue  # another sweep's plan that is damaged, or names a method that is not here
                speeds += [speed for r in records.values() if (speed := _speed(r))]
        return speeds

    def write_array(self, run_id: str, path: str, **arrays: np.ndarray) -> None:
        """Keep arrays as an `.npz` artifact of a run, compressed."""
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / Path(path).name
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
            folder = str(Path(path).parent)
            self.client.log_file(run_id, file, None if folder == "." else folder)

    def read_array(self, run_id: str, path: str) -> Mapping[str, np.ndarray]:
        """The arrays of an `.npz` artifact of a run. Raises StoreError where there is none."""
        with np.load(io.BytesIO(self.client.read(run_id, path)), allow_pickle=False) as content:
            return {k: content[k] for k in content.files}

    def address(self, experiment_id: str) -> str:
        """The address of an experiment's runs in the MLflow UI: on the server, or where `mlflow ui` serves a
        database file by default.
        """
        given = urlsplit(self.uri)
        # Without a name and password that may stand before the host.
        host = given.netloc.rpartition("@")[2]
        server = f"{given.scheme}://{host}{given.path.rstrip('/')}" if host else "http://127.0.0.1:5000"
        return f"{server}/#/experiments/{experiment_id}/runs"

    # A trial ----------------------------------------------------------------------------------

    def fail(self, handle: SweepHandle, trial: Trial, reason: str, details: str = "") -> None:
        """Record that a trial failed, and why. Its run is made if it had not got that far."""
        run = self.unfinished_run(handle, trial)
        run_id = run.run_id if run else self.create_run(handle, trial, {"attempts": "1"})
        self.client.set_tag(run_id, "failure", reason[:5000])
        if details:
            self.client.log_text(run_id, details, "failure.txt")
        self.client.set_status(run_id, "FAILED")

    def stop(
        self, handle: SweepHandle, trial: Trial, reason: str, *, tags: Mapping[str, str] | None = None
    ) -> None:
        """Record that a trial was stopped from outside, if it had started and has not just ended."""
        try:
            run = self.unfinished_run(handle, trial)
        except AlreadyDone:
            return
        if run and run.status == "RUNNING":
            self.client.log(run.run_id, tags={"failure": reason[:5000], **(tags or {})})
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
        """A new run of a trial, with its parameters. Returns its id.

        Args:
            tags: further tags; they win over those that follow from the trial alone.
        """
        parent = self.client.get_run(handle.parent_run).tags
        source = {key: parent[key] for key in SOURCE if key in parent}
        identity = {
            "kind": "trial",
            TRIAL: trial.id,
            PARENT: handle.parent_run,
            RUN_NAME: f"{trial.method} noise={trial.noise_ratio:g} seed={trial.seed}",
            NOTE: _description(trial, source.get(SOURCE[0])),
            "cell": f"{trial.method} {trial.dataset} noise={trial.noise_ratio:g} {trial.cell_id[:6]}",
            "cell_id": trial.cell_id,
            "protocol_version": str(PROTOCOL_VERSION),
        }
        run_id = self.client.create_run(handle.experiment_id, {**source, **identity, **tags})
        self.client.log(run_id, params={k: str(v)[:6000] for k, v in trial.parameters().items()})
        return run_id

    def parents(self, experiment_id: str) -> list[Run]:
        """The parent runs of an experiment, the newest first; there is one, but for moments."""
        return self.client.search_runs(experiment_id, "tags.kind = 'sweep'")

    def _artifact_location(self, name: str) -> str | None:
        """A server decides for itself; for a database file it is a directory next to it."""
        if not self.uri.startswith("sqlite:///"):
            return None
        return (Path(self.uri.removeprefix("sqlite:///")).parent / "mlartifacts" / name).as_uri()


def _description(trial: Trial, file: str | None) -> str:
    """What a run is, for the page of the run (Markdown)."""
    alone = f"\n\nRun it alone: `python -m harness.train {file} --trial {trial.id}`" if file else ""
    return (
        f"{trial.method} ({trial.backbone_label}) on {trial.dataset_label}, {trial.noise_label}, ratio "
        f"{trial.noise_ratio:g}, seed {trial.seed}, {trial.epochs} epochs.{alone}"
    )


def _user() -> str:
    """Who runs this; empty where the system has no name for them."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def plan_of(sweep: Sweep) -> dict[str, Any]:
    """The plan of a sweep as JSON: what a report needs to know of it without its file and its methods."""
    facts = {t.method: MethodFacts.of(t.method) for t in sweep.trials}
    return {
        "name": sweep.name,
        "description": sweep.file.description,
        "select": sweep.file.chooses,
        "search": sweep.file.search and sweep.file.search.model_dump(mode="json"),
        "settings_from": [result.tags for result in sweep.found],
        "reference": sweep.file.reference,
        "protocol_version": PROTOCOL_VERSION,
        "methods": {name: vars(fact) for name, fact in facts.items()},
        "ids": [t.id for t in sweep.trials],
        **divided([t.model_dump(mode="json") for t in sweep.trials]),
    }


def divided(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Settings of trials as a plan holds them: `shared`, what all have alike, and `trials`, the rest of
    each.
    """
    first = settings[0] if settings else {}
    # As text, in which 1, 1.0 and true are three.
    shared = {k: v for k, v in first.items() if all(k in s and repr(s[k]) == repr(v) for s in settings)}
    return {"shared": shared, "trials": [{k: v for k, v in s.items() if k not in shared} for s in settings]}


def settings_of(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The whole settings of the trials of a plan; older ones have them with each trial."""
    return [{**plan.get("shared", {}), **own} for own in plan["trials"]]


def sweep_of_plan(
    name: str,
    plan: Mapping[str, Any],
    records: Callable[[Iterable[Trial]], dict[str, TrialRecord]],
) -> SweepRecord:
    """A sweep from its plan; `records` gives what is on record of its trials.

    Raises:
        StoreError: the plan is of a later protocol version.
    """
    version = plan["protocol_version"]
    if version > PROTOCOL_VERSION:
        raise StoreError(
            f"sweep {name!r} was made under protocol version {version}, and this is "
            f"version {PROTOCOL_VERSION}"
        )
    trials = trials_of(plan)
    facts = plan.get("methods") or {}
    return SweepRecord(
        name=name,
        description=plan["description"],
        select=plan["select"],
        planned=trials,
        records=records(trials),
        methods={t.method: _facts(t.method, facts) for t in trials},
        reference=plan.get("reference"),
        search=Search.model_validate(plan["search"]) if plan.get("search") else None,
        protocol_version=version,
    )


def _facts(method: str, known: Mapping[str, Any]) -> MethodFacts:
    if method not in known:
        return MethodFacts.of(method)
    return MethodFacts(**{**known[method], "published": tuple(known[method]["published"])})


def trials_of(plan: Mapping[str, Any]) -> tuple[Trial, ...]:
    """The trials of a plan; plans of older versions have no ids, which then take the methods' classes."""
    settings = settings_of(plan)
    ids = plan.get("ids") or [None] * len(settings)
    kind = trial_type(plan)
    return tuple(kind.recorded(own, i) for own, i in zip(settings, ids, strict=True))


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
