"""The tries of a search, and what it found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from harness.config.search import (
    SearchResult,
    Settings,
    Winner,
    digest_of,
    edge_of,
    shared_settings,
)
from harness.config.trial import Trial
from harness.record.types import SweepRecord, TrialRecord

OBJECTIVE = "dev/rsum"
"""The metric that a search maximises: of a finished trial its value is that of the last epoch, so that no
epoch is chosen."""


@dataclass(frozen=True)
class Try:
    """One setting of a method at all noise ratios and seeds of a search.

    Attributes:
        number: from 1, in the order of the method's tries.
        settings: the searched keys.
        trials: all planned ones.
        failed: whether one of them has failed; the try counts, and cannot win.
        stopped: whether one of them was stopped early; the same.
        objective: mean of `OBJECTIVE` over the trials; None until all are done.
    """

    method: str
    number: int
    settings: Settings
    trials: tuple[Trial, ...]
    failed: bool
    stopped: bool
    objective: float | None

    @property
    def ended(self) -> bool:
        """Whether it has an objective, or cannot have one any more."""
        return self.failed or self.stopped or self.objective is not None


def tries_of(sweep: SweepRecord) -> dict[str, list[Try]]:
    """The tries of each method of a search, in their order."""
    assert sweep.search is not None, f"{sweep.name} is no search"
    collected: dict[str, dict[str, list[Trial]]] = {}
    for trial in sweep.planned:
        settings = searched(trial, sweep.search.ranges(trial.method))
        collected.setdefault(trial.method, {}).setdefault(repr(settings), []).append(trial)
    return {
        method: [
            _try(method, number, searched(trials[0], sweep.search.ranges(method)), trials, sweep.records)
            for number, trials in enumerate(of_method.values(), start=1)
        ]
        for method, of_method in collected.items()
    }


def searched(trial: Trial, keys: Iterable[str]) -> Settings:
    """The values that a trial has of searched keys."""
    fields = trial.model_dump(mode="json")
    return {key: fields[key] if key in fields else trial.hyper[key] for key in keys}


def _try(
    method: str, number: int, settings: Settings, trials: list[Trial], records: dict[str, TrialRecord]
) -> Try:
    known = [records[t.id] for t in trials if t.id in records]
    values = [r.metrics[OBJECTIVE] for r in known if r.done]
    complete = len(values) == len(trials)
    failed, stopped = any(r.status == "FAILED" for r in known), any(r.stopped_early for r in known)
    return Try(method, number, settings, tuple(trials), failed, stopped, fmean(values) if complete else None)


def best_of(tries: Iterable[Try]) -> Try | None:
    """The try with the highest objective, the first among equals; None where none has one."""
    candidates = [t for t in tries if t.objective is not None]
    return max(candidates, key=lambda t: (t.objective or 0, -t.number), default=None)


def result_of(sweep: SweepRecord) -> SearchResult:
    """What a search has found so far."""
    search = sweep.search
    assert search is not None, f"{sweep.name} is no search"
    tries = tries_of(sweep)
    planned = list(sweep.planned)
    fingerprints = {
        t.dataset_label: sweep.records[t.id].tags.get("data_fingerprint", "")
        for t in planned
        if t.id in sweep.records and sweep.records[t.id].done
    }
    told = {m: [(t.settings, t.objective) for t in of_method] for m, of_method in tries.items()}
    return SearchResult(
        name=sweep.name,
        protocol_version=sweep.protocol_version,
        digest=digest_of(told),
        tries=search.tries,
        missing={m: search.tries - sum(t.ended for t in of_method) for m, of_method in tries.items()},
        seeds=sorted({t.seed for t in planned} | {t.noise_seed for t in planned}),
        fingerprints=fingerprints,
        space=search.space,
        winners={m: winner for m, of_method in tries.items() if (winner := _winner(sweep, of_method))},
    )


def _winner(sweep: SweepRecord, tries: list[Try]) -> Winner | None:
    best = best_of(tries)
    if best is None or best.objective is None or sweep.search is None:
        return None
    ranges = sweep.search.ranges(best.method)
    trial = best.trials[0]
    edges = {key: edge_of(trial, key, ranges[key], value) for key, value in best.settings.items()}
    return Winner(
        settings=best.settings,
        others=shared_settings(trial, ranges),
        objective=best.objective,
        at_edge=[key for key, edge in edges.items() if edge and edge[1] == "set"],
    )
