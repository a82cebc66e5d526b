"""Whether a running trial still moves: a heartbeat on disk, an end to one that hangs, and a deadline."""

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
    """The trial has had its time; its checkpoint stays."""


@dataclass(frozen=True)
class Heartbeat:
    """Where a trial was when it was last heard of, and how many seconds ago that is."""

    where: str
    seconds_ago: float


class Watchdog:
    """Watches a running trial; the loop calls `heartbeat` at each step.

    A thread writes the heartbeat. Where no beat came for `stall` seconds after the first it writes down where
    every thread of the process
    stands, and kills the process: a collective operation that waits for a lost peer cannot be told to stop.

    Args:
        folder: the trial's own; None: nobody looks on, and only the deadline holds.
        stall: seconds without a step after which a trial counts as hung.
        deadline: seconds that this attempt may take, or None.
        writes: whether this process keeps the heartbeat (one of several does).
    """

    def __init__(
        self, folder: Path | None, *, stall: float, deadline: float | None, writes: bool = True
    ) -> None:
        self.folder, self.stall, self.deadline, self.writes = folder, stall, deadline, writes
        self.where, self.began = "starting", time.monotonic()
        self.last: float | None = None
        self._ended = threading.Event()

    def heartbeat(self, where: str) -> None:
        """The loop has come so far.

        Raises:
            OutOfTime: the deadline has passed.
        """
        now = time.monotonic()
        self.last, self.where = now, where
        if self.deadline is not None and now - self.began > self.deadline:
            raise OutOfTime(
                f"the deadline of {self.deadline / 3600:.3g} h (resources.deadline_hours) passed at "
                f"{where}; what is done is kept, and a rerun goes on from there"
            )

    def __enter__(self) -> Watchdog:
        self.thread: threading.Thread | None = None
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.thread = threading.Thread(
                target=self._look_on, args=(self.folder,), name="watch", daemon=True
            )
            self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self.thread:
            self.thread.join()

    def _look_on(self, folder: Path) -> None:
        while not self._ended.wait(min(_EVERY, self.stall / 4)):
            silent = time.monotonic() - (self.last or time.monotonic())
            if self.writes:
                self._write_heartbeat(folder, silent)
            if silent > self.stall:
                self._end(folder, silent)

    def _write_heartbeat(self, folder: Path, silent: float) -> None:
        """A heartbeat that cannot be written (a full disk) ends nothing."""
        if not folder.is_dir():  # a finished trial has removed it, and writing would bring it back
            return
        with contextlib.suppress(OSError), atomic_write(folder / _HEARTBEAT, "w") as stream:
            json.dump({"where": self.where, "time": time.time() - silent}, stream)

    def _end(self, folder: Path, silent: float) -> None:
        with contextlib.suppress(OSError), open(folder / _REPORT, "w") as stream:
            stream.write(f"hung: no step for {silent:.0f} s (resources.stall_minutes) at {self.where}\n")
            stream.flush()
            faulthandler.dump_traceback(stream)
        os.kill(os.getpid(), signal.SIGKILL)


def last_heartbeat(folder: Path) -> Heartbeat | None:
    """The last heartbeat in a trial's folder."""
    try:
        content = json.loads((folder / _HEARTBEAT).read_text())
        return Heartbeat(content["where"], max(0.0, time.time() - content["time"]))
    except (OSError, ValueError, KeyError):
        return None


def take_termination_report(folder: Path) -> tuple[str, str]:
    """Why a trial ended itself, in a line and in full, where it did; they are told once."""
    file = folder / _REPORT
    try:
        text = file.read_text()
        file.unlink()
    except OSError:
        return "", ""
    return text.partition("\n")[0], text
