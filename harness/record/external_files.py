"""What another program has left: similarities or ranks, and the noise index that it trained on. All of it is
held against the data and the noise indices that are made here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.config.external import SPLITS, ExternalRow, ExternalTrial
from harness.data.base import DataError, DataSet, Split, read_array
from harness.evaluation.given import Evaluation, evaluate
from harness.evaluation.metrics import Ranking, chance_rsum, recalls
from harness.noise.files import IndexFile, read_index
from harness.noise.index import NoiseIndex, index_digest
from harness.record.arrays import read_arrays
from harness.record.types import StoreError

_PARTS = ("rank", "tied", "matches")


@dataclass(frozen=True)
class Result:
    """What one trial of an external row has left.

    Attributes:
        noise: the index that it trained on, which is the one that is made here.
        found: measures and ranks of `dev` and of `test`.
    """

    trial: ExternalTrial
    noise: NoiseIndex
    found: Mapping[str, Evaluation]


def read_results(
    row: ExternalRow, trials: Sequence[ExternalTrial], data: DataSet
) -> tuple[list[Result], list[str], list[str]]:
    """The results of the trials of a row.

    Returns:
        Those of trials without a fault, the faults of all files, and notes on what was put right in them.
    """
    results: list[Result] = []
    faults, notes = [], []
    made: dict[str, NoiseIndex] = {}
    for trial in trials:
        try:
            made[trial.id] = trial.noise_index(data)
        except ValueError as error:  # a file of the noise model, or groups that do not allow such noise
            faults.append(str(error))
    for trial in trials:
        found: dict[str, Evaluation] = {}
        fault = _noise_fault(row.files.noise_of(trial), trial, data["train"], made, trials)
        faults += [fault] if fault else []
        for split in SPLITS:
            path = row.files.of(trial, split)
            try:
                read = _similarities if row.files.similarities else _ranks
                found[split] = read(path, data, split)
                notes += [f"{path}: {note}" for note in found[split].notes]
            except DataError as error:
                faults.append(str(error))
        if not fault and trial.id in made and len(found) == len(SPLITS):
            results.append(Result(trial, made[trial.id], found))
    return results, faults, notes


# The noise index -----------------------------------------------------------------------------------


def _noise_fault(
    path: Path,
    trial: ExternalTrial,
    train: Split,
    made: Mapping[str, NoiseIndex],
    trials: Sequence[ExternalTrial],
) -> str:
    """Why the index in a file is not that of a trial; empty where it is (without noise there is no file)."""
    if not trial.noise_ratio or trial.id not in made:
        return ""
    try:
        theirs = read_index(path, train)
    except DataError as error:
        return str(error)
    ours = made[trial.id]
    if _same(theirs, ours, train):
        return ""
    others = [t for t in trials if t.id in made and _same(theirs, made[t.id], train)]
    known = f"; it is that of {_point(others[0])}" if others else ""
    moved = int((theirs.image != ours.image).sum())
    return (
        f"noise file {path} is not the index of {_point(trial)}: its digest is {index_digest(theirs.image)}, "
        f"and the one made here has {ours.digest}; {moved:,} of {len(ours.image):,} captions have another "
        f"image, and {1 - theirs.matched.mean():.4f} of the pairs mismatch, where {ours.realised:.4f} "
        f"should{known}"
    )


def _same(theirs: IndexFile, ours: NoiseIndex, train: Split) -> bool:
    """Whether all captions have the same images; a file of texts cannot tell equal captions apart."""
    if theirs.form != "text":
        return bool(np.array_equal(theirs.image, ours.image))
    text = np.unique([" ".join(caption.split()) for caption in train.captions], return_inverse=True)[1]
    a, b = (image[np.lexsort((image, text))] for image in (theirs.image, ours.image))
    return bool(np.array_equal(a, b))


def _point(trial: ExternalTrial) -> str:
    return f"noise {trial.noise_ratio:g} seed {trial.seed}"


# Similarities and ranks ----------------------------------------------------------------------------


def read_similarities(path: Path) -> NDArray[np.floating]:
    """The similarities in a `.npy` file; integers as float64, since the tolerance of ties is a fraction.

    Raises:
        DataError: it cannot be read, or holds no real numbers.
    """
    scores = read_array(path, "similarities", mapped=True)
    if np.issubdtype(scores.dtype, np.complexfloating):
        raise DataError(f"similarities {path} are complex numbers")
    return scores.astype(np.float64) if np.issubdtype(scores.dtype, np.integer) else scores


def _similarities(path: Path, data: DataSet, split: str) -> Evaluation:
    """What similarities are worth. Raises DataError where they do not fit the split."""
    scores = read_similarities(path)
    groups = data[split].image_group, data[split].caption_group
    try:
        return evaluate(scores, *groups, coco=data if split == "test" else None)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _ranks(path: Path, data: DataSet, split: str) -> Evaluation:
    """What the ranks in a file are worth. Raises DataError where they are no ranks of the split."""
    arrays = _arrays(path)
    images, captions = data[split].image_group, data[split].caption_group
    faults = [
        *_rank_faults(arrays, "i2t", images, captions),
        *_rank_faults(arrays, "t2i", captions, images),
    ]
    if faults:
        raise DataError("; ".join(f"ranks {path}: {fault}" for fault in faults))
    i2t, t2i = (Ranking.of({k: arrays[k] for k in _keys(d)}, d) for d in ("i2t", "t2i"))
    chance = chance_rsum(images, captions)
    return Evaluation(recalls(i2t, t2i), chance, len(images), len(captions), (), i2t, t2i)


def _keys(direction: str) -> list[str]:
    return [f"{direction}_{part}" for part in _PARTS]


def _arrays(path: Path) -> dict[str, NDArray]:
    try:
        return read_arrays(path)
    except StoreError as error:
        raise DataError(f"ranks {error}") from None


def _rank_faults(
    arrays: Mapping[str, NDArray], direction: str, queries: NDArray[np.int64], candidates: NDArray[np.int64]
) -> list[str]:
    """Why arrays are not the ranks of these queries among these candidates."""
    wanted = [*_keys(direction), f"{direction}_group"]
    shapes = {k: f"{arrays[k].dtype} {arrays[k].shape}" if k in arrays else "nothing" for k in wanted}
    wrong = [
        f"{k}: expected {len(queries)} integers, found {shape}"
        for k, shape in shapes.items()
        if k not in arrays
        or arrays[k].shape != queries.shape
        or not np.issubdtype(arrays[k].dtype, np.integer)
    ]
    if wrong:
        return wrong
    rank, tied, matches, group = (arrays[k].astype(np.int64) for k in wanted)
    if not np.array_equal(group, queries):
        return [f"{direction}_group: these are not the groups of the queries"]
    values, counts = np.unique(candidates, return_counts=True)
    in_group = counts[np.searchsorted(values, queries)]
    others = len(candidates) - in_group  # those that can rank above a match
    possible = (rank >= 0) & (tied >= 0) & (rank + tied <= others) & (matches >= 1) & (matches <= in_group)
    if not possible.all():
        query = int(np.argmin(possible))
        return [
            f"query {query} of {direction} has rank {rank[query]}, {tied[query]} tied and {matches[query]} "
            f"tied matches, which no query has with {in_group[query]} matches among {len(candidates)}"
        ]
    return []
