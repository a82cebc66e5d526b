"""Losses that need nothing but a batch, against numbers from published code, and what bounds them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from methods.cyclip import asymmetry, disagreement
from methods.losses import hardest_triplet, match_probability, pair_losses
from methods.rcl import complementary_losses
from methods.rince import robust_losses
from methods.siglip import sigmoid_losses
from methods.tal import alignment_losses
from tests import build, small
from tests.methods.golden_input import I, S, T, loss_of


def given(value, expected):
    assert float(value) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("form", "expected"), [("log", 0.505212), ("tan", 0.356038), ("abs", 0.298884), ("exp", 2.358701)]
)
def test_rcl_as_released(form, expected):
    given(complementary_losses(S / 0.05, form).mean(), expected)


def test_rcl_with_a_generalised_cross_entropy_as_released():
    given(complementary_losses(S / 0.05, "gce", q=0.5).mean(), 0.377931)
    given(2 * pair_losses(S / 0.05).mean(), 0.520384)  # its `infoNCE`


@pytest.mark.parametrize("form", ["log", "gce"])
@pytest.mark.parametrize("gap", [10, 17, 18, 30])
def test_rcl_pushes_a_mismatched_pair_with_a_bounded_force(form, gap):
    """In single precision 1 - p would have no digits left where one negative takes nearly everything."""
    z = torch.zeros(8, 8)
    z[0, 1] = gap
    force = [
        torch.autograd.grad(complementary_losses(x, form).sum(), x)[0]
        for x in (z.clone().requires_grad_(), z.double().requires_grad_())
    ]
    assert torch.allclose(force[0].double(), force[1], atol=1e-4)
    assert force[0].abs().max() < 4


@pytest.mark.parametrize("form", ["tan", "abs", "exp", "gce"])
def test_rcl_bounds_what_a_mismatched_pair_costs(form):
    """Where one negative takes all of the probability, cross-entropy grows without end."""
    hopeless = torch.tensor([[0.0, 1.0], [1.0, 0.0]]) * 200
    assert complementary_losses(hopeless, form).max() <= 10
    assert pair_losses(hopeless).max() > 100


@pytest.mark.parametrize(("q", "expected"), [(0.1, -5.742301), (0.5, -23.585323)])
def test_rince_against_the_formula(q, expected):
    given(robust_losses(S / 0.1, q, 0.01).mean(), expected)


def test_rince_is_infonce_for_a_small_exponent():
    """But for a constant: its gradient is that of `pair_losses`."""
    z = torch.randn(6, 6, dtype=torch.float64, requires_grad=True)
    robust, plain = (
        torch.autograd.grad(losses.sum(), z)[0] for losses in (robust_losses(z, 1e-6, 1.0), pair_losses(z))
    )
    assert torch.allclose(robust, plain, atol=1e-5)


def test_tal_as_released():
    assert alignment_losses(S, 0.015, 0.1).tolist() == pytest.approx([0, 0, 0.211008, 0], abs=1e-4)


def test_tal_is_the_hardest_negative_triplet_at_no_temperature():
    s = torch.rand(7, 7, dtype=torch.float64)
    assert torch.allclose(alignment_losses(s, 1e-5, 0.2), hardest_triplet(s, 0.2), atol=1e-4)


def test_siglip_against_the_formula():
    given(sigmoid_losses(10 * I @ T.T - 10).mean(), 3.933562)


def test_siglip_measures_a_bias_at_which_mismatched_pairs_have_the_odds_of_a_batch():
    sgr = {"module": "SGR", **small.SGRAF}
    made = build.trainer("siglip", hyper={"bias": None}, backbone=sgr, precision="fp64")
    method = made.method.eval()
    method.start_epoch(0, 0, made.scan)
    with torch.no_grad():
        similarity = torch.cat(
            [
                method.networks[0].similarity(*method.networks[0](b))[~torch.eye(len(b.index), dtype=bool)]
                for b in made.batches(0)
            ]
        )
    assert similarity.mean() > 0.2  # far from the 0 around which the published bias is right
    odds = torch.logit((method.log_scale.exp() * similarity.mean() + method.bias).sigmoid())
    assert odds.item() == pytest.approx(-np.log(made.config.batch_size - 1), abs=0.05)


def test_cyclip_against_the_formula():
    given(pair_losses(I @ T.T / 0.07).mean(), 4.070004)
    given(0.25 * asymmetry(I @ T.T) + 0.25 * disagreement(I, T), 0.588510)
    assert loss_of(build.method("cyclip"), I @ T.T, scale=1 / 0.07) == pytest.approx(4.658514, abs=1e-4)
    # Two weights that differ, and the terms as SPS has them: 25 times the mean.
    given(25 / 4 * asymmetry(S), 0.48)
    given(25 / 4 * disagreement(I, T), 6.870316)
    weighted = build.method("cyclip", hyper={"cross": 1.0, "within": 0.5})
    within = 4 / 25 * 6.870316
    parts = 4.070004 + (0.588510 / 0.25 - within) + 0.5 * within
    assert loss_of(weighted, I @ T.T, scale=1 / 0.07) == pytest.approx(parts, abs=1e-4)


def test_infonce_is_what_other_cross_entropies_come_from():
    """And the loss of `clip` where the temperatures are the same."""
    plain = build.method("infonce").losses(S / 0.05)
    given(build.method("infonce").losses(I @ T.T / 0.07).mean(), 4.070004)
    almost = build.method("gce", hyper={"q": 1e-4}).losses(S.double() / 0.05)
    assert almost.tolist() == pytest.approx(plain.tolist(), rel=1e-3)
    made = {
        name: build.trainer(name, precision="fp64", hyper=hyper)
        for name, hyper in (("infonce", {"temperature": 0.07}), ("clip", {}))
    }
    losses = {name: t.method.eval().loss(build.first_batch(t))[0].item() for name, t in made.items()}
    assert losses["infonce"] == pytest.approx(losses["clip"], rel=1e-6)


def test_symmetric_cross_entropy_as_released():
    given(build.method("sce").losses(S / 0.05).mean(), 2.668913)


def test_bounded_losses_of_a_pair_that_the_network_rejects():
    hopeless = torch.tensor([[0.0, 1.0], [1.0, 0.0]]) * 1000
    assert build.method("gce").losses(hopeless).max() == pytest.approx(1 / 0.7)
    sce = build.method("sce", hyper={"reverse": 2.0})
    assert (sce.losses(hopeless) - pair_losses(hopeless)).max() == pytest.approx(2 * 16.118, rel=1e-4)


def test_label_smoothing_is_least_where_the_prediction_is_the_smoothed_label():
    method, z = build.method("label_smoothing"), torch.zeros(4, 4, dtype=torch.float64, requires_grad=True)
    smoothed = torch.full((4, 4), 0.1 / 4, dtype=torch.float64) + 0.9 * torch.eye(4, dtype=torch.float64)
    z.data = smoothed.log()
    assert torch.autograd.grad(method.losses(z).mean(), z)[0].abs().max() < 1e-9
    assert torch.allclose(match_probability(z), smoothed.diagonal())


@pytest.mark.parametrize(
    "name", ["rcl", "rince", "tal", "siglip", "cyclip", "infonce", "sce", "gce", "label_smoothing"]
)
def test_the_last_prediction_of_each_pair_is_its_confidence(name):
    made = build.trainer(name, precision="fp64")
    method, batch = made.method.eval(), build.first_batch(made)
    method.loss(batch)
    similarity = method.networks[0].similarity(*method.networks[0](batch)).detach()
    if name == "siglip":
        expected = (method.log_scale.exp() * similarity + method.bias).sigmoid().diagonal()
    elif name == "cyclip":
        expected = match_probability(method.networks[0].logits(*method.networks[0](batch)))
    else:
        expected = match_probability(similarity / method.temperature)
    confidence = method.confidence()
    assert torch.allclose(confidence[batch.index], expected)
    assert (confidence < 1).sum() == len(batch.index)
