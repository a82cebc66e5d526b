"""Pictures as the towers see them, in uint8: cut to size on the CPU, kept on disk, normalised on the device.

Open_clip's image transform for evaluation draws nothing, and a trial sees each picture in every epoch. It is
divided in two. The spatial part (resize, crop) makes uint8 pixels, a quarter of the bytes, which are stored
once for all trials and models that share it. Scale and normalisation are a few operations of the network
(`towers.Towers.encode_image`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from harness.backbones.features import LiveInputs
from harness.data.base import DataError, DataSet, Split
from harness.data.pictures import Pictures
from harness.lib.console import progress
from harness.lib.files import atomic_write, cache_directory

SHARE_OF_DISK = 0.25
"""The share of the free disk space that the pixels of a data set may take with `pixel_cache: auto`."""
CHUNK = 256  # pictures in memory while they are stored


class SpatialTransform:
    """The part of an image transform before `ToTensor`, and the normalisation after it.

    Args:
        steps: PIL image -> PIL image (RGB), one after another.
        mean: of the normalisation, for each channel.
        std: of the normalisation, for each channel.

    Attributes:
        identity: what determines the pixels of a picture, as JSON values.
    """

    def __init__(
        self, steps: Sequence[Callable[[Any], Any]], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.steps, self.mean, self.std = steps, mean, std
        # A step's text leaves out the colour that it pads with.
        self.identity = [f"{step!r} {getattr(step, 'fill', '')}" for step in steps]
        self.identity += [f"{p} {version(p)}" for p in ("Pillow", "torchvision", "open_clip_torch")]

    def __call__(self, picture: Any) -> Tensor:
        """PIL image -> pixels uint8 [3, H, W]."""
        for step in self.steps:
            picture = step(picture)
        return torch.from_numpy(np.array(picture, np.uint8)).permute(2, 0, 1).contiguous()


def spatial_transform(transform: Any) -> SpatialTransform | None:
    """The spatial part of an image transform; None if it is not known to make uint8 pictures.

    Args:
        transform: PIL image -> pixels [3, H, W]. Divided are torchvision's `Compose` of resizing, cropping,
            conversion to RGB, `ToTensor` and `Normalize`, which is what open_clip makes for evaluation.
    """
    from open_clip.transform import CenterCropOrPad, MaybeConvertMode, ResizeKeepRatio
    from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor

    known = (CenterCrop, CenterCropOrPad, MaybeConvertMode, Resize, ResizeKeepRatio)
    if not isinstance(transform, Compose) or len(transform.transforms) < 3:
        return None
    *steps, to_tensor, normalize = transform.transforms
    if not isinstance(to_tensor, ToTensor) or not isinstance(normalize, Normalize):
        return None
    draws = any(getattr(s, k, 0) for s in steps for k in ("random_scale_prob", "random_aspect_prob"))
    if draws or any(type(step) not in known for step in steps):
        return None
    return SpatialTransform(steps, normalize.mean, normalize.std)


class PixelInputs(LiveInputs):
    """Stored pixels, read by index, and captions, tokenized when they are read.

    Args:
        pixels: uint8 [N, 3, H, W], mapped from their file.
        split: the split of the pictures.
        transform: see `LiveInputs`.
        tokenize: see `LiveInputs`.
    """

    at_hand = frozenset({"images"})

    def __init__(
        self,
        pixels: Tensor,
        split: Split,
        transform: Callable[[Any], Tensor],
        tokenize: Callable[[list[str]], Tensor],
    ) -> None:
        super().__init__(split, transform, tokenize)
        self.pixels = pixels

    def images(self, index: Tensor) -> Tensor:
        """[b] -> pixels uint8 [b, 3, H, W]."""
        return self.pixels[index]


def stored_pixels(
    data: DataSet, name: str, transform: SpatialTransform, *, required: bool, quiet: bool
) -> Tensor | None:
    """The pixels of a split, mapped from a file of the cache that is written once for all trials.

    The file appears under its name when it is complete. One process writes under a lock, and others wait. A
    file that cannot be read is written again.

    Args:
        data: the data set.
        name: name of the split.
        transform: what makes the pixels.
        required: store them whatever their size. Otherwise they are stored if the pixels of all splits take
            at most `SHARE_OF_DISK` of the free disk space and the cache directory can be written.
        quiet: show no progress.

    Returns:
        uint8 [N, 3, H, W], or None if they are not stored.

    Raises:
        DataError: a picture cannot be decoded; or the pixels are required and the disk has no room for them.
        OSError: the pixels are required and cannot be written.
    """
    images = data[name].images
    key = {"pixels": transform.identity, "data": data.fingerprint, "split": name}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    file = cache_directory() / "pixels" / f"{digest}.npy"
    shape = (len(images), *transform(images[0]).shape)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            pixels = read_pixels(file, shape)
            if pixels is None and _fits(data, shape, file.parent, required=required):
                label = f"storing {shape[0]:,} pictures ({name}) in {shape[2]} x {shape[3]} pixels, "
                label += f"{prod(shape) / 1e6:,.0f} MB in {file.parent}"
                write_pixels(file, images, transform, label=None if quiet else label)
                pixels = read_pixels(file, shape)
    except OSError:
        if required:
            raise
        return None
    return pixels


def _fits(data: DataSet, shape: tuple[int, ...], folder: Path, *, required: bool) -> bool:
    """Whether the pixels of a split (`shape`) are to be stored. See `stored_pixels`."""
    free = shutil.disk_usage(folder).free
    if not required:
        pictures = sum(len(split.images) for split in data.splits.values())
        return pictures * prod(shape[1:]) <= SHARE_OF_DISK * free
    if prod(shape) > free:
        raise DataError(
            f"pixel_cache: true: {shape[0]:,} pictures take {prod(shape) / 1e6:,.0f} MB, and {folder} has "
            f"{free / 1e6:,.0f} MB free"
        )
    return True


def read_pixels(file: Path, shape: tuple[int, ...]) -> Tensor | None:
    """Pixels of `shape` [N, 3, H, W], mapped from a file; None if it is missing or invalid."""
    try:
        # Pages are shared with other processes; torch wants arrays that could be written.
        pixels = np.load(file, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    valid = isinstance(pixels, np.ndarray) and pixels.shape == shape and pixels.dtype == np.uint8
    return torch.from_numpy(pixels) if valid else None


def write_pixels(
    file: Path, images: Sequence[Any], transform: SpatialTransform, *, label: str | None = None
) -> None:
    """Write the pixels of pictures to a file, uint8 [N, 3, H, W] in the format of NumPy.

    Args:
        images: N PIL pictures.
        label: of the progress that is shown; None: none is.

    Raises:
        DataError: a picture cannot be decoded.
        OSError: the file cannot be written.
    """
    shape = (len(images), *transform(images[0]).shape)
    with atomic_write(file, sync=True) as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for chunk in _transformed(images, transform, label):
            stream.write(chunk.numpy().data)


def _transformed(images: Sequence[Any], transform: SpatialTransform, label: str | None) -> Iterator[Tensor]:
    """The pixels of all pictures in chunks, uint8 [c, 3, H, W] each.

    Pictures of the harness are decoded by several threads. A sequence of the user's own may not be safe to
    read so.
    """
    threads = os.cpu_count() or 1 if isinstance(images, Pictures) else 1
    starts = range(0, len(images), CHUNK)
    # Decoding changes the warning filters for a moment, which threads would do to each other.
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        for start in progress(starts, label):
            chunk = range(start, min(start + CHUNK, len(images)))
            yield torch.stack(list(pool.map(lambda i: transform(images[i]), chunk)))
