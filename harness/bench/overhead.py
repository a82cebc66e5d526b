"""What a sweep costs beside its trials: thousands of trials of a method that does nothing, and the time that
is neither MLflow's nor Ray's.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.table import Table

from harness.config.sweep_file import load_sweep
from harness.data.base import DataSet, Split
from harness.data.scan import Regions
from harness.data.vocabulary import Vocabulary
from harness.lib.console import console
from harness.record.store import MlflowClient, Store
from harness.report.write import write_report
from harness.sweep.__main__ import _Progress
from harness.sweep.plan import duration
from harness.sweep.preflight import check_sweep, data_key
from harness.sweep.schedule import Finished, Task, _run_here
from harness.training import run_trial as trial_module
from harness.training.run_trial import fingerprint
from harness.training.trainer import Trainer
from methods.base import Method

MLFLOW, WORK = "MLflow (sqlite)", "the trial's own work: making the network, ranking dev and test"


class Nothing(Method):
    """Tests the network as it was made."""

    trains = False


@lru_cache
def data() -> DataSet:
    """Eight images of two regions with a caption each, in every split."""
    draw = np.random.default_rng(0)
    captions = [f"{word} thing" for word in ["one", "two", "three", "four", "five", "six", "seven", "eight"]]
    split = Split(
        Regions(draw.standard_normal((8, 2, 4)).astype(np.float32), np.arange(8)),
        captions,
        np.arange(8),
        np.arange(8),
    )
    return DataSet(
        "nothing", dict.fromkeys(("train", "dev", "test"), split), "nothing", distinct_groups=False
    )


class _Clock:
    """Wall time of parts, each without the parts and the MLflow calls within it."""

    def __init__(self) -> None:
        self.of: dict[str, float] = {}
        self._open: list[float] = []

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        if name == MLFLOW and self._open and self._open[-1] < 0:  # one call of MLflow's within another
            yield
            return
        began = time.perf_counter()
        self._open.append(-1e-12 if name == MLFLOW else 0.0)
        try:
            yield
        finally:
            took = time.perf_counter() - began
            self.of[name] = self.of.get(name, 0.0) + took - max(0.0, self._open.pop())
            if self._open and self._open[-1] >= 0:
                self._open[-1] += took

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Count the time of a function to a part."""
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(part):
                return function(*args, **kwargs)

        setattr(owner, name, timed)


def bench_sweep(trials: int) -> None:
    """Run a sweep's own parts one after another in this process, with a real store and without Ray; print
    what each costs a trial.
    """
    clock = _Clock()
    for name in [
        n for n, f in vars(MlflowClient).items() if callable(f) and (n == "__init__" or not n.startswith("_"))
    ]:
        clock.watch(MlflowClient, name, MLFLOW)
    clock.watch(trial_module, "build_trainer", WORK)
    clock.watch(Trainer, "fit", WORK)
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        Path("words_vocab.json").touch()
        Vocabulary.build(data()["train"].captions, min_count=1).write(Path("words_vocab.json"))
        backbone = {
            "kind": "sgraf",
            "module": "SAF",
            "embed": 4,
            "similarity": 4,
            "word": 4,
            "vocabulary": str(Path("words_vocab.json").absolute()),
        }
        content = {
            "grid": {
                "method": ["harness.bench.overhead:Nothing"],
                "dataset": ["harness.bench.overhead:data"],
                "noise_ratio": [0.2],
                "seed": list(range(trials)),
            },
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
        task = Task(
            opened, sweep.file.resources, expected, Path("storage").absolute(), os.getcwd(), since=time.time()
        )
        shown = _Progress(trials, 0)
        memory = []
        for number, trial in enumerate(sweep.trials):
            with clock.part("around a trial"):
                result = _run_here({"trial": trial.model_dump_json()}, task)
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
    table = Table("part", "ms a trial", title=f"{trials:,} trials that do nothing, {os.cpu_count()} CPUs")
    own = {name: seconds for name, seconds in clock.of.items() if name not in (MLFLOW, WORK)}
    for name, seconds in [
        *own.items(),
        ("our own, in all", sum(own.values())),
        (WORK, clock.of[WORK]),
        (MLFLOW, clock.of[MLFLOW]),
    ]:
        table.add_row(name, f"{1000 * seconds / trials:.2f}")
    console.print(table)
    console.print(
        f"{duration(sum(clock.of.values()))}; memory after a fifth of the trials {memory[0]:.0f} MB, after "
        f"all {memory[-1]:.0f} MB"
    )


def _resident() -> float:
    """MB that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
