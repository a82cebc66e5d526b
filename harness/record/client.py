"""MLflow's client with types, and with patience. No other module imports MLflow, and this one does so only
when a store is opened.
"""

from __future__ import annotations

import logging
import os
import random
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from urllib.parse import unquote, urlsplit

from harness.record.types import StoreError

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

CREATION = "creation_id"
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
        """The id of an experiment, or None. Raises StoreError where it was deleted in MLflow."""
        experiment = self._call(lambda: self._mlflow.get_experiment_by_name(name))
        if experiment and experiment.lifecycle_stage == "deleted":
            raise StoreError(
                f"sweep {name!r} was deleted in MLflow: restore it (mlflow experiments restore "
                f"--experiment-id {experiment.experiment_id}), remove it for good (mlflow gc), or give the "
                "sweep another name"
            )
        return experiment.experiment_id if experiment else None

    def ask(self) -> None:
        """Ask for anything: a store that does not answer raises what MLflow raises."""
        self._call(lambda: self._mlflow.get_experiment_by_name("Default"))

    def create_experiment(self, name: str, artifact_location: str | None) -> str:
        """A new experiment, or the one that another process has just made. Returns its id."""
        from mlflow.exceptions import MlflowException

        def create() -> str:
            known = self._mlflow.get_experiment_by_name(name)
            return str(
                known.experiment_id if known else self._mlflow.create_experiment(name, artifact_location)
            )

        try:
            return self._call(create)
        except MlflowException:  # another process was quicker, between the question and the call
            return self._call(create)

    def experiment_tags(self, experiment_id: str) -> dict[str, str]:
        """All tags of an experiment."""
        return dict(self._call(lambda: self._mlflow.get_experiment(experiment_id)).tags)

    def set_experiment_tag(self, experiment_id: str, key: str, value: str | None) -> None:
        """Set a tag of an experiment, or remove it (None) where it is there."""
        from mlflow.exceptions import MlflowException

        if value is not None:
            self._call(lambda: self._mlflow.set_experiment_tag(experiment_id, key, value))
            return
        try:
            self._call(lambda: self._mlflow.delete_experiment_tag(experiment_id, key))
        except MlflowException:
            if key in self.experiment_tags(experiment_id):
                raise

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
                self.delete_run(run.run_id)
        return run_id

    def delete_run(self, run_id: str) -> None:
        """Mark a run as deleted: MLflow shows it no more, until `mlflow gc` it can be restored."""
        self._call(lambda: self._mlflow.delete_run(run_id))

    def set_status(self, run_id: str, status: str) -> None:
        """SCHEDULED, RUNNING, or how the run ended: FINISHED, FAILED or KILLED."""
        if status in ("SCHEDULED", "RUNNING"):
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

    def log_curves(self, run_id: str, curves: Mapping[str, Mapping[int, float]]) -> None:
        """Values of metrics by step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(k, float(v), now, step) for k, curve in curves.items() for step, v in curve.items()]
        for i in range(0, len(points), 1000):  # MLflow takes no more in a call
            batch = points[i : i + 1000]
            self._call(lambda batch=batch: self._mlflow.log_batch(run_id, metrics=batch))  # type: ignore[misc]

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """Steps and values of a metric, as they were logged."""
        listed = self._call(lambda: self._mlflow.get_metric_history(run_id, metric))
        return [(m.step, m.value) for m in listed]

    def log_dataset(
        self, run_id: str, *, name: str, digest: str, kind: str, source: str, profile: str
    ) -> None:
        """The data-set input of a run.

        Trials of one seed share their noise index, and MLflow fails where two runs are the first to name it
        at the same time: a later try finds it.
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

    def ui_version(self) -> str:
        """The version of MLflow whose UI shows the store: the server's, or the one installed here; empty
        where a server does not say.
        """
        from mlflow import __version__
        from mlflow.exceptions import MlflowException
        from mlflow.utils.rest_utils import http_request

        if not self._remote:
            return str(__version__)
        try:
            answer = http_request(  # type: ignore[no-untyped-call]
                self._mlflow._tracking_client.store.get_host_creds(), "/version", "GET", timeout=10
            )
            return str(answer.text).strip() if answer.ok else ""
        except MlflowException:
            return ""

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
        """The directory of a run's artifacts where it is on this machine, if it has any: MLflow's download
        asks the database three times and copies each file.
        """
        if run_id not in self._artifact_uris:
            self.get_run(run_id)
        scheme, _, path = self._artifact_uris[run_id].partition("://")
        return Path(unquote(path)) if scheme == "file" else None

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
                if not any(words in str(error) for words in _BUSY_STORE):
                    raise
                if time.monotonic() > end:
                    text = " ".join(str(error).split())[:300]
                    raise StoreError(f"the tracking store is too busy to answer: {text}") from error
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
