"""Attention of words over regions and local alignments of SGRAF (AAAI 2021), for many pairs at once.

The released code scores one caption at a time. Here captions are batched under a mask, in tiles of captions
of similar length, which bound the memory.

Shapes: M images of R regions, n captions of at most L words in a tile, width D of the embeddings, width S of
the similarity vector. Pair (i, j) of a tile is image i with caption j. Of matched pairs only ("the
diagonal": image k with caption k), a tile is one row of n pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

SMOOTH = 9.0
"""Inverse temperature of the attention (SCAN, ECCV 2018; SGRAF, released code)."""
TILE_ROWS = {"cpu": 2**13, "cuda": 2**17}
"""Largest number of (image, word) rows in a tile, by type of device.

A tile fits the cache of a CPU; on a GPU it occupies the device and takes 512 MB at D = 1024.
"""


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """x / (|x| + 1e-8) along `dim`, as in SGRAF's released code.

    The gradient at x = 0 is 0. In the released code it is NaN.
    """
    square = x.square().sum(dim, keepdim=True)
    return x / (square.clamp(min=torch.finfo(x.dtype).tiny).sqrt() + 1e-8)


def tiles(lengths: Sequence[int], images: int, device: torch.device) -> Iterator[tuple[slice, int]]:
    """Partition captions, sorted by length, into tiles of similar length.

    Args:
        lengths: words of each caption, ascending.
        images: number of images that the captions are paired with.
        device: where tiles are computed.

    Yields:
        A tile's captions, and the length of its longest caption.
    """
    budget = TILE_ROWS.get(device.type, TILE_ROWS["cuda"])
    start = 0
    for stop in range(1, len(lengths) + 1):
        full = stop < len(lengths) and (stop + 1 - start) * lengths[stop] * images > budget
        if full or stop == len(lengths):
            yield slice(start, stop), lengths[stop - 1]
            start = stop


def attend(regions: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """Attention weights of each word over the regions (SGRAF, "Similarity Representation Learning").

    The weights are scaled so that the weighted sum of regions is a unit vector. Its norm is computed from the
    Gram matrix of the regions, which needs rows of R numbers and not of D.

    Args:
        regions: [M, R, D], unit vectors.
        words: unit vectors, [n * L, D] for all pairs, [M, L, D] for the diagonal (then n is 1).
        mask: bool, [n, L] for all pairs, [M, L] for the diagonal; false at padding.

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
    """(weights @ regions - words)^2 @ weight.T without saving a tensor [M, T, D] for the backward pass.

    Most of the time of SGRAF is spent here. The function is twice differentiable: a backward pass that is
    itself differentiated uses plain operations. See `distances` for the shapes.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, regions: Tensor, words: Tensor, weight: Tensor) -> Tensor:
        """The distances [M, T, S], with the inputs saved for the backward pass."""
        ctx.save_for_backward(weights, regions, words, weight)
        return _difference(weights, regions, words).square_() @ weight.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        """The gradient [M, T, S] of the distances -> those of the four inputs."""
        inputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            return torch.autograd.grad(_plain_distances(*inputs), inputs, gradient, create_graph=True)
        weights, regions, words, weight = inputs
        difference = _difference(weights, regions, words)
        flat = gradient.flatten(0, 1)
        weight_gradient = flat.T @ difference.square().flatten(0, 1)
        difference_gradient = (flat @ (2 * weight)).view_as(difference).mul_(difference)
        words_gradient = -(difference_gradient.sum(0) if words.ndim == 2 else difference_gradient)
        weights_gradient = difference_gradient @ regions.mT
        return weights_gradient, weights.mT @ difference_gradient, words_gradient, weight_gradient


def _difference(weights: Tensor, regions: Tensor, words: Tensor) -> Tensor:
    return torch.baddbmm(words.expand(len(weights), *words.shape[-2:]), weights, regions, beta=-1)


def _plain_distances(weights: Tensor, regions: Tensor, words: Tensor, weight: Tensor) -> Tensor:
    return (weights @ regions - words).square() @ weight.T


def distances(weights: Tensor, regions: Tensor, words: Tensor, weight: Tensor) -> Tensor:
    """Local alignments of words with attended regions, before bias and normalisation (SGRAF, as above).

    Args:
        weights: [M, T, R], attention of T words over the regions.
        regions: [M, R, D].
        words: [T, D] shared by all images, or [M, T, D].
        weight: [S, D], the matrix of the linear layer.

    Returns:
        (weights @ regions - words)^2 @ weight.T, [M, T, S].
    """
    result: Tensor = Distances.apply(weights, regions, words, weight)  # type: ignore[no-untyped-call]
    return result
