"""Export of data sets with pictures to the SCAN layout, which the field's repositories read (see `scan.py`).

A picture becomes 36 regions: the 6 x 6 spatial map of the packaged EfficientNet-Lite0 at 192 pixels. Images
without captions are left out. In dev and test of `emoji`, one picture of a concept owns its captions; there,
each exported image is its own group.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.backbones.towers import build_towers, weights_identity
from harness.data.base import DataError, DataSet, Split
from harness.data.scan import CAPTIONS
from harness.data.vocabulary import Vocabulary
from harness.lib.console import progress
from harness.lib.files import complete_directory
from harness.noise.models import make_noise

IMAGE_SIZE = 192
"""Input size of the trunk in pixels."""
CHUNK = 64
"""Pictures per forward pass."""


def export_scan(
    data: DataSet,
    folder: Path,
    *,
    ratios: Sequence[float] = (),
    seeds: Sequence[int] = (),
    granularity: str = "caption",
) -> None:
    """Write features, captions, groups, a vocabulary, and a noise index for each ratio and seed.

    The index `noise/caption_0.4_seed0.npy` is the `--noise_file` of NCR and its successors: the image of each
    caption, int64 [C]. It equals the noise of a trial with that ratio and `noise_seed`. If an error occurs,
    nothing is written.

    Args:
        data: a data set of pictures.
        folder: the directory to create.
        ratios: noise ratios, from 0 to below 1.
        seeds: noise seeds.
        granularity: one of `harness.noise.GRANULARITIES`.

    Raises:
        DataError: the directory exists, the data set has no pictures, or training images own neither one
            caption each nor at least five.
    """
    if folder.exists():
        raise DataError(f"{folder} exists already: remove it, or choose another --out")
    if data["train"].kind != "pictures":
        raise DataError(f"data set {data.name!r} has region features already")
    owners = {name: np.unique(split.owner) for name, split in data.splits.items()}
    each = _captions_each(data)
    towers = build_towers(model="effnet_minilm", pretrained="packages", image_size=IMAGE_SIZE).eval()
    with complete_directory(folder) as part:
        captions: dict[str, list[str]] = {}
        for name, split in data.splits.items():
            captions[name] = _write_captions(part, name, split, owners[name], each)
            _write_features(part / f"{name}_ims.npy", split, owners[name], towers, name)
            groups = split.image_group[owners[name]]
            if len(np.unique(groups)) < len(groups):
                np.save(part / f"{name}_groups.npy", groups)
        Vocabulary.build(captions["train"]).write(part / f"{folder.name}_vocab.json")
        groups = data["train"].image_group[owners["train"]]
        owner = np.repeat(np.arange(len(groups)), each)
        train = Split(range(len(groups)), captions["train"], owner, groups)
        _write_noise(part / "noise", train, ratios, seeds, granularity)
        weights = weights_identity(model="effnet_minilm", pretrained="packages")
        source = {
            "data set": data.name,
            "fingerprint": data.fingerprint,
            "regions": f"EfficientNet-Lite0, {IMAGE_SIZE} px, 6 x 6",
            "weights": weights,
        }
        (part / "source.json").write_text(json.dumps(source, indent=1))


def _captions_each(data: DataSet) -> int:
    """Captions per exported image, 1 or 5. Raises DataError if a training image with captions has too few."""
    if max(int(np.bincount(split.owner).max()) for split in data.splits.values()) == 1:
        return 1
    counts = np.bincount(data["train"].owner)
    fewest = int(counts[counts > 0].min())
    if fewest < CAPTIONS:
        raise DataError(
            f"data set {data.name!r}: a training image owns {fewest} captions (allowed: one for every image, "
            f"or at least {CAPTIONS} for every image)"
        )
    return CAPTIONS


def _write_captions(folder: Path, name: str, split: Split, owners: NDArray[np.int64], each: int) -> list[str]:
    """Write the first `each` captions of each image, and return them. The layout has no room for fewer: an
    image of dev or test with fewer has its own repeated in turn.
    """
    by_image: dict[int, list[str]] = {int(i): [] for i in owners}
    for caption, image in zip(split.captions, split.owner.tolist(), strict=True):
        by_image[image].append(" ".join(caption.split()))
    written = [c for image in owners.tolist() for c in islice(cycle(by_image[image]), each)]
    if each == 1:
        with open(folder / f"{name}_caps.tsv", "w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, delimiter="\t", lineterminator="\n").writerows(
                zip(owners.tolist(), written, strict=True)
            )
    else:
        (folder / f"{name}_caps.txt").write_text("\n".join(written) + "\n", encoding="utf-8")
    return written


@torch.inference_mode()
def _write_features(
    path: Path, split: Split, images: NDArray[np.int64], towers: torch.nn.Module, name: str
) -> None:
    """Write the region features of the given images, float32 [N, 36, 1280], in chunks."""
    trunk = towers.model.visual.trunk  # type: ignore[union-attr]

    def regions(indices: Sequence[int]) -> Tensor:
        pictures = torch.stack([towers.transform(split.images[i]) for i in indices])  # type: ignore[operator]
        grid = trunk.forward_features(towers.normalized(pictures))  # type: ignore[operator, union-attr]
        return grid.flatten(2).mT  # type: ignore[no-any-return]

    chunks = [images[i : i + CHUNK].tolist() for i in range(0, len(images), CHUNK)]
    shape = tuple(regions(chunks[0][:1]).shape[1:])
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(len(images), *shape))
    done = 0
    for chunk in progress(chunks, f"regions of {len(images)} pictures ({name})"):
        out[done : done + len(chunk)] = regions(chunk).numpy()
        done += len(chunk)
    out.flush()


def _write_noise(
    folder: Path, split: Split, ratios: Sequence[float], seeds: Sequence[int], granularity: str
) -> None:
    """Write a noise index of the exported training split for each ratio and seed."""
    for ratio in ratios:
        for seed in seeds:
            folder.mkdir(exist_ok=True)
            index = make_noise(split, ratio=ratio, granularity=granularity, seed=seed)
            np.save(folder / f"{granularity}_{ratio:g}_seed{seed}.npy", index.image)
