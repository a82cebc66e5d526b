"""Trials that other sweeps are running, as the locks of a shared storage folder and the claims in the store
show.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from harness.config.trial import Trial
from harness.lib.console import console, duration
from harness.lib.locks import is_locked, owner
from harness.record.heartbeat import POLL, STALE, Claim, Watch, place_of, read_claims
from harness.record.store import Store
from harness.record.types import SweepHandle, TrialRecord
from harness.sweep.attempt import Task
from harness.sweep.progress import Progress


def note_elsewhere(
    todo: list[Trial], known: Mapping[str, TrialRecord], store: Store, handle: SweepHandle, task: Task
) -> None:
    """Tell what other machines are running, and what was left without a checkpoint here."""
    place, ids = place_of(handle, task.storage), {t.id for t in todo}
    claims = [
        c for c in read_claims(store.client, handle.experiment_id) if c.name in ids and c.place != place
    ]
    if claims:
        console.print(
            f"note: {len(claims)} trials are being run by {_owners(claims)}, with another storage folder: "
            "this sweep runs the others and waits for those. To run them here, stop it there (one that was "
            f"killed is noticed after {duration(STALE)} without a heartbeat)",
            markup=False,
        )
    claimed = {c.name for c in claims}
    lost = [
        t
        for t in todo
        if t.id in known
        and known[t.id].status == "RUNNING"
        and t.id not in claimed
        and not handle.directory(task.storage, t).is_dir()
    ]
    if lost:
        console.print(
            f"note: {len(lost)} trials were interrupted, and their checkpoints are not in {task.storage}: "
            "they start again from their first epoch (--storage names the folder of the sweep that ran them)",
            markup=False,
        )


def _owners(claims: Iterable[Claim]) -> str:
    return ", ".join(dict.fromkeys(c.owner for c in claims))


def wait_for_others(progress: Progress, store: Store, handle: SweepHandle, task: Task) -> list[Trial]:
    """Once another sweep has ended the trials that it was running, or gives no sign of life any more: those
    that it left undone.
    """
    if not progress.busy:
        return []
    directories = [handle.directory(task.storage, t) for t in progress.busy]
    names = {t.id for t in progress.busy}
    watch = Watch(store.client, handle.experiment_id, names, place_of(handle, task.storage))
    who = _owners(watch.live()) or owner(directories[0]) or "it has just ended"
    console.print(
        f"{len(directories)} trials are being run by another sweep ({who}); waiting for them", markup=False
    )
    while (locked := any(map(is_locked, directories))) or watch.live():
        time.sleep(1 if locked else POLL)
    known = store.records(handle, progress.busy)
    left = [t for t in progress.busy if t.id not in known or not known[t.id].over]
    progress.release(known)
    return left
