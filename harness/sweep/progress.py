"""Done / running / failed and the time left: a live table on a terminal, a line for each trial elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from harness.config.trial import Trial
from harness.lib.console import console, duration
from harness.lib.watchdog import last_heartbeat
from harness.record.types import TrialRecord
from harness.sweep.attempt import BUSY, DONE, STOPPED, Ending
from harness.sweep.table import Board, Rates, running_table

_REFRESHES = 2  # a second
_OTHER_LINES = 6  # of the screen: head and foot of the table, counts, a line of output


class Progress:
    """Counts trials as they start and end, and shows the counts.

    Args:
        board: the states of all planned trials.
        directory: where a running trial keeps its heartbeat.
        score: reads the rSum of a trial that has just been done; asked on a terminal only.
    """

    def __init__(
        self, board: Board, directory: Callable[[Trial], Path], score: Callable[[Trial], float | None]
    ) -> None:
        self.board, self.directory, self.score = board, directory, score
        self.failures: list[Ending] = []
        self.running: dict[str, Trial] = {}
        self.busy: list[Trial] = []
        self.total, self.done = len(board.trials), board.counts()["done"]
        self.stopped = 0
        self.before, self.began = self.done, 0.0  # the clock runs from the first trial's start
        self.rates = Rates()
        self.live = (
            Live(console=console, get_renderable=self._screen, refresh_per_second=_REFRESHES)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Progress:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.live.stop()

    def started(self, trial: Trial) -> None:
        """A trial has started."""
        self.running[trial.id] = trial
        self.board.states[trial.id] = "running"
        self.began = self.began or time.monotonic()

    def ended(self, ended: Ending) -> None:
        """A trial has ended; one that another process is running counts once that process is done."""
        trial, name = ended.trial, self.board.names[ended.trial.id]
        self.running.pop(trial.id, None)
        if ended.outcome == BUSY:
            self.busy.append(trial)
            return
        self.board.states[trial.id] = ended.outcome if ended.outcome in (DONE, STOPPED) else "failed"
        if ended.outcome in (DONE, STOPPED):
            self.done += ended.outcome == DONE
            self.stopped += ended.outcome == STOPPED
        else:
            self.failures.append(ended)
        if self.live is None:
            plain = {DONE: "done", STOPPED: ended.reason}
            outcome = plain.get(ended.outcome, f"FAILED ({ended.reason})")
            line = f"{self.text()}, {self._left()}: {name} {outcome} in {ended.seconds:.0f} s"
            console.out(line, highlight=False)
        elif ended.outcome == DONE:
            score = self.score(trial)
            self.board.scores |= {} if score is None else {trial.id: score}
        elif ended.outcome != STOPPED:
            console.print(f"failed: {name}: {ended.reason}", markup=False)

    def release(self, records: Mapping[str, TrialRecord]) -> None:
        """Other sweeps have ended the trials that they were running; `records`: what is on record of them."""
        for trial in self.busy:
            record = records.get(trial.id)
            self.board.states[trial.id] = "done" if record and record.done else "to run"
        done = sum(r.done for r in records.values())
        self.done, self.before, self.busy = self.done + done, self.before + done, []

    def text(self) -> str:
        """The counts in a line."""
        stopped = f", {self.stopped} stopped early" if self.stopped else ""
        return (
            f"{self.done} done, {len(self.running)} running, {len(self.failures)} failed{stopped} of "
            f"{self.total}"
        )

    def _left(self) -> str:
        ended = self.done - self.before + len(self.failures) + self.stopped
        seconds = (time.monotonic() - self.began) / max(1, ended) * (self.total - self.before - ended)
        return f"about {duration(seconds)} left"

    def _screen(self) -> RenderableType:
        """The table, the running trials and the counts, as high as the terminal at most."""
        running = list(self.running.values())
        rows = max(1, console.height - _OTHER_LINES - len(running))
        ended = self.done - self.before + len(self.failures) + self.stopped
        counts = f"{self.text()}, {self._left()}" if ended else self.text()
        heartbeats = {t.id: last_heartbeat(self.directory(t)) for t in running}
        return Group(
            self.board.table(console.width, rows),
            running_table(running, self.board.labels, heartbeats, console.width, self.rates),
            Text(counts, style="bold", no_wrap=True, overflow="ellipsis"),
        )
