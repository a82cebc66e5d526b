"""Statistical significance: intervals, paired tests, and aggregates over blocks.

All functions take plain arrays, are seeded where they draw, and name their definition. With few seeds the
interval of a mean is a t interval: a percentile bootstrap of five values at a nominal level of 95 % covers
83 %, so bootstraps are used for many blocks or queries only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from methods.seeding import numpy_generator

LEVEL = 0.95
DRAWS = 2000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; NaN bounds where there is none (one value, or none at all).

    Attributes:
        n: independent values behind it (seeds, blocks or clusters).
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference(Estimate):
    """A paired difference with the p value that it is zero; `holm` is that corrected over its family, where
    there is one.
    """

    p: float
    holm: float = float("nan")


# Over seeds -----------------------------------------------------------------------------------------


def mean_interval(values: ArrayLike, *, level: float = LEVEL) -> Estimate:
    """Mean with Student's t interval: mean ± t(n - 1) * sd / sqrt(n), sd with ddof 1. NaN values are left
    out.

    Exact for normal values; a good approximation for five seeds of a recall (tests/report/test_stats.py
    measures the coverage).
    """
    x = _finite(values)
    if len(x) < 2:
        return Estimate(float(x.mean()) if len(x) else np.nan, np.nan, np.nan, len(x))
    half = float(stats.t.ppf(0.5 + level / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return Estimate(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half, len(x))


def sd_interval(values: ArrayLike, *, level: float = LEVEL) -> Estimate:
    """Standard deviation (ddof 1) with the chi-square interval of normal values: sd * sqrt((n - 1)
    / chi2).
    """
    x = _finite(values)
    if len(x) < 2:
        return Estimate(np.nan, np.nan, np.nan, len(x))
    sd, df = float(x.std(ddof=1)), len(x) - 1
    low, high = (float(sd * np.sqrt(df / stats.chi2.ppf(q, df))) for q in (0.5 + level / 2, 0.5 - level / 2))
    return Estimate(sd, low, high, len(x))


def paired_difference(ours: ArrayLike, reference: ArrayLike, *, level: float = LEVEL) -> Difference:
    """Mean of ours less reference over seeds that both have, with t interval and the p value of the paired t
    test.

    (A signed-rank test over five seeds cannot fall below p = 0.06.) Without variation there is no test:
    no interval, and p is 1.
    """
    difference = _finite(np.asarray(ours, float) - np.asarray(reference, float))
    estimate = mean_interval(difference, level=level)
    if len(difference) < 2:
        return Difference(estimate.value, estimate.low, estimate.high, estimate.n, np.nan)
    if np.isclose(difference.std(ddof=1), 0, atol=1e-9):  # recalls are steps: equal by chance
        return Difference(estimate.value, np.nan, np.nan, estimate.n, 1.0)
    return Difference(
        estimate.value,
        estimate.low,
        estimate.high,
        estimate.n,
        float(stats.ttest_1samp(difference, 0).pvalue),
    )


def holm(p: ArrayLike) -> Floats:
    """p values corrected for a family (Holm 1979, step-down): the k-th smallest of m times m - k + 1,
    made monotone and clipped at 1. NaN values are not part of the family.
    """
    given = np.asarray(p, float)
    out = np.full(given.shape, np.nan)
    finite = np.flatnonzero(np.isfinite(given))
    order = finite[np.argsort(given[finite], kind="stable")]
    factors = len(order) - np.arange(len(order))
    out[order] = np.minimum(1, np.maximum.accumulate(given[order] * factors))
    return out


# Over blocks (data sets x ratios) -------------------------------------------------------------------


def probability_of_improvement(ours: Sequence[ArrayLike], theirs: Sequence[ArrayLike]) -> float:
    """How often a run of ours beats one of theirs, a tie counting half, averaged over blocks (Mann-Whitney U
    over n * m; Agarwal et al. 2021).
    """
    shares = []
    for a, b in zip(ours, theirs, strict=True):
        x, y = np.asarray(a, float)[:, None], np.asarray(b, float)[None, :]
        shares.append(float((x > y).mean() + 0.5 * (x == y).mean()))
    return float(np.mean(shares))


def average_ranks(scores: ArrayLike) -> Floats:
    """Mean rank of each column of scores [blocks, methods]: 1 is the best (highest), ties share (Demsar
    2006).
    """
    ranks: Floats = stats.rankdata(-np.asarray(scores, float), axis=1).mean(0)
    return ranks


def critical_difference(methods: int, blocks: int, *, level: float = LEVEL) -> float:
    """Nemenyi's critical difference of average ranks: q * sqrt(k (k + 1) / (6 N)), q of the studentized range
    over sqrt(2) (Demsar 2006).
    """
    q = float(stats.studentized_range.ppf(level, methods, np.inf)) / np.sqrt(2)
    return float(q * np.sqrt(methods * (methods + 1) / (6 * blocks)))


# Within one trial -----------------------------------------------------------------------------------


def clustered_difference(
    ours: ArrayLike,
    theirs: ArrayLike,
    cluster: ArrayLike,
    *,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> Difference:
    """Difference of two trials' mean over the same test queries, resampling whole clusters (images with all
    their captions).

    Args:
        ours, theirs: [Q], what each query scored (1 for a hit).
        cluster: [Q], image group of each query: captions of one image are not independent.

    The percentile interval over clusters covers the choice of test images for these two trained models, not
    the variation over seeds. p is twice the smaller share of resamples on either side of zero.
    """
    difference = np.asarray(ours, float) - np.asarray(theirs, float)
    _, cluster_index = np.unique(np.asarray(cluster), return_inverse=True)
    sums, sizes = np.bincount(cluster_index, weights=difference), np.bincount(cluster_index).astype(float)
    count = len(sums)
    draw = numpy_generator("clustered bootstrap", seed)
    weights = draw.multinomial(count, np.full(count, 1 / count), size=draws)
    resampled = (weights @ sums) / (weights @ sizes)
    low, high = np.quantile(resampled, [0.5 - level / 2, 0.5 + level / 2])
    p = 2 * min(float((resampled <= 0).mean()), float((resampled >= 0).mean()))
    return Difference(float(difference.mean()), float(low), float(high), count, min(1.0, p))


# Variance -------------------------------------------------------------------------------------------


def variance_shares(values: Any) -> dict[str, float]:
    """Shares of the variance due to noise index, model seed and residual, from a complete table [noise seeds,
    seeds].

    Method of moments of the two-way random-effects model without replication (Searle, Casella and McCulloch
    1992, section 4.3): negative components are set to zero.
    """
    x = np.asarray(values, float)
    rows, columns = x.shape
    if rows < 2 or columns < 2 or not np.isfinite(x).all():
        return {"noise": np.nan, "seed": np.nan, "rest": np.nan}
    grand, by_row, by_column = x.mean(), x.mean(1), x.mean(0)
    rest = float(
        ((x - by_row[:, None] - by_column[None, :] + grand) ** 2).sum() / ((rows - 1) * (columns - 1))
    )
    noise = max(0.0, float(columns * by_row.var(ddof=1) - rest) / columns)
    model = max(0.0, float(rows * by_column.var(ddof=1) - rest) / rows)
    total = noise + model + rest
    return (
        {"noise": noise / total, "seed": model / total, "rest": rest / total}
        if total
        else {"noise": np.nan, "seed": np.nan, "rest": np.nan}
    )


def _finite(values: ArrayLike) -> Floats:
    x: Floats = np.asarray(values, float).ravel()
    finite: Floats = x[np.isfinite(x)]
    return finite
