"""Random streams: every draw comes from a generator made of (seed, purpose, epoch, ...).

So a resumed trial continues bit for bit, and a new draw in one place shifts none elsewhere.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from any parts, e.g. `seed_of(seed, "order", epoch)`; stable over versions and
    machines.
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def torch_generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator seeded from any parts."""
    import torch  # here, so that data and noise, which draw with NumPy, load without it

    return torch.Generator(device=device).manual_seed(seed_of(*parts))


def numpy_generator(*parts: int | str) -> np.random.Generator:
    """A NumPy generator seeded from any parts."""
    return np.random.default_rng(seed_of(*parts))
