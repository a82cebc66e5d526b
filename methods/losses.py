"""Losses over a batch of pairs: row = image, column = caption, pair k on the diagonal.

The margin of a triplet loss is a number, or [B] (each pair's own, in both directions), or [B, B] (an entry
for each image and caption, used in both directions; published code with margins of its own does this).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.base import Backbone

Scores = Callable[[Tensor, Tensor], Tensor]


def pair_losses(logits: Tensor) -> Tensor:
    """Symmetric cross-entropy of each pair, l_k of NPC eq. (1): [B, B] scaled logits -> [B]."""
    target = torch.arange(len(logits), device=logits.device)
    by_image = F.cross_entropy(logits, target, reduction="none")
    by_text = F.cross_entropy(logits.T, target, reduction="none")
    return (by_image + by_text) / 2


def hinges(similarity: Tensor, margin: Tensor | float) -> tuple[Tensor, Tensor]:
    """Hinge of every negative, [B, B] each: for image k (row) over captions, for caption k (row) over images.

    The diagonal is 0.
    """
    positive = similarity.diagonal()[:, None]
    by_image, by_text = _both_ways(margin, similarity)
    same = torch.eye(len(positive), dtype=torch.bool, device=similarity.device)
    return (
        (by_image + similarity - positive).clamp(min=0).masked_fill(same, 0),
        (by_text + similarity.T - positive).clamp(min=0).masked_fill(same, 0),
    )


def mean_triplet(similarity: Tensor, margin: Tensor | float) -> Tensor:
    """Each pair's hinge averaged over the batch (divisor B, diagonal 0), both directions added: [B, B] ->
    [B].
    """
    by_image, by_text = hinges(similarity, margin)
    return by_image.mean(1) + by_text.mean(1)


def hardest_triplet(similarity: Tensor, margin: Tensor | float) -> Tensor:
    """Each pair's hinge against its hardest negative, both directions added: [B, B] -> [B] (VSE++, eq. 6)."""
    by_image, by_text = hinges(similarity, margin)
    return by_image.amax(1) + by_text.amax(1)


def hardest_triplet_of_few(
    similarity: Tensor, pairs: Scores, images: Tensor, texts: Tensor, margin: Tensor | float
) -> Tensor:
    """`hardest_triplet` with gradient through the 3 B pairs that have one, and not through B x B.

    The same loss and gradient at a fraction of the cost, where scoring a pair is expensive and does not
    depend on the other pairs.

    Args:
        similarity: [B, B], without gradient: it only tells which negatives are the hardest.
        pairs: the scores of pairs, with gradient: [B, ...], [B, ...] -> [B].
    """
    by_image, by_text = _both_ways(margin, similarity)
    same = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    captions = (by_image + similarity).masked_fill(same, -torch.inf).argmax(1)
    pictures = (by_text + similarity.T).masked_fill(same, -torch.inf).argmax(1)
    rows = torch.arange(len(similarity), device=similarity.device)
    positive = pairs(images, texts)
    over_captions = by_image[rows, captions] + pairs(images, texts[captions]) - positive
    over_images = by_text[rows, pictures] + pairs(images[pictures], texts) - positive
    return over_captions.clamp(min=0) + over_images.clamp(min=0)


def hardest_triplet_of(network: Backbone, images: Tensor, texts: Tensor, margin: Tensor | float) -> Tensor:
    """`hardest_triplet` of a network's similarities, the cheapest way that the network allows: -> [B]."""
    if network.couples_pairs:
        return hardest_triplet(network.similarity(images, texts), margin)
    with torch.no_grad():
        similarity = network.similarity(images, texts)
    return hardest_triplet_of_few(similarity, network.pair_similarity, images, texts, margin)


def _both_ways(margin: Tensor | float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Margins [B, B] of image k (row) over captions, and of caption k (row) over images."""
    margin = torch.as_tensor(margin, dtype=like.dtype, device=like.device)
    if margin.ndim == 2:
        return margin, margin.T
    own = margin.expand(len(like))[:, None].expand(like.shape)
    return own, own
