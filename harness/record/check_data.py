"""What of a bundle follows from its data, noise and ranks, made anew: with the data set where it is here, and
else from the bundle's own files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from harness.config.external import ExternalTrial
from harness.config.trial import Trial
from harness.data.base import DataSet
from harness.evaluation.metrics import RECALLS, Ranking, recalls
from harness.noise.index import NoiseIndex, index_digest
from harness.record.arrays import read_arrays
from harness.record.bundle import Bundle
from harness.record.check_content import Content
from harness.record.types import StoreError


def data_errors(content: Content) -> Iterator[str]:
    """Trials name the version of the data that is here; where none is, those of one data set name one."""
    versions: dict[str, str] = {}
    for i, line in content.done.items():
        trial, then = content.trials[i], str(line["tags"].get("data_fingerprint"))
        version = then.partition("+")[0]  # files that noise is made from follow
        first = versions.setdefault(f"{trial.dataset} {trial.dataset_options}", version)
        if i in content.data:
            now = trial.fingerprint(content.data[i])
            if now != then:
                yield f"{i}: it is of version {then} of the data, and here they are {now}"
        elif version != first:
            yield f"{i}: it is of version {version} of the data, and other trials of {first}"


def noise_errors(content: Content) -> Iterator[str]:
    """The index of each trial is the one that data set, model, ratio and seed give; without the data, trials
    that share these name one index.
    """
    made: dict[str, NoiseIndex | None] = {}
    first: dict[str, str] = {}
    for i, line in content.done.items():
        trial, told = content.trials[i], str(line["tags"].get("noise_digest"))
        key = f"{trial.dataset_options} {trial.dataset} {trial.noise} {trial.noise_granularity} " + (
            f"{trial.noise_ratio} {trial.noise_seed}"
        )
        if i not in content.data:
            if told != first.setdefault(key, told):
                yield f"{i}: its noise index is {told}, and that of trials with the same noise {first[key]}"
            continue
        if key not in made:
            made[key] = None
            try:
                made[key] = trial.noise_index(content.data[i])
            except ValueError as error:
                yield f"{i}: its noise index cannot be made: {error}"
        index = made[key]
        if index is not None and told != index.digest:
            yield f"{i}: its noise index is {told}, and should be {index.digest}"
    yield from _stored_noise_errors(content)


def _stored_noise_errors(content: Content) -> Iterator[str]:
    """Where the bundle keeps arrays: the index that a trial names is there, under its digest, and has the
    share of mismatches that is on record.
    """
    if content.plan.get("select"):
        return
    realised: dict[str, float | None] = {}
    for i, line in content.done.items():
        name = str(line["tags"].get("noise_digest"))
        if name not in realised:
            realised[name] = None
            try:
                arrays = read_arrays(content.folder / "noise" / f"{name}.npz")
                digest = index_digest(arrays["image"].astype(np.int64))
            except (StoreError, KeyError, ValueError) as error:
                yield f"noise/{name}.npz cannot be read: {error}"
                continue
            if not content.trials[i].noise.changes_words and digest != name:
                yield f"noise/{name}.npz holds another index than its name says"
            elif "matched" in arrays:
                realised[name] = float(1 - arrays["matched"].mean())
        kept, told = realised[name], line.get("noise/realised_ratio", math.nan)
        if kept is not None and not math.isclose(kept, told, abs_tol=1e-9):
            yield f"{i}: noise/realised_ratio is {told}, and its noise index has {kept}"


def ranking_errors(content: Content) -> Iterator[str]:
    """Recalls, median and mean ranks made anew from the ranks of all queries, against those on record; groups
    against those of the data.
    """
    if content.plan.get("select"):
        return
    bundle = Bundle(content.folder.name, content.folder)
    for i, line in content.done.items():
        try:
            yield from (
                f"{i}: {text}" for text in _of_ranks(content.trials[i], line, bundle, content.data.get(i))
            )
        except (StoreError, ValueError, KeyError) as error:
            yield f"{i}: its arrays cannot be read: {' '.join(str(error).split())[:120]}"


def parts(trial: Trial) -> tuple[str, ...]:
    """What a trial has test results of: the last epoch, and the one that is selected on dev."""
    return trial.parts if isinstance(trial, ExternalTrial) else ("last", "test")


def _ranked(trial: Trial) -> tuple[str, ...]:
    """What a bundle keeps ranks of: the same, and of an external row dev."""
    return (*parts(trial), *(("dev",) if isinstance(trial, ExternalTrial) else ()))


def _of_ranks(trial: Trial, line: Mapping[str, Any], bundle: Bundle, data: DataSet | None) -> Iterator[str]:
    for part in _ranked(trial):
        own = bundle.rankings(trial.id, part)
        split = "dev" if part == "dev" else "test"
        if data is not None:
            groups = {"i2t_group": data[split].image_group, "t2i_group": data[split].caption_group}
            if not all(np.array_equal(own[k], v) for k, v in groups.items()):
                yield f"the groups of {part} are not those of the {split} split"
                continue
        found = recalls(Ranking.of(own, "i2t"), Ranking.of(own, "t2i"))
        told = {f"{part}/{m}": m for m in found if m in (*RECALLS, "rsum") or f"{part}/{m}" in line}
        told = told if split == "test" else {"dev/best_rsum": "rsum"}
        wrong = [k for k, m in told.items() if not math.isclose(found[m], line[k], abs_tol=1e-9)]
        if wrong:
            yield f"{wrong[0]} is {line[wrong[0]]}, and its ranks give {found[told[wrong[0]]]}"
