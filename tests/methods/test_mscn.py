from __future__ import annotations

import pytest
import torch

from methods.losses import hardest_triplet, mean_triplet
from methods.mscn import soft_margin
from tests import build


@pytest.fixture
def trainer():
    trainer = build.trainer("mscn", precision="fp64", hyper={"warmup_epochs": 0})
    trainer.method.eval()
    trainer.method.start_epoch(0, 0, trainer.scan)
    trainer.method.train()
    trainer.optimizers.at_step(5)
    return trainer


def test_soft_margin_follows_the_score():
    margins = soft_margin(torch.tensor([0.0, 0.5, 0.9, 1.0]), 0.2)
    assert margins[1] == pytest.approx(0.1)
    assert margins[2] == pytest.approx(0.2 / (1 + 9**-2))
    assert margins[0] < 1e-6 < 0.1999 < margins[3]


def test_scoring_only_the_hardest_negatives_gives_the_loss_of_all_pairs(trainer):
    method, batch = trainer.method, build.first_batch(trainer)
    net, head = method.networks[0], method.heads[0]
    embeddings = net(batch)
    vectors = net.vectors(*embeddings)
    scores = head(vectors)
    full = hardest_triplet(scores, soft_margin(scores.diagonal().detach(), method.margin)).sum()
    few = method._main_loss(net, head, vectors, *embeddings)
    assert few.item() == pytest.approx(full.item(), abs=1e-10)
    expected = trainer.optimizers.gradients(full, "network0", create_graph=True)
    for name, gradient in trainer.optimizers.gradients(few, "network0").items():
        assert torch.allclose(gradient, expected[name], atol=1e-10)


def test_meta_gradient_goes_through_the_look_ahead_step(trainer):
    """Gradient of the meta loss with respect to V, against a finite difference through the look-ahead."""
    method, batch = trainer.method, build.first_batch(trainer)
    net, head, rate = method.networks[0], method.heads[0], 0.05

    def meta_loss():
        images, texts = net(batch)
        loss = method._main_loss(net, head, net.vectors(images, texts), images, texts)
        gradients = trainer.optimizers.gradients(loss, "network0", create_graph=True)
        lookahead = {
            name: p - rate * gradients[name] for name, p in net.named_parameters() if p.requires_grad
        }
        return method._meta_loss(net, head, lookahead, batch)

    gradient = torch.autograd.grad(meta_loss(), head.bias)[0]
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(gradient.shape, generator=generator, dtype=gradient.dtype)
    size = 1e-7  # small enough that no hinge or rectifier changes sides
    with torch.no_grad():
        head.bias += size * direction
    above = meta_loss()
    with torch.no_grad():
        head.bias -= 2 * size * direction
    below = meta_loss()
    assert ((above - below) / (2 * size)).item() == pytest.approx((gradient @ direction).item(), rel=1e-3)


def test_meta_negatives_never_have_the_image_that_a_caption_is_trained_with(trainer):
    pairs, negatives = trainer.method.pairs, trainer.method.negatives
    assert len(negatives) == len(trainer.method.clean)
    assert (pairs.images[negatives.captions] != negatives.images).all()


def test_each_network_trains_on_the_division_by_the_other():
    trainer = build.trainer("mscn", hyper={"warmup_epochs": 0})
    method = trainer.method
    assert list(method.passes()) == [1, 0]
    method.eval()
    method.start_epoch(0, 1, trainer.scan)
    assert (method.posterior[1] == 1).all()  # only network 0 has divided the pairs
    expected = (method.posterior[0] > 0.5).nonzero().flatten()
    assert torch.equal(method.selected(1), expected)
    assert 0 < len(expected) < len(method.pairs)


def test_scores_are_in_full_precision_under_autocast():
    """In half precision, most scores would tie."""
    trainer = build.trainer("mscn")
    method, batch = trainer.method.eval(), build.first_batch(trainer)
    with torch.no_grad():
        vectors = method.networks[0].vectors(*method.networks[0](batch))
        plain = method.heads[0](vectors)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(method.heads[0](vectors), plain)


def test_one_network_is_supported():
    method = build.trainer("mscn", hyper={"n_networks": 1}).method
    assert method.n_networks == 1
    assert list(method.passes()) == [0]


def test_the_mean_over_negatives_is_differentiated_through_all_pairs():
    """`hardest: false`: the training loss after the warm-up, computed from all scores."""
    made = build.trainer("mscn", hyper={"warmup_epochs": 0, "hardest": False}, precision="fp64")
    method, net, head = made.method, made.method.networks[0], made.method.heads[0]
    batch = build.first_batch(made)
    method.eval()
    images, texts = net(batch)
    vectors = net.vectors(images, texts)
    scores = head(vectors)
    margin = soft_margin(scores.diagonal().detach(), 0.2)
    expected = mean_triplet(scores, margin).sum()
    assert method._main_loss(net, head, vectors, images, texts).item() == pytest.approx(expected.item())
    method.epoch = 0
    before = {k: v.clone() for k, v in net.state_dict().items()}
    method.start_epoch(0, 0, made.scan)
    made.optimizers.at_step(5)
    method.step(build.first_batch(made, network=0), made.optimizers, 0)
    assert any(not torch.equal(before[k], v) for k, v in net.state_dict().items())


@pytest.mark.parametrize("trained", [True, False])
def test_after_the_warmup_the_head_may_be_trained_alone(trained):
    """`train_network: false`: the look-ahead is made, and the network stays."""
    made = build.trainer("mscn", hyper={"warmup_epochs": 1, "train_network": trained})
    method, parts = made.method, {"network": made.method.networks[0], "head": made.method.heads[0]}
    changed = {}
    for epoch in (0, 1):
        before = {k: [p.clone() for p in part.parameters()] for k, part in parts.items()}
        method.start_epoch(epoch, 0, made.scan)
        made.optimizers.at_step(5)
        method.step(build.first_batch(made, epoch=epoch, network=0), made.optimizers, 0)
        changed[epoch] = {
            k: any(not torch.equal(a, b) for a, b in zip(before[k], part.parameters(), strict=True))
            for k, part in parts.items()
        }
    assert changed == {0: {"network": True, "head": True}, 1: {"network": trained, "head": True}}
