"""`python -m harness.train SWEEP --trial ID`: one trial by hand, also under torchrun.

With `--no-tracking` it prints instead of recording, and imports neither Ray nor MLflow, so that it runs on a
GPU machine with little installed. Exit code 0: done; 1: the trial failed; 2: bad input.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from harness.config.sweep_file import BadInput, Sweep, Trial, load_sweep
from harness.data import load_dataset
from harness.data.base import DataError
from harness.lib.console import console, fail
from harness.lib.locks import Busy, acquire
from harness.lib.watchdog import OutOfTime
from harness.sweep.preflight import check_same_data, check_trial
from harness.training.run_trial import STORAGE, PrintRecorder, fingerprint, run_trial
from harness.training.trainer import DataChanged, Diverged


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m harness.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sweep", help="the sweep file (YAML)")
    parser.add_argument(
        "--trial", required=True, help="the trial's id, or its beginning (see harness.sweep --dry-run)"
    )
    parser.add_argument("--no-tracking", action="store_true", help="print the results, record nothing")
    parser.add_argument("--tracking-uri", help="MLflow store (default: mlflow.db here)")
    options = parser.parse_args(arguments)
    try:
        sweep = load_sweep(options.sweep)
        trial = find_trial(sweep, options.trial)
    except BadInput as error:
        return fail(error.errors)
    errors = check_trial(trial)
    if errors:
        return fail(errors)
    if options.no_tracking:
        try:
            run_trial(
                trial,
                PrintRecorder(),
                folder=STORAGE.absolute() / "untracked" / trial.id,
                resources=sweep.file.resources,
            )
        except (Diverged, DataError, DataChanged, Busy, OutOfTime) as error:
            console.print(f"failed: {error}", markup=False)
            return 1
        return 0
    return _run_tracked(sweep, trial, options.tracking_uri)


def _run_tracked(sweep: Sweep, trial: Trial, uri: str | None) -> int:
    from harness.record.store import MlflowRecorder, Store, StoreError, describe_failure

    main_process = os.environ.get("RANK", "0") == "0"
    try:
        store = Store(uri, patient=False)
    except StoreError as error:
        return fail([str(error)]) if main_process else 2
    known = store.find_records(sweep)
    errors = check_same_data(
        [trial], known, {trial.id: fingerprint(trial, load_dataset(trial.dataset, **trial.dataset_options))}
    )
    if errors:
        return fail(errors) if main_process else 2
    done = known.get(trial.id)  # every process looks, so that none waits for one that has left
    if done and done.done:
        console.print(f"trial {trial.id} is done already: run {done.run_id}")
        return 0
    recorder: Any = PrintRecorder()
    with acquire(STORAGE.absolute() / "opening", wait=True):
        place = store.open_sweep(sweep)
    folder = place.folder(STORAGE.absolute(), trial)
    if main_process:
        recorder = MlflowRecorder(place, trial, folder=folder)
    try:
        outcome = run_trial(trial, recorder, folder=folder, resources=sweep.file.resources)
    except Busy as error:
        console.print(f"trial {trial.id}: {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        if main_process:
            store.stop(place, trial, "stopped by Ctrl-C")
            console.print("[bold]stopped[/]; run the same command to go on from the last epoch")
        return 130
    except Exception as error:
        if main_process:
            reason, details = describe_failure(error)
            store.fail(place, trial, reason, details)
            console.print(f"failed: {reason}", markup=False)
        return 1
    if main_process:
        console.print(
            f"trial {trial.id}: test rSum {outcome.metrics['test/rsum']:.1f}, recorded in {store.uri}"
        )
    return 0


def find_trial(sweep: Sweep, beginning: str) -> Trial:
    """The trial whose id begins so.

    Raises:
        BadInput: none does, or several do.
    """
    found = [t for t in sweep.trials if t.id.startswith(beginning)]
    if len(found) != 1:
        listed = ", ".join(
            f"{t.id} ({t.method} noise={t.noise_ratio:g} seed={t.seed})" for t in (found or sweep.trials)[:12]
        )
        raise BadInput(
            [f"--trial {beginning!r}: {len(found)} trials of {sweep.name} begin so; there are: {listed}, ..."]
        )
    return found[0]


if __name__ == "__main__":
    sys.exit(main())
