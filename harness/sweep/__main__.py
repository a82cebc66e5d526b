"""`python -m harness.sweep FILE`: run a sweep, continue it, or grow it; then report.

Exit code 0: all trials done; 1: some failed, or the tracking store was lost; 2: bad input, nothing was
started; 130: stopped by Ctrl-C (or SIGTERM).
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path

from harness.config.sweep_file import BadInput, Sweep, Trial, load_sweep
from harness.data.base import DataError, DataSet
from harness.lib.console import bar, console, fail
from harness.lib.locks import acquire, is_locked, owner
from harness.record.store import Store, StoreError
from harness.report.write import print_summary, write_report
from harness.sweep.plan import label, show_plan
from harness.sweep.preflight import (
    check_address,
    check_devices,
    check_same_data,
    check_sweep,
    data_key,
    prepare_features,
)
from harness.sweep.schedule import (
    BUSY,
    DONE,
    ClusterError,
    Finished,
    StoreGone,
    Task,
    check_nodes,
    run_trials,
    start_ray,
    stop_ray,
)
from harness.sweep.status import show_status, show_verified
from harness.training.run_trial import STORAGE, fingerprint

_SAMPLE = 3


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    _quiet()
    try:
        sweep = load_sweep(options.file)
        if options.status:
            return show_status(sweep, _open_store(options), options.storage)
        data, store = _check(sweep, options)
        fingerprints = {t.id: fingerprint(t, data[data_key(t)]) for t in sweep.trials}
        known = store.find_records(sweep)
        _refuse(check_same_data(sweep.trials, known, fingerprints))
        if options.dry_run:
            failed = {i for i, r in known.items() if r.status == "FAILED"}
            show_plan(
                sweep, data, store.speeds(), done={i for i, r in known.items() if r.done}, failed=failed
            )
            return 0
        prepare_features(sweep.trials, data)
        start_ray(sweep.file.resources, options.address)
        _refuse(check_nodes(options.storage, store.uri))
    except BadInput as error:
        return fail(error.errors)
    except (DataError, ClusterError, StoreError) as error:
        return fail([str(error)])
    try:
        with acquire(options.storage / "opening", wait=True):
            place = store.open_sweep(sweep)
        task = Task(
            place,
            sweep.file.resources,
            fingerprints,
            options.storage,
            os.getcwd(),
            since=time.time(),
            address=options.address,
            again=options.verify is not None,
        )
        return _verify(sweep, store, task, options.verify) if task.again else _run(sweep, store, task)
    except (StoreGone, StoreError) as error:
        stop_ray()
        console.print(
            f"{error}. What is recorded stays, and trials that are not keep their checkpoints in "
            f"{options.storage}: start it again, and run the same command",
            style="bold red",
            markup=False,
        )
        return 1


def _run(sweep: Sweep, store: Store, task: Task) -> int:
    """Run what is not done; report; the exit code."""
    known = store.records(task.place, sweep.trials)
    done = {i for i, r in known.items() if r.done}
    # Seed by seed, so that an early look at the table shows every row.
    todo = sorted((t for t in sweep.trials if t.id not in done), key=lambda t: (t.seed, t.noise_seed))
    console.print(
        f"sweep [bold]{sweep.name}[/]: {len(sweep.trials)} trials, {len(done)} done before, {len(todo)} to "
        f"run; record: {store.uri}"
    )
    elsewhere = [
        t
        for t in todo
        if t.id in known
        and known[t.id].status == "RUNNING"
        and not task.place.folder(task.storage, t).is_dir()
    ]
    if elsewhere:
        console.print(
            f"note: {len(elsewhere)} trials are on record as running, and their checkpoints are not in "
            f"{task.storage}. If another sweep is running them, "
            "stop this one and start it with that one's --storage, so that each trial runs once; if none "
            "is, they begin anew",
            markup=False,
        )
    shown = _Progress(len(sweep.trials), len(done))
    try:
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
        with shown:
            while todo:
                run_trials(todo, task, on_start=shown.started, on_end=shown.ended)
                todo = _wait_for_others(shown, store, task)
    except KeyboardInterrupt:
        return _stop(shown, store, task)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for ended in shown.failures:
        console.print(f"failed: {label(ended.trial)} ({ended.trial.id}): {ended.reason}", markup=False)
    return _finish(store, task, sweep)


def _wait_for_others(shown: _Progress, store: Store, task: Task) -> list[Trial]:
    """Once another sweep has let go of the trials that it was running: those that it left undone."""
    if not shown.busy:
        return []
    folders = {t.id: task.place.folder(task.storage, t) for t in shown.busy}
    console.print(
        f"{len(folders)} trials are being run by another sweep "
        f"({owner(next(iter(folders.values()))) or 'it has just ended'}); waiting for them",
        markup=False,
    )
    while any(is_locked(f) for f in folders.values()):
        time.sleep(1)
    known = store.records(task.place, shown.busy)
    left = [
        t for t in shown.busy if t.id not in known or not (known[t.id].done or known[t.id].status == "FAILED")
    ]
    shown.leave(sum(r.done for r in known.values()))
    return left


def _stop(shown: _Progress, store: Store, task: Task) -> int:
    """End the trials that are running, and say in their records that they were stopped."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    console.print("stopping ...")
    try:
        stop_ray()
        for trial in shown.running.values():
            store.stop(task.place, trial, "stopped by Ctrl-C or SIGTERM")
        store.close_sweep(task.place, "KILLED")
    except Exception as error:  # the store may be what the user lost patience with
        console.print(
            f"the record does not say so, for the store does not answer: {str(error).splitlines()[0][:200]}",
            markup=False,
        )
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    console.print(
        f"[bold]stopped[/]: {shown.done} of {shown.total} trials are done; run the same command to go on: "
        f"what was running ({len(shown.running)}) goes on from its last epoch"
    )
    return 130


def _finish(store: Store, task: Task, sweep: Sweep) -> int:
    """Count, report, and the exit code."""
    records = store.records(task.place, sweep.trials)
    done = [t for t in sweep.trials if t.id in records and records[t.id].done]
    missing = len(sweep.trials) - len(done)
    for trial in done:  # what is left where a process died between its record and its cleaning up
        shutil.rmtree(task.place.folder(task.storage, trial), ignore_errors=True)
    with contextlib.suppress(OSError):
        task.place.folder(task.storage, sweep.trials[0]).parent.rmdir()  # where nothing is left in it
    store.close_sweep(task.place, "FAILED" if missing else "FINISHED", done=len(done), failed=missing)
    print_summary(write_report(store, sweep.name, Path.cwd() / "reports" / sweep.name))
    if missing:
        console.print(
            f"[bold red]{missing} of {len(sweep.trials)} trials failed[/]; run the same command to take up "
            f"just those"
        )
    return 1 if missing else 0


def _verify(sweep: Sweep, store: Store, task: Task, sample: int) -> int:
    """Look at every finished record, run some trials again; 0 where all is as it should be."""
    known = store.records(task.place, sweep.trials)
    done = [t for t in sweep.trials if t.id in known and known[t.id].done]
    # Spread over the grid, whose order goes by method.
    chosen = (
        [done[i * len(done) // sample] for i in range(min(sample, len(done)))] if sample < len(done) else done
    )
    outcomes: list[Finished] = []
    if chosen:
        console.print(f"running {len(chosen)} of {len(done)} finished trials again ...")
        run_trials(chosen, task, on_start=lambda trial: None, on_end=outcomes.append)
    return show_verified(sweep, store, [known[t.id] for t in done], outcomes)


def _check(sweep: Sweep, options: argparse.Namespace) -> tuple[dict[str, DataSet], Store]:
    """Everything that can be known before work starts.

    Raises:
        BadInput: with all that is wrong.
    """
    errors, data = check_sweep(sweep, elsewhere=bool(options.address) or options.dry_run)
    if options.dry_run and not options.address:
        for fault in check_devices(sweep.file.resources):
            console.print(f"note: {fault}", markup=False)
    if options.address:
        errors += check_address(options.address)
    store = None
    try:
        store = _open_store(options)
    except StoreError as error:
        errors.append(str(error))
    if store is None:
        raise BadInput(errors)
    _refuse(errors)
    return data, store


def _open_store(options: argparse.Namespace) -> Store:
    """One process at a time: two that make a fresh database at once get in each other's way.

    Raises:
        StoreError: it does not answer.
        BadInput: the storage cannot be written.
    """
    try:
        with acquire(options.storage / "opening", wait=True):
            return Store(options.tracking_uri, patient=False)
    except OSError as error:
        raise BadInput([f"--storage {options.storage}: {error.strerror or error}"]) from None


def _refuse(errors: list[str]) -> None:
    if errors:
        raise BadInput(errors)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m harness.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", help="the sweep file (YAML)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="check everything, show the plan, run nothing")
    what.add_argument(
        "--status",
        action="store_true",
        help="show what is done, running, interrupted and failed, and why; run nothing",
    )
    what.add_argument(
        "--verify",
        nargs="?",
        type=int,
        const=_SAMPLE,
        metavar="N",
        help=f"look whether every finished record is whole, and run N of them again (default: {_SAMPLE}) "
        f"to see whether they give the same numbers",
    )
    parser.add_argument(
        "--tracking-uri", help="MLflow store: sqlite:///FILE or http(s)://... (default: mlflow.db here)"
    )
    parser.add_argument(
        "--address", help="address of a running Ray cluster, or 'auto' (default: start Ray here)"
    )
    parser.add_argument(
        "--storage",
        type=Path,
        default=STORAGE,
        help="folder for checkpoints of running trials, which all nodes must see (default: "
        ".harness/trials here)",
    )
    options = parser.parse_args(arguments)
    options.storage = options.storage.absolute()
    return options


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
        self.running: dict[str, Trial] = {}
        self.busy: list[Trial] = []
        self.before, self.began = done, 0.0  # the clock runs from the first trial's start
        self.bar = bar() if console.is_terminal else None

    def __enter__(self) -> _Progress:
        if self.bar:
            self.bar.start()
            self.task = self.bar.add_task(self._text(), total=self.total, completed=self.done)
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar:
            self.bar.stop()

    def started(self, trial: Trial) -> None:
        self.running[trial.id] = trial
        self.began = self.began or time.monotonic()
        self._show()

    def ended(self, finished: Finished) -> None:
        self.running.pop(finished.trial.id, None)
        if finished.outcome == BUSY:
            self.busy.append(finished.trial)
            return self._show()
        if finished.outcome == DONE:
            self.done += 1
        else:
            self.failures.append(finished)
        self._show()
        if not self.bar:
            outcome = "done" if finished.outcome == DONE else f"FAILED ({finished.reason})"
            console.out(
                f"{self._text()}, {self._left()}: {label(finished.trial)} {outcome} in "
                f"{finished.seconds:.0f} s",
                highlight=False,
            )
        return None

    def leave(self, done: int) -> None:
        """Other sweeps have ended what they were running; so many of those trials are done."""
        self.busy = []
        self.done, self.before = self.done + done, self.before + done
        self._show()

    def _text(self) -> str:
        return f"{self.done} done, {len(self.running)} running, {len(self.failures)} failed of {self.total}"

    def _left(self) -> str:
        ended = self.done - self.before + len(self.failures)
        seconds = (time.monotonic() - self.began) / max(1, ended) * (self.total - self.before - ended)
        return f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {seconds:.0f} s left"

    def _show(self) -> None:
        if self.bar:
            self.bar.update(self.task, description=self._text(), completed=self.done + len(self.failures))


if __name__ == "__main__":
    sys.exit(main())
