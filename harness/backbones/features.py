"""Inputs of networks: cached features of locked towers, pixels and tokens, or regions and word ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from harness.data.base import Split
from harness.data.vocabulary import Vocabulary
from harness.lib.console import progress
from harness.lib.files import atomic_write, cache_directory


class Inputs(Protocol):
    """Inputs of one split, by index.

    Two attributes guide loader workers. `chunk`: images may be loaded in parts, of at least so many, and put
    together. `at_hand`: the sides ("images", "texts") that are no work for them, such as rows of an array.
    """

    def images(self, index: Tensor) -> Tensor:
        """Inputs of images: indices int64 [b] -> [b, ...], on the CPU."""

    def texts(self, index: Tensor) -> Tensor:
        """Inputs of captions: indices int64 [b] -> [b, ...], on the CPU."""

    def lengths(self, index: Tensor) -> Tensor | None:
        """Numbers of words of captions, int64 [b], for networks on word ids; None for others."""


class CachedInputs:
    """Features of locked towers in memory.

    Args:
        image_features: [N, Fi].
        text_features: [U, Ft], of the distinct captions.
        rows: int64 [C], the row of each caption in `text_features`.
    """

    at_hand = frozenset({"images", "texts"})

    def __init__(self, image_features: Tensor, text_features: Tensor, rows: Tensor) -> None:
        self.image_features, self.text_features, self.rows = image_features, text_features, rows

    def images(self, index: Tensor) -> Tensor:
        """[b] -> [b, Fi]."""
        return self.image_features[index]

    def texts(self, index: Tensor) -> Tensor:
        """[b] -> [b, Ft]."""
        return self.text_features[self.rows[index]]

    def lengths(self, index: Tensor) -> None:
        """None: features have one size."""


class LiveInputs:
    """Images and captions, decoded, transformed and tokenized when they are read.

    Tokens are not kept: those of a million captions take 600 MB.

    Args:
        split: a split of pictures.
        transform: PIL image -> pixels [3, H, W], uint8 or normalised.
        tokenize: n captions -> token ids int64 [n, L].
    """

    chunk = 32

    def __init__(
        self, split: Split, transform: Callable[[Any], Tensor], tokenize: Callable[[list[str]], Tensor]
    ) -> None:
        self.pictures, self.captions = split.images, split.captions
        self.transform, self.tokenize = transform, tokenize

    def images(self, index: Tensor) -> Tensor:
        """[b] -> pixels [b, 3, H, W]. An image is decoded once in a batch."""
        distinct, inverse = index.unique(return_inverse=True)
        # Without any index the first picture tells the shape, [0, 3, H, W].
        return torch.stack([self.transform(self.pictures[i]) for i in distinct.tolist() or [0]])[inverse]

    def texts(self, index: Tensor) -> Tensor:
        """[b] -> token ids [b, L]."""
        return self.tokenize([self.captions[i] for i in index.tolist() or [0]])[: len(index)]

    def lengths(self, index: Tensor) -> None:
        """None: tokens are padded to one length."""


class RegionInputs:
    """Region features, read from their file when they are needed, and word ids in memory.

    Args:
        split: a split with region features.
        vocabulary: word ids; 0 is padding.
    """

    chunk = 32

    def __init__(self, split: Split, vocabulary: Vocabulary) -> None:
        self.regions: Any = split.images
        self.vocabulary = vocabulary
        distinct, self.rows = distinct_captions(split)
        self.tokens = vocabulary.encode(distinct)
        self.words = (self.tokens != 0).sum(1)

    def images(self, index: Tensor) -> Tensor:
        """[b] -> region features [b, R, F]."""
        distinct, inverse = index.unique(return_inverse=True)
        return torch.from_numpy(self.regions[distinct.numpy()])[inverse]

    def texts(self, index: Tensor) -> Tensor:
        """[b] -> word ids [b, L], L the length of the longest of these captions."""
        tokens = self.tokens[self.rows[index]]
        return tokens[:, : int(self.lengths(index).max())] if len(tokens) else tokens

    def lengths(self, index: Tensor) -> Tensor:
        """[b] -> numbers of words int64 [b]."""
        return self.words[self.rows[index]]


def first_of_equal(captions: Sequence[str]) -> Tensor:
    """The index of the first caption that is equal to each: C captions -> int64 [C]."""
    first: dict[str, int] = {}
    return torch.tensor([first.setdefault(caption, i) for i, caption in enumerate(captions)])


def distinct_captions(split: Split) -> tuple[list[str], Tensor]:
    """The U distinct captions in order of first appearance, and the row of each caption among them, [C]."""
    row_of = {caption: row for row, caption in enumerate(dict.fromkeys(split.captions))}
    return list(row_of), torch.tensor([row_of[c] for c in split.captions])


def cached_features(
    load: Callable[[], Any], split: Split, key: Mapping[str, Any], *, device: torch.device | str, quiet: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Features of a split under locked towers, computed once for all trials that share the key.

    Files are written under a temporary name and renamed, so that no reader sees an incomplete file. One
    process computes under a lock, and others wait. A file that cannot be read is computed again.

    Args:
        load: builds the towers (`towers.Towers`); called only if features have to be computed.
        split: a split of pictures.
        key: what determines the features, as JSON values; `split` is the name of the split.
        device: where features are computed.
        quiet: show no progress.

    Returns:
        Features of the images [N, Fi], features of the distinct captions [U, Ft], and the row of each caption
        among the distinct ones [C].
    """
    captions, rows = distinct_captions(split)

    def image_inputs(towers: Any, indices: list[int]) -> Tensor:
        return torch.stack([towers.transform(split.images[i]) for i in indices])

    def text_inputs(towers: Any, indices: list[int]) -> Tensor:
        tokens: Tensor = towers.tokenize([captions[i] for i in indices])
        return tokens

    features_of = {}
    for side, count, inputs in (
        ("image", len(split.images), image_inputs),
        ("text", len(captions), text_inputs),
    ):
        # Noise in the words changes the features of the captions, not those of the images.
        altered = {"altered": split.altered} if split.altered and side == "text" else {}
        name = hashlib.sha256(json.dumps({**key, **altered}, sort_keys=True).encode()).hexdigest()[:24]
        directory = cache_directory() / "features" / name
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / f"{side}.npy"
        with FileLock(directory / f"{side}.lock"):
            features = _read(file, count)
            if features is None:
                order = (
                    sorted(range(count), key=lambda i: len(captions[i]))
                    if side == "text"
                    else list(range(count))
                )
                label = f"features of {count} {side}s ({key['split']})"
                features = _compute(
                    load(), side, inputs, order, device=device, label=None if quiet else label
                )
                _write(file, features)
        features_of[side] = torch.from_numpy(features)
    return features_of["image"], features_of["text"], rows


@torch.inference_mode()
def _compute(
    towers: Any, side: str, inputs: Any, order: list[int], *, device: Any, label: str | None
) -> np.ndarray:
    """Features [len(order), F] by index, computed in `order`: captions by length, for less padding."""
    towers = towers.to(device).eval()
    encode = towers.encode_image if side == "image" else towers.encode_text
    chunks = [order[i : i + 64] for i in range(0, len(order), 64)]
    parts = [encode(inputs(towers, chunk).to(device)).float().cpu() for chunk in progress(chunks, label)]
    features = torch.cat(parts)
    return features[torch.tensor(order).argsort()].numpy()


def _read(file: Path, count: int) -> np.ndarray | None:
    """Features [count, F] from a file of the cache; None if it is missing or invalid."""
    try:
        features = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return features if features.ndim == 2 and len(features) == count else None


def _write(file: Path, features: np.ndarray) -> None:
    with atomic_write(file, sync=True) as stream:
        np.save(stream, features)
