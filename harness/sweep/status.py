"""The state of a sweep for people: `--status` (what is done, running and failed, and why), and what
`--verify` found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from harness.config.sweep_file import Sweep
from harness.config.trial import Trial
from harness.lib.console import console, duration
from harness.lib.locks import is_locked, owner
from harness.lib.watchdog import last_heartbeat
from harness.record.store import Store
from harness.record.types import SweepHandle, TrialRecord
from harness.record.verify import errors_of
from harness.sweep.attempt import DONE, Ending

_STATES = ("done", "running", "interrupted", "failed", "to run")


def show_status(name: str, trials: Sequence[Trial], store: Store, storage: Path) -> int:
    """A line for each method and ratio, then each trial that is neither done nor still to run, with the
    reason.

    Returns 0 if all trials are done, else 1.
    """
    handle = store.find_sweep(name)
    records = store.records(handle, trials) if handle else {}
    states = {t.id: _state(t, records.get(t.id), handle, storage) for t in trials}
    counts = Counter(state for state, _ in states.values())
    summary = ", ".join(f"{counts[s]} {s}" for s in _STATES if counts[s])
    table = Table("method", "ratio", *_STATES, title=f"sweep {name}: {summary}; record: {store.uri}")
    cells: dict[tuple[str, float], Counter[str]] = {}
    for trial in trials:
        cells.setdefault((trial.method, trial.noise_ratio), Counter())[states[trial.id][0]] += 1
    for (method, ratio), cell in cells.items():
        table.add_row(method, f"{ratio:g}", *(str(cell[s] or "") for s in _STATES))
    console.print(table)
    for trial in trials:
        state, reason = states[trial.id]
        if state not in ("done", "to run"):
            console.print(f"{state}: {trial.label} ({trial.id}): {reason}", markup=False)
    return 0 if counts["done"] == len(trials) else 1


def _state(
    trial: Trial, record: TrialRecord | None, handle: SweepHandle | None, storage: Path
) -> tuple[str, str]:
    """One of `_STATES`, and why or where."""
    if record is None or handle is None:
        return "to run", ""
    if record.done:
        return "done", ""
    if record.status == "FAILED":
        return "failed", record.tags.get("failure", "no reason on record")
    directory = handle.directory(storage, trial)
    if record.status == "RUNNING" and not directory.is_dir():
        return "running", f"as the record says; its checkpoints are not in {storage} (see --storage)"
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
    errors = {r.trial.id: found for r in finished if (found := errors_of(store, r))}
    for record in finished:
        for error in errors.get(record.trial.id, []):
            text = f"not complete: {record.trial.label} ({record.trial.id}): {error}"
            console.print(text, markup=False)
    for ended in repeated:
        same = ended.outcome == DONE
        trial = f"{ended.trial.label} ({ended.trial.id})"
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
