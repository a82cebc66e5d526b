"""Pictures resized once, in WebDataset shards that a trial reads instead of the originals (`webdataset.py`).

The shorter side of a picture becomes the model's input size, by the bicubic filter of the model's own
transform, so that a trial only decodes few pixels and crops. `png` is lossless: a trial gets the same inputs,
bit for bit. `jpeg` and `webp` (quality 95) take a tenth of the space and change the pictures slightly. The
prepared data set has another fingerprint than the original.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harness.data.base import DataError, DataSet, Split
from harness.data.webdataset import ABOUT, About
from harness.lib.console import progress
from harness.lib.files import complete_directory

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("jpg", {"format": "JPEG", "quality": 95, "subsampling": 0}),
    "webp": ("webp", {"format": "WEBP", "quality": 95, "method": 4}),
    "png": ("png", {"format": "PNG", "compress_level": 4}),
}
"""File name suffix and Pillow's options for each value of `--format`."""
SHARD = 2_000
"""Pictures per shard."""


def prepare(
    data: DataSet, folder: Path, *, size: int, form: str = "jpeg", threads: int | None = None
) -> None:
    """Write shards of every split, and `dataset.json` about them. If an error occurs, nothing is written.

    Args:
        data: a data set of pictures.
        folder: the directory to create.
        size: shorter side in pixels: the model's input size.
        form: one of `FORMATS`.
        threads: number of threads that resize and encode (default: the number of processors).

    Raises:
        DataError: the directory exists, the data set has no pictures, or a picture cannot be decoded or
            encoded.
    """
    if folder.exists():
        raise DataError(f"{folder} exists already: remove it, or choose another --out")
    if data["train"].kind != "pictures":
        raise DataError(f"data set {data.name!r} has region features and no pictures to prepare")
    ids = data.coco_ids and (data.coco_ids[0].tolist(), data.coco_ids[1].tolist())
    about = About(
        name=data.name,
        note=data.note,
        made_from=data.fingerprint,
        size=size,
        format=form,
        pillow=version("Pillow"),
        skipped=dict(data.skipped),
        coco_ids=ids,
    )
    with complete_directory(folder) as part:
        for name, split in data.splits.items():
            _write_split(part, name, split, size, form, threads or os.cpu_count() or 1)
        (part / ABOUT).write_text(about.model_dump_json(), encoding="utf-8")


def smaller(picture: Image.Image, size: int) -> Image.Image:
    """Resize a picture to a shorter side of `size` pixels, with the rounding of torchvision's `Resize`.

    Smaller pictures are enlarged, as in a trial.
    """
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    if short == size:
        return picture
    other = int(size * long / short)
    return picture.resize((size, other) if width <= height else (other, size), Image.Resampling.BICUBIC)


def _write_split(folder: Path, name: str, split: Split, size: int, form: str, threads: int) -> None:
    """Write the shards of a split: `KEY.SUFFIX` and `KEY.json` for each image."""
    suffix, options = FORMATS[form]
    captions: list[list[str]] = [[] for _ in range(len(split.images))]
    places: list[list[int]] = [[] for _ in range(len(split.images))]
    for index, (caption, image) in enumerate(zip(split.captions, split.owner.tolist(), strict=True)):
        captions[image].append(caption)
        places[image].append(index)
    grouped = len(np.unique(split.image_group)) < len(split.images)

    def encode(i: int) -> bytes:
        stream = io.BytesIO()
        try:
            smaller(split.images[i], size).save(stream, **options)
        except (OSError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            picture = split.images.name(i)  # type: ignore[attr-defined]
            raise DataError(
                f"picture {picture} cannot be written as {form} at {size} pixels: {error}"
            ) from None
        return stream.getvalue()

    starts = range(0, len(split.images), SHARD)
    with ThreadPoolExecutor(threads) as pool:
        for number, start in enumerate(
            progress(starts, f"{len(split.images):,} pictures of {name} at {size} pixels")
        ):
            rows = range(start, min(start + SHARD, len(split.images)))
            with tarfile.open(folder / f"{name}-{number:06}.tar", "w") as tar:
                for i, content in zip(rows, _in_order(pool, encode, rows), strict=True):
                    about: dict[str, Any] = {"captions": captions[i], "places": places[i]}
                    if grouped or not captions[i]:
                        about["group"] = int(split.image_group[i])
                    _add(tar, f"{i:09}.{suffix}", content)
                    _add(tar, f"{i:09}.json", json.dumps(about, ensure_ascii=False).encode())


def _in_order(pool: ThreadPoolExecutor, encode: Any, rows: range) -> Iterator[bytes]:
    """Encoded pictures in order, at most 256 of them in memory."""
    for start in range(0, len(rows), 256):
        yield from pool.map(encode, rows[start : start + 256])


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
