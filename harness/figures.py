"""The figures of a report: one style, colour-blind safe, the same colour for a method everywhere."""

from __future__ import annotations

import itertools
from pathlib import Path

import pandas as pd

from harness.results import cells
from methods import METHODS

# Okabe and Ito's palette, told apart by all common kinds of colour vision; markers say it a second time.
_COLOURS = ("#999999", "#0072B2", "#E69F00", "#009E73", "#000000", "#D55E00", "#CC79A7", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def styles(rows: list[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each row: a registered method has its own everywhere, other rows take those that are left."""
    own = {name: i for i, name in enumerate(METHODS)}
    free = itertools.cycle([i for i in range(len(_COLOURS)) if i not in {own.get(row) for row in rows}] or range(len(_COLOURS)))
    place = {row: own[row] if row in own else next(free) for row in rows}
    return {row: (_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]) for row, i in place.items()}


def degradation(frame: pd.DataFrame, title: str, target: Path) -> None:
    """rSum over the noise ratio: mean line, band of one sd, seeds as dots. Writes `target`.png and .svg."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "harness"
    import matplotlib.pyplot as plt

    table = cells(frame, "rsum")
    rows = list(dict.fromkeys(frame["row"]))
    figure, axes = plt.subplots(figsize=(7.2, 4.4), constrained_layout=True)
    for row, (colour, marker) in styles(rows).items():
        part = table.loc[row].dropna(subset=["mean"]).sort_index()
        if part.empty:
            continue
        oracle = bool(frame.loc[frame["row"] == row, "ground_truth"].iloc[0])
        ratios, mean, sd = part.index.to_numpy(), part["mean"], part["sd"].fillna(0)
        axes.fill_between(ratios, mean - sd, mean + sd, color=colour, alpha=0.15, linewidth=0)
        axes.plot(ratios, mean, color=colour, marker=marker, markersize=5, linestyle="--" if oracle else "-", label=row)
        seeds = frame[(frame["row"] == row) & frame["rsum"].notna()]
        axes.plot(seeds["noise_ratio"], seeds["rsum"], ".", color=colour, markersize=4, alpha=0.6)
    axes.set(xlabel="noise ratio (nominal)", ylabel="test rSum", title=title)
    axes.set_xticks(sorted(frame["noise_ratio"].unique()))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target.with_suffix(".png"), dpi=150)
    figure.savefig(target.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)
