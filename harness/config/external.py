"""External rows: results of a program that is not of this project, on its data and noise indices.

A YAML file describes a row: what made it, on which grid, and where its similarities (or ranks) and the noise
indices that it trained on are. The grid is that of the sweep beside which the row stands, unless the file
gives one. Each of its points is an `ExternalTrial`, which has what is known of the program in place of the
settings of our training loop.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from harness.config.base import StrictModel
from harness.config.sweep_file import BadInput, Name, describe, read_mapping
from harness.config.trial import Trial
from harness.lib.registry import suggest
from harness.noise.models import NoiseModel, Shuffle
from methods import METHODS

MARK = "§"
"""What stands behind the name of an external row in tables."""
SPLITS = ("dev", "test")
"""The splits that an external row has results of."""
_FACTS = ("source", "network", "networks", "uses_clean_data", "tuning", "epoch")
_POINT = (
    "method",
    "dataset",
    "dataset_options",
    "noise",
    "noise_granularity",
    "noise_ratio",
    "seed",
    "noise_seed",
)


def _template(*allowed: str) -> Callable[[str], str]:
    """A check of names of files with placeholders: nothing but these, as they stand."""

    def check(text: str) -> str:
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"{error} (a brace that is meant stands twice)") from None
        for _, name, form, conversion in parts:
            if name is not None and name not in allowed:
                raise ValueError(f"unknown placeholder {{{name}}}{suggest(name, allowed)}")
            if form or conversion:
                raise ValueError(f"expected {{{name}}} as it stands, without a format or a conversion")
        return text

    return check


OfSplit = Annotated[str, AfterValidator(_template("ratio", "seed", "split"))]
OfNoise = Annotated[str, AfterValidator(_template("ratio", "seed"))]
Text = Annotated[str, Field(min_length=1)]


class _Exact(StrictModel):
    """Values are of the type that is declared: no number is read from a text or from true and false."""

    model_config = ConfigDict(strict=True)


class ProgramSource(_Exact):
    """What made the numbers.

    Attributes:
        repository: its address.
        commit: of the code that was run.
        command: that was run, for one trial.
    """

    repository: Text
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{7,64}$")]
    command: Text


class Tuning(_Exact):
    """How the settings were chosen.

    Attributes:
        by: `search`: the best of some tries on dev, as many as the other methods of the sweep had (the rule
            of this project). `authors`: whoever wrote the method chose them, in a way that nobody counts.
        tries: of a search.
    """

    by: Literal["search", "authors"]
    tries: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _counted(self) -> Tuning:
        if (self.by == "search") != (self.tries is not None):
            raise ValueError("tries (on dev) belongs to by: search, and only to it")
        return self

    def __str__(self) -> str:
        if self.tries is None:
            return "tuned by its authors"
        return f"best of {self.tries} tries on dev" if self.tries > 1 else "not tuned (one try)"


class Grid(_Exact):
    """The points of a row: one data set and noise, and every ratio with every seed, which sets the noise and
    the program's own draws. Fields as in a sweep file.
    """

    dataset: Text
    dataset_options: dict[str, Any] = Field(default_factory=dict)
    noise: NoiseModel = Shuffle()
    noise_granularity: Literal["caption", "image", "text"] = "caption"
    noise_ratio: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=1)]
    seed: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]

    @field_validator("noise", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @field_validator("noise_ratio", "seed")
    @classmethod
    def _distinct(cls, values: list[Any]) -> list[Any]:
        if len(set(values)) < len(values):
            raise ValueError("it has a duplicate value")
        return values


class Files(_Exact):
    """Where the results are: names of files with placeholders, relative to where the command is run.

    Attributes:
        similarities: `.npy`, [images, captions], of each `{ratio}`, `{seed}` and `{split}` (dev, test).
        ranks: in their place, `.npz` as `harness.evaluate --ranks` writes them.
        noise_index: that was trained on, of each `{ratio}` above 0 and `{seed}`, in any published form.
    """

    similarities: OfSplit | None = None
    ranks: OfSplit | None = None
    noise_index: OfNoise

    @model_validator(mode="after")
    def _one_form(self) -> Files:
        if (self.similarities is None) == (self.ranks is None):
            raise ValueError("give one of similarities and ranks")
        return self

    def of(self, trial: Trial, split: str) -> Path:
        """The file of similarities or ranks of a trial and split."""
        template = self.similarities or self.ranks or ""
        return Path(template.format(ratio=f"{trial.noise_ratio:g}", seed=trial.seed, split=split))

    def noise_of(self, trial: Trial) -> Path:
        """The file of the noise index that a trial was trained on."""
        return Path(self.noise_index.format(ratio=f"{trial.noise_ratio:g}", seed=trial.seed))


class Cost(_Exact):
    """What a trial cost, where it is known: means over the trials.

    Attributes:
        seconds: wall-clock time of a trial.
        parameters: number of trained parameters.
        peak_memory_mb: of the GPU where there is one, else of the process.
        device: what it ran on, in words.
    """

    seconds: Annotated[float, Field(gt=0)] | None = None
    parameters: Annotated[int, Field(ge=0)] | None = None
    peak_memory_mb: Annotated[float, Field(gt=0)] | None = None
    device: Text | None = None


class ExternalRow(_Exact):
    """The file of an external row.

    Attributes:
        method: what the row is called; the name of its folder, too.
        sweep: the sweep beside which it stands.
        grid: its points (default: all of the sweep).
        network: what compares images and texts, in words: `SGR`, `CLIP ViT-B/32`.
        networks: number of networks whose similarities are averaged.
        uses_clean_data: whether it was given pairs that are known to match.
        epoch: what the similarities are of: `last`, the last epoch (or a program without epochs), or
            `selected`, the epoch that was best on dev. The latter stands in tables of selected epochs only.
        data_fingerprint: of the data that it was trained on (`harness.data show`), compared with the data
            here.
    """

    method: Name
    description: str = ""
    source: ProgramSource
    sweep: Name
    grid: Grid | None = None
    files: Files
    network: Text | None = None
    networks: Annotated[int, Field(ge=1)] = 1
    uses_clean_data: bool
    tuning: Tuning
    epoch: Literal["last", "selected"]
    data_fingerprint: Text | None = None
    cost: Cost = Cost()

    @field_validator("method")
    @classmethod
    def _not_ours(cls, value: str) -> str:
        if value.lower() in METHODS:
            raise ValueError("a method of this project has this name: add who wrote the program")
        return value

    def trials(self, planned: Sequence[Trial] = ()) -> tuple[ExternalTrial, ...]:
        """The points of the row.

        Args:
            planned: trials of the sweep beside which it stands, for a row without a grid.

        Raises:
            BadInput: there is no grid, or one that no external row can have.
        """
        points = self._points(planned)
        facts = {k: getattr(self, k) for k in ("method", *_FACTS)}
        try:
            trials = tuple(ExternalTrial.model_validate({**facts, **point}) for point in points)
        except ValidationError as error:
            raise BadInput([describe(e, (), "grid.") for e in error.errors()]) from None
        errors = [
            f"grid: {t.noise.incompatibility(t.noise_ratio, t.noise_granularity)}"
            for t in trials
            if t.noise.incompatibility(t.noise_ratio, t.noise_granularity)
        ]
        if any(t.noise.changes_words for t in trials):
            errors.append(
                f"grid: noise {trials[0].noise.model!r} changes words, and no file of a noise index has these"
            )
        if errors := [*errors, *self._shared_files(trials)]:
            raise BadInput(errors)
        return trials

    def _points(self, planned: Sequence[Trial]) -> list[dict[str, Any]]:
        """Fields of each point. Raises BadInput where there is none."""
        if self.grid is not None:
            place = {k: v for k, v in self.grid if k not in ("noise_ratio", "seed")}
            return [
                {**place, "noise_ratio": ratio, "seed": seed, "noise_seed": seed}
                for ratio in self.grid.noise_ratio
                for seed in self.grid.seed
            ]
        if not planned:
            raise BadInput([f"grid is missing: there is no results/{self.sweep} here to take it from"])
        found = [
            {k: v for k, v in t.model_dump(mode="json").items() if k in _POINT and k != "method"}
            for t in planned
            if t.seed == t.noise_seed and not t.perturbed
        ]
        points = [p for i, p in enumerate(found) if p not in found[:i]]
        places = [{k: v for k, v in p.items() if "seed" not in k and k != "noise_ratio"} for p in points]
        if not places or any(p != places[0] for p in places):
            raise BadInput(
                [f"grid is missing: sweep {self.sweep!r} has no single data set and noise to take it from"]
            )
        return points

    def _shared_files(self, trials: Sequence[Trial]) -> list[str]:
        """Results of two trials, or of two splits, that would be read from one file."""
        known: dict[Path, str] = {}
        errors = []
        for trial in trials:
            for split in SPLITS:
                what = f"noise {trial.noise_ratio:g} seed {trial.seed} {split}"
                first = known.setdefault(self.files.of(trial, split), what)
                if first != what:
                    errors.append(f"files: {self.files.of(trial, split)} is both of {first} and of {what}")
        return errors[:1]


class ExternalTrial(Trial):
    """A point of an external row. The settings of our training loop, which it inherits, say nothing of it,
    and stay out of its id, its parameters and its record.

    Attributes:
        method: the name of the row.
        source, network, networks, uses_clean_data, tuning, epoch: as in `ExternalRow`.
    """

    source: ProgramSource
    network: str | None = None
    networks: int
    uses_clean_data: bool
    tuning: Tuning
    epoch: Literal["last", "selected"]

    def facts(self) -> dict[str, Any]:
        """The fields that are known of it, as JSON."""
        known = self.model_dump(mode="json", include={*_POINT, *_FACTS})
        return known if self.network else {k: v for k, v in known.items() if k != "network"}

    def _canonical(self) -> dict[str, Any]:
        return {"external": True, **self.facts()}

    @property
    def backbone_label(self) -> str:
        """Its network, where that is known: it has no backbone of ours."""
        return self.network or "external"

    @property
    def parts(self) -> tuple[str, ...]:
        """Which results it has, as metrics and arrays call them: `last` (the last epoch) and `test` (the
        epoch that is selected on dev), or the latter alone.
        """
        return ("last", "test") if self.epoch == "last" else ("test",)

    def parameters(self) -> dict[str, Any]:
        """What is known of it as flat parameters: `source.commit`, `dataset.folder`."""
        flat: dict[str, Any] = {}
        for key, value in self.facts().items():
            nested = value if isinstance(value, dict) else None
            prefix = "dataset" if key == "dataset_options" else key
            flat |= {key: value} if nested is None else {f"{prefix}.{k}": v for k, v in nested.items()}
        return flat


def trial_type(plan: Mapping[str, Any]) -> type[Trial]:
    """The type of the trials of a plan, which says itself whether it is one of an external row."""
    return ExternalTrial if plan.get("external") else Trial


def read_row(path: Path) -> tuple[ExternalRow, str]:
    """An external row from its file, and the text of the file.

    Raises:
        BadInput: with all errors of the file, each naming file, field, value and what is allowed.
    """
    content, text = read_mapping(path, "row file")
    try:
        return ExternalRow.model_validate(content), text
    except ValidationError as error:
        raise BadInput([f"{path}: {_described(e)}" for e in error.errors()]) from None


def _described(error: Any) -> str:
    """An error of pydantic as one line, with the names that are allowed where it is."""
    keys, fields, prefix = list(error["loc"]), ExternalRow.model_fields, ""
    while len(keys) > 1 and keys[0] in fields:
        inner = _model_in(fields[keys[0]].annotation)
        if inner is None:
            break
        fields, prefix = inner.model_fields, f"{prefix}{keys.pop(0)}."
    return describe({**error, "loc": tuple(keys)}, fields, prefix)


def _model_in(annotation: Any) -> type[StrictModel] | None:
    """The model of the configuration that a field holds, if it holds one."""
    kinds = get_args(annotation) or (annotation,)
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, StrictModel)), None)
