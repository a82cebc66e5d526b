"""Noise detection: scores, calibration and distribution of the confidence of methods that a training pair
matches, and its course over epochs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.evaluation.metrics import BINS, Calibration, calibration
from harness.record.types import StoreError
from harness.report import figures
from harness.report.accuracy import by_measure
from harness.report.results import cells
from harness.report.source import Source
from harness.report.tables import Cell, Figure, Table, slug

_SCORES = {
    "auroc": ("AUROC ↑", 3, True),
    "average_precision": ("AP ↑", 3, True),
    "f1": ("F1 at 0.5 ↑", 3, True),
    "ece": ("ECE ↓", 3, False),
}
_CURVES = {
    "matched": "detection/mean_matched",
    "mismatched": "detection/mean_mismatched",
    "auroc": "detection/auroc",
}
_EPOCHS = 10  # columns of the table over epochs


@dataclass(frozen=True)
class Belief:
    """Ground truth and confidence of a finished trial.

    Attributes:
        matched: [N], whether each training pair matches (ground truth).
        confidence: [N], the confidence of the method after the last epoch that each pair matches.
    """

    row: str
    run: str
    noise_ratio: float
    seed: int
    matched: NDArray[np.bool_]
    confidence: NDArray[np.floating]

    @property
    def last(self) -> Calibration:
        """Calibration after the last epoch."""
        return calibration(self.confidence, self.matched)


def beliefs(source: Source, frame: pd.DataFrame) -> list[Belief]:
    """Beliefs of all finished trials that recorded a confidence and have a known ground truth."""
    collected = []
    scored = frame[list(_SCORES)].notna().any(axis=1)  # a trial without a score has no confidence
    for line in frame[frame["done"] & scored].itertuples():
        files = source.names(line.run, "confidence")
        matched = _ground_truth(source, line.run) if files else None
        if matched is not None:
            confidence = source.read(line.run, files[-1])["confidence"].astype(np.float64)
            collected.append(Belief(line.row, line.run, line.noise_ratio, line.seed, matched, confidence))
    return collected


def _ground_truth(source: Source, run: str) -> NDArray[np.bool_] | None:
    try:
        return source.read(run, "noise_index.npz").get("matched")
    except StoreError:  # a record from before the index was kept
        return None


def scores_table(frame: pd.DataFrame, where: str) -> Table:
    """AUROC, average precision, F1 and expected calibration error of each row at each ratio."""
    what = (
        "Confidence after the last epoch against the ground truth. AUROC, average precision and F1 "
        "(mismatched: confidence below 0.5) are for detecting mismatched training pairs. Chance level: "
        "AUROC 0.5, AP the noise ratio r. Predicting that every pair mismatches has F1 2r / (1 + r), and an "
        "F1 that is not above it is never bold; a confidence that is never below 0.5 has F1 0. ECE: expected "
        f"calibration error of the confidence that a pair matches ({BINS} bins); a constant 1 - r has ECE 0 "
        "but does not discriminate. Methods without a confidence are omitted"
    )
    table = by_measure(frame, _SCORES, f"Noise detection: {where}", what)
    f1, realised = (cells(frame, name)["mean"] for name in ("f1", "realised_ratio"))
    trivial = 2 * realised / (1 + realised)
    column = 2 + list(_SCORES).index("f1")
    for row in table.rows:
        cell = row[1].text, float(row[0].text)
        if not f1[cell].round(3) > trivial[cell].round(3):
            row[column] = Cell(row[column].text)
    return table


def confidence_figures(
    collected: list[Belief], averages: pd.DataFrame, frame: pd.DataFrame, where: str, folder: Path
) -> list[Figure]:
    """Histograms, reliability diagrams and means over epochs, seeds pooled; `averages` from `means`."""
    pooled: dict[tuple[str, float], Calibration] = {}
    for belief in sorted(collected, key=lambda b: b.noise_ratio):
        key = (belief.row, belief.noise_ratio)
        pooled[key] = _together(pooled[key], belief.last) if key in pooled else belief.last
    pictures = {kind: slug(kind, where) for kind in ("confidence", "reliability", "epochs")}
    figures.histograms(pooled, where, folder / pictures["confidence"])
    figures.reliability(pooled, frame, where, folder / pictures["reliability"])
    figures.confidence_over_epochs(averages, frame, where, folder / pictures["epochs"])
    captions = (
        (
            "Confidence of training pairs",
            pictures["confidence"],
            "Histograms after the last epoch, seeds pooled; matched and mismatched pairs are normalized "
            "separately.",
        ),
        (
            "Reliability of the confidence",
            pictures["reliability"],
            "Reliability diagram: share of matching pairs in each bin of confidence, after the last epoch, "
            "seeds pooled. Bins with less than 1 % of the pairs are omitted. Above the dotted diagonal a "
            "method is underconfident, below it overconfident.",
        ),
        (
            "Confidence over epochs",
            pictures["epochs"],
            "Mean confidence of matched (solid) and mismatched (dashed) training pairs, with a band of one "
            "sd over seeds.",
        ),
    )
    return [Figure(f"{title}: {where}", file, caption) for title, file, caption in captions]


def _together(a: Calibration, b: Calibration) -> Calibration:
    counts = [c.matched + c.mismatched for c in (a, b)]
    total = sum(counts)
    mean = sum(n * np.nan_to_num(c.confidence) for n, c in zip(counts, (a, b), strict=True))
    confidence = np.divide(mean, total, out=np.full(BINS, np.nan), where=total > 0)
    return Calibration(a.matched + b.matched, a.mismatched + b.mismatched, confidence)


def means(collected: list[Belief], source: Source) -> pd.DataFrame:
    """Mean confidence of matched and of mismatched pairs (NaN without such) and AUROC (NaN without both) for
    each belief and epoch, as they were recorded. (The first protocol version recorded no means.)
    """
    lines = []
    for b in collected:
        curves = {name: source.curve(b.run, metric) for name, metric in _CURVES.items()}
        for epoch in sorted({e for curve in curves.values() for e in curve}):
            values = {name: curve.get(epoch, np.nan) for name, curve in curves.items()}
            lines.append(
                {"row": b.row, "noise_ratio": b.noise_ratio, "seed": b.seed, "epoch": epoch, **values}
            )
    return pd.DataFrame(lines, columns=["row", "noise_ratio", "seed", "epoch", *_CURVES])


def trained_on(source: Source, frame: pd.DataFrame, where: str, folder: Path) -> Iterator[Figure | Table]:
    """Purity and size over epochs of what each row trains on, as a figure, and after the last epoch as a
    table; nothing where all rows train on all pairs alike.
    """
    chooses = frame[frame["share"] < 1]["row"].unique()
    part = frame[frame["row"].isin(chooses) & frame["done"]]
    if part.empty:
        return
    lines = []
    for line in part.itertuples():
        share, purity = (source.curve(line.run, f"trained_on/{k}") for k in ("share", "purity"))
        for epoch, value in share.items():
            known = {"row": line.row, "noise_ratio": line.noise_ratio, "seed": line.seed, "epoch": epoch}
            lines.append({**known, "share": value, "purity": purity.get(epoch, np.nan)})
    if lines:
        file = slug("trained on", where)
        figures.trained_on(pd.DataFrame(lines), frame, where, folder / file)
        yield Figure(
            f"What is trained on, over epochs: {where}",
            file,
            "Top: purity, the matched part of the training pairs as they are selected and weighted; the "
            "dotted line is that of all pairs. Bottom: share, their mean weight. Mean and a band of one sd "
            "over seeds.",
        )
    columns = {"share": ("share", 2, True), "purity": ("purity ↑", 3, True)}
    what = (
        "What the first network trains on in the last epoch: its share of the training pairs, as they are "
        "selected and weighted, and the matched part of it. Methods that train on all pairs alike are omitted"
    )
    every = frame[frame["row"].isin(chooses)]  # also those that are not done, which make a cell incomplete
    table = by_measure(every, columns, f"What is trained on: {where}", what)
    for row in table.rows:  # a larger share is no better
        row[2] = Cell(row[2].text)
    yield table


def epochs_tables(averages: pd.DataFrame, where: str) -> list[Table]:
    """`means` over seeds, for at most ten epochs: confidence of matched / mismatched pairs, and AUROC."""
    epochs = sorted(averages["epoch"].unique())
    shown = [
        epochs[i]
        for i in sorted({round(k) for k in np.linspace(0, len(epochs) - 1, min(_EPOCHS, len(epochs)))})
    ]
    caption = (
        "after each epoch (from 1), mean over seeds; a dash: no confidence yet (warm-up), or no such pairs."
    )
    tables = []
    for title, columns, digits, what in (
        (
            "Confidence over epochs",
            ["matched", "mismatched"],
            2,
            "Mean confidence of matched / mismatched training pairs",
        ),
        (
            "AUROC over epochs",
            ["auroc"],
            3,
            "AUROC of the confidence for detecting mismatched training pairs",
        ),
    ):
        rows = []
        for (ratio, row), part in averages.groupby(["noise_ratio", "row"], sort=False):
            of_epoch = part.groupby("epoch")[columns].mean()
            texts = [
                " / ".join("–" if pd.isna(v) else f"{v:.{digits}f}" for v in of_epoch.loc[e])
                if e in of_epoch.index
                else "–"
                for e in shown
            ]
            if part[columns].notna().any(axis=None):
                rows.append([Cell(f"{ratio:g}"), Cell(str(row)), *map(Cell, texts)])
        rows.sort(key=lambda r: float(r[0].text))
        tables.append(
            Table(
                f"{title}: {where}",
                f"{what} {caption}",
                ["noise", "method", *(f"epoch {e + 1}" for e in shown)],
                rows,
            )
        )
    return [table for table in tables if table.rows]
