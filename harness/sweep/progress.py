"""Done / running / failed and the time left: a bar on a terminal, a line for each trial elsewhere."""

from __future__ import annotations

import time

from harness.config.trial import Trial
from harness.lib.console import bar, console
from harness.sweep.attempt import BUSY, DONE, Ending


class Progress:
    """Counts trials as they start and end, and shows the counts.

    Args:
        total: planned trials.
        done: trials that were done before.
    """

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done = total, done
        self.failures: list[Ending] = []
        self.running: dict[str, Trial] = {}
        self.busy: list[Trial] = []
        self.before, self.began = done, 0.0  # the clock runs from the first trial's start
        self.bar = bar() if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self.bar:
            self.bar.start()
            self.task = self.bar.add_task(self.text(), total=self.total, completed=self.done)
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar:
            self.bar.stop()

    def started(self, trial: Trial) -> None:
        """A trial has started."""
        self.running[trial.id] = trial
        self.began = self.began or time.monotonic()
        self._show()

    def ended(self, ended: Ending) -> None:
        """A trial has ended; one that another process is running counts once that process is done."""
        self.running.pop(ended.trial.id, None)
        if ended.outcome == BUSY:
            self.busy.append(ended.trial)
            return self._show()
        if ended.outcome == DONE:
            self.done += 1
        else:
            self.failures.append(ended)
        self._show()
        if not self.bar:
            outcome = "done" if ended.outcome == DONE else f"FAILED ({ended.reason})"
            line = f"{self.text()}, {self._left()}: {ended.trial.label} {outcome} in {ended.seconds:.0f} s"
            console.out(line, highlight=False)
        return None

    def release(self, done: int) -> None:
        """Other sweeps have ended the trials that they were running, of which `done` are done."""
        self.busy = []
        self.done, self.before = self.done + done, self.before + done
        self._show()

    def text(self) -> str:
        """The counts in a line."""
        return f"{self.done} done, {len(self.running)} running, {len(self.failures)} failed of {self.total}"

    def _left(self) -> str:
        ended = self.done - self.before + len(self.failures)
        seconds = (time.monotonic() - self.began) / max(1, ended) * (self.total - self.before - ended)
        return f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {seconds:.0f} s left"

    def _show(self) -> None:
        if self.bar:
            self.bar.update(self.task, description=self.text(), completed=self.done + len(self.failures))
