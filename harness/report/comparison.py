"""Statistical significance of differences between rows: paired differences to a reference, tests against the
best row, and aggregates over all blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.config.sweep_file import BASELINE
from harness.evaluation.metrics import Ranking
from harness.record.types import StoreError
from harness.report import figures
from harness.report.results import MEAN, TRACKS, heading, with_mean
from harness.report.source import Arrays
from harness.report.stats import (
    Difference,
    average_ranks,
    clustered_difference,
    critical_difference,
    holm,
    mean_interval,
    paired_difference,
    probability_of_improvement,
)
from harness.report.tables import Cell, Figure, Table

ALPHA = 0.05
LEAST_BLOCKS = 6  # fewest data sets x ratios for which average ranks are tested (Demsar 2006)


def reference_row(frame: pd.DataFrame, method: str | None) -> str:
    """The row of a method, else of the baseline, else the first: the others are compared with it."""
    for name in (method, BASELINE):
        rows = frame.loc[(frame["method"] == name) | (frame["row"] == name), "row"]
        if len(rows):
            return str(rows.iloc[0])
    return str(frame["row"].iloc[0])


def compare(frame: pd.DataFrame, reference: str, measure: str) -> dict[tuple[str, float], Difference]:
    """Difference of each row to the reference at each ratio, paired by seed, Holm-corrected over all of them;
    those of the mean over ratios are a family of their own.

    The frame is of one data set and one kind of noise; both sides of a pair have the same seed and noise
    seed.
    """
    differences = {}
    for ratio, part in frame.groupby("noise_ratio"):
        table = part.pivot_table(index=["seed", "noise_seed"], columns="row", values=measure, dropna=False)
        for row in dict.fromkeys(frame["row"]):
            if row != reference and {row, reference} <= set(table.columns):
                differences[row, float(ratio)] = paired_difference(table[row], table[reference])
    corrected: dict[tuple[str, float], Difference] = {}
    for family in (True, False):  # the primary endpoint is a family of its own
        of_family = {k: d for k, d in differences.items() if (k[1] == MEAN) == family}
        for (key, d), p in zip(of_family.items(), holm([d.p for d in of_family.values()]), strict=True):
            corrected[key] = replace(d, holm=float(p))
    return {key: corrected[key] for key in differences}


def not_worse(
    frame: pd.DataFrame, best: dict[float, set[str]], measure: str
) -> dict[tuple[str, float], Difference]:
    """(row, ratio) that are not significantly worse than the best row of their ratio and track, with their
    differences: paired t test over seeds, Holm within a track over the column of means and over the others.

    With one seed there is no test; a row that uses the ground truth does not compete.
    """
    found: dict[tuple[str, float], Difference] = {}
    for _, track in frame[~frame["ground_truth"]].groupby("track", sort=False):
        for family in ({MEAN}, set(best) - {MEAN}):
            differences: dict[tuple[str, float], Difference] = {}
            for ratio in family & set(best):
                part = track[track["noise_ratio"] == ratio]
                for row in best[ratio] & set(track["row"]):
                    differences |= {k: d for k, d in compare(part, row, measure).items() if d.n > 1}
            corrected = holm([d.p for d in differences.values()])
            found |= {
                key: d
                for (key, d), p in zip(differences.items(), corrected, strict=True)
                if p >= ALPHA or d.value >= 0
            }
    return found


def differences_table(frame: pd.DataFrame, reference: str, where: str) -> Table:
    """Table of the rSum of each row minus that of the reference of its track, with t intervals."""
    frame = with_mean(frame, "rsum")
    ratios = sorted(frame["noise_ratio"].unique())
    method = frame.loc[frame["row"] == reference, "method"].iloc[0]
    found: dict[str, dict[tuple[str, float], Difference]] = {}
    omitted = []
    for _, track in frame.groupby("track", sort=False):
        own = _own(track, reference, method)
        differences = compare(track, own, "rsum") if own else {}
        of_track = [row for row in dict.fromkeys(track["row"]) if row != own]
        found |= dict.fromkeys(of_track if own else (), differences)
        omitted += [] if own else of_track
    usual = max((d.n for differences in found.values() for d in differences.values()), default=0)
    rows = [
        [Cell(row), *(Cell(_difference(differences.get((row, r)), usual)) for r in ratios)]
        for row, differences in found.items()
    ]
    caption = (
        f"Test rSum after the last epoch minus that of {reference} (rows of several networks: minus {method} "
        f"of several), paired by seed: mean and 95 % t interval, n = {usual} pairs unless marked. *: p < "
        f"{ALPHA:g} in a paired t test, Holm-corrected in each track over the means and over the other "
        "columns, oracles among them; the intervals are not corrected, so an interval can exclude zero "
        "without a *."
    )
    if omitted:
        caption += f" Omitted, since no {method} has as many networks: {', '.join(omitted)}."
    return Table(f"Differences to {reference}: {where}", caption, ["method", *map(heading, ratios)], rows)


def _own(track: pd.DataFrame, reference: str, method: str) -> str | None:
    """The reference of a track: the row itself where it is of the track, else the first of its method."""
    rows = track.loc[(track["row"] == reference) | (track["method"] == method), "row"]
    return None if rows.empty else reference if reference in set(rows) else str(rows.iloc[0])


def _difference(difference: Difference | None, usual: int) -> str:
    """Its value, its interval where there is one, and its pairs where they are not as many as usual."""
    if difference is None or not np.isfinite(difference.value):
        return "–"
    if not np.isfinite(difference.low):
        return f"{difference.value:+.1f} (n={difference.n})"
    few = "" if difference.n == usual else f" (n={difference.n})"
    return (
        f"{difference.value:+.1f} [{difference.low:+.1f}, "
        f"{difference.high:+.1f}]{'*' if difference.holm < ALPHA else ''}{few}"
    )


def queries_table(
    frame: pd.DataFrame, reference: str, read: Callable[[str, str], Arrays], where: str
) -> Table | None:
    """R@1 of each row minus that of the reference of its track for rows that share a single seed with it,
    with a bootstrap over test images (captions resampled with their image).

    `read` returns the arrays of an artifact of a run. None without such rows, or where the runs did not
    record the image of each query.
    """
    rows = []
    method = frame.loc[frame["row"] == reference, "method"].iloc[0]
    own = {track: _own(part, reference, method) for track, part in frame.groupby("track")}
    for ratio, part in frame[frame["done"]].groupby("noise_ratio"):
        for row, of_row in part.groupby("row", sort=False):
            compared = own[of_row["track"].iloc[0]]
            both = of_row.merge(
                part[part["row"] == compared], on=["seed", "noise_seed"], suffixes=("", "_reference")
            )
            if row == compared or len(both) != 1:
                continue
            try:
                ours, other = (
                    read(both[run].iloc[0], "last_rankings.npz") for run in ("run", "run_reference")
                )
            except StoreError:  # a record of the first protocol version
                continue
            if "i2t_group" not in ours:
                continue
            differences = (
                clustered_difference(100 * _first(ours, d), 100 * _first(other, d), ours[f"{d}_group"])
                for d in ("i2t", "t2i")
            )
            rows.append(
                [
                    Cell(f"{ratio:g}"),
                    Cell(str(row)),
                    *(Cell(f"{f.value:+.1f} [{f.low:+.1f}, {f.high:+.1f}]") for f in differences),
                ]
            )
    if not rows:
        return None
    caption = (
        f"Test R@1 minus that of {reference} (rows of several networks: minus {method} of several) for the "
        "single seed that both have, with the 95 % interval of a bootstrap over test images (with their "
        "captions). The interval covers the choice of test images for these two trained models, not the "
        "variation over seeds."
    )
    return Table(
        f"Differences for a single seed: {where}", caption, ["noise", "method", "i2t R@1", "t2i R@1"], rows
    )


def _first(arrays: Arrays, direction: str) -> NDArray[np.float64]:
    """The probability that a match comes first, of each query."""
    return Ranking.of(arrays, direction).hits(1)


def blocks_table(frame: pd.DataFrame, reference: str) -> Table | None:
    """Aggregates over all blocks (data set x noise x ratio); None with fewer than two blocks or complete
    rows. Rows that lack a trial of any block are omitted.
    """
    scores = _blocks(frame)
    blocks = len(next(iter(scores.values()), []))
    if blocks < 2 or len(scores) < 2:
        return None
    track_of = dict(zip(frame["row"], frame["track"], strict=True))
    ranks: dict[str, float] = {}
    critical: list[str] = []
    for track in TRACKS:
        means = _competitors(frame, scores, track)
        ranks |= dict(zip(means, average_ranks(means.to_numpy()), strict=True)) if len(means) else {}
        if means.shape[1] > 1:
            critical.append(f"{critical_difference(means.shape[1], blocks):.2f} among rows of {track}")
    lines = []
    for row, rsums in scores.items():
        better = (
            []
            if reference not in scores
            else [
                Cell(
                    "–"
                    if row == reference or track_of[row] != track_of[reference]
                    else f"{probability_of_improvement(rsums, scores[reference]):.2f}"
                )
            ]
        )
        rank = f"{ranks[row]:.2f}" if row in ranks else "–"
        lines.append([Cell(row), Cell(_mean_over_blocks(frame, row)), *better, Cell(rank)])
    beats = (
        f"probability of improvement: that a run is better than one of {reference} in the same block; "
        if reference in scores
        else ""
    )
    caption = (
        f"{blocks} blocks (data set x noise ratio). Test rSum after the last epoch: mean over blocks and "
        f"seeds, with a 95 % t interval over seeds where all blocks have the same; {beats}average rank among "
        "rows of the same track that do not use the ground truth (1 is the best, ties share the mean rank). "
    )
    if blocks >= LEAST_BLOCKS and critical:
        caption += (
            f"Critical difference of average ranks at 5 %: {', '.join(critical)} (Nemenyi test, which "
            "assumes independent blocks; the ratios of one data set share its test set and seeds)."
        )
    else:
        caption += f"Ranks are not tested with fewer than {LEAST_BLOCKS} blocks."
    left_out = [row for row in dict.fromkeys(frame["row"]) if row not in scores]
    caption += f" Omitted because of missing trials: {', '.join(left_out)}." if left_out else ""
    return Table(
        "All blocks together",
        caption,
        [
            "method",
            "mean rSum ↑",
            *([f"better than {reference} ↑"] if reference in scores else []),
            "average rank ↓",
        ],
        lines,
    )


def _mean_over_blocks(frame: pd.DataFrame, row: str) -> str:
    """The mean over blocks and seeds, with a t interval over seeds of their means over blocks."""
    table = frame[frame["row"] == row].pivot_table(
        index=["seed", "noise_seed"], columns=["dataset", "noise", "noise_ratio"], values="rsum"
    )
    found = mean_interval(table.mean(axis=1, skipna=False))
    if found.n < len(table) or found.n < 2:
        return f"{table.mean().mean():.1f}"
    return f"{found.value:.1f} [{found.low:.1f}, {found.high:.1f}]"


def ranks_figure(frame: pd.DataFrame, folder: Path) -> Figure | None:
    """Critical-difference diagram of average ranks of the rows of one network; None with fewer than six
    blocks, or two complete rows that do not use the ground truth.
    """
    means = _competitors(frame, _blocks(frame), TRACKS[0])
    if len(means) < LEAST_BLOCKS or means.shape[1] < 2:
        return None
    ranks = dict(zip(means, average_ranks(means.to_numpy()), strict=True))
    difference = critical_difference(len(ranks), len(means))
    figures.ranks(
        frame, ranks, difference, f"average rank over {len(means)} blocks (1 is the best)", folder / "ranks"
    )
    return Figure(
        "Average ranks",
        "ranks",
        "Critical-difference diagram: bars join rows whose average ranks do not differ significantly at 5 "
        "% (Nemenyi test, blocks assumed independent). Rows that use the ground truth, have several networks "
        "or lack a trial are omitted.",
    )


def _blocks(frame: pd.DataFrame) -> dict[str, list[NDArray[np.float64]]]:
    """rSum of each complete row in each block."""
    blocks = [part for _, part in frame.groupby(["dataset", "noise", "noise_ratio"], sort=False)]
    rows = [r for r in dict.fromkeys(frame["row"]) if all(_complete(b, r) for b in blocks)]
    return {r: [b.loc[b["row"] == r, "rsum"].to_numpy(float) for b in blocks] for r in rows}


def _competitors(
    frame: pd.DataFrame, scores: dict[str, list[NDArray[np.float64]]], track: str
) -> pd.DataFrame:
    """Mean rSum [blocks, rows] of the rows of a track that do not use the ground truth."""
    allowed = set(frame.loc[~frame["ground_truth"] & (frame["track"] == track), "row"])
    return pd.DataFrame({row: [s.mean() for s in rsums] for row, rsums in scores.items() if row in allowed})


def _complete(block: pd.DataFrame, row: str) -> bool:
    rsums = block.loc[block["row"] == row, "rsum"]
    return bool(len(rsums) and rsums.notna().all())
