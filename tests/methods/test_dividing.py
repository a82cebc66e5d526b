"""BiCro, CREAM, L2RM, and the methods that judge the pairs once, against numbers from published code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from harness.sweep.preflight import check_sweep
from methods.bicro import Anchors, clean_labels
from methods.cream import soft_cross_entropy
from methods.l2rm import rematching_loss, transport_plan
from methods.lemon import neighbour_scores
from methods.losses import hardest_triplet, match_probability, pair_losses, retained_margin, soft_margin
from methods.mixtures import low_loss_beta_posterior
from methods.osa import paper_weights, released_weights
from tests import build, small
from tests.methods.golden_input import I6, T6, S, loss_of


def near(expected):
    return pytest.approx(expected, abs=1e-4)


# BiCro ----------------------------------------------------------------------------------------------


def soft_loss(similarity, label, *, released):
    margin = soft_margin(label, 0.2)
    margin = margin.expand(len(margin), -1) if released else margin
    return hardest_triplet(similarity, margin).sum().item()


def test_labels_of_bicro_as_meant_and_as_released():
    retained = retained_margin(I6 @ T6.T, 0.2)
    anchors = Anchors.of(retained, I6, T6)
    assert anchors.index.tolist() == [0]
    assert anchors.consistency(I6, T6).tolist() == near([1, 0.839016, 0.583203, 0.734043, 0.591830, 0.778676])
    meant, released = (clean_labels(anchors, retained, 0.5, released=r) for r in (False, True))
    assert meant.tolist() == near([1, 0.919508, 0.791602, 0.867022, 0.795915, 0.889338])
    assert released.tolist() == near([1, 0.867022, 1, 0.795915, 0.919508, 0.791602])
    assert soft_loss(I6 @ T6.T, meant, released=True) == near(1.987164)
    assert soft_loss(I6 @ T6.T, released, released=True) == near(2.193546)
    assert soft_loss(I6 @ T6.T, meant, released=False) == near(1.996674)


def test_margins_of_bicro_as_meant_and_as_released():
    label = torch.tensor([1, 0.8, 0.4, 0.7])
    assert soft_loss(S, label, released=True) == near(0.187991)
    assert soft_loss(S, label, released=False) == near(0.103597)


def test_a_ratio_of_different_signs_is_bounded_unless_as_released():
    images, texts = torch.tensor([[1.0, 0.0], [0.5, 0.866]]), torch.tensor([[1.0, 0.0], [-0.1, 0.995]])
    anchors = Anchors(torch.tensor([0]), images, texts)
    assert anchors.consistency(images, texts).tolist() == near([1, 0])
    assert anchors.consistency(images, texts, bounded=False)[1].item() == near(0.5 / -0.1)


@pytest.mark.parametrize(("least", "expected"), [(0.5, 0.0), (0.4, 0.5)])
def test_the_clean_part_of_bicro_has_a_least_label_too(least, expected):
    """As the released code's `noise_soft`: a pair that no anchor speaks for is trained as a mismatch."""
    images, texts = torch.tensor([[1.0, 0.0], [0.5, 0.866]]), torch.tensor([[1.0, 0.0], [-0.1, 0.995]])
    anchors = Anchors(torch.tensor([0]), images, texts)
    assert clean_labels(anchors, torch.tensor([0.2, 0.1]), least).tolist() == near([1, expected])


def test_a_beta_mixture_finds_the_part_with_low_losses():
    draw = np.random.default_rng(0)
    low, high = draw.beta(2, 12, 600), draw.beta(12, 4, 400)
    posterior = low_loss_beta_posterior(np.concatenate([low, high]))
    assert ((posterior > 0.5) == (np.arange(1000) < 600)).mean() > 0.98
    assert (low_loss_beta_posterior(np.ones(5)) == 1).all()


def test_labels_of_bicro_come_from_the_other_network_and_its_noisy_step_is_first():
    made = build.trainer("bicro", precision="fp64", hyper={"warmup_epochs": 0, "noisy_after": 0})
    method = made.method.eval()
    method.start_epoch(0, 0, made.scan)
    batch, seen = build.first_batch(made), []
    method._triplet = lambda net, part, label: seen.append((net, part, label)) or net.logit_scale * 0
    made.optimizers.at_step(0)
    method.step(batch, made.optimizers, 0)
    other = method.networks[1]
    with torch.no_grad():
        images, texts = other(batch)
        retained = retained_margin(other.similarity(images, texts), method.margin)
    expected = clean_labels(Anchors.of(retained, images, texts), retained, 0.5)
    assert [part is batch for _, part, _ in seen] == [False, True]
    assert all(net is method.networks[0] for net, _, _ in seen)
    assert torch.allclose(seen[1][2], expected)
    assert torch.allclose(method.label[0, batch.index], expected)


def test_the_warm_up_of_bicro_trains_on_the_smallest_losses():
    made = build.trainer("bicro", precision="fp64", hyper={"warmup_epochs": 3, "warmup_share": 0.25})
    method, batch = made.method.eval(), build.first_batch(made)
    net = method.networks[0]
    similarity = net.similarity(*net(batch))
    made.optimizers.at_step(0)
    loss = method.step(batch, made.optimizers, 0)["loss"].item()
    losses = 0.4 - 2 * retained_margin(similarity, 0.2)  # where they are below 0.4
    assert loss == pytest.approx(losses.sort().values[:4].sum().item())


# CREAM ----------------------------------------------------------------------------------------------


def test_cream_as_released():
    positive, target = (1 + S) / 2, torch.tensor([1, 0.8, 0.3, 0.9])

    def loss(logits, least):
        return soft_cross_entropy(logits / 0.07, positive, target, least).mean().item()

    assert loss(positive, 0.0) == near(1.514527)
    assert loss(positive, 0.2) == near(0.760644)
    assert loss(S, 0.0) == near(1.969241)
    assert match_probability(positive / 0.07).tolist() == near([0.897392, 0.719060, 0.388452, 0.830137])
    assert (2 * pair_losses(positive / 0.07)).tolist() == near([0.216838, 0.664834, 1.914385, 0.372924])


def test_cream_divides_in_three_by_the_verdicts_of_both():
    method = build.method("cream")
    method.epoch = 1
    method.posterior[:, :3] = torch.tensor([[0.9, 0.9, 0.1], [0.8, 0.2, 0.3]])
    method.prediction[:, :3] = torch.tensor([[0.5, 0.6, 0.2], [0.7, 0.4, 0.4]])
    assert method.kept(0)[:3].tolist() == [True, False, False]
    assert method.noisy()[:3].tolist() == [False, False, True]
    pools = method.auxiliary_pools(0)
    assert {k: v.tolist()[0] for k, v in pools.items()} == {"hard": 1, "noisy": 2}
    assert method.weights(0)[:3].tolist() == near([0.8, 0.55, 0])


def divided_cream(posterior, *, network=0):
    """CREAM before its first pass, dropout in its heads, with posteriors by network."""
    backbone = small.backbone(head={**small.HEAD, "dropout": 0.3})
    hyper = {"warmup_epochs": 0, "hard_after": 0, "noisy_after": 0}
    made = build.trainer("cream", precision="fp64", hyper=hyper, backbone=backbone)
    made.method.divide = lambda judge, scan: posterior[judge]
    made.method.train().start_epoch(0, network, made.scan)
    made.optimizers.at_step(0)
    return made, build.first_batch(made)


def predictions(method, batch):
    """Of each network as it is, without dropout."""
    method.eval()
    with torch.no_grad():
        found = [match_probability(net.similarity(*net(batch)) / 0.07) for net in method.networks]
    method.train()
    return found


def test_targets_of_cream_are_those_of_the_batch_before_the_step():
    """By the network itself in the clean and the hard part, by both in the noisy one; without dropout."""
    count = len(build.method("cream").pairs)
    made, batch = divided_cream(torch.linspace(0, 1, count).double().expand(2, -1), network=1)
    method, seen, loss = made.method, [], made.method._loss
    method.hard_rate = 1.0
    other_part = replace(
        batch, index=batch.index.flip(0), images=batch.images.flip(0), texts=batch.texts.flip(0)
    )
    batch.auxiliary.update(hard=other_part, noisy=other_part)
    method._loss = lambda net, part, target, least: seen.append(target) or loss(net, part, target, least)
    other, own = predictions(method, batch)
    method.step(batch, made.optimizers, 1)
    weight = method.weight[batch.index]
    assert torch.allclose(seen[0], weight + (1 - weight) * own)
    assert torch.allclose(seen[1], seen[0].flip(0))
    assert torch.allclose(seen[2], (weight + (1 - weight) * (own + other) / 2).flip(0))
    assert all(module.training for module in method.networks.modules())
    assert not torch.allclose(predictions(method, batch)[1], own)  # the step has moved it


@pytest.mark.parametrize(
    ("clean", "hard", "expected"),
    [(0.8, 0.1, 12), (0.5, 0.25, 50), (0.4, 0.5, 100), (0.9, 0.0, 0)],
    ids=["an eighth of the clean ones", "half", "more than clean ones", "none"],
)
def test_hard_pairs_of_cream_are_seen_as_often_as_clean_ones(clean, hard, expected):
    count = len(build.method("cream").pairs)
    place = torch.arange(count) / count
    sure, doubtful = place < clean, (place >= clean) & (place < clean + hard)
    made, batch = divided_cream(torch.stack([(sure | doubtful).double(), sure.double()]))
    batch.auxiliary.update(hard=batch, noisy=batch)
    method, seen = made.method, []
    method._loss = lambda net, part, target, least: seen.append(part) or net.logit_scale * 0
    for _ in range(100):
        method.step(batch, made.optimizers, 0)
    assert len(seen) - 200 == pytest.approx(expected, abs=1)


def test_few_hard_pairs_of_cream_are_not_seen_more_often_than_clean_ones():
    """A batch of three pairs holds all of them; clean ones fill many."""
    count = len(build.method("cream").pairs)
    sure = torch.arange(count) < 160
    doubtful = (torch.arange(count) >= 160) & (torch.arange(count) < 163)
    made, _ = divided_cream(torch.stack([(sure | doubtful).double(), sure.double()]))
    assert made.method.hard_rate == pytest.approx(1 / (160 / made.method.batch_size))


@pytest.mark.parametrize(
    ("matched", "epoch", "shares", "expected"),
    [
        (0.5, 1, "adaptive", ("none", "mean", "mean")),
        (0.5, 4, "adaptive", ("mean", "mean", "mean")),
        (0.9, 1, "adaptive", ("all", "all", "mean")),
        (0.5, 1, "all", ("all", "all", "all")),
    ],
)
def test_which_shares_count_in_the_parts_of_cream(matched, epoch, shares, expected):
    hyper = {"warmup_epochs": 1, "hard_after": 2, "shares": shares}
    made = build.trainer("cream", hyper=hyper, precision="fp64")
    method, count = made.method.eval(), len(made.method.pairs)
    believed = (torch.arange(count) < matched * count).double()
    method.divide = lambda judge, scan: believed
    method.start_epoch(epoch, 0, made.scan)
    noisy = method.noisy()
    target = method.weight + (1 - method.weight) * method.prediction[0].where(
        ~noisy, method.prediction.mean(0)
    )
    level = {"none": 1.0, "mean": float(target.mean()), "all": 0.0}
    assert method.hard_rate == 0
    assert list(method.least_share.values()) == [level[e] for e in expected]


# L2RM -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entropy", "iterations", "masses", "total", "divergence"),
    [
        (0.07, 200, [0.027330, 0.013355, 0.046438, 0.012877], 0.1, 20.464192),
        (0.01, 200, [0.001770, 0.000001, 0.098229, 0], 0.1, 14.960523),
        (0.07, 16, [0.028684, 0.014098, 0.048413, 0.013609], 0.104804, 20.507416),
        (0.01, 27, [0.004037, 0.000001, 0.133154, 0], 0.137192, 15.601025),
    ],
)
def test_the_plan_of_l2rm_where_sinkhorn_has_converged_and_where_released_code_stops(
    entropy, iterations, masses, total, divergence
):
    plan = transport_plan(1 - S, mass=0.1, entropy=entropy, iterations=iterations)
    assert plan.sum(1).tolist() == near(masses)
    assert plan.sum().item() == near(total)
    assert plan.diagonal().abs().max() < 1e-12
    assert rematching_loss(S / 0.05, plan, by_mass=False).item() == pytest.approx(divergence, abs=1e-3)


def test_a_plan_that_may_keep_pairs_and_moves_all_mass_finds_a_permutation():
    order = torch.tensor([2, 0, 3, 1])
    cost = 1 - torch.eye(4)[order].double()
    plan = transport_plan(cost, mass=1.0, entropy=0.01, masked=False)
    assert plan.argmax(1).tolist() == order.tolist()
    assert [*plan.sum(0).tolist(), *plan.sum(1).tolist()] == near([0.25] * 8)


def test_an_image_without_mass_counts_nothing_unless_as_released():
    plan = torch.zeros(3, 3)
    plan[0, 1] = 0.1
    logits = torch.zeros(3, 3)
    by_mass, alike = (rematching_loss(logits, plan, by_mass=m).item() for m in (True, False))
    # Of a one-hot row: KL(uniform || plan) + KL(plan || uniform), with plan floored at 1e-10.
    row = np.log(3) + (2 / 3) * np.log(1e9) - np.log(3)
    assert by_mass == pytest.approx(row, rel=1e-4)
    assert alike == pytest.approx(row / 3, rel=1e-4)


def test_a_step_of_l2rm_is_one_step_on_both_parts():
    made = build.trainer("l2rm", precision="fp64", hyper={"warmup_epochs": 0})
    method = made.method.eval()
    method.start_epoch(0, 0, made.scan)
    batch, updates = build.first_batch(made), []
    made.optimizers.update = lambda loss, *groups: updates.append((loss.item(), groups))
    told = method.step(batch, made.optimizers, 0)
    net = method.networks[0]
    clean = hardest_triplet(net.similarity(*net(batch)), 0.2).sum()
    similarity = net.similarity(*net(batch.auxiliary["noisy"])).detach()
    plan = transport_plan(1 - similarity, mass=0.1, entropy=0.07)
    noisy = rematching_loss(similarity / 0.05, plan, by_mass=True)
    assert updates == [(pytest.approx((clean + noisy).item()), ("network0",))]
    assert told["noisy_loss"].item() == pytest.approx(noisy.item())


# Judged once ----------------------------------------------------------------------------------------


def test_neighbour_scores_of_lemon():
    def scores(offset, **changes):
        settings = {"count": 2, "weight": 5, "near": 0.1, "trusted": 5, "offset": offset, **changes}
        return neighbour_scores(I6, T6, torch.arange(6), **settings).tolist()

    released = [1.402958, 1.950886, 2.712923, 1.371295, 3.580684, 1.874335]
    assert scores(0.0) == near(released)
    assert scores(1.0) == near([1.272125, 1.767550, 2.484568, 1.241248, 3.275077, 1.698190])
    assert scores(0.0, chunk=4) == near(released)


def test_weights_of_osa_as_released():
    above = (S.diagonal() - 0.15).clamp(min=0)
    weights = released_weights(above)
    assert weights.tolist() == near([0, 0.249951, 0.070652, 0.199685])
    method = build.method("osa", hyper={"variant": "released", "estimator": "pretrained"})
    method.warming_up = False
    method.above[:4] = above
    assert loss_of(method, S, scale=100) == near(0.061851)
    assert released_weights(torch.zeros(3)).tolist() == [0, 0, 0]


def test_weights_of_osa_as_in_the_paper_are_largest_at_two_thirds():
    x = torch.linspace(0, 1, 301)
    assert x[paper_weights(x).argmax()].item() == pytest.approx(2 / 3, abs=1e-2)
    assert paper_weights(x)[0] == paper_weights(x)[-1] == 0


def test_after_a_warm_up_the_released_weights_of_osa_are_one_on_average_over_batches():
    hyper = {"warmup_epochs": 1, "variant": "released"}
    warm, means = build.trainer("osa", hyper=hyper, epochs=2, precision="fp64"), []
    method = warm.method

    def remember(record):
        weights = [released_weights(part) for part in method.above.split(method.batch_size)]
        means.append((method.scale * torch.cat(weights)).mean().item())

    warm.fit(remember)
    assert means == [0, pytest.approx(1)]


@pytest.mark.parametrize("name", ["bicro", "cream"])
def test_with_one_network_a_method_of_co_teaching_divides_the_pairs_for_itself(name):
    made, records = build.trainer(name, hyper={"n_networks": 1}), []
    made.fit(records.append)
    assert records[0].confidence is None
    for record in records[1:]:
        assert 0 < record.metrics["train/kept"] < 1
        assert record.confidence.std() > 0


def test_no_pair_is_hard_for_one_network_of_cream():
    method = build.trainer("cream", hyper={"n_networks": 1}).method
    method.posterior[0] = torch.linspace(0, 1, len(method.pairs))
    assert (method.kept(0) == ~method.noisy()).all()


def test_where_cream_takes_all_pairs_for_matched_the_last_hundredth_is_not_clean():
    """Of each network; a pair that one of two leaves out is hard."""
    method = build.trainer("cream").method
    count = len(method.pairs)
    method.posterior[0], method.posterior[1] = torch.linspace(0.6, 1, count), torch.linspace(1, 0.6, count)
    least = count // 100 + 1
    assert int((~method.kept(0)).sum()) == 2 * least
    assert not method.noisy().any()
    method.posterior[1] = method.posterior[0]
    assert int(method.noisy().sum()) == least


def test_after_a_warm_up_the_weights_of_osa_are_one_on_average():
    """The optimizer goes on with gradients of the size that it has seen; else nothing is scaled."""
    warm = build.trainer("osa", hyper={"warmup_epochs": 1}, epochs=2, precision="fp64")
    warm.fit()
    method = warm.method
    assert 0 < method.weight.mean() < 0.15
    assert (method.scale * method.weight).mean().item() == pytest.approx(1)
    batch = build.first_batch(warm)
    method.eval().start_epoch(1, 0, warm.scan)
    losses = pair_losses(method.networks[0].logits(*method.networks[0](batch)))
    expected = (method.weight[batch.index] * losses).mean() / method.weight.mean()
    assert method.loss(batch)[0].item() == pytest.approx(expected.item())
    cold = build.trainer("osa", hyper={"estimator": "pretrained"}, precision="fp64")
    cold.fit()
    assert cold.method.scale == 1


@pytest.mark.parametrize("name", ["score_filter", "lemon", "osa"])
def test_pairs_are_judged_once_and_by_plain_training_before(name):
    made, beliefs = build.trainer(name, hyper={"warmup_epochs": 2}, epochs=4, precision="fp64"), []
    made.fit(lambda record: beliefs.append(record.confidence))
    assert [b is None for b in beliefs] == [True, True, False, False]
    assert (beliefs[2] == beliefs[3]).all()
    judged = build.trainer(name, hyper={"warmup_epochs": 2}, precision="fp64")
    plain = build.trainer("clip", precision="fp64")
    for trainer in (judged, plain):
        trainer.method.eval().start_epoch(0, 0, trainer.scan)
    losses = [t.method.loss(build.first_batch(t))[0].item() for t in (judged, plain)]
    assert losses[0] == pytest.approx(losses[1])


def test_a_score_filter_keeps_the_share_with_the_best_scores():
    made = build.trainer("score_filter", hyper={"keep": 0.25, "estimator": "pretrained"}, precision="fp64")
    net = made.method.eval().networks[0]
    scores = made.scan(lambda images, texts: {"score": net.pair_similarity(images, texts)})["score"]
    made.method.start_epoch(0, 0, made.scan)
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[made.method.selected(0)] = True
    assert kept.sum() == round(0.25 * len(scores))
    assert scores[kept].min() >= scores[~kept].max()


def test_lemon_trains_on_the_pairs_whose_neighbours_agree():
    """Captions of a part of the pairs moved on by one: distances of these to their neighbours are large."""
    made = build.trainer("lemon", hyper={"neighbours": 3, "candidates": 60}, precision="fp64")
    draw = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(8, 16, generator=draw).double())
    kind = torch.arange(len(made.method.pairs)) % 8
    vectors = torch.nn.functional.normalize(centres[kind] + 0.02 * torch.randn(len(kind), 16, generator=draw))
    moved = torch.arange(len(kind)) % 5 == 0
    texts = torch.where(moved[:, None], vectors.roll(1, 0), vectors)
    made.method.estimate(lambda function: {"image": vectors, "text": texts})
    made.method.judged.fill_(True)
    kept = torch.zeros(len(kind), dtype=torch.bool)
    kept[made.method.selected(0)] = True
    assert (kept == ~moved).double().mean() > 0.95


@pytest.mark.parametrize("name", ["score_filter", "lemon", "osa"])
def test_towers_that_were_never_aligned_cannot_judge(name):
    """Before any work starts, with the way out."""
    sweep = small.sweep(name, overrides={name: {}})
    errors, _ = check_sweep(sweep)
    assert [e for e in errors if "estimator: warmup" in e and name in e]
    assert not check_sweep(small.sweep(name))[0]


@pytest.mark.parametrize(
    ("name", "hyper", "told"),
    [
        ("bicro", {}, "bicro.warmup_epochs = 10 and epochs = 3: a trial ends before"),
        ("decl", {"warmup_epochs": 3}, "decl.warmup_epochs = 3 and epochs = 3: a trial ends before"),
        ("osa", {"estimator": "warmup", "warmup_epochs": 9}, "osa.warmup_epochs = 9 and epochs = 3"),
        (
            "crcl",
            {"restarts": 1, "round_epochs": 2, "warmup_epochs": 1},
            "crcl.warmup_epochs = 1, crcl.restarts = 1, crcl.round_epochs = 2 and epochs = 3: a round ends",
        ),
        ("crcl", {"restarts": 2, "round_epochs": 1, "warmup_epochs": 1}, "a round ends before"),
    ],
)
def test_a_trial_whose_own_stage_never_begins_is_refused(name, hyper, told):
    errors, _ = check_sweep(small.sweep(name, overrides={name: hyper}, fixed={"epochs": 3}))
    assert [e for e in errors if told in e], errors
    whole = {"restarts": 1, "round_epochs": 1, "warmup_epochs": 0} if name == "crcl" else {"warmup_epochs": 2}
    admitted = small.sweep(name, overrides={name: {**hyper, **whole}}, fixed={"epochs": 3})
    assert not check_sweep(admitted)[0]


def test_a_pretrained_estimator_judges_before_the_first_step():
    made = build.trainer("osa", hyper={"estimator": "pretrained"}, precision="fp64")
    assert made.method.confidence() is None
    made.method.eval().start_epoch(0, 0, made.scan)
    assert made.method.confidence() is not None
