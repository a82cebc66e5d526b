"""What a data set is, for the harness: images, captions, who owns which, and what counts as a match.

A split carries Flickr30K-like sets (five captions an image, the image is the group), one-caption sets
(`owner` = 0, 1, 2, ...), sets where several images are one concept (`emoji`), and precomputed region
features (`images` gives arrays and not pictures).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class DataError(ValueError):
    """A data set that is missing, corrupt or not what it should be; the text is for the user."""


@dataclass(frozen=True)
class Split:
    """Images and captions of one split.

    Attributes:
        images: N pictures (PIL, RGB) or arrays, read by position; pictures are decoded when asked for.
        captions: C strings.
        owner: int64 [C], the image that each caption belongs to (the truth).
        image_group: int64 [N], group of each image; images and captions of one group match at test.

    Raises:
        DataError: lengths differ, an owner is out of range, or the split is empty.
    """

    images: Sequence[Any]
    captions: Sequence[str]
    owner: NDArray[np.int64]
    image_group: NDArray[np.int64]

    def __post_init__(self) -> None:
        if not len(self.images) or not len(self.captions):
            raise DataError("a split needs at least one image and one caption")
        if len(self.owner) != len(self.captions) or len(self.image_group) != len(self.images):
            raise DataError(
                f"{len(self.captions)} captions with {len(self.owner)} owners, "
                f"{len(self.images)} images with {len(self.image_group)} groups"
            )
        if self.owner.min() < 0 or self.owner.max() >= len(self.images):
            raise DataError(f"an owner is outside the {len(self.images)} images")

    @property
    def caption_group(self) -> NDArray[np.int64]:
        """int64 [C], group of each caption: that of the image that owns it."""
        return self.image_group[self.owner]


@dataclass(frozen=True)
class DataSet:
    """A data set: `train`, `dev`, `test`, and `meta` (a small clean set) where there is one.

    Attributes:
        fingerprint: hash of the content; stands in every record, and keys cached features.
        distinct_groups: no batch may hold two pairs whose images are of one group (where a group has
            many pairs, true matches would stand among a batch's negatives).
        note: one line for tables: what it is and what it must not be taken for.
        vocabularies: files of word ids that came with the data set, for backbones that need one.
    """

    name: str
    splits: Mapping[str, Split]
    fingerprint: str
    distinct_groups: bool = False
    note: str = ""
    vocabularies: tuple[Path, ...] = ()

    def __getitem__(self, split: str) -> Split:
        if split not in self.splits:
            raise DataError(f"data set {self.name!r} has no split {split!r}, only {', '.join(self.splits)}")
        return self.splits[split]
