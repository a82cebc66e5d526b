"""Karpathy's JSON (`dataset_flickr30k.json`, `dataset_coco.json`) beside a folder of images.

Splits are the file's own, `restval` is train, and an image has its first five captions, as the field counts
them (MS-COCO has more for some; Karpathy and Fei-Fei 2015, and SCAN's files).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.base import DataSet, Strings
from harness.data.layout import Listing, PictureOptions, read_options, split_name
from harness.data.pictures import Files
from harness.lib.files import is_file

CAPTIONS = 5
_PLACES = (".", "images", "flickr30k-images", "flickr30k_images", "Images")


class KarpathyOptions(PictureOptions):
    """`dataset_options`: see `PictureOptions`, and

    Attributes:
        file: the JSON file, in `folder` (default: the one `dataset_*.json` there).
        images: where the images are, under `folder` (default: looked for).
    """

    file: str | None = None
    images: str | None = None


OPTIONS = KarpathyOptions


def load(**options: Any) -> DataSet:
    """Read the data set; see `KarpathyOptions`.

    Raises:
        DataError: an option or a file is wrong, an image is missing or has fewer than five captions.
    """
    given = read_options(OPTIONS, options)
    return listing(given).dataset(given)


def recognise(folder: Path) -> bool:
    """Whether a folder is of this layout."""
    return any(folder.glob("dataset_*.json"))


def listing(options: KarpathyOptions) -> Listing:
    """What the file says; images with fewer captions than five, or of an unknown split, are faults."""
    root = Path(options.folder)
    files = [root / options.file] if options.file else sorted(root.glob("dataset_*.json"))
    found = Listing(root.name)
    if len(files) != 1:
        there = ", ".join(f.name for f in files) or "none"
        found.faults.append(
            f"{root}: expected one dataset_*.json, found {there}; name it with dataset_options.file"
        )
        return found
    content = _read(files[0], found)
    if content is None:
        return found
    found.name = str(content.get("dataset") or root.name)
    found.published = found.name if found.name in ("coco", "flickr30k") else ""
    rows = _by_split(content["images"], files[0].name, found)
    first = next((paths[0] for paths, *_ in rows.values() if paths), "")
    images = _image_folder(root, options.images, first, found)
    for name, (paths, captions, image_ids, caption_ids) in rows.items():
        owner = np.repeat(np.arange(len(paths)), CAPTIONS)
        found.add(name, Files(images, Strings(paths)), Strings(captions), owner)
        if name == "test" and all(type(i) is int and 0 <= i < 2**63 for i in (*image_ids, *caption_ids)):
            found.coco_ids = (np.array(image_ids, np.int64), np.array(caption_ids, np.int64))
    return found


Rows = tuple[list[str], list[str], list[int], list[int]]


def _read(file: Path, found: Listing) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        found.faults.append(f"{file} cannot be read: {error.strerror}")
        return None
    except (ValueError, RecursionError) as error:
        found.faults.append(f"{file} is not JSON in UTF-8: {' '.join(str(error).split())}")
        return None
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        found.faults.append(f"{file}: expected an object with a list 'images', as Karpathy's files have it")
        return None
    return content


def _by_split(entries: list[Any], file: str, found: Listing) -> dict[str, Rows]:
    """Paths, five captions each, and the numbers of images and captions (-1 where there is none)."""
    rows: dict[str, Rows] = {name: ([], [], [], []) for name in ("train", "dev", "test")}
    for number, entry in enumerate(entries):
        where = f"{file}: image {number}"
        try:
            path = os.path.normpath("/".join(p for p in (entry.get("filepath"), entry["filename"]) if p))
            texts, numbers = (
                [" ".join(s["raw"].split()) for s in entry["sentences"]],
                [s.get("sentid", -1) for s in entry["sentences"]],
            )
            word, image_id = entry["split"], entry.get("cocoid", -1)
            "".join([path, *texts]).encode()
        except (KeyError, TypeError, AttributeError, UnicodeEncodeError):
            found.faults.append(
                f"{where}: expected filename, split, and sentences with 'raw', found {str(entry)[:80]}"
            )
            continue
        split = split_name(str(word))
        if split is None:
            found.faults.append(
                f"{where} ({path}): unknown split {word!r} (allowed: train, restval, val, test)"
            )
        elif len(texts) < CAPTIONS:
            found.faults.append(
                f"{where} ({path}) has {len(texts)} captions, and every image needs {CAPTIONS}"
            )
        else:
            paths, captions, image_ids, caption_ids = rows[split]
            paths.append(path)
            captions += texts[:CAPTIONS]
            image_ids.append(image_id)
            caption_ids += numbers[:CAPTIONS]
    return {name: kept for name, kept in rows.items() if kept[0]}


def _image_folder(root: Path, given: str | None, first: str, found: Listing) -> Path:
    if given:
        if not (root / given).is_dir():
            found.faults.append(f"dataset_options.images = {given!r}: no such folder in {root}")
        return root / given
    for place in _PLACES:
        if is_file(root / place / first):
            return root / place
    folders = [p.name for p in root.iterdir() if p.is_dir()]
    found.faults.append(
        f"{root}: {first} is in none of {', '.join(_PLACES)} (folders there: "
        f"{', '.join(sorted(folders)) or 'none'}); "
        f"say where with dataset_options.images"
    )
    return root
