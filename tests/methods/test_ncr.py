from __future__ import annotations

import numpy as np
import pytest
import torch

from methods.losses import hardest_triplet, mean_triplet
from methods.ncr import predicted_match, soft_margin
from tests import build, small


def prepared(epoch=1, **hyper):
    trainer = build.trainer("ncr", precision="fp64", hyper={"warmup_epochs": 0, "noisy_after": 0, **hyper})
    trainer.method.eval()
    trainer.method.start_epoch(epoch, 0, trainer.scan)
    trainer.method.train()
    trainer.optimizers.at_step(5)
    return trainer


def batch_with_pools(trainer):
    return next(trainer.batches(1))


def test_soft_margin_is_exponential():
    assert soft_margin(torch.tensor([0.0, 0.5, 1.0]), 0.2).tolist() == pytest.approx(
        [0, 0.2 * (10**0.5 - 1) / 9, 0.2]
    )


def test_prediction_is_the_retained_margin_over_that_of_the_best_tenth():
    """Of 11 pairs, the best two define the scale."""
    s = torch.rand(11, 11, dtype=torch.float64)
    retained = [min(0.2, max(0.0, 0.2 - float(m) / 2)) for m in mean_triplet(s, 0.2)]
    best = np.mean(sorted(retained)[-2:])
    assert predicted_match(s, 0.2).tolist() == pytest.approx([min(1.0, r / best) for r in retained])
    assert (predicted_match(torch.zeros(4, 4), 0.2) >= 0).all()  # no division by zero
    assert predicted_match(10 * (torch.ones(4, 4) - torch.eye(4)), 0.2).tolist() == [0] * 4


def test_both_networks_divide_before_either_trains():
    method = prepared().method
    assert (method.posterior.std(1) > 0).all()
    assert torch.equal(method.selected(0), (method.posterior[1] > 0.5).nonzero().flatten())
    assert torch.equal(method.selected(1), (method.posterior[0] > 0.5).nonzero().flatten())
    before = method.posterior.clone()
    method.start_epoch(1, 1, scan=None)  # no scan before the second pass
    assert torch.equal(method.posterior, before)


def test_a_hundredth_forms_the_noisy_part_if_all_pairs_are_classified_as_clean():
    method = prepared().method
    method.posterior[1] = torch.linspace(0.6, 1, len(method.pairs), dtype=torch.float64)
    kept = method.kept(0)
    assert (~kept).sum() == len(kept) // 100 + 1
    assert not kept[:3].any()
    assert torch.equal(method.auxiliary_pools(0)["noisy"], (~kept).nonzero().flatten())


def test_the_noisy_part_starts_after_noisy_after_in_separate_batches():
    late = prepared(noisy_after=2)
    assert late.method.auxiliary_pools(0) == {}
    trainer = prepared()
    batch = batch_with_pools(trainer)
    noisy = batch.auxiliary["noisy"]
    kept = trainer.method.kept(0)
    assert kept[batch.index].all()
    assert not kept[noisy.index].any()
    groups = trainer.groups[noisy.index.numpy()]
    assert len(set(groups.tolist())) == len(groups)  # the data set's batch rule holds for it too


@pytest.mark.parametrize("released", [False, True])
def test_a_step_trains_on_rectified_margins(released):
    """The two losses of a step, computed with loops over the pairs."""
    trainer = prepared(released_margins=released)
    method, batch = trainer.method, batch_with_pools(trainer)
    net, other = method.networks
    posterior = method.posterior[1][batch.index]

    def similarity(network, batch):
        method.eval()
        with torch.no_grad():
            scores = network.similarity(*network(batch))
        method.train()
        return scores

    predicted = predicted_match(similarity(net, batch), 0.2)
    n = len(posterior)
    target = torch.empty(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            target[i, j] = posterior[i] + (1 - posterior[i]) * predicted[j if released else i]
    margin = soft_margin(target, 0.2)
    expected = hardest_triplet(net.similarity(*net(batch)), margin if released else margin[:, 0]).sum()
    assert bool((margin != margin[:, :1]).any()) == released

    noisy = batch.auxiliary["noisy"]
    both = (predicted_match(similarity(net, noisy), 0.2) + predicted_match(similarity(other, noisy), 0.2)) / 2
    rows = soft_margin(both, 0.2)[:, None].expand(-1, len(both))
    noisy_margin = rows if released else soft_margin(both, 0.2)
    report = method.step(batch, trainer.optimizers, 0)
    assert report["loss"].item() == pytest.approx(expected.item(), abs=1e-10)
    # The second step trains the network after the first step, with margins computed before it.
    assert report["noisy_loss"].item() > 0
    again = hardest_triplet(net.similarity(*net(noisy)), noisy_margin).sum()
    assert again.item() < report["noisy_loss"].item()


def test_a_single_network_divides_and_predicts_for_itself():
    trainer = prepared(n_networks=1)
    method = trainer.method
    assert method.judge(0) == 0
    assert list(method.passes()) == [0]
    assert method.step(batch_with_pools(trainer), trainer.optimizers, 0)["noisy_loss"] > 0


def test_a_step_does_not_change_the_other_network():
    trainer = prepared()
    before = {k: v.clone() for k, v in trainer.method.networks[1].state_dict().items()}
    trainer.method.step(batch_with_pools(trainer), trainer.optimizers, 0)
    assert all(torch.equal(v, before[k]) for k, v in trainer.method.networks[1].state_dict().items())


def test_a_warm_up_at_a_larger_batch_takes_fewer_steps():
    trainer = build.trainer("ncr", hyper={"warmup_epochs": 1, "warmup_batch": 2}, epochs=2)
    warm = trainer.plan_pass(0).batches
    trainer.method.start_epoch(1, 0, trainer.scan)
    assert {len(b) for b in warm} == {32}
    assert len(warm) == trainer.steps // 2
    assert {len(b) for b in trainer.plan_pass(1).batches} == {16}
    assert type(trainer.method).largest_batch(16, {"warmup_epochs": 1, "warmup_batch": 2}) == 32
    assert small.trial("ncr").hyper["warmup_batch"] == 1
