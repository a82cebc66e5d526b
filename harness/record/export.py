"""A bundle of a sweep that the store holds, wherever it ran."""

from __future__ import annotations

from pathlib import Path

from harness.record.bundle import Bundle
from harness.record.store import Store
from harness.record.tries import result_of
from harness.record.types import StoreError


def export_bundle(store: Store, name: str, folder: Path) -> Bundle:
    """Write what the store holds of a sweep as a bundle, as the sweep itself would have left it.

    Args:
        folder: where it goes; finished trials that are there are kept as they are.

    Raises:
        StoreError: there is no such sweep, an array of it is missing, or the folder holds another bundle.
        OSError: the folder cannot be written.
    """
    plan, text = store.plan(name)
    sweep = store.read_sweep(name)
    bundle = Bundle(name, folder)
    there = bundle.sweep_name() if bundle.exists else name
    if there != name:
        raise StoreError(f"{folder} holds the bundle of {there!r}: name another folder")
    bundle.describe(plan, text)
    bundle.add(store, sweep.records.values(), arrays=not sweep.select)
    bundle.close()
    if sweep.search:
        found = result_of(sweep)
        (folder / "search.json").write_text(found.model_dump_json(indent=1, exclude_none=True) + "\n")
    return bundle
