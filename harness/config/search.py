"""The `search` block of a sweep file: the space that settings are drawn from, and how; and what a search
found.

A try is one setting of a method, run at all noise ratios and seeds of the sweep. All methods have the same
number of tries. The settings of `sobol` and `random` follow from the block alone, so that all trials are
known before the first one runs; those of `optuna` follow from the tries before.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from harness.config.base import StrictModel
from harness.config.hyper import hyper_model
from harness.config.trial import Trial, method_class
from harness.lib.files import RESULTS
from harness.lib.shipped import shipped
from methods.seeding import seed_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

EDGE = 0.05
"""A value within this share of its range from an end of it lies at an edge."""
LEAST_OWN_STAGE = 0.1
"""A trial with a lower share of its summed learning rate after its method's warm-up is hardly more than the
warm-up: a search draws no such setting, so that no warm-up wins in the name of a method.
"""
_DIGITS = 3  # significant digits of a drawn number
_DRAWS = 1000  # settings drawn at most, times the number of tries, before the space counts as exhausted

Bounds = tuple[float, float]
Settings = dict[str, Any]
"""Values by the keys of a sweep file, without the name of the method."""
Admits = Callable[[Settings], bool]
"""Whether a setting may be a try."""


class Range(StrictModel):
    """The values of one key: one of the four forms."""

    log_uniform: Bounds | None = None
    uniform: Bounds | None = None
    integers: tuple[int, int] | None = None
    choices: list[Any] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Range:
        forms = {k: v for k, v in self if v is not None}
        if len(forms) != 1:
            raise ValueError(
                "expected one of log_uniform, uniform, integers (two bounds) and choices (a list)"
            )
        ((form, value),) = forms.items()
        if form == "choices":
            # Equal numbers make one trial, however they are written; true is no number.
            if len(
                {(isinstance(v, bool), repr(v) if isinstance(v, dict | list) else v) for v in value}
            ) < max(2, len(value)):
                raise ValueError("choices needs at least two values, none of them twice")
            unfit = [v for v in value if isinstance(v, dict | list) or _is_number_as_text(v)]
            if unfit:
                raise ValueError(
                    f"choices are numbers, words, true and false, and {unfit[0]!r} is not (YAML reads 1e-2 "
                    "as text, and 1.0e-2 as a number)"
                )
        elif not value[0] < value[1]:
            raise ValueError(f"{form} needs a lower and a higher bound, found {value[0]:g} and {value[1]:g}")
        elif form == "log_uniform" and value[0] <= 0:
            raise ValueError(f"log_uniform needs a lower bound above 0, found {value[0]:g}")
        return self

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The lowest and the highest value; None for choices."""
        return self.log_uniform or self.uniform or self.integers

    def value(self, share: float) -> Any:
        """The value at a share in [0, 1) of the range, on its scale; numbers to three digits."""
        if self.choices is not None:
            return self.choices[int(share * len(self.choices))]
        if self.integers is not None:
            first, last = self.integers
            return first + int(share * (last - first + 1))
        low, high = self._scaled()
        value = low + share * (high - low)
        return self.rounded(math.exp(value) if self.log_uniform else value)

    def rounded(self, value: float) -> float:
        """A number to three digits, within the bounds."""
        low, high = self._limits()
        return min(max(float(f"{value:.{_DIGITS}g}"), low), high)

    def position(self, value: Any) -> float:
        """The share of the range, on its scale, at which a value lies; of choices the middle of its place."""
        if self.choices is not None:
            return (self.choices.index(value) + 0.5) / len(self.choices)
        low, high = self._scaled()
        return ((math.log(value) if self.log_uniform else value) - low) / (high - low)

    def edge(self, value: Any) -> Literal["low", "high"] | None:
        """The end of the range that a value lies at, if it does."""
        if self.choices is not None:
            return None
        position = self.position(value)
        return "low" if position <= EDGE else "high" if position >= 1 - EDGE else None

    def distribution(self) -> BaseDistribution:
        """The range as Optuna takes it."""
        from optuna import distributions

        if self.choices is not None:
            return distributions.CategoricalDistribution(list(range(len(self.choices))))
        if self.integers is not None:
            return distributions.IntDistribution(*self.integers)
        return distributions.FloatDistribution(*self._limits(), log=self.log_uniform is not None)

    def __str__(self) -> str:
        if self.choices is not None:
            return ", ".join(map(str, self.choices))
        low, high = self._limits()
        scale = ", log scale" if self.log_uniform else ", integers" if self.integers else ""
        return f"{low:g} to {high:g}{scale}"

    def _limits(self) -> tuple[float, float]:
        assert self.bounds is not None
        return self.bounds

    def _scaled(self) -> tuple[float, float]:
        low, high = self._limits()
        return (math.log(low), math.log(high)) if self.log_uniform else (low, high)


def _is_number_as_text(value: Any) -> bool:
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


class EarlyStopping(StrictModel):
    """ASHA (Li et al., MLSys 2020): a trial whose dev rSum is not among the best of its rung is stopped, and
    its try has lost. Trials are compared with those of the same method, ratio and seed.

    Attributes:
        grace_epochs: epochs that every trial trains.
        reduction: of so many trials that reach a rung one goes on; rungs are at the grace times its powers.
    """

    grace_epochs: Annotated[int, Field(ge=1)] = 2
    reduction: Annotated[int, Field(ge=2)] = 2


class Search(StrictModel):
    """How a sweep chooses settings: by the mean over its noise ratios and seeds of dev rSum after the last
    epoch.

    Attributes:
        space: the range of each key: of all methods (`lr`), or of one (`METHOD.KEY`).
        tries: settings of each method.
        sampler: `sobol` (a scrambled Sobol sequence), `random`, or `optuna` (its TPE sampler, if the package
            is installed).
        seed: of the draws: with an equal seed a search has equal tries.
        asha: early stopping; None: every trial trains to its end.
    """

    space: dict[str, Range]
    tries: Annotated[int, Field(ge=2)]
    sampler: Literal["sobol", "random", "optuna"] = "sobol"
    seed: Annotated[int, Field(ge=0)] = 0
    asha: EarlyStopping | None = None

    def ranges(self, method: str) -> dict[str, Range]:
        """The ranges of a method's keys; its own win over those of all methods."""
        shared = {k: r for k, r in self.space.items() if "." not in k}
        own = {k.rpartition(".")[2]: r for k, r in self.space.items() if k.rpartition(".")[0] == method}
        return shared | own

    def settings(
        self, method: str, told: Sequence[tuple[Settings, float | None]] = (), admits: Admits = lambda _: True
    ) -> list[Settings]:
        """The settings of a method's tries, in their order; of `optuna` those tried so far and the next one.

        Args:
            method: the method.
            told: of `optuna`, the settings tried so far with their objectives (None: the try failed).
            admits: whether a setting may be a try; one that may not is drawn anew, as one drawn twice is.

        Raises:
            ValueError: the space has fewer such settings than tries, or Optuna is not installed.
        """
        if self.sampler == "optuna":
            known = [settings for settings, _ in told]
            return known if len(known) >= self.tries else [*known, self._asked(method, told, admits)]
        drawn: dict[str, Settings] = {}
        found: list[Settings] = []
        for settings in itertools.islice(self._drawn(method), _DRAWS * self.tries):
            if drawn.setdefault(repr(settings), settings) is settings and admits(settings):
                found.append(settings)
            if len(found) == self.tries:
                return found
        raise self._exhausted(method, len(found), refused=len(drawn) > len(found))

    def _drawn(self, method: str) -> Iterator[Settings]:
        """Settings without end."""
        ranges = self.ranges(method)
        seed = seed_of("search", self.seed, method)
        if self.sampler == "random":
            draw = np.random.default_rng(seed)
            while True:
                yield {
                    k: r.value(s) for (k, r), s in zip(ranges.items(), draw.random(len(ranges)), strict=True)
                }
        from scipy.stats.qmc import Sobol

        sequence = Sobol(len(ranges), rng=np.random.default_rng(seed))
        while True:
            with warnings.catch_warnings():  # balance needs powers of two, which nobody asks for
                warnings.simplefilter("ignore", UserWarning)
                (point,) = sequence.random(1)
            yield {k: r.value(s) for (k, r), s in zip(ranges.items(), point, strict=True)}

    def _asked(self, method: str, told: Sequence[tuple[Settings, float | None]], admits: Admits) -> Settings:
        """What Optuna tries next; it follows from what was told, so that a search can go on elsewhere."""
        try:
            import optuna
        except ImportError:
            raise ValueError("search.sampler = 'optuna': the package optuna is not installed") from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        ranges = self.ranges(method)
        distributions = {k: r.distribution() for k, r in ranges.items()}
        refused = False
        for number in itertools.count():
            sampler = optuna.samplers.TPESampler(
                seed=seed_of("search", self.seed, method, len(told), number) % 2**32
            )
            study = optuna.create_study(direction="maximize", sampler=sampler)
            for settings, objective in told:
                state = (
                    optuna.trial.TrialState.FAIL if objective is None else optuna.trial.TrialState.COMPLETE
                )
                given = {k: _told(ranges[k], v) for k, v in settings.items()}
                study.add_trial(
                    optuna.trial.create_trial(
                        state=state, value=objective, params=given, distributions=distributions
                    )
                )
            asked = study.ask(distributions).params
            settings = {k: _answered(ranges[k], v) for k, v in asked.items()}
            if settings not in [known for known, _ in told]:
                if admits(settings):
                    return settings
                refused = True
            if number == _DRAWS:
                break
        raise self._exhausted(method, len(told), refused=refused)

    def _exhausted(self, method: str, found: int, *, refused: bool) -> ValueError:
        """The error that a method has fewer settings than tries."""
        text = f"search.space: {method} has {found} distinct settings, and search.tries = {self.tries}"
        if refused:
            text += (
                f"; all others drawn leave its own stage less than {LEAST_OWN_STAGE:.0%} of the summed "
                "learning rate, so that each would be a try of its warm-up (shorten it, or raise epochs)"
            )
        return ValueError(text)


def _told(values: Range, value: Any) -> Any:
    return values.choices.index(value) if values.choices is not None else value


def _answered(values: Range, value: Any) -> Any:
    if values.choices is not None:
        return values.choices[value]
    return value if values.integers is not None else values.rounded(value)


def warmup_epochs(trial: Trial) -> int:
    """The first epochs of a trial that are its method's warm-up. A method that judges pairs by the pretrained
    network (`estimator`) has none; where training begins anew, each round has as many.
    """
    return 0 if judges_before(trial) else trial.hyper.get("warmup_epochs") or 0


def judges_before(trial: Trial) -> bool:
    """Whether a trial's method judges pairs by the network before training, which must be aligned then."""
    return bool(trial.hyper.get("estimator") == "pretrained")


def stage_error(trial: Trial) -> str:
    """Why the own stage of a trial's method never begins; empty where it does. Where training begins anew,
    each round has one.
    """
    warmup, restarts = warmup_epochs(trial), trial.hyper.get("restarts") or 0
    names, rounds = ["warmup_epochs"], [trial.epochs]
    if restarts:
        names = ["warmup_epochs", "restarts", "round_epochs"]
        length = trial.hyper["round_epochs"]
        rounds = [length, trial.epochs - restarts * length]
    if warmup < min(rounds):
        return ""
    told = ", ".join(f"{trial.method}.{name} = {trial.hyper[name]}" for name in names)
    what = "a round ends before" if restarts else "a trial ends before"
    return (
        f"{told} and epochs = {trial.epochs}: {what} the method's own stage begins (shorten the warm-up, or "
        "raise epochs)"
    )


def own_stage(trial: Trial) -> float:
    """The share of a trial's learning rate, summed over steps, that comes after the warm-up epochs of its
    method. The linear warm-up of the learning rate, which is short, is ignored, and rounds are not told
    apart.
    """
    warmup = min(warmup_epochs(trial), trial.epochs)
    if trial.decay_epochs is None:
        share = warmup / trial.epochs
        return 1 - share - math.sin(math.pi * share) / math.pi  # the rest of the integral of the cosine

    def summed(epochs: int) -> float:
        steps = [0, *sorted(e for e in trial.decay_epochs or () if e < epochs), epochs]
        return sum(0.1**i * (end - start) for i, (start, end) in enumerate(itertools.pairwise(steps)))

    return 1 - summed(warmup) / summed(trial.epochs)


def edge_of(
    trial: Trial, key: str, values: Range, value: Any
) -> tuple[Literal["low", "high"], Literal["natural", "set"]] | None:
    """The end of a range that a value lies at, if it does, and whether no search could go beyond it (the next
    value is refused) or the range was set so.

    Args:
        trial: any trial of the method.
        key: a field of a trial, or a hyper-parameter.
        values: its range.
        value: one of them.
    """
    edge = values.edge(value)
    if edge is None:  # a warm-up can be the longest that a try may have, within its range
        longest = values.integers is not None and _refused(trial, key, value + 1)
        return ("high", "natural") if longest else None
    assert values.bounds is not None
    bound = values.bounds[edge == "high"]
    step = 1 if values.integers else 1e-9 * max(1.0, abs(bound))
    beyond = bound + (step if edge == "high" else -step)
    return edge, "natural" if _refused(trial, key, beyond) else "set"


def _refused(trial: Trial, key: str, value: Any) -> bool:
    """Whether a search could not have a value in place of a trial's."""
    try:
        if key in Trial.model_fields:
            changed = Trial.model_validate({**trial.model_dump(mode="json"), key: value})
        else:
            cls: Any = method_class(trial.method)
            hyper = hyper_model(cls).model_validate({**trial.hyper, key: value})
            changed = trial.model_copy(update={"hyper": hyper.model_dump(mode="json")})
    except ValidationError:
        return True
    return own_stage(changed) < min(LEAST_OWN_STAGE, own_stage(trial))


# What a search found -------------------------------------------------------------------------------


class Winner(StrictModel):
    """The best try of a method.

    Attributes:
        settings: the searched keys.
        others: the settings that were the same in all tries of the method, as parameters of a run.
        objective: mean dev rSum after the last epoch.
        at_edge: searched keys whose value lies at an end of its range, natural bounds left out.
    """

    settings: Settings
    others: dict[str, str]
    objective: float
    at_edge: list[str] = Field(default_factory=list)


class SearchResult(StrictModel):
    """What a search found, as it stands in `results/NAME/search.json`.

    Attributes:
        digest: identifies the tries and their objectives.
        tries: of each method.
        missing: tries that have not ended, by method; none in a complete search.
        seeds: of its trials, which no table may use.
        fingerprints: of its data sets, by their label.
    """

    name: str
    protocol_version: int
    digest: str
    tries: int
    missing: dict[str, int]
    seeds: list[int]
    fingerprints: dict[str, str]
    space: dict[str, Range]
    winners: dict[str, Winner]

    def space_of(self, method: str) -> dict[str, Range]:
        """The ranges of a method's keys."""
        return Search(space=self.space, tries=2).ranges(method)

    @property
    def tags(self) -> dict[str, str]:
        """What a record of a trial with these settings says of the search."""
        return {"search": self.name, "search_digest": self.digest, "search_tries": str(self.tries)}


def search_of(found: Iterable[SearchResult], method: str) -> SearchResult | None:
    """The first search that has settings of a method, if one has."""
    return next((result for result in found if method in result.winners), None)


def result_file(name: str) -> Path:
    """The file that holds what a search found."""
    return RESULTS / name / "search.json"


def read_result(name: str) -> SearchResult:
    """What a search found: in `results/` here, or else as it ships.

    Raises:
        ValueError: there is no such file, or it cannot be read.
    """
    file, that_ships = result_file(name), shipped("results") / name / "search.json"
    if not file.is_file() and that_ships.is_file():
        file = that_ships
    try:
        return SearchResult.model_validate_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        names = sorted(
            {p.parent.name for folder in (RESULTS, shipped("results")) for p in folder.glob("*/search.json")}
        )
        raise ValueError(
            f"settings_from = {name!r}: there is no {file} (searches there: {', '.join(names) or 'none'})"
        ) from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"settings_from = {name!r}: {file} cannot be read: {reason}") from None


def digest_of(content: Any) -> str:
    """12 hex digits of JSON content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def shared_settings(
    trial: Trial, ranges: Mapping[str, Range], varied: Collection[str] = ()
) -> dict[str, str]:
    """The parameters of a trial that are neither searched nor an axis of all methods: what a search and a
    sweep that takes its winners have in common.

    Args:
        ranges: the searched keys.
        varied: keys that the sweep varies on purpose.
    """
    prefix = f"{trial.method.rpartition(':')[2]}."
    left_out = {*_AXES, *ranges, *varied}
    return {
        k: str(v)
        for k, v in trial.parameters().items()
        if k.removeprefix(prefix) not in left_out and not k.startswith("noise.")
    }


_AXES = ("seed", "noise_seed", "noise_ratio", "noise_granularity", "perturbed")
