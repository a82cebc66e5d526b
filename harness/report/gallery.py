"""Examples for the page: the captions that each method ranks first for a few test images, and its confidence
in a few mismatched training pairs.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL.Image import Image

from harness.config.trial import Trial
from harness.data import load_dataset
from harness.data.base import DataError, DataSet
from harness.record.types import TrialRecord
from harness.report.source import Source
from methods.seeding import numpy_generator

COUNT = 12
_PIXELS = 96


@dataclass(frozen=True)
class Query:
    """A test image, and for each row the five captions it ranks first, with whether they match."""

    picture: str
    answers: list[tuple[str, list[tuple[str, bool]]]]


@dataclass(frozen=True)
class Mismatch:
    """A mismatched training pair, and for each row its confidence that it matches."""

    picture: str
    caption: str
    confidence: list[tuple[str, float]]


@dataclass
class Gallery:
    """Examples of one data set and noise, at one ratio and seed. `missing`: why there are none."""

    where: str
    ratio: float
    seed: int
    queries: list[Query] = field(default_factory=list)
    mismatches: list[Mismatch] = field(default_factory=list)
    missing: str = ""


def galleries(source: Source, frame: pd.DataFrame) -> list[Gallery]:
    """One gallery for each data set and noise, at the highest ratio and the lowest seed with finished trials;
    images and pairs are drawn at random.
    """
    collected = []
    for (dataset, noise), part in frame[frame["done"]].groupby(["dataset", "noise"], sort=False):
        ratio = part["noise_ratio"].max()
        seed = part.loc[part["noise_ratio"] == ratio, "seed"].min()
        here = part[(part["noise_ratio"] == ratio) & (part["seed"] == seed)].drop_duplicates("row")
        gallery = Gallery(f"{dataset}, {noise}", float(ratio), int(seed))
        records = {line.row: source.sweep.records[line.trial] for line in here.itertuples()}
        _fill(gallery, records, source)
        collected.append(gallery)
    return collected


def _fill(gallery: Gallery, records: dict[str, TrialRecord], source: Source) -> None:
    record = next(iter(records.values()))
    try:
        data = load_dataset(record.trial.dataset, **record.trial.dataset_options)
        if record.trial.fingerprint(data) != record.tags.get("data_fingerprint"):
            raise DataError("the data set differs from the one of the trials")
        if data["test"].kind != "pictures":
            raise DataError("the data set has features instead of images")
        gallery.queries = list(_queries(data, records, source))
        gallery.mismatches = list(_mismatches(data, record.trial, records, source))
    except Exception as error:
        # a user's data set can raise anything: the report then has no images, and says why
        gallery.missing = str(error)


def _queries(data: DataSet, records: dict[str, TrialRecord], source: Source) -> Iterator[Query]:
    test = data["test"]
    best = {
        row: source.read(record.run_id, "last_rankings.npz")["i2t_top"] for row, record in records.items()
    }
    for image in _drawn(np.arange(len(test.images)), "queries"):
        answers = [
            (
                row,
                [
                    (test.captions[c], bool(test.caption_group[c] == test.image_group[image]))
                    for c in top[image]
                ],
            )
            for row, top in best.items()
        ]
        yield Query(_picture(test.images[image]), answers)


def _mismatches(
    data: DataSet, trial: Trial, records: dict[str, TrialRecord], source: Source
) -> Iterator[Mismatch]:
    """Pairs from the noise index that all these trials share: it depends on data, ratio and seed only."""
    noise = trial.noise_index(data)
    if noise.matched is None or noise.matched.all():
        return
    confidence = {}
    for row, record in records.items():
        files = source.names(record.run_id, "confidence")
        if files and record.tags.get("noise_digest") == noise.digest:
            confidence[row] = source.read(record.run_id, files[-1])["confidence"]
    train = noise.words_of(data["train"])
    for pair in _drawn(np.flatnonzero(~noise.matched), "mismatches") if confidence else ():
        beliefs = [(row, float(values[pair])) for row, values in confidence.items()]
        yield Mismatch(_picture(train.images[noise.image[pair]]), train.captions[pair], beliefs)


def _drawn(places: NDArray, purpose: str) -> list[int]:
    draw = numpy_generator(0, "gallery", purpose)
    return [int(i) for i in draw.permutation(places)[:COUNT]]


def _picture(image: Image) -> str:
    """A small copy, as the address of an <img>."""
    small = image.convert("RGB")
    small.thumbnail((_PIXELS, _PIXELS))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
