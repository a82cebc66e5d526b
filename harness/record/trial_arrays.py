"""The arrays of a bundle's trials: a file for each while trials are added, and those of a complete sweep
together, which takes a third less.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from harness.record.arrays import array_names, read_arrays, save_arrays
from harness.record.types import StoreError

_TRIAL = "trial"
"""The array of a packed file that names its trials."""


class TrialArrays:
    """Arrays by trial, `TRIAL.npz`; packed, all trials whose arrays have the same names and shapes share a
    file `N_trials_DIGEST.npz`, in which each array has a first axis of trials, and `trial` has their ids.

    Whoever saves or packs holds the bundle's lock.

    Args:
        folder: of the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._packs: dict[Path, dict[str, np.ndarray]] = {}

    def save(self, trial_id: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the arrays of a trial."""
        save_arrays(self._own(trial_id), arrays)

    def names(self, trial_id: str) -> list[str]:
        """The names of a trial's arrays; empty where it has none. Raises StoreError for a damaged file."""
        own = self._own(trial_id)
        return array_names(own) if own.is_file() else list(self._packed(trial_id))

    def read(self, trial_id: str, part: str = "") -> dict[str, np.ndarray]:
        """The arrays of a trial whose names begin with `part`, without it.

        Raises:
            StoreError: it has no arrays, or a file is damaged.
        """
        own = self._own(trial_id)
        arrays = {} if own.is_file() else self._packed(trial_id)
        if not arrays:
            return read_arrays(own, part)
        return {name.removeprefix(part): array for name, array in arrays.items() if name.startswith(part)}

    def files(self) -> dict[Path, list[str]]:
        """All files, with the trials that each holds. Raises StoreError for a damaged file."""
        packed = {file: [str(trial) for trial in self._pack(file)[_TRIAL]] for file in self._files()}
        own = {file: [file.stem] for file in self._folder.glob("*.npz") if file not in packed}
        return packed | own

    def pack(self, trials: Sequence[str]) -> None:
        """Put the arrays of these trials together, in place of a file for each and of what was packed before.

        Raises:
            OSError: a file cannot be written or removed.
            StoreError: one of them has no arrays, or a file is damaged.
        """
        own = [file for trial in trials if (file := self._own(trial)).is_file()]
        if not own:
            return
        forms: dict[tuple[object, ...], dict[str, dict[str, np.ndarray]]] = {}
        for trial in trials:
            arrays = self.read(trial)
            form = tuple(sorted((name, array.shape) for name, array in arrays.items()))
            forms.setdefault(form, {})[trial] = arrays
        before = self._files()
        written = {self._write(together) for together in forms.values()}
        for file in {*own, *before} - written:
            file.unlink()

    def _write(self, together: Mapping[str, Mapping[str, np.ndarray]]) -> Path:
        """Write the arrays of trials of one form as a file whose name depends on what is in it."""
        first = next(iter(together.values()))
        stacked = {name: np.stack([arrays[name] for arrays in together.values()]) for name in first}
        ids = np.array(list(together))
        digest = hashlib.sha256(b"".join(x.tobytes() for x in (ids, *stacked.values()))).hexdigest()[:12]
        file = self._folder / f"{len(ids)}_trials_{digest}.npz"
        save_arrays(file, {_TRIAL: ids, **stacked}, sync=True)  # on the disk before what it replaces goes
        return file

    def _packed(self, trial_id: str) -> dict[str, np.ndarray]:
        """The arrays of a trial in a packed file; empty where it is in none. Raises StoreError where it may
        be in a damaged one.
        """
        damaged = None
        for file in self._files():
            try:
                arrays = self._pack(file)
            except StoreError as error:
                damaged = error
                continue
            (rows,) = np.nonzero(arrays[_TRIAL] == trial_id)
            if rows.size:
                return {name: array[rows[0]] for name, array in arrays.items() if name != _TRIAL}
        if damaged:
            raise damaged
        return {}

    def _pack(self, file: Path) -> dict[str, np.ndarray]:
        if file not in self._packs:
            self._packs[file] = _checked(file, read_arrays(file))
        return self._packs[file]

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*_trials_*.npz"))

    def _own(self, trial_id: str) -> Path:
        return self._folder / f"{trial_id}.npz"


def _checked(file: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Raises StoreError where arrays are not those of a packed file."""
    trials = arrays.get(_TRIAL, np.empty(0))
    if trials.ndim != 1 or any(array.shape[:1] != trials.shape for array in arrays.values()):
        raise StoreError(f"{file} is malformed: its arrays have no common first axis of trials")
    return arrays
