"""What backbones share: a learned temperature, and similarities in full precision."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

MAX_LOGIT_SCALE = math.log(100)


def full(x: Tensor) -> Tensor:
    """Half precision made single."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def full_precision(function: Any) -> Any:
    """Similarities are computed in full precision under autocast too: a step of bf16 is 0.1 of a logit."""

    @functools.wraps(function)
    def inner(self: Any, first: Tensor, *others: Tensor) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return function(self, full(first), *map(full, others))

    return inner


class Scaled(nn.Module):
    """A backbone with a learned temperature: `logits` are its similarities times exp(logit_scale)."""

    couples_pairs = False
    published_head: Mapping[str, Tensor] | None = None

    def __init__(self, logit_scale: Tensor | float) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.as_tensor(logit_scale))

    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        raise NotImplementedError

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        logits: Tensor = self.logit_scale.exp() * self.similarity(images, texts)
        return logits

    @torch.no_grad()
    def constrain(self) -> None:
        """Called after each optimizer step: the temperature stays above 1 / 100 (CLIP, section 2.5)."""
        self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
