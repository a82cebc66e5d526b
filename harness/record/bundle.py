"""Bundles: the records of a sweep as plain files, from which its report can be made, and its trials restored,
without the store.

`results/SWEEP/` holds `records.jsonl` (a line for each trial that is over: metrics, tags, parameters and
curves over epochs; of many trials `records.jsonl.gz` while none is added), `arrays/TRIAL.npz`, packed when
the sweep is complete (ranks of all test queries, the last confidence; of the first seed the captions that
images rank first, and diagnostics),
`queries/FINGERPRINT.npz` (groups of the test queries), `noise/DIGEST.npz` (noise indices), `plan.json`,
`sweep.yaml` and `environment.json`; a search has `search.json` and no arrays; `repeated.json` notes which
trials were run again.
A trial is appended when it has ended, so that a directory under version control can be committed in parts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness import PROTOCOL_VERSION
from harness.config.trial import Trial
from harness.lib.files import RESULTS, STORAGE, atomic_write
from harness.lib.locks import acquire
from harness.record.arrays import coarse, read_arrays, save_arrays, smallest
from harness.record.lines import Lines
from harness.record.provenance import PACKAGES
from harness.record.repeated import Repetition, read_repetitions, repetitions_text
from harness.record.store import Store, settings_of, sweep_of_plan, trials_of
from harness.record.trial_arrays import TrialArrays
from harness.record.types import (
    RESTORED,
    WITHOUT_ARRAYS,
    Incomplete,
    StoreError,
    SweepHandle,
    SweepRecord,
    TrialRecord,
)

_CURVES = (
    "dev/rsum",
    "train/loss",
    "detection/auroc",
    "detection/mean_matched",
    "detection/mean_mismatched",
    "detection/ece",
    "trained_on/share",
    "trained_on/purity",
    "seconds/train",
)
"""Metrics whose values of all epochs are kept: what figures show and what a verification asks for."""
_REPEATED = "repeated.json"
_FILES = (
    "plan.json",
    "sweep.yaml",
    "row.yaml",  # of an external row
    "records.jsonl",
    "records.jsonl.gz",
    "environment.json",
    "search.json",
    _REPEATED,
)
_FOLDERS = ("arrays", "noise", "queries")
_ENVIRONMENT = (*PACKAGES, "python", "device", "precision", "processes", "threads", "git_commit", "code")


def bundle_files(folder: Path) -> list[Path]:
    """The files of a bundle, without external rows, which are bundles of their own. Links are none."""
    files = [folder / name for name in _FILES]
    files += [file for name in _FOLDERS for file in sorted((folder / name).glob("*.npz"))]
    return [file for file in files if file.is_file() and not file.is_symlink()]


class Bundle:
    """The plain files of a sweep.

    Args:
        name: of the sweep.
        folder: where it is (default: `results/NAME` in the working directory).
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        self.name, self.folder = name, folder or RESULTS / name
        self._lines, self._arrays = Lines(self.folder), TrialArrays(self.folder / "arrays")
        self._runs: dict[str, dict[str, Any]] = {}

    @property
    def exists(self) -> bool:
        """Whether there is such a bundle."""
        return (self.folder / "plan.json").is_file()

    def sweep_name(self) -> str:
        """The name of the sweep that its plan is of. Raises StoreError where the plan cannot be read."""
        try:
            return str(self._plan()["name"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self.folder} cannot be read: {' '.join(str(error).split())[:200]}") from None

    def _plan(self) -> dict[str, Any]:
        """Its plan. Raises OSError or ValueError where it cannot be read."""
        plan: dict[str, Any] = json.loads((self.folder / "plan.json").read_text(encoding="utf-8"))
        return plan

    # Writing

    def describe(self, plan: Mapping[str, Any], text: str) -> None:
        """Write the plan and the text of the sweep file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write("plan.json", json.dumps(plan, indent=0))
        self._write("sweep.yaml", text)

    def add(self, store: Store, records: Iterable[TrialRecord], *, arrays: bool = True) -> None:
        """Append trials that are over: done, failed or stopped early.

        Args:
            arrays: whether ranks, confidence and noise indices are kept (not of a search).
        """
        with self.locked():
            known = self._lines.read()
            new = [r for r in records if r.over and not _is_kept(r, known.get(r.trial.id))]
            for record in new:
                if arrays and record.done:
                    self._add_arrays(store, record)
            self._lines.append(record_line(r, self._curves(store, r) if r.done else {}) for r in new)

    def close(self) -> None:
        """Write the file of environments, leave one line of each trial, of many trials compressed, and pack
        the arrays where all trials are done.

        Raises:
            OSError: a file cannot be written.
            StoreError: the plan, a record or an array cannot be read.
        """
        with self.locked():
            lines, plan = self._lines.read(), self._plan()
            self._write("environment.json", json.dumps(_environments(lines.values()), indent=1))
            self._lines.tidy()
            done = {i for i, line in lines.items() if line["status"] == "FINISHED"}
            if done >= set(plan["ids"]):  # in the plan's order: the same files however trials ended
                self._arrays.pack([*plan["ids"], *sorted(done - set(plan["ids"]))])

    def note_repeated(self, repetition: Repetition) -> None:
        """Note that a trial was run again. It replaces what was noted of it in the same environment; notes
        on records that are no more are dropped.

        Raises:
            StoreError: the file of notes cannot be read.
        """
        with self.locked():
            kept = [r for r in self.repeated() if not r.replaced_by(repetition)]
            self._write(_REPEATED, repetitions_text([*kept, repetition]))

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Holds the bundle for one process at a time."""
        return acquire(STORAGE.parent / "bundles" / self.name, wait=True)

    def _curves(self, store: Store, record: TrialRecord) -> dict[str, list[tuple[int, float]]]:
        """Values of all epochs of the metrics that are kept so, with their epochs."""
        return {
            key: sorted(dict(store.client.history(record.run_id, key)).items())
            for key in _CURVES
            if key in record.metrics
        }

    def _add_arrays(self, store: Store, record: TrialRecord) -> None:
        first = record.trial.seed == self._first_seed()
        arrays = self._ranks(store, record, first)
        files = store.client.artifacts(record.run_id, "confidence")
        if files:
            found = store.read_array(record.run_id, files[-1])
            kept = dict(found) if first else {}
            kept["confidence"] = coarse(found["confidence"])  # a diagnostic may need all of its digits
            arrays |= {f"{Path(files[-1]).stem}/{k}": v for k, v in kept.items()}
        self._arrays.save(record.trial.id, arrays)
        noise = self._noise_file(record.tags["noise_digest"])
        if not noise.exists():
            index = dict(store.read_array(record.run_id, "noise_index.npz"))
            index["image"] = smallest(index["image"])
            save_arrays(noise, index)

    def _ranks(self, store: Store, record: TrialRecord, first: bool) -> dict[str, np.ndarray]:
        """What is kept of a trial's ranks: those of the epoch that dev selects only where they are not the
        last epoch's, and the groups of the test queries, which all trials share, in a file of their own.
        """
        last, test = (
            {k: smallest(v) for k, v in store.read_array(record.run_id, f"{epoch}_rankings.npz").items()}
            for epoch in ("last", "test")
        )
        groups = {k: v for k, v in last.items() if k.endswith("_group")}
        if not (queries := self._queries_file(record.tags["data_fingerprint"])).exists():
            save_arrays(queries, groups)
        last, test = ({k: v for k, v in ranks.items() if k not in groups} for ranks in (last, test))
        selected = {k: v for k, v in test.items() if not k.endswith("_top")}
        if all(np.array_equal(last[k], v) for k, v in selected.items()):
            selected = {}
        shown = {k: v for k, v in last.items() if first or not k.endswith("_top")}
        return {f"last/{k}": v for k, v in shown.items()} | {f"test/{k}": v for k, v in selected.items()}

    def _first_seed(self) -> int:
        """The lowest seed of the plan: the best candidates of its trials are what a report shows."""
        return min(int(settings["seed"]) for settings in settings_of(self._plan()))

    def _write(self, name: str, text: str) -> None:
        with atomic_write(self.folder / name, "w") as stream:
            stream.write(text + "\n")

    # Reading

    def _line_of(self, run: str) -> dict[str, Any]:
        if run not in self._runs:
            self._runs = {line["run"]: line for line in self._lines.read().values()}
        return self._runs[run]

    def sweep(self) -> SweepRecord:
        """Plan and records.

        Raises:
            StoreError: there is no bundle, or it cannot be read.
        """
        try:
            plan = self._plan()
            return sweep_of_plan(self.name, plan, self.records)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self.folder} cannot be read: {' '.join(str(error).split())[:200]}") from None

    def planned(self, text: str) -> tuple[Trial, ...] | None:
        """The trials of its plan, if it was made from a file of this text under this protocol version."""
        try:
            if (self.folder / "sweep.yaml").read_text(encoding="utf-8").rstrip("\n") != text.rstrip("\n"):
                return None
            plan = self._plan()
        except (OSError, ValueError):
            return None
        return trials_of(plan) if plan["protocol_version"] == PROTOCOL_VERSION else None

    def planned_version(self) -> int | None:
        """The protocol version that its plan was made under; None where no plan can be read."""
        try:
            return int(self._plan()["protocol_version"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def records(self, trials: Iterable[Trial]) -> dict[str, TrialRecord]:
        """What it holds of these trials, by id."""
        lines = self._lines.read()
        return {
            t.id: TrialRecord(t, line["run"], line["status"], _metrics(line), dict(line["tags"]))
            for t in trials
            if (line := lines.get(t.id))
        }

    def line_digest(self, trial_id: str) -> str:
        """The SHA-256 of the line of a trial; empty where it has none."""
        line = self._lines.read().get(trial_id)
        return hashlib.sha256(json.dumps(line).encode()).hexdigest() if line else ""

    def repeated(self) -> list[Repetition]:
        """What is noted of trials that were run again; not what is noted of another line than the present
        one.

        Raises:
            StoreError: the file of notes is malformed.
        """
        noted = read_repetitions(self.folder / _REPEATED)
        return [r for r in noted if r.record == self.line_digest(r.trial)]

    def curve(self, run: str, metric: str) -> dict[int, float]:
        """Values of a metric by epoch; empty where it was not kept."""
        return {int(epoch): value for epoch, value in self._line_of(run)["curves"].get(metric, [])}

    def names(self, run: str, directory: str) -> list[str]:
        """Paths of the arrays in a directory of a run. Raises StoreError where its file cannot be read."""
        if directory != "confidence":
            return []
        names = [name.partition("/")[0] for name in self._arrays.names(self._line_of(run)["trial"])]
        epochs = {name for name in names if name.startswith("epoch_")}
        return sorted(f"confidence/{epoch}.npz" for epoch in epochs)

    def read(self, run: str, path: str) -> dict[str, np.ndarray]:
        """The arrays of a run under the path that they have in the store. Raises StoreError without them."""
        line = self._line_of(run)
        part = Path(path).stem.removesuffix("_rankings")
        if path == "noise_index.npz":
            arrays = read_arrays(self._noise_file(line["tags"]["noise_digest"]))
        elif path.endswith("_rankings.npz"):
            arrays = self.rankings(line["trial"], part)
        else:
            arrays = self._arrays.read(line["trial"], f"{part}/")
        if not arrays:
            raise StoreError(f"{self.folder} has no {path} of run {run}")
        return arrays

    def array_files(self) -> dict[Path, list[str]]:
        """The files of `arrays/`, with the trials that each holds. Raises StoreError for a damaged file."""
        return self._arrays.files()

    def rankings(self, trial_id: str, part: str) -> dict[str, np.ndarray]:
        """The ranks that a trial has of a part (`last`, `test`, or `dev` of an external row), with the groups
        of the queries; empty where it has none. Raises StoreError where a file cannot be read.
        """
        ranks = self._arrays.read(trial_id, f"{part}/")
        if not ranks and part == "test":  # the last epoch is the best on dev
            ranks = self._arrays.read(trial_id, "last/")
        queries = self._queries_file(self._lines.read()[trial_id]["tags"]["data_fingerprint"])
        if ranks and part != "dev" and not any(name.endswith("_group") for name in ranks):
            return {**read_arrays(queries), **ranks}
        return ranks

    def _queries_file(self, fingerprint: str) -> Path:
        return self.folder / "queries" / f"{fingerprint}.npz"

    def _noise_file(self, digest: str) -> Path:
        return self.folder / "noise" / f"{digest}.npz"

    def restore(self, store: Store, handle: SweepHandle, trials: Iterable[Trial]) -> int:
        """Make runs in the store of the trials that it lacks and the bundle has. Returns their number.

        A restored run has the tag `restored_from`, and of its confidence the last epoch's. Trials that had
        failed are left to be tried again; those that a search has stopped stay stopped.

        Raises:
            Incomplete: arrays of one cannot be read.
        """
        trials = list(trials)
        with self.locked():
            there = store.records(handle, trials)
            kept = [r for r in self.records(trials).values() if r.done or r.stopped_early]
            missing = [r for r in kept if _lacks(there.get(r.trial.id), r)]
            bare = bool(missing and self._plan().get("select"))
            for record in missing:
                # Read before there is a run, which would stay without an end.
                self._restore(store, handle, record, {} if bare else self._kept_arrays(record))
        return len(missing)

    def _restore(
        self,
        store: Store,
        handle: SweepHandle,
        record: TrialRecord,
        arrays: Mapping[str, Mapping[str, np.ndarray]],
    ) -> None:
        bare = {} if arrays else {WITHOUT_ARRAYS: "yes"}
        tags = {**record.tags, RESTORED: str(self.folder), **bare}
        run_id = store.create_run(handle, record.trial, tags)
        curves = {key: self.curve(record.run_id, key) for key in self._line_of(record.run_id)["curves"]}
        store.client.log_curves(run_id, curves)
        store.client.log(run_id, metrics={k: v for k, v in record.metrics.items() if k not in curves})
        for path, content in arrays.items():
            store.write_array(run_id, path, **content)
        store.client.set_status(run_id, record.status)

    def _kept_arrays(self, record: TrialRecord) -> dict[str, dict[str, np.ndarray]]:
        """The arrays of a trial under the paths that they have in the store. Raises Incomplete."""
        try:
            paths = ["last_rankings.npz", "test_rankings.npz", "noise_index.npz"]
            paths += self.names(record.run_id, "confidence")
            return {path: self.read(record.run_id, path) for path in paths}
        except StoreError as error:
            raise Incomplete(
                f"trial {record.trial.id} cannot be restored from {self.folder}: {error} (get the file back, "
                "or move the folder away, so that its trials are run again)"
            ) from None


def _is_kept(record: TrialRecord, line: Mapping[str, Any] | None) -> bool:
    """Whether a bundle has a line of a trial that a record adds nothing to: one of a finished trial, or the
    line that the record was restored from.
    """
    return line is not None and (line["status"] == "FINISHED" or RESTORED in record.tags)


def _lacks(stored: TrialRecord | None, kept: TrialRecord) -> bool:
    """Whether a bundle has more of a trial than the store: results, or how it ended, that are not there."""
    return stored is None or (not stored.done if kept.done else not stored.over)


def record_line(record: TrialRecord, curves: Mapping[str, list[tuple[int, float]]]) -> dict[str, Any]:
    """The line of a trial in `records.jsonl`."""
    trial = record.trial
    return {
        "trial": trial.id,
        "run": record.run_id,
        "status": record.status,
        "method": trial.method,
        "dataset": trial.dataset,
        "noise_ratio": trial.noise_ratio,
        "seed": trial.seed,
        **{k: v for k, v in sorted(record.metrics.items()) if not k.startswith("seconds/")},
        "tags": {k: v for k, v in record.tags.items() if not k.startswith("mlflow.")},
        "parameters": {k: str(v) for k, v in trial.parameters().items()},
        "curves": dict(curves),
    }


def _metrics(line: Mapping[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in line.items() if "/" in k}


def _environments(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each distinct environment with the number of trials that ran in it."""
    counts = Counter(json.dumps({k: line["tags"].get(k, "") for k in _ENVIRONMENT}) for line in lines)
    return [{**json.loads(key), "trials": count} for key, count in counts.items()]
