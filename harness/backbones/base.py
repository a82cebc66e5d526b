"""The contract of a backbone, and what backbones share: a learned temperature, similarities in fp32.

A backbone has two halves. Its setup (`BackboneSetup`) is made from the configuration alone: it checks the
configuration and the data, reads or computes inputs, and makes networks. Its networks (`Scaled`) implement
`methods.base.Backbone`, the half that methods see.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from harness.backbones.features import Inputs
from harness.data.base import DataKind, DataSet

MAX_LOGIT_SCALE = math.log(100)
"""Upper bound of `Scaled.logit_scale`: logits are at most 100 times the similarity (CLIP, ICML 2021,
section 2.5)."""


class BackboneConfig(BaseModel):
    """The fields of `backbone:` in a sweep file. A backbone adds its own.

    Attributes:
        kind: a name in `harness.backbones.BACKBONES`, or `package.module:Name` of a `BackboneSetup`.
        later_fields: fields that came after the first records: a trial has them where they are not at their
            default, so that earlier ids stay valid.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    later_fields: ClassVar[tuple[str, ...]] = ()
    kind: str

    def settings(self) -> dict[str, Any]:
        """The fields as JSON, defaults filled in, as a trial has them."""
        fields = type(self).model_fields
        return {
            name: value
            for name, value in self.model_dump(mode="json").items()
            if name not in self.later_fields or getattr(self, name) != fields[name].default
        }


ConfigT = TypeVar("ConfigT", bound=BackboneConfig)


class BackboneSetup(ABC, Generic[ConfigT]):
    """A configured backbone: checks, inputs for a data set, and networks.

    Making one is cheap. Weights are read in `inputs`, `make` and `identity`.

    Attributes:
        Config: the model of this backbone's configuration; its field `kind` has the backbone's name.
        takes: the kind of data that the networks take; `check_data` refuses the other.
        uses_cache: whether `inputs` keeps features or pictures in the disk cache. The sweep then asks for the
            inputs of every split before it schedules trials.
    """

    Config: ClassVar[type[BackboneConfig]]
    takes: ClassVar[DataKind]

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    @property
    def uses_cache(self) -> bool:
        """Whether features or pictures are computed once and cached."""
        return False

    @property
    def aligned(self) -> bool:
        """Whether networks compare images and texts before any training, by weights that were trained to."""
        return False

    @staticmethod
    def check(config: Any) -> str | None:
        """Check a configuration beyond the types of its fields, without building anything.

        Returns:
            An error message, or None if the configuration is valid.
        """
        return None

    def check_data(self, data: DataSet, networks: int) -> str | None:
        """Check that `networks` networks of this backbone can be trained on the data set.

        Returns:
            An error message, or None if they can.
        """
        kind = data["train"].kind
        if kind != self.takes:
            return _wrong_kind(self.config.kind, self.takes, data.name)
        return self._check_fit(data, networks)

    def _check_fit(self, data: DataSet, networks: int) -> str | None:
        """The rest of `check_data`, for data of the kind that the backbone takes."""
        return None

    @abstractmethod
    def identity(self, data: DataSet) -> str:
        """16 hex digits that stand for everything outside the code that determines the networks' outputs.

        They are stored with each record, and a trial resumes only from a checkpoint with the same digits.
        """

    @abstractmethod
    def inputs(
        self, data: DataSet, split: str, *, device: torch.device | str = "cpu", quiet: bool = True
    ) -> Inputs:
        """Inputs of the networks for a split.

        Args:
            data: the data set.
            split: name of one of its splits.
            device: where features that are not cached yet are computed.
            quiet: show no progress.

        Raises:
            DataError: the data cannot be read as this backbone takes it.
        """

    @abstractmethod
    def make(self, network: int, seed: int, inputs: Inputs) -> nn.Module:
        """Make a network (a `methods.base.Backbone`) on the CPU.

        Args:
            network: number of the network within the method, from 0; networks of one trial differ.
            seed: the trial's seed. Equal (seed, network) give equal initial weights.
            inputs: inputs of any split, for their sizes.
        """


def _wrong_kind(backbone: str, takes: DataKind, data: str) -> str:
    if takes == "pictures":
        return f"backbone {backbone} needs pictures, and {data!r} has region features: use the backbone sgraf"
    return (
        f"backbone {backbone} needs region features, and {data!r} has pictures: write them with "
        f"`python -m harness.data export {data} --format scan`, and use `dataset: scan` (in a data set of "
        f'your own, splits with region features are made with kind="regions")'
    )


def with_lengths(texts: Tensor, lengths: Tensor) -> Tensor:
    """Caption embeddings [n, 1 + L, D] that carry their numbers of words, [n] on the CPU, as `lengths`.

    Whatever is made from them, such as rows of them, does not.
    """
    texts.lengths = lengths  # type: ignore[attr-defined]
    return texts


class Scaled(nn.Module):
    """Base class of networks: a learned temperature, `logits` = exp(`logit_scale`) * `similarity`.

    See `methods.base.Backbone` for `couples_pairs`, `sigmoid` and `published_head`.

    Args:
        logit_scale: initial logarithm of the inverse temperature, a scalar.
    """

    couples_pairs = False
    sigmoid = False
    published_head: Mapping[str, Tensor] | None = None

    def __init__(self, logit_scale: Tensor | float) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.as_tensor(logit_scale))

    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        """Similarities of all pairs: embeddings [M, ...], [N, ...] -> [M, N]."""
        raise NotImplementedError

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Similarities of all pairs times the inverse temperature: [M, ...], [N, ...] -> [M, N]."""
        return self.scaled(self.similarity(images, texts))

    def scaled(self, similarity: Tensor) -> Tensor:
        """Similarities times the inverse temperature, of any shape."""
        return self.logit_scale.exp() * similarity

    @torch.no_grad()
    def constrain(self) -> None:
        """Keep the temperature at 1 / 100 or above (CLIP, section 2.5). Called after each optimizer step."""
        self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
