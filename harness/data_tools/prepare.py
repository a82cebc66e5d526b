"""Pictures made small once: WebDataset shards that a trial reads in place of the originals (see
`webdataset.py`).

A picture's shorter side becomes the model's input size, by the same bicubic filter that the model's own
transform uses, so what is left for a trial is to read, to decode few pixels, and to crop. `png` keeps the
very pixels (a trial gets the same inputs, bit for bit); `jpeg` and
`webp` at quality 95 are a tenth of that, and not quite the same pictures: the data set gets another
fingerprint.
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
SHARD = 2_000  # pictures in a shard


def prepare(
    data: DataSet, folder: Path, *, size: int, form: str = "jpeg", threads: int | None = None
) -> None:
    """Write `folder` with shards of every split, and `dataset.json` about them. All or nothing is written.

    Args:
        data: a data set of pictures.
        size: pixels of the shorter side: the model's input size.
        form: one of `FORMATS`.

    Raises:
        DataError: the folder exists, the data set has no pictures, or one cannot be decoded.
    """
    if folder.exists():
        raise DataError(f"{folder} exists already: remove it, or choose another --out")
    if data["train"].kind != "pictures":
        raise DataError(f"{data.name!r} has region features, and no pictures to prepare")
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
    """The picture with its shorter side at `size`, as torchvision's `Resize` rounds it; a smaller picture
    grows, as it would in the trial.
    """
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    if short == size:
        return picture
    other = int(size * long / short)
    return picture.resize((size, other) if width <= height else (other, size), Image.Resampling.BICUBIC)


def _write_split(folder: Path, name: str, split: Split, size: int, form: str, threads: int) -> None:
    suffix, how = FORMATS[form]
    captions: list[list[str]] = [[] for _ in range(len(split.images))]
    places: list[list[int]] = [[] for _ in range(len(split.images))]
    for place, (caption, image) in enumerate(zip(split.captions, split.owner.tolist(), strict=True)):
        captions[image].append(caption)
        places[image].append(place)
    grouped = len(np.unique(split.image_group)) < len(split.images)

    def encode(i: int) -> bytes:
        stream = io.BytesIO()
        try:
            smaller(split.images[i], size).save(stream, **how)
        except (OSError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            name_of_picture = split.images.name(i)  # type: ignore[attr-defined]
            raise DataError(
                f"picture {name_of_picture} cannot be written as {form} at {size} pixels: {error}"
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
    """Results in order, with few ahead of the one that is written."""
    for start in range(0, len(rows), 256):
        yield from pool.map(encode, rows[start : start + 256])


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
