"""FLOPs of a step: known numbers, and a trial that is the same with and without the count."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import flop_registry

from harness.training import flops
from harness.training.cost import CostMeter
from harness.training.flops import FlopCounter, peak_tflops
from tests import build


def test_a_product_and_its_backward_pass_have_known_flops():
    weight = torch.ones(5, 7, requires_grad=True)
    with FlopCounter() as counter:
        (torch.ones(3, 5) @ weight).sum().backward()
    assert counter.total == 2 * (2 * 3 * 5 * 7)  # forward, and the gradient of the weight


def test_recurrent_layers_of_cudnn_count_as_the_products_that_they_stand_for():
    gru = torch.nn.GRU(6, 8, num_layers=2, bidirectional=True)
    with FlopCounter() as counter:
        gru(torch.ones(4, 3, 6))
    assert flops._rnn_flops((4, 3, 6), [p.shape for p in gru.parameters()]) == counter.total


def test_an_operation_that_cannot_be_counted_does_not_stop_a_step(monkeypatch):
    def fails(*arguments, **options):
        raise ValueError("unknown arguments")

    monkeypatch.setitem(flop_registry, torch.ops.aten.mm, fails)
    with FlopCounter() as counter:
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.sum() == 8
    assert counter.total is None


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Tesla V100-SXM2-32GB", None),  # it has no bf16
    ],
)
def test_the_peak_is_that_of_a_whole_device_that_is_known(device, peak):
    assert peak_tflops(device, "bf16") == peak


@pytest.mark.parametrize("name", ["npc", "mscn"])  # a look-ahead; gradients of gradients
def test_counting_changes_no_number_and_happens_once_a_network(name, tmp_path, monkeypatch):
    counted = build.trainer(name, folder=tmp_path, epochs=2)
    outcome = counted.fit()
    assert len(counted.cost.flops) == counted.method.n_networks
    assert outcome.metrics["cost/tflop_per_step"] > 0

    resumed = build.trainer(name, folder=tmp_path, epochs=2)
    resumed.resume()
    assert resumed.state.epoch == 2
    resumed.fit()
    assert resumed.cost.flops == counted.cost.flops

    step = CostMeter.step
    monkeypatch.setattr(CostMeter, "step", lambda self, *, count: step(self, count=False))
    plain = build.trainer(name, epochs=2)
    assert plain.fit().weights == outcome.weights
    assert not plain.cost.flops
