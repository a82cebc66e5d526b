"""Cost of each row: time, throughput, memory, forward passes and energy; accuracy against cost."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pandas as pd

from harness.report import figures
from harness.report.accuracy import counted, marks, on_devices
from harness.report.tables import Cell, Figure, Table, slug

_TIME = {
    "seconds": "total s ↓",
    "train_seconds": "training s ↓",
    "method_seconds": "passes over training pairs s ↓",
    "evaluation_seconds": "evaluation s ↓",
}
_SPEED = {
    "train_pairs_per_second": "training pairs/s ↑",
    "method_pairs_per_second": "passes pairs/s ↑",
    "evaluation_pairs_per_second": "evaluation captions/s ↑",
}
_CLOCK = (
    "Wall-clock times depend on the load of the machine: `python -m harness.bench` measures "
    "methods in turn and reports ratios. "
)


def cost_tables(frame: pd.DataFrame, where: str) -> list[Table]:
    """Time, throughput, memory and energy of each row, over its finished trials."""
    time = (
        "Medians over the finished trials of a row. Training: optimizer steps, including sampling and "
        "loading of batches. Passes over training pairs: computations of a method between epochs (mixture "
        "models, memory banks). Evaluation: dev after epochs, test at the end. Throughput of each of these "
        f"phases alone. {_CLOCK}{on_devices(frame)}{marks(frame)}"
    )
    counted_energy = frame["joules"].notna().any()
    energy = (
        "Energy: of the GPU of the first process, from its own counter."
        if counted_energy
        else "Energy: not measured (no GPU with an energy counter)."
    )
    rest = (
        "Means over the finished trials of a row. Forward passes: pairs that go through a network in a "
        "step, over the pairs of its batch, mean over all epochs, warm-up included (passes between epochs "
        "are not included). Peak memory: of the GPU where there is one; on a CPU of the process, including "
        "memory that earlier trials left. Networks: number of networks with averaged similarities at test. "
        "Parameters: trained parameters in millions. "
        f"{energy} {marks(frame)}"
    )
    size = {
        "forward_passes": "forward passes ↓",
        "peak_memory_mb": "peak MB ↓",
        "networks": "networks",
        "parameters": "parameters (M)",
    }
    size |= {"joules": "energy kJ ↓"} if counted_energy else {}
    return [
        _over_trials(frame, {**_TIME, **_SPEED}, f"Cost, time: {where}", time, how="median"),
        _over_trials(frame, size, f"Cost, passes and memory: {where}", rest, how="mean"),
    ]


def _over_trials(
    frame: pd.DataFrame, columns: dict[str, str], title: str, caption: str, *, how: Literal["mean", "median"]
) -> Table:
    """Seconds by medians: a machine that was busy for one trial does not move them."""
    rows = []
    for row, part in frame.groupby("row", sort=False):
        done = part[part["done"]]
        if len(done):
            values = done[list(columns)].agg(how)
            count = counted(pd.Series({"n": len(done), "planned": len(part)}))
            rows.append([Cell(str(row)), *(Cell(_text(name, values[name])) for name in columns), Cell(count)])
    return Table(title, caption, ["method", *columns.values(), "n"], rows)


def _text(name: str, value: float) -> str:
    if pd.isna(value):
        return "–"
    if name == "parameters":
        return f"{value / 1e6:.2f}"
    if name == "joules":
        return f"{value / 1000:.1f}"
    if name.endswith(("per_second", "_mb")):
        return f"{value:,.0f}"
    return (
        f"{value:g}" if name == "networks" else f"{value:.2f}" if name == "forward_passes" else f"{value:.1f}"
    )


def cost_figure(frame: pd.DataFrame, where: str, folder: Path) -> Figure | None:
    """Mean rSum over ratios against time, for rows with all ratios whose trials are all done; None with fewer
    than two.
    """
    ratios = frame["noise_ratio"].nunique()
    done = frame.groupby("row", sort=False).filter(
        lambda part: (
            part["done"].all() and part["seconds"].notna().all() and part["noise_ratio"].nunique() == ratios
        )
    )
    if done["row"].nunique() < 2:
        return None
    points = done.groupby("row", sort=False).agg(
        x=("seconds", "median"), x_low=("seconds", "min"), x_high=("seconds", "max")
    )
    points["y"] = done.groupby(["row", "noise_ratio"])["rsum"].mean().groupby("row").mean()
    of = "test rSum" + ", mean over noise ratios" * (ratios > 1)
    points.attrs = {"x": "seconds a trial, median (log scale)", "y": of}
    file = slug("cost", where)
    figures.scatter(frame, points, where, folder / file, log=True)
    return Figure(
        f"rSum against cost, with its range over trials: {where}",
        file,
        f"Up and to the left is better. {on_devices(done)}Whiskers: the fastest and the slowest trial."
        + figures.marks_legend(done),
    )
