"""RCL (TPAMI 2023): complementary contrastive learning, which only pushes negatives away."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from methods.base import Positive, PositiveShare
from methods.predicting import OnLogits

Form = Literal["log", "tan", "abs", "exp", "gce"]
"""How the probability of a negative becomes a loss."""


class RCL(OnLogits):
    """The probability that each image gives to captions of other pairs, and each caption to other images, is
    lowered; nothing is said of the pair's own.

    A mismatched pair is then pushed with a bounded force: its loss diverges only where one negative takes all
    of the probability.

    Source: Hu et al., TPAMI 2023; released code (RCL-SGRAF/model.py:453-492), with all negatives: its option
    of a random share of them is left out. Ours: softmax without the 1e-10 that it adds to denominators, in
    double precision, since 1 - p of a negative that takes nearly all has no digits in single precision.

    Args:
        temperature: tau, in units of the similarity (released code: 0.05).
        form: f(p) of a negative's probability: `log` -log(1 - p), `tan` tan(p), `abs` p, `exp` exp(p - 1), or
            `gce` (1 - (1 - p)^q) / q (released code: `log`).
        q: exponent of `gce` (released code: shared with the margin of another loss, 0.2).
        common: the arguments of `Method`.
    """

    paper = "RCL (TPAMI 2023)"
    published = ("RCL-SAF", "RCL-SGR", "RCL-SGRAF")

    def __init__(
        self, *, temperature: Positive = 0.05, form: Form = "log", q: PositiveShare = 0.2, **common: Any
    ) -> None:
        super().__init__(temperature=temperature, **common)
        self.form, self.q = form, q

    def losses(self, logits: Tensor) -> Tensor:
        """See `complementary_losses`."""
        return complementary_losses(logits, self.form, self.q)


def complementary_losses(logits: Tensor, form: Form = "log", q: float = 0.2) -> Tensor:
    """Sum over negatives of f(p), both directions added: [B, B] -> [B].

    Args:
        logits: similarities divided by the temperature.
        form: see `RCL`.
        q: see `RCL`.
    """
    diagonal = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    losses = logits.new_zeros(len(logits))
    for p in (logits.double().softmax(1), logits.double().T.softmax(1)):
        others = _penalty(p.masked_fill(diagonal, 0), form, q)
        losses = losses + others.masked_fill(diagonal, 0).sum(1).to(losses.dtype)
    return losses


def _penalty(p: Tensor, form: Form, q: float) -> Tensor:
    """f(p), elementwise."""
    kept = 1 - p + 1e-10  # released code: finite where a negative takes all of the probability
    match form:
        case "log":
            return -kept.log()
        case "tan":
            return p.tan()
        case "abs":
            return p
        case "exp":
            return (p - 1).exp()
        case "gce":
            return (1 - kept**q) / q
