"""The noise index: for every training caption, the image that it is trained with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from harness.data.base import Split


@dataclass(frozen=True)
class NoiseIndex:
    """Which image each training caption is trained with, and which of these pairs match.

    Attributes:
        image: int64 [C], index of the image that each caption is trained with.
        matched: bool [C], whether caption and image are of one group (and the caption has its original
            words). This is the ground truth: the harness scores with it, the oracle trains on it, and no
            other method sees it. None where it is unknown.
        nominal: the noise ratio asked for, a share of C or of N.
        granularity: `caption` or `image`; for a file, the one that its index shows; `none` at ratio 0.
        seed: the noise seed.
        model: name of the noise model, one of `harness.noise.models.MODELS`.
        captions: C strings, the captions as they are trained with; None unless noise changed their words.
        ambiguous: number of captions with a duplicate text, for a file that identifies captions by text.
    """

    image: NDArray[np.int64]
    matched: NDArray[np.bool_] | None
    nominal: float
    granularity: str
    seed: int
    model: str = "shuffle"
    captions: Sequence[str] | None = None
    ambiguous: int = 0

    @property
    def realised(self) -> float:
        """Share of the pairs that mismatch, in [0, 1]; NaN where the ground truth is unknown.

        It is below `nominal` for a shuffle, which has fixed points.
        """
        return float("nan") if self.matched is None else float(1 - self.matched.mean())

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the index, and of the captions where noise changed them."""
        if self.captions is None:
            return index_digest(self.image)
        content = "\n".join([index_digest(self.image), *self.captions])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def words_of(self, split: Split) -> Split:
        """The training split with the captions that it is trained with."""
        if self.captions is None:
            return split
        return replace(split, captions=self.captions, altered=self.digest)


def index_digest(image: NDArray[np.int64]) -> str:
    """First 16 hex digits of the SHA-256 of an index [C]: it depends on the values, not on the file form."""
    return hashlib.sha256(np.ascontiguousarray(image, "<i8").tobytes()).hexdigest()[:16]
