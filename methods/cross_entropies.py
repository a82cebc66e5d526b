"""Cross-entropies at a fixed temperature, plain and as made for classification with wrong labels: controls
for everything else.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from methods.base import Positive, PositiveShare
from methods.losses import pair_losses, symmetric_cross_entropy
from methods.predicting import OnLogits


class InfoNCE(OnLogits):
    """Plain cross-entropy in both directions. What another loss of this file gains over it is not the
    temperature's doing; `clip` has the same loss with a learned one.

    Source: van den Oord et al., arXiv 1807.03748, eq. (4); both directions as CLIP.

    Args:
        common: `temperature`, and the arguments of `Method`.
    """

    paper = "InfoNCE (2018)"

    def losses(self, logits: Tensor) -> Tensor:
        """The mean of both directions."""
        return pair_losses(logits)


class SymmetricCrossEntropy(OnLogits):
    """Cross-entropy and reverse cross-entropy, in both directions: see `losses.symmetric_cross_entropy`.

    Source: Wang et al., ICCV 2019; L2RM warms up with it.

    Args:
        reverse: weight of the reverse cross-entropy (released code of L2RM: 1).
        common: `temperature`, and the arguments of `Method`.
    """

    paper = "symmetric cross-entropy (ICCV 2019)"

    def __init__(self, *, reverse: Positive = 1.0, **common: Any) -> None:
        super().__init__(**common)
        self.reverse = reverse

    def losses(self, logits: Tensor) -> Tensor:
        """The mean of both directions."""
        return symmetric_cross_entropy(logits, self.reverse)


class GeneralizedCrossEntropy(OnLogits):
    """(1 - p^q) / q in both directions: cross-entropy for q towards 0, the error of the prediction at q = 1.

    Source: Zhang and Sabuncu, NeurIPS 2018, eq. (6).

    Args:
        q: exponent, in (0, 1] (section 4: 0.7).
        common: `temperature`, and the arguments of `Method`.
    """

    paper = "generalized cross-entropy (NeurIPS 2018)"

    def __init__(self, *, q: PositiveShare = 0.7, **common: Any) -> None:
        super().__init__(**common)
        self.q = q

    def losses(self, logits: Tensor) -> Tensor:
        """The mean of both directions."""
        by_image, by_text = ((self.q * logits.log_softmax(d).diagonal()).exp() for d in (1, 0))
        return (1 - (by_image + by_text) / 2) / self.q


class LabelSmoothing(OnLogits):
    """Cross-entropy with a part of the label spread evenly over the batch.

    Source: Szegedy et al., CVPR 2016, section 7.

    Args:
        smoothing: epsilon, the part that is spread, in (0, 1] (section 7: 0.1).
        common: `temperature`, and the arguments of `Method`.
    """

    paper = "label smoothing (CVPR 2016)"

    def __init__(self, *, smoothing: PositiveShare = 0.1, **common: Any) -> None:
        super().__init__(**common)
        self.smoothing = smoothing

    def losses(self, logits: Tensor) -> Tensor:
        """(1 - eps) times `pair_losses`, and eps times the mean over the batch, in both directions."""
        spread = -(logits.log_softmax(1).mean(1) + logits.log_softmax(0).mean(0)) / 2
        return (1 - self.smoothing) * pair_losses(logits) + self.smoothing * spread
