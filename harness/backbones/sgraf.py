"""Backbone `sgraf`: SGR and SAF (Diao et al., AAAI 2021) on region features and word ids.

The network of NCR, MSCN and most of the field, under the parameter names of their released code, so that
their checkpoints load. An image is R region features (36 x 2048), a caption is word ids; every pair gets a
similarity vector from attention of its words over its regions. See `alignment.py` for how pairs are scored
together.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from harness.backbones.alignment import attend, distances, tiles, unit
from harness.backbones.base import BackboneConfig, BackboneSetup, Scaled, full_precision
from harness.backbones.features import Inputs, RegionInputs
from harness.backbones.published import read_published
from harness.backbones.rows import (
    MOMENTUM,
    PairDropout,
    RowsBatchNorm,
    Stream,
    columns_over_processes,
    gather_pair,
    largest_over_processes,
)
from harness.data.base import DataError, DataSet
from harness.data.vocabulary import Vocabulary
from harness.lib.files import file_digest, is_file
from methods.base import Batch
from methods.seeding import seed_of


class SgrafConfig(BackboneConfig):
    """The fields of `backbone:` in a sweep file for the kind `sgraf`. Defaults are those of the released
    code.

    Attributes:
        module: SGR (graph reasoning over the alignments) or SAF (attention filtration).
        embed: width of regions, words and global vectors.
        similarity: width of the similarity vector.
        word: width of the word embeddings.
        steps: reasoning steps of SGR.
        dropout: of word embeddings and of both self-attentions.
        vocabulary: a `*_vocab.json`; null: the one that came with the data set, else one made of its training
            captions.
        pretrained: a checkpoint of SGRAF's, NCR's or MSCN's released code, or null.
        temperature: initial temperature of `logits`, for losses that need one (the published losses do not).
    """

    kind: Literal["sgraf"] = "sgraf"
    module: Literal["SGR", "SAF"] = "SGR"
    embed: Annotated[int, Field(ge=1)] = 1024
    similarity: Annotated[int, Field(ge=1)] = 256
    word: Annotated[int, Field(ge=1)] = 300
    steps: Annotated[int, Field(ge=1)] = 3
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.4
    vocabulary: str | None = None
    pretrained: str | None = None
    temperature: Annotated[float, Field(gt=0)] = 0.07


class SgrafSetup(BackboneSetup[SgrafConfig]):
    """What a trial needs of the backbone: inputs for a data set, and networks."""

    Config = SgrafConfig
    takes = "regions"

    @staticmethod
    def check(config: SgrafConfig) -> str | None:
        for name, file in (("vocabulary", config.vocabulary), ("pretrained", config.pretrained)):
            if file is not None and not is_file(file):
                return f"{name}: {file} does not exist"
        return None

    def inputs(
        self, data: DataSet, split: str, *, device: torch.device | str = "cpu", quiet: bool = True
    ) -> RegionInputs:
        """Region features [b, R, F] by image, word ids [b, L] (0 is padding) by caption.

        Raises:
            DataError: the images are pictures, or a vocabulary is not one.
        """
        return RegionInputs(data[split], self.vocabulary(data))

    def _check_fit(self, data: DataSet, networks: int) -> str | None:
        """Check the shape of the regions, the vocabulary, and the checkpoint with both."""
        shape = tuple(data["train"].images.shape)  # type: ignore[attr-defined]
        if len(shape) != 3:
            return (
                f"backbone sgraf needs region features of shape (images, regions, width), and {data.name!r} "
                f"has {shape}"
            )
        try:
            words = len(self.vocabulary(data))
            for network in range(networks if self.config.pretrained else 0):
                self._network(network, 0, shape[1:], words)
        except DataError as error:
            return str(error)
        return None

    def vocabulary(self, data: DataSet) -> Vocabulary:
        """The configured one; else that of the data set; else one made of its training captions.

        Raises:
            DataError: the file is no vocabulary, or the data set came with several.
        """
        if self.config.vocabulary is not None:
            return Vocabulary.read(Path(self.config.vocabulary))
        if len(data.vocabularies) > 1:
            names = ", ".join(f.name for f in data.vocabularies)
            raise DataError(
                f"data set {data.name!r} holds several vocabularies ({names}): name one in "
                f"backbone.vocabulary"
            )
        return (
            Vocabulary.read(data.vocabularies[0])
            if data.vocabularies
            else Vocabulary.build(data["train"].captions)
        )

    def identity(self, data: DataSet) -> str:
        """16 hex digits of the word ids and the checkpoint."""
        pretrained = self.config.pretrained and file_digest(Path(self.config.pretrained))
        return hashlib.sha256(
            repr((sorted(self.vocabulary(data).ids.items()), pretrained)).encode()
        ).hexdigest()[:16]

    def make(self, network: int, seed: int, inputs: Inputs) -> SgrafBackbone:
        """Network number `network` for such inputs, initialised from (seed, network) or from the checkpoint.

        Raises:
            DataError: the checkpoint cannot be read, or has other sizes.
        """
        assert isinstance(inputs, RegionInputs)
        return self._network(network, seed, inputs.regions.shape[1:], len(inputs.vocabulary))

    def _network(self, network: int, seed: int, regions: tuple[int, int], words: int) -> SgrafBackbone:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "init", network))
            made = SgrafBackbone(self.config, regions, words, network)
        if self.config.pretrained is not None:
            weights, head = read_published(Path(self.config.pretrained), network)
            made.load_published(weights, head, self.config.pretrained)
        return made


class FormedVectors:
    """Similarity vectors [..., S] that stand in memory; see `methods.base.Vectors`."""

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors

    @full_precision
    def project(self, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(self.vectors, weight, bias)


class SgrafBackbone(Scaled):
    """Regions and words to similarity vectors and similarities in (0, 1).

    An image's embedding is [1 + R, D]: its global vector, then its regions. A caption's is [1 + L, D]: its
    global vector, then its words, zeros after the last. Both are rows of a tensor, so a method may index
    them.
    """

    def __init__(self, config: SgrafConfig, regions: tuple[int, int], words: int, network: int) -> None:
        super().__init__(-math.log(config.temperature))
        count, width = regions
        self.stream = Stream(network)
        self.img_enc = ImageEncoder(width, config.embed)
        self.txt_enc = TextEncoder(words, config.word, config.embed, config.dropout, self.stream)
        self.sim_enc = SimilarityEncoder(config, count, self.stream)
        self.vector_size = config.similarity
        self.couples_pairs = config.module == "SAF"

    def forward(self, batch: Batch, then: Any = None) -> Any:
        self.stream.restart(batch)
        longest = int((batch.texts != 0).sum(1).max()) if len(batch.texts) else 0
        if batch.sharded:  # all processes pad alike
            longest = largest_over_processes(longest, batch.texts.device)
        images = self.encode_image(batch.images)
        texts = self.encode_text(F.pad(batch.texts, (0, longest - batch.texts.shape[1])))
        images, texts = gather_pair(images, texts, batch)
        return then(images, texts) if then else (images, texts)

    def encode_image(self, images: Tensor) -> Tensor:
        """Region features [b, R, F] -> [b, 1 + R, D]."""
        regions = unit(self.img_enc.fc(images).to(self.dtype))
        overall = self.sim_enc.v_global_w(regions)
        return torch.cat([overall[:, None], regions], 1)

    def encode_text(self, texts: Tensor) -> Tensor:
        """Word ids [b, L] -> [b, 1 + L, D]."""
        mask = texts != 0
        words = unit(self.txt_enc(texts, mask.sum(1)).to(self.dtype)) * mask[..., None]
        overall = self.sim_enc.t_global_w(words, mask)
        return torch.cat([overall[:, None], words], 1)

    @property
    def dtype(self) -> torch.dtype:
        return self.logit_scale.dtype

    def pooled(self, embeddings: Tensor) -> Tensor:
        """The global unit vectors of images or texts: [b, 1 + R, D] -> [b, D]."""
        return embeddings[:, 0]

    @full_precision
    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        return self.sim_enc.score(self.sim_enc.all_vectors(images, texts))

    @full_precision
    def pair_similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        return self.sim_enc.score(self.sim_enc.pair_vectors(images, texts))

    @full_precision
    def vectors(self, images: Tensor, texts: Tensor) -> FormedVectors:
        return FormedVectors(self.sim_enc.all_vectors(images, texts))

    @full_precision
    def pair_vectors(self, images: Tensor, texts: Tensor) -> FormedVectors:
        return FormedVectors(self.sim_enc.pair_vectors(images, texts))

    def load_published(
        self, weights: Mapping[str, Tensor], head: Mapping[str, Tensor] | None, source: str
    ) -> None:
        """Take over weights under the published names; a head of MSCN's takes the place of the last layer.

        Raises:
            DataError: a tensor is missing, left over, or of another shape.
        """
        if head is not None:
            self.published_head = head
            self.sim_enc.sim_eval_w = PublishedHead(head, self.vector_size, source)
        own = {
            k: v
            for k, v in self.state_dict().items()
            if k != "logit_scale" and not (head and "sim_eval_w" in k)
        }
        faults = [f"{k} is missing" for k in own if k not in weights]
        faults += [f"{k} is not part of this network" for k in weights if k not in own]
        faults += [
            f"{k}: expected {tuple(own[k].shape)}, found {tuple(v.shape)}"
            for k, v in weights.items()
            if k in own and v.shape != own[k].shape
        ]
        if faults:
            raise DataError(f"checkpoint {source} does not fit the backbone: " + "; ".join(faults[:12]))
        self.load_state_dict(dict(weights), strict=False)


class PublishedHead(nn.Sequential):
    """MSCN's similarity head of a checkpoint, where it scores by itself: [..., S] -> [..., 1], before the
    sigmoid.
    """

    def __init__(self, weights: Mapping[str, Tensor], size: int, source: str) -> None:
        hidden = len(weights.get("first_hidden_layer.fc.bias", ()))
        super().__init__(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        names = [
            f"{layer}.{kind}"
            for layer in ("first_hidden_layer.fc", "output_layer")
            for kind in ("weight", "bias")
        ]
        expected = {name: tuple(p.shape) for name, p in zip(names, self.parameters(), strict=True)}
        found = {name: tuple(p.shape) for name, p in weights.items()}
        if found != expected:
            raise DataError(f"checkpoint {source}: similarity head: expected {expected}, found {found}")
        self.load_state_dict(dict(zip(self.state_dict(), (weights[name] for name in names), strict=True)))


class ImageEncoder(nn.Module):
    """One linear layer on region features."""

    def __init__(self, width: int, embed: int) -> None:
        super().__init__()
        self.fc = _linear(width, embed)


class TextEncoder(nn.Module):
    """Word embeddings and a bidirectional GRU whose directions are averaged."""

    def __init__(self, words: int, word: int, embed: int, dropout: float, stream: Stream) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, word)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        self.dropout = PairDropout(dropout, stream)
        self.cap_rnn = _Gru(word, embed, batch_first=True, bidirectional=True)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """[b, L], [b] -> [b, L, D]."""
        words: Tensor = self.dropout(self.embed(tokens))
        if not len(tokens):  # a process without a share of the batch
            return words.new_zeros(0, tokens.shape[1], self.cap_rnn.hidden_size)
        packed = nn.utils.rnn.pack_padded_sequence(
            words, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        states = nn.utils.rnn.pad_packed_sequence(
            self.cap_rnn(packed)[0], batch_first=True, total_length=tokens.shape[1]
        )[0]
        forward, backward = states.chunk(2, -1)
        return (forward + backward) / 2


class _Gru(nn.GRU):
    """A GRU that sees parameters replaced by `torch.func.functional_call`: the plain one keeps a list of its
    own.
    """

    def forward(self, input: Any, hx: Tensor | None = None) -> Any:
        self._flat_weights = [getattr(self, name) for name in self._flat_weights_names]
        usable = torch.backends.cudnn.enabled and (self.training or not torch.is_grad_enabled())
        with torch.backends.cudnn.flags(enabled=usable):  # cuDNN has no gradient in evaluation mode
            return super().forward(input, hx)


class SimilarityEncoder(nn.Module):
    """Similarity vectors of pairs, and the last layer that makes them similarities."""

    def __init__(self, config: SgrafConfig, regions: int, stream: Stream) -> None:
        super().__init__()
        embed, size, self.filters = config.embed, config.similarity, config.module == "SAF"
        self.v_global_w = ImageAttention(embed, regions, config.dropout, stream)
        self.t_global_w = TextAttention(embed, config.dropout, stream)
        self.sim_tranloc_w = _linear(embed, size)
        self.sim_tranglo_w = _linear(embed, size)
        self.sim_eval_w: nn.Module = _linear(size, 1)
        if self.filters:
            self.SAF_module = Filtration(size)
        else:
            self.SGR_module = nn.ModuleList(Reasoning(size) for _ in range(config.steps))

    def score(self, vectors: Tensor) -> Tensor:
        """[..., S] -> [...], in (0, 1)."""
        scores: Tensor = self.sim_eval_w(vectors).squeeze(-1).sigmoid()
        return scores

    def all_vectors(self, images: Tensor, texts: Tensor) -> Tensor:
        """[M, 1 + R, D], [N, 1 + L, D] -> [M, N, S]. While training, captions are shared out over
        processes.
        """

        def share(texts: Tensor) -> tuple[Tensor, ...]:
            mask = (texts[:, 1:] != 0).any(-1)
            parts, order = [], []
            for rows, longest in tiles(mask.sum(1), len(images)):
                parts.append(
                    self._tile(images, texts[rows, : 1 + longest], mask[rows, :longest], pairs=False)
                )
                order.append(rows)
            back = torch.cat(order).argsort()
            return tuple(torch.cat(of_all, 1)[:, back] for of_all in zip(*parts, strict=True))

        vectors, *statistics = columns_over_processes(share, texts) if self.training else share(texts)
        self._keep(statistics)
        return vectors

    def pair_vectors(self, images: Tensor, texts: Tensor) -> Tensor:
        """[B, 1 + R, D], [B, 1 + L, D] -> [B, S]: image k with caption k."""
        mask = (texts[:, 1:] != 0).any(-1)
        longest = int(mask.sum(1).max())
        vectors, *statistics = self._tile(images, texts[:, : 1 + longest], mask[:, :longest], pairs=True)
        self._keep(statistics)
        return vectors[0]

    def _tile(self, images: Tensor, texts: Tensor, mask: Tensor, *, pairs: bool) -> tuple[Tensor, ...]:
        """Vectors [M, n, S] (for pairs [1, n, S]) and, of SAF in training, its statistics."""
        regions, words = images[:, 1:], texts[:, 1:]
        if not pairs:
            words = words.flatten(0, 1)
        local = (
            distances(attend(regions, words, mask), regions, words, self.sim_tranloc_w.weight)
            + self.sim_tranloc_w.bias
        )
        apart = images[:, 0] - texts[:, 0] if pairs else images[:, None, 0] - texts[None, :, 0]
        overall = self.sim_tranglo_w(apart.square())
        shape = (1 if pairs else len(images), len(texts))
        nodes = torch.cat([unit(overall).view(*shape, 1, -1), unit(local).view(*shape, mask.shape[1], -1)], 2)
        mask = F.pad(mask, (1, 0), value=True)
        if self.filters:
            filtered: tuple[Tensor, ...] = self.SAF_module(nodes, mask)
            return filtered
        for step in self.SGR_module[:-1]:
            nodes = step(nodes, mask)
        return (self.SGR_module[-1](nodes, mask, only_first=True).squeeze(2),)

    def _keep(self, statistics: list[Tensor]) -> None:
        if statistics and self.training:
            self.SAF_module.keep(statistics[0])


class ImageAttention(nn.Module):
    """The global vector of an image: its regions weighted by their agreement with their mean."""

    def __init__(self, embed: int, regions: int, dropout: float, stream: Stream) -> None:
        super().__init__()
        self.embedding_local = nn.Sequential(
            _linear(embed, embed), RowsBatchNorm(regions, stream), nn.Tanh(), PairDropout(dropout, stream)
        )
        self.embedding_global = nn.Sequential(
            _linear(embed, embed), RowsBatchNorm(embed, stream), nn.Tanh(), PairDropout(dropout, stream)
        )
        self.embedding_common = nn.Sequential(_linear(embed, 1))

    def forward(self, regions: Tensor) -> Tensor:
        """[b, R, D] -> [b, D], unit vectors."""
        common = self.embedding_local(regions) * self.embedding_global(regions.mean(1))[:, None]
        weights = self.embedding_common(common).softmax(1)
        return unit((weights * regions).sum(1))


class TextAttention(nn.Module):
    """The global vector of a caption: its words weighted by their agreement with their mean."""

    def __init__(self, embed: int, dropout: float, stream: Stream) -> None:
        super().__init__()
        self.embedding_local = nn.Sequential(_linear(embed, embed), nn.Tanh(), PairDropout(dropout, stream))
        self.embedding_global = nn.Sequential(_linear(embed, embed), nn.Tanh(), PairDropout(dropout, stream))
        self.embedding_common = nn.Sequential(_linear(embed, 1))

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        """[b, L, D], zeros where `mask` [b, L] is false -> [b, D], unit vectors."""
        mean = words.sum(1) / mask.sum(1, keepdim=True)
        common = self.embedding_local(words) * self.embedding_global(mean)[:, None]
        weights = self.embedding_common(common).masked_fill(~mask[..., None], -torch.inf).softmax(1)
        return unit((weights * words).sum(1))


class Reasoning(nn.Module):
    """A step of SGR: every node becomes a weighted mean of all nodes of its pair, a linear layer and a ReLU.

    A query meets a key only in their product, so one projection by both matrices takes the place of two;
    what the key's bias adds is the same for all nodes and falls out of the softmax.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.graph_query_w, self.graph_key_w, self.sim_graph_w = (_linear(size, size) for _ in range(3))

    def forward(self, nodes: Tensor, mask: Tensor, *, only_first: bool = False) -> Tensor:
        """[M, n, 1 + L, S], [n, 1 + L] -> the same, or [M, n, 1, S]: the global node alone."""
        asking = nodes[:, :, :1] if only_first else nodes
        query, key = self.graph_query_w, self.graph_key_w
        asked = asking @ (query.weight.T @ key.weight) + query.bias @ key.weight
        edges = (asked @ nodes.mT).masked_fill(~mask[:, None], -torch.inf).softmax(-1)
        reasoned: Tensor = self.sim_graph_w(edges @ nodes).relu()
        return reasoned


class Filtration(nn.Module):
    """SAF: the sum of a pair's nodes, weighted by sigmoids of their own.

    As released, batch normalisation takes the statistics of one caption: over all images and the caption's
    nodes. Running values are updated caption after caption.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.attn_sim_w = _linear(size, 1)
        self.bn = nn.BatchNorm1d(1, momentum=MOMENTUM)

    def forward(self, nodes: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """[M, n, 1 + L, S], [n, 1 + L] -> [M, n, S], and in training the mean and variance of each caption
        [2, n].
        """
        gate = self.attn_sim_w(nodes).squeeze(-1)
        if self.training:
            count = len(nodes) * mask.sum(1)
            mean = (gate * mask).sum((0, 2)) / count
            variance = ((gate - mean[:, None]) * mask).square().sum((0, 2)) / count
            statistics = [torch.stack([mean, variance * count / (count - 1)]).detach()]
        else:
            mean, variance, statistics = self.bn.running_mean, self.bn.running_var, []
        gate = (gate - mean[:, None]) / (
            variance[:, None] + self.bn.eps
        ).sqrt() * self.bn.weight + self.bn.bias
        weights = gate.sigmoid() * mask
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-8)
        return unit((weights[..., None, :] @ nodes).squeeze(-2)), *statistics

    @torch.no_grad()
    def keep(self, statistics: Tensor) -> None:
        """The running values after an update for each caption in turn: [2, n]."""
        count = statistics.shape[1]
        ages = torch.arange(count - 1, -1, -1, device=statistics.device)
        added = MOMENTUM * (statistics * (1 - MOMENTUM) ** ages).sum(1)
        for running, value in zip((self.bn.running_mean, self.bn.running_var), added, strict=True):
            assert running is not None
            running.mul_((1 - MOMENTUM) ** count).add_(value)
        assert self.bn.num_batches_tracked is not None
        self.bn.num_batches_tracked.add_(count)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """Glorot's uniform initialisation and no bias, as in the released code."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
