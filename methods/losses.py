"""Losses over a batch of pairs: row = image, column = caption, pair k on the diagonal."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pair_losses(logits: Tensor) -> Tensor:
    """Symmetric cross-entropy of each pair, l_k of NPC eq. (1): [B, B] scaled logits -> [B]."""
    target = torch.arange(len(logits), device=logits.device)
    by_image = F.cross_entropy(logits, target, reduction="none")
    by_text = F.cross_entropy(logits.T, target, reduction="none")
    return (by_image + by_text) / 2


def hinges(similarity: Tensor, margin: Tensor | float) -> tuple[Tensor, Tensor]:
    """Hinge of every negative, [B, B] each: for image k (row) over captions, for caption k (row) over images.

    `margin` is a number or [B], the margin of each pair, which belongs to the pair in both directions.
    The diagonal is 0.
    """
    positive = similarity.diagonal()
    margin = torch.as_tensor(margin, dtype=similarity.dtype, device=similarity.device).expand(len(positive))
    threshold = (margin - positive)[:, None]
    same = torch.eye(len(positive), dtype=torch.bool, device=similarity.device)
    by_image = (threshold + similarity).clamp(min=0).masked_fill(same, 0)
    by_text = (threshold + similarity.T).clamp(min=0).masked_fill(same, 0)
    return by_image, by_text


def hardest_triplet(similarity: Tensor, margin: Tensor | float) -> Tensor:
    """Each pair's hinge against its hardest negative, both directions added: [B, B] -> [B] (VSE++, eq. 6)."""
    by_image, by_text = hinges(similarity, margin)
    return by_image.amax(1) + by_text.amax(1)


def hardest_negatives(similarity: Tensor) -> tuple[Tensor, Tensor]:
    """For image k the most similar other caption, for caption k the most similar other image: [B, B] -> [B], [B]."""
    same = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    others = similarity.masked_fill(same, -torch.inf)
    return others.argmax(1), others.argmax(0)


def mean_triplet(similarity: Tensor, margin: Tensor | float) -> Tensor:
    """Each pair's hinge averaged over the batch (divisor B, diagonal 0), both directions added: [B, B] -> [B]."""
    by_image, by_text = hinges(similarity, margin)
    return by_image.mean(1) + by_text.mean(1)
