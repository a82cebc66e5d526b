"""What a sweep does about searches: the next tries of one by Optuna, whether another one's settings fit the
data, and the file of what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from harness.config.labels import run_labels
from harness.config.search import result_file, search_of
from harness.config.sweep_file import Sweep, expand_sweep
from harness.config.trial import Trial
from harness.lib.files import atomic_write
from harness.record.bundle import Bundle
from harness.record.store import Store, plan_of, sweep_of_plan
from harness.record.tries import result_of, tries_of
from harness.record.types import TrialRecord

Find = Callable[[Iterable[Trial]], dict[str, TrialRecord]]
"""What is on record of trials, by id."""


def planned_before(sweep: Sweep, store: Store | None) -> Sweep:
    """A search by Optuna with the tries that it was planned with before, in the store or in its bundle: a try
    stays what it was, also where a trial that had failed was repeated since. Other sweeps stay as they are.
    """
    if sweep.file.search is None or sweep.file.search.sampler != "optuna":
        return sweep
    planned = store.planned(sweep.name, sweep.text) if store else None
    planned = planned or Bundle(sweep.name).planned(sweep.text)
    return sweep.model_copy(update={"trials": planned}) if planned else sweep


def trial_labels(sweep: Sweep) -> dict[str, dict[str, str]]:
    """What records say of trials beside their settings, by id: what tells them apart, and the search that
    their settings are from.
    """
    searches = {t.id: search_of(sweep.found, t.method) for t in sweep.trials}
    return {
        trial: {**labels, **(search.tags if (search := searches[trial]) else {})}
        for trial, labels in run_labels(sweep.trials).items()
    }


def with_next_tries(sweep: Sweep, find: Find) -> Sweep:
    """A search by Optuna with the tries that follow from those on record, up to the first that have not
    ended. All methods take a try in turn, so that the same tries follow however long trials take. Other
    sweeps stay as they are.
    """
    while sweep.file.search and sweep.file.search.sampler == "optuna":
        tries = tries_of(sweep_of_plan(sweep.name, plan_of(sweep), find))
        if not all(t.ended for of_method in tries.values() for t in of_method):
            break
        told = {m: [(t.settings, t.objective) for t in of_method] for m, of_method in tries.items()}
        longer = expand_sweep(sweep.file, text=sweep.text, told=told)
        if len(longer.trials) == len(sweep.trials):
            break
        sweep = longer
    return sweep


def check_searched_data(sweep: Sweep, fingerprints: Mapping[str, str]) -> list[str]:
    """Why the settings of `settings_from` do not fit: they were chosen on another version of the data.

    Args:
        fingerprints: of the data, by trial id.
    """
    # A trial's fingerprint names the files of its noise too, which are not what settings are chosen on.
    now = {
        (result, t.dataset_label): fingerprints[t.id].partition("+")[0]
        for t in sweep.trials
        for result in range(len(sweep.found))
        if t.method in sweep.found[result].winners
    }
    errors = []
    for (result, label), fingerprint in now.items():
        search = sweep.found[result]
        known = {name: version.partition("+")[0] for name, version in search.fingerprints.items()}
        where = f"settings_from = {search.name!r}: it has searched on"
        if label not in known:
            errors.append(f"{where} {', '.join(known) or 'nothing'}, not on {label!r}")
        elif known[label] != fingerprint:
            errors.append(f"{where} version {known[label]} of {label!r}, and the data are {fingerprint} now")
    return errors


def write_found(sweep: Sweep, find: Find) -> Path:
    """Write what a search has found so far to `results/NAME/search.json`, and return the file."""
    found = result_of(sweep_of_plan(sweep.name, plan_of(sweep), find))
    file = result_file(sweep.name)
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file, "w") as stream:
        stream.write(found.model_dump_json(indent=1, exclude_none=True) + "\n")
    return file
