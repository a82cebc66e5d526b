"""MLflow, the one record of every result. No other module imports it.

A sweep is an experiment: a parent run that holds the plan, and one child run for each trial. A trial is
done when its run is FINISHED and carries its test metrics.
"""

from __future__ import annotations

import io
import json
import logging
import os
import tempfile
import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from harness import PROTOCOL_VERSION
from harness.spec import Sweep, Trial
from harness.trainer import EpochRecord, Outcome
from harness.trial import Setup

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

for _name in ("mlflow", "mlflow.store.db.utils", "alembic"):
    logging.getLogger(_name).setLevel(logging.ERROR)

TRIAL, PARENT, RUN_NAME = "trial_id", "mlflow.parentRunId", "mlflow.runName"


class StoreError(RuntimeError):
    """The tracking store does not answer, or does not hold what is asked for; the text is for the user."""


@dataclass(frozen=True)
class Place:
    """Where a sweep's runs go; plain data, so that it travels to other processes."""

    uri: str
    experiment_id: str
    parent_run: str


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


class Store:
    """A tracking store that answered.

    Raises:
        StoreError: it does not answer, or cannot be opened.
    """

    def __init__(self, uri: str | None = None, *, patient: bool = True) -> None:
        self.uri = absolute_uri(uri)
        if not patient:  # before a sweep a dead server is told at once; during one it gets MLflow's retries
            os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"], os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "1", "10"
        try:
            self.client = mlflow.MlflowClient(self.uri)
            self.client.search_experiments(max_results=1)
        except Exception as error:  # MLflow raises many kinds here
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise StoreError(
                f"tracking store {self.uri} does not answer: {reason} (allowed: sqlite:///FILE, or the "
                f"http(s) address of a running `mlflow server`)"
            ) from None
        finally:
            if not patient:
                del os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"], os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]

    # A sweep ----------------------------------------------------------------------------------

    def open_sweep(self, sweep: Sweep, fingerprints: Mapping[str, str] | None = None) -> Place:
        """The sweep's experiment and parent run, made on the first start and found again later; the plan is kept current.

        `fingerprints` [trial id]: of the data as it is now; runs on other data are not this sweep's.
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
            known = json.loads(self._read_artifact(parent, "plan.json"))["fingerprints"]
        else:
            known = {}
            tags = {"kind": "sweep", RUN_NAME: f"sweep {sweep.name}", "mlflow.note.content": sweep.file.description}
            parent = self.client.create_run(experiment_id, tags=tags).info.run_id
        plan = {
            "name": sweep.name,
            "description": sweep.file.description,
            "select": sweep.file.select,
            "reference": sweep.file.reference,
            "protocol_version": PROTOCOL_VERSION,
            "fingerprints": {**known, **(fingerprints or {})},
            "trials": [t.model_dump(mode="json") for t in sweep.trials],
        }
        self.client.log_text(parent, json.dumps(plan, indent=1), "plan.json")
        self.client.log_text(parent, sweep.text, "sweep.yaml")
        return Place(self.uri, experiment_id, parent)

    def close_sweep(self, place: Place, *, done: int, failed: int) -> None:
        self.client.set_tag(place.parent_run, "done", str(done))
        self.client.set_tag(place.parent_run, "failed", str(failed))
        self.client.set_terminated(place.parent_run, "FAILED" if failed else "FINISHED")

    def read_sweep(self, name: str) -> SweepRecord:
        """Plan and records of a sweep.

        Raises:
            StoreError: there is no such sweep, or its plan is of another protocol version.
        """
        experiment = self.client.get_experiment_by_name(name)
        parents = self._search(experiment.experiment_id, "tags.kind = 'sweep'") if experiment else []
        if not experiment or not parents:
            names = [e.name for e in self.client.search_experiments() if e.name != "Default"]
            raise StoreError(f"no sweep {name!r} in {self.uri} (it holds: {', '.join(sorted(names)) or 'none'})")
        plan = json.loads(self._read_artifact(parents[0].info.run_id, "plan.json"))
        if plan["protocol_version"] != PROTOCOL_VERSION:
            raise StoreError(
                f"sweep {name!r} was made under protocol version {plan['protocol_version']}, this is version "
                f"{PROTOCOL_VERSION}: records of different versions are not merged"
            )
        planned = tuple(Trial.model_validate(t) for t in plan["trials"])
        place = Place(self.uri, experiment.experiment_id, parents[0].info.run_id)
        records = self.records(place, planned, plan["fingerprints"])
        return SweepRecord(name, plan["description"], plan["select"], planned, records, plan.get("reference"))

    def records(
        self, place: Place, trials: Iterable[Trial], fingerprints: Mapping[str, str] | None = None
    ) -> dict[str, TrialRecord]:
        """What the store holds of these trials, by id. A finished run wins over others of the same trial.

        With `fingerprints` [trial id], finished runs on other data are left out.
        """
        wanted = {t.id: t for t in trials}
        found: dict[str, TrialRecord] = {}
        for run in self._search(place.experiment_id, "tags.kind = 'trial'"):
            trial = wanted.get(run.data.tags.get(TRIAL, ""))
            if trial is None or (trial.id in found and found[trial.id].done):
                continue
            tags = {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.")}
            record = TrialRecord(trial, run.info.run_id, run.info.status, dict(run.data.metrics), tags)
            wanted_data = (fingerprints or {}).get(trial.id)
            if record.done and wanted_data and tags.get("data_fingerprint") != wanted_data:
                continue
            found[trial.id] = record
        return found

    def find_records(self, sweep: Sweep, fingerprints: Mapping[str, str]) -> dict[str, TrialRecord]:
        """Records of a sweep's trials without opening it, as `records` gives them: empty if it was never started."""
        experiment = self.client.get_experiment_by_name(sweep.name)
        return self.records(Place(self.uri, experiment.experiment_id, ""), sweep.trials, fingerprints) if experiment else {}

    def speeds(self) -> list[Speed]:
        """Of every finished trial in the store that the plan of its sweep still names."""
        found = []
        for experiment in self.client.search_experiments():
            for parent in self._search(experiment.experiment_id, "tags.kind = 'sweep'"):
                plan = json.loads(self._read_artifact(parent.info.run_id, "plan.json"))
                if plan["protocol_version"] != PROTOCOL_VERSION:
                    continue
                trials = [Trial.model_validate(t) for t in plan["trials"]]
                for r in self.records(Place(self.uri, experiment.experiment_id, parent.info.run_id), trials).values():
                    pairs = r.metrics.get("cost/pairs_per_second")
                    if r.done and pairs:
                        t, tags = r.trial, r.tags
                        found.append(Speed(t.method, t.dataset_label, t.backbone, t.batch_size, pairs / t.batch_size, tags.get("device", "?"), tags.get("processes", "?")))
        return found

    def read_array(self, run_id: str, path: str) -> Mapping[str, np.ndarray]:
        """An `.npz` artifact of a run."""
        with np.load(io.BytesIO(self._read_artifact(run_id, path)), allow_pickle=False) as content:
            return {k: content[k] for k in content.files}

    def artifacts(self, run_id: str, folder: str) -> list[str]:
        """The artifacts in a folder of a run, sorted; empty where there is none."""
        return sorted(file.path for file in self.client.list_artifacts(run_id, folder))

    def run_address(self, sweep: str, run_id: str) -> str:
        """Where the MLflow UI shows a run: on the server, or where `mlflow ui` serves a database file by default."""
        experiment = self.client.get_experiment_by_name(sweep)
        given = urlsplit(self.uri)
        # Without a name and password that may stand before the host.
        server = f"{given.scheme}://{given.netloc.rpartition('@')[2]}{given.path.rstrip('/')}" if given.netloc else "http://127.0.0.1:5000"
        return f"{server}/#/experiments/{experiment.experiment_id if experiment else 0}/runs/{run_id}"

    # A trial ----------------------------------------------------------------------------------

    def fail(self, place: Place, trial: Trial, reason: str, details: str = "") -> None:
        """Record that a trial failed, and why. Its run is made if it had not got that far."""
        run_id = self.trial_run(place, trial)
        self.client.set_tag(run_id, "failure", reason[:5000])
        if details:
            self.client.log_text(run_id, details, "failure.txt")
        self.client.set_terminated(run_id, "FAILED")

    def trial_run(self, place: Place, trial: Trial) -> str:
        """The run of a trial: the unfinished one that is there, or a new one with its parameters."""
        for run in self._search(place.experiment_id, f"tags.{TRIAL} = '{trial.id}'"):
            if run.info.status != "FINISHED":
                self._log_parameters(run.info.run_id, trial)
                return str(run.info.run_id)
        tags = {
            "kind": "trial",
            TRIAL: trial.id,
            PARENT: place.parent_run,
            RUN_NAME: f"{trial.method} noise={trial.noise_ratio:g} seed={trial.seed}",
            "cell": f"{trial.method} {trial.dataset} noise={trial.noise_ratio:g} {trial.cell_id[:6]}",
            "cell_id": trial.cell_id,
            "protocol_version": str(PROTOCOL_VERSION),
        }
        run = self.client.create_run(place.experiment_id, tags=tags)
        self._log_parameters(run.info.run_id, trial)
        return str(run.info.run_id)

    def _log_parameters(self, run_id: str, trial: Trial) -> None:
        """Writing the same parameters again changes nothing."""
        self.client.log_batch(run_id, params=[Param(k, str(v)[:6000]) for k, v in parameters(trial).items()])

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
    """Writes a trial into its run as it goes; steps that an interrupted attempt already logged are not logged twice."""

    def __init__(self, place: Place, trial: Trial) -> None:
        self.store = Store(place.uri)
        self.client = self.store.client
        self.run_id = self.store.trial_run(place, trial)
        self.client.update_run(self.run_id, status="RUNNING")
        history = self.client.get_metric_history(self.run_id, "seconds/train")
        self.logged = max((m.step for m in history), default=-1)

    def start(self, setup: Setup) -> None:
        self.test = setup.data["test"]
        noise = setup.noise
        tags = {
            **setup.environment,
            "data_fingerprint": setup.fingerprint,
            "noise_digest": noise.digest,
            "noise_kind": noise.granularity,
            "noise_model": noise.model,
            "uses_clean_data": str(setup.uses_clean_data).lower(),
            "uses_ground_truth": str(setup.uses_ground_truth).lower(),
        }
        run = self.client.get_run(self.run_id)
        for old in {"failure"} & set(run.data.tags):
            self.client.delete_tag(self.run_id, old)
        metrics = {"cost/parameters": float(setup.parameters), "noise/ambiguous": float(noise.ambiguous)}
        metrics |= {} if noise.matched is None else {"noise/realised_ratio": noise.realised}
        metrics |= {f"skipped/{split}_images": float(count) for split, count in setup.data.skipped.items()}
        self._log(metrics, step=0, tags=tags)
        self._log_array("noise_index", image=noise.image, **({} if noise.matched is None else {"matched": noise.matched}))
        if not run.inputs or not run.inputs.dataset_inputs:
            profile = json.dumps({"pairs": len(noise.image), "nominal": noise.nominal, "realised": None if noise.matched is None else noise.realised})
            source = json.dumps({"seed": noise.seed, "granularity": noise.granularity, "model": noise.model, "data": setup.fingerprint})
            name = f"{setup.data.name} noise {noise.nominal:g} {noise.granularity} seed {noise.seed}"
            index = Dataset(name=name, digest=noise.digest, source_type="noise index", source=source, profile=profile)
            self._log_input(DatasetInput(index, [InputTag("mlflow.data.context", "train")]))

    def epoch(self, record: EpochRecord) -> None:
        if record.epoch <= self.logged:
            return
        if record.confidence is not None:
            self._log_array(f"confidence/epoch_{record.epoch:03d}", confidence=record.confidence)
        self._log(record.metrics, step=record.epoch)  # last: what is looked for when an interrupted trial goes on

    def finish(self, outcome: Outcome) -> None:
        i2t, t2i = outcome.i2t, outcome.t2i
        groups = {"i2t_group": self.test.image_group, "t2i_group": self.test.caption_group}
        self._log_array("test_rankings", i2t_rank=i2t.rank, i2t_top=i2t.top, t2i_rank=t2i.rank, t2i_top=t2i.top, **groups)
        self._log(outcome.metrics, step=0)
        self.client.set_terminated(self.run_id, "FINISHED")

    def _log(self, metrics: Mapping[str, float], *, step: int, tags: Mapping[str, str] | None = None) -> None:
        now = int(time.time() * 1000)
        found = [Metric(k, float(v), now, step) for k, v in metrics.items()]
        self.client.log_batch(self.run_id, metrics=found, tags=[RunTag(k, v) for k, v in (tags or {}).items()])

    def _log_input(self, given: DatasetInput) -> None:
        """Trials of one seed share their noise index, and MLflow fails where two runs are the first to name it at once:
        the second try finds it there."""
        for attempt in range(5):
            try:
                return self.client.log_inputs(self.run_id, [given])
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
    hyper, backbone, options, noise = (fields.pop(k) for k in ("hyper", "backbone", "dataset_options", "noise"))
    fields["backbone"] = trial.backbone_label
    if trial.noise != Trial.model_fields["noise"].default:
        fields |= {f"noise.{k}": v for k, v in noise.items()}
    for prefix, nested in ((f"{trial.method.rpartition(':')[2]}.", hyper), ("backbone.", backbone), ("dataset.", options)):
        fields |= {f"{prefix}{k}": v for k, v in nested.items()}
    return fields


def describe_failure(error: BaseException) -> tuple[str, str]:
    """A failure in one line, and its traceback."""
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
    return reason, "".join(traceback.format_exception(error))
