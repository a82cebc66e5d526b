"""The bundle of a running sweep: trials that it holds are restored before the sweep runs, and each trial that
ends is added to it.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.config.sweep_file import BadInput, Sweep
from harness.config.trial import Trial
from harness.lib.console import console
from harness.record.bundle import Bundle
from harness.record.store import Store, plan_of
from harness.record.types import Incomplete, StoreError, SweepHandle, TrialRecord
from harness.sweep.search import write_found


def known_records(sweep: Sweep, store: Store | None) -> dict[str, TrialRecord]:
    """What is on record of a sweep's trials: in the store, and in its bundle where the store has no finished
    run.
    """
    stored = store.find_records(sweep.name, sweep.trials) if store else {}
    bundled = Bundle(sweep.name).records(sweep.trials)
    final = {i: r for i, r in bundled.items() if r.done or r.stopped_early or i not in stored}
    return {**stored, **{i: r for i, r in final.items() if i not in stored or not stored[i].done}}


class Keeper:
    """Keeps the bundle of a sweep.

    Args:
        handle: the sweep in the store, which is open.
    """

    def __init__(self, sweep: Sweep, store: Store, handle: SweepHandle) -> None:
        self.sweep, self.store, self.handle = sweep, store, handle
        self.bundle = Bundle(sweep.name)
        self.complained = False

    def restore(self) -> None:
        """Put into the store what the bundle has and the store lacks.

        Raises:
            BadInput: a file of the bundle is missing or damaged.
        """
        if not self.bundle.exists:
            return
        try:
            restored = self.bundle.restore(self.store, self.handle, self.sweep.trials)
        except Incomplete as error:
            raise BadInput([str(error)]) from None
        if restored:
            console.print(f"restored from {self.bundle.folder}: {restored} finished trials")

    def begin(self) -> None:
        """Write the plan, which may have grown, and what of a search is missing then."""
        try:
            self.bundle.describe(plan_of(self.sweep), self.sweep.text)
            self._write_found()
        except (OSError, StoreError) as error:
            self._complain(error)

    def keep(self, trials: Iterable[Trial]) -> None:
        """Add those of the trials that are over. What cannot be added now is added at the end: the store has
        it, and a trial that has ended must not fail for its copy.
        """
        try:
            records = self.store.records(self.handle, trials).values()
            self.bundle.add(self.store, records, arrays=not self.sweep.file.chooses)
        except (OSError, StoreError) as error:
            self._complain(error)

    def end(self) -> None:
        """Add what is missing (it ended elsewhere, or in a process that died right after), and write what a
        search has found.
        """
        self.keep(self.sweep.trials)
        for write in (self.bundle.close, self._write_found):
            try:
                write()
            except (OSError, StoreError) as error:
                self._complain(error)

    def _write_found(self) -> None:
        if self.sweep.file.search:
            write_found(self.sweep, lambda given: self.store.records(self.handle, given))

    def _complain(self, error: Exception) -> None:
        """Once: the store has everything."""
        if not self.complained:
            console.print(f"note: {self.bundle.folder} cannot be written now: {error}", markup=False)
        self.complained = True
