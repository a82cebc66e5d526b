"""Inputs of networks: cached features of locked towers, or pictures and tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
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
    """Inputs of one split: by image index, and by caption index."""

    def images(self, index: Tensor) -> Tensor: ...
    def texts(self, index: Tensor) -> Tensor: ...


class CachedInputs:
    """Features in memory: images [N, Fi], distinct captions [U, Ft], and the caption's row [C]."""

    def __init__(self, image_features: Tensor, text_features: Tensor, rows: Tensor) -> None:
        self.image_features, self.text_features, self.rows = image_features, text_features, rows

    def images(self, index: Tensor) -> Tensor:
        return self.image_features[index]

    def texts(self, index: Tensor) -> Tensor:
        return self.text_features[self.rows[index]]


class LiveInputs:
    """Pictures, decoded and transformed when asked for, and tokens, made when asked for: those of a million
    captions take 600 MB.
    """

    def __init__(
        self, split: Split, transform: Callable[[Any], Tensor], tokenize: Callable[[list[str]], Tensor]
    ) -> None:
        self.pictures, self.captions = split.images, split.captions
        self.transform, self.tokenize = transform, tokenize

    def images(self, index: Tensor) -> Tensor:
        distinct, back = index.unique(return_inverse=True)  # a picture is decoded once a batch
        return torch.stack([self.transform(self.pictures[i]) for i in distinct.tolist()])[back]

    def texts(self, index: Tensor) -> Tensor:
        return self.tokenize([self.captions[i] for i in index.tolist()])


class RegionInputs:
    """Region features, read from their file when asked for, and word ids [b, L] with 0 for padding."""

    def __init__(self, split: Split, vocabulary: Vocabulary) -> None:
        self.regions: Any = split.images
        self.vocabulary = vocabulary
        distinct, self.rows = distinct_captions(split)
        self.tokens = vocabulary.encode(distinct)

    def images(self, index: Tensor) -> Tensor:
        distinct, back = index.unique(return_inverse=True)
        return torch.from_numpy(self.regions[distinct.numpy()])[back]

    def texts(self, index: Tensor) -> Tensor:
        tokens = self.tokens[self.rows[index]]
        return tokens[:, : int((tokens != 0).sum(1).max())] if len(tokens) else tokens


def distinct_captions(split: Split) -> tuple[list[str], Tensor]:
    """The distinct captions in order of first appearance, and each caption's row among them."""
    place = {caption: i for i, caption in enumerate(dict.fromkeys(split.captions))}
    return list(place), torch.tensor([place[c] for c in split.captions])


def cached_features(
    load: Callable[[], Any], split: Split, key: Mapping[str, Any], *, device: torch.device | str, quiet: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Features of a split under locked towers, computed once for all trials that share the key.

    Files are written aside and renamed, so no reader sees half of one; a lock lets one process compute
    while the others wait. A file that cannot be read is computed again.
    """
    captions, rows = distinct_captions(split)

    def image_inputs(towers: Any, at: list[int]) -> Tensor:
        return torch.stack([towers.transform(split.images[i]) for i in at])

    def text_inputs(towers: Any, at: list[int]) -> Tensor:
        tokens: Tensor = towers.tokenize([captions[i] for i in at])
        return tokens

    found = []
    for side, count, inputs in (
        ("image", len(split.images), image_inputs),
        ("text", len(captions), text_inputs),
    ):
        altered = (
            {"altered": split.altered} if split.altered and side == "text" else {}
        )  # noise in the words is none of the pictures' business
        name = hashlib.sha256(json.dumps({**key, **altered}, sort_keys=True).encode()).hexdigest()[:24]
        folder = cache_directory() / "features" / name
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{side}.npy"
        with FileLock(folder / f"{side}.lock"):
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
        found.append(torch.from_numpy(features))
    return found[0], found[1], rows


@torch.inference_mode()
def _compute(
    towers: Any, side: str, inputs: Any, order: list[int], *, device: Any, label: str | None
) -> np.ndarray:
    """Features [len(order), F] in index order; captions come sorted by length, which saves padding."""
    towers = towers.to(device).eval()
    encode = towers.encode_image if side == "image" else towers.encode_text
    chunks = [order[i : i + 64] for i in range(0, len(order), 64)]
    parts = [encode(inputs(towers, at).to(device)).float().cpu() for at in progress(chunks, label)]
    features = torch.cat(parts)
    return features[torch.tensor(order).argsort()].numpy()


def _read(file: Path, count: int) -> np.ndarray | None:
    try:
        features = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return features if features.ndim == 2 and len(features) == count else None


def _write(file: Path, features: np.ndarray) -> None:
    with atomic_write(file, sync=True) as stream:
        np.save(stream, features)
