"""The state of a sweep on a terminal: a table of rows by noise ratio, and a line for each running trial."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.config.labels import place_labels, run_names, shown_rows
from harness.config.trial import Trial
from harness.lib.console import duration
from harness.lib.watchdog import Heartbeat

STATES = ("done", "running", "interrupted", "failed", "stopped", "to run")
_MARKS = {"running": ("▸", "cyan"), "interrupted": ("‖", "yellow"), "failed": ("✗", "red")}
_LEGEND = "mean rSum so far, done/planned, ▸ running, ‖ interrupted, ✗ failed"
_STEP = re.compile(r"epoch (\d+), step (\d+) of (\d+)")


@dataclass
class Board:
    """States and scores of the trials of a sweep.

    Attributes:
        trials: all planned trials.
        states: one of `STATES` by trial id; a trial that is not in it is still to run.
        scores: rSum of finished trials by id: of test, or of dev where settings are selected.
        labels: the row that a trial belongs to, by id; with its data set and noise where there are several.
        names: what a trial is called, by id.
    """

    trials: Sequence[Trial]
    states: dict[str, str] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.labels = _labels(self.trials)
        self.names = run_names(self.trials)
        self.rows = list(dict.fromkeys(self.labels.values()))
        self.ratios = sorted({t.noise_ratio for t in self.trials})
        self._cells: dict[tuple[str, float], list[Trial]] = {}
        for trial in self.trials:
            self._cells.setdefault((self.labels[trial.id], trial.noise_ratio), []).append(trial)

    def counts(self) -> Counter[str]:
        """Trials in each state."""
        return Counter(self.states.get(t.id, "to run") for t in self.trials)

    def table(self, width: int, rows: int | None = None) -> RenderableType:
        """Rows by noise ratio.

        Args:
            width: characters in a line; ratios that do not fit are left out, and counted below the table.
            rows: the largest number of rows; None: all.
        """
        shown = self.rows[:rows]
        first = min(max(map(len, shown)), width // 3)
        texts = {(row, r): self._cell(self._cells.get((row, r), ())) for row in shown for r in self.ratios}
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), show_edge=False)
        table.add_column("method", no_wrap=True, overflow="ellipsis", max_width=first)
        fitting: list[float] = []
        left = width - first - 2
        for ratio in self.ratios:
            left -= max(len(f"noise {ratio:g}"), *(texts[row, ratio].cell_len for row in shown)) + 2
            if left < 0:
                break
            fitting.append(ratio)
            table.add_column(f"noise {ratio:g}", justify="right", no_wrap=True)
        for row in shown:
            table.add_row(row, *(texts[row, ratio] for ratio in fitting))
        below = [_LEGEND]
        below += [f"{n} more ratios" for n in [len(self.ratios) - len(fitting)] if n]
        below += [f"{n} more rows" for n in [len(self.rows) - len(shown)] if n]
        return Group(table, Text("; ".join(below), style="dim", overflow="ellipsis", no_wrap=True))

    def _cell(self, trials: Sequence[Trial]) -> Text:
        """`157.8 2/5 ▸1`: mean, done of planned, and what is not as it should be."""
        if not trials:
            return Text("")
        counts = Counter(self.states.get(t.id, "to run") for t in trials)
        scores = [self.scores[t.id] for t in trials if t.id in self.scores]
        text = Text(f"{fmean(scores):.1f} " if scores else "")
        text.append(f"{counts['done']}/{len(trials)}", style="" if counts["done"] == len(trials) else "dim")
        for state, (mark, style) in _MARKS.items():
            if counts[state]:
                text.append(f" {mark}{counts[state]}", style=style)
        return text


def _labels(trials: Sequence[Trial]) -> dict[str, str]:
    """The row of each trial, with its data set and noise where there are several."""
    rows, (data, noise) = shown_rows(trials), place_labels(trials)
    places = {t.id: f"{data[t.id]}, {noise[t.id]}" for t in trials}
    several = len(set(places.values())) > 1
    return {t.id: rows[t.id] + (f" · {places[t.id]}" if several else "") for t in trials}


class Rates:
    """How fast running trials come on, from their heartbeats."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[float, float]] = {}

    def seconds_left(self, trial: Trial, heartbeat: Heartbeat) -> float | None:
        """Seconds until the trial has trained, at its rate since it was first seen; None until that shows."""
        at, share = time.monotonic() - heartbeat.seconds_ago, share_done(trial, heartbeat)
        began, before = self._first.setdefault(trial.id, (at, share))
        return (at - began) / (share - before) * (1 - share) if share > before else None


def share_done(trial: Trial, heartbeat: Heartbeat) -> float:
    """The share of its epochs that a trial has trained, from 0 to 1."""
    step = _STEP.match(heartbeat.where)
    part = int(step[2]) / int(step[3]) if step and int(step[1]) == heartbeat.epochs else 0.0
    return min(1.0, (heartbeat.epochs + part) / trial.epochs)


def running_table(
    trials: Iterable[Trial],
    labels: Mapping[str, str],
    heartbeats: Mapping[str, Heartbeat | None],
    width: int,
    rates: Rates | None = None,
) -> RenderableType:
    """A line for each running trial: its row, cut to what fits into `width` characters, its ratio and seed,
    and its position.
    """
    lines = [
        (f"▸ {labels[t.id]}", f"{t.noise_ratio:g} seed {t.seed}", *_position(t, heartbeats.get(t.id), rates))
        for t in trials
    ]
    table = Table.grid(padding=(0, 2, 0, 0))
    taken = sum(max(map(len, column)) + 2 for column in list(zip(*lines, strict=True))[1:])
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=max(12, width - taken - 2))
    for line in lines:
        table.add_row(*line)
    return table


def _position(trial: Trial, heartbeat: Heartbeat | None, rates: Rates | None) -> tuple[str, str, str, str]:
    """Where a running trial is, its last dev rSum, its rate, and the time left; empty where unknown."""
    if heartbeat is None:
        return "starting", "", "", ""
    left = rates.seconds_left(trial, heartbeat) if rates else None
    rate = left and left / max(1e-9, (1 - share_done(trial, heartbeat)) * trial.epochs)
    where = _STEP.sub(r"\2/\3", heartbeat.where)
    return (
        where if where == "starting" else f"epoch {heartbeat.epochs}, {where}"[:28],
        f"dev {heartbeat.score:.1f}" if heartbeat.score is not None else "",
        f"{rate:.2g} s/ep." if rate else "",
        f"{duration(left)} left" if left is not None else "",
    )
