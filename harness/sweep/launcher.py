"""What runs the trials of a sweep: the interface, and a launcher that runs them in this process."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from harness.config.resources import Resources
from harness.config.trial import Trial
from harness.sweep.attempt import UNRECORDED, Ending, StoreGone, Task, attempt

OnStart = Callable[[Trial], None]
OnEnd = Callable[[Ending], None]


class LaunchError(RuntimeError):
    """A launcher cannot give what the sweep asks for; the text is for the user."""


class Launcher(Protocol):
    """Runs trials; each ends as a record in the store, finished or failed."""

    def start(self, resources: Resources) -> None:
        """Get ready for trials with these resources. Raises LaunchError where that cannot be."""

    def check(self, storage: Path, uri: str) -> list[str]:
        """What its machines lack for a sweep with this storage and tracking store."""

    def run(self, trials: Iterable[Trial], task: Task, *, on_start: OnStart, on_end: OnEnd) -> None:
        """Run the trials. Raises StoreGone where the store stops answering; checkpoints then stay."""

    def stop(self) -> None:
        """End all trials that are running."""


class InProcessLauncher:
    """Runs one trial after another in this process, each on one process."""

    def start(self, resources: Resources) -> None:
        """Raises LaunchError for trials of several processes."""
        if resources.processes > 1:
            raise LaunchError(
                f"resources.processes = {resources.processes}: one process runs one-process trials"
            )

    def check(self, storage: Path, uri: str) -> list[str]:
        """This process has all that it needs."""
        return []

    def run(self, trials: Iterable[Trial], task: Task, *, on_start: OnStart, on_end: OnEnd) -> None:
        """See `Launcher.run`."""
        for trial in trials:
            on_start(trial)
            began = time.monotonic()
            ended = attempt(trial, task)
            report_end(dataclasses.replace(ended, seconds=time.monotonic() - began), task, on_end)

    def stop(self) -> None:
        """Nothing runs but this process."""


def report_end(ended: Ending, task: Task, on_end: OnEnd) -> None:
    """Report how a trial ended. Raises StoreGone where that could not be recorded."""
    on_end(ended)
    if ended.outcome == UNRECORDED and task.handle:
        raise StoreGone(f"{task.handle.uri} does not take results any more ({ended.reason})")
