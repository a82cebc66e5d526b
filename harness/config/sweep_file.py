"""Sweep files: from YAML to a validated sweep, and from a sweep to trials with hash ids.

A sweep names its grid (or several, as a list), fixed settings, overrides for single methods, and the
resources of a trial. A key is a field of a trial (`lr`, `noise_ratio`, ...), or `METHOD.KEY` for a field or a
hyper-parameter of one method. All errors of a file are reported before anything starts.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import Field, ValidationError, field_validator

from harness.backbones import BACKBONES, DEFAULT, backbone_setup
from harness.config.base import StrictModel
from harness.config.hyper import admits_bool, hyper_model
from harness.config.plain_yaml import MOST_BYTES, read_yaml
from harness.config.resources import Resources
from harness.config.trial import Trial, method_class
from harness.lib.registry import UnknownName, resolve, suggest
from harness.noise.models import MODELS, NoiseModel

MOST_TRIALS = 100_000
"""The most trials of a sweep: more is a mistake or an attack."""
BASELINE = "clip"
"""The method that a report compares the others with, unless a sweep names another: the field's baseline."""
TRIAL_KEYS = tuple(k for k in Trial.model_fields if k != "hyper")
"""Fields of a trial that a sweep file may set."""
_AXES_OF_ALL = ("method", "dataset", "noise", "noise_ratio", "noise_granularity", "seed", "noise_seed")
"""What all methods of a grid share: comparisons are paired by them (`docs/protocol.md`)."""
_NOISE_FIELDS = {m.model_fields["model"].default: m.model_fields for m in get_args(get_args(NoiseModel)[0])}
_OTHER_NAMES = {"learning_rate": "lr"}
# Settings of backbones that a method which differentiates twice cannot have, and why.
_DIFFERENTIATED_ONCE = {
    "checkpointing": "differentiates through replaced parameters, which a backward pass that computes "
    "activations again misses",
    "compile": "differentiates through a gradient, and what is compiled can be differentiated once",
}
_OF_ALL = "is an axis of the whole grid, not of one method (grid may be a list of grids)"

Value = TypeVar("Value")


class BadInput(ValueError):
    """All errors of an input, one text for each."""

    def __init__(self, errors: list[str]) -> None:
        self.errors = list(dict.fromkeys(errors))
        super().__init__("; ".join(self.errors))


class _Errors(list[str]):
    """Collects the errors of a file."""

    def collect(self, call: Callable[[], Value]) -> Value | None:
        """The value of a call; None where it does not know a name, which becomes an error."""
        try:
            return call()
        except UnknownName as error:
            self.append(str(error))
            return None


class SweepFile(StrictModel):
    """The top level of a sweep file.

    Attributes:
        grid: one grid, or a list of grids whose trials are put together; a trial in several of them counts
            once.
        reference: the method that the report compares the others with (default: `clip`, or the first).
        select: whether the sweep is a search: its report then names the setting with the best dev rSum of
            each method, and leaves test out.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
    description: str = ""
    grid: list[dict[str, list[Any]]]
    fixed: dict[str, Any] = Field(default_factory=dict)
    overrides: dict[str, dict[str, Any]] = Field(default_factory=dict)
    resources: Resources = Resources()
    reference: str | None = None
    select: bool = False

    @field_validator("grid", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, Mapping) else value

    @property
    def methods(self) -> list[Any]:
        """The methods of all grids, in their order."""
        listed = [m for grid in self.grid for m in _methods(grid, self.fixed)]
        return [m for i, m in enumerate(listed) if m not in listed[:i]]


class Sweep(StrictModel):
    """A validated sweep: its file, its trials in the order of the grid, and the text of the file."""

    file: SweepFile
    trials: tuple[Trial, ...]
    text: str

    @property
    def name(self) -> str:
        """The name of the sweep, and of its experiment."""
        return self.file.name


def load_sweep(path: str | Path) -> Sweep:
    """Read and expand a sweep file.

    Raises:
        BadInput: with all errors of the file, each naming the field, the value and what is allowed.
    """
    content, text = read_sweep_file(path)
    return parse_sweep(content, text=text)


def read_sweep_file(path: str | Path) -> tuple[dict[str, Any], str]:
    """The content of a sweep file with its name, not yet validated, and its text.

    Raises:
        BadInput: the file is missing, is no YAML mapping, or cannot be read.
    """
    path = Path(path)
    try:
        with open(path, "rb") as stream:
            text = stream.read(MOST_BYTES + 1).decode("utf-8-sig")
        content = read_yaml(text)
    except FileNotFoundError:
        files = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        near = suggest(path.name, files) if path.parent.is_dir() else ""
        raise BadInput([f"sweep file {path} does not exist{near}"]) from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BadInput([f"sweep file {path} cannot be read: {' '.join(str(error).split())}"]) from None
    if not isinstance(content, dict):
        raise BadInput([f"sweep file {path}: expected a mapping with a grid, found {type(content).__name__}"])
    return {"name": path.stem, **content}, text


def parse_sweep(content: Mapping[str, Any], *, text: str = "") -> Sweep:
    """Expand a sweep given as a mapping.

    Raises:
        BadInput: as `load_sweep` does.
    """
    try:
        file = SweepFile.model_validate(content)
    except ValidationError as error:
        texts = [_describe(e, SweepFile.model_fields) for e in error.errors()]
        single = isinstance(content.get("grid"), Mapping)
        raise BadInput([t.replace("grid.0.", "grid.", 1) if single else t for t in texts]) from None
    errors = _Errors()
    _check_file(file, errors)
    trials: dict[str, Trial] = {}
    for values in _points(file, errors) if not errors else ():
        trial = _trial(values, errors)
        if trial is not None:
            trials.setdefault(trial.id, trial)
    if errors:
        raise BadInput(errors)
    return Sweep(file=file, trials=tuple(trials.values()), text=text)


def _methods(grid: Mapping[str, list[Any]], fixed: Mapping[str, Any]) -> list[Any]:
    listed: list[Any] = grid.get("method", [fixed["method"]] if "method" in fixed else [])
    return listed


# The file as a whole -------------------------------------------------------------------------------


def _check_file(file: SweepFile, errors: _Errors) -> None:
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
    if file.reference is not None and file.reference not in file.methods:
        near = suggest(file.reference, [str(m) for m in file.methods])
        errors.append(f"reference = {file.reference!r}: no such method in the grid{near}")
    count = sum(math.prod(len(v) for v in grid.values()) for grid in file.grid)
    if count > MOST_TRIALS:
        errors.append(f"grid: {count:,} trials, and a sweep has at most {MOST_TRIALS:,}")


def _check_grid(grid: Mapping[str, list[Any]], fixed: Mapping[str, Any], where: str, errors: _Errors) -> None:
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


def _check_keys(file: SweepFile, errors: _Errors) -> None:
    """Keys of grids, of `fixed` and of `overrides`: a known field, or a field of a method of the grid."""
    methods = [str(m) for m in file.methods]
    for key in [*(k for grid in file.grid for k in grid), *file.fixed]:
        method, name = _split_key(key)
        if method and method not in methods:
            errors.append(f"key {key!r}: no method {method!r} in the grid{suggest(method, methods)}")
        elif name == "hyper" or (not method and name not in TRIAL_KEYS):
            errors.append(
                f"unknown key {key!r}{_suggest(key, TRIAL_KEYS)} (hyper-parameters are given as METHOD.KEY, "
                "or in overrides)"
            )
        elif method and name in _AXES_OF_ALL:
            errors.append(f"{key!r}: {name} {_OF_ALL}")
    for method, settings in file.overrides.items():
        if method not in methods:
            errors.append(f"overrides {method!r}: no method {method!r} in the grid{suggest(method, methods)}")
        errors += [f"overrides {method!r}: {name} {_OF_ALL}" for name in _AXES_OF_ALL if name in settings]


def _split_key(key: str) -> tuple[str, str]:
    """`METHOD.KEY` as method and key; a key of all methods has no method."""
    method, _, name = key.rpartition(".")
    return method, name


# From the file to points of the grid ---------------------------------------------------------------


def _points(file: SweepFile, errors: _Errors) -> Iterator[dict[str, Any]]:
    """All combinations of each grid, method by method.

    Settings of one method (its axes, `METHOD.KEY`, overrides) win over settings of all methods.
    """
    for grid in file.grid:
        for method in _methods(grid, file.fixed):
            shared_axes, method_axes = _settings_of(grid, method)
            shared, own = _settings_of(file.fixed, method)
            own |= file.overrides.get(str(method), {})
            for clash in set(own) & set(method_axes):
                errors.append(f"{method}.{clash} is set both in the grid and in the settings of {method}")
            axes = {**shared_axes, **method_axes}
            axes = {k: v for k, v in axes.items() if k != "method" and k not in own}
            for values in itertools.product(*axes.values()):
                yield {**shared, **own, **dict(zip(axes, values, strict=True)), "method": method}


def _settings_of(keys: Mapping[str, Any], method: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of all methods, and those of one method, given as `METHOD.KEY`."""
    split = [(*_split_key(k), v) for k, v in keys.items()]
    shared = {name: v for owner, name, v in split if not owner}
    return shared, {name: v for owner, name, v in split if owner == method}


# From a point to a trial ---------------------------------------------------------------------------


def _trial(values: Mapping[str, Any], errors: _Errors) -> Trial | None:
    """Build and check one trial; None where it has errors, which are collected."""
    before = len(errors)
    name = values["method"]
    cls: Any = errors.collect(lambda: method_class(name))
    if cls is None:
        return None
    hyper_fields = hyper_model(cls).model_fields
    fields = {k: v for k, v in values.items() if k in Trial.model_fields}
    hyper = {k: v for k, v in values.items() if k not in Trial.model_fields}
    for key in [k for k in hyper if k not in hyper_fields]:
        near = _suggest(key, [*hyper_fields, *TRIAL_KEYS])
        errors.append(f"{name}.{key}: {name} has no such hyper-parameter{near}")
        del hyper[key]
    for key, value in values.items():
        field = hyper_fields.get(key) or Trial.model_fields.get(key)
        if isinstance(value, bool) and not (field and admits_bool(field.annotation)):
            errors.append(f"{key} = {value}: expected a value, not true or false")
    try:
        fields["hyper"] = hyper_model(cls).model_validate(hyper).model_dump(mode="json")
    except ValidationError as error:
        errors += [_describe(e, {}, f"{name}.") for e in error.errors()]
    fields.setdefault("noise_seed", fields.get("seed"))
    fields["backbone"] = _backbone(fields.get("backbone", {}), errors)
    for option, reason in _DIFFERENTIATED_ONCE.items() if cls.differentiates_twice else ():
        if fields["backbone"].get(option):
            errors.append(f"backbone.{option} = True: {name} {reason} ({name}.backbone sets another for it)")
    try:
        trial = Trial.model_validate(fields)
    except ValidationError as error:
        repeated = ("noise_seed",) if "noise_seed" not in values else ()
        errors += [_describe(e, TRIAL_KEYS) for e in error.errors() if e["loc"] != repeated]
        return None
    incompatibility = trial.noise.incompatibility(trial.noise_ratio, trial.noise_granularity)
    if incompatibility:
        errors.append(incompatibility)
    return trial if len(errors) == before else None


def _backbone(value: Any, errors: _Errors) -> dict[str, Any]:
    """The configuration of a backbone with its defaults; empty where it has errors, which are collected."""
    config = {"kind": value} if isinstance(value, str) else value
    if not isinstance(config, Mapping):
        errors.append(
            f"backbone = {value!r}: expected a mapping with a kind, or a kind ({', '.join(BACKBONES)})"
        )
        return {}
    try:
        setup = backbone_setup(config)
    except ValidationError as error:
        fields = resolve("backbone", config.get("kind", DEFAULT), BACKBONES).Config.model_fields
        errors += [_describe(e, fields, "backbone.") for e in error.errors()]
        return {}
    except ValueError as error:  # no such backbone
        errors.append(str(error))
        return {}
    problem = setup.check(setup.config)
    if problem:
        errors.append(f"backbone: {problem}")
    settings: dict[str, Any] = setup.config.settings()
    return settings


def _suggest(key: str, allowed: Iterable[str]) -> str:
    """`suggest`, which also knows a key by the name that other projects give it."""
    return suggest(_OTHER_NAMES.get(key, key), allowed)


def _describe(error: Any, allowed: Any, prefix: str = "") -> str:
    """A pydantic error as one line: field, value, what is allowed."""
    keys = [str(key) for key in error["loc"]]
    if keys[:1] == ["noise"] and len(keys) > 2:  # pydantic names the noise model that it has read
        allowed = _NOISE_FIELDS[keys.pop(1)]
    path = prefix + ".".join(keys)
    if error["type"] == "extra_forbidden":
        near = _suggest(keys[-1], allowed) if len(keys) == 1 or keys[0] == "noise" else ""
        return f"unknown key {path!r}{near}"
    if error["type"] == "missing":
        return f"{path} is missing"
    if error["type"] == "union_tag_invalid":
        given = error["input"]["model"]
        return f"{path}: unknown noise model {given!r}{suggest(str(given), list(MODELS))}"
    message = re.sub(r"^Input should be", "expected", error["msg"]).removeprefix("Value error, ")
    return f"{path} = {error['input']!r}: {message}"
