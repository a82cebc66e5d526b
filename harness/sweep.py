"""`python -m harness.sweep FILE`: run a sweep, continue it, or grow it; then report.

Exit code 0: all trials done; 1: some failed; 2: bad input, nothing was started.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import warnings
from pathlib import Path

from harness.console import bar, console, fail
from harness.data import DataError, DataSet
from harness.plan import label, show_plan
from harness.preflight import check_address, check_devices, check_sweep, data_key, prepare_features
from harness.report.write import print_summary, write_report
from harness.schedule import ClusterError, Finished, run_trials, start_ray
from harness.spec import BadInput, Sweep, load_sweep
from harness.tracking import Place, Store, StoreError
from harness.trial import fingerprint


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    _quiet()
    try:
        sweep, data, store = _check(options)
        fingerprints = {t.id: fingerprint(t, data[data_key(t)]) for t in sweep.trials}
        if options.dry_run:
            known = store.find_records(sweep, fingerprints)
            failed = {i for i, r in known.items() if r.status == "FAILED"}
            show_plan(sweep, data, store.speeds(), done={i for i, r in known.items() if r.done}, failed=failed)
            return 0
        prepare_features(sweep.trials, data)
        start_ray(sweep.file.resources, options.address)
    except BadInput as error:
        return fail(error.errors)
    except (DataError, ClusterError) as error:
        return fail([str(error)])
    place = store.open_sweep(sweep, fingerprints)
    known = store.records(place, sweep.trials, fingerprints)
    done = {i for i, r in known.items() if r.done}
    # Seed by seed, so that an early look at the table shows every row.
    todo = sorted((t for t in sweep.trials if t.id not in done), key=lambda t: (t.seed, t.noise_seed))
    console.print(f"sweep [bold]{sweep.name}[/]: {len(sweep.trials)} trials, {len(done)} done before, {len(todo)} to run; record: {store.uri}")
    if todo:
        with _Progress(len(sweep.trials), len(done)) as shown:
            run_trials(todo, place, sweep.file.resources, storage=Path.cwd() / ".harness" / "trials", on_start=shown.started, on_end=shown.ended)
        for ended in shown.failures:
            console.print(f"failed: {label(ended.trial)} ({ended.trial.id}): {ended.failure}", markup=False)
    return _finish(store, place, sweep, fingerprints)


def _check(options: argparse.Namespace) -> tuple[Sweep, dict[str, DataSet], Store]:
    """Everything that can be known before work starts.

    Raises:
        BadInput: with all that is wrong.
    """
    sweep = load_sweep(options.file)
    errors, data = check_sweep(sweep, elsewhere=bool(options.address) or options.dry_run)
    if options.dry_run and not options.address:
        for fault in check_devices(sweep.file.resources):
            console.print(f"note: {fault}", markup=False)
    if options.address:
        errors += check_address(options.address)
    store = None
    try:
        store = Store(options.tracking_uri, patient=False)
    except StoreError as error:
        errors.append(str(error))
    if errors or store is None:
        raise BadInput(errors)
    if options.address and store.uri.startswith("sqlite"):
        console.print(f"note: {store.uri} is a file on this machine; a cluster of several nodes needs an `mlflow server`", markup=False)
    return sweep, data, store


def _finish(store: Store, place: Place, sweep: Sweep, fingerprints: dict[str, str]) -> int:
    """Count, report, and the exit code."""
    records = store.records(place, sweep.trials, fingerprints)
    missing = sum(not (t.id in records and records[t.id].done) for t in sweep.trials)
    store.close_sweep(place, done=len(sweep.trials) - missing, failed=missing)
    print_summary(write_report(store, sweep.name, Path.cwd() / "reports" / sweep.name))
    if missing:
        console.print(f"[bold red]{missing} of {len(sweep.trials)} trials failed[/]; run the same command to take up just those")
    return 1 if missing else 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m harness.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="the sweep file (YAML)")
    parser.add_argument("--dry-run", action="store_true", help="check everything, show the plan, run nothing")
    parser.add_argument("--tracking-uri", help="MLflow store: sqlite:///FILE or http(s)://... (default: mlflow.db here)")
    parser.add_argument("--address", help="address of a running Ray cluster, or 'auto' (default: start Ray here)")
    return parser.parse_args(arguments)


def _quiet() -> None:
    """Libraries' chatter goes; what remains is ours, and real warnings of the user's own code."""
    for name in ("httpx", "ray", "filelock", "transformers", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger().setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


class _Progress:
    """Done / running / failed and the time left: a bar on a terminal, a line for each trial elsewhere."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done = total, done
        self.failures: list[Finished] = []
        self.running = 0
        self.before, self.began = done, time.monotonic()
        self.bar = bar() if console.is_terminal else None

    def __enter__(self) -> _Progress:
        if self.bar:
            self.bar.start()
            self.task = self.bar.add_task(self._text(), total=self.total, completed=self.done)
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar:
            self.bar.stop()

    def started(self) -> None:
        self.running += 1
        self._show()

    def ended(self, finished: Finished) -> None:
        self.running -= 1
        if finished.failure:
            self.failures.append(finished)
        else:
            self.done += 1
        self._show()
        if not self.bar:
            outcome = f"FAILED ({finished.failure})" if finished.failure else "done"
            console.print(f"{self._text()}, {self._left()}: {label(finished.trial)} {outcome} in {finished.seconds:.0f} s", markup=False)

    def _text(self) -> str:
        return f"{self.done} done, {self.running} running, {len(self.failures)} failed of {self.total}"

    def _left(self) -> str:
        ended = self.done - self.before + len(self.failures)
        seconds = (time.monotonic() - self.began) / max(1, ended) * (self.total - self.before - ended)
        return f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {seconds:.0f} s left"

    def _show(self) -> None:
        if self.bar:
            self.bar.update(self.task, description=self._text(), completed=self.done + len(self.failures))


if __name__ == "__main__":
    sys.exit(main())
