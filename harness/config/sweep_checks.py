"""What is wrong with a sweep file as a whole, before any trial is made of it: keys, axes, searches, and the
search that its settings are from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from harness import PROTOCOL_VERSION
from harness.config.search import (
    LEAST_OWN_STAGE,
    Search,
    SearchResult,
    own_stage,
    read_result,
    search_of,
    shared_settings,
)
from harness.config.trial import Trial, method_class
from harness.lib.registry import UnknownName, suggest
from methods import METHODS

if TYPE_CHECKING:
    from harness.config.sweep_file import SweepFile

MOST_TRIALS = 100_000
"""The most trials of a sweep: more is a mistake or an attack."""
TRIAL_KEYS = tuple(k for k in Trial.model_fields if k != "hyper")
"""Fields of a trial that a sweep file may set."""
_AXES_OF_ALL = ("method", "dataset", "noise", "noise_ratio", "noise_granularity", "seed", "noise_seed")
"""What all methods of a grid share: comparisons are paired by them (`docs/protocol.md`)."""
_OTHER_NAMES = {"learning_rate": "lr"}
_OF_ALL = "is an axis of the whole grid, not of one method (grid may be a list of grids)"

Value = TypeVar("Value")


class Errors(list[str]):
    """Collects the errors of a file."""

    def collect(self, call: Callable[[], Value]) -> Value | None:
        """The value of a call; None where it does not know a name, which becomes an error."""
        try:
            return call()
        except UnknownName as error:
            self.append(str(error))
            return None


def methods_of(grid: Mapping[str, list[Any]], fixed: Mapping[str, Any]) -> list[Any]:
    """The methods of a grid, or the one that is fixed."""
    listed: list[Any] = grid.get("method", [fixed["method"]] if "method" in fixed else [])
    return listed


def check_file(file: SweepFile, errors: Errors) -> None:
    """Report what is wrong with a file before any trial is made."""
    if file.name == "Default":
        errors.append("name = 'Default': MLflow keeps this name for itself")
    if not file.grid:
        errors.append("grid = []: expected at least one grid")
    for number, grid in enumerate(file.grid):
        _check_grid(grid, file.fixed, f"grid[{number}]" if len(file.grid) > 1 else "grid", errors)
    for name in file.methods:
        errors.collect(lambda name=name: method_class(name))  # type: ignore[misc]
    _check_keys(file, errors)
    if file.search:
        _check_search(file, file.search, errors)
    if file.reference is not None and file.reference not in file.methods:
        near = suggest(file.reference, [str(m) for m in file.methods])
        errors.append(f"reference = {file.reference!r}: no such method in the grid{near}")
    count = sum(_count(grid, file) for grid in file.grid) * (file.search.tries if file.search else 1)
    if count > MOST_TRIALS:
        errors.append(f"grid: {count:,} trials, and a sweep has at most {MOST_TRIALS:,}")


def _count(grid: Mapping[str, list[Any]], file: SweepFile) -> int:
    """How many trials a grid has, at most: axes of a method multiply its own trials alone."""
    methods = [str(m) for m in grid.get("method", [file.fixed.get("method")])]
    lengths = [(split_key(key), len(values)) for key, values in grid.items() if key != "method"]
    return sum(math.prod(n for (owner, _), n in lengths if owner in ("", m)) for m in methods)


def _check_grid(grid: Mapping[str, list[Any]], fixed: Mapping[str, Any], where: str, errors: Errors) -> None:
    for key in ("method", "dataset", "noise_ratio", "seed"):
        if key not in grid and key not in fixed:
            errors.append(f"{where}: {key} is missing (a list of at least one value)")
    for key, values in grid.items():
        if not values:
            errors.append(f"{where}.{key} = []: expected at least one value")
        elif len({repr(v) for v in values}) < len(values):
            errors.append(f"{where}.{key} = {values}: it has a duplicate value")
        if key in fixed:
            errors.append(f"{key} is set both in {where} and in fixed")


def _check_keys(file: SweepFile, errors: Errors) -> None:
    """Keys of grids, of `fixed` and of `overrides`: a known field, or a field of a method of the grid."""
    methods = [str(m) for m in file.methods]
    searched = file.search.space if file.search else {}
    for key in [*(k for grid in file.grid for k in grid), *file.fixed, *searched]:
        method, name = split_key(key)
        if method and method not in methods:
            errors.append(f"key {key!r}: no method {method!r} in the grid{suggest(method, methods)}")
        elif name == "hyper" or (not method and name not in TRIAL_KEYS):
            errors.append(
                f"unknown key {key!r}{suggest_key(key, TRIAL_KEYS)} (hyper-parameters are given as "
                "METHOD.KEY, or in overrides)"
            )
        elif method and name in _AXES_OF_ALL:
            errors.append(f"{key!r}: {name} {_OF_ALL}")
    for method, settings in file.overrides.items():
        if method not in methods:
            errors.append(f"overrides {method!r}: no method {method!r} in the grid{suggest(method, methods)}")
        errors += [f"overrides {method!r}: {name} {_OF_ALL}" for name in _AXES_OF_ALL if name in settings]
        if "hyper" in settings:
            errors.append(f"overrides {method!r}: its hyper-parameters stand here by name, without 'hyper'")


def _check_search(file: SweepFile, search: Search, errors: Errors) -> None:
    """What is wrong with a search: keys that are set elsewhere too, methods that do not train."""
    if file.settings_from:
        errors.append("settings_from: a search cannot have the settings of another one")
    for method in map(str, file.methods):
        ranges = search.ranges(method)
        if not ranges:
            errors.append(f"search.space: it has no key for {method}")
        if method in METHODS and not method_class(method).trains:
            errors.append(f"search: {method} does not train, so there is nothing to search")
        if "lr" in ranges and ranges["lr"].log_uniform is None:
            errors.append(f"search.space: lr of {method} must be log_uniform, so that an edge can be told")
        errors += [
            f"{method}.{key} is set both in search.space and {where}"
            for where, key in _set_keys(file, method)
            if key in ranges
        ]
    errors += [
        f"search.space.{k}: it is an axis of the whole grid" for k in search.space if k in _AXES_OF_ALL
    ]
    errors += [
        f"grid: a search has no axis {key!r}, for a try has one setting: put it into search.space or fixed"
        for key in dict.fromkeys(k for grid in file.grid for k in grid)
        if key not in (*_AXES_OF_ALL, "dataset_options")
    ]
    if search.asha and file.resources.processes > 1:
        errors.append(
            f"search.asha stops trials of one process only, and resources.processes = "
            f"{file.resources.processes}"
        )


def _set_keys(file: SweepFile, method: str) -> list[tuple[str, str]]:
    """Where a file sets keys for a method: (place, key)."""
    places: list[tuple[str, Iterable[str]]] = [("in fixed", file.fixed)]
    places += [("in the grid", grid) for grid in file.grid]
    found = [
        (where, name)
        for where, keys in places
        for owner, name in map(split_key, keys)
        if owner in ("", method)
    ]
    return found + [("in overrides", key) for key in file.overrides.get(method, {})]


def found_settings(file: SweepFile, errors: Errors) -> tuple[SearchResult, ...]:
    """The searches that `settings_from` names, as far as they can be taken from; errors are collected."""
    results = []
    for name in file.settings_from:
        try:
            results.append(read_result(name))
        except ValueError as error:
            errors.append(str(error))
    if not file.settings_from or errors:
        return tuple(results)
    for result in results:
        _check_result(file, result, errors)
    for method in map(str, file.methods):
        owners = [result.name for result in results if method in result.winners]
        if len(owners) > 1:
            errors.append(f"settings_from: {method} was searched by {' and by '.join(owners)}")
        if not owners and not (method in METHODS and not method_class(method).trains):
            known = ", ".join(m for result in results for m in result.winners)
            names = ", ".join(file.settings_from)
            errors.append(f"settings_from = {names}: no settings of {method} (there are: {known})")
    return tuple(results)


def _check_result(file: SweepFile, found: SearchResult, errors: Errors) -> None:
    """What keeps a search, or its best settings of the file's methods, from being taken."""
    where = f"settings_from = {found.name!r}"
    if found.protocol_version != PROTOCOL_VERSION:
        errors.append(
            f"{where}: it is of protocol version {found.protocol_version}, and this is {PROTOCOL_VERSION}"
        )
    missing = ", ".join(f"{count} of {method}" for method, count in found.missing.items() if count)
    if missing:
        errors.append(
            f"{where}: the search is incomplete; of {found.tries} tries each there are missing: {missing}"
        )
    for method in map(str, file.methods):
        winner = found.winners.get(method)
        if winner is None:
            continue
        if "lr" in winner.at_edge:
            errors.append(
                f"{where}: the best lr of {method}, {winner.settings['lr']:g}, lies at an edge of its range "
                f"({found.space_of(method)['lr']}): widen it, and search again"
            )
        varied = _varied(file, method)
        errors += [
            f"{where}: {method}.{key} is set {place} too, and the search has chosen it"
            for place, key in _set_keys(file, method)
            if key in winner.settings and (place != "in the grid" or key not in varied)
        ]


def check_searched(
    file: SweepFile, found: Sequence[SearchResult], trials: Sequence[Trial], errors: Errors
) -> None:
    """What trials do not share with the search that their settings are from."""
    seeds = {t.seed for t in trials} | {t.noise_seed for t in trials}
    for result in found:
        if shared := sorted(seeds & set(result.seeds)):
            errors.append(
                f"settings_from = {result.name!r}: it has chosen on seeds {', '.join(map(str, shared))}, "
                "which the sweep has too"
            )
    for trial in {(t.method, t.cell_id): t for t in trials}.values():
        search = search_of(found, trial.method)
        if search is None:
            continue
        winner = search.winners[trial.method]
        chosen = trial.hyper.get("warmup_epochs") == winner.settings.get("warmup_epochs")
        if chosen and (share := own_stage(trial)) < LEAST_OWN_STAGE:  # of a search from before that rule
            errors.append(
                f"settings_from = {search.name!r}: the best setting of {trial.method} is hardly more than a "
                f"warm-up: {trial.hyper['warmup_epochs']} of {trial.epochs} epochs leave {share:.1%} of the "
                f"summed learning rate, and {LEAST_OWN_STAGE:.0%} are asked for: search again"
            )
        varied = _varied(file, trial.method)
        ours = shared_settings(trial, search.space_of(trial.method), varied)
        theirs = winner.others
        short = trial.method.rpartition(":")[2]
        errors += [
            f"settings_from = {search.name!r}: {trial.method} was searched with {key} = {value}, and has "
            f"{ours.get(key, 'another kind of setting')} here"
            for key, value in theirs.items()
            if ours.get(key) != value
            and key.removeprefix(f"{short}.") not in varied
            # A search may have had several data sets: `check_searched_data` holds it to theirs.
            and key != "dataset"
        ]


def _varied(file: SweepFile, method: str) -> set[str]:
    """The keys that a grid varies for a method, with several values."""
    return {
        name
        for grid in file.grid
        for key, values in grid.items()
        for owner, name in [split_key(key)]
        if owner in ("", method) and len(values) > 1
    }


def split_key(key: str) -> tuple[str, str]:
    """`METHOD.KEY` as method and key; a key of all methods has no method."""
    method, _, name = key.rpartition(".")
    return method, name


def suggest_key(key: str, allowed: Iterable[str]) -> str:
    """`suggest`, which also knows a key by the name that other projects give it."""
    return suggest(_OTHER_NAMES.get(key, key), allowed)
