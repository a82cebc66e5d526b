"""Input of a report: the record of a sweep, and access to the artifacts of its runs, from the store or from a
bundle of plain files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from numpy.typing import NDArray

from harness.record.bundle import Bundle
from harness.record.store import Store, require
from harness.record.summary import MODEL_TRAINING, views
from harness.record.types import StoreError, SweepRecord

Arrays = Mapping[str, NDArray]


@dataclass(frozen=True)
class Source:
    """The record of a sweep, and access to its runs.

    Attributes:
        sweep: plan, records and facts of methods.
        read: (run, path) -> the arrays of an artifact (`test_rankings.npz`); raises StoreError if missing.
        names: (run, directory) -> paths of the artifacts in it, sorted; empty if there are none.
        curve: (run, metric) -> its values by epoch; empty without them.
        link: run -> its address in the MLflow UI; empty where the runs are in no store.
        views: names and addresses of the prepared views in the MLflow UI.
        left_out: external rows that do not fit the sweep, each with the reason.
    """

    sweep: SweepRecord
    read: Callable[[str, str], Arrays]
    names: Callable[[str, str], Sequence[str]]
    curve: Callable[[str, str], Mapping[int, float]]
    link: Callable[[str], str]
    views: Sequence[tuple[str, str]] = ()
    left_out: Sequence[str] = ()


def from_store(store: Store, name: str) -> Source:
    """A sweep as the store holds it.

    Raises:
        StoreError: no such sweep, or one of a later protocol version.
    """
    sweep = store.read_sweep(name)
    experiment_id = store.client.experiment_id(name) or ""
    runs = store.address(experiment_id)
    return Source(
        sweep,
        store.read_array,
        store.client.artifacts,
        lambda run, metric: dict(store.client.history(run, metric)),
        lambda run: f"{runs}/{run}?{MODEL_TRAINING}",
        views(store, experiment_id),
    )


def from_bundle(bundle: Bundle) -> Source:
    """A sweep as its bundle holds it. Raises StoreError where it cannot be read."""
    return Source(bundle.sweep(), bundle.read, bundle.names, bundle.curve, lambda run: "")


def find_source(name: str, uri: str | None) -> Source:
    """A sweep from the store or from its bundle, whichever has more of its trials; the store among equals.

    Args:
        uri: of the store; None: the default one.

    Raises:
        StoreError: neither has it.
    """
    bundle = Bundle(name)
    try:
        require(uri)
        stored = from_store(Store(uri, patient=False), name)
    except StoreError as error:
        if not bundle.exists:
            raise StoreError(f"{error}; there is no bundle {bundle.folder} either") from None
        return from_bundle(bundle)
    bundled = from_bundle(bundle) if bundle.exists else stored
    return bundled if _done(bundled) > _done(stored) else stored


def _done(source: Source) -> int:
    return sum(r.done for r in source.sweep.records.values())
