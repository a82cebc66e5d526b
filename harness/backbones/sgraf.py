"""Backbone `sgraf`: SGR and SAF of SGRAF (Diao et al., AAAI 2021) on region features and word ids.

This is the network of NCR, MSCN and most of the field. Parameters have the names of the released code, so
that its checkpoints load. An image is R region features (36 x 2048), a caption is word ids. The similarity
vector of a pair comes from attention of the caption's words over the image's regions. See `alignment.py` for
the computation of many pairs at once.

Shapes: R regions of width F, L words, width D of the embeddings (`embed`), width S of the similarity vectors
(`similarity`), M images with N captions for all pairs, B for the diagonal (image k with caption k).
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
from torch._subclasses.fake_tensor import is_fake

from harness.backbones.alignment import attend, distances, tiles, unit
from harness.backbones.base import BackboneConfig, BackboneSetup, Scaled, with_lengths
from harness.backbones.features import Inputs, RegionInputs
from harness.backbones.published import read_published
from harness.backbones.rows import (
    MOMENTUM,
    PairDropout,
    RowsBatchNorm,
    Stream,
    columns_over_processes,
    gather_pair,
)
from harness.data.base import DataError, DataSet
from harness.data.vocabulary import Vocabulary
from harness.lib.files import file_digest, is_file
from methods.base import Batch, cudnn_switched
from methods.precision import full_precision
from methods.seeding import seed_of


class SgrafConfig(BackboneConfig):
    """The fields of `backbone:` in a sweep file for the kind `sgraf`.

    Defaults are those of SGRAF's released code.

    Attributes:
        module: SGR (similarity graph reasoning) or SAF (similarity attention filtration).
        embed: width D of regions, words and global vectors.
        similarity: width S of the similarity vectors.
        word: width of the word embeddings.
        steps: reasoning steps of SGR.
        dropout: probability of dropout in the word embeddings and both self-attentions.
        vocabulary: a file `*_vocab.json`. If null, the one in the data set is used, or one is built from its
            training captions.
        pretrained: a checkpoint of SGRAF's, NCR's or MSCN's released code, or null.
        temperature: initial temperature of `logits`, for losses that need one. The published losses do not.
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
    """Inputs and networks of the backbone `sgraf`. See `BackboneSetup`."""

    Config = SgrafConfig
    takes = "regions"

    @property
    def aligned(self) -> bool:
        """Whether there is a checkpoint."""
        return self.config.pretrained is not None

    @staticmethod
    def check(config: SgrafConfig) -> str | None:
        """Check that the configured files exist."""
        for name, file in (("vocabulary", config.vocabulary), ("pretrained", config.pretrained)):
            if file is not None and not is_file(file):
                return f"{name}: {file} does not exist"
        return None

    def inputs(
        self, data: DataSet, split: str, *, device: torch.device | str = "cpu", quiet: bool = True
    ) -> RegionInputs:
        """Region features [b, R, F] and word ids [b, L] (0 is padding). See `BackboneSetup.inputs`.

        Raises:
            DataError: the vocabulary is invalid, or the data set has several.
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
        """The configured vocabulary, else that of the data set, else one built from its training captions.

        Raises:
            DataError: the file is not a vocabulary, or the data set has several.
        """
        if self.config.vocabulary is not None:
            return Vocabulary.read(Path(self.config.vocabulary))
        if len(data.vocabularies) > 1:
            names = ", ".join(f.name for f in data.vocabularies)
            raise DataError(
                f"data set {data.name!r} has several vocabularies ({names}): name one in backbone.vocabulary"
            )
        return (
            Vocabulary.read(data.vocabularies[0])
            if data.vocabularies
            else Vocabulary.build(data["train"].captions)
        )

    def identity(self, data: DataSet) -> str:
        """16 hex digits of the word ids and the checkpoint.

        Raises:
            DataError: see `vocabulary`.
        """
        pretrained = self.config.pretrained and file_digest(Path(self.config.pretrained))
        return hashlib.sha256(
            repr((sorted(self.vocabulary(data).ids.items()), pretrained)).encode()
        ).hexdigest()[:16]

    def make(self, network: int, seed: int, inputs: Inputs) -> SgrafBackbone:
        """A network initialised from (seed, network) or the checkpoint. See `BackboneSetup.make`.

        Raises:
            DataError: the checkpoint cannot be read, or its weights have other shapes.
        """
        assert isinstance(inputs, RegionInputs)
        return self._network(network, seed, inputs.regions.shape[1:], len(inputs.vocabulary))

    def _network(self, network: int, seed: int, regions: tuple[int, int], words: int) -> SgrafBackbone:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "init", network))
            backbone = SgrafBackbone(self.config, regions, words, network)
        if self.config.pretrained is not None:
            weights, head = read_published(Path(self.config.pretrained), network)
            backbone.load_published(weights, head, self.config.pretrained)
        return backbone


class FormedVectors:
    """Similarity vectors in memory, as `methods.base.Vectors`.

    Args:
        vectors: [..., S].
    """

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors

    @full_precision
    def project(self, weight: Tensor, bias: Tensor) -> Tensor:
        """A linear layer over each vector: [H, S], [H] -> [..., H]."""
        return F.linear(self.vectors, weight, bias)


class SgrafBackbone(Scaled):
    """SGR or SAF as a `methods.base.Backbone`; similarities are in (0, 1).

    The embedding of an image is [1 + R, D]: its global vector, then its regions. The embedding of a caption
    is [1 + L, D]: its global vector, then its words, and zeros at padding. Embeddings of a batch are rows of
    a tensor, so a method may index them.

    Args:
        config: the configuration.
        regions: (R, F), number and width of the regions of an image.
        words: number of word ids.
        network: number of the network within the method, for its dropout masks.
    """

    sigmoid = True

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
        """Embeddings of the global batch, or `then` of them. See `methods.base.Backbone`.

        A batch that is divided among processes needs `lengths`.
        """
        self.stream.restart(batch)
        lengths = count_words(batch.texts) if batch.lengths is None else batch.lengths
        longest = int(lengths.max()) if len(lengths) else 0  # all processes pad to the same length
        own = lengths[batch.start : batch.start + len(batch.texts)] if batch.sharded else lengths
        images = self.encode_image(batch.images)
        texts = self.encode_text(F.pad(batch.texts, (0, longest - batch.texts.shape[1])), own)
        images, texts = gather_pair(images, texts, batch)
        texts = with_lengths(texts, lengths)
        return then(images, texts) if then else (images, texts)

    def encode_image(self, images: Tensor) -> Tensor:
        """Region features [b, R, F] -> [b, 1 + R, D]."""
        regions = unit(self.img_enc.fc(images).to(self.dtype))
        global_vector = self.sim_enc.v_global_w(regions)
        return torch.cat([global_vector[:, None], regions], 1)

    def encode_text(self, texts: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Word ids [b, L], and numbers of words [b] on the CPU where they are known -> [b, 1 + L, D]."""
        mask = texts != 0
        lengths = count_words(texts) if lengths is None else lengths
        words = unit(self.txt_enc(texts, lengths).to(self.dtype)) * mask[..., None]
        global_vector = self.sim_enc.t_global_w(words, mask)
        return with_lengths(torch.cat([global_vector[:, None], words], 1), lengths)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters, and of the embeddings under autocast too."""
        return self.logit_scale.dtype

    def pooled(self, embeddings: Tensor) -> Tensor:
        """Global vectors of images or captions, unit vectors: [b, 1 + R, D] or [b, 1 + L, D] -> [b, D]."""
        return embeddings[:, 0]

    @full_precision
    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        """Similarities of all pairs: [M, 1 + R, D], [N, 1 + L, D] -> [M, N], in (0, 1)."""
        return self.sim_enc.score(self.sim_enc.all_vectors(images, texts))

    @full_precision
    def pair_similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        """Similarities of the diagonal: [B, 1 + R, D], [B, 1 + L, D] -> [B], in (0, 1)."""
        return self.sim_enc.score(self.sim_enc.pair_vectors(images, texts))

    @full_precision
    def vectors(self, images: Tensor, texts: Tensor) -> FormedVectors:
        """Similarity vectors of all pairs: [M, 1 + R, D], [N, 1 + L, D] -> [M, N, S]."""
        return FormedVectors(self.sim_enc.all_vectors(images, texts))

    @full_precision
    def pair_vectors(self, images: Tensor, texts: Tensor) -> FormedVectors:
        """Similarity vectors of the diagonal: [B, 1 + R, D], [B, 1 + L, D] -> [B, S]."""
        return FormedVectors(self.sim_enc.pair_vectors(images, texts))

    def load_published(
        self, weights: Mapping[str, Tensor], head: Mapping[str, Tensor] | None, source: str
    ) -> None:
        """Load weights of a released checkpoint, as `published.read_published` returns them.

        Args:
            weights: parameters and buffers by name. All are needed, except `logit_scale` and, if there is a
                head, the last layer.
            head: MSCN's similarity head, which replaces the last layer; or None.
            source: name of the checkpoint, for error messages.

        Raises:
            DataError: a tensor is missing, left over, or of another shape; the message lists them.
        """
        if head is not None:
            self.published_head = head
            self.sim_enc.sim_eval_w = PublishedHead(head, self.vector_size, source)
        expected = {
            k: v
            for k, v in self.state_dict().items()
            if k != "logit_scale" and not (head and "sim_eval_w" in k)
        }
        errors = [f"{k} is missing" for k in expected if k not in weights]
        errors += [f"{k} is not part of this network" for k in weights if k not in expected]
        errors += [
            f"{k}: expected {tuple(expected[k].shape)}, found {tuple(v.shape)}"
            for k, v in weights.items()
            if k in expected and v.shape != expected[k].shape
        ]
        if errors:
            raise DataError(f"checkpoint {source} does not fit the backbone: " + "; ".join(errors[:12]))
        self.load_state_dict(dict(weights), strict=False)


class PublishedHead(nn.Sequential):
    """MSCN's similarity head from a checkpoint, as last layer: [..., S] -> [..., 1], before the sigmoid.

    Args:
        weights: the head's parameters under the names of the released code.
        size: width S of the similarity vectors.
        source: name of the checkpoint, for error messages.

    Raises:
        DataError: the parameters have other names or shapes.
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
        shapes = {name: tuple(p.shape) for name, p in weights.items()}
        if shapes != expected:
            raise DataError(f"checkpoint {source}: similarity head: expected {expected}, found {shapes}")
        self.load_state_dict(dict(zip(self.state_dict(), (weights[name] for name in names), strict=True)))


class ImageEncoder(nn.Module):
    """The linear layer `fc` on region features, [b, R, F] -> [b, R, D].

    Args:
        width: F.
        embed: D.
    """

    def __init__(self, width: int, embed: int) -> None:
        super().__init__()
        self.fc = _linear(width, embed)


class TextEncoder(nn.Module):
    """Word embeddings and a bidirectional GRU; the states of both directions are averaged.

    Args:
        words: number of word ids.
        word: width of the word embeddings.
        embed: D.
        dropout: probability of dropout in the word embeddings.
        stream: source of the dropout masks.
    """

    def __init__(self, words: int, word: int, embed: int, dropout: float, stream: Stream) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, word)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        self.dropout = PairDropout(dropout, stream)
        self.cap_rnn = _Gru(word, embed, batch_first=True, bidirectional=True)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Word ids [b, L] and numbers of words [b], on the CPU -> states [b, L, D], not normalised."""
        words: Tensor = self.dropout(self.embed(tokens))
        if not len(tokens):  # a process without a share of the batch
            return words.new_zeros(0, tokens.shape[1], self.cap_rnn.hidden_size)
        descending, order = lengths.sort(descending=True)
        step = torch.arange(int(descending[0]))[:, None]
        present = step < descending  # [steps of the GRU, b]
        # The words step by step, as a packed sequence has them: from known lengths, so that nothing waits for
        # the device.
        places = (order * tokens.shape[1] + step)[present].to(words.device, non_blocking=True)
        packed = nn.utils.rnn.PackedSequence(words.flatten(0, 1)[places], present.sum(1))
        with torch.autocast(tokens.device.type, enabled=False):  # under which cuDNN's GRU would run in fp16
            output = self.cap_rnn(packed)[0].data
        states = output.new_zeros(tokens.numel(), output.shape[1]).index_put((places,), output)
        forward, backward = states.view(*tokens.shape, -1).chunk(2, -1)
        mean: Tensor = (forward + backward) / 2
        return mean


def count_words(texts: Tensor) -> Tensor:
    """Numbers of words of captions: word ids [b, L] -> [b], on the CPU. Waits for the device."""
    return (texts != 0).sum(1).cpu()


def known_lengths(texts: Tensor, mask: Tensor) -> Tensor:
    """Numbers of words by which captions are sorted and trimmed, [n] on the CPU; waits for no device.

    Args:
        texts: embeddings [n, 1 + L, D].
        mask: bool [n, L], false at padding.

    Returns:
        The numbers that `texts` carries, else those of the mask on a CPU; on another device, or where no
        numbers are computed, L for each caption, which takes time but changes no result.
    """
    carried: Tensor | None = getattr(texts, "lengths", None)
    if carried is not None:
        return carried
    at_hand = mask.device.type == "cpu" and not is_fake(mask)
    return mask.sum(1) if at_hand else torch.full((len(mask),), mask.shape[1])


class _Gru(nn.GRU):
    """A GRU that uses parameters replaced by `torch.func.functional_call`.

    `nn.GRU` reads its parameters from a list that a replacement does not reach.
    """

    def forward(self, input: Any, hx: Tensor | None = None) -> Any:
        self._flat_weights = [getattr(self, name) for name in self._flat_weights_names]
        usable = torch.backends.cudnn.enabled and (self.training or not torch.is_grad_enabled())
        with cudnn_switched(enabled=usable):  # cuDNN has no gradient in evaluation mode
            return super().forward(input, hx)


class SimilarityEncoder(nn.Module):
    """Similarity vectors of pairs, and the last layer, which maps them to similarities.

    Args:
        config: the configuration.
        regions: number R of regions of an image.
        stream: source of the dropout masks.

    Attributes:
        filters: whether the module is SAF.
    """

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
        """Similarities of pairs from their vectors: [..., S] -> [...], in (0, 1)."""
        scores: Tensor = self.sim_eval_w(vectors).squeeze(-1).sigmoid()
        return scores

    def all_vectors(self, images: Tensor, texts: Tensor) -> Tensor:
        """Similarity vectors of all pairs: [M, 1 + R, D], [N, 1 + L, D] -> [M, N, S].

        In training, captions are divided among processes, and SAF updates its running statistics.
        """

        mask = (texts[:, 1:] != 0).any(-1)
        lengths = known_lengths(texts, mask)

        def compute(part: slice) -> tuple[Tensor, ...]:
            ascending, order = lengths[part].sort(stable=True)
            order = order.to(texts.device, non_blocking=True)
            captions, masks = texts[part][order], mask[part][order]
            results = [
                self._tile(images, captions[tile, : 1 + longest], masks[tile, :longest], pairs=False)
                for tile, longest in tiles(ascending.tolist(), len(images), texts.device)
            ]
            inverse = order.argsort()
            return tuple(torch.cat(columns, 1)[:, inverse] for columns in zip(*results, strict=True))

        count = len(texts)
        vectors, *statistics = (
            columns_over_processes(compute, count) if self.training else compute(slice(0, count))
        )
        self._keep(statistics)
        return vectors

    def pair_vectors(self, images: Tensor, texts: Tensor) -> Tensor:
        """Similarity vectors of the diagonal: [B, 1 + R, D], [B, 1 + L, D] -> [B, S].

        In training, SAF updates its running statistics.
        """
        mask = (texts[:, 1:] != 0).any(-1)
        longest = int(known_lengths(texts, mask).max())
        vectors, *statistics = self._tile(images, texts[:, : 1 + longest], mask[:, :longest], pairs=True)
        self._keep(statistics)
        return vectors[0]

    def _tile(self, images: Tensor, texts: Tensor, mask: Tensor, *, pairs: bool) -> tuple[Tensor, ...]:
        """Vectors of a tile, [M, n, S] or for pairs [1, n, S]; and statistics [2, n] of SAF in training.

        Args:
            images: embeddings [M, 1 + R, D].
            texts: embeddings [n, 1 + L, D].
            mask: bool [n, L], false at padding.
            pairs: score the diagonal only; then M = n.
        """
        regions, words = images[:, 1:], texts[:, 1:]
        if not pairs:
            words = words.flatten(0, 1)
        local = (
            distances(attend(regions, words, mask), regions, words, self.sim_tranloc_w.weight)
            + self.sim_tranloc_w.bias
        )
        difference = images[:, 0] - texts[:, 0] if pairs else images[:, None, 0] - texts[None, :, 0]
        overall = self.sim_tranglo_w(difference.square())
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
    """Self-attention that pools the regions of an image into its global vector (released code).

    Weights come from the agreement of each region with the mean of the regions.

    Args:
        embed: D.
        regions: R.
        dropout: probability of dropout.
        stream: source of the dropout masks.
    """

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
        """Regions [b, R, D] -> global vectors [b, D], unit vectors."""
        common = self.embedding_local(regions) * self.embedding_global(regions.mean(1))[:, None]
        weights = self.embedding_common(common).softmax(1)
        return unit((weights * regions).sum(1))


class TextAttention(nn.Module):
    """Self-attention that pools the words of a caption into its global vector (released code).

    Weights come from the agreement of each word with the mean of the words.

    Args:
        embed: D.
        dropout: probability of dropout.
        stream: source of the dropout masks.
    """

    def __init__(self, embed: int, dropout: float, stream: Stream) -> None:
        super().__init__()
        self.embedding_local = nn.Sequential(_linear(embed, embed), nn.Tanh(), PairDropout(dropout, stream))
        self.embedding_global = nn.Sequential(_linear(embed, embed), nn.Tanh(), PairDropout(dropout, stream))
        self.embedding_common = nn.Sequential(_linear(embed, 1))

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        """Words [b, L, D], zeros where `mask` [b, L] is false -> global vectors [b, D], unit vectors."""
        mean = words.sum(1) / mask.sum(1, keepdim=True)
        common = self.embedding_local(words) * self.embedding_global(mean)[:, None]
        weights = self.embedding_common(common).masked_fill(~mask[..., None], -torch.inf).softmax(1)
        return unit((weights * words).sum(1))


class Reasoning(nn.Module):
    """One step of SGR (SGRAF, "Similarity Graph Reasoning").

    The nodes of a pair are its global alignment and its local ones, one for each word. A step takes for each
    node the attention-weighted mean of all nodes of the pair, and applies a linear layer and a ReLU.

    Queries and keys occur only in their product, so one projection by the product of both matrices replaces
    two. The bias of the keys adds the same number for all nodes and cancels in the softmax.

    Args:
        size: S.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.graph_query_w, self.graph_key_w, self.sim_graph_w = (_linear(size, size) for _ in range(3))

    def forward(self, nodes: Tensor, mask: Tensor, *, only_first: bool = False) -> Tensor:
        """Nodes [M, n, 1 + L, S] and mask [n, 1 + L] -> updated nodes, [M, n, 1 + L, S].

        With `only_first`, the global node alone, [M, n, 1, S].
        """
        updated = nodes[:, :, :1] if only_first else nodes
        query, key = self.graph_query_w, self.graph_key_w
        queries = updated @ (query.weight.T @ key.weight) + query.bias @ key.weight
        edges = (queries @ nodes.mT).masked_fill(~mask[:, None], -torch.inf).softmax(-1)
        reasoned: Tensor = self.sim_graph_w(edges @ nodes).relu()
        return reasoned


class Filtration(nn.Module):
    """SAF: a sum of a pair's nodes weighted by sigmoid gates (SGRAF, "Similarity Attention Filtration").

    As in the released code, batch normalisation of the gates takes the statistics of one caption, over all
    images and the nodes of that caption. Running values are updated caption after caption.

    Args:
        size: S.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.attn_sim_w = _linear(size, 1)
        self.bn = nn.BatchNorm1d(1, momentum=MOMENTUM)

    def forward(self, nodes: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Nodes [M, n, 1 + L, S] and mask [n, 1 + L] -> similarity vectors [M, n, S].

        In training also the mean and unbiased variance of the gates of each caption, [2, n], for `keep`.
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
        """Update the running values for n captions in turn.

        Args:
            statistics: [2, n], mean and unbiased variance of each caption.
        """
        count = statistics.shape[1]
        ages = torch.arange(count - 1, -1, -1, device=statistics.device)
        added = MOMENTUM * (statistics * (1 - MOMENTUM) ** ages).sum(1)
        for running, value in zip((self.bn.running_mean, self.bn.running_var), added, strict=True):
            assert running is not None
            running.mul_((1 - MOMENTUM) ** count).add_(value)
        assert self.bn.num_batches_tracked is not None
        self.bn.num_batches_tracked.add_(count)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with Glorot's uniform initialisation and zero bias, as in the released code."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
