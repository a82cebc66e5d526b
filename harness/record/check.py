"""Whether a bundle is what it claims to be, without trusting it: what can be made anew is made anew."""

from __future__ import annotations

import importlib.util
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from harness import PROTOCOL_VERSION
from harness.config.external import ExternalTrial, trial_type
from harness.config.trial import Trial
from harness.data import load_dataset
from harness.data.base import DataSet
from harness.evaluation.metrics import RECALLS, Ranking, recalls
from harness.lib.files import is_file
from harness.lib.registry import UnknownName
from harness.noise.index import NoiseIndex
from harness.record.arrays import read_arrays
from harness.record.bundle import Bundle
from harness.record.external import external_bundles, facts_of, misfits
from harness.record.store import trials_of
from harness.record.tries import result_of
from harness.record.types import StoreError

_IDENTITY = ("method", "dataset", "noise_ratio", "seed")
_NEEDED = ("run", "status", "tags", "parameters", "curves", *_IDENTITY)
_SHOWN = 3
NO_RECORD = "no record"
"""How the error begins that names planned trials without a record."""


@dataclass
class _Content:
    """What a bundle holds: its plan, planned trials by id, the last line of each trial, and why ids were not
    made anew (empty where they were).
    """

    folder: Path
    plan: dict[str, Any]
    trials: dict[str, Trial]
    lines: dict[str, dict[str, Any]]
    unknown: str = ""

    @cached_property
    def done(self) -> dict[str, dict[str, Any]]:
        """Lines of finished trials that are planned."""
        return {i: x for i, x in self.lines.items() if x["status"] == "FINISHED" and i in self.trials}

    @cached_property
    def data(self) -> dict[str, DataSet]:
        """Data sets by trial id; trials whose data set or noise files are not here are left out."""
        loaded: dict[str, DataSet | None] = {}
        for trial in self.trials.values():
            key = f"{trial.dataset} {trial.dataset_options}"
            if key not in loaded:
                try:
                    loaded[key] = load_dataset(trial.dataset, **trial.dataset_options)
                except Exception:  # a data set of the user's own can raise anything
                    loaded[key] = None
        found = {i: loaded[f"{t.dataset} {t.dataset_options}"] for i, t in self.trials.items()}
        return {i: d for i, d in found.items() if d is not None and not _lacking_noise(self.trials[i])}


def check_bundle(folder: Path, *, ids: bool = True) -> tuple[list[str], list[str]]:
    """What is wrong with a bundle, and notes on what could not be checked.

    Checked are: plan and trial ids, each line against its trial, that no trial is missing, fingerprints of
    the data, noise indices (made anew), recalls (from the ranks), the best epoch on dev, what a search found,
    the external rows beside a sweep, and the notes on trials that were run again.
    Without PyTorch, which the methods' classes need, ids and what a search found are not checked.

    Args:
        ids: whether the ids of the plan are made anew too, which loads the classes of its methods, and torch.

    Raises:
        StoreError: the folder holds no bundle that can be read.
    """
    content = _read(folder, ids=ids)
    errors = [*_plan_errors(content), *_line_errors(content)]
    missing = [t for i, t in content.trials.items() if i not in content.lines]
    errors += _several(
        NO_RECORD, [f"{t.id} ({t.method} noise {t.noise_ratio:g} seed {t.seed})" for t in missing]
    )
    checks = (
        _metric_errors,
        _data_errors,
        _noise_errors,
        _ranking_errors,
        _search_errors,
        _external_errors,
    )
    for check in checks:
        errors += check(content)
    absent = {_absent(t): None for i, t in content.trials.items() if i not in content.data}
    notes = [f"{what} not here: fingerprint and noise are not checked" for what in absent]
    try:
        notes += _repeated_notes(content)
    except StoreError as error:
        errors.append(str(error))
    for bundle in external_bundles(folder):
        try:
            wrong, said = check_bundle(bundle.folder, ids=ids)
        except StoreError as error:
            wrong, said = [str(error)], []
        errors += [f"external/{bundle.name}: {text}" for text in wrong]
        notes += [f"external/{bundle.name}: {text}" for text in said]
    if content.unknown:
        notes.append(f"{content.unknown}: trial ids and what a search found are not checked")
    return errors, notes


def _has_methods() -> bool:
    """Whether the methods' classes can be loaded."""
    return importlib.util.find_spec("torch") is not None


def _read(folder: Path, *, ids: bool = True) -> _Content:
    try:
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        text = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
        lines = [json.loads(line) for line in text]
        trials, unknown = _trials(plan, ids)
        bad = next((i for i, x in enumerate(lines, 1) if any(k not in x for k in ("trial", *_NEEDED))), None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{folder} is no bundle: {' '.join(str(error).split())[:200]}") from None
    if bad:
        raise StoreError(f"{folder}: line {bad} of records.jsonl lacks a field")
    return _Content(folder, plan, trials, {x["trial"]: x for x in lines}, unknown)


def _trials(plan: Mapping[str, Any], ids: bool) -> tuple[dict[str, Trial], str]:
    """Planned trials by id, which is made anew where wanted and possible, and why it is not possible."""
    if not ids or not _has_methods():
        return {t.id: t for t in trials_of(plan)}, "" if not ids else "PyTorch is not here (extra `train`)"
    try:
        anew = [trial_type(plan).model_validate(content) for content in plan["trials"]]
        return {t.id: t for t in anew}, ""
    except UnknownName as error:
        return {t.id: t for t in trials_of(plan)}, str(error)


def _lacking_noise(trial: Trial) -> list[str]:
    """The files of its noise that are not here."""
    return [str(f) for f in trial.noise.files(trial.noise_ratio, trial.noise_seed) if not is_file(f)]


def _absent(trial: Trial) -> str:
    """What of a trial's data is not here."""
    files = _lacking_noise(trial)
    return f"noise of {', '.join(files)} is" if files else f"data set {trial.dataset_label!r} is"


def _repeated_notes(content: _Content) -> Iterator[str]:
    """What is noted of trials that were run again. Raises StoreError where the notes are malformed."""
    notes = Bundle(content.folder.name, content.folder).repeated()
    equal = {note.trial for note in notes if note.equal}
    if equal:
        yield f"run again, with the same numbers to the last bit: {len(equal)} trials"
    for note in notes:
        if not note.equal:
            yield f"{note.trial}: run again on {note.when:%Y-%m-%d}, it gave other numbers: " + "; ".join(
                note.differences[:_SHOWN]
            )


def _plan_errors(content: _Content) -> Iterator[str]:
    version = content.plan.get("protocol_version")
    if version != PROTOCOL_VERSION:
        yield f"it is of protocol version {version}, and this is {PROTOCOL_VERSION}"
    if content.plan.get("ids") != list(content.trials):
        yield "the ids of plan.json are not those of its trials"
    file = "row.yaml" if content.plan.get("external") else "sweep.yaml"
    if not (content.folder / file).is_file():
        yield f"{file} is missing"


def _line_errors(content: _Content) -> Iterator[str]:
    """Each line says of its trial what the plan says."""
    unplanned = [i for i in content.lines if i not in content.trials]
    yield from _several("not in the plan", unplanned)
    for i, line in content.lines.items():
        if i not in content.trials:
            continue
        told = {k: str(v) for k, v in content.trials[i].parameters().items()}
        other = [k for k in told if line["parameters"].get(k) != told[k]]
        other += [k for k in _IDENTITY if line[k] != getattr(content.trials[i], k)]
        if other:
            yield f"{i}: {', '.join(other[:_SHOWN])} are not those of the trial"
        version = line["tags"].get("protocol_version")
        if version != str(PROTOCOL_VERSION):
            yield f"{i}: it is of protocol version {version}"


def _metric_errors(content: _Content) -> Iterator[str]:
    """Recalls are percentages whose sum is rSum, and the best epoch on dev is the best."""
    for i, line in content.done.items():
        for part in _parts(content.trials[i]):
            values = [line.get(f"{part}/{m}", math.nan) for m in RECALLS]
            total = line.get(f"{part}/rsum", math.nan)
            if not (all(0 <= v <= 100 for v in values) and math.isclose(sum(values), total, abs_tol=1e-9)):
                yield f"{i}: {part}/rsum is {total}, and the six recalls are {values}"
        dev = {int(epoch): value for epoch, value in line["curves"].get("dev/rsum", [])}
        best = line.get("dev/best_rsum")
        if dev and (max(dev.values()) != best or dev.get(int(line.get("dev/best_epoch", -1))) != best):
            yield f"{i}: dev/best_rsum {best} is not the best of its curve"


def _data_errors(content: _Content) -> Iterator[str]:
    for i, line in content.done.items():
        if i in content.data:
            now, then = content.trials[i].fingerprint(content.data[i]), line["tags"].get("data_fingerprint")
            if now != then:
                yield f"{i}: it is of version {then} of the data, and here they are {now}"


def _noise_errors(content: _Content) -> Iterator[str]:
    """The index of each trial is the one that data set, model, ratio and seed give."""
    made: dict[str, NoiseIndex] = {}
    for i, line in content.done.items():
        trial = content.trials[i]
        if i not in content.data:
            continue
        key = f"{trial.dataset_options} {trial.dataset} {trial.noise} {trial.noise_granularity} " + (
            f"{trial.noise_ratio} {trial.noise_seed}"
        )
        if key not in made:
            try:
                made[key] = trial.noise_index(content.data[i])
            except ValueError as error:
                yield f"{i}: its noise index cannot be made: {error}"
                continue
            yield from _stored_noise_errors(content, made[key])
        told, digest = line["tags"].get("noise_digest"), made[key].digest
        if told != digest:
            yield f"{i}: its noise index is {told}, and should be {digest}"


def _stored_noise_errors(content: _Content, noise: NoiseIndex) -> Iterator[str]:
    """The file of a noise index, where the bundle keeps arrays."""
    if content.plan.get("select"):
        return
    file = content.folder / "noise" / f"{noise.digest}.npz"
    try:
        if not np.array_equal(read_arrays(file)["image"], noise.image):
            yield f"noise/{file.name} holds another index than its name says"
    except (StoreError, KeyError) as error:
        yield f"noise/{file.name} cannot be read: {error}"


def _ranking_errors(content: _Content) -> Iterator[str]:
    """Recalls made anew from the ranks, against those on record; groups against those of the data."""
    if content.plan.get("select"):
        return
    bundle = Bundle(content.folder.name, content.folder)
    for i, line in content.done.items():
        try:
            yield from (
                f"{i}: {text}" for text in _of_ranks(content.trials[i], line, bundle, content.data.get(i))
            )
        except (StoreError, ValueError, KeyError) as error:
            yield f"{i}: its arrays cannot be read: {' '.join(str(error).split())[:120]}"


def _parts(trial: Trial) -> tuple[str, ...]:
    """What a trial has test results of: the last epoch, and the one that is selected on dev."""
    return trial.parts if isinstance(trial, ExternalTrial) else ("last", "test")


def _ranked(trial: Trial) -> tuple[str, ...]:
    """What a bundle keeps ranks of: the same, and of an external row dev."""
    return (*_parts(trial), *(("dev",) if isinstance(trial, ExternalTrial) else ()))


def _of_ranks(trial: Trial, line: Mapping[str, Any], bundle: Bundle, data: DataSet | None) -> Iterator[str]:
    for part in _ranked(trial):
        own = bundle.rankings(trial.id, part)
        split = "dev" if part == "dev" else "test"
        if data is not None:
            groups = {"i2t_group": data[split].image_group, "t2i_group": data[split].caption_group}
            if not all(np.array_equal(own[k], v) for k, v in groups.items()):
                yield f"the groups of {part} are not those of the {split} split"
                continue
        found = recalls(Ranking.of(own, "i2t"), Ranking.of(own, "t2i"))
        told = (
            {f"{part}/{m}": m for m in (*RECALLS, "rsum")} if split == "test" else {"dev/best_rsum": "rsum"}
        )
        wrong = [k for k, m in told.items() if not math.isclose(found[m], line[k], abs_tol=1e-9)]
        if wrong:
            yield f"{wrong[0]} is {line[wrong[0]]}, and its ranks give {found[told[wrong[0]]]}"


def _search_errors(content: _Content) -> Iterator[str]:
    """What a search found, from its records."""
    if not content.plan.get("search") or content.unknown or not _has_methods():
        return
    bundle = Bundle(content.folder.name, content.folder)
    try:
        kept = json.loads((content.folder / "search.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield f"search.json cannot be read: {error}"
        return
    if kept != json.loads(result_of(bundle.sweep()).model_dump_json(exclude_none=True)):
        yield "search.json is not what the records of the search say"


def _external_errors(content: _Content) -> Iterator[str]:
    """Of an external row: what its plan says of it, its rSum on dev, and whether it fits its sweep."""
    if not content.plan.get("external"):
        return
    folder = content.folder.resolve()
    told = {t.method: vars(facts_of(t)) for t in content.trials.values() if isinstance(t, ExternalTrial)}
    if list(told) != [folder.name]:
        yield f"its folder is {folder.name!r}, and its trials are of {', '.join(map(repr, told))}"
    if json.loads(json.dumps(told)) != content.plan.get("methods"):
        yield "plan.json says other things of the method than its trials"
    for i, line in content.done.items():
        trial = content.trials[i]
        if isinstance(trial, ExternalTrial) and line.get("cost/networks_at_test") != trial.networks:
            yield f"{i}: cost/networks_at_test is not the number of networks of the trial"
    beside = Bundle(folder.parents[1].name, folder.parents[1])
    if beside.exists:
        yield from misfits(Bundle(folder.name, folder).sweep(), beside.sweep())


def _several(what: str, items: list[str]) -> list[str]:
    """One line for many items of a kind."""
    if not items:
        return []
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return [f"{what}: {', '.join(items[:_SHOWN])}{more}"]


def summary(folder: Path) -> str:
    """One line about a bundle: its trials by status, and the states of the code that made them."""
    content = _read(folder)
    counts = Counter(line["status"].lower() for line in content.lines.values())
    told = ", ".join(f"{n} {status}" for status, n in counts.items())
    of_program = sorted({t.source.commit for t in content.trials.values() if isinstance(t, ExternalTrial)})
    codes = of_program or sorted({line["tags"].get("git_commit", "?")[:7] for line in content.lines.values()})
    beside = [bundle.name for bundle in external_bundles(folder)]
    rows = f"; external rows {', '.join(beside)}" if beside else ""
    return f"{folder}: {len(content.trials)} planned, {told}; commits {', '.join(codes)}{rows}"
