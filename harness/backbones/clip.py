"""Backbone `clip`: any open_clip model, fine-tuned as a whole or with locked towers and trained heads.

Locked towers give the same output in every epoch. It is computed once per (weights, preprocessing, data set)
and kept on disk, and a trial then trains the heads alone.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from harness.backbones.base import BackboneConfig, BackboneSetup, Scaled
from harness.backbones.features import CachedInputs, Inputs, LiveInputs, cached_features
from harness.backbones.pixels import PixelInputs, stored_pixels
from harness.backbones.rows import (
    PairDropout,
    Stream,
    checkpoint_blocks,
    compile_blocks,
    gather_pair,
    use_pair_dropout,
)
from harness.backbones.towers import (
    Towers,
    build_towers,
    check_towers,
    image_library_versions,
    weights_identity,
)
from harness.data.base import DataSet
from methods.base import Batch
from methods.precision import full, full_precision
from methods.seeding import seed_of


class HeadConfig(BaseModel):
    """A projection head on each tower: LayerNorm, Linear, GELU, dropout, Linear.

    Attributes:
        hidden: width of the hidden layer.
        dim: width D of the embeddings.
        dropout: probability that a hidden unit is zeroed in training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    hidden: Annotated[int, Field(ge=1)] = 512
    dim: Annotated[int, Field(ge=1)] = 256
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2


class ClipConfig(BackboneConfig):
    """The fields of `backbone:` in a sweep file for the kind `clip`.

    Attributes:
        model: an open_clip name, a JSON config file, or `effnet_minilm`.
        pretrained: a tag, a checkpoint file, `packages`, or `none` (random weights).
        locked: train the heads alone; needs `head`.
        cache: with locked towers, read their outputs from the disk cache. Without the cache the towers run in
            every step.
        pixel_cache: where the towers run in every step, store the pictures of all splits at the size of the
            model's input, in uint8, once for all trials. `auto`: unless the data are shards, and if the
            pictures take at most a quarter of the free space on the cache's disk. It changes no number.
        head: the heads, or null to use the embeddings of the model.
        image_size: side of the input image in pixels, or null for the model's default.
        temperature: initial temperature of the logits, or null for the model's value.
        checkpointing: keep no activations inside the blocks of unlocked towers, and compute them again in the
            backward pass: large batches fit, a step takes about a fifth more operations, and no number
            changes.
        compile: compile the blocks of towers that run in every step (`torch.compile`): numbers are the same
            up to rounding. Not together with `checkpointing`.
    """

    later_fields = ("checkpointing", "compile")
    kind: Literal["clip"] = "clip"
    model: str = "effnet_minilm"
    pretrained: str = "packages"
    locked: bool = True
    cache: bool = True
    # Left out of dumps at its default: trials on record know no such field.
    pixel_cache: Annotated[Literal["auto", True, False], Field(exclude_if=lambda v: v == "auto")] = "auto"
    head: HeadConfig | None = HeadConfig()
    image_size: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(gt=0)] | None = 0.07
    checkpointing: bool = False
    compile: bool = False


class ClipSetup(BackboneSetup[ClipConfig]):
    """Inputs and networks of the backbone `clip`. See `BackboneSetup`."""

    Config = ClipConfig
    takes = "pictures"

    def __init__(self, config: ClipConfig) -> None:
        super().__init__(config)
        self._towers: Towers | None = None

    @staticmethod
    def check(config: ClipConfig) -> str | None:
        """Check that there is something to train, and the names and files of the towers."""
        if config.locked and config.head is None:
            return "locked towers without a head leave nothing to train: set locked: false, or give a head"
        if config.checkpointing and config.compile:
            return (
                "compile and checkpointing exclude each other: what is compiled decides itself what it keeps"
            )
        return check_towers(model=config.model, pretrained=config.pretrained)

    @property
    def aligned(self) -> bool:
        """Whether the towers come from one model, and no new head is on them."""
        return self.config.head is None and self.config.pretrained not in ("none", "packages")

    def identity(self, data: DataSet) -> str:
        """16 hex digits of the towers' architecture, weights and library versions.

        Raises:
            ValueError: a package with weights is not installed.
        """
        return weights_identity(model=self.config.model, pretrained=self.config.pretrained)[:16]

    @property
    def uses_cache(self) -> bool:
        """Whether outputs of locked towers, or pictures for others, may be kept in the disk cache."""
        return self._reads_features or self.config.pixel_cache is not False

    @property
    def _reads_features(self) -> bool:
        """Whether the towers are locked and their outputs are read from the disk cache."""
        return self.config.locked and self.config.cache

    def inputs(
        self, data: DataSet, split: str, *, device: torch.device | str = "cpu", quiet: bool = True
    ) -> Inputs:
        """Cached features of locked towers, else pixels and token ids. See `BackboneSetup.inputs`.

        Raises:
            ValueError: the towers cannot be built (see `build_towers`).
            DataError: a picture that is to be cached cannot be decoded, or the disk has no room.
        """
        if self._reads_features:
            key = {
                "weights": weights_identity(model=self.config.model, pretrained=self.config.pretrained),
                "image_size": self.config.image_size,
                "data": data.fingerprint,
                "split": split,
                "libraries": image_library_versions(),
            }
            return CachedInputs(*cached_features(self._load, data[split], key, device=device, quiet=quiet))
        towers, stored = self._load(), self.config.pixel_cache
        if towers.spatial and (stored is True or (stored == "auto" and data.shard is None)):
            pixels = stored_pixels(data, split, towers.spatial, required=stored is True, quiet=quiet)
            if pixels is not None:
                return PixelInputs(pixels, data[split], towers.transform, towers.tokenize)
        return LiveInputs(data[split], towers.transform, towers.tokenize)

    def make(self, network: int, seed: int, inputs: Inputs) -> ClipBackbone:
        """A network whose heads are initialised from (seed, network). See `BackboneSetup.make`.

        Raises:
            ValueError: the towers cannot be built (see `build_towers`).
        """
        towers, config = None, self.config
        if not self._reads_features:
            towers = build_towers(
                model=config.model, pretrained=config.pretrained, image_size=config.image_size
            )
        widths = self._widths(inputs, towers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "init", network))
            return ClipBackbone(config, towers, widths, network)

    @staticmethod
    @torch.no_grad()
    def _widths(inputs: Inputs, towers: Towers | None) -> tuple[int, int]:
        """Widths (Fi, Ft) of the towers' outputs, from the cached features or from one pair."""
        first = torch.zeros(1, dtype=torch.long)
        images, texts = inputs.images(first), inputs.texts(first)
        if towers is not None:
            images, texts = towers.eval().encode_image(images), towers.encode_text(texts)
        return images.shape[1], texts.shape[1]

    def _load(self) -> Towers:
        if self._towers is None:
            config = self.config
            self._towers = build_towers(
                model=config.model, pretrained=config.pretrained, image_size=config.image_size
            )
        return self._towers


class BilinearVectors:
    """Similarity vectors sqrt(D) * image * text (element-wise), as `methods.base.Vectors`.

    They are never stored: a linear layer over the vectors of all pairs is a bilinear form.

    Args:
        images: [M, D].
        texts: [N, D].
        pairs: take the diagonal only, vectors [B, D] with B = M = N; otherwise all pairs, [M, N, D].
    """

    def __init__(self, images: Tensor, texts: Tensor, *, pairs: bool) -> None:
        self.images, self.texts, self.pairs = images, texts, pairs

    @full_precision
    def project(self, weight: Tensor, bias: Tensor) -> Tensor:
        """A linear layer over each vector: [H, D], [H] -> [M, N, H], or [B, H] for the diagonal."""
        scaled = math.sqrt(self.images.shape[1]) * weight
        if self.pairs:
            return F.linear(self.images * self.texts, scaled, bias)
        left = (self.images[:, None, :] * scaled).flatten(0, 1)  # [M * H, D]
        projected = (left @ self.texts.T).view(len(self.images), len(weight), len(self.texts))
        return projected.transpose(1, 2) + bias


class Head(nn.Sequential):
    """Projection head on a tower: features [b, F] -> [b, dim].

    Args:
        features: width F.
        config: sizes of the head.
        stream: source of the dropout masks.
    """

    def __init__(self, features: int, config: HeadConfig, stream: Stream) -> None:
        super().__init__(
            nn.LayerNorm(features),
            nn.Linear(features, config.hidden),
            nn.GELU(),
            PairDropout(config.dropout, stream),
            nn.Linear(config.hidden, config.dim),
        )


class ClipBackbone(Scaled):
    """Two towers, two heads and a learned temperature, as a `methods.base.Backbone`.

    Embeddings are unit vectors [b, D], and `similarity` is their cosine. The similarity vector of a pair is
    the element-wise product of its embeddings times sqrt(D), so that its entries are of order 1.

    Args:
        config: the configuration.
        towers: the towers, or None if inputs are their cached outputs.
        sizes: widths (Fi, Ft) of the towers' outputs.
        network: number of the network within the method, for its dropout masks.
    """

    def __init__(
        self, config: ClipConfig, towers: Towers | None, sizes: tuple[int, int], network: int
    ) -> None:
        model_scale = getattr(towers and towers.model, "logit_scale", None)
        if config.temperature is not None or model_scale is None:
            super().__init__(-math.log(config.temperature or 0.07))
        else:
            super().__init__(model_scale.detach().clone())
        self.stream = Stream(network)
        self.towers = towers
        self.locked = config.locked
        if towers is not None:
            use_pair_dropout(towers, self.stream)
            if config.checkpointing and not config.locked:
                checkpoint_blocks(towers, self.stream)
            if config.compile:
                compile_blocks(towers)
            towers.requires_grad_(not config.locked)
        heads = [Head(size, config.head, self.stream) if config.head else nn.Identity() for size in sizes]
        self.image_head, self.text_head = heads
        self.vector_size = config.head.dim if config.head else sizes[0]
        if model_scale is not None:
            model_scale.requires_grad_(False)  # replaced by `logit_scale`

    def train(self, mode: bool = True) -> ClipBackbone:
        """Set training mode, except for locked towers."""
        super().train(mode)
        if self.towers is not None and self.locked:
            self.towers.eval()
        return self

    def forward(self, batch: Batch, then: Any = None) -> Any:
        """Embeddings of the global batch, [total, D] each, or `then` of them. See `methods.base.Backbone`."""
        self.stream.restart(batch)
        images, texts = gather_pair(self.encode_image(batch.images), self.encode_text(batch.texts), batch)
        return then(images, texts) if then else (images, texts)

    def encode_image(self, images: Tensor) -> Tensor:
        """Cached features [b, F] or pixels [b, 3, H, W] (see `Towers.transform`) -> unit vectors [b, D]."""
        return F.normalize(full(self.image_head(self._tower("encode_image", images))), dim=-1)

    def encode_text(self, texts: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Cached features [b, F] or tokens [b, L] -> unit vectors [b, D]. `lengths` are of no use here."""
        return F.normalize(full(self.text_head(self._tower("encode_text", texts))), dim=-1)

    def _tower(self, name: str, inputs: Tensor) -> Tensor:
        if self.towers is None:
            return inputs
        # Locked towers run in full precision, so that results are those of cached features.
        autocast = torch.is_autocast_enabled(inputs.device.type) and not self.locked
        with (
            torch.set_grad_enabled(torch.is_grad_enabled() and not self.locked),
            torch.autocast(inputs.device.type, enabled=autocast),
        ):
            # A process without rows encodes one of zeros, which is dropped: some towers fail without any.
            given = inputs if len(inputs) else inputs.new_zeros(1, *inputs.shape[1:])
            features: Tensor = getattr(self.towers, name)(given)
            return features[: len(inputs)]

    def pooled(self, embeddings: Tensor) -> Tensor:
        """The embeddings themselves, unit vectors [b, D]."""
        return embeddings

    @full_precision
    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        """Cosines of all pairs: [M, D], [N, D] -> [M, N]."""
        return images @ texts.T

    def pair_similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        """Cosines of the diagonal: [B, D], [B, D] -> [B]."""
        return (images * texts).sum(-1)

    @full_precision
    def vectors(self, images: Tensor, texts: Tensor) -> BilinearVectors:
        """Similarity vectors of all pairs: [M, D], [N, D] -> [M, N, D]."""
        return BilinearVectors(images, texts, pairs=False)

    @full_precision
    def pair_vectors(self, images: Tensor, texts: Tensor) -> BilinearVectors:
        """Similarity vectors of the diagonal: [B, D], [B, D] -> [B, D]."""
        return BilinearVectors(images, texts, pairs=True)
