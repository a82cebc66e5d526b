"""Sweep files: from YAML to a validated sweep, and from a sweep to trials with hash ids.

A sweep names its grid (or several, as a list), fixed settings, overrides for single methods, and the
resources of a trial. A key is a field of a trial (`lr`, `noise_ratio`, ...), or `METHOD.KEY` for a field or a
hyper-parameter of one method. A `search` block adds the settings of its tries (`harness.config.search`), and
`settings_from` those that another search has found. All errors of a file are reported before anything starts.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import Field, ValidationError, field_validator

from harness.backbones import BACKBONES, DEFAULT, backbone_setup
from harness.config.base import StrictModel
from harness.config.hyper import admits_bool, hyper_model
from harness.config.plain_yaml import MOST_BYTES, read_yaml
from harness.config.resources import Resources
from harness.config.search import (
    LEAST_OWN_STAGE,
    Search,
    SearchResult,
    Settings,
    own_stage,
    search_of,
    stage_error,
)
from harness.config.sweep_checks import (
    TRIAL_KEYS,
    Errors,
    check_file,
    check_searched,
    found_settings,
    methods_of,
    split_key,
    suggest_key,
)
from harness.config.trial import Trial, method_class
from harness.lib.registry import resolve, suggest
from harness.lib.shipped import shipped
from harness.noise.models import MODELS, NoiseModel

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
"""The name of a sweep, which is a directory too."""
BASELINE = "clip"
"""The method that a report compares the others with, unless a sweep names another: the field's baseline."""
_NOISE_FIELDS = {m.model_fields["model"].default: m.model_fields for m in get_args(get_args(NoiseModel)[0])}
# Settings of backbones that a method which differentiates twice cannot have, and why.
_DIFFERENTIATED_ONCE = {
    "checkpointing": "differentiates through replaced parameters, which a backward pass that computes "
    "activations again misses",
    "compile": "differentiates through a gradient, and what is compiled can be differentiated once",
}


class BadInput(ValueError):
    """All errors of an input, one text for each."""

    def __init__(self, errors: list[str]) -> None:
        self.errors = list(dict.fromkeys(errors))
        super().__init__("; ".join(self.errors))


class SweepFile(StrictModel):
    """The top level of a sweep file.

    Attributes:
        grid: one grid, or a list of grids whose trials are put together; a trial in several of them counts
            once.
        reference: the method that the report compares the others with (default: `clip`, or the first).
        select: whether the grid is one of settings to choose from: the report then names the best of each
            method on dev, and leaves test out.
        search: the same, with settings drawn from a space, equally many for each method.
        settings_from: the search, or the searches, whose best settings the methods have.
    """

    name: Name
    description: str = ""
    grid: list[dict[str, list[Any]]]
    fixed: dict[str, Any] = Field(default_factory=dict)
    overrides: dict[str, dict[str, Any]] = Field(default_factory=dict)
    resources: Resources = Resources()
    reference: str | None = None
    select: bool = False
    search: Search | None = None
    settings_from: list[Name] = Field(default_factory=list)

    @field_validator("grid", "settings_from", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, (Mapping, str)) else value

    @property
    def chooses(self) -> bool:
        """Whether the sweep chooses settings, on dev."""
        return self.select or self.search is not None

    @property
    def methods(self) -> list[Any]:
        """The methods of all grids, in their order."""
        listed = [m for grid in self.grid for m in methods_of(grid, self.fixed)]
        return [m for i, m in enumerate(listed) if m not in listed[:i]]


class Sweep(StrictModel):
    """A validated sweep: its file, its trials in the order of the grid, and the text of the file.

    Attributes:
        found: what the searches found that its settings are from.
    """

    file: SweepFile
    trials: tuple[Trial, ...]
    text: str
    found: tuple[SearchResult, ...] = ()

    @property
    def name(self) -> str:
        """The name of the sweep, and of its experiment."""
        return self.file.name


Told = Mapping[str, Sequence[tuple[Settings, float | None]]]
"""Of a search by Optuna, the tries of each method so far with their objectives (None: failed)."""


def load_sweep(given: str | Path) -> Sweep:
    """Read and expand a sweep file, given by its path or the sweep's name.

    Raises:
        BadInput: with all errors of the file, each naming the field, the value and what is allowed.
    """
    content, text = read_sweep_file(given)
    return parse_sweep(content, text=text)


def find_sweep_file(given: str | Path) -> Path:
    """The file of a sweep: a path is itself, and a name is looked up in `sweeps/` here, then among those that
    ship.

    Raises:
        BadInput: no sweep has this name.
    """
    path = Path(given)
    if not path.exists() and (shipped("sweeps") / path.name).is_file():
        raise BadInput(
            [f"sweep file {path} does not exist; the one that ships is named {path.stem!r}, without a path"]
        )
    if path.exists() or path.suffix in (".yaml", ".yml") or len(path.parts) != 1:
        return path
    folders = (Path("sweeps"), shipped("sweeps"))
    for folder in folders:
        if (file := folder / f"{path}.yaml").is_file():
            return file
    names = {file.stem for folder in folders for file in folder.glob("*.yaml")}
    raise BadInput([f"there is no sweep {str(given)!r}{suggest(str(given), names)}; or give a file"])


def read_sweep_file(given: str | Path) -> tuple[dict[str, Any], str]:
    """The content of a sweep file with its name, not yet validated, and its text.

    Args:
        given: the file, or the name of a sweep (see `find_sweep_file`).

    Raises:
        BadInput: the file is missing, is no YAML mapping, or cannot be read.
    """
    path = find_sweep_file(given)
    content, text = read_mapping(path, "sweep file")
    return {"name": path.stem, **content}, text


def read_mapping(path: Path, what: str) -> tuple[dict[str, Any], str]:
    """The content of a YAML file, not yet validated, and its text.

    Args:
        what: what the file is, as the first words of errors.

    Raises:
        BadInput: the file is missing, is no YAML mapping, or cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            text = stream.read(MOST_BYTES + 1).decode("utf-8-sig")
        content = read_yaml(text)
    except FileNotFoundError:
        files = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        near = suggest(path.name, files) if path.parent.is_dir() else ""
        raise BadInput([f"{what} {path} does not exist{near}"]) from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BadInput([f"{what} {path} cannot be read: {' '.join(str(error).split())}"]) from None
    if not isinstance(content, dict):
        raise BadInput([f"{what} {path}: expected a mapping, found {type(content).__name__}"])
    return content, text


def parse_sweep(content: Mapping[str, Any], *, text: str = "") -> Sweep:
    """Expand a sweep given as a mapping.

    Args:
        text: the text of its file.

    Raises:
        BadInput: as `load_sweep` does.
    """
    try:
        file = SweepFile.model_validate(content)
    except ValidationError as error:
        texts = [describe(e, SweepFile.model_fields) for e in error.errors()]
        single = isinstance(content.get("grid"), Mapping)
        raise BadInput([t.replace("grid.0.", "grid.", 1) if single else t for t in texts]) from None
    return expand_sweep(file, text=text)


def expand_sweep(file: SweepFile, *, text: str, told: Told | None = None) -> Sweep:
    """The trials of a sweep file.

    Args:
        text: its text.
        told: see `Told`.

    Raises:
        BadInput: as `load_sweep` does.
    """
    errors = Errors()
    check_file(file, errors)
    found = found_settings(file, errors)
    trials: dict[str, Trial] = {}
    for values in _points(file, found, told or {}, errors) if not errors else ():
        trial = _trial(values, errors)
        if trial is not None:
            trials.setdefault(trial.id, trial)
    check_searched(file, found, tuple(trials.values()), errors)
    if errors:
        raise BadInput(errors)
    return Sweep(file=file, trials=tuple(trials.values()), text=text, found=found)


# From the file to points of the grid ---------------------------------------------------------------


def _points(
    file: SweepFile, found: Sequence[SearchResult], told: Told, errors: Errors
) -> Iterator[dict[str, Any]]:
    """All combinations of each grid, method by method; of a search, try by try.

    Settings of one method (its axes, `METHOD.KEY`, overrides) win over settings of all methods, and axes over
    those that a search has found.
    """
    for grid in file.grid:
        for method in methods_of(grid, file.fixed):
            shared_axes, method_axes = _settings_of(grid, method)
            shared, own = _settings_of(file.fixed, method)
            own |= file.overrides.get(str(method), {})
            for clash in set(own) & set(method_axes):
                errors.append(f"{method}.{clash} is set both in the grid and in the settings of {method}")
            axes = {**shared_axes, **method_axes}
            axes = {k: v for k, v in axes.items() if k != "method" and k not in own}
            search = search_of(found, method)
            chosen = search.winners[method].settings if search else {}
            points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
            of_all = {**shared, **own, **chosen, "method": method}
            for settings in _tries(file, {**of_all, **points[0]}, told, errors):
                yield from ({**of_all, **settings, **point} for point in points)


def _tries(file: SweepFile, first: Mapping[str, Any], told: Told, errors: Errors) -> list[Settings]:
    """The settings that a search draws for a method; one that is empty where there is no search.

    Args:
        first: the first point of the method's grid, without them.
    """
    if file.search is None:
        return [{}]

    def admits(settings: Settings) -> bool:
        trial = _trial({**first, **settings}, Errors())  # what is wrong with it is told with its trials
        return trial is None or (own_stage(trial) >= LEAST_OWN_STAGE and not stage_error(trial))

    method = str(first["method"])
    try:
        return file.search.settings(method, told.get(method, ()), admits)
    except ValueError as error:
        errors.append(str(error))
        return []


def _settings_of(keys: Mapping[str, Any], method: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of all methods, and those of one method, given as `METHOD.KEY`."""
    split = [(*split_key(k), v) for k, v in keys.items()]
    shared = {name: v for owner, name, v in split if not owner}
    return shared, {name: v for owner, name, v in split if owner == method}


# From a point to a trial ---------------------------------------------------------------------------


def _trial(values: Mapping[str, Any], errors: Errors) -> Trial | None:
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
        near = suggest_key(key, [*hyper_fields, *TRIAL_KEYS])
        errors.append(f"{name}.{key}: {name} has no such hyper-parameter{near}")
        del hyper[key]
    for key, value in values.items():
        field = hyper_fields.get(key) or Trial.model_fields.get(key)
        if isinstance(value, bool) and not (field and admits_bool(field.annotation)):
            errors.append(f"{key} = {value}: expected a value, not true or false")
    try:
        fields["hyper"] = hyper_model(cls).model_validate(hyper).model_dump(mode="json")
    except ValidationError as error:
        errors += [describe(e, {}, f"{name}.") for e in error.errors()]
    fields.setdefault("noise_seed", fields.get("seed"))
    fields["backbone"] = _backbone(fields.get("backbone", {}), errors)
    for option, reason in _DIFFERENTIATED_ONCE.items() if cls.differentiates_twice else ():
        if fields["backbone"].get(option):
            errors.append(f"backbone.{option} = True: {name} {reason} ({name}.backbone sets another for it)")
    try:
        trial = Trial.model_validate(fields)
    except ValidationError as error:
        repeated = ("noise_seed",) if "noise_seed" not in values else ()
        errors += [describe(e, TRIAL_KEYS) for e in error.errors() if e["loc"] != repeated]
        return None
    incompatibility = trial.noise.incompatibility(trial.noise_ratio, trial.noise_granularity)
    if incompatibility:
        errors.append(incompatibility)
    return trial if len(errors) == before else None


def _backbone(value: Any, errors: Errors) -> dict[str, Any]:
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
        errors += [describe(e, fields, "backbone.") for e in error.errors()]
        return {}
    except ValueError as error:  # no such backbone
        errors.append(str(error))
        return {}
    problem = setup.check(setup.config)
    if problem:
        errors.append(f"backbone: {problem}")
    settings: dict[str, Any] = setup.config.settings()
    return settings


def describe(error: Any, allowed: Any, prefix: str = "") -> str:
    """An error of pydantic as one line: field, value, what is allowed.

    Args:
        allowed: names of fields, for an unknown one.
        prefix: where the fields are: `backbone.`.
    """
    keys = [str(key) for key in error["loc"]]
    if keys[:1] == ["noise"] and len(keys) > 2:  # pydantic names the noise model that it has read
        allowed = _NOISE_FIELDS[keys.pop(1)]
    path = prefix + ".".join(keys)
    if error["type"] == "extra_forbidden":
        near = suggest_key(keys[-1], allowed) if len(keys) == 1 or keys[0] == "noise" else ""
        return f"unknown key {path!r}{near}"
    if error["type"] == "missing":
        return f"{path} is missing"
    if error["type"] == "union_tag_invalid":
        given = error["input"]["model"]
        return f"{path}: unknown noise model {given!r}{suggest(str(given), list(MODELS))}"
    message = re.sub(r"^Input should be", "expected", error["msg"]).removeprefix("Value error, ")
    return f"{path} = {error['input']!r}: {message}"
