"""Nearest neighbours by cosine, computed in blocks that bound the memory, and cached."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from harness.lib.files import atomic_write, cache_directory

_BLOCK = 2048


def nearest(embedding: NDArray[Any], width: int, *, key: str) -> NDArray[np.int32]:
    """The nearest neighbours of every row, without the row itself.

    Args:
        embedding: float [R, D].
        width: number of neighbours of each row, below R.
        key: digest of the embedding's file, which identifies it in the cache.

    Returns:
        int32 [R, width], indices of the neighbours, nearest first.
    """
    file = cache_directory() / "neighbours" / f"{key[:24]}-{width}.npy"
    try:
        cached: NDArray[np.int32] = np.load(file, allow_pickle=False)
        if cached.shape == (len(embedding), width):
            return cached
    except (OSError, ValueError, EOFError):
        pass
    # On the CPU even where there is a GPU: a trial's noise must not depend on its device.
    rows = F.normalize(torch.from_numpy(np.array(embedding, np.float32)), dim=1)
    parts = []
    for start in range(0, len(rows), _BLOCK):
        scores = rows[start : start + _BLOCK] @ rows.T
        diagonal = torch.arange(len(scores))
        scores[diagonal, diagonal + start] = -torch.inf
        parts.append(scores.topk(width, dim=1).indices.int())
    neighbours: NDArray[np.int32] = torch.cat(parts).numpy()
    with atomic_write(file) as stream:
        np.save(stream, neighbours)
    return neighbours
