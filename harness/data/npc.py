"""NPC's layout (released code, `data.py`): `images/` and `annotations/scan_split/`.

`annotations/scan_split/` contains `{train,dev,test}_{ids,caps}.txt`. `train_ids.txt` has one line per image,
with one or five captions each; in dev and test an id is repeated for each caption. An id is, for Flickr30K, a
line number (from 0) of `image_name.txt`; for MS-COCO the number in `COCO_2014_000000000042.jpg` (the images
renamed as in NPC's README); for CC120K the file name without `.jpg`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.base import DataSet, Strings
from harness.data.layout import SPLITS, Listing, PictureOptions, by_image, read_lines, read_options
from harness.data.pictures import Files
from harness.lib.files import is_file

CAPTIONS = 5
"""Captions per image, in files with one id per image."""
SUBDIRECTORY = Path("annotations") / "scan_split"

OPTIONS = PictureOptions


def load(**options: Any) -> DataSet:
    """Read the data set; see `PictureOptions`.

    Raises:
        DataError: an option or a file is wrong, ids do not fit the captions, or an image is missing.
    """
    given = read_options(OPTIONS, options)
    return listing(given).dataset(given)


def recognise(directory: Path) -> bool:
    """Whether a directory has this layout."""
    return (directory / SUBDIRECTORY / "train_ids.txt").is_file()


def listing(options: PictureOptions) -> Listing:
    """Read the text files. Ids of no image and numbers of ids that do not fit the captions are errors."""
    root = Path(options.folder)
    listing = Listing(root.name)
    ids = {name: read_lines(root / SUBDIRECTORY / f"{name}_ids.txt", listing.errors) for name in SPLITS}
    captions = {name: read_lines(root / SUBDIRECTORY / f"{name}_caps.txt", listing.errors) for name in SPLITS}
    if listing.errors:
        return listing
    path_of = _naming(root, next((i for lines in ids.values() for i in lines if i), ""), listing)
    for name in SPLITS:
        _add_split(listing, name, root=root, ids=ids[name], captions=captions[name], path_of=path_of)
    return listing


def _add_split(
    listing: Listing,
    name: str,
    *,
    root: Path,
    ids: list[str],
    captions: list[str],
    path_of: Callable[[str], str | None],
) -> None:
    files = f"{SUBDIRECTORY / name}_{{ids,caps}}.txt"
    if not ids or len(captions) not in (len(ids), CAPTIONS * len(ids)):
        listing.errors.append(
            f"{files}: {len(ids)} ids do not fit {len(captions)} captions (expected one id for each caption, "
            f"or for every {CAPTIONS} captions)"
        )
        return
    each = len(captions) // len(ids)
    distinct, image = by_image(Strings(ids))
    if each > 1 and len(distinct) < len(ids):
        listing.errors += [
            f"{files}: the id {i!r} occurs {n} times (allowed: once)"
            for i, n in Counter(ids).items()
            if n > 1
        ]
        return
    paths = [path_of(i) for i in distinct]
    unknown = [i for i, path in zip(distinct, paths, strict=True) if path is None]
    listing.errors += [f"{files}: the id {i!r} names no image" for i in unknown]
    if not unknown:
        pictures = Files(root / "images", Strings(str(p) for p in paths))
        listing.add_split(name, pictures, captions=Strings(captions), owner=np.repeat(image, each))


def _naming(root: Path, first: str, listing: Listing) -> Callable[[str], str | None]:
    """The function from an id to a file name (None for an invalid id), by the files in the directory."""
    names_file = root / SUBDIRECTORY / "image_name.txt"
    if names_file.is_file():
        names = read_lines(names_file, listing.errors)
        listing.published = "flickr30k"
        return lambda i: names[int(i)] if i.isdecimal() and len(i) < 19 and int(i) < len(names) else None
    coco = f"COCO_2014_{first.rjust(12, '0')}.jpg"
    if is_file(root / "images" / coco):
        listing.published = "coco"
        return lambda i: f"COCO_2014_{i.rjust(12, '0')}.jpg" if i.isdecimal() else None
    if not is_file(root / "images" / f"{first}.jpg"):
        listing.errors.append(
            f"{root / 'images'}: expected {coco} (MS-COCO), {first}.jpg (CC120K), or the file {names_file} "
            f"(Flickr30K); found none of them"
        )
    listing.published = "cc120k"
    return lambda i: f"{i}.jpg" if i else None
