"""Random streams: every draw comes from a generator seeded by (seed, purpose, epoch, ...).

A resumed trial therefore continues bit for bit, and a new draw in one place changes no other draw.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def seed_of(*parts: int | str) -> int:
    """A seed derived from any parts, the same for all versions and machines.

    Args:
        parts: what identifies the stream, e.g. `seed_of(seed, "order", epoch)`.

    Returns:
        The first 63 bits of the SHA-256 of the parts.
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def torch_generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A new PyTorch generator on `device`, seeded with `seed_of(*parts)`."""
    import torch  # here, so that data and noise, which draw with NumPy, load without PyTorch

    return torch.Generator(device=device).manual_seed(seed_of(*parts))


def numpy_generator(*parts: int | str) -> np.random.Generator:
    """A new NumPy generator, seeded with `seed_of(*parts)`."""
    return np.random.default_rng(seed_of(*parts))
