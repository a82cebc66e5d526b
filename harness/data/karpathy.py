"""Karpathy's JSON (`dataset_flickr30k.json`, `dataset_coco.json`) with a directory of images.

The file defines the splits; `restval` belongs to train. An image has its first five captions, as in SCAN's
files; some images of MS-COCO have more. (Karpathy and Fei-Fei, CVPR 2015.)
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
"""Captions per image."""
_IMAGE_DIRECTORIES = (".", "images", "flickr30k-images", "flickr30k_images", "Images")


class KarpathyOptions(PictureOptions):
    """`dataset_options` of this layout; see also `PictureOptions`.

    Attributes:
        file: the JSON file in `folder` (default: the only `dataset_*.json`).
        images: the directory of the images, relative to `folder` (default: searched for).
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


def recognise(directory: Path) -> bool:
    """Whether a directory has this layout."""
    return any(directory.glob("dataset_*.json"))


def listing(options: KarpathyOptions) -> Listing:
    """Read the JSON file. Images with fewer than five captions or of an unknown split are errors."""
    root = Path(options.folder)
    files = [root / options.file] if options.file else sorted(root.glob("dataset_*.json"))
    listing = Listing(root.name)
    if len(files) != 1:
        names = ", ".join(f.name for f in files) or "none"
        listing.errors.append(
            f"{root}: expected one dataset_*.json, found {names}; name it with dataset_options.file"
        )
        return listing
    content = _read(files[0], listing)
    if content is None:
        return listing
    listing.name = str(content.get("dataset") or root.name)
    listing.published = listing.name if listing.name in ("coco", "flickr30k") else ""
    rows = _by_split(content["images"], files[0].name, listing)
    first = next((paths[0] for paths, *_ in rows.values() if paths), "")
    images = _image_directory(root, options.images, first, listing)
    for name, (paths, captions, image_ids, caption_ids) in rows.items():
        owner = np.repeat(np.arange(len(paths)), CAPTIONS)
        listing.add_split(name, Files(images, Strings(paths)), captions=Strings(captions), owner=owner)
        if name == "test" and all(type(i) is int and 0 <= i < 2**63 for i in (*image_ids, *caption_ids)):
            listing.coco_ids = (np.array(image_ids, np.int64), np.array(caption_ids, np.int64))
    return listing


Rows = tuple[list[str], list[str], list[int], list[int]]
"""Paths, captions, image ids and caption ids of a split."""


def _read(file: Path, listing: Listing) -> dict[str, Any] | None:
    """The content of the JSON file; None, with an error in the listing, if it cannot be used."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        listing.errors.append(f"{file} cannot be read: {error.strerror}")
        return None
    except (ValueError, RecursionError) as error:
        listing.errors.append(f"{file} is not JSON in UTF-8: {' '.join(str(error).split())}")
        return None
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        listing.errors.append(f"{file}: expected an object with a list 'images', as in Karpathy's files")
        return None
    return content


def _by_split(entries: list[Any], file: str, listing: Listing) -> dict[str, Rows]:
    """Paths, five captions each, and the ids of images and captions (-1 if unknown), by split."""
    rows: dict[str, Rows] = {name: ([], [], [], []) for name in ("train", "dev", "test")}
    for number, entry in enumerate(entries):
        where = f"{file}: image {number}"
        try:
            path = os.path.normpath("/".join(p for p in (entry.get("filepath"), entry["filename"]) if p))
            texts = [" ".join(s["raw"].split()) for s in entry["sentences"]]
            ids = [s.get("sentid", -1) for s in entry["sentences"]]
            word, image_id = entry["split"], entry.get("cocoid", -1)
            "".join([path, *texts]).encode()  # half of a surrogate pair is not text
        except (KeyError, TypeError, AttributeError, UnicodeEncodeError):
            listing.errors.append(
                f"{where}: expected filename, split, and sentences with 'raw', found {str(entry)[:80]}"
            )
            continue
        split = split_name(str(word))
        if split is None:
            listing.errors.append(
                f"{where} ({path}): unknown split {word!r} (allowed: train, restval, val, test)"
            )
        elif len(texts) < CAPTIONS:
            listing.errors.append(f"{where} ({path}) has {len(texts)} captions, expected at least {CAPTIONS}")
        else:
            paths, captions, image_ids, caption_ids = rows[split]
            paths.append(path)
            captions += texts[:CAPTIONS]
            image_ids.append(image_id)
            caption_ids += ids[:CAPTIONS]
    return {name: columns for name, columns in rows.items() if columns[0]}


def _image_directory(root: Path, given: str | None, first: str, listing: Listing) -> Path:
    """The directory of the images: the given one, or the one that contains the image `first`."""
    if given:
        if not (root / given).is_dir():
            listing.errors.append(f"dataset_options.images = {given!r}: no such directory in {root}")
        return root / given
    for name in _IMAGE_DIRECTORIES:
        if is_file(root / name / first):
            return root / name
    directories = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir())) or "none"
    listing.errors.append(
        f"{root}: {first} is in none of {', '.join(_IMAGE_DIRECTORIES)} (directories in {root}: "
        f"{directories}); name its directory with dataset_options.images"
    )
    return root
