"""Stability of a row under increasing noise and over seeds. Each measure is computed for each seed and then
has an interval over seeds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from harness.report import figures
from harness.report.results import cells
from harness.report.stats import Estimate, mean_interval, sd_interval, variance_shares
from harness.report.tables import Cell, Figure, Table, slug

BY_SEED = ("var_i2t_r1", "var_t2i_r1", "slope_i2t_r1", "slope_rsum", "area")
_COLUMNS = (  # name, heading, digits, whether high is good
    ("var_i2t_r1", "var i2t R@1 ↓", 2, False),
    ("var_t2i_r1", "var t2i R@1 ↓", 2, False),
    ("slope_i2t_r1", "i2t R@1 per 10 points ↑", 2, True),
    ("slope_rsum", "rSum per 10 points ↑", 1, True),
    ("area", "area under the curve ↑", 3, True),
    ("drop", "drop in rSum ↓", 1, False),
    ("sd_seeds", "sd over seeds ↓", 1, False),
    ("worst", "worst seed ↑", 1, True),
)


def by_seed(part: pd.DataFrame) -> pd.DataFrame:
    """Stability measures of one row for each seed that has all ratios of the row; columns `BY_SEED`.

    `var_...`: population variance (ddof 0) of R@1 over noise ratios (NPC, figure 1). `slope_...`:
        least-squares slope over the ratio, per 10
    points of noise (0.1). `area`: area under rSum over the ratio relative to that at the lowest ratio, 1 for
    a row that loses nothing (trapezoids, divided by the range of ratios).
    """
    tables = {
        m: part.pivot_table(
            index=["seed", "noise_seed"], columns="noise_ratio", values=m, dropna=False
        ).dropna()
        for m in ("i2t_r1", "t2i_r1", "rsum")
    }
    ratios = np.array(tables["rsum"].columns, float)
    measures = pd.DataFrame(index=tables["rsum"].index)
    for name in ("i2t_r1", "t2i_r1"):
        measures[f"var_{name}"] = tables[name].var(axis=1, ddof=0)
    centred = ratios - ratios.mean()
    for name in ("i2t_r1", "rsum"):
        measures[f"slope_{name}"] = 0.1 * (tables[name] @ centred) / (centred @ centred)
    curve = tables["rsum"].to_numpy(float)
    start = np.where(curve[:, :1] > 0, curve[:, :1], np.nan)
    measures["area"] = np.trapezoid(curve / start, ratios, axis=1) / np.ptp(ratios)
    return measures


def stability(frame: pd.DataFrame) -> pd.DataFrame:
    """Stability of each row, from its finished trials; rows that are not planned at all ratios of the frame
    are omitted.

    Columns: those of `by_seed`, means over seeds, with `_low` and `_high` of a 95 % t interval; `drop`, mean
        rSum at the lowest ratio minus that
    at the highest; `sd_seeds`, the sd over seeds (ddof 1) of rSum, averaged over ratios; `worst`, the lowest
    rSum of any seed at the highest ratio; `n` and `planned` trials.
    """
    ratios = set(frame["noise_ratio"])
    lines = {}
    for row, part in frame.groupby("row", sort=False):
        if set(part["noise_ratio"]) != ratios or len(ratios) < 2:
            continue
        of_ratio = part.groupby("noise_ratio")["rsum"]
        means = of_ratio.mean()
        line = {"drop": means.iloc[0] - means.iloc[-1], "sd_seeds": of_ratio.std(ddof=1).mean(skipna=False)}
        line |= {"n": part["rsum"].count(), "planned": len(part)}
        line["worst"] = part.loc[part["noise_ratio"] == means.index[-1], "rsum"].min()
        for name, values in by_seed(part).items():
            estimate = mean_interval(values)
            line |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        lines[row] = line
    return pd.DataFrame.from_dict(lines, orient="index")


def stability_table(frame: pd.DataFrame, where: str, legend: str) -> Table | None:
    """`stability` as a table; best is bold, among complete rows of a track that do not use the ground truth.
    None where no row is planned at all ratios.
    """
    measures = stability(frame)
    if measures.empty:
        return None
    oracles = {r for r in measures.index if frame.loc[frame["row"] == r, "ground_truth"].any()}
    # The worst of fewer seeds is no worse by itself.
    complete = measures[(measures["n"] == measures["planned"].max()) & ~measures.index.isin(oracles)]
    track_of = dict(zip(frame["row"], frame["track"], strict=True))
    rows = []
    for row, line in measures.iterrows():
        row_cells = [Cell(str(row))]
        candidates = complete[complete.index.map(track_of) == track_of[row]]
        for name, _, digits, high in _COLUMNS:
            best = (
                row in candidates.index
                and candidates[name].nunique() > 1  # one that nobody competes with is not the best
                and pd.notna(line[name])
                and line[name] == (candidates[name].max() if high else candidates[name].min())
            )
            row_cells.append(Cell(_with_interval(line, name, digits), best=bool(best)))
        count = f"{line['n']:g}" if line["n"] == line["planned"] else f"{line['n']:g} of {line['planned']:g}!"
        rows.append([*row_cells, Cell(count)])
    caption = (
        "Of the last epoch. Computed for each seed over its noise ratios, then mean and 95 % t interval "
        "over seeds. Variance of R@1: population variance over noise ratios (as NPC defines it), not over "
        "seeds; a method with low recall at all ratios also has a low variance. Per 10 points: "
        "least-squares slope. Area: under rSum relative to that at the lowest ratio (1: no loss). Drop: "
        "mean rSum at the lowest ratio minus that at the highest. Sd over seeds: of rSum (ddof 1), averaged "
        f"over ratios. Worst seed: lowest rSum at the highest ratio. n: trials. {legend}"
    )
    return Table(
        f"Stability: {where}", caption, ["method", *(heading for _, heading, _, _ in _COLUMNS), "n"], rows
    )


def stability_figure(frame: pd.DataFrame, where: str, folder: Path) -> Figure | None:
    """Area under the degradation curve against mean rSum, for rows whose trials are all done; None with fewer
    than two.
    """
    table = stability(frame)
    table = table[(table["n"] == table["planned"]) & table["area"].notna()] if len(table) else table
    if len(table) < 2:
        return None
    points = pd.DataFrame(
        {"x": frame.groupby(["row", "noise_ratio"])["rsum"].mean().groupby("row").mean()}
    ).loc[table.index]
    points = points.assign(y=table["area"], y_low=table["area_low"], y_high=table["area_high"])
    points.attrs = {
        "x": "test rSum, mean over noise ratios",
        "y": "area under rSum over the ratio\n(1 loses nothing)",
    }
    file = slug("stability", where)
    figures.scatter(frame, points, where, folder / file)
    return Figure(
        f"Stability against accuracy: {where}",
        file,
        "Up and to the right is better. Whiskers: 95 % t interval of the area over seeds."
        + figures.marks_legend(frame[frame["row"].isin(points.index)]),
    )


def _with_interval(line: pd.Series, name: str, digits: int) -> str:
    if pd.isna(line[name]):
        return "–"
    if pd.isna(line.get(f"{name}_low", np.nan)):
        return f"{line[name]:.{digits}f}"
    low = max(0.0, line[f"{name}_low"]) if name.startswith("var_") else line[f"{name}_low"]
    return " ".join(
        [_number(line[name], digits), f"[{_number(low, digits)}, {_number(line[f'{name}_high'], digits)}]"]
    )


def _number(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # no minus before zero


def seeds_table(frame: pd.DataFrame, where: str) -> Table:
    """Spread over seeds at each ratio, with chi-square intervals, and the ratio at which the mean
    is worst.
    """
    ratios = sorted(frame["noise_ratio"].unique())
    means = cells(frame, "rsum")["mean"]
    rows = []
    for row in dict.fromkeys(frame["row"]):
        trials = frame[frame["row"] == row]
        spread = [sd_interval(trials.loc[trials["noise_ratio"] == r, "rsum"]) for r in ratios]
        at = means.loc[row].dropna()
        worst: float | None = at.idxmin() if len(at) else None
        mean = (
            mean_interval(trials.loc[trials["noise_ratio"] == worst, "rsum"]) if worst is not None else None
        )
        rows.append(
            [
                Cell(row),
                *(Cell(_estimate(s)) for s in spread),
                Cell("–" if mean is None else f"{worst:g}: {_estimate(mean)}"),
            ]
        )
    caption = (
        "Sd of test rSum after the last epoch over seeds (ddof 1) with 95 % chi-square interval; worst "
        "ratio: the one with the lowest mean, with a 95 % t interval."
    )
    return Table(
        f"Spread over seeds: {where}",
        caption,
        ["method", *(f"sd at {r:g}" for r in ratios), "worst ratio"],
        rows,
    )


def _estimate(estimate: Estimate) -> str:
    if np.isnan(estimate.value):
        return "–"
    return (
        f"{estimate.value:.1f}"
        if np.isnan(estimate.low)
        else f"{estimate.value:.1f} [{estimate.low:.1f}, {estimate.high:.1f}]"
    )


def shares_table(frame: pd.DataFrame, where: str) -> Table | None:
    """Variance of rSum due to the noise index and to the model's seed, at each ratio, where a sweep varies
    both; else None.
    """
    rows = []
    for (row, ratio), part in frame.groupby(["row", "noise_ratio"], sort=False):
        table = part.pivot_table(index="noise_seed", columns="seed", values="rsum", dropna=False)
        if min(table.shape) > 1 and len(part) == table.size:  # every noise seed with every model seed
            shares = variance_shares(table.to_numpy())
            texts = ["–" if np.isnan(v) else f"{100 * v:.0f} %" for v in shares.values()]
            rows.append(
                [
                    Cell(f"{ratio:g}"),
                    Cell(str(row)),
                    *map(Cell, texts),
                    Cell(f"{table.shape[0]} x {table.shape[1]}"),
                ]
            )
    if not rows:
        return None
    caption = (
        "Two-way random-effects model without replication, method of moments; negative components "
        "are set to zero. With few seeds the estimates are rough."
    )
    return Table(
        f"Variance components of rSum: {where}",
        caption,
        ["noise", "method", "noise index", "model seed", "residual", "noise x model seeds"],
        rows,
    )
