from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from harness.config.trial import TrainingConfig
from harness.training.optimizers import Optimizers
from methods.base import Group


def make(net: nn.Module, **changes):
    """Optimizers over two epochs of six steps, with a warm-up of two steps."""
    config = {
        "seed": 0,
        "epochs": 2,
        "lr": 0.1,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
        "warmup_steps": 2,
        **changes,
    }
    groups = {"all": Group(dict(net.named_parameters()))}
    return Optimizers(groups, TrainingConfig(**config), steps_per_epoch=6, processes=1)


def loss_of(net: nn.Module):
    return net(torch.ones(3, 4)).pow(2).mean()


def test_a_look_ahead_is_the_step_that_would_have_been_taken():
    torch.manual_seed(0)
    net = nn.Linear(4, 2)
    optimizers = make(net)
    for step in range(4):  # from the first step on, with and without optimizer state
        optimizers.at_step(step)
        before = {k: v.detach().clone() for k, v in net.named_parameters()}
        ahead = {
            k: v.clone()
            for k, v in optimizers.look_ahead(optimizers.gradients(loss_of(net), "all"), "all").items()
        }
        assert all(torch.equal(before[k], v) for k, v in net.named_parameters())
        optimizers.update(loss_of(net), "all")
        for name, value in net.named_parameters():
            assert torch.allclose(ahead[name], value, atol=1e-7)
            assert not torch.equal(before[name], value)


def test_a_look_ahead_leaves_graph_and_state_usable():
    torch.manual_seed(0)
    with_look, without = nn.Linear(4, 2), nn.Linear(4, 2)
    without.load_state_dict(with_look.state_dict())
    for net, looks in ((with_look, True), (without, False)):
        optimizers = make(net)
        for step in range(3):
            optimizers.at_step(step)
            loss = loss_of(net)
            if looks:
                optimizers.look_ahead(optimizers.gradients(loss, "all", retain_graph=True), "all")
            optimizers.update(loss, "all")
    assert all(torch.equal(a, b) for a, b in zip(with_look.parameters(), without.parameters(), strict=True))


def test_a_step_on_gradients_is_an_update_and_leaves_them():
    torch.manual_seed(0)
    one, other = nn.Linear(4, 2), nn.Linear(4, 2)
    other.load_state_dict(one.state_dict())
    with_update, with_step = make(one, clip_norm=1e-2), make(other, clip_norm=1e-2)
    for step in range(3):
        with_update.at_step(step)
        with_step.at_step(step)
        with_update.update(loss_of(one), "all")
        gradients = with_step.gradients(loss_of(other), "all")
        kept = {k: g.clone() for k, g in gradients.items()}
        with_step.step(gradients, "all")
        assert all(torch.equal(g, kept[k]) for k, g in gradients.items())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_warm_up_and_cosine():
    optimizers = make(nn.Linear(4, 2))
    rates = []
    for step in range(12):
        optimizers.at_step(step)
        rates.append(optimizers.learning_rate("all"))
    assert rates[:3] == pytest.approx([0.05, 0.1, 0.1])
    assert rates[7] == pytest.approx(0.1 * 0.5 * (1 + math.cos(math.pi * 5 / 10)))
    assert rates[-1] < 0.01
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_clipping_bounds_the_gradient():
    net = nn.Linear(4, 2)
    big, small = make(net, clip_norm=1e-3), make(net, clip_norm=None)
    seen = {}
    for name, optimizers in (("big", big), ("small", small)):
        inner = optimizers.adam["all"].step

        def step(name=name, inner=inner):
            seen[name] = torch.cat([p.grad.flatten() for p in net.parameters()]).norm().item()
            return inner()

        optimizers.adam["all"].step = step
        optimizers.at_step(0)
        optimizers.update(loss_of(net), "all")
    assert seen["big"] == pytest.approx(1e-3, rel=1e-3)
    assert seen["small"] > 0.01


def test_weight_decay_spares_biases_and_scalars():
    net = nn.Linear(4, 2)
    decayed = {
        len(p.shape): group["weight_decay"]
        for group in make(net).adam["all"].param_groups
        for p in group["params"]
    }
    assert decayed == {2: 0.1, 1: 0.0}


def test_a_group_may_have_a_rate_of_its_own():
    net = nn.Linear(4, 2)
    config = TrainingConfig(seed=0, epochs=2, lr=0.1, weight_decay=0, clip_norm=None, warmup_steps=0)
    groups = {"a": Group({"weight": net.weight}), "b": Group({"bias": net.bias}, lr=1e-3)}
    optimizers = Optimizers(groups, config, steps_per_epoch=5, processes=1)
    optimizers.at_step(0)
    assert (optimizers.learning_rate("a"), optimizers.learning_rate("b")) == (0.1, 1e-3)
    before = net.weight.detach().clone()
    optimizers.update(loss_of(net), "b")
    assert torch.equal(net.weight, before)
