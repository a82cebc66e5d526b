"""Nearest neighbours by cosine, in blocks that bound the memory, kept in the cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from harness.lib.files import atomic_write, cache_directory

_BLOCK = 2048


def nearest(embedding: NDArray[Any], width: int, *, key: str) -> NDArray[np.int32]:
    """int32 [R, width]: for each row the nearest others, nearest first. `key` names the embedding's content
    in the cache.
    """
    file = cache_directory() / "neighbours" / f"{key[:24]}-{width}.npy"
    try:
        found: NDArray[np.int32] = np.load(file, allow_pickle=False)
        if found.shape == (len(embedding), width):
            return found
    except (OSError, ValueError, EOFError):
        pass
    rows = F.normalize(
        torch.from_numpy(np.array(embedding, np.float32)), dim=1
    )  # on the CPU everywhere: a trial's noise is no matter of its device
    parts = []
    for start in range(0, len(rows), _BLOCK):
        scores = rows[start : start + _BLOCK] @ rows.T
        own = torch.arange(len(scores))
        scores[own, own + start] = -torch.inf
        parts.append(scores.topk(width, dim=1).indices.int())
    found = torch.cat(parts).numpy()
    with atomic_write(file) as stream:
        np.save(stream, found)
    return found
