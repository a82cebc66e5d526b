"""Whether finished records are whole, and whether a trial that is run again gives the numbers on record."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from harness import PROTOCOL_VERSION
from harness.config.sweep_file import Trial, method_class
from harness.evaluation.metrics import RECALLS, Ranking, recalls
from harness.noise.index import index_digest
from harness.record.store import Store, StoreError, SweepHandle, TrialRecord, parameters
from harness.training.run_trial import Setup
from harness.training.trainer import EpochRecord, Outcome

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
_COMPARED = ("test/", "last/", "dev/")


class Differs(RuntimeError):
    """A trial that was run again gave other numbers than those on record."""


def faults_of(store: Store, record: TrialRecord) -> list[str]:
    """What a finished record lacks, or what does not fit together in it; empty where it is whole."""
    faults = [f"tag {k} is missing" for k in _TAGS if not record.tags.get(k)]
    version = record.tags.get("protocol_version")
    if version != str(PROTOCOL_VERSION):
        faults.append(f"it is of protocol version {version}, and this is {PROTOCOL_VERSION}")
    faults += [
        f"metric {k} is missing or not finite"
        for k in _METRICS
        if not math.isfinite(record.metrics.get(k, math.nan))
    ]
    written = store.parameters(record.run_id)
    other = [k for k, v in parameters(record.trial).items() if written.get(k) != str(v)[:6000]]
    if other:
        faults.append(f"its parameters are not the trial's: {', '.join(other)}")
    for check in (_ranking_faults, _epoch_faults, _noise_faults):
        try:
            faults += check(store, record)
        except (StoreError, KeyError, ValueError) as error:
            faults.append(f"{type(error).__name__}: {error}")
    return faults


def _ranking_faults(store: Store, record: TrialRecord) -> list[str]:
    """The recalls on record are those of the rankings kept."""
    kept = store.read_array(record.run_id, "test_rankings.npz")
    found = recalls(Ranking(kept["i2t_rank"], kept["i2t_top"]), Ranking(kept["t2i_rank"], kept["t2i_top"]))
    return [
        f"test/{m} is {record.metrics.get(f'test/{m}')}, and its rankings give {found[m]}"
        for m in (*RECALLS, "rsum")
        if not math.isclose(found[m], record.metrics.get(f"test/{m}", math.nan), abs_tol=1e-9)
    ]


def _epoch_faults(store: Store, record: TrialRecord) -> list[str]:
    """Every epoch stands there once, the best is the best, and a confidence that was scored is there."""
    trial = record.trial
    if not method_class(trial.method).trains:
        return []
    faults = []
    epochs = sorted(step for step, _ in store.history(record.run_id, "seconds/train"))
    if epochs != list(range(trial.epochs)):
        faults.append(f"epochs on record are {_shortly(epochs)}, and the trial has {trial.epochs}")
    dev = dict(store.history(record.run_id, "dev/rsum"))
    if (
        not dev
        or max(dev.values()) != record.metrics.get("dev/best_rsum")
        or dev.get(int(record.metrics.get("dev/best_epoch", -1))) != max(dev.values())
    ):
        faults.append("dev/best_rsum and dev/best_epoch are not those of the best epoch on dev")
    kept = store.artifacts(record.run_id, "confidence")
    scored = (
        f"confidence/epoch_{epoch:03d}.npz" for epoch, _ in store.history(record.run_id, "detection/ece")
    )
    return faults + [f"artifact {name} is missing" for name in scored if name not in kept]


def _noise_faults(store: Store, record: TrialRecord) -> list[str]:
    """The noise index kept is the one whose digest is on record."""
    image = store.read_array(record.run_id, "noise_index.npz")["image"]
    if not record.trial.noise.changes_words and index_digest(image) != record.tags.get("noise_digest"):
        return ["its noise index is not the one of its digest"]
    return []


def _shortly(epochs: list[int]) -> str:
    return f"{epochs[:12]}{' and more' if len(epochs) > 12 else ''}"


class Comparison:
    """A recorder that keeps nothing: it compares a trial that is run again with what is on record of it."""

    def __init__(self, place: SweepHandle, trial: Trial) -> None:
        self.place, self.trial = place, trial
        self.differences: list[str] = []

    def start(self, setup: Setup) -> float:
        self.store = Store(self.place.uri)
        self.record = self.store.records(self.place, [self.trial])[self.trial.id]
        known: Mapping[str, str] = self.record.tags
        self.moved = [
            f"{k} {known[k]} then, {v} now"
            for k, v in setup.environment.items()
            if k != "git_commit" and known.get(k, v) != v
        ]
        for key, now in (("data_fingerprint", setup.fingerprint), ("noise_digest", setup.noise.digest)):
            if known.get(key) != now:
                self.differences.append(f"{key} is {known.get(key)} on record, {now} now")
        self.confidences = set(self.store.artifacts(self.record.run_id, "confidence"))
        return 0

    def note(self, text: str) -> None:
        pass

    def epoch(self, record: EpochRecord) -> None:
        file = f"confidence/epoch_{record.epoch:03d}.npz"
        if record.confidence is not None and file in self.confidences:
            kept = self.store.read_array(self.record.run_id, file)["confidence"]
            if not np.array_equal(kept, record.confidence):
                self.differences.append(
                    f"confidence of epoch {record.epoch}, by up to "
                    f"{np.abs(kept - record.confidence).max():.3g}"
                )

    def finish(self, outcome: Outcome) -> None:
        """Raises Differs where anything is not the same to the last bit."""
        for key in sorted(outcome.metrics):
            if key.startswith(_COMPARED) and outcome.metrics[key] != self.record.metrics.get(key):
                self.differences.append(
                    f"{key} is {self.record.metrics.get(key)} on record, {outcome.metrics[key]} now"
                )
        digest = self.record.tags.get("weights_digest", outcome.weights)
        if digest != outcome.weights:
            self.differences.append(f"the weights are {digest} on record, {outcome.weights} now")
        if self.differences:
            where = f" (it was recorded elsewhere: {'; '.join(self.moved)})" if self.moved else ""
            raise Differs(
                f"{'; '.join(self.differences[:6])}{' and more' if len(self.differences) > 6 else ''}{where}"
            )
