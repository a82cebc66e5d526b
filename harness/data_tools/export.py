"""Any data set with pictures in the SCAN layout, so that the field's repositories run on it (see `scan.py`).

A picture becomes 36 regions: the 6 x 6 spatial map of the packaged EfficientNet-Lite0 at 192 pixels. Images
without captions are left out (in `emoji`'s dev and test one picture of a concept owns its captions), so there
an image is its own group.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
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

IMAGE_SIZE, CHUNK = 192, 64


def export_scan(
    data: DataSet,
    folder: Path,
    *,
    ratios: Sequence[float] = (),
    seeds: Sequence[int] = (),
    granularity: str = "caption",
) -> None:
    """Write `folder` with features, captions, groups, vocabulary, and a noise index for each ratio and seed.

    The index `noise/caption_0.4_seed0.npy` is what NCR-line code takes as `--noise_file`: the image of each
    caption. It is the one that a trial here has at that ratio and `noise_seed`. All or nothing is written.

    Raises:
        DataError: the folder exists, there are no pictures, or images own neither one caption each nor five.
    """
    if folder.exists():
        raise DataError(f"{folder} exists already: remove it, or choose another --out")
    if data["train"].kind != "pictures":
        raise DataError(f"{data.name!r} has region features already")
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
        _write_noise(part / "noise", len(captions["train"]), each, ratios, seeds, granularity)
        weights = weights_identity(model="effnet_minilm", pretrained="packages")
        source = {
            "data set": data.name,
            "fingerprint": data.fingerprint,
            "regions": f"EfficientNet-Lite0, {IMAGE_SIZE} px, 6 x 6",
            "weights": weights,
        }
        (part / "source.json").write_text(json.dumps(source, indent=1))


def _captions_each(data: DataSet) -> int:
    """Captions for each image that owns any: one everywhere, or at least five everywhere."""
    least, most = [], []
    for split in data.splits.values():
        counts = np.bincount(split.owner)
        least.append(int(counts[counts > 0].min()))
        most.append(int(counts.max()))
    if max(most) == 1:
        return 1
    if min(least) < CAPTIONS:
        raise DataError(
            f"{data.name!r}: the layout has {CAPTIONS} captions an image (or one everywhere), and an image "
            f"owns {min(least)}"
        )
    return CAPTIONS


def _write_captions(folder: Path, name: str, split: Split, owners: NDArray[np.int64], each: int) -> list[str]:
    own: dict[int, list[str]] = {int(i): [] for i in owners}
    for caption, image in zip(split.captions, split.owner.tolist(), strict=True):
        own[image].append(" ".join(caption.split()))
    written = [caption for image in owners.tolist() for caption in own[image][:each]]
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
    trunk = towers.model.visual.trunk  # type: ignore[union-attr]

    def regions(at: Sequence[int]) -> Tensor:
        grid = trunk.forward_features(torch.stack([towers.transform(split.images[i]) for i in at]))  # type: ignore[operator, union-attr]
        return grid.flatten(2).mT  # type: ignore[no-any-return]

    chunks = [images[i : i + CHUNK].tolist() for i in range(0, len(images), CHUNK)]
    shape = tuple(regions(chunks[0][:1]).shape[1:])
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(len(images), *shape))
    done = 0
    for at in progress(chunks, f"regions of {len(images)} pictures ({name})"):
        out[done : done + len(at)] = regions(at).numpy()
        done += len(at)
    out.flush()


def _write_noise(
    folder: Path, captions: int, each: int, ratios: Sequence[float], seeds: Sequence[int], granularity: str
) -> None:
    images = captions // each
    split = Split(range(images), [""] * captions, np.arange(captions) // each, np.arange(images))
    for ratio in ratios:
        for seed in seeds:
            folder.mkdir(exist_ok=True)
            index = make_noise(split, ratio=ratio, granularity=granularity, seed=seed)
            np.save(folder / f"{granularity}_{ratio:g}_seed{seed}.npy", index.image)
