"""The result of a sweep in its tracking store, so that the MLflow UI shows the comparison at first sight."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from harness.config.labels import run_labels
from harness.record import summary
from harness.record.store import NOTE, Store
from harness.record.types import SweepHandle
from harness.report.figures import styles
from harness.report.results import primary, tidy
from harness.report.views import KNOWN, curve, views_of, views_of_search
from harness.report.write import first_tables

HEADLINE, SEARCHED = "rsum", "dev_rsum"
"""The rSum that all curves show, as a column of the primary frame, after the last epoch: of test, or, where
settings are selected, of dev."""
_OVER_SEEDS = {
    "": ("mean", "mean over seeds"),
    "_lowest": ("min", "lowest seed"),
    "_highest": ("max", "highest seed"),
}
_LONGEST_NOTE = 7_500  # characters; MLflow cuts a tag of a run off after 8,000


def publish_curves(store: Store, handle: SweepHandle) -> SweepHandle:
    """Write the curves of the rows over the noise ratio, the labels of the runs, and the prepared views.

    The parent run gets `rsum/DATA SET/NOISE/ROW` (mean over seeds; beside it `rsum_lowest` and
    `rsum_highest`; of a search `dev_rsum`), the run of each row the same without ROW, and `seconds/...`. The
    step is the noise ratio in percent.

    Returns:
        The handle, with the parent run of now.
    """
    sweep = store.read_sweep(handle.sweep)
    frame = primary(tidy(sweep))
    frame = frame[frame["perturbed"] == 0]
    done = frame[frame["done"]]
    column = SEARCHED if sweep.select else HEADLINE
    rows = {str(row): _curves(part, column) for row, part in done.groupby("row", sort=False)}
    parent = {
        curve(key, row): values
        for row, curves in rows.items()
        for key, values in curves.items()
        if not key.startswith("seconds/")
    }
    handle = dataclasses.replace(handle, parent_run=summary.write_curves(store, handle, parent))
    colours = {row: colour for row, (colour, _) in styles(frame.assign(label=frame["row"])).items()}
    summary.write_rows(store, handle, rows, colours)
    summary.write_labels(store, handle, run_labels(sweep.planned))
    views = []
    if store.client.ui_version().startswith(KNOWN):
        views = views_of_search(sweep.planned) if sweep.select else views_of(frame, _titles(done))
    now = int(time.time() * 1000)  # the UI lists the newest first
    tags = {view.key: view.tag(now - i) for i, view in enumerate(views)}
    summary.write_views(store, handle.experiment_id, tags)
    return handle


def publish_report(store: Store, handle: SweepHandle, folder: Path) -> None:
    """Write the page and the figures of a report among the artifacts of the parent run, and its first tables
    and the prepared views into the descriptions of run and experiment.
    """
    store.client.log_file(handle.parent_run, folder / "report.html")
    for figure in sorted(folder.glob("*.png")):
        store.client.log_file(handle.parent_run, figure, "figures")
    text = (folder / "report.md").read_text(encoding="utf-8")
    links = [f"- [{name}]({address})" for name, address in summary.views(store, handle.experiment_id)]
    tables = first_tables(text, _LONGEST_NOTE - sum(map(len, links)))
    note = "\n".join([*links, "", "The report is the artifact `report.html`.", "", tables])
    store.client.set_tag(handle.parent_run, NOTE, note)
    store.client.set_experiment_tag(handle.experiment_id, NOTE, note)


def _curves(part: pd.DataFrame, column: str) -> dict[str, dict[int, float]]:
    """The curves of a row, by metric: value by noise ratio in percent."""
    curves: dict[str, dict[int, float]] = {}
    for (dataset, noise, ratio), cell in part.groupby(["dataset", "noise", "noise_ratio"], sort=False):
        values = {f"{column}{end}": cell[column].agg(how) for end, (how, _) in _OVER_SEEDS.items()}
        values["seconds"] = cell["seconds"].median()
        for kind, value in values.items():
            if pd.notna(value):
                curves.setdefault(curve(kind, dataset, noise), {})[round(100 * ratio)] = float(value)
    return curves


def _titles(done: pd.DataFrame) -> Mapping[str, str]:
    """Titles of the charts that show the curves of the rows, by metric."""
    places = list(done.groupby(["dataset", "noise"], sort=False).groups)
    return {
        curve(f"{HEADLINE}{end}", dataset, noise): name if len(places) == 1 else f"{name}: {dataset}, {noise}"
        for end, (_, name) in _OVER_SEEDS.items()
        for dataset, noise in places
    }
