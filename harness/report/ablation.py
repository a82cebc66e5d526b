"""Hyper-parameters that a sweep varies: a table and a figure for each axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from harness.config.labels import of_the_data, settings, varied
from harness.config.trial import Trial
from harness.report import figures
from harness.report.accuracy import mean_sd
from harness.report.results import cells
from harness.report.tables import Cell, Figure, Table, slug


@dataclass(frozen=True)
class Axis:
    """A setting that varies where all others are the same: for each such line (a method, and what else it
    has) the row of each value.
    """

    name: str
    lines: dict[str, dict[str, str]]

    @property
    def values(self) -> list[str]:
        """All values: numbers by size, others in the order of the grid."""
        values = list(dict.fromkeys(v for rows in self.lines.values() for v in rows))
        try:
            return sorted(values, key=float)
        except ValueError:
            return values


def axes(trials: Sequence[Trial], frame: pd.DataFrame) -> list[Axis]:
    """The axes of a sweep; methods with an axis of one name share it. `frame` has what the rows of its trials
    are called.
    """
    row_of = dict(zip(frame["trial"], frame["row"], strict=True))
    lines_of: dict[str, dict[str, dict[str, str]]] = {}
    for method in dict.fromkeys(t.method for t in trials):
        rows = {row_of[t.id]: settings(t) for t in trials if t.method == method and t.id in row_of}
        keys = [k for k in varied(list(rows.values())) if not of_the_data(k)]
        for key in keys:
            lines: dict[tuple[str, ...], dict[str, str]] = {}
            others = [k for k in keys if k != key]
            for row, values_of_row in rows.items():
                rest = tuple(values_of_row.get(k, "default") for k in others)
                lines.setdefault(rest, {})[values_of_row.get(key, "default")] = row
            lines = {rest: values for rest, values in lines.items() if len(values) > 1}
            distinguishing = [k for i, k in enumerate(others) if len({rest[i] for rest in lines}) > 1]
            for rest, values in lines.items():
                extra = ", ".join(
                    f"{k}={v}" for k, v in zip(others, rest, strict=True) if k in distinguishing
                )
                lines_of.setdefault(key, {})[f"{method} ({extra})" if extra else method] = values
    return [Axis(name, lines) for name, lines in lines_of.items()]


def axis_table(axis: Axis, frame: pd.DataFrame, measure: str, where: str) -> Table:
    """A measure for each line and value, by noise ratio; bold is the best of the axis within a track, among
    rows that do not use the ground truth.
    """
    ratios = sorted(frame["noise_ratio"].unique())
    table = cells(frame, measure)
    track_of = dict(zip(frame["row"], frame["track"].where(~frame["ground_truth"], ""), strict=True))
    members = [
        (line, value, values[value])
        for line, values in axis.lines.items()
        for value in axis.values
        if value in values
    ]
    of_axis = table[
        table.index.get_level_values("row").isin([row for _, _, row in members])
        & (table["n"] == table["planned"].max())
    ]
    tracks = of_axis.index.get_level_values("row").map(track_of)
    groups = of_axis["mean"].groupby([tracks, of_axis.index.get_level_values("noise_ratio")])
    best = groups.max()[groups.nunique() > 1].drop("", errors="ignore")
    rows, planned = [], int(of_axis["planned"].max()) if len(of_axis) else 0
    for line, value, row in members:
        at = {r: table.loc[row, r] for r in ratios}
        rows.append(
            [
                Cell(line),
                Cell(value),
                *(
                    Cell(
                        mean_sd(c, 1, usual=planned),
                        best=bool(c["n"] == planned and c["mean"] == best.get((track_of[row], r))),
                    )
                    for r, c in at.items()
                ),
            ]
        )
    caption = (
        f"{_name(measure)} after the last epoch, all other settings equal. Mean ± sd over seeds (ddof 1), "
        f"n = {planned} unless marked. Bold: best of the column in its track."
    )
    return Table(
        f"{_name(measure)} by {axis.name}: {where}",
        caption,
        ["method", axis.name, *(f"noise {r:g}" for r in ratios)],
        rows,
    )


def axis_figure(axis: Axis, frame: pd.DataFrame, measure: str, where: str, folder: Path) -> Figure:
    """The same as a figure, with methods of one row as horizontal lines."""
    position = {value: i for i, value in enumerate(axis.values)}
    lines = {}
    for line, values in axis.lines.items():
        value_of = {row: value for value, row in values.items()}
        part = frame[frame["row"].isin(value_of)]
        lines[line] = part.assign(
            value=part["row"].map(value_of), number=part["row"].map(value_of).map(position), y=part[measure]
        )
    on_axis = {row for values in axis.lines.values() for row in values.values()}
    methods = set(frame.loc[frame["row"].isin(on_axis), "method"])
    single = frame.groupby("method")["row"].transform("nunique") == 1
    others = frame[single & ~frame["method"].isin(methods) & frame[measure].notna()]
    level = {
        row: part.groupby("noise_ratio")[measure].mean().to_dict()
        for row, part in others.groupby("row", sort=False)
    }
    file = slug("axis", *([] if measure == "rsum" else [measure]), axis.name, where)
    figures.axis(lines, level, axis.name, _name(measure), where, folder / file)
    caption = "Mean, a band of one sd over seeds, and the seeds as dots; values are equally spaced." + (
        " Grey lines: methods of one row, with their own settings." if level else ""
    )
    return Figure(f"{_name(measure)} over {axis.name}: {where}", file, caption)


def _name(measure: str) -> str:
    return {"rsum": "Test rSum", "dev_rsum": "Dev rSum"}[measure]
