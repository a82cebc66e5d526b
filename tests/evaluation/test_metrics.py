from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.evaluation.metrics import BINS, calibration, chance_rsum, detection, rank_queries, recalls

DATA = Path(__file__).parents[1] / "fixtures"


@pytest.mark.parametrize("name", ["retrieval_1", "retrieval_5"])
def test_recalls_of_published_code(name):
    with np.load(DATA / f"{name}.npz") as file:
        similarity, each, i2t, t2i = (file[k] for k in ("similarity", "captions_per_image", "i2t", "t2i"))
    images = np.arange(len(similarity))
    captions = np.repeat(images, int(each))
    found = recalls(rank_queries(similarity, images, captions), rank_queries(similarity.T, captions, images))
    for direction, expected in (("i2t", i2t), ("t2i", t2i)):
        names = ("r1", "r5", "r10", "median_rank", "mean_rank")
        assert [found[f"{direction}_{n}"] for n in names] == pytest.approx(expected.tolist())
    assert found["rsum"] == pytest.approx(i2t[:3].sum() + t2i[:3].sum())


@pytest.mark.parametrize("rounding", [0, 4e-7])
def test_a_model_that_scores_all_pairs_alike_has_the_recalls_of_chance(rounding):
    """To the last digit, also where rounding makes equal scores differ."""
    draw = np.random.default_rng(0)
    images, captions = np.arange(40) // 2, draw.permutation(np.arange(100) % 20)
    similarity = (0.5 + rounding * draw.choice([-1, 0, 1], size=(40, 100))).astype(np.float32)
    i2t, t2i = rank_queries(similarity, images, captions), rank_queries(similarity.T, captions, images)
    assert recalls(i2t, t2i)["rsum"] == pytest.approx(chance_rsum(images, captions), abs=1e-10)


def test_a_tie_is_the_mean_over_random_orders():
    """Two candidates ahead, then five equals of which two match."""
    similarity = np.array([[0.9, 0.8, 0.5, 0.5, 0.5, 0.5, 0.5, 0.1]])
    groups = np.array([1, 2, 0, 0, 3, 4, 5, 0])
    ranking = rank_queries(similarity, np.array([0]), groups)
    draw = np.random.default_rng(0)
    first = np.array([2 + np.flatnonzero(draw.permutation([1, 1, 0, 0, 0]))[0] for _ in range(20_000)])
    assert (ranking.rank[0], ranking.tied[0], ranking.matches[0]) == (2, 3, 2)
    assert ranking.expected[0] == 2 + 3 / 3
    for k in range(1, 9):
        assert ranking.hits(k)[0] == pytest.approx((first < k).mean(), abs=0.015)
    assert [ranking.hits(k)[0] for k in (2, 3, 6, 8)] == pytest.approx([0, 2 / 5, 1, 1])


def test_a_difference_beyond_rounding_is_no_tie():
    similarity = np.array([[0.5, 0.5 + 3e-6], [0.5, 0.5 - 3e-6]], np.float32)
    ranking = rank_queries(similarity, np.zeros(2, int), np.array([0, 1]))
    assert (ranking.rank.tolist(), ranking.tied.tolist()) == ([1, 0], [0, 0])


def test_any_match_of_the_group_is_a_hit():
    similarity = np.array([[0.1, 0.9, 0.5], [0.8, 0.2, 0.3]])
    ranking = rank_queries(similarity, np.array([0, 1]), np.array([0, 0, 1]))
    assert ranking.rank.tolist() == [0, 1]
    assert ranking.top.tolist() == [[1, 2, 0], [0, 2, 1]]


def test_top_five_put_a_tied_match_last():
    ranking = rank_queries(np.array([[0.5, 0.5, 0.1]]), np.array([0]), np.array([0, 1, 1]))
    assert ranking.top[0].tolist() == [1, 0, 2]
    assert ranking.expected[0] == 0.5


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_diverged_model_is_an_error_and_not_a_perfect_score(value):
    similarity = np.eye(3)
    similarity[0, 0] = value
    with pytest.raises(ValueError, match="not finite"):
        rank_queries(similarity, np.arange(3), np.arange(3))


def test_a_query_without_match_is_an_error():
    with pytest.raises(ValueError, match="1 queries have no match"):
        rank_queries(np.eye(2), np.array([0, 5]), np.array([0, 1]))


def test_recalls_do_not_depend_on_the_order_of_candidates():
    draw = np.random.default_rng(0)
    similarity, groups = draw.normal(size=(30, 60)), np.repeat(np.arange(30), 2)
    order = draw.permutation(60)
    plain = rank_queries(similarity, np.arange(30), groups)
    shuffled = rank_queries(similarity[:, order], np.arange(30), groups[order])
    assert (plain.rank == shuffled.rank).all()
    assert (order[shuffled.top] == plain.top).all()


def test_detection_scores():
    matched = np.array([True, True, False, False])
    perfect = detection(np.array([0.9, 0.8, 0.2, 0.1]), matched)
    assert perfect == {"auroc": 1.0, "average_precision": 1.0, "f1": 1.0, "ece": pytest.approx(0.15)}
    mixed = detection(np.array([0.9, 0.2, 0.8, 0.1]), matched)
    assert mixed["auroc"] == 0.75
    assert mixed["f1"] == 0.5  # one of two found, one of two right
    assert mixed["average_precision"] == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert detection(np.full(4, 0.75), np.ones(4, bool)) == {"ece": pytest.approx(0.25)}


def test_calibration_by_hand():
    """Three pairs at 0.9 of which two match, one at exactly 1 that matches: half of the rest is right."""
    found = calibration(
        np.array([0.92, 0.92, 0.92, 1.0, 0.0, 0.02]), np.array([True, True, False, True, False, True])
    )
    assert found.matched.tolist() == [1] + [0] * (BINS - 3) + [2, 1]
    assert found.mismatched.tolist() == [1] + [0] * (BINS - 3) + [1, 0]
    assert found.share[[0, -2, -1]] == pytest.approx([1 / 2, 2 / 3, 1])
    assert found.error == pytest.approx((2 * abs(0.5 - 0.01) + 3 * abs(2 / 3 - 0.92) + 0) / 6)


def test_a_calibrated_belief_has_no_error():
    belief = np.random.default_rng(0).random(200_000)
    matched = np.random.default_rng(1).random(200_000) < belief
    assert calibration(belief, matched).error < 0.01
    assert calibration(belief**2, matched).error > 0.1
