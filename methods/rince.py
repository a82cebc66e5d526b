"""RINCE (CVPR 2022): a loss between InfoNCE and one that tolerates symmetric noise exactly."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from methods.base import Positive, PositiveShare
from methods.predicting import OnLogits


class RINCE(OnLogits):
    """Robust InfoNCE: with q near 0 it is InfoNCE, with q = 1 every pair has the same weight.

    Source: Chuang et al., CVPR 2022; released code (ImageNet/simclr/simclr_module.py:320-323). Ours:
    the mean of both directions, whose negatives are captions for an image and images for a caption. The
    temperature is fixed, since a learned one could lower the loss by itself. The loss may be negative.

    Args:
        temperature: in units of the similarity (released code: 0.1 with SimCLR).
        q: exponent, in (0, 1] (released code: 0.1).
        weight: lambda, of positive and negatives together (released code: 0.01).
        common: the arguments of `Method`.
    """

    paper = "RINCE (CVPR 2022)"

    def __init__(
        self, *, temperature: Positive = 0.1, q: PositiveShare = 0.1, weight: Positive = 0.01, **common: Any
    ) -> None:
        super().__init__(temperature=temperature, **common)
        self.q, self.weight = q, weight

    def losses(self, logits: Tensor) -> Tensor:
        """See `robust_losses`."""
        return robust_losses(logits, self.q, self.weight)


def robust_losses(logits: Tensor, q: float, weight: float) -> Tensor:
    """-e^(q z_kk) / q + (lambda sum_j e^(z_kj))^q / q, averaged over both directions: [B, B] -> [B].

    Args:
        logits: similarities divided by the temperature.
        q: exponent.
        weight: lambda.
    """
    positive = (q * logits.diagonal()).exp()
    by_image, by_text = ((q * (math.log(weight) + logits.logsumexp(d))).exp() for d in (1, 0))
    return ((by_image + by_text) / 2 - positive) / q
