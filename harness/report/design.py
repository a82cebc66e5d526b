"""What the number of seeds of a sweep can show, and how far results move by rounding alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special, stats

from harness.report.results import MEAN, with_mean
from harness.report.tables import Cell, Table

RESOLUTION = 5.0
"""The difference in rSum that seeds must be able to show before rows are called not significantly worse."""
POWER, ALPHA = 0.8, 0.05
_MOST_SEEDS = 1000


@dataclass(frozen=True)
class Design:
    """What paired comparisons over seeds can show among the rows of a track.

    Attributes:
        track: whose rows are compared.
        sd: standard deviation over seeds of the difference of two rows, pooled over all pairs of rows of the
            track that compete (oracles do not).
        seeds: finished ones of the row that has most.
        comparisons: in the family that Holm's procedure corrects: every other row of the track against one,
            oracles among them, as in the table of differences.
    """

    track: str
    sd: float
    seeds: int
    comparisons: int

    @property
    def detectable(self) -> float:
        """The difference that is found with a power of 80 %, at the worst step of Holm's procedure."""
        return detectable_difference(self.sd, self.seeds, self.comparisons)

    @property
    def needed(self) -> int:
        """Seeds from which on `RESOLUTION` is found with that power."""
        return seeds_for(RESOLUTION, self.sd, self.comparisons)

    def text(self) -> str:
        """The track's part of `statement`."""
        found = "no difference (one seed)" if np.isinf(self.detectable) else f"{self.detectable:.1f} points"
        return (
            f"{found} among rows of {self.track} (sd {self.sd:.1f}, {self.seeds} seeds, {self.comparisons} "
            f"comparison{'s' * (self.comparisons > 1)}; {RESOLUTION:g} points take {self.needed} seeds)"
        )


def statement(designs: Sequence[Design], *, several: bool) -> str:
    """The design statement of a report.

    Args:
        designs: of the tracks whose rows compete, at least one.
        several: whether they are of the mean over several ratios.
    """
    endpoint = "rSum after the last epoch" + (", mean over noise ratios" if several else "")
    return (
        f"Design: in {endpoint}, a paired t test over seeds finds, with a power of {POWER:.0%} after Holm's "
        f"correction, {'; '.join(design.text() for design in designs)}. Sd: that of the difference of two "
        "rows over seeds, pooled over all pairs of a track that compete. With fewer seeds nothing is "
        "underlined."
    )


def designs_of(
    frame: pd.DataFrame, measure: str = "rsum", *, several: bool | None = None
) -> dict[str, Design]:
    """The design of a sweep by track, from its results, which are of one data set and kind of noise. Tracks
    that are left out have fewer than two rows that compete (oracles do not) and share two seeds.

    Args:
        frame: in the words of `primary`.
        several: whether it is of the mean over ratios; None: where there are several.
    """
    frame = frame[frame["noise_ratio"] != MEAN]
    several = frame["noise_ratio"].nunique() > 1 if several is None else several
    designs = {}
    for track, part in frame[frame[measure].notna()].groupby("track", sort=False):
        sd = paired_sd(part, measure, several=several)
        if not np.isnan(sd):
            seeds = int(part.groupby(["row", "noise_ratio"]).size().max())
            comparisons = (part["row"].nunique() - 1) * (1 if several else part["noise_ratio"].nunique())
            designs[str(track)] = Design(str(track), sd, seeds, comparisons)
    return designs


def paired_sd(frame: pd.DataFrame, measure: str, *, several: bool) -> float:
    """Pooled sd over seeds of the differences of all pairs of rows; NaN without two seeds.

    Args:
        frame: of one track.
        several: whether it is of the mean over ratios; else pooled over ratios.
    """
    frame = with_mean(frame, measure) if several else frame
    frame = frame[frame["noise_ratio"] == MEAN] if several else frame
    variances: list[float] = []
    for _, part in frame[~frame["ground_truth"]].groupby("noise_ratio"):
        table = part.pivot_table(index=["seed", "noise_seed"], columns="row", values=measure)
        values = table.to_numpy()
        for i in range(values.shape[1] - 1):
            differences = pd.DataFrame(values[:, [i]] - values[:, i + 1 :])
            variances.extend(differences.var(ddof=1).dropna())
    return float(np.sqrt(np.mean(variances))) if variances else np.nan


def needed_seeds(frame: pd.DataFrame, measure: str) -> dict[tuple[str, bool], int]:
    """The pairs of seeds with which a difference of `RESOLUTION` is found, by track, in the mean over ratios
    (True) and at a single one (False). Tracks are left out of which nothing is known.

    Args:
        measure: `rsum` or `selected_rsum`; other measures are judged by the rSum beside them.
    """
    judged = measure if measure in ("rsum", "selected_rsum") else "rsum"
    return {
        (track, several): design.needed
        for several in (True, False)
        for track, design in designs_of(frame, judged, several=several).items()
    }


@lru_cache
def _spread(freedom: int) -> NDArray[np.float64]:
    """Quantiles of the estimate of a standard deviation of 1, over which a power is averaged. (SciPy's
    noncentral t distribution is NaN for few seeds and large effects.)
    """
    shares = (np.arange(4000) + 0.5) / 4000
    quantiles: NDArray[np.float64] = np.sqrt(stats.chi2.ppf(shares, freedom) / freedom)
    return quantiles


def _power(effect: float, seeds: int, comparisons: int) -> float:
    """Of a two-sided paired t test for a standardised effect, at level `ALPHA` / comparisons."""
    bound = stats.t.ppf(1 - ALPHA / comparisons / 2, seeds - 1) * _spread(seeds - 1)
    shift = effect * np.sqrt(seeds)
    return float((special.ndtr(shift - bound) + special.ndtr(-shift - bound)).mean())


def detectable_difference(sd: float, seeds: int, comparisons: int) -> float:
    """The difference that a paired t test finds with a power of `POWER`; infinite with one seed.

    Args:
        sd: of the paired differences.
        seeds: pairs.
        comparisons: of the family: the worst step of Holm's procedure tests at `ALPHA` / comparisons.
    """
    return sd * _detectable_effect(seeds, comparisons) if seeds > 1 else np.inf


@lru_cache
def _detectable_effect(seeds: int, comparisons: int) -> float:
    """The same in standard deviations of the paired differences, with two seeds or more."""
    low, high = 0.0, 1.0
    while _power(high, seeds, comparisons) < POWER:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if _power(middle, seeds, comparisons) >= POWER else (middle, high)
    return high


def seeds_for(difference: float, sd: float, comparisons: int) -> int:
    """The fewest seeds with which a difference is found with a power of `POWER`."""
    low, high = 2, 2
    while detectable_difference(sd, high, comparisons) > difference and high < _MOST_SEEDS:
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        if detectable_difference(sd, middle, comparisons) <= difference:
            high = middle
        else:
            low = middle + 1
    return high


def rounding_table(frame: pd.DataFrame, where: str) -> Table | None:
    """How far the rSum of a trial moves when its initial weights change by rounding; None without such
    trials.

    Args:
        frame: with the perturbed trials.
    """
    moved = frame[(frame["perturbed"] > 0) & frame["done"]]
    rows = []
    for (row, ratio), part in moved.groupby(["row", "noise_ratio"], sort=False):
        plain = frame[(frame["perturbed"] == 0) & (frame["row"] == row) & (frame["noise_ratio"] == ratio)]
        both = part.merge(plain, on=["seed", "noise_seed"], suffixes=("", "_plain"))
        difference = (both["rsum"] - both["rsum_plain"]).dropna()
        if len(difference):
            root = float(np.sqrt((difference**2).mean()))
            texts = (
                f"{ratio:g}",
                str(row),
                f"{root:.1f}",
                f"{difference.abs().max():.1f}",
                str(len(difference)),
            )
            rows.append([Cell(text) for text in texts])
    if not rows:
        return None
    caption = (
        "The same trial with each initial weight multiplied by 1 + 1e-6 z, z standard normal: by how much "
        "test rSum after the last epoch then differs. Two machines that round sums differently may differ as "
        "much, and no difference between single trials below it says anything. n: perturbed trials."
    )
    return Table(
        f"Moved by rounding: {where}", caption, ["noise", "method", "root mean square", "largest", "n"], rows
    )
