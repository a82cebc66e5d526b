"""Backbone `clip`: any open_clip model, trained whole, or with locked towers and trained heads.

Locked towers give the same output every epoch, so it is computed once per (weights, preprocessing, data
set) and kept on disk; a trial then trains the heads alone.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from harness.backbones.base import BackboneConfig, BackboneSetup, Scaled, full, full_precision
from harness.backbones.features import CachedInputs, Inputs, LiveInputs, cached_features
from harness.backbones.rows import PairDropout, Stream, gather_pair, use_pair_dropout
from harness.backbones.towers import Towers, build_towers, check_towers, weights_identity
from harness.data.base import DataSet
from methods.base import Batch
from methods.seeding import seed_of


class HeadConfig(BaseModel):
    """A projection head on each tower: LayerNorm, Linear, GELU, dropout, Linear."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    hidden: Annotated[int, Field(ge=1)] = 512
    dim: Annotated[int, Field(ge=1)] = 256
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2


class ClipConfig(BackboneConfig):
    """The fields of `backbone:` in a sweep file for the kind `clip`.

    Attributes:
        model: an open_clip name, a JSON config file, or `effnet_minilm`.
        pretrained: a tag, a checkpoint file, `packages`, or `none` (random weights, on purpose).
        locked: train the heads alone; needs `head`.
        cache: with locked towers, read their outputs from the disk cache (else compute them anew each time).
        head: the heads, or null to use the model's own embedding.
        image_size: pixels, or null for the model's own.
        temperature: initial temperature of the logits, or null for the model's own.
    """

    kind: Literal["clip"] = "clip"
    model: str = "effnet_minilm"
    pretrained: str = "packages"
    locked: bool = True
    cache: bool = True
    head: HeadConfig | None = HeadConfig()
    image_size: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(gt=0)] | None = 0.07


class ClipSetup(BackboneSetup[ClipConfig]):
    """What a trial needs of the backbone: inputs for a data set, and networks."""

    Config = ClipConfig
    takes = "pictures"

    def __init__(self, config: ClipConfig) -> None:
        super().__init__(config)
        self._towers: Towers | None = None

    @staticmethod
    def check(config: ClipConfig) -> str | None:
        """What is wrong with the configuration beyond its types; None if nothing is."""
        if config.locked and config.head is None:
            return "locked towers without a head leave nothing to train: set locked: false, or give a head"
        return check_towers(model=config.model, pretrained=config.pretrained)

    def identity(self, data: DataSet) -> str:
        """16 hex digits of what the towers' outputs follow from: architecture, weights, library versions."""
        return weights_identity(model=self.config.model, pretrained=self.config.pretrained)[:16]

    @property
    def uses_cache(self) -> bool:
        return self.config.locked and self.config.cache

    def inputs(
        self, data: DataSet, split: str, *, device: torch.device | str = "cpu", quiet: bool = True
    ) -> Inputs:
        """What networks of this backbone take for a split: cached features, or pixels and tokens.

        `device` computes features that are not cached yet; progress is shown unless `quiet`.
        """
        if self.uses_cache:
            key = {
                "weights": weights_identity(model=self.config.model, pretrained=self.config.pretrained),
                "image_size": self.config.image_size,
                "data": data.fingerprint,
                "split": split,
            }
            return CachedInputs(*cached_features(self._load, data[split], key, device=device, quiet=quiet))
        towers = self._load()
        return LiveInputs(data[split], towers.transform, towers.tokenize)

    def make(self, network: int, seed: int, inputs: Inputs) -> ClipBackbone:
        """Network number `network` for such inputs; heads are initialised from (seed, network)."""
        towers, config = None, self.config
        if not self.uses_cache:
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
        """The towers' output widths: those of the features, or of what the towers make of one pair."""
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
    """Similarity vectors sqrt(D) * image * text of all pairs [M, N, D], or of the diagonal [B, D]; see
    `methods.base.Vectors`.

    A linear layer over the vectors of all pairs is a bilinear form, so they are never formed.
    """

    def __init__(self, images: Tensor, texts: Tensor, *, pairs: bool) -> None:
        self.images, self.texts, self.pairs = images, texts, pairs

    @full_precision
    def project(self, weight: Tensor, bias: Tensor) -> Tensor:
        scaled = math.sqrt(self.images.shape[1]) * weight
        if self.pairs:
            return F.linear(self.images * self.texts, scaled, bias)
        left = (self.images[:, None, :] * scaled).flatten(0, 1)  # [M * H, D]
        projected = (left @ self.texts.T).view(len(self.images), len(weight), len(self.texts))
        return projected.transpose(1, 2) + bias


class Head(nn.Sequential):
    """Features [b, F] -> [b, dim]."""

    def __init__(self, features: int, config: HeadConfig, stream: Stream) -> None:
        super().__init__(
            nn.LayerNorm(features),
            nn.Linear(features, config.hidden),
            nn.GELU(),
            PairDropout(config.dropout, stream),
            nn.Linear(config.hidden, config.dim),
        )


class ClipBackbone(Scaled):
    """Two towers (absent where their outputs are cached), two heads, and a learned temperature.

    Embeddings are unit vectors, `similarity` is their cosine. The similarity vector of a pair is the
    element-wise product of its embeddings times sqrt(D), so that its entries are of size 1.
    """

    def __init__(
        self, config: ClipConfig, towers: Towers | None, sizes: tuple[int, int], network: int
    ) -> None:
        own = getattr(towers and towers.model, "logit_scale", None)
        if config.temperature is not None or own is None:
            super().__init__(-math.log(config.temperature or 0.07))
        else:
            super().__init__(own.detach().clone())
        self.stream = Stream(network)
        self.towers = towers
        self.locked = config.locked
        if towers is not None:
            use_pair_dropout(towers, self.stream)
            towers.requires_grad_(not config.locked)
        heads = [Head(size, config.head, self.stream) if config.head else nn.Identity() for size in sizes]
        self.image_head, self.text_head = heads
        self.vector_size = config.head.dim if config.head else sizes[0]
        if own is not None:
            own.requires_grad_(False)  # ours takes its place

    def train(self, mode: bool = True) -> ClipBackbone:
        super().train(mode)
        if self.towers is not None and self.locked:
            self.towers.eval()
        return self

    def forward(self, batch: Batch, then: Any = None) -> Any:
        self.stream.restart(batch)
        images, texts = gather_pair(self.encode_image(batch.images), self.encode_text(batch.texts), batch)
        return then(images, texts) if then else (images, texts)

    def encode_image(self, images: Tensor) -> Tensor:
        """Cached features [b, F] or pixels [b, 3, H, W] -> unit vectors [b, D]."""
        return F.normalize(full(self.image_head(self._tower("encode_image", images))), dim=-1)

    def encode_text(self, texts: Tensor) -> Tensor:
        """Cached features [b, F] or tokens [b, L] -> unit vectors [b, D]."""
        return F.normalize(full(self.text_head(self._tower("encode_text", texts))), dim=-1)

    def _tower(self, name: str, inputs: Tensor) -> Tensor:
        if self.towers is None:
            return inputs
        # Locked towers run in full precision, as those do whose outputs are cached.
        autocast = torch.is_autocast_enabled(inputs.device.type) and not self.locked
        with (
            torch.set_grad_enabled(torch.is_grad_enabled() and not self.locked),
            torch.autocast(inputs.device.type, enabled=autocast),
        ):
            features: Tensor = getattr(self.towers, name)(inputs)
            return features

    def pooled(self, embeddings: Tensor) -> Tensor:
        """One unit vector each: the embeddings themselves."""
        return embeddings

    @full_precision
    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        return images @ texts.T

    def pair_similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        return (images * texts).sum(-1)

    @full_precision
    def vectors(self, images: Tensor, texts: Tensor) -> BilinearVectors:
        return BilinearVectors(images, texts, pairs=False)

    @full_precision
    def pair_vectors(self, images: Tensor, texts: Tensor) -> BilinearVectors:
        return BilinearVectors(images, texts, pairs=True)
