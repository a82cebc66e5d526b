"""Whether a bundle is what it claims to be, without trusting it: what can be made anew is made anew."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness import PROTOCOL_VERSION
from harness.config.external import ExternalTrial, read_row
from harness.config.sweep_file import BadInput, parse_sweep, read_sweep_file
from harness.config.trial import Trial
from harness.evaluation.metrics import RECALLS
from harness.record.bundle import Bundle, bundle_files
from harness.record.check_content import Content, lacking_noise, read_content
from harness.record.check_data import (
    data_errors,
    noise_errors,
    parts,
    ranking_errors,
)
from harness.record.check_files import file_errors
from harness.record.check_search import claim_errors, found_errors
from harness.record.external import external_bundles, facts_of, misfits
from harness.record.types import STOPPED_EARLY, MethodFacts, StoreError
from methods import METHODS

_IDENTITY = ("method", "dataset", "noise_ratio", "seed")
_GIVEN = ("uses_clean_data", "uses_ground_truth")
_OVER = ("FINISHED", "FAILED")
_SHOWN = 3
NO_RECORD = "no record"
"""How the error begins that names planned trials without a record."""


def check_bundle(folder: Path, *, ids: bool = True) -> tuple[list[str], list[str]]:
    """What is wrong with a bundle, and notes on what could not be checked.

    Checked are: plan, trial ids, the sweep file and what the plan says of methods, each line against its
    trial, that no trial is missing, fingerprints of the data, noise indices (made anew), recalls (from the
    ranks), the best epoch on dev, what a search found, and the external rows beside a sweep. What was
    measured on the way (dev, losses, detection, cost) cannot be made anew without running trials again.
    Without PyTorch, which the methods' classes need, ids, facts of methods and what a search found are not
    checked; without the data set, fingerprints and noise are held against each other and the files alone.

    Args:
        ids: whether the ids of the plan are made anew too, which loads the classes of its methods, and torch.

    Raises:
        StoreError: the folder holds no bundle that can be read.
    """
    content = read_content(folder, ids=ids)
    errors = [*_plan_errors(content), *_line_errors(content)]
    missing = [t for i, t in content.trials.items() if i not in content.lines]
    errors += _several(
        NO_RECORD, [f"{t.id} ({t.method} noise {t.noise_ratio:g} seed {t.seed})" for t in missing]
    )
    checks = (
        file_errors,
        _plan_file_errors,
        _fact_errors,
        _metric_errors,
        data_errors,
        noise_errors,
        ranking_errors,
        found_errors,
        claim_errors,
        _external_errors,
    )
    for check in checks:
        errors += check(content)
    failed = [f"{i} ({x['method']})" for i, x in content.lines.items() if x["status"] == "FAILED"]
    notes = _several("failed", failed)
    notes += dict.fromkeys(_unchecked(content).values())
    notes += content.unknown_searches
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
        notes.append(
            f"{content.unknown}: trial ids, facts of methods and what a search found are not checked"
        )
    return errors, notes


def unchecked_trials(folder: Path) -> dict[str, str]:
    """What of trials is not checked since their data are not here, by id. Raises what `check_bundle` does."""
    return _unchecked(read_content(folder, ids=False))


def _unchecked(content: Content) -> dict[str, str]:
    return {
        i: f"{_absent(trial)} not here: fingerprint and noise are not checked"
        for i, trial in content.trials.items()
        if i not in content.data
    }


def _absent(trial: Trial) -> str:
    """What of a trial's data is not here."""
    files = lacking_noise(trial)
    return f"noise of {', '.join(files)} is" if files else f"data set {trial.dataset_label!r} is"


def _repeated_notes(content: Content) -> Iterator[str]:
    """What is noted of trials that were run again. Raises StoreError where the notes are malformed."""
    notes = Bundle(content.folder.name, content.folder).repeated()
    equal = {note.trial for note in notes if note.equal}
    if equal:
        yield f"noted as run again, with the same numbers to the last bit: {len(equal)} trials"
    for note in notes:
        if not note.equal:
            yield f"{note.trial}: run again on {note.when:%Y-%m-%d}, it gave other numbers: " + "; ".join(
                note.differences[:_SHOWN]
            )


def _plan_errors(content: Content) -> Iterator[str]:
    version = content.plan.get("protocol_version")
    if version != PROTOCOL_VERSION:
        yield f"it is of protocol version {version}, and this is {PROTOCOL_VERSION}"
    if content.plan.get("ids") != list(content.trials):
        yield "the ids of plan.json are not those of its trials"


def _plan_file_errors(content: Content) -> Iterator[str]:
    """The file that the plan was made from says the same: whether it is a search and which, and the trials;
    where settings are from elsewhere (a search that is not here, or what Optuna was told) which methods, data
    sets, ratios and seeds they are of.
    """
    name = "row.yaml" if content.plan.get("external") else "sweep.yaml"
    file = content.folder / name
    try:
        if not file.is_file():
            yield f"{name} is missing"
        elif content.plan.get("external"):
            yield from _row_errors(content, file)
        else:
            given, text = read_sweep_file(file)
            if bool(content.plan.get("select")) != bool(given.get("select") or given.get("search")):
                yield f"{name} and plan.json do not agree on whether settings are selected"
            if content.classes:
                yield from _sweep_errors(content, given, text)
    except BadInput as error:
        yield f"{name}: {'; '.join(error.errors)[:300]}"


def _sweep_errors(content: Content, given: dict[str, Any], text: str) -> Iterator[str]:
    taken = given.pop("settings_from", None)
    planned = parse_sweep(given, text=text)
    search = planned.file.search
    if content.plan.get("search") != (search and search.model_dump(mode="json")):
        yield "sweep.yaml says other things of the search than plan.json"
    known = bool(taken) and not content.unknown_searches
    if known:
        planned = parse_sweep({**given, "settings_from": taken}, text=text)
    elsewhere = (taken and not known) or (search and search.sampler == "optuna")
    what: Callable[[Trial], Any] = _point if elsewhere else lambda trial: trial.id
    if set(map(what, planned.trials)) != set(map(what, content.trials.values())):
        yield "sweep.yaml plans other trials than plan.json"


def _point(trial: Trial) -> tuple[Any, ...]:
    return tuple(getattr(trial, k) for k in _IDENTITY)


def _beside(content: Content) -> Bundle:
    """The bundle of the sweep that an external row stands beside."""
    folder = content.folder.resolve().parents[1]
    return Bundle(folder.name, folder)


def _row_errors(content: Content, file: Path) -> Iterator[str]:
    """The trials of an external row, and what they cost, are those of its file."""
    row, _ = read_row(file)
    beside = _beside(content)
    if row.grid is not None or beside.exists:
        trials = row.trials(() if row.grid is not None else beside.sweep().planned)
        if {t.id for t in trials} != set(content.trials):
            yield f"{file.name} says other things of the row than plan.json"
    cost = {f"cost/{k}": v for k, v in row.cost.model_dump(exclude={"device"}).items()}
    for i, line in content.done.items():
        other = [k for k, v in cost.items() if line.get(k) != v]  # None: not known, and not on record
        if other:
            yield f"{i}: {', '.join(other)} is not that of {file.name}"


def _fact_errors(content: Content) -> Iterator[str]:
    """What the plan says of a method is what its class says; a line says the same, and has the networks of
    its trial.
    """
    plan = content.plan.get("methods") or {}
    if content.classes and not content.plan.get("external"):
        for name in dict.fromkeys(t.method for t in content.trials.values()):
            now, told = vars(MethodFacts.of(name)), plan.get(name) or {}
            other = [k for k in (*_GIVEN, "family") if told.get(k) != now[k]]
            if other:
                yield f"plan.json says of {name} another {' and '.join(other)} than its class"
    for i, line in content.done.items():
        trial = content.trials[i]
        facts = plan.get(trial.method) or {}
        told = {k: str(facts.get(k)).lower() for k in _GIVEN}
        other = [k for k in _GIVEN if line["tags"].get(k, told[k]) != told[k]]
        if other:
            yield f"{i}: {' and '.join(other)} is not what plan.json says of {trial.method}"
        alone = 1 if trial.method in METHODS else None  # of which a method of the user's may have its own
        networks = (
            trial.networks if isinstance(trial, ExternalTrial) else trial.hyper.get("n_networks", alone)
        )
        if networks is not None and line.get("cost/networks_at_test") != networks:
            yield f"{i}: cost/networks_at_test is not the number of networks of the trial"


def _line_errors(content: Content) -> Iterator[str]:
    """Each line says of its trial what the plan says."""
    yield from _several("several lines of one trial", list(content.repeated))
    unplanned = [i for i in content.lines if i not in content.trials]
    yield from _several("not in the plan", unplanned)
    for i, line in content.lines.items():
        if i not in content.trials:
            continue
        told = {k: str(v) for k, v in content.trials[i].parameters().items()}
        other = [k for k in told if line["parameters"].get(k) != told[k]]
        other += [k for k in _IDENTITY if line[k] != getattr(content.trials[i], k)]
        given = line["tags"]
        other += [k for k, v in _told_by_tags(content.trials[i]).items() if given.get(k, v) != v]
        if other:
            yield f"{i}: {', '.join(other[:_SHOWN])} are not those of the trial"
        version = line["tags"].get("protocol_version")
        if version != str(PROTOCOL_VERSION):
            yield f"{i}: it is of protocol version {version}"
        if line["status"] not in _OVER and STOPPED_EARLY not in line["tags"]:
            yield f"{i}: its status is {line['status']}, and a bundle holds trials that are over"


def _told_by_tags(trial: Trial) -> dict[str, str]:
    """What tags say of a trial beside its parameters."""
    told = {"trial_id": trial.id}
    if trial.noise_ratio:  # without noise an index has no kind
        told |= {"noise_granularity": trial.noise_granularity, "noise_model": trial.noise.model}
    return told


def _metric_errors(content: Content) -> Iterator[str]:
    """Recalls are percentages whose sum is rSum, a metric is the last of its curve, and the best epoch on dev
    is the best.
    """
    for i, line in content.done.items():
        for part in (*parts(content.trials[i]), *(("dev",) if "dev/i2t_r1" in line else ())):
            values = [line.get(f"{part}/{m}", math.nan) for m in RECALLS]
            total = line.get(f"{part}/rsum", math.nan)
            if not (all(0 <= v <= 100 for v in values) and math.isclose(sum(values), total, abs_tol=1e-9)):
                yield f"{i}: {part}/rsum is {total}, and the six recalls are {values}"
        for key, curve in line["curves"].items():
            if curve and line.get(key, curve[-1][1]) != curve[-1][1]:
                yield f"{i}: {key} is {line[key]}, and the last of its curve {curve[-1][1]}"
        dev = {int(epoch): value for epoch, value in line["curves"].get("dev/rsum", [])}
        best = line.get("dev/best_rsum")
        if dev and (max(dev.values()) != best or dev.get(int(line.get("dev/best_epoch", -1))) != best):
            yield f"{i}: dev/best_rsum {best} is not the best of its curve"


def _external_errors(content: Content) -> Iterator[str]:
    """Of an external row: what its plan says of it, its rSum on dev, and whether it fits its sweep."""
    if not content.plan.get("external"):
        return
    folder = content.folder.resolve()
    told = {t.method: vars(facts_of(t)) for t in content.trials.values() if isinstance(t, ExternalTrial)}
    if list(told) != [folder.name]:
        yield f"its folder is {folder.name!r}, and its trials are of {', '.join(map(repr, told))}"
    if content.plan.get("select") or content.plan.get("search"):
        yield "its plan.json is one of a search"
    if json.loads(json.dumps(told)) != content.plan.get("methods"):
        yield "plan.json says other things of the method than its trials"
    beside = _beside(content)
    if beside.exists:
        yield from misfits(Bundle(folder.name, folder).sweep(), beside.sweep())


def _several(what: str, items: list[str]) -> list[str]:
    """One line for many items of a kind."""
    if not items:
        return []
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return [f"{what}: {', '.join(items[:_SHOWN])}{more}"]


def summary(folder: Path) -> str:
    """One line about a bundle: its trials by status, its size, and the states of the code that made them."""
    content = read_content(folder)
    counts = Counter(line["status"].lower() for line in content.lines.values())
    told = ", ".join(f"{n} {status}" for status, n in counts.items())
    of_program = sorted({t.source.commit for t in content.trials.values() if isinstance(t, ExternalTrial)})
    codes = of_program or sorted({line["tags"].get("git_commit", "?")[:7] for line in content.lines.values()})
    beside = [bundle.name for bundle in external_bundles(folder)]
    rows = f"; external rows {', '.join(beside)}" if beside else ""
    size = sum(file.stat().st_size for file in bundle_files(folder)) / 1e6
    return f"{folder}: {len(content.trials)} planned, {told}; {size:.1f} MB; commits {', '.join(codes)}{rows}"
