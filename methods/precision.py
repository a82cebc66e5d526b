"""Full precision for what compares images with texts, whatever the precision of the rest."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor


def full(x: Tensor) -> Tensor:
    """`x` in single precision if it is in half precision (bf16 or fp16), else `x` itself."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def full_precision(function: Any) -> Any:
    """Decorator of a function, or of a method, of tensors: it runs without autocast, in full precision.

    Similarities are computed so. The resolution of bf16 at a logit of 20 is 0.1.
    """

    @functools.wraps(function)
    def inner(*given: Any, **named: Any) -> Any:
        given = tuple(full(x) if isinstance(x, Tensor) else x for x in given)
        device = next(x.device.type for x in given if isinstance(x, Tensor))
        with torch.autocast(device, enabled=False):
            return function(*given, **named)

    return inner
