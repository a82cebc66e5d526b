"""The noise index: for every training caption, the image it is trained with.

It is the only thing that noise changes, and it is made here, from the data set's owners and a seed,
so all methods at one seed train on the same pairs.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.data.base import Split
from methods.seeding import numpy_generator

GRANULARITIES = ("caption", "image")


@dataclass(frozen=True)
class NoiseIndex:
    """Which image each training caption is trained with, and what is known about it.

    Attributes:
        image: int64 [C], image index of each caption.
        matched: bool [C], whether caption and image are of one group. The truth: the harness scores
            with it, the oracle trains on it, and no other method sees it.
        nominal: the ratio asked for.
        granularity: `caption` or `image`; `none` at ratio 0.
        seed: the noise seed.
    """

    image: NDArray[np.int64]
    matched: NDArray[np.bool_]
    nominal: float
    granularity: str
    seed: int

    @property
    def realised(self) -> float:
        """Share of pairs that really mismatch: below nominal, since a shuffle has fixed points."""
        return float(1 - self.matched.mean())

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the index."""
        return hashlib.sha256(np.ascontiguousarray(self.image, "<i8").tobytes()).hexdigest()[:16]


def make_noise(split: Split, *, ratio: float, granularity: str, seed: int) -> NoiseIndex:
    """Shuffle a share of the correspondences of a training split.

    `caption`: int(ratio * C) captions are drawn and their images shuffled among themselves (NCR, MSCN,
    NPC: released code). `image`: int(ratio * N) images are drawn and permuted, so that all captions of
    a noisy image go to one wrong image (DECL, RCL: released code). Both keep fixed points and the number
    of captions of each image.

    Raises:
        ValueError: ratio outside [0, 1), or an unknown granularity.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"noise ratio {ratio} is outside [0, 1)")
    if granularity not in GRANULARITIES:
        raise ValueError(f"noise granularity {granularity!r}: expected one of {', '.join(GRANULARITIES)}")
    draw = numpy_generator("noise", granularity, seed)
    image = split.owner.copy()
    if granularity == "caption":
        chosen = draw.permutation(len(image))[: int(ratio * len(image))]
        image[chosen] = image[draw.permutation(chosen)]
    else:
        chosen = draw.permutation(len(split.images))[: int(ratio * len(split.images))]
        moved = np.arange(len(split.images))
        moved[chosen] = draw.permutation(chosen)
        image = moved[image]
    matched = split.image_group[image] == split.caption_group
    return NoiseIndex(image, matched, ratio, granularity if ratio else "none", seed)
