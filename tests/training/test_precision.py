"""bf16 and dropout in whole towers, as far as a CPU shows them."""

from __future__ import annotations

import pytest
import torch

from harness.backbones.clip import ClipConfig, ClipSetup
from harness.training.accelerator import make_accelerator
from methods.base import twice_differentiable
from tests import build, small
from tests.backbones.test_clip import batch_of, network_of


def test_a_changed_head_is_seen_within_an_autocast_step():
    """Autocast's cache would hand out the copy of a weight that was made before the meta step."""
    accelerator = make_accelerator("bf16")
    layer, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    with accelerator.autocast():
        before = layer(x)
        with torch.no_grad():
            layer.weight.mul_(5)
        assert not torch.allclose(before, layer(x))


def test_similarities_are_computed_in_full_precision():
    net = network_of(ClipSetup(ClipConfig.model_validate(small.backbone()))).eval()
    batch = batch_of(ClipSetup(ClipConfig.model_validate(small.backbone())))
    with torch.no_grad():
        plain = net.logits(*net(batch))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            images, texts = net(batch)
            logits = net.logits(images, texts)
    assert images.dtype == logits.dtype == torch.float32
    assert torch.allclose(logits, net.logit_scale.exp() * (images @ texts.T))
    assert torch.allclose(logits, plain, atol=0.3)


@pytest.mark.parametrize("name", ["small_loss", "npc", "mscn"])
def test_methods_train_in_bf16(name):
    trainer = build.trainer(name, precision="bf16")
    records = []
    outcome = trainer.fit(records.append)
    assert outcome.metrics["test/rsum"] > 0
    assert records[-1].metrics["train/loss"] > 0
    # One process runs trials of several precisions in turn.
    assert build.trainer(name, precision="fp32").accelerator.mixed_precision == "no"


def test_whole_towers_draw_nothing_from_the_global_stream():
    """MiniLM has dropout in embeddings, layers and attention; all of it belongs to the pair, or is off."""
    config = ClipConfig.model_validate({"locked": False, "cache": False, "head": small.HEAD})
    backbone = ClipSetup(config)
    batch = batch_of(backbone, 4)
    net = network_of(backbone).train()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = net(batch)
    torch.manual_seed(1)
    second = net(batch)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    torch.manual_seed(0)
    net(batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert any(m.p > 0 for m in net.towers.modules() if type(m).__name__ == "PairDropout")


def test_the_memory_bank_of_a_bf16_trial_is_that_of_full_precision():
    """The same embeddings, compared in bf16, give other neighbours for a fifth of the pairs and more."""
    trainer = build.trainer("npc", precision="bf16", batch_size=16)
    method, outputs = trainer.method, {}
    compute = method.start_epoch
    method.start_epoch = lambda epoch, network, scan: compute(
        epoch, network, lambda function: outputs.setdefault("scan", scan(function))
    )
    trainer._train_pass(1, 0)
    bank = method.entries.clone()
    compute(1, 0, lambda function: outputs["scan"])  # outside the loop, and so in full precision
    assert bank.unique().numel() > 1
    assert torch.equal(method.entries, bank)


def test_what_a_scan_computes_on_embeddings_is_in_full_precision():
    trainer = build.trainer("clip", precision="bf16")
    trainer.method.eval()
    seen = {}

    def compare(images, texts):
        seen["type"] = (images @ texts.T).dtype
        return {"score": (images * texts).sum(-1)}

    trainer.method.start_epoch = lambda epoch, network, scan: scan(compare) and {}
    trainer._train_pass(0, 0)
    assert seen["type"] == torch.float32


def test_words_are_read_in_full_precision():
    """cuDNN's GRU runs in fp16 under autocast, whatever the type that was asked for."""
    net = build.trainer("clip", **small.SETTINGS["SAF"]).method.networks[0].eval()
    tokens = torch.tensor([[3, 4, 5], [6, 7, 0]])
    lengths = (tokens != 0).sum(1)
    plain = net.txt_enc(tokens, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = net.txt_enc(tokens, lengths)
    assert states.dtype == torch.float32
    assert torch.equal(states, plain)


@pytest.mark.parametrize("deterministic", [True, False])
def test_switching_cudnn_keeps_its_other_settings(deterministic):
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.allow_tf32
    cudnn.deterministic, cudnn.allow_tf32 = deterministic, not deterministic
    try:
        with twice_differentiable():
            assert not cudnn.enabled
            assert (cudnn.deterministic, cudnn.allow_tf32) == (deterministic, not deterministic)
        assert cudnn.enabled
    finally:
        cudnn.deterministic, cudnn.allow_tf32 = before
