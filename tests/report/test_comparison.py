"""What a report says of differences: made-up trials whose truth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from harness.config.sweep_file import BadInput
from harness.report.accuracy import by_ratio
from harness.report.comparison import (
    blocks_table,
    compare,
    differences_table,
    not_worse,
    queries_table,
    reference_row,
)
from harness.report.results import over_noise_seeds
from harness.report.stats import critical_difference, mean_interval
from tests import small
from tests.report.test_results import frame

SEEDS = range(5)


def trials(offsets, ratios=(0.0, 0.4), spread=1.0, hard=10.0):
    """Rows with known offsets; `hard` is what a seed is worth, the same for every row."""
    draw = np.random.default_rng(0)
    of_seed = {(r, s): hard * draw.standard_normal() for r in ratios for s in SEEDS}
    rows = [
        (row, r, s, 100 + offset + of_seed[r, s] + spread * draw.standard_normal(), 1)
        for row, offset in offsets.items()
        for r in ratios
        for s in SEEDS
    ]
    made = frame(rows)
    return made.assign(method=made["row"], dataset="d", noise="caption-level noise")


def test_pairs_see_through_what_a_seed_is_worth():
    """A difference of 4 under a seed noise of 10: told by pairs, not by means."""
    made = trials({"clip": 0, "better": 4, "same": 0})
    found = compare(made, "clip", "rsum")
    assert found["better", 0.4].holm < 0.05
    assert found["better", 0.4].low < 4 < found["better", 0.4].high
    assert found["same", 0.0].holm > 0.05
    assert found["better", 0.4].n == 5
    assert found["better", 0.4].holm >= found["better", 0.4].p


def test_a_hole_is_left_out_of_its_pair_only():
    made = trials({"clip": 0, "a": 4})
    made.loc[(made["row"] == "a") & (made["seed"] == 2) & (made["noise_ratio"] == 0.4), "rsum"] = np.nan
    found = compare(made, "clip", "rsum")
    assert (found["a", 0.4].n, found["a", 0.0].n) == (4, 5)


def test_noise_seeds_crossed_with_seeds_are_not_more_results():
    """Four noise indices shared by five seeds: five pairs, not twenty."""
    made = trials({"clip": 0, "a": 4}).assign(perturbed=0)
    crossed = pd.concat([made.assign(noise_seed=n, rsum=made["rsum"] + n, trial=f"t{n}") for n in range(4)])
    found = over_noise_seeds(crossed)
    assert compare(crossed, "clip", "rsum")["a", 0.4].n == 20
    assert compare(found, "clip", "rsum")["a", 0.4].n == 5
    assert found["rsum"].to_numpy() == pytest.approx(made["rsum"].to_numpy() + 1.5)
    assert set(found["trial"]) == {"t0 t1 t2 t3"}
    hole = (crossed["row"] == "a") & (crossed["seed"] == 2) & (crossed["noise_seed"] == 3)
    holed = over_noise_seeds(crossed.assign(rsum=crossed["rsum"].mask(hole), done=~hole))
    assert compare(holed, "clip", "rsum")["a", 0.4].n == 4  # no mean over three of four
    assert over_noise_seeds(made) is made
    of_noise = made[made["seed"] == 0].assign(noise_seed=range(4))
    assert over_noise_seeds(of_noise) is of_noise


def test_the_table_of_differences_marks_what_is_significant():
    text = differences_table(trials({"clip": 0, "better": 8, "same": 0}), "clip", "d").markdown()
    better, same = (
        next(line for line in text.splitlines() if line.startswith(f"| {row}")) for row in ("better", "same")
    )
    assert better.count("*") == 3  # the mean over ratios, and both of them
    assert "*" not in same
    assert "+" in better
    alone = differences_table(trials({"clip": 0, "a": 1})[lambda f: f["seed"] == 0], "clip", "d").markdown()
    assert "(n=1)" in alone


def test_underlined_is_what_is_not_significantly_worse():
    made = trials({"best": 9, "near": 8.5, "far": 0})
    found = not_worse(made, {0.0: {"best"}, 0.4: {"best"}}, "rsum")
    assert set(found) == {("near", 0.0), ("near", 0.4)}
    table = by_ratio(made, "rsum", "t", "c")
    assert table.markdown().count("<u>") == 3  # the mean over ratios, and both of them
    assert table.latex("l").count(r"\underline{") == 3
    assert "Underlined: not significantly worse" in table.caption
    assert "<u>" not in by_ratio(made[made["seed"] == 0], "rsum", "t", "c").markdown()


def test_the_truth_is_never_underlined():
    made = trials({"best": 0, "ceiling": 0.1})
    assert not_worse(made, {0.0: {"best"}}, "rsum") == {}


def test_blocks_together():
    made = trials({"clip": 0, "good": 20, "bad": -20}, ratios=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5))
    text = blocks_table(made, "clip").markdown()
    good, bad = (
        next(line for line in text.splitlines() if line.startswith(f"| {row}")) for row in ("good", "bad")
    )
    assert "1.00" in good  # rank
    assert "3.00" in bad
    assert f"at 5 %: {critical_difference(3, 6):.2f} among rows of one network (Nemenyi" in text
    pair = made.assign(row=made["row"] + " ×2", track="several networks")[made["row"] != "bad"]
    both = blocks_table(pd.concat([made, pair]), "clip").markdown()  # ranks are within a track
    assert f"{critical_difference(3, 6):.2f} among rows of one network, " in both
    assert f"{critical_difference(2, 6):.2f} among rows of several networks (Nemenyi" in both
    assert blocks_table(made[made["noise_ratio"] == 0], "clip") is None
    own = made[made["row"] == "good"].groupby("seed")["rsum"].mean()  # a seed is one result
    interval = mean_interval(own)
    assert f"{interval.value:.1f} [{interval.low:.1f}, {interval.high:.1f}]" in good
    moved = made.assign(seed=made["seed"] + 10 * (made["noise_ratio"] > 0.2))  # blocks with other seeds
    (line,) = [x for x in blocks_table(moved, "clip").markdown().splitlines() if x.startswith("| good")]
    assert f" {own.mean():.1f} |" in line
    assert "[" not in line
    assert "are not tested" in blocks_table(made[made["noise_ratio"] < 0.3], "clip").markdown()
    made.loc[(made["row"] == "good") & (made["seed"] == 1), "rsum"] = (
        np.nan
    )  # an incomplete row is not averaged over its holes
    assert "| good" not in blocks_table(made, "clip").markdown()


def test_one_seed_is_compared_by_queries():
    """Two trained models on the same 200 images: one finds 40 of them that the other does not."""
    made = trials({"clip": 0, "a": 1}, ratios=(0.0,))
    made = made[made["seed"] == 0].assign(done=True, run=["r0", "r1"])
    rank = np.arange(200) % 2
    better = np.where(np.arange(200) % 5 == 0, 0, rank)
    runs = {
        name: {
            "i2t_rank": r,
            "i2t_top": r[:, None],
            "t2i_rank": r.repeat(5),
            "t2i_top": r.repeat(5)[:, None],
            "i2t_group": np.arange(200),
            "t2i_group": np.arange(200).repeat(5),
        }
        for name, r in (("r0", rank), ("r1", better))
    }
    (row,) = queries_table(made, "clip", lambda run, _: runs[run], "w").rows
    assert row[2].text.startswith("+10.0 [+6.")  # 20 of 200
    assert row[2].text == row[3].text  # captions of an image hang together: five times as many say no more
    assert (
        queries_table(
            trials({"clip": 0, "a": 1}).assign(done=True, run="r0"), "clip", lambda run, _: runs[run], "w"
        )
        is None
    )
    old = {name: {k: v for k, v in arrays.items() if "group" not in k} for name, arrays in runs.items()}
    assert queries_table(made, "clip", lambda run, _: old[run], "w") is None


def test_queries_of_several_networks_are_compared_with_several():
    made = trials({"clip": 0, "clip ×2": 1, "a ×2": 2}, ratios=(0.0,))
    made = made[made["seed"] == 0].assign(done=True, run=made["row"])
    made["method"] = made["row"].str.removesuffix(" ×2")
    made["track"] = np.where(made["row"].str.endswith("×2"), "several networks", "one network")
    asked = []

    def read(run, _):
        asked.append(run)
        zero = np.zeros(9, np.int64)
        ranks = {f"{d}_{k}": zero for d in ("i2t", "t2i") for k in ("rank", "group")}
        return ranks | {f"{d}_top": zero[:, None] for d in ("i2t", "t2i")}

    (row,) = queries_table(made, "clip", read, "w").rows
    assert row[1].text == "a ×2"
    assert asked == ["a ×2", "clip ×2"]


def test_a_difference_of_fewer_pairs_says_how_many():
    made = trials({"clip": 0, "a": 1})
    made.loc[(made["row"] == "a") & (made["noise_ratio"] == 0.4) & (made["seed"] > 1), "rsum"] = np.nan
    table = differences_table(made, "clip", "w")
    assert "n = 5 pairs unless marked" in table.caption
    mean, low, high = (cell.text for cell in table.rows[0][1:])
    assert (mean.endswith(" (n=2)"), "n=" in low, high.endswith(" (n=2)")) == (True, False, True)


def test_the_reference_is_named_or_clip_or_the_first():
    made = trials({"a": 0, "clip": 0, "b": 0})
    assert [reference_row(made, m) for m in ("b", None)] == ["b", "clip"]
    assert reference_row(trials({"a": 0, "b": 0}), None) == "a"
    with pytest.raises(BadInput, match="reference = 'npc': no such method in the grid"):
        small.sweep("clip", reference="npc")
