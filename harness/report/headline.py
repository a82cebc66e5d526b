"""The headline of a comparison: accuracy, stability and cost of each row in one figure and one table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from harness.report import figures
from harness.report.accuracy import best_rows, counted, legend, on_devices
from harness.report.results import needs
from harness.report.tables import Cell, Figure, Table, slug

_COLUMNS = {  # column: heading, digits, whether higher is better
    "mean": ("mean rSum ↑", 1, True),
    "selected": ("selected on dev ↑", 1, True),
    "lowest": ("noise {lowest:g} ↑", 1, True),
    "highest": ("noise {highest:g} ↑", 1, True),
    "drop": ("drop ↓", 1, False),
    "sd": ("sd over seeds ↓", 1, False),
    "worst": ("worst seed ↑", 1, True),
    "seconds": ("s/trial ↓", 1, False),
}


def headline(frame: pd.DataFrame, where: str, folder: Path) -> Iterator[Figure | Table]:
    """The figure (of two rows or more with a known cost) and the table of one data set and noise; nothing
    before a trial is done.
    """
    numbers = _numbers(frame)
    if numbers.empty:
        return
    if numbers["seconds"].notna().sum() > 1:
        yield _figure(frame, numbers, where, folder)
    yield _table(frame, numbers, where)


def _numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns `_COLUMNS`, `low` and `high` (lowest and highest mean of a ratio), `n` and `planned`, by row.

    A row whose trials are not done at every ratio of the frame has no value that compares ratios.
    """
    lines = {}
    for row, part in frame.groupby("row", sort=False):
        of_ratio, selected = (part.groupby("noise_ratio")[k] for k in ("rsum", "selected_rsum"))
        means = of_ratio.mean().reindex(sorted(frame["noise_ratio"].unique()))
        if means.notna().any():
            at_highest = part.loc[part["noise_ratio"] == means.index[-1], "rsum"]
            lines[row] = {
                "mean": means.mean(skipna=False),
                "selected": selected.mean().reindex(means.index).mean(skipna=False),
                "lowest": means.iloc[0],
                "highest": means.iloc[-1],
                "drop": means.iloc[0] - means.iloc[-1],
                "sd": of_ratio.std(ddof=1).mean(skipna=False),
                "worst": at_highest.min(),
                "seconds": part["seconds"].median(),
                "low": means.min(),
                "high": means.max(),
                "n": part["rsum"].count(),
                "planned": len(part),
            }
    return pd.DataFrame.from_dict(lines, orient="index")


def _figure(frame: pd.DataFrame, numbers: pd.DataFrame, where: str, folder: Path) -> Figure:
    unknown = list(numbers.index[numbers["seconds"].isna()])
    numbers = numbers.drop(index=unknown)
    points = pd.DataFrame(
        {"x": numbers["seconds"], "y": numbers["mean"], "y_low": numbers["low"], "y_high": numbers["high"]}
    )
    several = frame["noise_ratio"].nunique() > 1
    of = "test rSum" + ", mean over noise ratios" * several
    points.attrs = {"x": "seconds a trial, median (log scale)", "y": of}
    file = slug("headline", where)
    figures.scatter(frame, points, where, folder / file, log=True)
    return Figure(
        f"rSum against cost{', with its range over noise ratios' * several}: {where}",
        file,
        f"{on_devices(frame)}Up: more accurate ({of}). To the left: cheaper."
        + " Short whiskers: more stable (from the mean at the worst ratio to that at the best)." * several
        + figures.marks_legend(
            frame[frame["row"].isin(points.dropna(subset=["x", "y"]).index)], dashes=several
        )
        + (f" Not drawn, of unknown cost: {', '.join(unknown)}." if unknown else ""),
    )


def _table(frame: pd.DataFrame, numbers: pd.DataFrame, where: str) -> Table:
    one_ratio = frame["noise_ratio"].nunique() == 1
    columns = {k: v for k, v in _COLUMNS.items() if not (one_ratio and k in ("lowest", "highest", "drop"))}
    best = {
        name: best_rows(frame, numbers.assign(mean=numbers[name]), more=more)
        for name, (_, _, more) in columns.items()
    }
    about = dict(iter(frame.groupby("row")))
    rows = [
        [
            Cell(str(row)),
            Cell(about[row]["family"].iloc[0]),
            Cell(needs(about[row])),
            *(
                Cell("–" if pd.isna(line[name]) else f"{line[name]:.{digits}f}", best=row in best[name])
                for name, (_, digits, _) in columns.items()
            ),
            Cell(counted(line)),
        ]
        for row, line in numbers.iterrows()
    ]
    what = (
        "mean over seeds. Sd over seeds: ddof 1. Worst seed: lowest rSum"
        if one_ratio
        else "mean over noise ratios and seeds, and at the lowest and the highest ratio. Drop: the former "
        "minus the latter. Sd over seeds: ddof 1, mean over ratios. Worst seed: lowest rSum at the highest "
        "ratio"
    )
    caption = (
        f"Test rSum after the last epoch: {what}. Selected on dev: mean rSum of the epoch that is best "
        "there, the second endpoint. s/trial: median seconds of a trial. n: trials. "
        "Needs: beside the training pairs and one network; further passes are looks at all pairs. "
        f"{on_devices(frame)}{legend(frame)}"
    )
    ratios = {"lowest": frame["noise_ratio"].min(), "highest": frame["noise_ratio"].max()}
    headings = [heading.format(**ratios) for heading, _, _ in columns.values()]
    return Table(
        f"Accuracy, stability and cost: {where}", caption, ["method", "family", "needs", *headings, "n"], rows
    )
