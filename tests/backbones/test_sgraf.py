"""SGR and SAF against the numbers of published code, and against a loop over captions."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import functional_call

from harness.backbones import alignment
from harness.backbones.alignment import Distances
from harness.backbones.published import read_published
from harness.backbones.sgraf import SgrafBackbone, SgrafConfig, SgrafSetup
from harness.bench import reference_sgraf
from harness.data.base import DataError
from methods.base import Batch, twice_differentiable
from methods.losses import hardest_triplet, hardest_triplet_of, mean_triplet
from methods.mscn import ScoreHead, soft_margin
from tests import build, small

DATA = Path(__file__).parents[1] / "fixtures"
MODULES = ("SGR", "SAF")


class Published:
    """What `tests/fixtures/sgraf_*.npz` hold, and our network and head with their weights."""

    def __init__(self, module: str, dtype: torch.dtype = torch.float32) -> None:
        self.values = np.load(DATA / f"sgraf_{module.lower()}.npz")
        weights, head = self.part("net/"), self.part("meta/")
        size, embed = weights["sim_enc.sim_tranloc_w.weight"].shape
        words, word = weights["txt_enc.embed.weight"].shape
        config = SgrafConfig(
            module=module,
            embed=embed,
            similarity=size,
            word=word,
            dropout=0.0,
            steps=int(self.values["sgr_step"]),
        )
        images = self.tensor("images")
        self.net = SgrafBackbone(config, tuple(images.shape[1:]), words, 0)
        self.net.load_published(weights, head, "the parity file")
        self.net = self.net.to(dtype)
        self.head = ScoreHead(size, len(head["first_hidden_layer.fc.bias"]), torch.Generator()).to(dtype)
        self.head.take_over(head)
        count = len(images)
        self.batch = Batch(torch.arange(count), images.to(dtype), self.tensor("captions"), 0, count, 0)

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        return {k.removeprefix(prefix): self.tensor(k) for k in self.values.files if k.startswith(prefix)}

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.values[name])

    def losses(self) -> dict[str, torch.Tensor]:
        scores = self.head(self.net.vectors(*self.net(self.batch)))
        margin = soft_margin(scores.diagonal().detach(), float(self.values["margin"]))
        return {
            "warmup/loss": mean_triplet(scores, float(self.values["margin"])).sum(),
            "adaptive/loss": hardest_triplet(scores, margin.expand(scores.shape)).sum(),
            "adaptive/loss_pair_indexed": hardest_triplet(scores, margin).sum(),
        }


@pytest.fixture(params=MODULES)
def published(request):
    return Published(request.param)


def close(ours, theirs, tolerance=1e-4):
    return torch.allclose(ours, theirs, rtol=0, atol=tolerance)


def test_similarities_in_evaluation_mode_are_the_published_ones(published):
    net = published.net.eval()
    embeddings = net(published.batch)
    assert close(published.head(net.vectors(*embeddings)), published.tensor("eval/similarity"))
    assert close(
        published.head(net.pair_vectors(*embeddings)), published.tensor("eval/pair_similarity")[:, 0]
    )
    # With a head of MSCN's in the checkpoint, the network scores as that head does.
    assert close(net.similarity(*embeddings), published.tensor("eval/similarity"))


@pytest.mark.parametrize("stage", ["warmup", "adaptive"])
def test_training_losses_and_gradients_are_the_published_ones(published, stage):
    loss = published.net.train() and published.losses()[f"{stage}/loss"]
    assert loss.item() == pytest.approx(float(published.values[f"train/{stage}/loss"]), abs=1e-4)
    prefix = f"train/{stage}/grad/"
    names = [k.removeprefix(prefix) for k in published.values.files if k.startswith(prefix)]
    own = {f"net/{name}": p for name, p in published.net.named_parameters()} | head_names(published.head)
    assert len(names) > 30
    assert set(names) == {k for k in own if "logit_scale" not in k and "sim_eval_w" not in k}
    gradients = torch.autograd.grad(loss, [own[name] for name in names], materialize_grads=True)
    for name, gradient in zip(names, gradients, strict=True):
        assert close(gradient, published.tensor(prefix + name)), name


def head_names(head):
    return {
        "meta/first_hidden_layer.fc.weight": head.weight,
        "meta/first_hidden_layer.fc.bias": head.bias,
        "meta/output_layer.weight": head.out_weight,
        "meta/output_layer.bias": head.out_bias,
    }


def test_each_pair_has_its_own_margin_by_default(published):
    published.net.train()
    loss = published.losses()["adaptive/loss_pair_indexed"]
    assert loss.item() == pytest.approx(float(published.values["train/adaptive/loss_pair_indexed"]), abs=1e-4)


def test_running_statistics_after_a_pass_are_the_published_ones(published):
    published.net.train()
    published.losses()
    prefix = "train/adaptive/buffer_after/"
    found = dict(published.net.named_buffers())
    names = [k for k in published.values.files if k.startswith(prefix)]
    assert len(names) >= 6
    for name in names:
        ours = found[name.removeprefix(prefix)]
        assert close(ours.float(), published.tensor(name).float()), name


def random_batch(net, count=9, regions=5, width=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 8, (count,), generator=generator)
    texts = torch.randint(4, 30, (count, 10), generator=generator) * (torch.arange(10) < lengths[:, None])
    images = torch.randn(count, regions, width, generator=generator, dtype=net.dtype)
    return Batch(torch.arange(count), images, texts, 0, count, 0)


def small_net(module, **changes):
    torch.manual_seed(0)
    config = SgrafConfig(
        module=module, **{"embed": 12, "similarity": 6, "word": 5, "dropout": 0.0, **changes}
    )
    return SgrafBackbone(config, (5, 7), 30, 0).double()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("rows", [1, 100, 10**9])
def test_tiles_give_what_a_loop_over_captions_gives(monkeypatch, module, training, rows):
    monkeypatch.setitem(alignment.TILE_ROWS, "cpu", rows)
    net = small_net(module).train(training)
    images, texts = net(random_batch(net))
    ours, naive = net.similarity(images, texts), reference_sgraf.similarity(net, images, texts)
    assert close(ours, naive, 1e-10)
    own = [p for name, p in net.named_parameters() if name != "logit_scale"]
    loss = torch.randn(ours.shape, dtype=ours.dtype, generator=torch.Generator().manual_seed(1))
    for first, second in zip(
        *(
            torch.autograd.grad((s * loss).sum(), own, retain_graph=True, materialize_grads=True)
            for s in (ours, naive)
        ),
        strict=True,
    ):
        assert close(first, second, 1e-10)


def test_pairs_are_the_diagonal():
    net = small_net("SGR").train()
    images, texts = net(random_batch(net))
    assert close(net.pair_similarity(images, texts), net.similarity(images, texts).diagonal(), 1e-12)


def test_filtration_of_pairs_takes_statistics_of_each_pair():
    """As released, where a pair is scored by itself."""
    net = small_net("SAF").train()
    images, texts = net(random_batch(net))
    alone = torch.cat(
        [reference_sgraf.similarity(net, images[k : k + 1], texts[k : k + 1])[0] for k in range(len(texts))]
    )
    assert close(net.pair_similarity(images, texts), alone, 1e-12)


@pytest.mark.parametrize("module", MODULES)
def test_the_order_of_images_and_captions_does_not_matter(module):
    net = small_net(module).eval()
    images, texts = net(random_batch(net))
    order, other = torch.randperm(9), torch.randperm(9)
    assert close(
        net.similarity(images[order], texts[other]), net.similarity(images, texts)[order][:, other], 1e-12
    )


def test_more_padding_changes_nothing():
    net = small_net("SGR").eval()
    batch = random_batch(net)
    padded = torch.cat([batch.texts, torch.zeros(9, 4, dtype=torch.long)], 1)
    assert close(net.encode_text(padded)[:, :11], net.encode_text(batch.texts), 1e-12)
    assert (net.encode_text(padded)[:, 11:] == 0).all()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("module", MODULES)
def test_captions_of_unknown_length_get_the_same_similarities(module, training):
    """As on a GPU, where embeddings that were selected do not carry their numbers of words."""
    net = small_net(module).train(training)
    images, texts = net(random_batch(net))
    known = net.similarity(images, texts), net.pair_similarity(images, texts)
    longest = torch.full((len(texts),), texts.shape[1] - 1)
    assert (texts.lengths < longest).any()
    texts.lengths = longest
    for first, second in zip(
        known, (net.similarity(images, texts), net.pair_similarity(images, texts)), strict=True
    ):
        assert close(first, second, 1e-12)


def test_the_block_without_wide_tensors_is_twice_differentiable():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    for words in (draw(4, 5), draw(2, 4, 5)):
        inputs = draw(2, 4, 3), draw(2, 3, 5), words, draw(3, 5)
        assert torch.autograd.gradcheck(Distances.apply, inputs)
        assert torch.autograd.gradgradcheck(Distances.apply, inputs)


def test_replaced_weights_reach_the_recurrent_layer():
    """A plain GRU ignores weights that `functional_call` hands it."""
    net = small_net("SGR").eval()
    batch = random_batch(net)
    other = {name: p + 0.1 * torch.randn_like(p) for name, p in net.named_parameters() if "cap_rnn" in name}
    for weight in other.values():
        weight.requires_grad_()
    changed = functional_call(net, other, (batch,))[1]
    assert not close(changed, net(batch)[1], 1e-3)
    slopes = torch.autograd.grad(changed.square().sum() + changed.sum(), list(other.values()))
    assert all(slope.abs().max() > 0 for slope in slopes)


@pytest.mark.parametrize("module", MODULES)
def test_a_look_ahead_step_is_differentiable(module):
    """The gradient through one SGD step on the similarities, against a finite difference."""
    net = small_net(module).train()
    batch = random_batch(net)
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)

    def after():
        own = {name: p for name, p in net.named_parameters() if p.requires_grad}
        with twice_differentiable():
            loss = scale * hardest_triplet_of(net, *net(batch), 0.2).sum()
        slopes = torch.autograd.grad(loss, list(own.values()), create_graph=True, materialize_grads=True)
        ahead = {name: p - 0.1 * slope for (name, p), slope in zip(own.items(), slopes, strict=True)}
        return functional_call(net, ahead, (batch,), {"then": lambda i, t: net.pair_similarity(i, t).sum()})

    (gradient,) = torch.autograd.grad(after(), scale)
    with torch.no_grad():
        scale += 1e-5
    above = after()
    with torch.no_grad():
        scale -= 2e-5
    assert gradient.item() == pytest.approx(((above - after()) / 2e-5).item(), rel=1e-4, abs=1e-9)
    assert abs(gradient.item()) > 1e-6


def test_a_process_without_a_share_of_a_batch_goes_along():
    """As where a method asks for fewer pairs than there are processes."""
    net = small_net("SGR").train()
    batch = random_batch(net)
    net.stream.restart(Batch(batch.index, batch.images[:0], batch.texts[:0], 0, 1, 0))
    assert net.encode_text(batch.texts[:0]).shape == (0, 11, 12)


def test_gradients_under_autocast_are_those_of_the_full_precision_part():
    """The backward pass of what was computed in full precision is in full precision too."""
    trainer = build.trainer("triplet", backbone={**small.SGRAF, "dropout": 0.0})
    net = trainer.method.networks[0].train()
    images, texts = (x.detach() for x in net(build.first_batch(trainer)))
    names = [n for n, _ in net.named_parameters() if n.startswith("sim_enc.S") or "tran" in n]
    slopes = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            slope = trainer.optimizers.gradients(net.similarity(images, texts).square().sum(), "network0")
        slopes.append([slope[n] for n in names])
    assert any(s.abs().max() > 0 for s in slopes[0])
    assert all(torch.equal(a, b) for a, b in zip(*slopes, strict=True))


def test_dropout_masks_belong_to_the_pair():
    net = small_net("SGR", dropout=0.5).train()
    batch = random_batch(net)
    first, again = net(batch), net(batch)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    batch.seed = 1
    assert not any(close(a, b, 1e-3) for a, b in zip(first, net(batch), strict=True))


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs Linux to read the peak of a process"
)
def test_memory_of_scoring_does_not_grow_with_the_tiles(monkeypatch):
    net = small_net("SGR", embed=256).float().eval()
    with torch.no_grad():
        images, few = net(random_batch(net, 64))
        many = few.repeat(16, 1, 1)

        def peak(texts, rows):
            monkeypatch.setitem(alignment.TILE_ROWS, "cpu", rows)
            # What else the process allocates comes on top, so the least of a few is nearest to the truth.
            return min(megabytes_at_peak(lambda: net.similarity(images, texts)) for _ in range(3))

        peak(few, 2**10)  # warms up
        in_tiles, in_more_tiles, at_once = peak(few, 2**10), peak(many, 2**10), peak(many, 2**40)
    result = 64 * len(many) * (6 + 1) * 4 / 2**20  # similarity vectors and similarities
    assert in_more_tiles < in_tiles + 4 * result + 4
    assert at_once > 100


def megabytes_at_peak(function):
    """How far the process grows while it runs."""

    def status(name):
        return next(
            int(line.split()[1]) / 1024
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith(name)
        )

    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS:")
    function()
    return status("VmHWM:") - before


# Checkpoints of the published repositories ----------------------------------------------------------


def options():
    return argparse.Namespace(
        data_name="f30k_precomp", embed_size=12, learning_rate=2e-4, warmup=[1, 2], bi_gru=True
    )


def saved_as(form, nets, path):
    """Files of the same form as MSCN, NCR and SGRAF save."""
    states = [{k: v for k, v in net.state_dict().items() if k != "logit_scale"} for net in nets]
    if form == "MSCN":
        states = [{k: v for k, v in s.items() if "sim_eval_w" not in k} for s in states]
        heads = [Published("SGR").part("meta/") for _ in nets]
        heads = [{k: torch.randn(64, 6) if v.shape == (64, 12) else v for k, v in h.items()} for h in heads]
        content = {
            "net_A": states[0],
            "meta_net_A": heads[0],
            "net_B": states[1],
            "meta_net_B": heads[1],
            "best_rsum": np.float64(3.0).item(),
        }
    else:
        lists = [[part(s, name) for name in ("img_enc", "txt_enc", "sim_enc")] for s in states]
        content = (
            {"model_A": lists[0], "model_B": lists[1]} if form == "NCR" else {"model": lists[0], "Eiters": 7}
        )
    torch.save({"epoch": 3, "opt": options(), **content}, path)
    return content


def part(state, name):
    return {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}


@pytest.mark.parametrize(("form", "networks"), [("MSCN", 2), ("NCR", 2), ("SGRAF", 1)])
def test_checkpoints_of_the_published_form_load(tmp_path, form, networks):
    nets = [small_net("SGR"), small_net("SGR")]
    with torch.no_grad():
        nets[1].sim_enc.sim_tranloc_w.weight.add_(1)
    content = saved_as(form, nets, tmp_path / "model_best.pth.tar")
    for number in range(networks):
        loaded = small_net("SGR").float()
        weights, head = read_published(tmp_path / "model_best.pth.tar", number)
        loaded.load_published({k: v.float() for k, v in weights.items()}, head, "it")
        batch = random_batch(loaded)
        images, texts = loaded.eval()(batch)
        original = nets[number].float().eval()
        assert close(original(batch)[0], images)
        expected = original.similarity(images, texts)
        if form == "MSCN":
            own = ScoreHead(6, 64, torch.Generator())
            own.take_over(content[f"meta_net_{'AB'[number]}"])
            expected = own(original.vectors(images, texts))
        assert close(loaded.similarity(images, texts), expected)
    with pytest.raises(DataError, match=r"expected one with number (1|2)"):
        read_published(tmp_path / "model_best.pth.tar", networks)


def test_a_checkpoint_that_does_not_fit_is_told_before_work_starts(tmp_path):
    saved_as("SGRAF", [small_net("SGR")], tmp_path / "one.pth.tar")
    data = small.regions()
    for changes, message in (
        ({}, "does not fit the backbone: img_enc.fc.weight: expected (1024, 192), found (12, 7)"),
        ({"pretrained": str(tmp_path / "bad.pth.tar")}, "expected a state dict or a list of 3, found int"),
    ):
        torch.save({"model": 3}, tmp_path / "bad.pth.tar")
        setup = SgrafSetup(SgrafConfig(**{"pretrained": str(tmp_path / "one.pth.tar"), **changes}))
        assert message in setup.check_data(data, 1)
    config = {"embed": 12, "similarity": 6, "word": 5, "pretrained": str(tmp_path / "one.pth.tar")}
    fits = SgrafSetup(SgrafConfig(**config))
    words = len(fits.vocabulary(data))
    torch.manual_seed(0)
    saved_as(
        "SGRAF",
        [SgrafBackbone(fits.config, data["train"].images.shape[1:], words, 0)],
        tmp_path / "one.pth.tar",
    )
    assert fits.check_data(data, 1) is None
    assert "holds 1 network(s): expected one with number 1" in fits.check_data(data, 2)


class Harmful:
    def __reduce__(self):
        return print, ("code of a checkpoint was run",)


def test_a_checkpoint_cannot_run_code(tmp_path, capsys):
    torch.save({"model": [{}, {}, {}], "opt": Harmful()}, tmp_path / "bad.pth.tar")
    with pytest.raises(DataError, match=r"bad\.pth\.tar cannot be read as weights alone"):
        read_published(tmp_path / "bad.pth.tar", 0)
    assert "was run" not in capsys.readouterr().out


def test_a_checkpoint_of_other_sizes_is_refused_with_both_shapes(tmp_path):
    saved_as("NCR", [small_net("SGR"), small_net("SGR")], tmp_path / "a.pth.tar")
    weights, _ = read_published(tmp_path / "a.pth.tar", 0)
    with pytest.raises(
        DataError, match=r"a.pth.tar does not fit .*img_enc.fc.weight: expected \(16, 7\), found \(12, 7\)"
    ):
        small_net("SGR", embed=16).load_published(weights, None, "a.pth.tar")
    with pytest.raises(
        DataError,
        match=r"SAF_module.attn_sim_w.weight is missing.*SGR_module.0.graph_query_w.weight is not part",
    ):
        small_net("SAF").load_published(weights, None, "a.pth.tar")
    saved_as("MSCN", [small_net("SGR"), small_net("SGR")], tmp_path / "c.pth.tar")
    with pytest.raises(
        DataError, match=r"c.pth.tar: similarity head: expected .*\(64, 9\).*found .*\(64, 6\)"
    ):
        small_net("SGR", similarity=9).load_published(*read_published(tmp_path / "c.pth.tar", 0), "c.pth.tar")
    torch.save({"other": 1}, tmp_path / "b.pth.tar")
    with pytest.raises(
        DataError, match="expected the keys net_A/net_B or model_A/model_B or model, found other"
    ):
        read_published(tmp_path / "b.pth.tar", 0)
