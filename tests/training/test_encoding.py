"""A pass over pairs encodes what occurs in several of them once, and changes no number by it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from harness.training import encoding
from harness.training.encoding import Embeddings
from tests import build, small

BACKBONES = {"clip": small.backbone(), "SGR": {**small.SGRAF, "module": "SGR"}}


def scores(trainer):
    trainer.method.eval()
    net = trainer.method.networks[0]
    return trainer.scan(
        lambda images, texts: {"score": net.pair_similarity(images, texts), "text": net.pooled(texts)}
    )


def encoded(trainer, monkeypatch):
    """How often each image and caption is encoded, filled by later passes."""
    times = {"images": Counter(), "texts": Counter()}
    encode = trainer.encoder.encode

    def counting(net, request, given):
        times[request.side].update(request.index.tolist())
        return encode(net, request, given)

    monkeypatch.setattr(trainer.encoder, "encode", counting)
    return times


@pytest.mark.parametrize("backbone", BACKBONES)
def test_each_image_and_caption_is_encoded_once(backbone, monkeypatch):
    trainer = build.trainer("clip", backbone=BACKBONES[backbone], precision="fp64")
    times = encoded(trainer, monkeypatch)
    together = scores(trainer)
    train, pairs = trainer.data["train"], trainer.method.pairs
    assert len(times["images"]) == len(pairs.images.unique()) < len(pairs)
    assert len(times["texts"]) == len(set(train.captions)) < len(pairs)
    assert max(*times["images"].values(), *times["texts"].values()) == 1

    monkeypatch.setattr(encoding, "KEPT_BYTES", 0)
    alone = scores(trainer)
    assert max(times["images"].values()) > 2
    assert max(times["texts"].values()) > 2
    for name, values in together.items():
        assert torch.allclose(values, alone[name], rtol=0, atol=1e-12), name


def test_equal_captions_have_equal_embeddings():
    trainer = build.trainer("clip")
    texts, captions = scores(trainer)["text"], trainer.method.pairs.captions
    assert torch.equal(texts, texts[captions])
    assert not torch.equal(captions, torch.arange(len(captions)))


@pytest.mark.parametrize("lengths", [None, torch.tensor([3, 1, 2, 5])])
def test_kept_embeddings_come_back_with_zeros_at_padding(lengths):
    longest, extra = 5, 1
    given = torch.randn(4, longest + extra, 2)
    if lengths is not None:
        given *= (torch.arange(longest + extra) < (lengths + extra)[:, None])[..., None]
    kept = Embeddings(given, 4, lengths, extra)
    for part in (torch.tensor([2, 0]), torch.tensor([3, 1])):
        kept.put(part, given[part])
    assert torch.equal(kept.take(torch.arange(4)), given)
    few = kept.take(torch.tensor([1, 2, 1]))
    assert torch.equal(few, given[[1, 2, 1], : few.shape[1]])
    if lengths is not None:
        assert few.shape[1] == 3
        assert few.lengths.tolist() == [1, 2, 1]
        assert kept.bytes == 4 * 2 * (int(lengths.sum()) + 4 * extra + 1)


def test_a_pass_over_another_split_is_refused():
    trainer = build.trainer("clip")
    pairs = trainer.method.pairs
    with pytest.raises(KeyError, match="test"):
        trainer.scan(lambda i, t: {}, pairs=type(pairs)(pairs.images, pairs.captions, "test"))
