"""The figures of a report: one style, colour-blind safe, the same colour for a method everywhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.evaluation.metrics import BINS, Calibration
from harness.report.drawing import drawn
from harness.report.rank_diagram import draw_ranks, height
from harness.report.results import cells
from methods import METHODS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Functions import matplotlib themselves: a report that is drawn in the background does not need it here.

_STYLE = {
    "svg.hashsalt": "harness",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.markersize": 5,
}
"""Settings of matplotlib while a figure is drawn."""

# Okabe and Ito's palette and a wine red of Tol's, distinguishable under all common kinds of colour vision;
# markers repeat the distinction.
_COLOURS = ("#999999", "#0072B2", "#E69F00", "#009E73", "#000000", "#D55E00", "#CC79A7", "#56B4E9", "#882255")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")
_SHADES = 4
"""Shades of a colour that can be told apart."""
BANDS = 8
"""Rows up to which a figure of curves has bands."""
_ACROSS = 3
"""Panels in a row of a figure: more could not be read on a laptop."""
_DASHES = ((5, 2), (1, 1.5), (7, 2, 1, 2), (2, 4), (7, 2, 1, 2, 1, 2))
MATCHED, MISMATCHED = "#0072B2", "#D55E00"

Style = tuple[str, str]


def styles(frame: pd.DataFrame) -> dict[str, Style]:
    """Colour and marker of each row: those of its method. Further rows of a method (by `label`) have markers
    that no other row has, as far as there are any, and paler colours; where these are more than
    `_SHADES`, those of methods that are not there.
    """
    methods = dict(zip(frame["row"], frame["method"], strict=True))
    colours = _of_methods(list(methods.values()))
    named = [row for row, label in zip(frame["row"], frame["label"], strict=True) if label in METHODS]
    own = {row: _MARKERS[list(METHODS).index(methods[row]) % len(_MARKERS)] for row in named}
    further = itertools.cycle([m for m in _MARKERS if m not in own.values()] or _MARKERS)
    absent = itertools.cycle([c for c in _COLOURS if c not in colours.values()] or _COLOURS)
    style_of = {}
    for row, method in methods.items():
        same_method = [r for r, m in methods.items() if m == method]
        place = same_method.index(row)
        if len(same_method) <= _SHADES:
            colour = _paler(colours[method], place / len(same_method))
        else:
            colour = next(absent) if place else colours[method]
        style_of[row] = (colour, own[row] if row in own else next(further))
    return style_of


def _of_methods(methods: list[str]) -> dict[str, str]:
    """A colour for each method: fixed for registered methods; others take the remaining colours."""
    fixed = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(METHODS)}
    free = itertools.cycle([c for c in _COLOURS if c not in {fixed.get(m) for m in methods}] or _COLOURS)
    return {m: fixed[m] if m in fixed else next(free) for m in dict.fromkeys(methods)}


def _paler(colour: str, share: float) -> str:
    """A colour with up to two thirds of white."""
    from matplotlib.colors import to_hex, to_rgb

    return str(to_hex([c + (1 - c) * share * 2 / 3 for c in to_rgb(colour)]))


@drawn
def degradation(frame: pd.DataFrame, title: str, target: Path) -> None:
    """rSum over the noise ratio: mean line, band of one sd (up to `BANDS` rows, beyond which bands overlap),
    and the seeds as dots, those of each row side by side; the oracle is dashed, and rows of several networks
    have open markers (`marks_legend`). With one ratio there are no lines and bands, and means stand side by
    side too.
    """
    table = cells(frame, "rsum")
    ratios = np.unique(frame["noise_ratio"])
    rows = styles(frame)
    wide = 1.0 if len(rows) <= BANDS else 0.0
    aside = np.linspace(-0.25, 0.25, len(rows) + 2)[1:-1] * (
        np.diff(ratios).min() if len(ratios) > 1 else 0.1
    )
    with _figure(target, 7.2, 4.8) as axes:
        for (row, (colour, marker)), shift in zip(rows.items(), aside, strict=True):
            part = table.loc[row].dropna(subset=["mean"]).sort_index()
            if part.empty:
                continue
            trials = frame[frame["row"] == row]
            line = "--" if trials["ground_truth"].any() else "-"
            _band(
                axes,
                part.index.to_numpy(float) + (shift if len(ratios) == 1 else 0),
                part["mean"],
                wide * part["sd"],
                colour,
                marker=marker,
                linestyle=line,
                label=row,
                markerfacecolor="white" if trials["networks"].max() > 1 else colour,
            )
            x = trials["noise_ratio"] + shift
            axes.plot(
                x, trials["rsum"], ".", color=colour, markersize=4, alpha=0.7, markeredgewidth=0, zorder=1
            )
        axes.set(xlabel="noise ratio (nominal)", ylabel="test rSum", title=title)
        axes.set_xticks(ratios)
        _legend(axes)


@drawn
def scatter(
    frame: pd.DataFrame, points: pd.DataFrame, title: str, target: Path, *, log: bool = False
) -> None:
    """One point with whiskers for each row of the report; as in `degradation`, the oracle's are dashed, and
    rows of several networks have open markers (`marks_legend`).

    Args:
        frame: the tidy frame, for the style of each row.
        points: [row] with columns x, y and optionally their bounds `_low` and `_high`; `attrs` has the labels
            of the axes x and y.
        log: whether the x axis is logarithmic.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    with _figure(target, 6.4, 4.2) as axes:
        for row, (colour, marker) in styles(frame).items():
            if row in points.index and points.loc[row, ["x", "y"]].notna().all():
                p = points.loc[row]
                whiskers = {
                    # A mean of equal values can be a rounding error beyond them.
                    f"{a}err": [[max(0.0, p[a] - p[f"{a}_low"])], [max(0.0, p[f"{a}_high"] - p[a])]]
                    for a in "xy"
                    if pd.notna(p.get(f"{a}_low"))
                }
                trials = frame[frame["row"] == row]
                *_, bars = axes.errorbar(
                    p["x"],
                    p["y"],
                    **whiskers,
                    color=colour,
                    marker=marker,
                    markersize=8,
                    markerfacecolor="white" if trials["networks"].max() > 1 else colour,
                    linestyle="",
                    elinewidth=1,
                    label=row,
                )
                for bar in bars:
                    bar.set_linestyle("--" if trials["ground_truth"].any() else "-")
        if log:
            axes.set_xscale("log")
            low, high = axes.get_xlim()
            steps = (1, 1.5, 2, 3, 5, 7) if high < 10 * low else (1, 2, 5)
            axes.xaxis.set_major_locator(LogLocator(subs=steps))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel=points.attrs["x"], ylabel=points.attrs["y"], title=title)
        _legend(axes)


def marks_legend(drawn_rows: pd.DataFrame, *, dashes: bool = True) -> str:
    """What open markers and dashes mean in the caption of a figure that has any, each text after a space.

    Args:
        drawn_rows: the part of the tidy frame whose rows are in the figure.
        dashes: whether rows have lines or whiskers, which can be dashed.
    """
    texts = {
        " Open markers: several networks.": drawn_rows["networks"].max() > 1,
        " Dashed: uses the ground truth.": dashes and drawn_rows["ground_truth"].any(),
    }
    return "".join(text for text, applies in texts.items() if applies)


@drawn
def ranks(
    frame: pd.DataFrame, average: Mapping[str, float], difference: float, title: str, target: Path
) -> None:
    """Critical-difference diagram of average ranks. `difference`: the critical one."""
    colours = {row: colour for row, (colour, _) in styles(frame).items()}
    with _figure(target, 7.2, height(average, difference)) as axes:
        draw_ranks(axes, average, difference, colours)
        axes.set_title(title)


@drawn
def histograms(calibrations: Mapping[tuple[str, float], Calibration], title: str, target: Path) -> None:
    """Histograms of the confidence of matched and mismatched training pairs, each normalized: a row of panels
    for each row, a column for each noise ratio.
    """
    rows, ratios = (list(dict.fromkeys(keys)) for keys in zip(*calibrations, strict=True))
    edges = np.linspace(0, 1, BINS + 1)
    with _grid(target, len(rows), len(ratios), width=2.5, height=1.7, title=title) as panels:
        for (r, row), (c, ratio) in itertools.product(enumerate(rows), enumerate(ratios)):
            axes = panels[r, c]
            # The hatch tells them apart in grey.
            for kind, colour, hatch in (("matched", MATCHED, None), ("mismatched", MISMATCHED, "////")):
                counts = (
                    getattr(calibrations[row, ratio], kind)
                    if (row, ratio) in calibrations
                    else np.zeros(BINS, int)
                )
                if counts.sum():
                    shares = counts / counts.sum()
                    axes.stairs(
                        shares,
                        edges,
                        fill=True,
                        color=colour,
                        alpha=0.5,
                        hatch=hatch,
                        linewidth=0,
                        label=kind,
                    )
            # The name of the row on a line of its own, which may reach over the next panel.
            axes.set_title(f"{row}\nnoise {ratio:g}" if c == 0 else f"noise {ratio:g}", loc="left")
            axes.set(
                xlim=(0, 1),
                xlabel="confidence" if r == len(rows) - 1 else "",
                ylabel="share of pairs" if c == 0 else "",
            )
        _shared_legend(panels)


@drawn
def reliability(
    calibrations: Mapping[tuple[str, float], Calibration], frame: pd.DataFrame, title: str, target: Path
) -> None:
    """Share of matched pairs over mean confidence, a panel for each ratio; the diagonal is perfect
    calibration.
    """
    ratios = list(dict.fromkeys(ratio for _, ratio in calibrations))
    style = styles(frame)
    with _wrapped(target, len(ratios), width=2.8, height=2.6, title=title) as panels:
        for axes, ratio in zip(panels.flat, ratios, strict=False):
            axes.plot([0, 1], [0, 1], color="#888888", linewidth=0.8, linestyle=":")
            for (row, at), c in calibrations.items():
                if at == ratio:
                    count = c.matched + c.mismatched
                    some = count > 0.01 * count.sum()  # a share of a few pairs is noise
                    axes.plot(
                        c.confidence[some],
                        c.share[some],
                        color=style[row][0],
                        marker=style[row][1],
                        markersize=3.5,
                        linewidth=1.2,
                        label=row,
                    )
            axes.set(
                title=f"noise {ratio:g}",
                xlabel="mean confidence",
                ylabel="share that matches" if axes in panels[:, 0] else "",
                xlim=(-0.03, 1.03),
                ylim=(-0.03, 1.03),
            )
        _shared_legend(panels)


@drawn
def confidence_over_epochs(means: pd.DataFrame, frame: pd.DataFrame, title: str, target: Path) -> None:
    """Mean confidence of matched (solid) and mismatched (dashed) pairs; columns row, noise_ratio, seed,
    epoch, matched, mismatched.
    """
    from matplotlib.ticker import MaxNLocator

    ratios = sorted(means["noise_ratio"].unique())
    style = styles(frame)
    with _wrapped(target, len(ratios), width=3.0, height=2.6, title=title) as panels:
        for axes, ratio in zip(panels.flat, ratios, strict=False):
            for row, part in means[means["noise_ratio"] == ratio].groupby("row", sort=False):
                for kind, line in (("matched", "-"), ("mismatched", "--")):
                    of_epoch = part.groupby("epoch")[kind].agg(["mean", "std"]).dropna(subset=["mean"])
                    if len(of_epoch):
                        label = row if kind == "matched" else None
                        _band(
                            axes,
                            of_epoch.index.to_numpy(float) + 1,
                            of_epoch["mean"],
                            of_epoch["std"],
                            style[row][0],
                            marker=style[row][1],
                            linestyle=line,
                            label=label,
                        )
            axes.set(
                title=f"noise {ratio:g}",
                xlabel="epoch",
                ylabel="mean confidence" if axes in panels[:, 0] else "",
            )
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _shared_legend(panels)


@drawn
def trained_on(curves: pd.DataFrame, frame: pd.DataFrame, title: str, target: Path) -> None:
    """Purity (top) and share (bottom) over epochs, a column for each ratio; columns row, noise_ratio, seed,
    epoch, share, purity. Dotted: the matched part of all pairs, where it is known.
    """
    from matplotlib.ticker import MaxNLocator

    ratios = sorted(curves["noise_ratio"].unique())
    style = styles(frame)
    with _grid(target, 2, len(ratios), width=2.6, height=2.3, title=title) as panels:
        for column, ratio in enumerate(ratios):
            here = curves[curves["noise_ratio"] == ratio]
            matched = 1 - frame.loc[frame["noise_ratio"] == ratio, "realised_ratio"].mean()
            panels[0, column].axhline(matched, color="#888888", linewidth=0.8, linestyle=":")
            for axes, measure in zip(panels[:, column], ("purity", "share"), strict=True):
                for row, part in here.groupby("row", sort=False):
                    of_epoch = part.groupby("epoch")[measure].agg(["mean", "std"]).dropna(subset=["mean"])
                    _band(
                        axes,
                        of_epoch.index.to_numpy(float) + 1,
                        of_epoch["mean"],
                        of_epoch["std"],
                        style[str(row)][0],
                        marker=style[str(row)][1],
                        markersize=3.5,
                        label=row,
                    )
                axes.set(ylabel=measure if column == 0 else "", xlabel="epoch" if measure == "share" else "")
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            panels[0, column].set_title(f"noise {ratio:g}")
        for axes in panels.flat:  # a band of one sd may leave what a share can be
            low, high = axes.get_ylim()
            axes.set_ylim(max(low, -0.03), min(high, 1.03))
        _shared_legend(panels)


@drawn
def best_so_far(tries: Mapping[str, list[float]], title: str, target: Path) -> None:
    """The highest objective up to each try, a line for each method; NaN for tries without one."""
    from matplotlib.ticker import MaxNLocator

    colours = _of_methods(list(tries))
    with _figure(target, 6.4, 4.0) as axes:
        for (method, values), marker in zip(tries.items(), itertools.cycle(_MARKERS), strict=False):
            number = np.arange(1, len(values) + 1)
            best = np.fmax.accumulate(np.array(values, float))
            axes.plot(number, best, drawstyle="steps-post", color=colours[method])
            axes.plot(number, values, marker, color=colours[method], markersize=3.5, alpha=0.5)
            # More methods than colours: the legend shows the marker too.
            axes.plot([], [], marker=marker, color=colours[method], markersize=3.5, label=method)
        axes.set(xlabel="tries", ylabel="mean dev rSum after the last epoch", title=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(axes)


@drawn
def effects(
    points: Mapping[str, tuple[list[float], list[float]]],
    ranges: Mapping[str, tuple[bool, tuple[float, float]]],
    ticks: Mapping[str, list[str]],
    method: str,
    target: Path,
) -> None:
    """The objective of each try over each searched key, a panel a key.

    Args:
        points: values (positions of choices) and objectives, by key.
        ranges: whether the scale is logarithmic, and the bounds, by key.
        ticks: the names of choices, by key.
        method: whose tries these are, which has its colour.
    """
    colour = _of_methods([method])[method]
    with _wrapped(target, len(points), width=2.6, height=2.3, title=method) as panels:
        for axes, (key, (x, y)) in zip(panels.flat, points.items(), strict=False):
            axes.plot(x, y, "o", color=colour, markersize=4)
            best = int(np.nanargmax(y))
            axes.plot(x[best], y[best], "o", color="none", markeredgecolor="#000000", markersize=9)
            log, bounds = ranges[key]
            axes.set(xlabel=key, ylabel="dev rSum" if axes in panels[:, 0] else "")
            if log:
                axes.set_xscale("log")
            if key in ticks:
                axes.set_xticks(range(len(ticks[key])), ticks[key])
                axes.set_xlim(-0.5, len(ticks[key]) - 0.5)
            else:
                margin = 0.05 * (bounds[1] - bounds[0])
                wide = (bounds[0] / 1.2, bounds[1] * 1.2) if log else (bounds[0] - margin, bounds[1] + margin)
                axes.set_xlim(*wide)


@drawn
def axis(
    lines: Mapping[str, pd.DataFrame],
    level: Mapping[str, Mapping[float, float]],
    name: str,
    measure: str,
    title: str,
    target: Path,
) -> None:
    """A measure over a hyper-parameter, a panel for each ratio.

    `lines`: for each line its trials, with `value` and `number` (position of the value on the axis);
        `level`: rows without that hyper-parameter, by ratio.
    """
    points = pd.concat(list(lines.values()))
    ratios, ticks = sorted(points["noise_ratio"].unique()), points.drop_duplicates("number")
    methods = {line: part["method"].iloc[0] for line, part in lines.items()}
    colours = _of_methods(list(methods.values()))
    of_line = {}
    for (line, method), marker in zip(methods.items(), itertools.cycle(_MARKERS), strict=False):
        same_method = [other for other, m in methods.items() if m == method]
        of_line[line] = (_paler(colours[method], same_method.index(line) / len(same_method)), marker)
    with _wrapped(target, len(ratios), width=3.4, height=2.9, title=title) as panels:
        for axes, ratio in zip(panels.flat, ratios, strict=False):
            for line, part in lines.items():
                here = part[part["noise_ratio"] == ratio]
                of_value = here.groupby("number")["y"].agg(["mean", "std"]).dropna(subset=["mean"])
                colour, marker = of_line[line]
                if len(of_value):
                    _band(
                        axes,
                        of_value.index.to_numpy(float),
                        of_value["mean"],
                        of_value["std"],
                        colour,
                        marker=marker,
                        label=line,
                    )
                    axes.plot(here["number"], here["y"], ".", color=colour, markersize=4, alpha=0.6)
            for (row, by), dashes in zip(level.items(), itertools.cycle(_DASHES), strict=False):
                if ratio in by:
                    axes.axhline(by[ratio], color="#777777", linewidth=1, linestyle=(0, dashes), label=row)
            axes.set(title=f"noise {ratio:g}", xlabel=name, ylabel=measure if axes in panels[:, 0] else "")
            axes.set_xticks(ticks["number"], ticks["value"])
        panels[0, 0].autoscale(axis="y")
        _shared_legend(panels)


def _band(axes: Any, x: NDArray, mean: pd.Series, sd: pd.Series, colour: str, **line: Any) -> None:
    spread = sd.fillna(0)
    axes.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
    axes.plot(x, mean, color=colour, **line)


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _shared_legend(panels: NDArray) -> None:
    """One legend for all panels, to their right."""
    named: dict[str, Any] = {}
    for axes in panels.flat:
        named |= {
            label: handle
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
            if label not in named
        }
    if named:
        panels.flat[0].figure.legend(named.values(), named.keys(), loc="outside right center")


@contextmanager
def _figure(target: Path, width: float, height: float) -> Iterator[Any]:
    """One pair of axes, written to `target`.png and .svg."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.subplots()
        _save(figure, target)


@contextmanager
def _grid(
    target: Path, rows: int, columns: int, *, width: float, height: float, title: str
) -> Iterator[NDArray]:
    """Panels [rows, columns] of a size each, with room for a legend, written to `target`.png and .svg."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    size = (width * columns + 1.8, height * rows + 0.4)
    with rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
        figure.suptitle(title, fontsize=10)
        yield panels
        _save(figure, target)


@contextmanager
def _wrapped(target: Path, count: int, *, width: float, height: float, title: str) -> Iterator[NDArray]:
    """Panels [rows, columns] for `count` panels, at most `_ACROSS` to a row; those that are left over are
    hidden.
    """
    columns = min(count, _ACROSS)
    with _grid(target, -(-count // columns), columns, width=width, height=height, title=title) as panels:
        for axes in panels.flat[count:]:
            axes.set_visible(False)
        yield panels


def _save(figure: Figure, target: Path) -> None:
    """Lay the figure out once, and write it to `target`.png and .svg."""
    target.parent.mkdir(parents=True, exist_ok=True)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)  # any other, also "none", makes `savefig` draw each file twice
    figure.savefig(target.parent / f"{target.name}.png", dpi=150)
    figure.savefig(target.parent / f"{target.name}.svg", metadata={"Date": None})
