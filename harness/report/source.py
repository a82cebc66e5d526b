"""Input of a report: the record of a sweep, and access to the artifacts of its runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from numpy.typing import NDArray

from harness.record.store import Store
from harness.record.summary import MODEL_TRAINING, views
from harness.record.types import SweepRecord

Arrays = Mapping[str, NDArray]


@dataclass(frozen=True)
class Source:
    """The record of a sweep, and access to its runs.

    Attributes:
        sweep: plan, records and facts of methods.
        read: (run, path) -> the arrays of an artifact (`test_rankings.npz`); raises StoreError if missing.
        names: (run, directory) -> paths of the artifacts in it, sorted; empty if there are none.
        link: run -> its address in the MLflow UI.
        views: names and addresses of the prepared views in the MLflow UI.
    """

    sweep: SweepRecord
    read: Callable[[str, str], Arrays]
    names: Callable[[str, str], Sequence[str]]
    link: Callable[[str], str]
    views: Sequence[tuple[str, str]] = ()


def from_store(store: Store, name: str) -> Source:
    """A sweep as the store holds it.

    Raises:
        StoreError: no such sweep, or one of another protocol version.
    """
    sweep = store.read_sweep(name)
    experiment_id = store.client.experiment_id(name) or ""
    runs = store.address(experiment_id)
    return Source(
        sweep,
        store.read_array,
        store.client.artifacts,
        lambda run: f"{runs}/{run}?{MODEL_TRAINING}",
        views(store, experiment_id),
    )
