"""`python -m harness.train SWEEP --trial ID`: one trial by hand, also under torchrun.

With `--no-tracking` it prints instead of recording, and imports neither Ray nor MLflow, so that it runs on a
GPU machine with little installed.

Exit code 0: done; 1: the trial failed; 2: bad input; 130: stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from harness.lib.command import run
from harness.lib.files import STORAGE

if TYPE_CHECKING:
    from harness.config.sweep_file import Sweep
    from harness.config.trial import Trial
    from harness.record.store import Store
    from harness.record.types import SweepHandle

_LISTED = 12


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code."""
    options = _parse(arguments)
    from harness.config.sweep_file import BadInput, load_sweep  # what the command needs
    from harness.lib.console import console, fail, silence_libraries
    from harness.record.provenance import Provenance
    from harness.record.types import StoreError
    from harness.sweep.attempt import DONE, Task, attempt, record_interrupted
    from harness.sweep.preflight import check_trial
    from harness.sweep.search import planned_before, trial_labels

    silence_libraries()
    main_process = os.environ.get("RANK", "0") == "0"
    store = handle = None
    try:
        sweep = load_sweep(options.sweep)
        store = None if options.no_tracking else _open(options.tracking_uri)
        sweep = planned_before(sweep, store)
        trial = find_trial(sweep, options.trial)
        errors = check_trial(trial)
        if store and not errors:
            errors = _recording_errors(store, sweep, trial)
        if store and not errors:
            # All processes look, so that none waits.
            record = store.find_records(sweep.name, [trial]).get(trial.id)
            if record and record.done:
                console.print(f"trial {trial.id} is done already: run {record.run_id}")
                return 0
            handle = _handle(store, sweep, options)
    except BadInput as error:
        errors = error.errors
    except StoreError as error:
        errors = [str(error)]
    except OSError as error:
        errors = [f"{error.filename}: {error.strerror or error}"]
    if errors:
        return fail(errors, consequence="nothing was started") if main_process else 2
    busy = ""
    if main_process and store and handle:
        busy = _elsewhere(store, handle, trial, options.storage.absolute())
    if busy:
        console.print(f"busy: {busy}", markup=False)
        return 1
    task = Task(
        handle,
        sweep.file.resources,
        Provenance.of([trial]),
        options.storage.absolute(),
        os.getcwd(),
        labels=trial_labels(sweep),
    )
    try:
        ended = attempt(trial, task, main=main_process)
    except KeyboardInterrupt:
        if main_process:
            record_interrupted([trial], task, "stopped by Ctrl-C")
        console.print("[bold]stopped[/]; run the same command to resume from the last epoch")
        return 130
    if main_process and ended.outcome != DONE:
        console.print(f"{ended.outcome}: {ended.reason}", markup=False)
    elif main_process and store:
        console.print(f"trial {trial.id}: done, recorded in {store.uri}")
    return 0 if ended.outcome == DONE else 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m harness.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "sweep", help="the sweep file (YAML), or the name of one in sweeps/ or of one that ships"
    )
    parser.add_argument(
        "--trial", required=True, help="the trial's id, or its beginning (see harness.sweep --dry-run)"
    )
    parser.add_argument("--no-tracking", action="store_true", help="print the results, record nothing")
    parser.add_argument("--tracking-uri", help="MLflow store (default: mlflow.db here)")
    parser.add_argument(
        "--storage",
        type=Path,
        default=STORAGE,
        help="directory of checkpoints: the one of the sweep, if it was run with this option "
        "(default: %(default)s)",
    )
    return parser.parse_args(arguments)


def _open(uri: str | None) -> Store:
    """The store. Raises StoreError."""
    from harness.record.store import Store

    return Store(uri, patient=False)


def _recording_errors(store: Store, sweep: Sweep, trial: Trial) -> list[str]:
    """Why a trial cannot be recorded: other data than before, or than its settings were searched on."""
    from harness.data import load_dataset
    from harness.sweep.preflight import check_same_data, check_version
    from harness.sweep.search import check_searched_data

    fingerprint = {trial.id: trial.fingerprint(load_dataset(trial.dataset, **trial.dataset_options))}
    known = store.find_records(sweep.name, [trial])
    return [
        *check_version(sweep.name, store),
        *check_same_data([trial], known, fingerprint),
        *check_searched_data(sweep.model_copy(update={"trials": (trial,)}), fingerprint),
    ]


def _handle(store: Store, sweep: Sweep, options: argparse.Namespace) -> SweepHandle:
    from harness.lib.locks import acquire

    with acquire(options.storage.absolute() / "opening", wait=True):
        return store.open_sweep(sweep, options.sweep, running=False)


def _elsewhere(store: Store, handle: SweepHandle, trial: Trial, storage: Path) -> str:
    """Who runs the trial with another storage folder; empty where nobody does, or nobody any more."""
    from harness.lib.console import console, duration
    from harness.record.heartbeat import STALE, Watch, place_of

    watch = Watch(store.client, handle.experiment_id, {trial.id}, place_of(handle, storage))
    for claim in watch.live():
        console.print(f"{claim.owner} has claimed it: waiting for a heartbeat, {duration(STALE)} at most")
    live = watch.first_live()
    return f"it is being run by {live.owner}, with another storage folder" if live else ""


def find_trial(sweep: Sweep, beginning: str) -> Trial:
    """The trial whose id begins so.

    Raises:
        BadInput: none does, or several do.
    """
    from harness.config.labels import run_names
    from harness.config.sweep_file import BadInput

    matching = [t for t in sweep.trials if t.id.startswith(beginning)]
    if len(matching) != 1:
        offered = matching or sweep.trials
        names = run_names(sweep.trials)
        listed = ", ".join(f"{t.id} ({names[t.id]})" for t in offered[:_LISTED])
        more = f" and {len(offered) - _LISTED} more" if len(offered) > _LISTED else ""
        raise BadInput(
            [
                f"--trial {beginning!r}: {len(matching)} trials of {sweep.name} begin so; there are: "
                f"{listed}{more}"
            ]
        )
    return matching[0]


if __name__ == "__main__":
    run(main)
