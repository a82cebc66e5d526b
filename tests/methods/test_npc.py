from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from methods.losses import pair_losses
from methods.npc import _nearest, _nearest_pairs, confidence_weight
from tests import build

FIXTURE = Path(__file__).parents[1] / "fixtures" / "npc_weights.npz"


@pytest.fixture(scope="module")
def published():
    with np.load(FIXTURE) as file:
        return {k: torch.from_numpy(file[k]) for k in file.files}


def test_losses_and_weights_equal_those_of_released_code(published):
    losses = {}
    for side in ("image", "text"):
        for when in ("before", "after"):
            name = f"{side}_bank_{when}"
            losses[side, when] = pair_losses(published[f"{name}_logits"])
            assert torch.allclose(losses[side, when], published[f"{name}_loss"], atol=1e-5)
    assert torch.allclose(pair_losses(published["batch_logits"]), published["batch_loss_per_pair"], atol=1e-5)
    before, after = (torch.stack([losses["image", w], losses["text", w]]) for w in ("before", "after"))
    assert torch.allclose((before / after).mean(0), published["ratio"], atol=1e-4)
    assert torch.allclose(confidence_weight(before, after), published["weight"], atol=1e-4)


def test_weight_jumps_to_one_if_the_step_does_no_harm():
    before = torch.tensor([[1.0, 1.0, 0.5], [1.0, 1.0, 0.5]])
    after = torch.tensor([[1.0, 2.0, 0.1], [1.0, 2.0, 0.1]])
    assert confidence_weight(before, after).tolist() == pytest.approx([1.0, np.tanh(0.5), 1.0])


def test_nearest_is_by_cosine():
    queries = torch.nn.functional.normalize(torch.randn(50, 4), dim=1)
    nearest = _nearest(queries, queries[10:20], chunk=7)
    assert torch.equal(nearest, torch.stack([(queries[10:20] @ q).argmax() for q in queries]))
    assert torch.equal(nearest[10:20], torch.arange(10))  # a clean pair may be its own entry


def test_comparing_distinct_images_once_gives_the_same_entries():
    images = build.method("npc").pairs.images
    distinct = torch.nn.functional.normalize(torch.randn(int(images.max()) + 1, 8), dim=1)
    embeddings, clean = distinct[images], torch.arange(3, len(images), 2)
    expected = clean[_nearest(embeddings, embeddings[clean])]
    assert torch.equal(_nearest_pairs(embeddings, images, clean), expected)


def test_an_empty_strict_clean_set_falls_back_and_reports_it():
    npc = build.method("npc", hyper={"warmup_epochs": 0, "bank_threshold": 1.0, "least_bank": 0.1})
    posterior = torch.linspace(0, 0.9, len(npc.pairs))
    clean, fallback = npc._strict_clean_set(posterior, torch.rand(len(npc.pairs)))
    assert fallback
    assert clean.tolist() == list(
        range(len(npc.pairs) - len(clean), len(npc.pairs))
    )  # the highest posteriors
    clean, _ = npc._strict_clean_set(torch.zeros(len(npc.pairs)), torch.arange(len(npc.pairs)).float())
    assert clean.tolist() == list(range(len(clean)))  # ordered by loss among equal posteriors


def test_bank_entries_are_strictly_clean_and_rebuilt_or_frozen():
    for bank, changes in (("epoch", True), ("frozen", False)):
        trainer = build.trainer("npc", hyper={"warmup_epochs": 0, "bank": bank, "least_bank": 0.2})
        banks = []
        start_epoch = trainer.method.start_epoch

        def record(*args, start_epoch=start_epoch, trainer=trainer, banks=banks):
            report = start_epoch(*args)
            banks.append(trainer.method.entries.clone())
            return report

        trainer.method.start_epoch = record
        trainer.fit()
        assert len(banks) == 3
        assert torch.equal(banks[0], banks[2]) != changes


def test_gradients_of_the_two_variants():
    """`released` has one weight for the batch and no gradient through the memory loss."""
    gradients = {}
    for variant in ("paper", "released"):
        trainer = build.trainer(
            "npc",
            hyper={
                "variant": variant,
                "warmup_epochs": 0,
                "bank": "frozen",
                "bank_threshold": 0.5,
                "least_bank": 0.2,
            },
        )
        trainer.method.eval()
        trainer.method.start_epoch(0, 0, trainer.scan)
        batch = build.first_batch(trainer)
        trainer.optimizers.at_step(5)
        captured = {}
        trainer.optimizers.update = lambda loss, *groups, captured=captured, t=trainer: captured.update(
            t.optimizers.gradients(loss, *groups)
        )
        trainer.optimizers.step = lambda given, group, captured=captured: captured.update(given)
        trainer.method.train()
        trainer.method.step(batch, trainer.optimizers, 0)
        gradients[variant] = captured
        if variant == "released":
            net = trainer.method.networks[0]
            plain = trainer.optimizers.gradients(pair_losses(net.logits(*net(batch))).mean(), "network0")
            weight = trainer.method.weight[batch.index].mean()
            for name, gradient in captured.items():
                assert torch.allclose(gradient, weight * plain[name], atol=1e-6)
    assert not all(
        torch.allclose(gradients["paper"][k], gradients["released"][k], atol=1e-4) for k in gradients["paper"]
    )


def test_the_plain_siblings_step_by_the_gradient_alone():
    """`sgd`: p - lr g of the mean loss; `pair`: of each pair's own, against one pair computed by hand."""
    npc = {"warmup_epochs": 0, "least_bank": 0.3, "memory_loss": False}
    for sibling in ("sgd", "pair"):
        made = build.trainer("npc", hyper={**npc, "sibling": sibling, "sibling_lr": 0.5}, precision="fp64")
        method, net = made.method, made.method.networks[0]
        method.start_epoch(0, 0, made.scan)
        batch = build.first_batch(made)
        method.eval()
        losses = pair_losses(net.logits(*net(batch)))
        k = 3
        loss = losses.mean() if sibling == "sgd" else losses[k]
        parameters = {n: p for n, p in net.named_parameters() if p.requires_grad}
        gradients = dict(zip(parameters, torch.autograd.grad(loss, parameters.values()), strict=True))
        stepped = {n: p - 0.5 * gradients[n] for n, p in parameters.items()}
        bank = batch.auxiliary["bank"]
        rows = torch.searchsorted(bank.index, method.entries[:, batch.index])

        def entry_losses(images, texts, net=net, rows=rows):
            return torch.stack([pair_losses(net.logits(images[r], texts[r])) for r in rows])

        before = net(bank, then=entry_losses)
        after = torch.func.functional_call(net, stepped, (bank,), {"then": entry_losses})
        made.optimizers.at_step(0)
        method.step(batch, made.optimizers, 0)
        expected = (before / after).mean(0)[k].item()
        assert method.ratio[batch.index[k]].item() == pytest.approx(expected, rel=1e-9)
        assert set(method.diagnostics()) == {"ratio"}
