"""CRCL, GSC and DECL: one network with a belief about every pair, against numbers from published code."""

from __future__ import annotations

import pytest
import torch

from methods.decl import annealed_hinges, evidential_losses, judgement, tanh_scores
from methods.gsc import compare_structure
from methods.losses import match_probability, pair_losses
from tests import build, small
from tests.methods.golden_input import I, S, T, loss_of

ONE = torch.ones(4)


def near(expected):
    return pytest.approx(expected, abs=1e-4)


def test_crcl_as_released():
    method = build.method("crcl", hyper={"warmup_epochs": 2, "restarts": 0})
    assert loss_of(method, S) == near(2.300574)
    method.start_epoch(2, 0, None)
    method.label[:4] = torch.tensor([1, 0.9, 0.1, 0.6])
    assert loss_of(method, S) == near(1.638290)
    assert method.label[:4].tolist() == near([0.999803, 0.912333, 0.169168, 0.679143])


def test_crcl_labels_begin_with_the_probabilities_of_the_last_warm_up_epoch():
    method = build.method("crcl", hyper={"warmup_epochs": 2, "restarts": 0})
    method.start_epoch(1, 0, None)
    label, stored = method.refined(ONE, match_probability(S / 0.05))
    assert (label == 1).all()
    assert stored.tolist() == near([0.999014, 0.961665, 0.445839, 0.995714])


def test_crcl_forgets_labels_below_the_least():
    method = build.method("crcl", hyper={"warmup_epochs": 0, "momentum": 1.0, "restarts": 0})
    method.start_epoch(3, 0, None)
    label, _ = method.refined(torch.tensor([0.09, 0.1]), torch.ones(2))
    assert label.tolist() == near([0.0, 0.1])


def test_crcl_begins_anew_in_each_round_and_keeps_its_labels():
    """Rounds of two epochs: weights and moments of the second are those of a new network, labels are not."""
    hyper = {"restarts": 1, "round_epochs": 2, "warmup_epochs": 1}
    made, after = build.trainer("crcl", hyper=hyper, epochs=4, precision="fp64"), {}

    def remember(record):
        steps = {int(s["step"]) for s in made.optimizers.adam["network0"].state.values()}
        after[record.epoch] = (steps, made.method.label.clone())

    made.fit(remember)
    per_epoch = made.steps
    assert [after[epoch][0] for epoch in range(4)] == [
        {per_epoch},
        {2 * per_epoch},
        {per_epoch},
        {2 * per_epoch},
    ]
    assert (after[1][1] < 1).any()
    assert torch.equal(after[2][1], torch.where(after[1][1] < 0.1, 0, after[1][1]))  # the round's warm-up
    first, second = (made.method.replacement(e, 0) for e in (2, 2))
    started = build.method("crcl").networks[0]
    for ours, again, begun in zip(*(n.parameters() for n in (first, second, started)), strict=True):
        assert torch.equal(ours, again)
        assert ours.ndim < 2 or not torch.equal(ours, begun)
    assert [made.method.replacement(e, 0) for e in (0, 1, 3)] == [None] * 3


def test_only_the_last_round_of_crcl_is_selected_on_dev():
    hyper = {"restarts": 1, "round_epochs": 3, "warmup_epochs": 1}
    made = build.trainer("crcl", hyper=hyper, epochs=4, precision="fp64")
    outcome = made.fit()
    assert outcome.metrics["dev/best_epoch"] == 3


def test_gsc_as_released():
    assert pair_losses(S / 0.07).tolist() == near([0.007250, 0.092468, 0.928003, 0.021631])
    assert match_probability(S / 0.07).tolist() == near([0.992783, 0.913191, 0.429606, 0.978644])
    target = torch.tensor([1, 0.9, 0.3, 0.8])
    structure, consistency = compare_structure(I, T, target)
    assert (structure * target).tolist() == near([1.301597, 1.214068, 0.449240, 1.094559])
    assert consistency.tolist() == near([0.994906, 0.997587, 0.951383, 0.988058])
    method = build.method("gsc")
    method.target[0, :4] = target
    assert loss_of(method, S) == near(0.106693)
    assert method.prediction[0, :4].tolist() == near([0.992783, 0.913191, 0.429606, 0.978644])
    assert method.consistency[0, :4].tolist() == near(consistency.tolist())


def test_gsc_weights_are_the_smaller_of_two_averages():
    made = build.trainer("gsc", precision="fp64", hyper={"momentum": 0.7})
    method = made.method
    method.prediction.uniform_(0.2, 0.9)
    low = torch.arange(len(method.pairs)) % 3 == 0
    method.consistency.copy_(torch.where(low, 0.2, 0.8) + 0.05 * torch.rand(len(low)))
    method.start_epoch(1, 0, made.scan)
    assert torch.allclose(method.prediction_target, 0.7 * method.prediction + 0.3)
    assert torch.equal(method.target, torch.minimum(method.consistency_target, method.prediction_target))
    assert method.consistency_target[0, low].max() < 0.4
    assert method.consistency_target[0, ~low].min() > 0.9


def test_both_networks_of_gsc_have_the_newest_targets_in_each_pass():
    made = build.trainer("gsc", precision="fp64", hyper={"n_networks": 2})
    method = made.method
    method.prediction.fill_(0.5)
    method.start_epoch(1, 0, made.scan)
    first = method.target.clone()
    assert (first < 1).all()
    method.prediction.fill_(0.1)
    method.start_epoch(1, 1, made.scan)
    assert torch.equal(method.target, first)


def test_two_networks_of_gsc_weigh_for_each_other():
    method = build.method("gsc", hyper={"n_networks": 2})
    method.target[0] = 0.25
    assert [method.training_weight(n).unique().tolist() for n in (0, 1)] == [[1.0], [0.25]]


def test_decl_as_released():
    evidence = (S / 0.1).exp()
    by_image, by_text = (evidential_losses(e, ONE, 0.1) for e in (evidence, evidence.T))
    assert by_image.tolist() == near([0.387086, 0.260603, 1.357598, 0.239981])
    assert by_text.tolist() == near([0.203115, 0.585865, 0.668296, 0.409691])
    assert (by_image + by_text).mean().item() == near(1.028059)
    without = torch.tensor([1.0, 1, 0, 1])
    by_image, by_text = (evidential_losses(e, without, 0.1) for e in (evidence, evidence.T))
    assert [by_image[2].item(), by_text[2].item()] == near([0.903951, 0.668031])
    assert (by_image + by_text).mean().item() == near(0.914581)
    assert annealed_hinges(S, 0.2, 2).tolist() == near([0, 0.035, 0.275, 0])
    assert annealed_hinges(S, 0.2, 1).tolist() == near([0, 0.07, 0.41, 0])
    found = judgement(evidence)
    assert found["matched"].tolist() == [1, 1, 0, 1]
    assert found["belief"].tolist() == near([0.964977, 0.823154, 0.385238, 0.925148])


def test_decl_takes_the_score_behind_a_sigmoid():
    raw = torch.randn(5, 5, dtype=torch.float64)
    network = build.method("decl", backbone={"module": "SGR", **small.SGRAF}).networks[0]
    assert torch.allclose(tanh_scores(network, raw.sigmoid()), raw.tanh())
    assert torch.equal(tanh_scores(build.method("decl").networks[0], S), S)


def test_the_hinge_of_decl_anneals_from_all_negatives_to_five():
    made = build.trainer("decl", precision="fp64")
    method, batch = made.method.eval(), build.first_batch(made)
    similarity = method.networks[0].similarity(*method.networks[0](batch))
    losses = []
    for progress, count in ((0.0, 16), (0.048, 8), (0.9, 5)):
        batch.progress = progress
        hinge = annealed_hinges(similarity, 0.2, count).mean()
        losses.append((method.loss(batch)[0] - 0.8 * hinge).item())
    assert losses[0] == pytest.approx(losses[1]) == pytest.approx(losses[2])


def test_batches_tell_how_far_the_trial_is():
    made = build.trainer("decl", epochs=4)
    told = [b.progress for epoch in (0, 2) for b in made.batches(epoch)]
    assert [told[0], told[1], told[made.steps]] == pytest.approx([0, 1 / (4 * made.steps), 0.5])
