"""What can be switched off in a method does what it says; and what a trial spends is counted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from harness.config.labels import row_labels
from harness.config.sweep_file import BadInput, parse_sweep
from harness.evaluation.metrics import chance_rsum, rank_queries, recalls
from harness.report.ablation import Axis, axes, axis_table
from methods.base import Pairs
from methods.seeding import torch_generator
from tests import build, small
from tests.report.test_results import frame


def weights(trainer):
    return {k: v for k, v in trainer.method.networks.state_dict().items() if v.is_floating_point()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def trained(name, **hyper):
    made = build.trainer(name, hyper=hyper, evaluate_every=3)  # dev once, so the last epoch's weights stay
    records = []
    outcome = made.fit(records.append)
    return made, records, outcome


@pytest.fixture(scope="module")
def npc():
    return {(w, m): trained("npc", weights=w, memory_loss=m) for w in (True, False) for m in (True, False)}


def test_npc_without_both_is_plain_infonce(npc):
    bare, records, outcome = npc[False, False]
    clip, _, _ = trained("clip")
    assert same(weights(bare), weights(clip))
    assert records[-1].confidence is None
    assert outcome.metrics["cost/forward_passes"] == 1


def test_npcs_parts_each_change_what_is_learned(npc):
    made = [weights(trainer) for trainer, _, _ in npc.values()]
    assert not any(same(a, b) for i, a in enumerate(made) for b in made[i + 1 :])


def test_npc_without_weights_has_no_look_ahead_and_no_confidence(npc):
    _, records, outcome = npc[False, True]
    assert records[-1].confidence is None
    assert records[-1].metrics["train/mean_weight"] == 1
    both = npc[True, True][2].metrics["cost/forward_passes"]
    assert (
        1 < outcome.metrics["cost/forward_passes"] < both <= 5
    )  # the batch, and up to two entries a pair, before and after the look-ahead


def test_npc_without_memory_loss_trains_on_weighted_losses_alone(npc):
    _, records, _ = npc[True, False]
    assert records[-1].metrics["train/memory_loss"] == 0
    assert (records[-1].confidence < 1).any()


@pytest.fixture(scope="module")
def mscn():
    return trained("mscn")[1]


@pytest.mark.parametrize(
    "change", [{"meta": "positives"}, {"purify": False}, {"adaptive_margin": False}, {"clean_pairs": 2}]
)
def test_mscns_parts_each_change_the_loss(change, mscn):
    """The loss and not the weights: a margin has no gradient while every hinge is open, as they are here."""
    without, records, _ = trained("mscn", **change)
    assert records[-1].metrics["train/loss"] != mscn[-1].metrics["train/loss"]
    assert (records[-1].confidence is None) == ("purify" in change)
    if "purify" in change:
        assert without.method.selected(0) is None
    if change.get("meta") == "positives":
        assert set(build.first_batch(without, epoch=2).auxiliary) == {"positives"}


def test_a_smaller_clean_set_is_in_the_larger():
    clean = Pairs(torch.arange(20), torch.arange(20), "meta")

    def some(count):
        return set(clean.some(count, torch_generator(3, "clean pairs")).captions.tolist())

    assert some(2) < some(5) < some(19) < some(None)
    with pytest.raises(ValueError, match="clean_pairs = 21: the data set has 20 clean pairs"):
        some(21)


def test_clip_clean_trains_on_clean_pairs_of_different_concepts():
    made = build.trainer("clip_clean")
    plan = made.plan_pass(0)
    batches, pools = plan.batches, plan.pools["clean"]
    groups = made.data["meta"].image_group
    assert len(pools) == len(batches)
    for _, pairs in pools:
        assert pairs.split == "meta"
        assert len(set(groups[pairs.images].tolist())) == len(pairs) == small.CONCEPTS["meta"]
    without, _, _ = trained("clip")
    made.fit()
    assert not same(weights(made), weights(without))


def test_what_is_spent_goes_on_after_a_resume(tmp_path):
    whole = build.trainer("npc")
    whole.fit()

    class Stop(Exception):
        pass

    def stop(record):
        if record.epoch == 2:
            raise Stop

    first = build.trainer("npc", folder=tmp_path)
    with pytest.raises(Stop):
        first.fit(stop)
    resumed = build.trainer("npc", folder=tmp_path)
    resumed.resume()
    resumed.fit()
    assert (resumed.cost.forwards, resumed.cost.batch_pairs) == (
        whole.cost.forwards,
        whole.cost.batch_pairs,
    )
    assert resumed.cost.pairs["train"] == whole.cost.pairs["train"]
    assert all(s > 0 for s in resumed.cost.seconds.values())


def test_chance_is_what_random_orders_give():
    draw = np.random.default_rng(0)
    images, captions = np.arange(30) // 2, np.arange(75) // 5
    found = []
    for _ in range(300):
        scores = draw.random((30, 75))
        found.append(
            recalls(rank_queries(scores, images, captions), rank_queries(scores.T, captions, images))["rsum"]
        )
    assert chance_rsum(images, captions) == pytest.approx(np.mean(found), abs=4 * np.std(found) / 300**0.5)


def content():
    first = {
        "method": ["npc", "clip"],
        "dataset": ["tests.small:load"],
        "noise_ratio": [0.2, 0.4],
        "seed": [0],
        "npc.weights": [True, False],
        "npc.memory_loss": [True, False],
        "npc.bank_threshold": [0.99],
    }
    second = {
        **first,
        "method": ["npc"],
        "npc.weights": [True],
        "npc.memory_loss": [True],
        "npc.bank_threshold": [0.5, 0.9, 0.99],
    }
    return {"name": "grids", "grid": [first, second], "fixed": {"backbone": small.backbone()}}


def test_several_grids_are_put_together():
    sweep = parse_sweep(content())
    assert len(sweep.trials) == 2 * (4 + 1 + 2)  # what stands in both is one trial
    labels = set(row_labels(sweep.trials).values())
    assert labels == {
        "npc",
        "clip",
        "npc (weights=False)",
        "npc (memory_loss=False)",
        "npc (weights=False, memory_loss=False)",
        "npc (bank_threshold=0.5)",
        "npc (bank_threshold=0.9)",
    }


def test_each_varied_setting_is_an_axis_where_all_else_is_equal():
    sweep = parse_sweep(content())
    labels = row_labels(sweep.trials)
    found = {
        a.name: a
        for a in axes(
            sweep.trials, pd.DataFrame([{"trial": t.id, "row": labels[t.id]} for t in sweep.trials])
        )
    }
    assert set(found) == {"bank_threshold", "weights", "memory_loss"}
    assert found["bank_threshold"].values == ["0.5", "0.9", "0.99"]
    assert found["bank_threshold"].lines == {
        "npc": {"0.99": "npc", "0.5": "npc (bank_threshold=0.5)", "0.9": "npc (bank_threshold=0.9)"}
    }
    assert found["weights"].lines == {
        "npc (memory_loss=True)": {"True": "npc", "False": "npc (weights=False)"},
        "npc (memory_loss=False)": {
            "True": "npc (memory_loss=False)",
            "False": "npc (weights=False, memory_loss=False)",
        },
    }


def test_bold_on_an_axis_is_the_best_of_a_track_and_no_oracle():
    rows = {"clip": 100, "clip ×2": 120, "npc": 110, "npc ×2": 115, "ceiling": 200, "ceiling b": 210}
    made = frame([(row, ratio, 0, rsum, 1) for row, rsum in rows.items() for ratio in (0.0, 0.4)])
    made["track"] = np.where(made["row"].str.endswith("×2"), "several networks", "one network")
    made["ground_truth"] = made["row"].str.startswith("ceiling")
    lines = {
        "clip": {"1": "clip", "2": "clip ×2"},
        "npc": {"1": "npc", "2": "npc ×2"},
        "oracle": {"1": "ceiling", "2": "ceiling b"},
    }
    table = axis_table(Axis("n_networks", lines), made, "rsum", "w")
    assert [(r[0].text, r[1].text) for r in table.rows if r[2].best] == [("clip", "2"), ("npc", "1")]


def test_bold_on_an_axis_is_of_rows_with_all_seeds():
    """One seed of a value that was planned so is no better than five of another."""
    rows = [(row, 0.4, seed, best + seed, 1) for row, best in (("a", 100), ("b", 101)) for seed in range(5)]
    made = frame([*rows, ("c", 0.4, 0, 200, 1)])
    table = axis_table(Axis("x", {"npc": {"1": "a", "2": "b", "3": "c"}}), made, "rsum", "w")
    assert [r[1].text for r in table.rows if r[2].best] == ["2"]
    assert table.rows[2][2].text == "200.0 (n=1)"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"grid": []}, "grid = []: expected at least one grid"),
        (
            {
                "grid": [
                    {"method": ["clip"], "dataset": ["emoji"], "seed": [0], "noise_ratio": [0]},
                    {"method": ["npc"]},
                ]
            },
            "grid[1]: dataset is missing",
        ),
        (
            {
                "grid": [
                    {"method": ["clip"], "dataset": [], "seed": [0], "noise_ratio": [0]},
                    {"method": ["npc"]},
                ]
            },
            "grid[0].dataset = []: expected at least one value",
        ),
        (
            {"grid": [{"method": ["clip"], "dataset": ["emoji"], "seed": 0, "noise_ratio": [0]}]},
            "grid.0.seed = 0",
        ),
    ],
)
def test_errors_of_several_grids_say_which(change, expected):
    with pytest.raises(BadInput) as raised:
        parse_sweep({**content(), **change})
    assert any(expected in e for e in raised.value.errors), raised.value.errors
