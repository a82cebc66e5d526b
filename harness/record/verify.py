"""Whether finished records are complete, and whether a trial that is run again gives the numbers
on record.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from harness import PROTOCOL_VERSION
from harness.config.trial import Trial, method_class
from harness.evaluation.metrics import RECALLS, Ranking, recalls
from harness.noise.index import index_digest
from harness.record.arrays import coarse
from harness.record.bundle import Bundle
from harness.record.recorder import split_ranks
from harness.record.store import Store
from harness.record.types import (
    RESTORED,
    WITHOUT_ARRAYS,
    EpochRecord,
    Outcome,
    Setup,
    StoreError,
    SweepHandle,
    TrialRecord,
)

_TAGS = (
    "data_fingerprint",
    "noise_digest",
    "git_commit",
    "backbone_digest",
    "device",
    "precision",
    "processes",
    "threads",
)
_METRICS = (
    *(f"{part}/{m}" for part in ("test", "last") for m in (*RECALLS, "rsum")),
    "dev/best_rsum",
    "dev/best_epoch",
    "cost/seconds",
)
_COMPARED = ("test/", "last/", "dev/", "train/", "trained_on/", "detection/")
_ROUNDING = (
    "Sums may be rounded differently there, and a method that selects pairs by a threshold then trains on "
    "others"
)


class Differs(RuntimeError):
    """A trial that was run again gave other numbers than those on record."""


def errors_of(store: Store, record: TrialRecord) -> list[str]:
    """What a finished record lacks, and what is inconsistent in it; empty where it is complete and valid."""
    errors = [f"tag {k} is missing" for k in _TAGS if not record.tags.get(k)]
    version = record.tags.get("protocol_version")
    if version != str(PROTOCOL_VERSION):
        errors.append(f"it is of protocol version {version}, and this is {PROTOCOL_VERSION}")
    errors += [
        f"metric {k} is missing or not finite"
        for k in _METRICS
        if not math.isfinite(record.metrics.get(k, math.nan))
    ]
    written = store.client.get_run(record.run_id).params
    other = [k for k, v in record.trial.parameters().items() if written.get(k) != str(v)[:6000]]
    if other:
        errors.append(f"its parameters are not the trial's: {', '.join(other)}")
    checks = (_ranking_errors, _epoch_errors, _noise_errors)
    for check in (_epoch_errors,) if WITHOUT_ARRAYS in record.tags else checks:
        try:
            errors += check(store, record)
        except (StoreError, KeyError, ValueError) as error:
            errors.append(f"{type(error).__name__}: {error}")
    return errors


def _ranking_errors(store: Store, record: TrialRecord) -> list[str]:
    """The recalls on record are those of the rankings kept."""
    errors = []
    for epoch in ("last", "test"):
        arrays = store.read_array(record.run_id, f"{epoch}_rankings.npz")
        recomputed = recalls(Ranking.of(arrays, "i2t"), Ranking.of(arrays, "t2i"))
        errors += [
            f"{epoch}/{m} is {record.metrics.get(f'{epoch}/{m}')}, and its rankings give {recomputed[m]}"
            for m in (*RECALLS, "rsum")
            if not math.isclose(recomputed[m], record.metrics.get(f"{epoch}/{m}", math.nan), abs_tol=1e-9)
        ]
    return errors


def _epoch_errors(store: Store, record: TrialRecord) -> list[str]:
    """Each epoch is on record once, the best is the best, and a confidence that was scored is an artifact."""
    trial = record.trial
    if not method_class(trial.method).trains:
        return []
    errors = []
    epochs = sorted(step for step, _ in store.client.history(record.run_id, "seconds/train"))
    if epochs != list(range(trial.epochs)):
        errors.append(f"epochs on record are {_shortly(epochs)}, and the trial has {trial.epochs}")
    dev = dict(store.client.history(record.run_id, "dev/rsum"))
    if (
        not dev
        or max(dev.values()) != record.metrics.get("dev/best_rsum")
        or dev.get(int(record.metrics.get("dev/best_epoch", -1))) != max(dev.values())
    ):
        errors.append("dev/best_rsum and dev/best_epoch are not those of the best epoch on dev")
    artifacts = store.client.artifacts(record.run_id, "confidence")
    scored = sorted(
        f"confidence/epoch_{epoch:03d}.npz"
        for epoch, _ in store.client.history(record.run_id, "detection/ece")
    )
    if RESTORED in record.tags:  # a bundle keeps the last epoch's
        scored = [] if WITHOUT_ARRAYS in record.tags else scored[-1:]
    return errors + [f"artifact {name} is missing" for name in scored if name not in artifacts]


def _noise_errors(store: Store, record: TrialRecord) -> list[str]:
    """The noise index kept is the one whose digest is on record."""
    image = store.read_array(record.run_id, "noise_index.npz")["image"]
    if not record.trial.noise.changes_words and index_digest(image) != record.tags.get("noise_digest"):
        return ["its noise index has another digest than the one on record"]
    return []


def _shortly(epochs: list[int]) -> str:
    return f"{epochs[:12]}{' and more' if len(epochs) > 12 else ''}"


@dataclass(frozen=True)
class OnRecord:
    """What is on record of a trial that is run again.

    Attributes:
        confidences: paths of the confidences that were kept.
        read: the arrays of a path.
        rounded: whether confidences were kept as multiples of 1/256.
    """

    record: TrialRecord
    confidences: frozenset[str]
    read: Callable[[str], Mapping[str, np.ndarray]]
    rounded: bool

    @classmethod
    def in_store(cls, handle: SweepHandle, trial: Trial) -> OnRecord:
        """As the store has it. Raises StoreError where the store does not answer."""
        store = Store(handle.uri)
        record = store.records(handle, [trial])[trial.id]
        names = frozenset(store.client.artifacts(record.run_id, "confidence"))
        return cls(record, names, lambda path: store.read_array(record.run_id, path), RESTORED in record.tags)

    @classmethod
    def in_bundle(cls, bundle: Bundle, record: TrialRecord) -> OnRecord:
        """As a bundle has it; that of a search has no confidences."""
        names = frozenset(bundle.names(record.run_id, "confidence"))
        return cls(record, names, lambda path: bundle.read(record.run_id, path), True)


class Comparison:
    """A recorder that keeps nothing: it compares a trial that is run again with its record.

    Args:
        find: gives the record, once the trial has started.

    Attributes:
        environment: the one that the trial is run in.
        moved: where that is another than the one on record, commits aside.
        differences: what is not equal to the last bit.
    """

    def __init__(self, find: Callable[[], OnRecord]) -> None:
        self.find = find
        self.environment: Mapping[str, str] = {}
        self.moved: list[str] = []
        self.differences: list[str] = []
        self._last_epoch: Mapping[str, float] = {}

    def start(self, setup: Setup) -> float:
        """Compare data, noise index and environment."""
        self.known = self.find()
        self.record, self.environment = self.known.record, setup.environment
        known: Mapping[str, str] = self.record.tags
        self.moved = [
            f"{k} {known[k]} then, {v} now"
            for k, v in setup.environment.items()
            if k != "git_commit" and known.get(k, v) != v
        ]
        for key, now in (("data_fingerprint", setup.fingerprint), ("noise_digest", setup.noise.digest)):
            if known.get(key) != now:
                self.differences.append(f"{key} is {known.get(key)} on record, {now} now")
        return 0

    def note(self, text: str) -> None:
        """A repeated trial has no history."""

    def epoch(self, record: EpochRecord) -> None:
        """Compare the confidence of an epoch, bit for bit; what it has of dev is compared at the end."""
        self._last_epoch = record.metrics
        file = f"confidence/epoch_{record.epoch:03d}.npz"
        if record.confidence is not None and file in self.known.confidences:
            kept = self.known.read(file)["confidence"]
            now = coarse(record.confidence) if self.known.rounded else record.confidence.astype(kept.dtype)
            if not np.array_equal(kept, now):
                self.differences.append(
                    f"confidence of epoch {record.epoch}, by up to {np.abs(kept - now).max():.3g}"
                )

    def finish(self, outcome: Outcome) -> None:
        """Raises Differs where anything is not the same to the last bit."""
        for key, value in sorted(split_ranks({**self._last_epoch, **outcome.metrics})[0].items()):
            kept = self.record.metrics.get(key, math.nan)
            if key.startswith(_COMPARED) and value != kept and not math.isnan(value) & math.isnan(kept):
                self.differences.append(f"{key} is {kept} on record, {value} now ({value - kept:+.3g})")
        digest = self.record.tags.get("weights_digest", outcome.weights)
        if digest != outcome.weights:
            self.differences.append(f"the weights are {digest} on record, {outcome.weights} now")
        if self.differences:
            where = (
                f" (it was recorded elsewhere: {'; '.join(self.moved)}. {_ROUNDING})" if self.moved else ""
            )
            raise Differs(
                f"{'; '.join(self.differences[:6])}{' and more' if len(self.differences) > 6 else ''}{where}"
            )

    def close(self) -> None:
        """Nothing is open."""
