"""What a trial gets of the machine. None of it enters a trial's id: it changes no number by more
than rounding, which `processes` does.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from harness.config.base import StrictModel


class Resources(StrictModel):
    """The resources of one trial, and limits on its time.

    Attributes:
        cpus: CPU cores of each process; a process computes with as many threads.
        gpus: GPUs of each process; a share (0.5) only with one process.
        processes: processes of a trial, which share each global batch.
        workers: loader processes for each of them, which take a core each.
        at_once: the most trials that run at the same time; null: as many as fit.
        stall_minutes: a trial without a step for this long counts as hung: it is ended, and resumes from its
            last epoch.
        checkpoint_minutes: the least time between two checkpoints, which are saved at the end of an epoch; an
            interrupted trial repeats the epochs since the last one. 0: every epoch.
        deadline_hours: a trial that takes longer fails; a rerun resumes from its last epoch with the same
            deadline. Null: no limit.
    """

    cpus: Annotated[float, Field(gt=0)] = 1
    gpus: Annotated[float, Field(ge=0)] = 0
    processes: Annotated[int, Field(ge=1)] = 1
    workers: Annotated[int, Field(ge=0)] = 0
    at_once: Annotated[int, Field(ge=1)] | None = None
    stall_minutes: Annotated[float, Field(gt=0)] = 30
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 0
    deadline_hours: Annotated[float, Field(gt=0)] | None = None

    @property
    def cores(self) -> float:
        """CPU cores of each process with its loader processes."""
        return self.cpus + self.workers

    @property
    def collective_timeout(self) -> float:
        """Seconds that a process waits for another one: longer than a trial may hang, and than the main
        process needs for features.
        """
        return self.stall_minutes * 60 + 3600
