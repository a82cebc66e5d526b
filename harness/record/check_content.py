"""What a bundle holds, as its checks need it: read once, and nothing of it believed."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.config.external import trial_type
from harness.config.search import read_result, result_file
from harness.config.sweep_file import BadInput, read_sweep_file
from harness.config.trial import Trial
from harness.data import load_dataset
from harness.data.base import DataSet
from harness.lib.files import is_file
from harness.lib.registry import UnknownName
from harness.record.lines import records_text
from harness.record.store import settings_of, trials_of
from harness.record.types import StoreError

SEARCH = "search"
"""The tag that names the search of a trial's settings."""
_NEEDED: dict[str, Any] = {
    **dict.fromkeys(("trial", "run", "status", "method", "dataset"), str),
    **dict.fromkeys(("tags", "parameters", "curves"), dict),
    "noise_ratio": int | float,
    "seed": int,
}
"""Fields of a line and their types."""


@dataclass
class Content:
    """What a bundle holds: its plan, planned trials by id, the last line of each trial.

    Attributes:
        methods: whether the methods' classes are here, which need PyTorch.
        classes: whether ids and facts were made anew by them.
        unknown: why they are not; empty also where they were not asked for.
        repeated: trials with several lines.
    """

    folder: Path
    plan: dict[str, Any]
    trials: dict[str, Trial]
    lines: dict[str, dict[str, Any]]
    methods: bool
    classes: bool
    unknown: str = ""
    repeated: Sequence[str] = ()

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
        return {i: d for i, d in found.items() if d is not None and not lacking_noise(self.trials[i])}

    @cached_property
    def taken(self) -> list[str]:
        """The searches that the sweep's file takes settings from."""
        if self.plan.get("external"):
            return []
        try:
            given = read_sweep_file(self.folder / "sweep.yaml")[0].get("settings_from")
        except BadInput:  # which is told where the file is compared with the plan
            return []
        return [given] if isinstance(given, str) else [str(name) for name in given or []]

    @cached_property
    def unknown_searches(self) -> list[str]:
        """Of these the ones that are not here as the plan names them, as notes: whether trials have the
        settings that they found is then not checked.
        """
        notes = []
        for tags in self.plan.get("settings_from") or []:
            name, digest = str(tags.get(SEARCH)), str(tags.get("search_digest"))
            try:
                here = read_result(name).digest
            except ValueError:
                here = ""
            if here != digest:
                which = f"of another state ({here})" if here else "not here"
                notes.append(
                    f"settings are from the search {name!r} ({digest}), and {result_file(name)} is {which}: "
                    "they are not checked"
                )
        return notes


def lacking_noise(trial: Trial) -> list[str]:
    """The files of its noise that are not here."""
    return [str(f) for f in trial.noise.files(trial.noise_ratio, trial.noise_seed) if not is_file(f)]


def read_content(folder: Path, *, ids: bool = True) -> Content:
    """What a folder holds.

    Args:
        ids: whether the ids of the plan are made anew.

    Raises:
        StoreError: it holds no bundle that can be read.
    """
    try:
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        lines = [json.loads(line) for line in records_text(folder).splitlines()]
        trials, unknown = _trials(plan, ids)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{folder} is no bundle: {' '.join(str(error).split())[:200]}") from None
    facts = plan.get("methods") or {}
    if not isinstance(facts, dict) or not all(isinstance(x, dict) for x in facts.values()):
        raise StoreError(f"{folder}: `methods` of plan.json are not the facts of methods by name")
    for number, line in enumerate(lines, 1):
        if field := _malformed(line):
            raise StoreError(f"{folder}: line {number} of its records: {field} is missing or malformed")
    counts = Counter(line["trial"] for line in lines)
    repeated = [trial for trial, count in counts.items() if count > 1]
    return Content(
        folder=folder,
        plan=plan,
        trials=trials,
        lines={x["trial"]: x for x in lines},
        methods=_has_methods(),
        classes=ids and not unknown,
        unknown=unknown,
        repeated=repeated,
    )


def _malformed(line: Any) -> str | None:
    """The first field of a line that is missing or of another type; None where all are as they should be."""
    if not isinstance(line, dict):
        return "trial"
    wrong = [k for k, kind in _NEEDED.items() if not isinstance(line.get(k), kind)]
    wrong += [k for k, value in line.items() if "/" in k and not isinstance(value, int | float)]
    curves = line["curves"] if "curves" not in wrong else {}
    wrong += [f"curves/{k}" for k, points in curves.items() if not _is_curve(points)]
    return next(iter(wrong), None)


def _is_curve(points: Any) -> bool:
    """Whether these are epochs with values."""
    return isinstance(points, list) and all(
        isinstance(point, list) and len(point) == 2 and all(isinstance(x, int | float) for x in point)
        for point in points
    )


def _trials(plan: Mapping[str, Any], ids: bool) -> tuple[dict[str, Trial], str]:
    """Planned trials by id, which is made anew where wanted and possible, and why it is not possible."""
    if not ids or not _has_methods():
        return {t.id: t for t in trials_of(plan)}, "" if not ids else "PyTorch is not here (extra `train`)"
    try:
        anew = [trial_type(plan).model_validate(settings) for settings in settings_of(plan)]
        return {t.id: t for t in anew}, ""
    except UnknownName as error:
        return {t.id: t for t in trials_of(plan)}, str(error)


def _has_methods() -> bool:
    """Whether the methods' classes can be loaded."""
    return importlib.util.find_spec("torch") is not None
