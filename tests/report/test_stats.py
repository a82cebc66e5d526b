"""Statistics: known values, and intervals that cover as they say at the numbers of seeds, blocks and queries
that are used.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from harness.report.stats import (
    average_ranks,
    clustered_difference,
    critical_difference,
    holm,
    mean_interval,
    paired_difference,
    probability_of_improvement,
    sd_interval,
    variance_shares,
)

SEEDS = 5


def coverage(intervals, truth):
    return np.mean([found.low <= truth <= found.high for found in intervals])


def test_t_and_chi_square_intervals_cover_95_percent_at_five_seeds():
    samples = np.random.default_rng(0).normal(50, 3, (4000, SEEDS))
    assert coverage(map(mean_interval, samples), 50) == pytest.approx(0.95, abs=0.02)
    assert coverage(map(sd_interval, samples), 3) == pytest.approx(0.95, abs=0.02)


def test_paired_intervals_cover_and_the_test_has_its_level():
    draw = np.random.default_rng(1)
    hard = draw.normal(0, 10, (1500, SEEDS))  # what a seed is worth, shared by both methods
    ours, theirs = hard + draw.normal(1.5, 1, hard.shape), hard + draw.normal(0, 1, hard.shape)
    assert coverage(
        (paired_difference(a, b) for a, b in zip(ours, theirs, strict=True)), 1.5
    ) == pytest.approx(0.95, abs=0.02)
    rejected = np.mean([paired_difference(a - 1.5, b).p < 0.05 for a, b in zip(ours, theirs, strict=True)])
    assert rejected == pytest.approx(0.05, abs=0.02)


def test_the_clustered_bootstrap_covers_where_captions_of_an_image_hang_together():
    draw = np.random.default_rng(3)
    cluster = np.repeat(np.arange(200), 5)
    found, naive = [], []
    for seed in range(300):
        easy = draw.random(200)[cluster]  # an image that is easy is easy for all of its captions
        ours, theirs = draw.random(1000) < 0.2 + 0.6 * easy, draw.random(1000) < 0.5
        found.append(clustered_difference(ours, theirs, cluster, draws=200, seed=seed))
        naive.append(clustered_difference(ours, theirs, np.arange(1000), draws=50, seed=seed))
    assert coverage(found, 0.0) == pytest.approx(0.95, abs=0.02)
    assert coverage(naive, 0.0) < coverage(found, 0.0)


def test_one_value_has_no_interval_and_holes_are_left_out():
    alone = mean_interval([7.0])
    assert (alone.value, alone.n) == (7.0, 1)
    assert np.isnan(alone.low)
    assert mean_interval([1.0, np.nan, 3.0]).n == 2
    assert np.isnan(mean_interval([]).value)
    assert paired_difference([1.0, np.nan], [0.0, 5.0]).n == 1
    same = paired_difference([1.0, 2.0], [1.0, 2.0])
    assert (same.value, same.p) == (0.0, 1.0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    corrected = holm([0.5, np.nan, 0.9])
    assert corrected[[0, 2]].tolist() == [1.0, 1.0]
    assert np.isnan(corrected[1])


def test_over_blocks():
    assert probability_of_improvement([[1, 2, 3]], [[1, 2, 3]]) == 0.5
    assert probability_of_improvement([[2.0], [0.0]], [[1.0], [1.0]]) == 0.5
    assert average_ranks([[3, 2, 1], [3, 3, 1]]).tolist() == [1.25, 1.75, 3]


def test_critical_differences_are_demsars():
    """Demsar 2006, table 5(a): q at 0.05 of two to ten classifiers; some are cut off after three decimals."""
    published = [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]
    for k, q in enumerate(published, start=2):
        assert critical_difference(k, 14) / np.sqrt(k * (k + 1) / (6 * 14)) == pytest.approx(q, abs=1e-3)


def test_probability_of_improvement_is_mann_whitneys():
    a, b = np.random.default_rng(4).standard_normal((2, 8))
    assert probability_of_improvement([a], [b]) == pytest.approx(
        scipy_stats.mannwhitneyu(a, b).statistic / 64
    )


def test_shares_of_variance_find_what_was_put_in():
    draw = np.random.default_rng(5)
    found = [
        variance_shares(draw.normal(0, 3, (6, 1)) + draw.normal(0, 1, (1, 6)) + draw.normal(0, 1, (6, 6)))
        for _ in range(300)
    ]
    means = {k: np.mean([f[k] for f in found]) for k in found[0]}
    assert means["noise"] == pytest.approx(9 / 11, abs=0.08)
    assert means["seed"] == pytest.approx(1 / 11, abs=0.05)
    assert sum(means.values()) == pytest.approx(1)
    assert np.isnan(variance_shares([[1.0, 2.0]])["seed"])


def test_draws_are_seeded():
    hits = np.random.default_rng(6).random((2, 100)) < 0.5
    assert clustered_difference(*hits, np.arange(100), seed=2) == clustered_difference(
        *hits, np.arange(100), seed=2
    )
