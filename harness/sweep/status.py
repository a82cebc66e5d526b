"""What a person wants to know of a sweep: `--status` (what is done, running, failed and why) and the findings
of `--verify`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from harness.config.sweep_file import Sweep, Trial
from harness.lib.console import console
from harness.lib.locks import is_locked, owner
from harness.lib.watchdog import last_heartbeat
from harness.record.store import Store, SweepHandle, TrialRecord
from harness.record.verify import faults_of
from harness.sweep.plan import duration, label
from harness.sweep.schedule import DONE, Finished

_STATES = ("done", "running", "interrupted", "failed", "to run")


def show_status(sweep: Sweep, store: Store, storage: Path) -> int:
    """A line for each method and ratio, then each trial that is neither done nor still to run, with the
    reason. 0 if all are done, else 1.
    """
    place = store.find_sweep(sweep.name)
    records = store.records(place, sweep.trials) if place else {}
    found = {t.id: _state(t, records.get(t.id), place, storage) for t in sweep.trials}
    counts = Counter(state for state, _ in found.values())
    title = (
        f"sweep {sweep.name}: {', '.join(f'{counts[s]} {s}' for s in _STATES if counts[s])}; record: "
        f"{store.uri}"
    )
    table = Table("method", "ratio", *_STATES, title=title)
    cells: dict[tuple[str, float], Counter[str]] = {}
    for trial in sweep.trials:
        cells.setdefault((trial.method, trial.noise_ratio), Counter())[found[trial.id][0]] += 1
    for (method, ratio), cell in cells.items():
        table.add_row(method, f"{ratio:g}", *(str(cell[s] or "") for s in _STATES))
    console.print(table)
    for trial in sweep.trials:
        state, why = found[trial.id]
        if state not in ("done", "to run"):
            console.print(f"{state}: {label(trial)} ({trial.id}): {why}", markup=False)
    return 0 if counts["done"] == len(sweep.trials) else 1


def _state(
    trial: Trial, record: TrialRecord | None, place: SweepHandle | None, storage: Path
) -> tuple[str, str]:
    """One of `_STATES`, and why or where."""
    if record is None or place is None:
        return "to run", ""
    if record.done:
        return "done", ""
    if record.status == "FAILED":
        return "failed", record.tags.get("failure", "no reason on record")
    folder = place.folder(storage, trial)
    if record.status == "RUNNING" and not folder.is_dir():
        return "running", f"as the record says; its checkpoints are not in {storage} (see --storage)"
    beat = last_heartbeat(folder)
    where = f"{beat.where}, {duration(beat.seconds_ago)} ago" if beat else "no heartbeat yet"
    if is_locked(folder):
        return "running", f"{where} ({owner(folder)})"
    return (
        "interrupted",
        f"{record.tags.get('failure') or 'its process ended without a word'}; last heard of: {where}",
    )


def show_verified(
    sweep: Sweep, store: Store, finished: Sequence[TrialRecord], again: Sequence[Finished]
) -> int:
    """What is wrong with finished records, and which of those run again gave other numbers. 0 if nothing and
    none, else 1.
    """
    faults = {r.trial.id: found for r in finished if (found := faults_of(store, r))}
    for record in finished:
        for fault in faults.get(record.trial.id, []):
            console.print(f"not whole: {label(record.trial)} ({record.trial.id}): {fault}", markup=False)
    for ended in again:
        same = ended.outcome == DONE
        console.print(
            f"{'the same' if same else 'NOT THE SAME'}: {label(ended.trial)} "
            f"({ended.trial.id}){'' if same else f': {ended.reason}'}",
            markup=False,
        )
    other = sum(ended.outcome != DONE for ended in again)
    console.print(
        f"sweep [bold]{sweep.name}[/]: {len(finished)} of {len(sweep.trials)} trials are finished, "
        f"{len(finished) - len(faults)} of their records are whole; "
        f"{len(again)} were run again, {len(again) - other} gave the same numbers to the last bit"
    )
    return 1 if faults or other else 0
