"""A watchdog for running trials: a heartbeat on disk, an end to a trial that hangs, and a deadline."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from harness.lib.files import atomic_write

_HEARTBEAT, _REPORT = "heartbeat.json", "termination_report.txt"
_EVERY = 5.0  # seconds between heartbeats on disk


class OutOfTime(RuntimeError):
    """The trial exceeded its deadline; its checkpoint stays."""


@dataclass(frozen=True)
class Heartbeat:
    """The position of a trial at its last step.

    Attributes:
        seconds_ago: seconds since that step.
        epochs: finished epochs.
        score: the score of the last evaluation; None before the first.
    """

    where: str
    seconds_ago: float
    epochs: int = 0
    score: float | None = None


class Watchdog:
    """Watches a running trial; the loop calls `heartbeat` at each step.

    A thread writes the heartbeat to disk. After `stall` seconds without a step it writes a termination report
    (the position, and the stack of each thread) and kills the process: a collective operation that waits for
    a lost peer cannot be interrupted.

    Args:
        directory: the trial's own; None: only the deadline is enforced.
        stall: seconds without a step after which a trial counts as hung.
        deadline: seconds that this attempt may take, or None.
        writes: whether this process writes the heartbeat (of several processes, one does).
    """

    def __init__(
        self, directory: Path | None, *, stall: float, deadline: float | None, writes: bool = True
    ) -> None:
        self.directory, self.stall, self.deadline, self.writes = directory, stall, deadline, writes
        self.where, self.began = "starting", time.monotonic()
        self.last: float | None = None
        self.epochs = 0
        self.score: float | None = None
        self._ended = threading.Event()

    def heartbeat(self, where: str) -> None:
        """Note the position of the trial.

        Raises:
            OutOfTime: the deadline has passed.
        """
        now = time.monotonic()
        self.last, self.where = now, where
        if self.deadline is not None and now - self.began > self.deadline:
            raise OutOfTime(
                f"the deadline of {self.deadline / 3600:.3g} h (resources.deadline_hours) passed at "
                f"{where}; finished epochs are kept, and a rerun resumes from there"
            )

    def epoch_ended(self, epochs: int, score: float | None) -> None:
        """Note the number of finished epochs, and the score of the last if it was evaluated."""
        self.epochs = epochs
        self.score = self.score if score is None else score

    def __enter__(self) -> Watchdog:
        self.thread: threading.Thread | None = None
        if self.directory:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.thread = threading.Thread(
                target=self._watch, args=(self.directory,), name="watch", daemon=True
            )
            self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self.thread:
            self.thread.join()

    def _watch(self, directory: Path) -> None:
        while True:
            silent = time.monotonic() - (self.last or time.monotonic())
            if self.writes:
                self._write_heartbeat(directory, silent)
            if silent > self.stall:
                self._end(directory, silent)
            if self._ended.wait(min(_EVERY, self.stall / 4)):
                return

    def _write_heartbeat(self, directory: Path, silent: float) -> None:
        """A heartbeat that cannot be written (a full disk) ends nothing."""
        if not directory.is_dir():  # a finished trial has removed it, and writing would bring it back
            return
        with contextlib.suppress(OSError), atomic_write(directory / _HEARTBEAT, "w") as stream:
            position = {"where": self.where, "epochs": self.epochs, "score": self.score}
            json.dump({**position, "time": time.time() - silent}, stream)

    def _end(self, directory: Path, silent: float) -> None:
        with contextlib.suppress(OSError), open(directory / _REPORT, "w") as stream:
            stream.write(f"hung: no step for {silent:.0f} s (resources.stall_minutes) at {self.where}\n")
            stream.flush()
            faulthandler.dump_traceback(stream)
        os.kill(os.getpid(), signal.SIGKILL)


def last_heartbeat(directory: Path) -> Heartbeat | None:
    """The last heartbeat in a trial's directory; None where there is none."""
    try:
        content = json.loads((directory / _HEARTBEAT).read_text())
        seconds_ago = max(0.0, time.time() - content["time"])
        return Heartbeat(content["where"], seconds_ago, content.get("epochs", 0), content.get("score"))
    except (OSError, ValueError, KeyError):
        return None


def take_termination_report(directory: Path) -> tuple[str, str]:
    """The summary and the text of a termination report, which is removed; empty where there is none."""
    file = directory / _REPORT
    try:
        text = file.read_text()
        file.unlink()
    except OSError:
        return "", ""
    return text.partition("\n")[0], text
