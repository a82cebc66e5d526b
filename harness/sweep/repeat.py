"""Trials of a bundle run again, without any store, to see whether they give the numbers on record."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path

from harness.config.external import ExternalTrial
from harness.config.labels import run_names
from harness.config.resources import Resources
from harness.config.trial import Trial
from harness.lib.console import console, silence_libraries
from harness.lib.registry import UnknownName
from harness.record.bundle import Bundle
from harness.record.provenance import Provenance
from harness.record.repeated import Repetition
from harness.record.types import TrialRecord, describe_failure
from harness.record.verify import Comparison, Differs, OnRecord
from harness.sweep.attempt import Task, work
from harness.sweep.preflight import check_trial


def repeat_bundle(folder: Path, count: int) -> int:
    """Run trials of a bundle again, one after another in this process, and tell of each whether its numbers
    are those on record; `repeated.json` notes it. Trials that cannot be run here are told, and others chosen.

    Args:
        count: how many; fewer where fewer can be run.

    Returns:
        How many gave other numbers, or failed.

    Raises:
        StoreError: the bundle or its notes cannot be read.
        OSError: the notes cannot be written.
    """
    silence_libraries()
    bundle = Bundle(folder.absolute().name, folder)
    bundle.repeated()  # malformed notes are told before hours of work
    sweep = bundle.sweep()
    records, names = {i: r for i, r in sweep.records.items() if r.done}, run_names(sweep.planned)
    obstacles: Counter[str] = Counter()
    repeated = wrong = 0
    for trial in _runnable(spread(r.trial for r in records.values()), obstacles):
        if repeated == count:
            break
        wrong += not _repeat(bundle, records[trial.id], names[trial.id])
        repeated += 1
    for reason, trials in obstacles.items():
        console.print(f"  note: {trials} cannot be run again here: {reason}", markup=False)
    console.print(f"  {repeated} run again, {repeated - wrong} gave the same numbers to the last bit")
    return wrong


def spread(trials: Iterable[Trial]) -> list[Trial]:
    """The trials in an order of which every beginning is a fair sample: one of each method in turn, and those
    of a method by their ids, which are hashes, so over data sets, noise ratios and seeds alike.
    """
    by_method: dict[str, list[Trial]] = {}
    for trial in trials:
        by_method.setdefault(trial.method, []).append(trial)
    columns = [sorted(of_method, key=lambda t: t.id) for of_method in by_method.values()]
    return [t for row in zip_longest(*columns) for t in row if t is not None]


def _runnable(trials: Iterable[Trial], obstacles: Counter[str]) -> Iterator[Trial]:
    """Those that can be run here; why others cannot is counted."""
    for trial in trials:
        reason = _obstacle(trial)
        if reason:
            obstacles[reason] += 1
        else:
            yield trial


def _obstacle(trial: Trial) -> str:
    """Why a trial cannot be run here: its method, its data or a file of its noise is missing; empty where
    nothing is.
    """
    if isinstance(trial, ExternalTrial):
        return "another program has trained it"
    try:
        return "; ".join(check_trial(trial))
    except UnknownName as error:
        return str(error)


def _repeat(bundle: Bundle, record: TrialRecord, name: str) -> bool:
    """Run a trial again, tell what came out, and note it. Whether its numbers are those on record."""
    trial = record.trial
    name = f"{name} ({trial.id})"
    comparison = Comparison(lambda: OnRecord.in_bundle(bundle, record))
    try:
        work(trial, _task(record), recorder=comparison)
    except Differs as error:
        console.print(f"  NOT THE SAME: {name}: {error}", markup=False)
    except Exception as error:  # a method or a data set can raise anything
        console.print(f"  FAILED: {name}: {describe_failure(error)[0]}", markup=False)
        return False
    else:
        moved = f", made elsewhere ({'; '.join(comparison.moved)})" if comparison.moved else ""
        console.print(f"  the same: {name}{moved}", markup=False)
    environment = dict(comparison.environment)
    bundle.note_repeated(
        Repetition(
            trial=trial.id,
            record=bundle.line_digest(trial.id),
            commit=environment.pop("git_commit"),
            environment=environment,
            when=datetime.now(UTC).replace(microsecond=0),
            equal=not comparison.differences,
            moved=tuple(comparison.moved),
            differences=tuple(comparison.differences),
        )
    )
    return not comparison.differences


def _task(record: TrialRecord) -> Task:
    """What a trial is run again with: as many threads as on record, on whose number sums depend, and no
    checkpoints.
    """
    resources = Resources(cpus=int(record.tags.get("threads", "1")))
    return Task(None, resources, Provenance.of([record.trial]), Path(), os.getcwd(), repeat=True)
