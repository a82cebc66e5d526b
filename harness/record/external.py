"""External rows as bundles: `results/SWEEP/external/METHOD/`, with the same fields as those of our trials.

A row is imported whole or not at all, and stands beside its sweep where data, noise and protocol version are
the same.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness import PROTOCOL_VERSION
from harness.config.external import ExternalRow, ExternalTrial, read_row
from harness.config.sweep_file import BadInput
from harness.config.trial import Trial
from harness.data import load_dataset
from harness.data.base import DataError, DataSet
from harness.lib.files import RESULTS
from harness.lib.registry import UnknownName, suggest
from harness.record.arrays import save_arrays, smallest
from harness.record.bundle import Bundle, record_line
from harness.record.external_files import Result, read_results
from harness.record.provenance import git_commit
from harness.record.recorder import split_ranks
from harness.record.store import divided, sweep_of_plan
from harness.record.types import MethodFacts, StoreError, SweepRecord, TrialRecord

# Reading -------------------------------------------------------------------------------------------


def external_bundles(folder: Path) -> list[Bundle]:
    """The external rows beside a sweep, by the folder of its bundle, in alphabetical order."""
    plans = sorted((folder / "external").glob("[!.]*/plan.json"))  # a dot: an import that was killed
    return [Bundle(plan.parent.name, plan.parent) for plan in plans]


def facts_of(trial: ExternalTrial) -> MethodFacts:
    """What a reader of a table must know of an external row."""
    return MethodFacts(trial.uses_clean_data, uses_ground_truth=False, published=())


def misfits(row: SweepRecord, sweep: SweepRecord) -> list[str]:
    """Why an external row cannot stand beside a sweep; empty where it can."""
    reasons = []
    if sweep.select:
        reasons.append("the sweep is a search, which has no test results")
    if row.protocol_version != sweep.protocol_version:
        versions = f"{row.protocol_version}, and the sweep of {sweep.protocol_version}"
        reasons.append(f"it is of protocol version {versions}")
    seeds = {(t.seed, t.noise_seed) for t in sweep.planned}
    if len({s for s, _ in seeds}) < len(seeds) > len({n for _, n in seeds}):
        reasons.append("the sweep crosses seeds with noise seeds, and a row has one index for each seed")
    ours = {t.method.rpartition(":")[2] for t in sweep.planned}
    reasons += [f"a method of the sweep is called {m}, too" for m in sorted(set(row.methods) & ours)]
    return [*reasons, *_other_grid(row, sweep), *_other_data(row, sweep)]


def _other_grid(row: SweepRecord, sweep: SweepRecord) -> Iterator[str]:
    places = {_place(t): t for t in sweep.planned}
    for key, trial in {_place(t): t for t in row.planned}.items():
        if key not in places:
            there = "; ".join(_named(t) for t in places.values())
            yield f"it is of {_named(trial)}, and the sweep of {there}"
            return
    planned = {_point(t) for t in sweep.planned}
    other = [f"noise {t.noise_ratio:g} seed {t.seed}" for t in row.planned if _point(t) not in planned]
    if other:
        yield f"the sweep has no trial of {', '.join(other[:3])}{' and others' if len(other) > 3 else ''}"


def _other_data(row: SweepRecord, sweep: SweepRecord) -> Iterator[str]:
    """Versions of the data, and noise indices, that are not those of the sweep's finished trials."""
    known: dict[tuple[str, str], str] = {}
    for record in sweep.records.values():
        if record.done:
            known["data", _place(record.trial)] = record.tags.get("data_fingerprint", "?")
            known["noise", _point(record.trial)] = record.tags.get("noise_digest", "?")
    told = set()
    for record in row.records.values():
        for what, key, tag in (
            ("data", _place(record.trial), "data_fingerprint"),
            ("noise", _point(record.trial), "noise_digest"),
        ):
            own, theirs = record.tags.get(tag, "?"), known.get((what, key))
            name = "data are of version" if what == "data" else "noise index is"
            if theirs is not None and own != theirs and (what, own) not in told:
                told.add((what, own))
                yield f"its {name} {own}, and that of the sweep {theirs}"


def _place(trial: Trial) -> str:
    """Data set and noise."""
    fields = {"dataset", "dataset_options", "noise", "noise_granularity"}
    return json.dumps(trial.model_dump(mode="json", include=fields), sort_keys=True)


def _named(trial: Trial) -> str:
    return f"{trial.dataset_label} {trial.dataset_options or ''}, {trial.noise_label}".replace(" ,", ",")


def _point(trial: Trial) -> str:
    return f"{_place(trial)} {trial.noise_ratio:g} {trial.seed} {trial.noise_seed}"


# Importing -----------------------------------------------------------------------------------------


def import_row(file: Path, results: Path = RESULTS) -> tuple[Path, list[str]]:
    """Make the bundle of an external row from its file; an earlier one of the row is replaced.

    Args:
        results: the directory of bundles.

    Returns:
        The bundle's directory, and notes on what was put right in the files of the row.

    Raises:
        BadInput: with everything that is wrong; nothing was written.
        OSError: it cannot be written; an earlier bundle is as it was.
    """
    row, text = read_row(file)
    beside = Bundle(row.sweep, results / row.sweep)
    try:
        sweep = beside.sweep() if beside.exists else None
    except StoreError as error:
        raise BadInput([str(error)]) from None
    trials = row.trials(sweep.planned if sweep else ())
    data = _load(trials[0])
    made, faults, notes = read_results(row, trials, data)
    if row.data_fingerprint not in (None, data.fingerprint):
        faults.insert(
            0,
            f"data_fingerprint = {row.data_fingerprint!r}: the data here are of version {data.fingerprint}",
        )
    records = [_record(row, result, data) for result in made]
    plan = _plan(row, trials)
    if sweep:
        known = {r.trial.id: r for r in records}
        faults += [
            f"beside sweep {row.sweep!r}: {reason}"
            for reason in misfits(sweep_of_plan(row.method, plan, lambda _: known), sweep)
        ]
    if faults:
        raise BadInput(faults)
    if sweep is None:
        names = [plan.parent.name for plan in results.glob("*/plan.json")]
        notes.append(
            f"there is no sweep {row.sweep!r} in {results}: the row stands in no table until there is"
            f"{suggest(row.sweep, names)}"
        )
    folder = beside.folder / "external" / row.method
    _replace(folder, lambda new: _write(new, text, plan, list(zip(records, made, strict=True)), data))
    return folder, notes


def _load(trial: ExternalTrial) -> DataSet:
    try:
        return load_dataset(trial.dataset, **trial.dataset_options)
    except (DataError, UnknownName, TypeError) as error:
        raise BadInput([f"data set {trial.dataset!r}: {error}"]) from None


def _plan(row: ExternalRow, trials: tuple[ExternalTrial, ...]) -> dict[str, Any]:
    """The plan of a row, as `harness.record.store.plan_of` makes that of a sweep."""
    return {
        "name": row.method,
        "description": row.description,
        "external": True,
        "select": False,
        "protocol_version": PROTOCOL_VERSION,
        "methods": {row.method: vars(facts_of(trials[0]))},
        "ids": [t.id for t in trials],
        **divided([t.facts() for t in trials]),
    }


def _record(row: ExternalRow, result: Result, data: DataSet) -> TrialRecord:
    """The record of a trial, with the names of ours; what is not known of the program is left out."""
    trial, noise = result.trial, result.noise
    measured = {f"{part}/{k}": v for part in trial.parts for k, v in result.found["test"].metrics.items()}
    metrics, _ = split_ranks(measured)
    dev = result.found["dev"].metrics["rsum"]
    metrics |= {"dev/best_rsum": dev} | ({"dev/rsum": dev} if trial.epoch == "last" else {})
    metrics |= {} if noise.matched is None else {"noise/realised_ratio": noise.realised}
    cost = row.cost.model_dump(exclude_none=True, exclude={"device"})
    metrics |= {f"cost/{k}": float(v) for k, v in cost.items()}
    metrics["cost/networks_at_test"] = float(trial.networks)
    tags = {
        "trial_id": trial.id,
        "external": "true",
        "protocol_version": str(PROTOCOL_VERSION),
        "data_fingerprint": trial.fingerprint(data),
        "noise_digest": noise.digest,
        "noise_granularity": noise.granularity,
        "noise_model": noise.model,
        "uses_clean_data": str(trial.uses_clean_data).lower(),
        "uses_ground_truth": "false",
        "imported_with": git_commit(),
    }
    tags |= {"device": row.cost.device} if row.cost.device else {}
    return TrialRecord(trial, f"external-{trial.id}", "FINISHED", metrics, tags)


def _replace(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder beside the one that is there, and exchange the two when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    new, old = temporary / "new", temporary / "old"
    try:
        new.mkdir()
        write(new)
        try:
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        except BaseException:  # also Ctrl-C: the former row must not go with the temporary folder
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(
    folder: Path, text: str, plan: dict[str, Any], made: Sequence[tuple[TrialRecord, Result]], data: DataSet
) -> None:
    """The files of a bundle; the row's file takes the place of the sweep's."""
    (folder / "plan.json").write_text(json.dumps(plan, indent=0) + "\n", encoding="utf-8")
    (folder / "row.yaml").write_text(text, encoding="utf-8")
    lines = [json.dumps(record_line(record, {})) + "\n" for record, _ in made]
    (folder / "records.jsonl").write_text("".join(lines), encoding="utf-8")
    for record, result in made:
        save_arrays(folder / "arrays" / f"{record.trial.id}.npz", _arrays(result, data))
        matched = {} if result.noise.matched is None else {"matched": result.noise.matched}
        index = {"image": smallest(result.noise.image), **matched}
        save_arrays(folder / "noise" / f"{result.noise.digest}.npz", index)


def _arrays(result: Result, data: DataSet) -> dict[str, np.ndarray]:
    """Ranks and groups of all queries of dev, and of test for each part that the trial has."""
    arrays: dict[str, np.ndarray] = {}
    for part in ("dev", *result.trial.parts):
        split = "dev" if part == "dev" else "test"
        found = result.found[split]
        ranks = {**found.i2t.arrays("i2t"), **found.t2i.arrays("t2i")}
        kept = {k: v for k, v in ranks.items() if not k.endswith("_top")}
        kept |= {"i2t_group": data[split].image_group, "t2i_group": data[split].caption_group}
        arrays |= {f"{part}/{k}": smallest(v) for k, v in kept.items()}
    return arrays
