"""Trials in processes of their own that are killed at a random point."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.config.trial import Trial
from harness.lib.watchdog import Watchdog
from harness.record.recorder import MlflowRecorder, PrintRecorder
from harness.record.types import SweepHandle
from harness.training.run_trial import run_trial
from tests.forked import Group, context


class Launcher:
    """Runs trials on several processes; counts the steps of the first one while nothing is killed, and later
    kills one process at one of these steps or shortly after.
    """

    def __init__(self) -> None:
        self.steps = context.Value("i", 0)
        self.seconds = 0.0

    def launch(
        self,
        trials: Sequence[Trial],
        place: SweepHandle,
        storage: Path,
        *,
        processes: int = 1,
        kill: random.Random | None = None,
    ) -> list[int]:
        """Run trials one after another in one group of `processes`; with `kill`, one of these dies at a
        random one of the steps counted before. Returns their exit codes.

        A launch has ten times as long as the slowest one without a kill, and at least five minutes. The first
        one has no limit of its own: the test's time limit ends it.
        """
        limit = max(300.0, 10 * self.seconds) if self.seconds else None
        fates: list[tuple[int, float] | None] = [None] * processes
        if kill:
            victim = kill.randrange(processes)
            fates[victim] = 1 + kill.randrange(max(1, self.steps.value * 9 // 10)), kill.random() * 0.03
        began = time.monotonic()
        group = Group(processes, _run, trials, place, storage, fates, None if kill else self.steps)
        codes = group.join(limit)
        if not kill:
            self.seconds = max(self.seconds, time.monotonic() - began)
        return codes


def _run(
    rank: int,
    trials: Sequence[Trial],
    place: SweepHandle,
    storage: Path,
    fates: Sequence[tuple[int, float] | None],
    counter: Any,
) -> None:
    fate = fates[rank]
    heartbeat, count = Watchdog.heartbeat, 0

    def counted(self: Watchdog, where: str) -> None:
        nonlocal count
        count += 1
        if counter and rank == 0:
            counter.value = count
        if fate and count == fate[0]:
            threading.Timer(fate[1], os.kill, (os.getpid(), signal.SIGKILL)).start()
        heartbeat(self, where)

    Watchdog.heartbeat = counted  # type: ignore[method-assign]
    for trial in trials:
        folder = place.directory(storage, trial)
        recorder: Any = MlflowRecorder(place, trial, directory=folder) if rank == 0 else PrintRecorder()
        run_trial(trial, recorder, directory=folder)
