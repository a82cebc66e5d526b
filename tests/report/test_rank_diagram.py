"""The critical-difference diagram: which methods a bar joins, and that all of it is drawn."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from matplotlib.figure import Figure

from harness.report.rank_diagram import cliques, draw_ranks, height, levels


@pytest.mark.parametrize(
    ("ranks", "difference", "expected"),
    [
        ([1.0, 3.0], 1.5, []),
        ([1.0, 3.0], 2.0, [(0, 1)]),
        ([1.5, 1.5, 3.0], 0.1, [(0, 1)]),
        ([1.0, 2.0, 3.0, 4.0], 1.0, [(0, 1), (1, 2), (2, 3)]),
        ([1.0, 1.2, 1.4, 9.0], 0.5, [(0, 2)]),  # and no bar within it
    ],
)
def test_a_bar_joins_methods_that_do_not_differ(ranks, difference, expected):
    assert cliques(ranks, difference) == expected


def test_two_methods_share_a_bar_where_their_ranks_are_close_and_nowhere_else():
    draw = np.random.default_rng(0)
    for _ in range(50):
        ranks = sorted(draw.uniform(1, 12, 12))
        difference = draw.uniform(0.1, 6)
        groups = cliques(ranks, difference)
        for i, j in combinations(range(12), 2):
            joined = any(first <= i and j <= last for first, last in groups)
            assert joined == (ranks[j] - ranks[i] <= difference)
        for (a, x), (b, y) in combinations(zip(groups, levels(groups), strict=True), 2):
            assert x != y or a[1] < b[0] or b[1] < a[0]


def test_every_method_stands_in_the_diagram_with_its_rank():
    average = {"b": 2.5, "a": 1.0, "c": 2.5, "d": 4.0}
    figure = Figure(figsize=(7, height(average, 2)))
    axes = figure.subplots()
    draw_ranks(axes, average, 2, dict.fromkeys(average, "black"))
    told = {text.get_text().strip(): text.get_position() for text in axes.texts}
    assert {"a (1.00)", "b (2.50)", "(2.50) c", "(4.00) d", "CD = 2.00", *"1234"} == set(told)
    assert told["a (1.00)"][0] < told["(4.00) d"][0]  # the best is on the left
    low, high = axes.get_ylim()
    assert all(low < y < high for _, y in told.values())
