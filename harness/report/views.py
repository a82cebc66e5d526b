"""Prepared views of the MLflow UI: a sweep opens as a comparison, without a click.

MLflow's UI keeps a saved view in a tag of the experiment, and restores it from the address of the page. The
form of the tag is documented nowhere: it was read from views saved by hand in the versions `KNOWN`. Other
versions get none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import pandas as pd

from harness.config.labels import settings, varied
from harness.config.trial import Trial
from harness.report.tables import slug

KNOWN = "3.17."
"""Beginning of the versions of MLflow whose UI reads these views."""
PAGE = 100
"""Runs that the UI loads at first: a view of more would show a part of them as if it were all."""
_LONGEST = 75  # characters of a label in the name of a metric, of which MLflow allows 250
_MAX_VIEWS, _MAX_SIZE = 40, 20_000  # of an experiment, and characters of a tag
_COLUMNS = (
    "params.`method`",
    "params.`noise_ratio`",
    "params.`seed`",
    "metrics.`last/rsum`",
    "metrics.`test/rsum`",
    "metrics.`detection/auroc`",
    "metrics.`cost/seconds`",
)
_SEARCH_COLUMNS = (*_COLUMNS[:3], "metrics.`dev/rsum`", *_COLUMNS[5:])
"""Columns of the table of trials, those that matter first; a search leaves test out."""
_ROW, _CELL = "tags.row", "tags.cell"

_TRIALS, _ROWS = "tags.kind = 'trial'", "tags.kind = 'row'"

Chart = dict[str, Any]


@dataclass(frozen=True)
class View:
    """A saved view.

    Attributes:
        key: names it in an address.
        name: names it in the list of views of the UI.
        state: what the UI restores, over its defaults.
    """

    key: str
    name: str
    state: dict[str, Any]

    def tag(self, created: int = 0) -> str:
        """The value of its tag; `created` in milliseconds since 1970."""
        times = {"createdAt": created, "updatedAt": created}
        return json.dumps({"name": self.name, **times, "state": json.dumps(self.state)})


def views_of(frame: pd.DataFrame, curves: Mapping[str, str]) -> list[View]:
    """The views of a comparison, the result first.

    Args:
        frame: the tidy frame of its trials.
        curves: titles of charts of the rows' runs, by metric.
    """
    views = [
        _view(
            "result", "Result: rSum over the noise ratio", _ROWS, [_line(t, [m]) for m, t in curves.items()]
        ),
        *_over_epochs(frame),
        *([_bars()] if len(frame) <= PAGE else []),
        _cost(frame),
        _table(_COLUMNS),
    ]
    return [view for view in views if len(view.tag()) <= _MAX_SIZE][:_MAX_VIEWS]


def views_of_search(trials: Sequence[Trial]) -> list[View]:
    """The views of a search, which selects settings on dev and leaves test out."""
    # A setting that only some methods have would hide the runs of the others.
    of_all = set.intersection(*(set(t.parameters()) for t in trials))
    chart = _chart(
        "PARALLEL",
        "settings and dev rSum",
        selectedParams=[k for k in varied([settings(t) for t in trials]) if k in of_all],
        selectedMetrics=["dev/rsum"],
        showAllRuns=True,
        runsCountToCompare=PAGE,
    )
    best = "" if len(trials) <= PAGE else f", the best {PAGE} trials"
    search = _view(
        "search", f"Search: settings and dev rSum{best}", _TRIALS, [chart], columns=_SEARCH_COLUMNS
    )
    search.state.update(orderByKey="metrics.`dev/rsum`", orderByAsc=False)
    return [view for view in (search, _table(_SEARCH_COLUMNS)) if len(view.tag()) <= _MAX_SIZE]


def curve(kind: str, *labels: str) -> str:
    """The metric of a curve over the noise ratio: `rsum/emoji/caption-level noise`, in the characters that
    MLflow allows.
    """
    return "/".join([kind, *(_metric_name(text) for text in labels)])


def _metric_name(text: str) -> str:
    """A text as part of a metric's name; a long one is cut, and a hash keeps it distinct."""
    allowed = (c if c.isalnum() or c in "_-. :" else ":" if c == "=" else " " for c in text)
    name = " ".join("".join(allowed).split())
    return (
        name if len(name) <= _LONGEST else f"{name[: _LONGEST - 7]} {sha256(text.encode()).hexdigest()[:6]}"
    )


def _over_epochs(frame: pd.DataFrame) -> Iterator[View]:
    """For each data set, noise and ratio: dev rSum, loss and noise detection over epochs, one line a row with
    a band over seeds, and the test rSum as bars.
    """
    places = frame.groupby(["dataset", "noise"], sort=False).ngroups
    for (dataset, noise, ratio), part in frame.groupby(["dataset", "noise", "noise_ratio"], sort=False):
        where = f"{dataset}, {noise}, ratio {ratio:g}" if places > 1 else f"noise {ratio:g}"
        charts = [
            _line("dev rSum over epochs", ["dev/rsum"]),
            _line("training loss over epochs", ["train/loss"]),
        ]
        if part["auroc"].notna().any():
            charts.append(_line("AUROC of noise detection over epochs", ["detection/auroc"]))
        charts.append(_bar("test rSum", "last/rsum"))
        place = f"{dataset}, {noise}".replace('"', "")
        query = f"{_TRIALS} and params.noise_ratio = '{ratio}' and tags.place = \"{place}\""
        yield _view(f"epochs {where}", f"Epochs: {where}", query, charts, group=(_ROW,))


def _bars() -> View:
    charts = [_bar("test rSum by method and noise ratio", "last/rsum")]
    return _view("rsum", "Test rSum by method and ratio", _TRIALS, charts, group=(_CELL,))


def _cost(frame: pd.DataFrame) -> View:
    """Test rSum over seconds, a point a row: its last values, which are those of the highest ratio."""
    charts = []
    for (dataset, noise), part in frame.groupby(["dataset", "noise"], sort=False):
        x, y = (
            {"key": key, "dataAccessKey": key, "type": "METRIC"}
            for key in (curve("seconds", dataset, noise), curve("rsum", dataset, noise))
        )
        title = f"rSum over seconds at {part['noise_ratio'].max():g}: {dataset}, {noise}"
        charts.append(_chart("SCATTER", title, xaxis=x, yaxis=y, runsCountToCompare=PAGE))
    return _view("cost", "Cost and accuracy", _ROWS, charts)


def _table(columns: Sequence[str]) -> View:
    return _view("trials", "All trials", _TRIALS, [], group=(_ROW,), columns=columns)


def _view(
    key: str,
    name: str,
    query: str,
    charts: Sequence[Chart],
    *,
    group: Sequence[str] = (),
    columns: Sequence[str] = _COLUMNS,
) -> View:
    state = {
        "searchFilter": query,
        "selectedColumns": list(columns),
        "columnOrder": list(columns),
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": list(charts),
        "compareRunSections": [_section(chart) for chart in charts],
        "isAccordionReordered": True,
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [_group_key(k) for k in group]}
        if group
        else None,
    }
    return View(slug(key), name, state)


def _section(chart: Chart) -> dict[str, Any]:
    """A section of the page for one chart: its heading is all that the UI shows of a chart's title."""
    return {
        "uuid": chart["metricSectionId"],
        "name": chart["displayName"],
        "display": True,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
        "columns": 1,
        "cardHeight": 420,
    }


def _group_key(column: str) -> dict[str, str]:
    mode, _, name = column.partition(".")
    return {"mode": mode.rstrip("s"), "groupByData": name}


def _chart(kind: str, title: str, **more: Any) -> Chart:
    return {
        "type": kind,
        "uuid": slug(title),
        "metricSectionId": f"section-{slug(title)}",
        "displayName": title,
        "deleted": False,
        "isGenerated": False,
        **more,
    }


def _line(title: str, metrics: Sequence[str]) -> Chart:
    return _chart(
        "LINE",
        title,
        metricKey=metrics[0],
        selectedMetricKeys=list(metrics),
        xAxisKey="step",
        yAxisKey="metric",
        lineSmoothness=0,
        displayPoints=True,
        runsCountToCompare=PAGE,
    )


def _bar(title: str, metric: str) -> Chart:
    return _chart("BAR", title, metricKey=metric, dataAccessKey=metric, runsCountToCompare=PAGE)
