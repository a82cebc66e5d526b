"""One attempt at a trial, the same whoever launches it: acquire, resume, record, and what an end means.

An exception out of a trial ends it as failed, on record. A process that dies (killed, out of memory, its node
gone, hung) is another matter: a launcher starts the trial again, up to `RETRIES` times, and it resumes from
its last epoch; after that `record_lost` records the failure.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from harness.config.resources import Resources
from harness.config.search import EarlyStopping
from harness.config.trial import Trial
from harness.lib.locks import Busy
from harness.lib.watchdog import take_termination_report
from harness.record.heartbeat import is_claimed_elsewhere, remove_void
from harness.record.provenance import Provenance, code_digest, code_key, versions
from harness.record.recorder import MlflowRecorder, PrintRecorder
from harness.record.store import Store
from harness.record.types import (
    STOPPED_EARLY,
    AlreadyDone,
    AlreadyFailed,
    AlreadyStopped,
    CodeChanged,
    Outcome,
    Recorder,
    SweepHandle,
    describe_failure,
)
from harness.record.verify import Comparison, OnRecord

RETRIES = 2
DONE, FAILED, BUSY, UNRECORDED, STOPPED = "done", "failed", "busy", "unrecorded", "stopped"
EpochEnded = Callable[[int, float | None], None]
"""Called with the epochs that a trial has trained, and the last one's dev rSum where it was evaluated."""


class StoreGone(BaseException):
    """The tracking store does not take results any more; the text is for the user.

    Not an `Exception`: Tune goes on after one in a callback.
    """


@dataclass(frozen=True)
class Task:
    """What every trial of a sweep is run with; plain data, so that it travels to other processes.

    Attributes:
        handle: where results go; None: they are printed.
        provenance: the driver's code, which a worker's must equal.
        expected: fingerprint of the data, by trial id.
        labels: tags that tell the runs of the sweep apart, by trial id.
        storage: where trials keep their checkpoints.
        directory: the working directory of the sweep, to which paths in its file are relative.
        since: when the sweep was started, in seconds since 1970.
        repeat: the trial is on record, and is run again to compare.
        asha: how trials are stopped early; None: they are not.
    """

    handle: SweepHandle | None
    resources: Resources
    provenance: Provenance
    storage: Path
    directory: str
    expected: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    since: float = float("inf")
    repeat: bool = False
    asha: EarlyStopping | None = None

    def checkpoints(self, trial: Trial) -> Path | None:
        """Where a trial keeps its checkpoints; None where it keeps none."""
        if self.repeat:
            return None
        return (
            self.handle.directory(self.storage, trial)
            if self.handle
            else self.storage / "untracked" / trial.id
        )


@dataclass(frozen=True)
class Ending:
    """How a trial ended.

    Attributes:
        outcome: `done`, `failed`, `busy` (another process is running it), `unrecorded` (the store is gone) or
            `stopped` (early, by a search).
        reason: why, unless it is done.
        seconds: wall time since it was started; 0 until a launcher fills it in.
    """

    trial: Trial
    outcome: str
    reason: str = ""
    seconds: float = 0.0


def attempt(trial: Trial, task: Task, *, main: bool = True, epoch_ended: EpochEnded | None = None) -> Ending:
    """Run a trial in this process, from its last checkpoint; a failure ends as its record and not as an
    exception.

    Args:
        main: whether this process records a failure (of several processes, one does).
        epoch_ended: called after each epoch, once it is on record; may end the process.

    Raises:
        BrokenPipeError: the results are printed and not recorded, and their reader is gone.
    """
    try:
        work(trial, task, epoch_ended)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and task.handle is None:
            raise  # the results were printed, and their reader is gone
        return ending(trial, task, error) if main else Ending(trial, FAILED, str(error))
    return Ending(trial, DONE)


def work(
    trial: Trial, task: Task, epoch_ended: EpochEnded | None = None, *, recorder: Recorder | None = None
) -> Outcome:
    """The part of one process in a trial; of several processes the main one records.

    Args:
        recorder: receives the results; None: the one that follows from the task.

    Raises:
        CodeChanged: this process runs other code than the driver of the sweep.
        Exception: what `run_trial` raises.
    """
    from harness.training.run_trial import run_trial  # torch: not before a trial runs

    limit_threads(task.resources.cpus)
    code = task.provenance.code[code_key(trial)]
    if code_digest(trial) != code:
        raise CodeChanged(
            "the code that makes this trial's numbers is not the one that the sweep was started with: "
            "start the sweep again"
        )
    environment = {**versions(), "git_commit": task.provenance.git_commit, "code": code}
    recorder = recorder or _recorder(trial, task)
    with _working_directory(task.directory), contextlib.closing(recorder):
        return run_trial(
            trial,
            recorder,
            directory=task.checkpoints(trial),
            resources=task.resources,
            expected=task.expected.get(trial.id),
            environment=environment,
            epoch_ended=epoch_ended,
        )


def _recorder(trial: Trial, task: Task) -> Recorder:
    if task.handle is None:
        return PrintRecorder()
    if task.repeat:
        return Comparison(partial(OnRecord.in_store, task.handle, trial))
    return MlflowRecorder(
        task.handle,
        trial,
        directory=task.checkpoints(trial),
        since=task.since,
        stops_early=task.asha is not None,
        labels=task.labels.get(trial.id, {}),
    )


def ending(trial: Trial, task: Task, error: BaseException) -> Ending:
    """What an exception out of a trial means; a failure is recorded."""
    if isinstance(error, AlreadyDone):
        return Ending(trial, DONE)
    if isinstance(error, (Busy, AlreadyFailed)):
        return Ending(trial, BUSY if isinstance(error, Busy) else FAILED, str(error))
    if isinstance(error, AlreadyStopped):
        return Ending(trial, STOPPED, str(error))
    reason, details = describe_failure(error)
    return _failed(trial, task, reason, details)


def record_lost(trial: Trial, task: Task, reason: str, details: str = "") -> Ending:
    """Record a trial whose process could not say how it ended, with its termination report where
    it left one.
    """
    directory = task.checkpoints(trial)
    summary, report = take_termination_report(directory) if directory else ("", "")
    ended = _failed(trial, task, summary or reason, report or details)
    if ended.outcome != UNRECORDED:
        give_up_claims([trial], task)
    return ended


def record_stopped(trial: Trial, task: Task, epochs: int, rsum: float) -> Ending:
    """Record a trial that its search has stopped after some epochs: its try has lost."""
    reason = f"stopped after {epochs} epochs, with a dev rSum of {rsum:.1f}"
    directory = task.checkpoints(trial)
    if directory:
        shutil.rmtree(directory, ignore_errors=True)
    if task.handle and not task.repeat:
        Store(task.handle.uri).stop(task.handle, trial, reason, tags={STOPPED_EARLY: str(epochs)})
        give_up_claims([trial], task)
    return Ending(trial, STOPPED, reason)


def record_interrupted(trials: Collection[Trial], task: Task, reason: str) -> None:
    """Record that trials were ended by the user; not those that had not yet been claimed here, and that
    another process is running. Raises StoreError.
    """
    if task.handle is None:
        return
    store = Store(task.handle.uri)
    for trial in trials:
        if not is_claimed_elsewhere(store.client, task.handle, trial.id, task.storage):
            store.stop(task.handle, trial, reason)
    give_up_claims(trials, task)


def give_up_claims(trials: Iterable[Trial], task: Task) -> None:
    """Remove the claims of processes here that were ended: others need not wait until they are stale. A store
    that does not answer keeps them until then.
    """
    if task.handle is None or task.repeat:
        return
    with contextlib.suppress(Exception):
        client = Store(task.handle.uri).client
        for trial in trials:
            directory = task.handle.directory(task.storage, trial)
            remove_void(client, task.handle, trial.id, task.storage, directory)


def _failed(trial: Trial, task: Task, reason: str, details: str) -> Ending:
    """Record a failure; `unrecorded` where the store does not answer any more, `busy` where it failed here
    before it could be claimed, and another process is running it.
    """
    if task.handle is None or task.repeat:
        return Ending(trial, FAILED, reason)
    try:
        store = Store(task.handle.uri)
        if is_claimed_elsewhere(store.client, task.handle, trial.id, task.storage):
            return Ending(trial, BUSY, reason)
        store.fail(task.handle, trial, reason, details)
    except AlreadyDone:
        return Ending(trial, DONE)
    except Exception as error:
        log = logging.getLogger(__name__)
        log.warning("cannot record the failure of %s (%s): %s", trial.id, reason, error)
        return Ending(trial, UNRECORDED, reason)
    return Ending(trial, FAILED, reason)


def limit_threads(cpus: float) -> None:
    """As many threads as the trial has CPUs: more would compete with trials that run at the same time, and
    sums of PyTorch and of NumPy's BLAS depend on their number in the last bit.
    """
    import scipy.linalg  # noqa: F401  # it has a BLAS of its own, which is limited once it is loaded
    import torch
    from threadpoolctl import threadpool_limits

    threads = max(1, int(cpus))
    torch.set_num_threads(threads)
    threadpool_limits(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for what is loaded later


def _working_directory(directory: str) -> contextlib.AbstractContextManager[None]:
    """Ray's workers run in directories of their own; paths in a sweep file are relative to the sweep's."""
    return contextlib.chdir(directory) if os.path.isdir(directory) else contextlib.nullcontext()
