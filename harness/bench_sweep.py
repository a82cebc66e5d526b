"""What a sweep costs beside its trials: thousands of trials of a method that does nothing, and the time that is neither MLflow's nor Ray's."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import yaml
from rich.table import Table

from harness.console import console
from harness.data import DataSet, Split
from harness.data.scan import Regions
from harness.data.vocabulary import Vocabulary
from harness.plan import duration
from harness.preflight import check_sweep, data_key
from harness.report.write import write_report
from harness.schedule import Finished, Task, _run_here
from harness.spec import load_sweep
from harness.sweep import _Progress
from harness.tracking import Store
from harness.trial import fingerprint
from methods.base import Method


class Nothing(Method):
    """Tests the network as it was made."""

    trains = False


@lru_cache
def data() -> DataSet:
    """Eight images of two regions with a caption each, in every split."""
    draw = np.random.default_rng(0)
    captions = [f"{word} thing" for word in ["one", "two", "three", "four", "five", "six", "seven", "eight"]]
    split = Split(Regions(draw.standard_normal((8, 2, 4)).astype(np.float32), np.arange(8)), captions, np.arange(8), np.arange(8))
    return DataSet("nothing", dict.fromkeys(("train", "dev", "test"), split), "nothing", distinct_groups=False)


class _Clock:
    """Wall time of parts, and of MLflow within them."""

    def __init__(self) -> None:
        self.of: dict[str, float] = {}
        self.mlflow = 0.0
        self._inside = 0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        began, before = time.perf_counter(), self.mlflow
        yield
        own = time.perf_counter() - began - (self.mlflow - before)
        self.of[name] = self.of.get(name, 0.0) + own

    def watch(self, cls: type) -> None:
        """Count the time of every public method of a class as MLflow's."""
        for name, function in list(vars(cls).items()):
            if callable(function) and (name == "__init__" or not name.startswith("_")):
                setattr(cls, name, self._timed(function))

    def _timed(self, function: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inside += 1
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._inside -= 1
                if not self._inside:
                    self.mlflow += time.perf_counter() - began

        return timed


def bench_sweep(trials: int) -> None:
    """Run a sweep's own parts one after another in this process, with a real store and without Ray; print what each costs a trial."""
    clock = _Clock()
    clock.watch(mlflow.MlflowClient)
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        Path("words_vocab.json").touch()
        Vocabulary.build(data()["train"].captions, min_count=1).write(Path("words_vocab.json"))
        backbone = {"kind": "sgraf", "module": "SAF", "embed": 4, "similarity": 4, "word": 4, "vocabulary": str(Path("words_vocab.json").absolute())}
        content = {
            "grid": {"method": ["harness.bench_sweep:Nothing"], "dataset": ["harness.bench_sweep:data"], "noise_ratio": [0.2], "seed": list(range(trials))},
            "fixed": {"backbone": backbone, "batch_size": 4, "epochs": 1},
        }
        Path("nothing.yaml").write_text(yaml.safe_dump(content))
        with clock.part("reading and checking the sweep"):
            sweep = load_sweep("nothing.yaml")
            errors, sets = check_sweep(sweep)
            assert not errors, errors
            expected = {t.id: fingerprint(t, sets[data_key(t)]) for t in sweep.trials}
        with clock.part("plan, and looking up what is done"):
            store = Store()
            opened = store.open_sweep(sweep)
            store.records(opened, sweep.trials)
        task = Task(opened, sweep.file.resources, expected, Path("storage").absolute(), os.getcwd(), since=time.time())
        shown = _Progress(trials, 0)
        memory = []
        for number, trial in enumerate(sweep.trials):
            with clock.part("the trial itself"):
                result = _run_here({"trial": trial.model_dump(mode="json")}, task)
            assert result["outcome"] == "done", result
            with clock.part("telling how far it is"), open(os.devnull, "w") as nowhere:
                console.file = nowhere
                shown.started(trial)
                shown.ended(Finished(trial, 0.0, **result))
                console.file = None  # type: ignore[assignment]
            if number in (trials // 5, trials - 1):
                memory.append(_resident())
        with clock.part("records and report at the end"):
            store.records(opened, sweep.trials)
            write_report(store, sweep.name, Path("reports"))
    table = Table("part", "own ms a trial", title=f"{trials:,} trials that do nothing, {os.cpu_count()} CPUs")
    for name, seconds in clock.of.items():
        table.add_row(name, f"{1000 * seconds / trials:.2f}")
    table.add_row("in all", f"{1000 * sum(clock.of.values()) / trials:.2f}")
    table.add_row("MLflow (sqlite)", f"{1000 * clock.mlflow / trials:.2f}")
    console.print(table)
    console.print(f"{duration(sum(clock.of.values()) + clock.mlflow)}; memory after a fifth of the trials {memory[0]:.0f} MB, after all {memory[-1]:.0f} MB")


def _resident() -> float:
    """MB that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
