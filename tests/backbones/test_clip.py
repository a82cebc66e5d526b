from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from harness.backbones import backbone_setup, towers
from harness.backbones.base import BackboneConfig, BackboneSetup
from harness.backbones.clip import ClipConfig, ClipSetup
from harness.backbones.sgraf import SgrafSetup
from harness.backbones.towers import build_towers, check_towers
from harness.lib.files import file_digest
from harness.lib.registry import UnknownName
from harness.training.loading import Fetch, Plan
from methods.base import Batch, Pairs
from tests import build, small

ROOT = Path(__file__).parents[2]


def setup(**changes):
    return ClipSetup(ClipConfig.model_validate(small.backbone(**changes)))


def batch_of(backbone, count=6, split="dev"):
    fetch = Fetch({split: backbone.inputs(small.load(), split)})
    return fetch[Plan(torch.arange(count), Pairs(torch.arange(count), torch.arange(count), split))]


def network_of(backbone, network=0, seed=0):
    return backbone.make(network, seed, backbone.inputs(small.load(), "dev"))


class OwnConfig(BackboneConfig):
    width: int = 3


class Own(BackboneSetup[OwnConfig]):
    """The least that a backbone of a user's own is."""

    Config = OwnConfig
    takes = "regions"

    def identity(self, data):
        return "0" * 16

    def inputs(self, data, split, *, device="cpu", quiet=True):
        raise NotImplementedError

    def make(self, network, seed, inputs):
        raise NotImplementedError


class Unfinished(BackboneSetup[OwnConfig]):
    Config = OwnConfig


class OwnConfigIsNone(Own):
    Config = dict


def test_a_configuration_becomes_a_setup():
    assert backbone_setup({}).config == ClipConfig()
    assert isinstance(backbone_setup(small.SGRAF), SgrafSetup)
    own = backbone_setup({"kind": "tests.backbones.test_clip:Own", "width": 4})
    assert own.config.width == 4
    assert not own.uses_cache
    assert own.check(own.config) is None
    assert own.check_data(small.regions(), 1) is None
    assert "tests.backbones.test_clip:Own needs region features" in own.check_data(small.load(), 1)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"kind": "clop"}, UnknownName, "unknown backbone 'clop'; did you mean 'clip'"),
        ({"kind": 3}, UnknownName, "expected a name"),
        ({"kind": "clip", "modle": "x"}, ValidationError, "modle"),
        ({"kind": "methods.clip:Clip"}, ValueError, "not a backbone"),
        ({"kind": "tests.small:load"}, ValueError, "not a backbone"),
        (
            {"kind": "tests.backbones.test_clip:Unfinished"},
            ValueError,
            "does not define takes, identity, inputs, make",
        ),
        (
            {"kind": "tests.backbones.test_clip:OwnConfigIsNone"},
            ValueError,
            "its Config is not a subclass of",
        ),
    ],
)
def test_a_configuration_without_a_backbone_is_refused(config, error, message):
    with pytest.raises(error, match=message):
        backbone_setup(config)


def imported_by(statement):
    """The packages that a fresh interpreter has imported after `statement`."""
    code = f"{statement}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split())


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import harness.backbones", {"torch", "pydantic", "numpy"}),
        (
            "import harness.backbones.clip, harness.backbones.sgraf",
            {"open_clip", "timm", "transformers", "sklearn"},
        ),
        ("import harness.evaluation.metrics, harness.evaluation.coco", {"torch", "sklearn", "eccv_caption"}),
        (
            "from harness.backbones import backbone_setup\n"
            "setup = backbone_setup({}); assert setup.check(setup.config) is None",
            {"open_clip", "timm", "transformers", "sklearn"},
        ),
        (
            "from harness.backbones.towers import weights_identity\n"
            "weights_identity(model='effnet_minilm', pretrained='packages')",
            {"open_clip", "timm", "transformers"},
        ),
    ],
)
def test_imports_stay_light(statement, absent):
    assert not absent & imported_by(statement)


def test_library_versions_of_the_cache_key_are_those_that_the_libraries_report():
    import open_clip
    import timm
    import transformers

    assert towers.library_versions() == [open_clip.__version__, timm.__version__, transformers.__version__]


def test_cached_towers_equal_live_ones():
    out = []
    for cache in (True, False):
        backbone = setup(cache=cache)
        out.append(network_of(backbone).eval()(batch_of(backbone)))
    for cached, live in zip(*out, strict=True):
        assert torch.allclose(cached, live, atol=1e-4)
        assert not torch.allclose(cached[0], cached[1], atol=1e-3)


def test_a_trial_on_cached_towers_equals_one_on_live_ones():
    losses = []
    for cache in (True, False):
        records = []
        build.trainer("clip", backbone=small.backbone(cache=cache)).fit(records.append)
        losses.append([r.metrics["train/loss"] for r in records])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_the_real_towers_equal_their_cache():
    """EfficientNet-Lite0 and MiniLM from their packages, on real pictures."""
    out = []
    for cache in (True, False):
        backbone = ClipSetup(ClipConfig(cache=cache))
        out.append(network_of(backbone).eval()(batch_of(backbone)))
    for cached, live in zip(*out, strict=True):
        assert torch.allclose(cached, live, atol=1e-4)


def test_packaged_weights_classify_as_imagenet_features_do():
    """Wrongly matched tensors would give features in which two pictures of one concept are no closer than
    others.
    """
    meta = small.load()["meta"]
    inputs = ClipSetup(ClipConfig()).inputs(small.load(), "meta")
    features = inputs.images(torch.arange(len(meta.images)))
    features = torch.nn.functional.normalize(features - features.mean(0), dim=1)
    cosine, group = features @ features.T, torch.from_numpy(meta.image_group)
    same = (group[:, None] == group) & ~torch.eye(len(group), dtype=bool)
    assert cosine[same].mean() > cosine[group[:, None] != group].mean() + 0.2


def test_training_whole_reaches_the_towers():
    trainer = build.trainer("clip", backbone=small.backbone(locked=False, cache=False), epochs=1)
    before = {k: v.clone() for k, v in trainer.method.state_dict().items()}
    trainer.fit()
    moved = [
        k
        for k, v in trainer.method.state_dict().items()
        if "towers.model.visual" in k and not torch.equal(v, before[k])
    ]
    assert moved
    locked = build.trainer("clip", backbone=small.backbone(cache=False), epochs=1)
    before = {k: v.clone() for k, v in locked.method.state_dict().items()}
    locked.fit()
    assert all(torch.equal(v, before[k]) for k, v in locked.method.state_dict().items() if ".towers." in k)


def test_padding_changes_nothing():
    towers = build_towers(model="effnet_minilm", pretrained="packages", image_size=None).eval()
    captions = ["dog", "a rather long caption about a smiling face with hearts"]
    with torch.no_grad():
        together = towers.encode_text(towers.tokenize(captions))
        alone = torch.cat([towers.encode_text(towers.tokenize([c])) for c in captions])
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_bilinear_form_stands_for_the_similarity_vectors():
    net = network_of(setup())
    images, texts = torch.randn(3, 8), torch.randn(5, 8)
    weight, bias = torch.randn(4, 8), torch.randn(4)
    vectors = np.sqrt(8) * images[:, None] * texts[None]
    assert torch.allclose(
        net.vectors(images, texts).project(weight, bias), vectors @ weight.T + bias, atol=1e-5
    )
    assert torch.allclose(
        net.pair_vectors(images, texts[:3]).project(weight, bias),
        (vectors @ weight.T + bias)[range(3), range(3)],
        atol=1e-5,
    )


def test_networks_differ_and_repeat():
    backbone = setup()
    first, again, second, other = (
        network_of(backbone, n, s).image_head[1].weight for n, s in ((0, 1), (0, 1), (1, 1), (0, 2))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def test_dropout_masks_belong_to_the_pair():
    backbone = setup(head={"dropout": 0.5})
    batch = batch_of(backbone, 8)
    net = network_of(backbone).train()
    whole = net(batch)[0]
    assert torch.equal(whole, net(batch)[0])
    part = Batch(batch.index, batch.images[3:6], batch.texts[3:6], 3, 8, batch.seed)
    assert torch.allclose(net(part)[0], whole[3:6], atol=1e-6)
    batch.seed = 1
    assert not torch.allclose(net(batch)[0], whole, atol=1e-3)


def test_a_torn_cache_file_is_computed_again(tmp_path, monkeypatch):
    """In a cache that no other test reads."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    backbone = setup(head={"dim": 4})
    inputs = backbone.inputs(small.load(), "dev")
    expected = inputs.image_features.clone()
    files = list((tmp_path / "features").glob("*/image.npy"))
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:200])
    assert torch.equal(setup().inputs(small.load(), "dev").image_features, expected)


def test_parallel_trials_compute_features_once(tmp_path):
    """Two processes ask for the same features at once: one computes, both read the same."""
    code = (
        "from tests import small; from tests.backbones.test_clip import setup;"
        "import harness.backbones.features as f; inner = f._compute;"
        "f._compute = lambda *a, **k: (print('computed', flush=True), inner(*a, **k))[1];"
        "print(float(setup().inputs(small.load(), 'dev').image_features.sum()))"
    )
    import os

    environment = {**os.environ, "HARNESS_CACHE": str(tmp_path)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    out = [p.communicate()[0].split() for p in running]
    assert sum(line.count("computed") for line in out) == 2  # images and texts, once each
    assert out[0][-1] == out[1][-1]
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "ViT-B-23", "pretrained": "openai"}, "did you mean 'ViT-B-32'"),
        ({"model": "ViT-B-32", "pretrained": "opnai"}, "did you mean 'openai'"),
        ({"model": "ViT-B-32", "pretrained": "packages"}, "belong to the model effnet_minilm"),
        ({"model": "nowhere.json", "pretrained": "none"}, "does not exist"),
        # open_clip only warns of these, and every number would be worse.
        (
            {"model": "ViT-B-32", "pretrained": "openai"},
            "with QuickGELU, and 'ViT-B-32' is without: use the model 'ViT-B-32-quickgelu'",
        ),
        ({"model": "ViT-L-14", "pretrained": "metaclip_400m"}, "use the model 'ViT-L-14-quickgelu'"),
    ],
)
def test_unknown_models_and_weights_are_told(given, message):
    assert message in check_towers(**given)


def test_known_models_pass():
    assert check_towers(model="ViT-B-32-quickgelu", pretrained="openai") is None
    assert check_towers(model="ViT-B-32", pretrained="laion2b_s34b_b79k") is None
    assert check_towers(model="ViT-B-32", pretrained="none") is None
    assert "nothing to train" in ClipSetup.check(ClipConfig(head=None))


class Folder(torch.nn.Module):
    """What a TorchScript archive of weights is made of."""

    def forward(self, x):
        return x

    def put(self, name, value):
        head, _, rest = name.partition(".")
        if not rest:
            self.register_buffer(head, value)
        else:
            if not hasattr(self, head):
                self.add_module(head, Folder())
            getattr(self, head).put(rest, value)


def test_openais_own_files_load(tmp_path, monkeypatch):
    """TorchScript archives of half-precision weights, as OpenAI published them; they need QuickGELU."""
    config = json.loads(Path(small.TINY_MODEL).read_text())
    (tmp_path / "gelu.json").write_text(json.dumps(config))
    (tmp_path / "quick.json").write_text(json.dumps({**config, "quick_gelu": True}))
    weights = build_towers(
        model=str(tmp_path / "quick.json"), pretrained="none", image_size=None
    ).model.state_dict()
    archive = Folder()
    for name, value in weights.items():
        archive.put(name, (value + 0.25).half())
    for name, number in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
        archive.put(name, torch.tensor(number))
    torch.jit.script(archive).save(tmp_path / "ViT.pt")
    monkeypatch.setattr(
        towers, "_openai_digests", lambda: {file_digest(tmp_path / "ViT.pt")}
    )  # as if published by them
    assert "set quick_gelu: true in it" in check_towers(
        model=str(tmp_path / "gelu.json"), pretrained=str(tmp_path / "ViT.pt")
    )
    assert check_towers(model=str(tmp_path / "quick.json"), pretrained=str(tmp_path / "ViT.pt")) is None
    loaded = build_towers(
        model=str(tmp_path / "quick.json"), pretrained=str(tmp_path / "ViT.pt"), image_size=None
    ).model.state_dict()
    assert all(torch.equal(loaded[k], (v + 0.25).half().float()) for k, v in weights.items())
    with pytest.raises(ValueError, match=r"ViT\.pt do not fit the model"):
        build_towers(model="ViT-B-32-quickgelu", pretrained=str(tmp_path / "ViT.pt"), image_size=None)


def test_weights_from_a_local_file(tmp_path):
    first = build_towers(model=small.TINY_MODEL, pretrained="none", image_size=None)
    with torch.no_grad():
        for p in first.model.parameters():
            p.add_(0.5)
    torch.save(first.model.state_dict(), tmp_path / "weights.pt")
    loaded = build_towers(model=small.TINY_MODEL, pretrained=str(tmp_path / "weights.pt"), image_size=None)
    assert all(
        torch.equal(a, b) for a, b in zip(first.model.parameters(), loaded.model.parameters(), strict=True)
    )
