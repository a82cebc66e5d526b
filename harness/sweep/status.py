"""The state of a sweep for people: `--status` (what is done, running and failed, and why), and what
`--verify` found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.config.labels import run_names
from harness.config.sweep_file import Sweep
from harness.config.trial import Trial
from harness.lib.console import console, duration
from harness.lib.locks import is_locked, owner
from harness.lib.watchdog import last_heartbeat
from harness.record.heartbeat import STALE, Claim, place_of, read_claims
from harness.record.store import Store
from harness.record.types import SweepHandle, TrialRecord
from harness.record.verify import errors_of
from harness.sweep.attempt import DONE, Ending
from harness.sweep.table import STATES, Board, running_table


def show_status(name: str, trials: Sequence[Trial], store: Store, storage: Path, *, select: bool) -> int:
    """The table of a sweep, its running trials, then each trial that was interrupted or failed, and why.

    Args:
        select: whether settings are selected: scores are then those of dev.

    Returns:
        0 if all trials are done, else 1.
    """
    handle = store.find_sweep(name)
    records = store.records(handle, trials) if handle else {}
    claims = _elsewhere(store, handle, storage) if handle else {}
    board, reasons = board_of(trials, records, select=select), {}
    for trial in trials:
        board.states[trial.id], reasons[trial.id] = _state(
            trial, records.get(trial.id), claims.get(trial.id), handle, storage
        )
    counts = board.counts()
    summary = ", ".join(f"{counts[s]} {s}" for s in STATES if counts[s])
    console.print(f"sweep [bold]{name}[/]: {summary}; record: {store.uri}")
    console.print(board.table(console.width), soft_wrap=False)
    running = [t for t in trials if handle and board.states[t.id] == "running" and t.id not in claims]
    if running and handle:
        heartbeats = {t.id: last_heartbeat(handle.directory(storage, t)) for t in running}
        console.print(running_table(running, board.labels, heartbeats, console.width), soft_wrap=False)
    for trial in trials:
        state = board.states[trial.id]
        if state not in ("done", "stopped", "to run"):
            console.print(f"{state}: {board.names[trial.id]} ({trial.id}): {reasons[trial.id]}", markup=False)
    return 0 if counts["done"] + counts["stopped"] == len(trials) else 1


def board_of(trials: Sequence[Trial], records: Mapping[str, TrialRecord], *, select: bool) -> Board:
    """What is done, and the scores so far."""
    scores = {i: s for i, r in records.items() if (s := score_of(r, select=select)) is not None}
    states = {i: "done" if r.done else "stopped" for i, r in records.items() if r.done or r.stopped_early}
    return Board(trials, states, scores)


def score_of(record: TrialRecord | None, *, select: bool) -> float | None:
    """The rSum of a finished trial after its last epoch: of test, or, where settings are selected, of dev."""
    if record is None or not record.done:
        return None
    return record.metrics.get("dev/rsum" if select else "last/rsum")


def _elsewhere(store: Store, handle: SweepHandle, storage: Path) -> dict[str, Claim]:
    """The claims of processes with another storage folder, by trial id; of several the newest."""
    place = place_of(handle, storage)
    claims = [c for c in read_claims(store.client, handle.experiment_id) if c.place != place]
    return {c.name: c for c in sorted(claims, key=lambda c: c.time)}


def _state(
    trial: Trial,
    record: TrialRecord | None,
    claim: Claim | None,
    handle: SweepHandle | None,
    storage: Path,
) -> tuple[str, str]:
    """One of `STATES`, and why or where."""
    if record is not None and record.done:
        return "done", ""
    seen = claim and f"on {claim.host} (process {claim.process}), heartbeat {duration(claim.seconds_ago)} ago"
    if claim and seen and claim.seconds_ago < 2 * STALE:  # by two clocks, which may differ by minutes
        return "running", seen
    if record is None or handle is None:
        return "to run", ""
    if record.status == "FAILED":
        return "failed", record.tags.get("failure", "no reason on record")
    if record.stopped_early:
        return "stopped", record.tags.get("failure", "")
    directory = handle.directory(storage, trial)
    if record.status == "RUNNING" and not directory.is_dir():
        return "interrupted", f"last seen {seen or 'nowhere'}; no checkpoints in {storage} (see --storage)"
    heartbeat = last_heartbeat(directory)
    where = "no heartbeat yet"
    if heartbeat:
        where = f"{heartbeat.where}, {duration(heartbeat.seconds_ago)} ago"
    if is_locked(directory):
        return "running", f"{where} ({owner(directory)})"
    reason = record.tags.get("failure") or "its process ended without a report"
    return "interrupted", f"{reason}; last heartbeat: {where}"


def show_verified(
    sweep: Sweep, store: Store, finished: Sequence[TrialRecord], repeated: Sequence[Ending]
) -> int:
    """What is wrong with finished records, and which repeated trials gave other numbers. 0 if nothing, else
    1.
    """
    names = run_names(sweep.trials)
    errors = {r.trial.id: found for r in finished if (found := errors_of(store, r))}
    for record in finished:
        for error in errors.get(record.trial.id, []):
            text = f"not complete: {names[record.trial.id]} ({record.trial.id}): {error}"
            console.print(text, markup=False)
    for ended in repeated:
        same = ended.outcome == DONE
        trial = f"{names[ended.trial.id]} ({ended.trial.id})"
        console.print(
            f"the same: {trial}" if same else f"NOT THE SAME: {trial}: {ended.reason}", markup=False
        )
    other = sum(ended.outcome != DONE for ended in repeated)
    console.print(
        f"sweep [bold]{sweep.name}[/]: {len(finished)} of {len(sweep.trials)} trials are finished, "
        f"{len(finished) - len(errors)} of their records are complete; {len(repeated)} were run again, "
        f"{len(repeated) - other} gave the same numbers to the last bit"
    )
    return 1 if errors or other else 0
