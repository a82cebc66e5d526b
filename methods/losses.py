"""Losses over a batch of B pairs. Row = image, column = caption; pair k is on the diagonal.

The margin of a triplet loss is a number, a tensor [B] (the margin of each pair, used in both directions) or
a tensor [B, B] (a margin for each image and caption, used in both directions, as in the released code of NCR
and MSCN).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.base import Backbone

Scores = Callable[[Tensor, Tensor], Tensor]
"""Scores of pairs from their embeddings: [B, ...], [B, ...] -> [B]."""


def pair_losses(logits: Tensor) -> Tensor:
    """Symmetric cross-entropy l_k of each pair, in nats: [B, B] -> [B].

    Source: NPC eq. (1); its mean is the loss of CLIP (section 2.3).

    Args:
        logits: [B, B], similarities divided by the temperature.
    """
    target = torch.arange(len(logits), device=logits.device)
    by_image = F.cross_entropy(logits, target, reduction="none")
    by_text = F.cross_entropy(logits.T, target, reduction="none")
    return (by_image + by_text) / 2


LOG_ZERO = 16.118
"""-log(1e-7), which stands in for the logarithm of a zero label in a reverse cross-entropy."""


def symmetric_cross_entropy(logits: Tensor, reverse: float = 1.0) -> Tensor:
    """Cross-entropy and reverse cross-entropy, mean of both directions: [B, B] -> [B].

    Source: Wang et al., ICCV 2019, as the released code of L2RM has it (models.py:563-581).

    Args:
        logits: [B, B], similarities divided by the temperature.
        reverse: weight of the reverse cross-entropy.
    """
    missing = 2 - logits.softmax(1).diagonal() - logits.softmax(0).diagonal()
    return pair_losses(logits) + reverse * LOG_ZERO * missing / 2


def match_probability(logits: Tensor) -> Tensor:
    """The probability p_k that a batch gives to each pair, mean of both directions: [B, B] -> [B].

    It has no gradient.

    Args:
        logits: [B, B], similarities divided by the temperature.
    """
    logits = logits.detach()
    return (logits.softmax(1).diagonal() + logits.softmax(0).diagonal()) / 2


def off_diagonal_mean(similarity: Tensor) -> Tensor:
    """The mean similarity of each image with the captions of other pairs: [B, B] -> [B]."""
    return (similarity.sum(1) - similarity.diagonal()) / max(len(similarity) - 1, 1)


def weighted_mean(losses: Tensor, weight: Tensor) -> Tensor:
    """Mean of losses [B] with weights [B] of at least 0; 0 where all weights are."""
    weight = weight.to(losses.dtype)
    return (weight * losses).sum() / weight.sum().clamp(min=1e-6)


def hinges(similarity: Tensor, margin: Tensor | float) -> tuple[Tensor, Tensor]:
    """The hinge [margin + negative - positive]_+ of every negative, with a diagonal of zeros.

    Args:
        similarity: [B, B].
        margin: number, [B] or [B, B]; see the module.

    Returns:
        [B, B] for image k (row) over captions, and [B, B] for caption k (row) over images.
    """
    positive = similarity.diagonal()[:, None]
    image_margin, text_margin = _directional_margins(margin, similarity)
    diagonal = torch.eye(len(positive), dtype=torch.bool, device=similarity.device)
    return (
        (image_margin + similarity - positive).clamp(min=0).masked_fill(diagonal, 0),
        (text_margin + similarity.T - positive).clamp(min=0).masked_fill(diagonal, 0),
    )


def mean_triplet(similarity: Tensor, margin: Tensor | float) -> Tensor:
    """Hinges of each pair averaged over the batch, summed over both directions: [B, B] -> [B].

    Source: the warm-up loss in the released code of NCR and MSCN. The divisor is B, and the positive counts
    as 0.

    Args:
        similarity: [B, B].
        margin: number, [B] or [B, B]; see the module.
    """
    by_image, by_text = hinges(similarity, margin)
    return by_image.mean(1) + by_text.mean(1)


def retained_margin(similarity: Tensor, margin: float) -> Tensor:
    """The part of the margin that each pair retains, averaged over negatives and directions: [B, B] -> [B].

    Source: NCR section 3.3; in [0, margin].
    """
    return (margin - mean_triplet(similarity, margin) / 2).clamp(0, margin)


def soft_margin(target: Tensor, margin: float) -> Tensor:
    """alpha (10^y - 1) / 9, from 0 at y = 0 to alpha at y = 1: [...] -> [...].

    Source: NCR section 3 and released code; BiCro has it from there.

    Args:
        target: y, in [0, 1].
        margin: alpha.
    """
    return margin * (10**target - 1) / 9


def hardest_triplet(similarity: Tensor, margin: Tensor | float) -> Tensor:
    """Hinge of each pair against its hardest negative, summed over both directions: [B, B] -> [B].

    Source: VSE++ eq. (6).

    Args:
        similarity: [B, B].
        margin: number, [B] or [B, B]; see the module.
    """
    by_image, by_text = hinges(similarity, margin)
    return by_image.amax(1) + by_text.amax(1)


def hardest_triplet_of_few(
    similarity: Tensor, pairs: Scores, images: Tensor, texts: Tensor, margin: Tensor | float
) -> Tensor:
    """`hardest_triplet`, differentiated through 3 B scores instead of B x B: -> [B].

    The loss and its gradient are the same, at a fraction of the cost if scoring a pair is expensive. The
    score of a pair must not depend on the other pairs.

    Args:
        similarity: [B, B], without gradient: it only selects the hardest negatives.
        pairs: scores of pairs, with gradient: [B, ...], [B, ...] -> [B].
        images: embeddings [B, ...].
        texts: embeddings [B, ...].
        margin: number, [B] or [B, B]; see the module.
    """
    image_margin, text_margin = _directional_margins(margin, similarity)
    diagonal = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    negative_text = (image_margin + similarity).masked_fill(diagonal, -torch.inf).argmax(1)
    negative_image = (text_margin + similarity.T).masked_fill(diagonal, -torch.inf).argmax(1)
    rows = torch.arange(len(similarity), device=similarity.device)
    positive = pairs(images, texts)
    by_image = image_margin[rows, negative_text] + pairs(images, texts[negative_text]) - positive
    by_text = text_margin[rows, negative_image] + pairs(images[negative_image], texts) - positive
    return by_image.clamp(min=0) + by_text.clamp(min=0)


def hardest_triplet_of(network: Backbone, images: Tensor, texts: Tensor, margin: Tensor | float) -> Tensor:
    """`hardest_triplet` of a network's similarities, computed in the cheapest way it allows: -> [B].

    Args:
        network: the backbone; see `Backbone.couples_pairs`.
        images: embeddings [B, ...].
        texts: embeddings [B, ...].
        margin: number, [B] or [B, B]; see the module.
    """
    if network.couples_pairs:
        return hardest_triplet(network.similarity(images, texts), margin)
    with torch.no_grad():
        similarity = network.similarity(images, texts)
    return hardest_triplet_of_few(similarity, network.pair_similarity, images, texts, margin)


def _directional_margins(margin: Tensor | float, similarity: Tensor) -> tuple[Tensor, Tensor]:
    """Margins [B, B] of image k (row) over captions, and of caption k (row) over images."""
    if not isinstance(margin, Tensor):
        margin = similarity.new_full(
            (), margin
        )  # filled on the device; a copy of a number would be waited for
    margin = margin.to(similarity.dtype)
    if margin.ndim == 2:
        return margin, margin.T
    pair_margin = margin.expand(len(similarity))[:, None].expand(similarity.shape)
    return pair_margin, pair_margin
