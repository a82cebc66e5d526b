"""Sweep files: YAML to a validated sweep, and a sweep to trials with hash ids.

A sweep names its grid (or several, as a list), the fixed settings, overrides for one method, and the
resources of a trial. Keys are fields of a trial (`lr`, `noise_ratio`, ...), or `METHOD.KEY` for a field or
hyper-parameter of one method. Every error of a file is found and named before anything starts.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import math
import re
import typing
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator

from harness import PROTOCOL_VERSION
from harness.backbones import BACKBONES
from harness.config.plain_yaml import MOST_BYTES, read_yaml
from harness.lib.registry import UnknownName, resolve, suggest
from harness.noise.models import MODELS, NoiseModel, Shuffle
from methods import METHODS
from methods.base import Method

_ID_NEUTRAL_FIELDS = ("decay_epochs", "evaluate_every", "noise")
_MOST_TRIALS = 100_000  # of a sweep: more is a mistake or an attack
_HARNESS_SUPPLIES = {"make_backbone", "pairs", "batch_size", "seed", "clean", "ground_truth"}


class BadInput(ValueError):
    """Everything that is wrong with an input, one text for each fault."""

    def __init__(self, errors: list[str]) -> None:
        self.errors = list(dict.fromkeys(errors))
        super().__init__("; ".join(self.errors))


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Trial(_Model):
    """One point of the grid, fully resolved: equal trials have equal ids and give equal numbers.

    Defaults are those of CLIP fine-tuning as the field does it (NPC, released code), except the learning
    rate,
    which does not carry over from fp16 weights: 1e-5, as OSA and CLIP_ITM use it.

    Attributes:
        hyper: the method's hyper-parameters, defaults filled in.
        noise: what is injected: a name of `harness.noise.models.MODELS`, or a mapping with `model`
            and its settings.
        noise_seed: seed of the noise index; the trial's seed unless the sweep varies it.
        batch_size: pairs in a global batch, over all processes.
        warmup_steps: linear warm-up, by optimizer steps.
        decay_epochs: null for a cosine to zero; or the epochs from which the rate is a tenth of what it was.
        clip_norm: gradient norm to clip at, or null.
        precision: auto (bf16 where a GPU has it), fp32, bf16 or fp64.
        evaluate_every: epochs between evaluations on dev; the last epoch is always one.
    """

    method: str
    dataset: str
    dataset_options: dict[str, Any] = {}
    noise_ratio: Annotated[float, Field(ge=0, lt=1)]
    noise_granularity: Literal["caption", "image"] = "caption"
    seed: Annotated[int, Field(ge=0, strict=True)]
    noise_seed: Annotated[int, Field(ge=0, strict=True)]
    backbone: dict[str, Any] = {"kind": "clip"}
    epochs: Annotated[int, Field(ge=1)] = 5
    batch_size: Annotated[int, Field(ge=2)] = 256
    lr: Annotated[float, Field(gt=0)] = 1e-5
    weight_decay: Annotated[float, Field(ge=0)] = 0.2
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.98)
    eps: Annotated[float, Field(gt=0)] = 1e-6
    warmup_steps: Annotated[int, Field(ge=0)] = 500
    clip_norm: Annotated[float, Field(gt=0)] | None = 10.0
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    decay_epochs: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    evaluate_every: Annotated[int, Field(ge=1)] = 1
    noise: NoiseModel = Shuffle()
    hyper: dict[str, Any] = {}

    @field_validator("noise", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @field_validator("dataset_options", "backbone", "hyper")
    @classmethod
    def _finite(cls, value: dict[str, Any]) -> dict[str, Any]:
        """JSON, in which a trial travels and is hashed, would make nothing of other numbers."""
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            raise ValueError("a number in it is not finite") from None
        return value

    @property
    def id(self) -> str:
        """12 hex digits: the hash of the canonical form and the protocol version."""
        return _digest({"protocol": PROTOCOL_VERSION, **self._canonical()})

    @property
    def cell_id(self) -> str:
        """The id without the seeds: trials of one cell differ in nothing else."""
        return _digest({k: v for k, v in self._canonical().items() if k not in ("seed", "noise_seed")})

    def _canonical(self) -> dict[str, Any]:
        """All fields, without later ones at their id-neutral default: an id outlives a new field."""
        fields = self.model_dump(mode="json")
        id_neutral_defaults = method_class(self.method).id_neutral_defaults
        fields["hyper"] = {
            k: v
            for k, v in fields["hyper"].items()
            if k not in id_neutral_defaults or v != id_neutral_defaults[k]
        }
        return {
            k: v
            for k, v in fields.items()
            if k not in _ID_NEUTRAL_FIELDS or getattr(self, k) != Trial.model_fields[k].default
        }

    @property
    def dataset_label(self) -> str:
        """The data set in a few words: its name, and the folder that it is read from."""
        folder = self.dataset_options.get("folder")
        return f"{self.dataset} {Path(str(folder)).name}" if folder else self.dataset

    @property
    def noise_label(self) -> str:
        """The noise in a few words, for tables: what its ratio is a share of."""
        return self.noise.label(self.noise_granularity)

    @property
    def backbone_label(self) -> str:
        """The backbone in a few words, for tables and MLflow."""
        config = self.backbone
        name = config.get("model") or " ".join(str(config[k]) for k in ("kind", "module") if k in config)
        return f"{name}{' locked' if config.get('locked') else ''}"


class Resources(_Model):
    """What one trial gets. `at_once` caps concurrent trials (null: as many as fit); `workers` are loader
    processes.

    A trial that makes no step for `stall_minutes` is hung: it is ended and goes on from its last epoch. One
    that takes longer than `deadline_hours` (null: as long as it needs) ends as failed; a rerun goes on from
    its last epoch, and has as long again.
    """

    cpus: Annotated[float, Field(gt=0)] = 1
    gpus: Annotated[float, Field(ge=0)] = 0
    processes: Annotated[int, Field(ge=1)] = 1
    workers: Annotated[int, Field(ge=0)] = 0
    at_once: Annotated[int, Field(ge=1)] | None = None
    stall_minutes: Annotated[float, Field(gt=0)] = 30
    deadline_hours: Annotated[float, Field(gt=0)] | None = None


class SweepFile(_Model):
    """The top level of a sweep file.

    `grid` is one grid, or a list of grids whose trials are put together; a trial that stands in several is
    one trial. `reference` is the method that the report compares the others with (default: `clip`, or the
    first).
    `select` makes a sweep a search: the report then names, for each method, the setting with the best dev
    rSum, and tests stay out of it.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
    description: str = ""
    grid: list[dict[str, list[Any]]]
    fixed: dict[str, Any] = {}
    overrides: dict[str, dict[str, Any]] = {}
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
        every = [m for grid in self.grid for m in _methods(grid, self.fixed)]
        return [m for i, m in enumerate(every) if m not in every[:i]]


class Sweep(_Model):
    """A validated sweep: its file, and its trials in the order of the grid."""

    file: SweepFile
    trials: tuple[Trial, ...]
    text: str

    @property
    def name(self) -> str:
        return self.file.name


def load_sweep(path: str | Path) -> Sweep:
    """Read and expand a sweep file.

    Raises:
        BadInput: with every fault of the file, each naming the field, the value and what is allowed.
    """
    path = Path(path)
    try:
        with open(path, "rb") as stream:
            text = stream.read(MOST_BYTES + 1).decode("utf-8-sig")
        content = read_yaml(text)
    except FileNotFoundError:
        near = (
            suggest(path.name, [p.name for p in path.parent.glob("*.yaml")]) if path.parent.is_dir() else ""
        )
        raise BadInput([f"sweep file {path} does not exist{near}"]) from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BadInput([f"sweep file {path} cannot be read: {' '.join(str(error).split())}"]) from None
    if not isinstance(content, dict):
        raise BadInput([f"sweep file {path}: expected a mapping with a grid, found {type(content).__name__}"])
    return parse_sweep({"name": path.stem, **content}, text=text)


def parse_sweep(content: Mapping[str, Any], *, text: str = "") -> Sweep:
    """Expand a sweep given as a mapping. Raises BadInput as `load_sweep` does."""
    try:
        file = SweepFile.model_validate(content)
    except ValidationError as error:
        errors = [_describe(e, list(SweepFile.model_fields)) for e in error.errors()]
        single = isinstance(content.get("grid"), Mapping)
        raise BadInput([e.replace("grid.0.", "grid.", 1) if single else e for e in errors]) from None
    errors = _faults(file)
    trials: dict[str, Trial] = {}
    for values in _points(file, errors) if not errors else ():
        trial = _trial(values, file, errors)
        if trial is not None:
            trials.setdefault(trial.id, trial)
    if errors:
        raise BadInput(errors)
    return Sweep(file=file, trials=tuple(trials.values()), text=text)


def _methods(grid: Mapping[str, list[Any]], fixed: Mapping[str, Any]) -> list[Any]:
    found: list[Any] = grid.get("method", [fixed["method"]] if "method" in fixed else [])
    return found


def _faults(file: SweepFile) -> list[str]:
    """What is wrong with a file as a whole, before any trial is made."""
    errors: list[str] = []
    if file.name == "Default":
        errors.append("name = 'Default': MLflow keeps this name for itself")
    if not file.grid:
        errors.append("grid = []: expected at least one grid")
    for number, grid in enumerate(file.grid):
        _check_grid(grid, file.fixed, f"grid[{number}]" if len(file.grid) > 1 else "grid", errors)
    methods = file.methods
    for name in methods:
        _collect(errors, lambda name=name: method_class(name))
    if file.reference is not None and file.reference not in methods:
        errors.append(
            f"reference = {file.reference!r}: no such method in the "
            f"grid{suggest(file.reference, [str(m) for m in methods])}"
        )
    for key in [*(k for grid in file.grid for k in grid), *file.fixed, *(f"{m}.x" for m in file.overrides)]:
        owner = key.rpartition(".")[0]
        if owner and owner not in methods:
            where = "overrides" if owner in file.overrides else "key"
            errors.append(
                f"{where} {key.removesuffix('.x')!r}: no method {owner!r} in the "
                f"grid{suggest(owner, [str(m) for m in methods])}"
            )
        elif (not owner and key not in _trial_keys()) or key.rpartition(".")[2] == "hyper":
            errors.append(
                f"unknown key {key!r}{suggest(key, _trial_keys())} (hyper-parameters are given as "
                f"METHOD.KEY, or in overrides)"
            )
        elif owner and key.rpartition(".")[2] in ("method", "dataset"):
            errors.append(
                f"{key!r}: {key.rpartition('.')[2]} is an axis of the whole grid, not of one method"
            )
    most = sum(math.prod(len(v) for v in grid.values()) for grid in file.grid)
    if most > _MOST_TRIALS:
        errors.append(f"grid: {most:,} trials, and a sweep has at most {_MOST_TRIALS:,}")
    return errors


def _check_grid(
    grid: Mapping[str, list[Any]], fixed: Mapping[str, Any], where: str, errors: list[str]
) -> None:
    for key in ("method", "dataset", "noise_ratio", "seed"):
        if key not in grid and key not in fixed:
            errors.append(f"{where}: {key} is missing (a list of at least one value)")
    for key, values in grid.items():
        if not values:
            errors.append(f"{where}.{key} = []: expected at least one value")
        elif len({repr(v) for v in values}) < len(values):
            errors.append(f"{where}.{key} = {values}: a value stands there twice")
        if key in fixed:
            errors.append(f"{key} stands in both {where} and fixed")


def _points(file: SweepFile, errors: list[str]) -> Iterator[dict[str, Any]]:
    """Every combination of each grid, method by method.

    What is said of one method (its own axes, `METHOD.KEY`, overrides) wins over what is said of all.
    """
    for grid in file.grid:
        for method in _methods(grid, file.fixed):
            shared_axes, own_axes = _for_all_and_one(grid, method)
            general, own = _for_all_and_one(file.fixed, method)
            own |= file.overrides.get(str(method), {})
            for clash in set(own) & set(own_axes):
                errors.append(f"{method}.{clash} stands in both the grid and the settings of {method}")
            axes = {k: v for k, v in {**shared_axes, **own_axes}.items() if k != "method" and k not in own}
            for values in itertools.product(*axes.values()):
                yield {**general, **own, **dict(zip(axes, values, strict=True)), "method": method}


def _for_all_and_one(keys: Mapping[str, Any], method: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Entries said of all methods, and those said of this one as `METHOD.KEY`."""
    split = [(k.rpartition("."), v) for k, v in keys.items()]
    general = {key: v for (owner, _, key), v in split if not owner}
    return general, {key: v for (owner, _, key), v in split if owner == method}


def _trial(values: dict[str, Any], file: SweepFile, errors: list[str]) -> Trial | None:
    """Build and check one trial; what is wrong with it goes to `errors`."""
    before = len(errors)
    name = values["method"]
    cls = _collect(errors, lambda: method_class(name))
    if cls is None:
        return None
    hyper = {k: v for k, v in values.items() if k not in Trial.model_fields}
    fields = {k: v for k, v in values.items() if k in Trial.model_fields}
    allowed = [*hyper_model(cls).model_fields, *_trial_keys()]
    for key in hyper:
        if key not in hyper_model(cls).model_fields:
            errors.append(f"{name}.{key}: {name} has no such hyper-parameter{suggest(key, allowed)}")
    known = {k: v for k, v in hyper.items() if k in hyper_model(cls).model_fields}
    switches = [k for k, field in hyper_model(cls).model_fields.items() if "bool" in str(field.annotation)]
    for key, value in values.items():  # `true` would count as 1
        if isinstance(value, bool) and key not in switches:
            errors.append(f"{key} = {value}: expected a value, not true or false")
    try:
        fields["hyper"] = hyper_model(cls).model_validate(known).model_dump(mode="json")
    except ValidationError as error:
        errors += [_describe(e, [], f"{name}.") for e in error.errors()]
    fields.setdefault("noise_seed", fields.get("seed"))
    fields["backbone"] = _backbone(fields.get("backbone", {}), errors)
    try:
        trial = Trial.model_validate(fields)
    except ValidationError as error:
        errors += [
            _describe(e, _trial_keys())
            for e in error.errors()
            if e["loc"] != ("noise_seed",) or "noise_seed" in values
        ]
        return None
    incompatibility = trial.noise.incompatibility(trial.noise_ratio, trial.noise_granularity)
    if incompatibility:
        errors.append(incompatibility)
    return trial if len(errors) == before else None


def _backbone(value: Any, errors: list[str]) -> dict[str, Any]:
    config = {"kind": value} if isinstance(value, str) else value
    if not isinstance(config, Mapping):
        errors.append(
            f"backbone = {value!r}: expected a mapping with a kind, or a kind ({', '.join(BACKBONES)})"
        )
        return {}
    setup = _collect(errors, lambda: resolve("backbone", str(config.get("kind", "clip")), BACKBONES))
    if setup is None:
        return {}
    if not (isinstance(getattr(setup, "Config", None), type) and issubclass(setup.Config, BaseModel)):
        errors.append(
            f"backbone.kind = {config['kind']!r}: it is no backbone (one has a Config; see harness/backbones)"
        )
        return {}
    try:
        resolved = setup.Config.model_validate(config)
    except ValidationError as error:
        errors += [_describe(e, list(setup.Config.model_fields), "backbone.") for e in error.errors()]
        return {}
    fault = setup.check(resolved)
    if fault:
        errors.append(f"backbone: {fault}")
    dumped: dict[str, Any] = resolved.model_dump(mode="json")
    return dumped


def method_class(name: Any) -> type[Method]:
    """The class behind a method's name.

    Raises:
        UnknownName: no such method, or what the name leads to is not a `methods.base.Method`.
    """
    cls = resolve("method", name, METHODS)
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise UnknownName(f"method {name!r} is not a subclass of methods.base.Method")
    return cls


@lru_cache
def hyper_model(cls: type[Method]) -> type[BaseModel]:
    """A model of the hyper-parameters that a method's constructors declare, with their types and defaults."""
    fields: dict[str, Any] = {}
    for owner in reversed(cls.__mro__[: cls.__mro__.index(Method)]):
        constructor = vars(owner).get("__init__")
        if constructor is None:
            continue
        hints = typing.get_type_hints(constructor, include_extras=True)
        for name, parameter in inspect.signature(constructor).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY and name not in _HARNESS_SUPPLIES:
                default = ... if parameter.default is parameter.empty else parameter.default
                fields[name] = (hints.get(name, Any), default)
    return create_model(
        f"{cls.__name__}Hyper", __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **fields
    )


def _trial_keys() -> list[str]:
    return [k for k in Trial.model_fields if k != "hyper"]


def _collect(errors: list[str], call: Any) -> Any:
    try:
        return call()
    except UnknownName as error:
        errors.append(str(error))
        return None


def _describe(error: Any, allowed: list[str], prefix: str = "") -> str:
    """A pydantic error as one line: field, value, what is allowed."""
    path = prefix + ".".join(str(p) for p in error["loc"])
    if error["type"] == "extra_forbidden":
        return (
            f"unknown key {path!r}{suggest(str(error['loc'][-1]), allowed) if len(error['loc']) == 1 else ''}"
        )
    if error["type"] == "missing":
        return f"{path} is missing"
    if error["type"] == "union_tag_invalid":
        given = error["input"]["model"]
        return f"{path}: unknown noise model {given!r}{suggest(str(given), list(MODELS))}"
    message = re.sub(r"^Input should be", "expected", error["msg"]).removeprefix("Value error, ")
    return f"{path} = {error['input']!r}: {message}"


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
