"""What seeds can show: against simulated tests, and by hand."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from harness.report.accuracy import by_ratio
from harness.report.comparison import differences_table
from harness.report.design import (
    designs_of,
    detectable_difference,
    needed_seeds,
    paired_sd,
    seeds_for,
    statement,
)
from tests.report.test_comparison import trials
from tests.report.test_results import frame


@pytest.mark.parametrize(("seeds", "comparisons"), [(2, 1), (2, 5), (3, 12), (5, 5), (10, 5), (20, 1)])
def test_the_detectable_difference_is_found_four_times_in_five(seeds, comparisons):
    difference = detectable_difference(2.0, seeds, comparisons)
    draw = np.random.default_rng(0)
    samples = difference + 2.0 * draw.standard_normal((20_000, seeds))
    found = stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05 / comparisons
    assert found.mean() == pytest.approx(0.8, abs=0.01)


def test_seeds_for_a_difference_are_the_fewest():
    needed = seeds_for(5.0, 5.6, 5)
    assert detectable_difference(5.6, needed, 5) <= 5.0 < detectable_difference(5.6, needed - 1, 5)
    assert needed == 19  # as a review reckoned it: sd 5.6, Holm's worst step of five
    assert seeds_for(5.0, 7.9, 1) == 22
    assert detectable_difference(1.0, 1, 1) == np.inf


def test_the_spread_is_that_of_pairs_and_of_the_mean_over_ratios():
    """What a seed is worth (10) is the same for all rows, so pairs do not see it."""
    draw = np.random.default_rng(0)
    worth = 10 * draw.standard_normal((2, 400))
    rows = [
        (row, ratio, seed, 100 + worth[i, seed] + 2 * draw.standard_normal(), 1)
        for row in ("clip", "a", "b")
        for i, ratio in enumerate((0.0, 0.4))
        for seed in range(400)
    ]
    made = frame(rows)
    assert paired_sd(made, "rsum", several=False) == pytest.approx(2 * np.sqrt(2), rel=0.05)
    assert paired_sd(made, "rsum", several=True) == pytest.approx(2, rel=0.05)
    assert designs_of(made[made["row"] == "clip"]) == {}
    assert designs_of(made[made["seed"] == 0]) == {}


def test_the_oracle_counts_among_the_comparisons_as_in_the_table_of_differences():
    competing = trials({"clip": 0, "a": 1, "b": 2})
    made = trials({"clip": 0, "a": 1, "b": 2, "ceiling": 5})
    design, without = (designs_of(f)["one network"] for f in (made, competing))
    table = differences_table(made, "clip", "t")
    assert design.comparisons == len(table.rows) == 3
    assert design.sd == without.sd  # it does not compete, so its spread is not theirs
    assert design.detectable > without.detectable


def in_tracks(steady, shaky):
    """Two rows of one network that seeds hardly move apart, and two of several that they do."""
    one, several = trials(steady, spread=0.3), trials(shaky, spread=16.0)
    return pd.concat([one, several.assign(track="several networks")], ignore_index=True)


def test_rows_of_a_track_say_nothing_of_another():
    made = in_tracks({"clip": 9, "a": 8.7}, {"clip ×2": 9, "a ×2": 8.7})
    designs = designs_of(made)
    assert list(designs) == ["one network", "several networks"]
    for track, design in designs.items():
        assert design == designs_of(made[made["track"] == track])[track]
    assert 10 * designs["one network"].sd < designs["several networks"].sd
    assert [d.comparisons for d in designs.values()] == [1, 1]
    text = statement(list(designs.values()), several=True)
    assert re.search(
        r"finds, .*, \d\.\d points among rows of one network \(sd .*; .* of several networks", text
    )


def test_a_track_whose_seeds_are_too_few_is_named():
    """In the other, rows that are near the best are underlined."""
    text = by_ratio(in_tracks({"clip": 9, "a": 8.9}, {"clip ×2": 9, "a ×2": 8.9}), "rsum", "t", "c")
    underlined = [line for line in text.markdown().splitlines() if "<u>" in line]
    assert {line.split("|")[1].strip() for line in underlined} <= {"clip", "a"}
    assert underlined
    assert "Nothing is underlined among rows of several networks: these seeds cannot tell" in text.caption
    assert "At a single ratio nothing is underlined among rows of several networks" in text.caption


def test_nothing_is_underlined_where_seeds_are_too_few():
    near = trials({"best": 9, "near": 8.5, "far": 0}, spread=0.3)
    wide = trials({"best": 9, "near": 8.5, "far": 0}, spread=8.0)
    assert max(needed_seeds(near, "rsum").values()) <= 5 < min(needed_seeds(wide, "rsum").values())
    assert len(needed_seeds(near, "rsum")) == 2
    assert "<u>" in by_ratio(near, "rsum", "t", "c").markdown()
    text = by_ratio(wide, "rsum", "t", "c").markdown()
    assert "<u>" not in text
    assert "Nothing is underlined: these seeds cannot tell a difference of 5 points" in text


def test_a_caption_says_what_was_tested():
    alone = by_ratio(trials({"clip": 0}), "rsum", "t", "c").caption
    assert "cannot tell" not in alone  # nothing was compared
    made = trials({"best": 9, "near": 8.9, "far": 0}, ratios=(0.0, 0.2, 0.4, 0.6), spread=2.0)
    needed = needed_seeds(made, "rsum")
    assert needed["one network", True] <= 5 < needed["one network", False]
    caption = by_ratio(made, "rsum", "t", "c").caption
    assert "Underlined: not significantly worse" in caption
    assert "At a single ratio nothing is underlined: these seeds cannot tell" in caption
    far = trials({"best": 20, "near": 8.9, "far": 0}, ratios=(0.0, 0.2, 0.4, 0.6), spread=2.0)
    caption = by_ratio(far, "rsum", "t", "c").caption
    assert "Underlined" not in caption  # no mean is near the best
    assert "At a single ratio nothing is underlined: these seeds cannot tell" in caption


def test_a_row_with_few_seeds_done_is_not_called_near():
    """Ten seeds could tell the rows apart, and two pairs cannot."""
    draw = np.random.default_rng(0)
    rows = [
        (row, ratio, seed, 100 + offset + draw.standard_normal(), 1)
        for row, offset in (("best", 12), ("other", 11.5), ("begun", 0))
        for ratio in (0.0, 0.4)
        for seed in range(10)
    ]
    made = frame(rows)
    made = made.assign(method=made["row"])
    made.loc[(made["row"] == "begun") & (made["seed"] > 1), "rsum"] = np.nan
    text = by_ratio(made, "rsum", "t", "c").markdown()
    (begun,) = (line for line in text.splitlines() if line.startswith("| begun"))
    (other,) = (line for line in text.splitlines() if line.startswith("| other"))
    assert "<u>" not in begun
    assert "<u>" in other
