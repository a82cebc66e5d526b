"""What the store shows of a sweep as a whole: curves of the parent run, a run for each row, labels of the
trials' runs, and prepared views.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from harness.record.client import CREATION, Run
from harness.record.store import NOTE, PARENT, RUN_NAME, SOURCE, TRIAL, Store
from harness.record.types import SweepHandle

Curves = Mapping[str, Mapping[int, float]]
"""Values of metrics by step."""
COLOUR = "mlflow.runColor"
VIEW = "mlflow.sharedViewState."
"""What the tags begin with in which MLflow's UI keeps saved views."""
MODEL_TRAINING = "workflowType=machine_learning"
"""Turns MLflow's UI to model training where it begins the query of an address; its default is GenAI."""
_CURVES = ("rsum", "dev_rsum")  # what the metrics of a parent run begin with; others are not ours
_OURS = "harness-"  # views that people have saved stay


def write_curves(store: Store, handle: SweepHandle, curves: Curves) -> str:
    """Give the parent run of a sweep these curves, each with one point a step. Returns its id.

    MLflow cannot take a point back: where one has changed since an earlier end of the sweep, a new parent run
    takes the place of the old one, and `write_labels` moves the trials under it.
    """
    parent, *others = store.parents(handle.experiment_id)
    known = {key: store.client.history(parent.run_id, key) for key in curves if key in parent.metrics}
    changed = any(
        len(history) != len(dict(history)) or not dict(history).items() <= curves[key].items()
        for key, history in known.items()
    ) or any(key.startswith(_CURVES) and key not in curves for key in parent.metrics)
    if changed:
        others, parent, known = [parent, *others], _renewed(store, handle, parent), {}
    new = {
        key: {step: value for step, value in curve.items() if step not in dict(known.get(key, ()))}
        for key, curve in curves.items()
    }
    store.client.log_curves(parent.run_id, new)
    for other in others:
        store.client.delete_run(other.run_id)
    return parent.run_id


def _renewed(store: Store, handle: SweepHandle, old: Run) -> Run:
    """A parent run like the old one, without its metrics; it counts as the parent once it has the plan."""
    kept = {k: v for k, v in old.tags.items() if k not in (CREATION, "kind")}
    run_id = store.client.create_run(handle.experiment_id, kept)
    for name in ("plan.json", "sweep.yaml"):
        store.client.log_text(run_id, store.client.read(old.run_id, name).decode(), name)
    store.client.set_tag(run_id, "kind", "sweep")
    return store.client.get_run(run_id)


def write_rows(
    store: Store, handle: SweepHandle, rows: Mapping[str, Curves], colours: Mapping[str, str]
) -> None:
    """A run with its curves for each row of the tables, beside the parent run; replaced where they change."""
    digests = {name: _digest(curves, colours[name]) for name, curves in rows.items()}
    unchanged = set()
    for run in store.client.search_runs(handle.experiment_id, "tags.kind = 'row'"):
        name = run.tags.get("row", "")
        if digests.get(name) == run.tags.get("digest") and run.status == "FINISHED" and name not in unchanged:
            unchanged.add(name)
        else:
            store.client.delete_run(run.run_id)
    source = {k: v for k, v in store.parents(handle.experiment_id)[0].tags.items() if k in SOURCE}
    for name, curves in reversed(list(rows.items())):  # the UI shows the newest first
        if name in unchanged:
            continue
        note = f"{name} of sweep {handle.sweep}, over its seeds; the step is the noise ratio in percent."
        tags = {**source, "kind": "row", "row": name, RUN_NAME: name, NOTE: note, "digest": digests[name]}
        tags[COLOUR] = colours[name]
        run_id = store.client.create_run(handle.experiment_id, tags)
        store.client.log_curves(run_id, curves)
        store.client.set_status(run_id, "FINISHED")


def _digest(curves: Curves, colour: str) -> str:
    return hashlib.sha256(json.dumps([curves, colour], sort_keys=True).encode()).hexdigest()[:16]


def write_labels(store: Store, handle: SweepHandle, labels: Mapping[str, Mapping[str, str]]) -> None:
    """Labels of the trials' runs, by trial id, and the run that they stand under: both change as a sweep
    grows.
    """
    for run in store.client.search_runs(handle.experiment_id, "tags.kind = 'trial'"):
        wanted = {**labels.get(run.tags.get(TRIAL, ""), {}), PARENT: handle.parent_run}
        changed = {k: v for k, v in wanted.items() if run.tags.get(k) != v}
        if changed:
            store.client.log(run.run_id, tags=changed)


def write_views(store: Store, experiment_id: str, views: Mapping[str, str]) -> None:
    """Make these the prepared views of an experiment, by key; those that people have saved stay."""
    wanted = {f"{VIEW}{_OURS}{key}": value for key, value in views.items()}
    known = store.client.experiment_tags(experiment_id)
    for key in [k for k in known if k.startswith(f"{VIEW}{_OURS}") and k not in wanted]:
        store.client.set_experiment_tag(experiment_id, key, None)
    for key, value in wanted.items():
        if known.get(key) != value:
            store.client.set_experiment_tag(experiment_id, key, value)


def views(store: Store, experiment_id: str) -> list[tuple[str, str]]:
    """Names and addresses of the prepared views of an experiment, the result first."""
    tags = store.client.experiment_tags(experiment_id).items()
    contents = {k.removeprefix(VIEW): json.loads(v) for k, v in tags if k.startswith(f"{VIEW}{_OURS}")}
    base = f"{store.address(experiment_id)}?{MODEL_TRAINING}"
    return [
        (content["name"], f"{base}&compareRunsMode={_mode(content['state'])}&viewStateShareKey={key}")
        for key, content in sorted(contents.items(), key=lambda view: -view[1]["createdAt"])
    ]


def _mode(state: str) -> str:
    return "CHART" if json.loads(state)["compareRunCharts"] else "TABLE"
