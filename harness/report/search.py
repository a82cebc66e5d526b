"""The report of a search: the best tries of each method, how the best came about, what each setting does, and
which winners lie at an edge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.config.search import LEAST_OWN_STAGE, Range, edge_of
from harness.record.tries import Try, best_of, tries_of
from harness.record.types import SweepRecord
from harness.report import figures
from harness.report.accuracy import on_devices
from harness.report.tables import Block, Cell, Figure, Table, slug

_SHOWN = 6  # the best try and the five next


def searched(sweep: SweepRecord, frame: pd.DataFrame, folder: Path) -> Iterator[Block]:
    """All tables and figures of a search. Test plays no part in them.

    Args:
        frame: the tidy frame, for what was spent.
    """
    tries = tries_of(sweep)
    for content in (_winners(sweep, tries), _edges(sweep, tries), _spent(sweep, tries, frame)):
        yield Block("search", "", content)
    if any(t.objective is not None for of_method in tries.values() for t in of_method):
        yield Block("search", "", _progress(sweep, tries, folder))
    for method, of_method in tries.items():
        yield Block("tries", method, _best_tries(method, of_method))
        if sum(t.objective is not None for t in of_method) > 1:
            yield Block("tries", method, _effects(sweep, method, of_method, folder))


def _winners(sweep: SweepRecord, tries: dict[str, list[Try]]) -> Table:
    rows = []
    for method, of_method in tries.items():
        best = best_of(of_method)
        if best is not None:
            rows.append(
                [Cell(method), Cell(_settings(best)), Cell(f"{best.objective:.1f}"), _of(best, of_method)]
            )
    caption = (
        "The setting of each method with the highest mean dev rSum after the last epoch, over "
        f"{_trials(sweep)}. Another sweep takes them with settings_from: {sweep.name}."
    )
    return Table("Best settings", caption, ["method", "setting", "dev rSum", "try"], rows)


def _of(best: Try, tries: Sequence[Try]) -> Cell:
    ended = sum(t.ended for t in tries)
    return Cell(f"{best.number} of {len(tries)}" + ("" if ended == len(tries) else f" ({ended} have ended)"))


def _trials(sweep: SweepRecord) -> str:
    """The trials of a try, in words."""
    ratios = ", ".join(f"{r:g}" for r in sorted({t.noise_ratio for t in sweep.planned}))
    seeds = ", ".join(str(s) for s in sorted({t.seed for t in sweep.planned}))
    return f"noise ratios {ratios} and seeds {seeds}"


def _settings(tried: Try) -> str:
    return ", ".join(f"{k} = {_shown(v)}" for k, v in tried.settings.items())


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _edges(sweep: SweepRecord, tries: dict[str, list[Try]]) -> Table:
    """Each winner's values with their ranges, and whether they lie at an end of them."""
    assert sweep.search is not None
    rows = []
    for method, of_method in tries.items():
        best = best_of(of_method)
        for key, values in sweep.search.ranges(method).items() if best else ():
            assert best is not None
            value = best.settings[key]
            rows.append(
                [Cell(method), Cell(key), Cell(_shown(value)), Cell(str(values)), _edge(best, key, values)]
            )
    caption = (
        "An edge: within 5 % of the range (on its scale) from an end. A learning rate at an edge is refused "
        "by settings_from. A natural bound is one that no search could go beyond: a share of 1, no warm-up, "
        f"the longest that leaves the method's own stage {LEAST_OWN_STAGE:.0%} of the summed learning rate."
    )
    return Table("Where the best settings lie", caption, ["method", "setting", "best", "range", "edge"], rows)


def _edge(best: Try, key: str, values: Range) -> Cell:
    edge = edge_of(best.trials[0], key, values, best.settings[key])
    if edge is None:
        return Cell("–")
    if edge[1] == "natural":
        return Cell(f"{edge[0]}, a natural bound")
    return Cell(f"{edge[0]}!", best=True)


def _spent(sweep: SweepRecord, tries: dict[str, list[Try]], frame: pd.DataFrame) -> Table:
    rows = []
    for method, of_method in tries.items():
        part = frame[frame["method"] == method]
        stopped = sum(
            sweep.records[t.id].stopped_early
            for t in sweep.planned
            if t.method == method and t.id in sweep.records
        )
        texts = (
            method,
            str(len(of_method)),
            str(sum(t.objective is not None for t in of_method)),
            str(sum(t.failed for t in of_method)),
            f"{int(part['done'].sum())} of {len(part)}",
            str(stopped),
            f"{part['seconds'].sum() / 60:.0f}",
        )
        rows.append([Cell(text) for text in texts])
    asha = sweep.search.asha if sweep.search else None
    stopping = (
        f"Early stopping by ASHA after {asha.grace_epochs} epochs, one of {asha.reduction} trials goes on; "
        "the try of a stopped trial has lost."
        if asha
        else "No trial is stopped early."
    )
    sampler = sweep.search.sampler if sweep.search else ""
    caption = (
        f"Tries are drawn by {sampler}, equally many for each method; a setting drawn twice, or whose "
        f"warm-up leaves the method's own stage less than {LEAST_OWN_STAGE:.0%} of the summed learning rate, "
        f"is drawn anew; a failed trial fails its try, which counts. {stopping} {on_devices(frame)}"
        "Minutes: of all trials that came to their end, one after another."
    )
    columns = ["method", "tries", "with a result", "failed", "trials", "trials stopped early", "minutes"]
    return Table("What was spent", caption, columns, rows)


def _progress(sweep: SweepRecord, tries: dict[str, list[Try]], folder: Path) -> Figure:
    values = {m: [_objective(t) for t in of_method] for m, of_method in tries.items()}
    figures.best_so_far(values, sweep.name, folder / "best-so-far")
    caption = (
        "The best mean dev rSum after the last epoch up to each try; dots: all tries. A line that still "
        "rises at its end asks for more tries."
    )
    return Figure("The best so far", "best-so-far", caption)


def _objective(tried: Try) -> float:
    return np.nan if tried.objective is None else tried.objective


def _best_tries(method: str, tries: Sequence[Try]) -> Table:
    keys = list(tries[0].settings)
    ranked = sorted((t for t in tries if t.objective is not None), key=lambda t: (-_objective(t), t.number))
    rows = [
        [
            Cell(str(t.number)),
            *(Cell(_shown(t.settings[k])) for k in keys),
            Cell(f"{t.objective:.1f}", best=t is ranked[0]),
        ]
        for t in ranked[:_SHOWN]
    ]
    caption = f"The best try of {method} and the {_SHOWN - 1} next, by mean dev rSum after the last epoch."
    return Table(f"Best tries: {method}", caption, ["try", *keys, "dev rSum"], rows)


def _effects(sweep: SweepRecord, method: str, tries: Sequence[Try], folder: Path) -> Figure:
    assert sweep.search is not None
    ranges = sweep.search.ranges(method)
    known = [t for t in tries if t.objective is not None]
    points = {
        key: ([_place(values, t.settings[key]) for t in known], [_objective(t) for t in known])
        for key, values in ranges.items()
    }
    bounds = {k: (r.log_uniform is not None, r.bounds or (0.0, 1.0)) for k, r in ranges.items()}
    ticks = {k: [str(c) for c in r.choices] for k, r in ranges.items() if r.choices is not None}
    file = slug("effects", method)
    figures.effects(points, bounds, ticks, method, folder / file)
    caption = "Each dot is a try; all settings vary at once. The circle is the best."
    return Figure(f"What each setting does: {method}", file, caption)


def _place(values: Range, value: Any) -> float:
    return float(values.choices.index(value) if values.choices is not None else value)
