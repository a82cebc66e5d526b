"""What a report is made from: a sweep's record, and how to reach into its runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from numpy.typing import NDArray

from harness.record.store import Store
from harness.record.types import SweepRecord

Arrays = Mapping[str, NDArray]


@dataclass(frozen=True)
class Source:
    """A sweep's record.

    Attributes:
        read: the arrays of an artifact of a run (`test_rankings.npz`); raises StoreError where there is none.
        names: the artifacts in a folder of a run, sorted; empty where there is none.
        link: where a run is shown in the MLflow UI.
    """

    sweep: SweepRecord
    read: Callable[[str, str], Arrays]
    names: Callable[[str, str], Sequence[str]]
    link: Callable[[str], str]


def from_store(store: Store, name: str) -> Source:
    """A sweep as the store holds it.

    Raises:
        StoreError: no such sweep, or one of another protocol version.
    """
    sweep = store.read_sweep(name)
    return Source(sweep, store.read_array, store.client.artifacts, store.runs_address(name).__add__)
