"""Similarity vectors of SGRAF (AAAI 2021) for many pairs at once: attention over regions, alignments,
reasoning.

The published code goes caption by caption. Here captions stand side by side under a mask, in tiles of
like length that bound the memory. Shapes: M images of R regions, n captions of at most L words, width D of
the embeddings, width S of the similarity vector. A pair (i, j) of a tile is image i with caption j; for the
diagonal alone ("pairs"), the tile is one row of n pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

SMOOTH = 9.0  # inverse temperature of the attention (SCAN, ECCV 2018; SGRAF, released code)
TILE_ROWS = {
    "cpu": 2**13,
    "cuda": 2**17,
}  # (image, word) rows of a tile: what fits a cache; what fills a GPU in 512 MB at D = 1024


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """x / (|x| + 1e-8), as in the released code; the gradient at 0 is 0 (there it is NaN)."""
    square = x.square().sum(dim, keepdim=True)
    return x / (square.clamp(min=torch.finfo(x.dtype).tiny).sqrt() + 1e-8)


def tiles(lengths: Tensor, images: int) -> Iterator[tuple[Tensor, int]]:
    """Captions by length, in tiles: their rows and their longest length. Every caption is in one tile."""
    budget = TILE_ROWS.get(lengths.device.type, TILE_ROWS["cuda"])
    order = lengths.argsort(stable=True)
    longest = lengths[order].tolist()
    start = 0
    for stop in range(1, len(order) + 1):
        full = stop < len(order) and (stop + 1 - start) * longest[stop] * images > budget
        if full or stop == len(order):
            yield order[start:stop], int(longest[stop - 1])
            start = stop


def attend(regions: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """Weights of each word over the regions, scaled so that the weighted sum of regions is a unit vector.

    The norm of a weighted sum comes from the regions' Gram matrix, R numbers wide and not D.

    Args:
        regions: [M, R, D].
        words: [n * L, D] for all pairs, [M, L, D] for the diagonal (then n is 1).
        mask: [n, L] or [M, L], true where there is a word.

    Returns:
        [M, n * L, R].
    """
    images, count = regions.shape[:2]
    match = torch.nn.functional.leaky_relu(regions @ words.mT, 0.1).view(images, count, -1, mask.shape[1])
    match = match * (mask if words.ndim == 2 else mask[:, None, None])
    weights = (SMOOTH * unit(match)).flatten(2).softmax(1).mT
    gram = regions @ regions.mT
    square = ((weights @ gram) * weights).sum(-1, keepdim=True)
    return weights / (square.clamp(min=torch.finfo(square.dtype).tiny).sqrt() + 1e-8)


class Distances(torch.autograd.Function):
    """(weights @ regions - words)^2 @ weight.T, keeping nothing that is D wide between forward and backward.

    [M, T, R], [M, R, D], [T, D] or [M, T, D], [S, D] -> [M, T, S]. Most of the time of SGRAF is spent here.
    Twice
    differentiable: a backward pass that is itself differentiated goes through plain operations.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, regions: Tensor, words: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weights, regions, words, weight)
        return _difference(weights, regions, words).square_() @ weight.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        inputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            return torch.autograd.grad(_plain_distances(*inputs), inputs, gradient, create_graph=True)
        weights, regions, words, weight = inputs
        difference = _difference(weights, regions, words)
        flat = gradient.flatten(0, 1)
        to_weight = flat.T @ difference.square().flatten(0, 1)
        to_difference = (flat @ (2 * weight)).view_as(difference).mul_(difference)
        to_words = -(to_difference.sum(0) if words.ndim == 2 else to_difference)
        return to_difference @ regions.mT, weights.mT @ to_difference, to_words, to_weight


def _difference(weights: Tensor, regions: Tensor, words: Tensor) -> Tensor:
    return torch.baddbmm(words.expand(len(weights), *words.shape[-2:]), weights, regions, beta=-1)


def _plain_distances(weights: Tensor, regions: Tensor, words: Tensor, weight: Tensor) -> Tensor:
    return (weights @ regions - words).square() @ weight.T


def distances(weights: Tensor, regions: Tensor, words: Tensor, weight: Tensor) -> Tensor:
    """See `Distances`."""
    result: Tensor = Distances.apply(weights, regions, words, weight)  # type: ignore[no-untyped-call]
    return result
