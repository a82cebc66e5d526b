"""The baselines: several networks, the truth as a weight, clean pairs in the pool; what is trained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.config.resources import Resources
from harness.config.trial import method_class
from harness.training.accelerator import make_accelerator
from harness.training.run_trial import build_trainer
from methods import METHODS
from methods.base import Method
from methods.losses import pair_losses
from tests import build, small


def test_only_those_that_train_on_all_pairs_alike_or_know_the_truth_have_no_confidence():
    without = {name for name in METHODS if method_class(name).confidence is Method.confidence}
    assert without == {"zero_shot", "clip", "triplet", "oracle", "clip_clean"}


def fitted(name, **changes):
    made = build.trainer(name, precision="fp64", **changes)
    records = []
    outcome = made.fit(records.append)
    return made, records, outcome


def network_weights(network):
    return dict(network.state_dict())


@pytest.mark.parametrize("name", ["clip", "small_loss"])
def test_a_second_network_is_trained_for_itself_and_averaged_at_test(name):
    """The first of two is the one that would have been alone."""
    alone, _, _ = fitted(name, evaluate_every=3)
    both, _, outcome = fitted(name, hyper={"n_networks": 2}, evaluate_every=3)
    first, second = map(network_weights, both.method.networks)
    assert all(torch.equal(first[k], v) for k, v in network_weights(alone.method.networks[0]).items())
    assert not all(torch.equal(first[k], second[k]) for k in first)
    assert outcome.metrics["cost/networks_at_test"] == 2
    scores = both.similarities("test")
    one = alone.similarities("test")
    assert not torch.allclose(scores, one)
    assert both.method.confidence() is None or both.method.confidence().shape == (len(both.method.pairs),)


def test_the_truth_as_a_weight_keeps_mismatched_pairs_as_negatives():
    made = build.trainer("oracle", hyper={"truth": "weights"}, precision="fp64")
    assert made.method.selected(0) is None
    batch = build.first_batch(made)
    made.method.eval()
    net = made.method.networks[0]
    losses = pair_losses(net.logits(*net(batch)))
    matched = torch.from_numpy(made.noise.matched)[batch.index]
    assert 0 < matched.sum() < len(matched)
    assert made.method.loss(batch)[0].item() == pytest.approx(losses[matched].mean().item())


def test_clean_pairs_in_the_pool_come_once_an_epoch_on_average():
    made = build.trainer("clip_clean", hyper={"placed": "pool"}, precision="fp64")
    counts = [
        len(b.auxiliary["clean"].index) if b.auxiliary else 0
        for epoch in range(8)
        for b in made.batches(epoch)
    ]
    share = 16 * len(made.method.clean) / len(made.method.pairs)
    assert np.mean(counts) == pytest.approx(share, rel=0.15)
    batch = next(b for b in made.batches(0) if b.auxiliary)
    made.method.eval()
    net = made.method.networks[0]
    sides = [torch.cat(parts) for parts in zip(net(batch), net(batch.auxiliary["clean"]), strict=True)]
    assert made.method.loss(batch)[0].item() == pytest.approx(pair_losses(net.logits(*sides)).mean().item())


def test_clean_pairs_join_a_batch_of_other_lengths():
    """On region features captions have a word each, and another longest one in each batch."""
    region = {"module": "SGR", **small.SGRAF}
    made = build.trainer("clip_clean", hyper={"placed": "pool"}, backbone=region)
    batch = next(b for b in made.batches(0) if b.auxiliary)
    assert np.isfinite(made.method.loss(batch)[0].item())


@pytest.mark.parametrize(
    ("name", "hyper", "share", "purity"),
    [
        ("clip", {}, 1.0, "all"),
        ("oracle", {}, "matched", 1.0),
        ("oracle", {"truth": "weights"}, "matched", 1.0),
    ],
)
def test_what_is_trained_on_is_recorded(name, hyper, share, purity):
    made, records, _ = fitted(name, hyper=hyper)
    matched = float(made.noise.matched.mean())
    found = records[-1].metrics
    assert found["trained_on/share"] == pytest.approx(matched if share == "matched" else share)
    assert found["trained_on/purity"] == pytest.approx(matched if purity == "all" else purity)


def test_the_purity_of_weights_is_that_of_the_weights():
    made, records, _ = fitted("small_loss", evaluate_every=3)
    weight = made.method.weight[0].numpy()
    assert records[-1].metrics["trained_on/share"] == pytest.approx(weight.mean())
    expected = weight[made.noise.matched].sum() / weight.sum()
    assert records[-1].metrics["trained_on/purity"] == pytest.approx(expected)


def test_a_perturbed_trial_differs_by_rounding_at_first():
    (plain, again, moved, other) = (
        build_trainer(
            small.trial("clip", perturbed=number),
            small.load(),
            small.trial("clip").noise_index(small.load()),
            make_accelerator("fp32", Resources()),
        ).method
        for number in (0, 0, 1, 2)
    )
    for p, q, r, s in zip(*(m.parameters() for m in (plain, again, moved, other)), strict=True):
        assert torch.equal(p, q)
        assert torch.allclose(p, r, rtol=1e-5, atol=0)
        if p.abs().max() > 0:
            assert not torch.equal(p, r)
            assert not torch.equal(r, s)
