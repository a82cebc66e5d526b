"""What a sweep costs besides its trials: thousands of trials of a method that does nothing, in this process
and with a real store.

The harness's own time is what is left of the wall time after MLflow's calls and the trial's own work (making
its network, ranking dev and test), which is measured by itself.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import yaml
from rich.table import Table

from harness.config.sweep_file import Sweep, load_sweep
from harness.config.trial import Trial
from harness.data.base import DataSet, Split
from harness.data.scan import Regions
from harness.data.vocabulary import Vocabulary
from harness.lib.console import console, duration
from harness.record.client import Client
from harness.record.provenance import Provenance
from harness.record.store import Store
from harness.report.write import write_report
from harness.sweep.attempt import DONE, Ending, Task
from harness.sweep.launcher import InProcessLauncher
from harness.sweep.preflight import check_sweep, data_key
from harness.sweep.progress import Progress
from harness.sweep.table import Board
from harness.training.accelerator import make_accelerator
from harness.training.run_trial import build_trainer
from methods.base import Method

MEASURED = 200
"""Trials whose own work is measured by itself."""


class Nothing(Method):
    """Tests the network as it was made."""

    trains = False


@lru_cache
def tiny_regions() -> DataSet:
    """Eight images of two regions with a caption each, in all splits."""
    draw = np.random.default_rng(0)
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    regions = Regions(draw.standard_normal((8, 2, 4)).astype(np.float32), np.arange(8))
    captions = [f"{word} thing" for word in words]
    split = Split(regions, captions, np.arange(8), np.arange(8), kind="regions")
    return DataSet(
        "nothing", dict.fromkeys(("train", "dev", "test"), split), "nothing", distinct_groups=False
    )


class _Clock:
    """Seconds of the parts of a sweep, without those of MLflow's calls within them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.mlflow = 0.0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        began, before = time.perf_counter(), Client.seconds_in_mlflow
        yield
        mlflow = Client.seconds_in_mlflow - before
        self.mlflow += mlflow
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began - mlflow


def bench_sweep(trials: int) -> None:
    """Run the parts of a sweep one after another, without Ray; print what each costs a trial."""
    clock = _Clock()
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        _write_sweep(Path("nothing.yaml"), trials)
        Store()  # the database, and MLflow's imports
        with clock.part("reading and checking the sweep"):
            sweep = load_sweep("nothing.yaml")
            errors, data = check_sweep(sweep)
            assert not errors, errors
            expected = {t.id: t.fingerprint(data[data_key(t)]) for t in sweep.trials}
        work = _work(sweep, data) * trials
        with clock.part("plan, and looking up what is done"):
            store = Store()
            handle = store.open_sweep(sweep)
            store.records(handle, sweep.trials)
        memory: list[float] = []
        with clock.part("around a trial, and progress"):
            task = Task(
                handle,
                sweep.file.resources,
                Provenance.of(sweep.trials),
                Path("storage").absolute(),
                os.getcwd(),
                expected=expected,
                since=time.time(),
            )
            _run(sweep, task, memory)
        clock.seconds["around a trial, and progress"] -= work
        with clock.part("records and report at the end"):
            store.records(handle, sweep.trials)
            write_report(store, sweep.name, Path("reports"))
    rows = [
        *clock.seconds.items(),
        ("the harness's own, in all", sum(clock.seconds.values())),
        ("the trial's own work: making the network, ranking dev and test", work),
        ("MLflow (SQLite)", clock.mlflow),
    ]
    title = f"{trials:,} trials that do nothing, {os.cpu_count()} CPUs"
    table = Table("part", "ms a trial", title=title)
    for name, seconds in rows:
        table.add_row(name, f"{1000 * seconds / trials:.2f}")
    console.print(table)
    total = sum(clock.seconds.values()) + work + clock.mlflow
    console.print(
        f"{duration(total)}; memory after a fifth of the trials {memory[0]:.0f} MB, after all "
        f"{memory[-1]:.0f} MB"
    )


def _write_sweep(file: Path, trials: int) -> None:
    vocabulary = Path("words_vocab.json").absolute()
    Vocabulary.build(tiny_regions()["train"].captions, min_count=1).write(vocabulary)
    backbone = {
        "kind": "sgraf",
        "module": "SAF",
        "embed": 4,
        "similarity": 4,
        "word": 4,
        "vocabulary": str(vocabulary),
    }
    grid = {
        "method": ["harness.bench.overhead:Nothing"],
        "dataset": ["harness.bench.overhead:tiny_regions"],
        "noise_ratio": [0.2],
        "seed": list(range(trials)),
    }
    content = {"grid": grid, "fixed": {"backbone": backbone, "batch_size": 4, "epochs": 1}}
    file.write_text(yaml.safe_dump(content))


def _work(sweep: Sweep, data: dict[str, DataSet]) -> float:
    """Seconds of a trial's own work, the mean of `MEASURED` trials."""
    began = time.perf_counter()
    for trial in sweep.trials[:MEASURED]:
        loaded = data[data_key(trial)]
        build_trainer(trial, loaded, trial.noise_index(loaded), make_accelerator(trial.precision)).fit()
    return (time.perf_counter() - began) / len(sweep.trials[:MEASURED])


def _run(sweep: Sweep, task: Task, memory: list[float]) -> None:
    """Run all trials, show the progress to nobody, and note the memory after a fifth of them and
    after all.
    """
    progress = Progress(Board(sweep.trials), lambda trial: task.storage, lambda trial: None)
    noted = {len(sweep.trials) // 5, len(sweep.trials) - 1}
    ended = 0

    def on_end(ending: Ending) -> None:
        nonlocal ended
        assert ending.outcome == DONE, ending
        progress.ended(ending)
        if ended in noted:
            memory.append(_resident())
        ended += 1

    def on_start(trial: Trial) -> None:
        progress.started(trial)

    with open(os.devnull, "w") as nowhere:
        shown, console.file = console.file, nowhere
        try:
            InProcessLauncher().run(sweep.trials, task, on_start=on_start, on_end=on_end)
        finally:
            console.file = shown


def _resident() -> float:
    """MB that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
