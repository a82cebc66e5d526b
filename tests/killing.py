"""Trials in processes of their own that are killed at a random point: forked from one that has imported
everything, so that each starts at once.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore

from harness.config.trial import Trial
from harness.lib.watchdog import Watchdog
from harness.record.recorder import MlflowRecorder, PrintRecorder
from harness.record.types import SweepHandle
from harness.training.run_trial import run_trial

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.killing", "tests.warm"])


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
        # The processes meet here, as torchrun's do at its agent: a port that rank 0 opened itself could be
        # another process's by then.
        meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        victim = kill.randrange(processes) if kill else -1
        fate = (
            (1 + kill.randrange(max(1, self.steps.value * 9 // 10)), kill.random() * 0.03) if kill else None
        )
        started = [
            context.Process(
                target=_run,
                args=(
                    trials,
                    place,
                    storage,
                    rank,
                    processes,
                    meeting.port,
                    fate if rank == victim else None,
                    self.steps if rank == 0 and not kill else None,
                ),
            )
            for rank in range(processes)
        ]
        began = time.monotonic()
        for process in started:
            process.start()
        try:
            self._join(started, limit and began + limit)
        finally:
            for process in started:
                if process.exitcode is None:
                    process.kill()
                    process.join()
        if not kill:
            self.seconds = max(self.seconds, time.monotonic() - began)
        return [process.exitcode or 0 for process in started]

    @staticmethod
    def _join(started: Sequence[ForkServerProcess], end: float | None) -> None:
        """Wait until `end`; kill the others once one has failed, as a launcher does: they wait for it."""
        running = list(started)
        while running and (end is None or time.monotonic() < end):
            left = None if end is None else end - time.monotonic()
            multiprocessing.connection.wait([process.sentinel for process in running], left)
            running = [process for process in running if process.exitcode is None]
            if any(process.exitcode for process in started):
                for process in running:
                    process.kill()


def _run(
    trials: Sequence[Trial],
    place: SweepHandle,
    storage: Path,
    rank: int,
    processes: int,
    port: int,
    fate: tuple[int, float] | None,
    counter: Any,
) -> None:
    torch.set_num_threads(1)
    if processes > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
    heartbeat, count = Watchdog.heartbeat, 0

    def counted(self: Watchdog, where: str) -> None:
        nonlocal count
        count += 1
        if counter:
            counter.value = count
        if fate and count == fate[0]:
            threading.Timer(fate[1], os.kill, (os.getpid(), signal.SIGKILL)).start()
        heartbeat(self, where)

    Watchdog.heartbeat = counted  # type: ignore[method-assign]
    for trial in trials:
        folder = place.directory(storage, trial)
        recorder: Any = MlflowRecorder(place, trial, directory=folder) if rank == 0 else PrintRecorder()
        run_trial(trial, recorder, directory=folder)
    if processes > 1:
        torch.distributed.destroy_process_group()
