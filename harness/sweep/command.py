"""What `python -m harness.sweep` does: check, then show, run or verify."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from harness.config.sweep_file import BadInput, Sweep, load_sweep, read_sweep_file
from harness.config.trial import Trial
from harness.data.base import DataError, DataSet
from harness.lib.console import console, fail, silence_libraries
from harness.lib.locks import acquire
from harness.record.heartbeat import hold
from harness.record.provenance import Provenance
from harness.record.store import Store, is_missing, require
from harness.record.types import StoreError, SweepHandle
from harness.sweep.attempt import DONE, FAILED, STOPPED, Ending, StoreGone, Task, record_interrupted
from harness.sweep.elsewhere import note_elsewhere, wait_for_others
from harness.sweep.foresight import design_notes
from harness.sweep.keeping import Keeper, known_records
from harness.sweep.launcher import Launcher, LaunchError
from harness.sweep.plan import gpu_notes, make_plan, show_plan, warmup_notes
from harness.sweep.preflight import (
    check_address,
    check_devices,
    check_same_data,
    check_sweep,
    check_version,
    data_key,
    prepare_features,
)
from harness.sweep.progress import Progress
from harness.sweep.repeat import spread
from harness.sweep.search import Find, check_searched_data, planned_before, trial_labels, with_next_tries
from harness.sweep.status import board_of, score_of, show_status, show_verified
from harness.sweep.step_cost import cached_costs, count_costs


def execute(options: argparse.Namespace, launcher: Launcher | None = None) -> int:
    """Carry out a command line. Returns the exit code.

    Args:
        options: as `harness.sweep.__main__` parses them.
        launcher: runs the trials; default: Ray.
    """
    silence_libraries()
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _execute(options, launcher)
    except KeyboardInterrupt:
        console.print("[bold]stopped[/]; run the same command again")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _execute(options: argparse.Namespace, launcher: Launcher | None) -> int:
    """Check, then show, run or verify; the exit code."""
    try:
        if options.status:
            return _status(options)
        sweep = load_sweep(options.file)
        data, store = _check(sweep, options)
        sweep = with_next_tries(planned_before(sweep, store), _finder(sweep, store))
        known = known_records(sweep, store)
        fingerprints = _fingerprints(sweep, data)
        _refuse(
            [
                *check_version(sweep.name, store),
                *check_same_data(sweep.trials, known, fingerprints),
                *check_searched_data(sweep, fingerprints),
            ]
        )
        notes = [*warmup_notes(sweep.trials, data), *gpu_notes(sweep.trials, sweep.file.resources)]
        for note in notes if options.verify is None else ():
            console.print(f"note: {note}", markup=False)
        if options.dry_run:
            gpu = sweep.file.resources.gpus > 0
            if options.cost:
                count_costs(sweep.trials, data, gpu=gpu)
            costs = cached_costs(sweep.trials, data, gpu=gpu)
            plan = make_plan(sweep, data, known, store.speeds() if store else [], costs)
            show_plan(plan, known)
            for note in design_notes(sweep):
                console.print(f"note: {note}", markup=False)
            return 0
        assert store is not None
        if options.verify is not None and store.find_sweep(sweep.name) is None:
            raise BadInput([f"sweep {sweep.name!r} was never run in {store.uri}: there is nothing to verify"])
        prepare_features(sweep.trials, data)
        launcher = launcher or _ray_launcher(options.address)
        launcher.start(sweep.file.resources)
        _refuse(launcher.check(options.storage, store.uri))
        store = Store(store.uri)  # from here on one that waits for a store that is busy
    except (BadInput, DataError, LaunchError, StoreError) as error:
        errors = error.errors if isinstance(error, BadInput) else [str(error)]
        return fail(errors, consequence="" if options.status else "nothing was started")
    return _start(sweep, store, data, options, launcher)


def _finder(sweep: Sweep, store: Store | None) -> Find:
    """What is on record of any trials that a sweep of this name may have."""
    return lambda trials: known_records(sweep.model_copy(update={"trials": tuple(trials)}), store)


def _fingerprints(sweep: Sweep, data: Mapping[str, DataSet]) -> dict[str, str]:
    """Of the data of each trial, by trial id."""
    return {t.id: t.fingerprint(data[data_key(t)]) for t in sweep.trials}


def _start(
    sweep: Sweep,
    store: Store,
    data: Mapping[str, DataSet],
    options: argparse.Namespace,
    launcher: Launcher,
) -> int:
    """Run or verify a sweep that was checked, in rounds where its next trials follow from those before; the
    exit code.
    """
    handle, tried = None, set[str]()
    try:
        while True:
            handle = _open_sweep(store, sweep, options)
            task = _task(sweep, handle, data, options)
            if task.repeat:
                return _verify(sweep, store, task, launcher, options.verify)
            stopped = _run(sweep, store, task, launcher, tried)
            longer = with_next_tries(sweep, _finder(sweep, store))
            if stopped or len(longer.trials) == len(sweep.trials):
                return stopped or _finish(sweep, store, task)
            sweep = longer
    except KeyboardInterrupt:  # while trials run, `_run` handles it
        launcher.stop()
        if handle and options.verify is None:
            with contextlib.suppress(Exception):
                store.close_sweep(handle, "KILLED")
        raise
    except BadInput as error:  # a search by Optuna has drawn what cannot be run
        launcher.stop()
        if handle and options.verify is None:
            with contextlib.suppress(Exception):
                store.close_sweep(handle, "FAILED")
        return fail(error.errors, consequence="what is recorded stays")
    except (StoreGone, StoreError) as error:
        launcher.stop()
        console.print(
            f"{error}. What is recorded stays, and trials that are not keep their checkpoints in "
            f"{options.storage}: start it again, and run the same command",
            style="bold red",
            markup=False,
        )
        return 1


def _task(
    sweep: Sweep, handle: SweepHandle | None, data: Mapping[str, DataSet], options: argparse.Namespace
) -> Task:
    """What the trials of a sweep are run with."""
    return Task(
        handle,
        sweep.file.resources,
        Provenance.of(sweep.trials),
        options.storage,
        os.getcwd(),
        expected=_fingerprints(sweep, data),
        labels=trial_labels(sweep),
        since=time.time(),
        repeat=options.verify is not None,
        asha=sweep.file.search.asha if sweep.file.search else None,
    )


def _open_sweep(store: Store, sweep: Sweep, options: argparse.Namespace) -> SweepHandle | None:
    """The sweep in the store: marked as running, or as it is where it is only verified."""
    if options.verify is not None:
        return store.find_sweep(sweep.name)
    with acquire(options.storage / "opening", wait=True):
        return store.open_sweep(sweep, options.file)


def _ray_launcher(address: str | None) -> Launcher:
    from harness.sweep.ray_launcher import RayLauncher

    return RayLauncher(address)


# Before anything starts ----------------------------------------------------------------------------


def _status(options: argparse.Namespace) -> int:
    """Show the state of a sweep.

    Raises:
        BadInput, StoreError: the file or the store cannot be read.
    """
    content, text = read_sweep_file(options.file)
    store = _open_store(options)
    name = str(content["name"])
    trials = _trials_of_status(options.file, store.planned(name, text), bool(content.get("settings_from")))
    return show_status(
        name, trials, store, options.storage, select=bool(content.get("select") or content.get("search"))
    )


def _trials_of_status(file: str, planned: tuple[Trial, ...] | None, taken: bool) -> tuple[Trial, ...]:
    """The trials that a run would have now. The file is expanded, which loads its methods, only where it is
    another than that of the plan, or takes settings from a search, which may have found others since.

    Raises:
        BadInput: the file cannot be run, and there is no plan.
    """
    if planned and not taken:
        return planned
    try:
        return load_sweep(file).trials
    except BadInput as error:
        if not planned:
            raise
        for text in error.errors:
            console.print(f"note: as planned before; now it would be refused: {text}", markup=False)
        return planned


def _check(sweep: Sweep, options: argparse.Namespace) -> tuple[dict[str, DataSet], Store | None]:
    """Check everything that can be known before work starts. A dry run makes no store where there is none.

    Raises:
        BadInput: with all that is wrong.
    """
    errors, data = check_sweep(sweep, elsewhere=bool(options.address) or options.dry_run)
    if options.dry_run and not options.address:
        for error in check_devices(sweep.file.resources):
            console.print(f"note: {error}", markup=False)
    if options.address:
        errors += check_address(options.address)
    store = None
    try:
        if not (options.dry_run and is_missing(options.tracking_uri)):
            store = _open_store(options)
    except StoreError as error:
        errors.append(str(error))
    _refuse(errors)
    return data, store


def _open_store(options: argparse.Namespace) -> Store:
    """Open the store, one process at a time: two that make a new database at once get in each other's way.

    Raises:
        StoreError: it does not answer, or a command that only reads it finds none.
        BadInput: the storage cannot be written.
    """
    if options.status or options.verify is not None:
        require(options.tracking_uri)
    try:
        with acquire(options.storage / "opening", wait=True):
            return Store(options.tracking_uri, patient=False)
    except OSError as error:
        raise BadInput([f"--storage {options.storage}: {error.strerror or error}"]) from None


def _refuse(errors: list[str]) -> None:
    if errors:
        raise BadInput(errors)


# A run ---------------------------------------------------------------------------------------------


def _run(sweep: Sweep, store: Store, task: Task, launcher: Launcher, tried: set[str]) -> int:
    """Run what is not done; 0, or the exit code where it was stopped.

    Args:
        tried: ids of trials that earlier rounds have run, to which these are added: what has failed then has
            failed its try.
    """
    handle = _handle(task)
    keeper = Keeper(sweep, store, handle)
    keeper.restore()
    keeper.begin()
    known = store.records(handle, sweep.trials)
    done = {i for i, r in known.items() if r.done}
    over = done | tried | {i for i, r in known.items() if r.stopped_early and task.asha}
    todo = [t for t in sweep.trials if t.id not in over]
    tried |= {t.id for t in todo}
    if not sweep.file.search:  # seed by seed, so that an early look at the table shows all rows
        todo.sort(key=lambda t: (t.seed, t.noise_seed))
    console.print(
        f"sweep [bold]{sweep.name}[/]: {len(sweep.trials)} trials, {len(done)} done before, {len(todo)} to "
        f"run; record: {store.uri}"
    )
    note_elsewhere(todo, known, store, handle, task)
    progress = Progress(
        board_of(sweep.trials, known, select=sweep.file.chooses),
        lambda trial: handle.directory(task.storage, trial),
        lambda trial: score_of(store.record(handle, trial), select=sweep.file.chooses),
    )

    def ended(ending: Ending) -> None:
        progress.ended(ending)
        if ending.outcome in (DONE, FAILED, STOPPED):
            keeper.keep([ending.trial])

    try:
        with progress:
            while todo:
                launcher.run(todo, task, on_start=progress.started, on_end=ended)
                todo = wait_for_others(progress, store, handle, task)
    except KeyboardInterrupt:
        return _stop(progress, store, task, launcher, keeper)
    for failed in progress.failures:
        name = progress.board.names[failed.trial.id]
        console.print(f"failed: {name} ({failed.trial.id}): {failed.reason}", markup=False)
    keeper.end()
    return 0


def _interrupt(*_: object) -> None:
    """As Ctrl-C, which a process that a shell started in the background ignores."""
    raise KeyboardInterrupt


def _handle(task: Task) -> SweepHandle:
    assert task.handle is not None, "a sweep has a record"
    return task.handle


def _stop(progress: Progress, store: Store, task: Task, launcher: Launcher, keeper: Keeper) -> int:
    """End the trials that are running, record that they were stopped, and complete the bundle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    console.print("stopping ...")
    try:
        launcher.stop()
        record_interrupted(list(progress.running.values()), task, "stopped by Ctrl-C or SIGTERM")
        store.close_sweep(_handle(task), "KILLED")
        keeper.end()
    except Exception as error:  # the store may be what the user lost patience with
        reason = str(error).splitlines()[0][:200]
        console.print(f"this is not on record, for the store does not answer: {reason}", markup=False)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    console.print(
        f"[bold]stopped[/]: {progress.done} of {progress.total} trials are done; run the same command to "
        f"continue: what was running ({len(progress.running)}) resumes from its last epoch"
    )
    return 130


def _finish(sweep: Sweep, store: Store, task: Task) -> int:
    """Count, report, and the exit code."""
    from harness.record.summary import views
    from harness.report.publish import publish_curves, publish_report
    from harness.report.write import held, print_summary, write_report

    handle = _handle(task)
    records = store.records(handle, sweep.trials)
    done = [t for t in sweep.trials if t.id in records and records[t.id].done]
    stopped = sum(t.id in records and records[t.id].stopped_early for t in sweep.trials)
    missing = len(sweep.trials) - len(done) - stopped
    for trial in done:  # a process may have died between its record and its cleaning up
        shutil.rmtree(handle.directory(task.storage, trial), ignore_errors=True)
    with contextlib.suppress(OSError):
        handle.directory(task.storage, sweep.trials[0]).parent.rmdir()  # where nothing is left in it
    with hold(store.client, handle, "opening", task.storage):  # two sweeps may end at the same time
        handle = publish_curves(store, handle)
    folder = Path.cwd() / "reports" / sweep.name
    with held(folder):
        publish_report(store, handle, write_report(store, sweep.name, folder))
        store.close_sweep(handle, "FAILED" if missing else "FINISHED", done=len(done), failed=missing)
        print_summary(folder, views(store, handle.experiment_id))
    if missing:
        console.print(
            f"[bold red]{missing} of {len(sweep.trials)} trials failed[/]; run the same command to repeat "
            f"just those"
        )
    return 1 if missing else 0


def _verify(sweep: Sweep, store: Store, task: Task, launcher: Launcher, sample: int) -> int:
    """Check all finished records, run some trials again; 0 where all is as it should be."""
    known = store.records(_handle(task), sweep.trials)
    done = [t for t in sweep.trials if t.id in known and known[t.id].done]
    chosen = spread(done)[:sample]
    endings: list[Ending] = []
    if chosen:
        console.print(f"running {len(chosen)} of {len(done)} finished trials again ...")
        launcher.run(chosen, task, on_start=lambda trial: None, on_end=endings.append)
    return show_verified(sweep, store, [known[t.id] for t in done], endings)
