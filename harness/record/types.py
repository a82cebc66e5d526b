"""What a trial leaves, and what a store holds of it. No torch, no Ray, no MLflow: reading a record stays
quick.
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from harness import PROTOCOL_VERSION
from harness.config.search import Search
from harness.config.trial import Trial, method_class
from harness.data.base import DataSet
from harness.evaluation.metrics import Ranking
from harness.noise.index import NoiseIndex

# What goes wrong ------------------------------------------------------------------------------------


class StoreError(RuntimeError):
    """The tracking store does not answer, or lacks what is asked for; the text is for the user."""


class Incomplete(StoreError):
    """A bundle lacks a file, or has a damaged one, so that a trial cannot be restored from it."""


class AlreadyDone(RuntimeError):
    """The trial is on record as finished."""


class AlreadyFailed(RuntimeError):
    """Another sweep that runs at the same time has recorded the trial as failed."""


class AlreadyStopped(RuntimeError):
    """Another sweep that runs at the same time has stopped the trial early."""


class DataChanged(RuntimeError):
    """The data are not those that the trial, or its sweep, was started with."""


class CodeChanged(RuntimeError):
    """The code that makes numbers is not the one that the sweep was started with."""


class Diverged(RuntimeError):
    """The loss or a similarity is not finite."""


def describe_failure(error: BaseException) -> tuple[str, str]:
    """A failure in one line, and its traceback."""
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
    return reason, "".join(traceback.format_exception(error))


# What a running trial hands to its recorder ---------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """What is known about a trial before it trains; it goes into the record.

    Attributes:
        fingerprint: identifies the data set and the files that the noise is made from.
        parameters: number of trained parameters.
        environment: tags: versions, commit, digest of the code, device, precision, processes.
    """

    trial: Trial
    data: DataSet
    noise: NoiseIndex
    fingerprint: str
    uses_clean_data: bool
    uses_ground_truth: bool
    n_networks: int
    trains: bool
    parameters: int
    environment: Mapping[str, str]


@dataclass
class EpochRecord:
    """What one epoch leaves.

    Attributes:
        metrics: scalars by name.
        confidence: the method's confidence [N], if it has one.
        diagnostics: further values of each training pair [N], by name (`Method.diagnostics`).
    """

    epoch: int
    metrics: dict[str, float]
    confidence: NDArray[np.floating] | None
    diagnostics: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)


@dataclass
class Outcome:
    """What a trial ends with.

    Attributes:
        metrics: `last/...` (the last epoch), `test/...` (the epoch with the best dev rSum) and `cost/...`.
        rankings: image-to-text and text-to-image rankings of the test split, of `last` and of `test`.
        weights: the digest of the last epoch's weights.
    """

    metrics: dict[str, float]
    rankings: Mapping[str, tuple[Ranking, Ranking]]
    weights: str


class Recorder(Protocol):
    """Receives a trial's results. Called on the main process only, which holds the lock of the trial."""

    def start(self, setup: Setup) -> float:
        """Start, or resume. Returns the number of epochs on record: a checkpoint of more would leave a hole.

        Raises:
            Busy: a process with a storage folder of its own is running it.
            AlreadyDone, AlreadyFailed, AlreadyStopped: it is on record as finished, as just failed, or as
                stopped early.
            DataChanged: the record is of other data.
        """

    def note(self, text: str) -> None:
        """Add a line to the history of the trial."""

    def epoch(self, record: EpochRecord) -> None:
        """Keep an epoch's results."""

    def finish(self, outcome: Outcome) -> None:
        """Keep the final results, and mark the trial as finished."""

    def close(self) -> None:
        """The attempt has ended, however it did."""


STOPPED_EARLY = "stopped_early"
"""The tag of a trial that its search has stopped, with the epoch."""
RESTORED = "restored_from"
"""The tag of a run that was made from a bundle, with its folder."""
WITHOUT_ARRAYS = "restored_without_arrays"
"""The tag of such a run where the bundle kept no arrays of it, as that of a search."""

# What the store holds -------------------------------------------------------------------------------


@dataclass(frozen=True)
class SweepHandle:
    """Where a sweep's runs are; plain data, so that it travels to other processes."""

    uri: str
    sweep: str
    experiment_id: str
    parent_run: str

    @property
    def folder(self) -> str:
        """The name of the sweep's folder in a storage: a sweep of the same name in another store has
        another.
        """
        store = hashlib.sha256(f"{self.uri} {self.experiment_id}".encode()).hexdigest()[:6]
        return f"{self.sweep}-{store}"

    def directory(self, storage: Path, trial: Trial) -> Path:
        """Where a trial keeps its checkpoints."""
        return storage / self.folder / trial.id


@dataclass(frozen=True)
class TrialRecord:
    """What the store holds of one trial."""

    trial: Trial
    run_id: str
    status: str
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether it is finished and carries its test metrics."""
        return self.status == "FINISHED" and "test/rsum" in self.metrics

    @property
    def over(self) -> bool:
        """Whether no attempt is under way: it is done, has failed, or was stopped early by its search."""
        return self.done or self.status == "FAILED" or self.stopped_early

    @property
    def stopped_early(self) -> bool:
        """Whether its search has stopped it, so that it is not run again."""
        return STOPPED_EARLY in self.tags and not self.done


@dataclass(frozen=True)
class MethodFacts:
    """What a reader of a table must know of a method; its class says it, and a sweep's plan keeps it.

    Attributes:
        published: what the method is called in tables of published results.
        family: one of `methods.FAMILIES`; older plans have none.
    """

    uses_clean_data: bool
    uses_ground_truth: bool
    published: tuple[str, ...]
    family: str = "other"

    @classmethod
    def of(cls, name: str) -> MethodFacts:
        """The facts of a method by name. Loads its class. Raises UnknownName."""
        method = method_class(name)
        return cls(method.uses_clean_data, method.uses_ground_truth, tuple(method.published), method.family)


@dataclass(frozen=True)
class SweepRecord:
    """The plan of a sweep, and what the store holds of it: at most one record for each planned trial.

    Attributes:
        select: whether it chooses settings, on dev.
        methods: the facts of each planned method, by name.
        search: the space that its settings are drawn from, if they are.
    """

    name: str
    description: str
    select: bool
    planned: tuple[Trial, ...]
    records: dict[str, TrialRecord]
    methods: Mapping[str, MethodFacts]
    reference: str | None = None
    search: Search | None = None
    protocol_version: int = PROTOCOL_VERSION


@dataclass(frozen=True)
class Speed:
    """How fast a finished trial trained."""

    method: str
    dataset: str
    backbone: dict[str, Any]
    batch_size: int
    steps_per_second: float
    device: str
    processes: str
