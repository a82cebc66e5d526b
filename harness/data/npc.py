"""NPC's layout (released code, `data.py`): `annotations/scan_split/{train,dev,test}_{ids,caps}.txt` beside
`images/`.

`train_ids.txt` names an image a line, with one caption each or five; the ids of dev and test stand once for
each caption. An id is, for Flickr30K, a line number (from 0) of `image_name.txt`; for MS-COCO the number in
`COCO_2014_000000000042.jpg` (the images renamed as NPC's README says); for CC120K the file name without
`.jpg`.
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

CAPTIONS = 5  # of an image, where ids stand once for each image
SUBFOLDER = Path("annotations") / "scan_split"


OPTIONS = PictureOptions


def load(**options: Any) -> DataSet:
    """Read the data set; `dataset_options` are those of `PictureOptions`.

    Raises:
        DataError: an option or a file is wrong, ids and captions do not fit together, or an image is missing.
    """
    given = read_options(OPTIONS, options)
    return listing(given).dataset(given)


def recognise(folder: Path) -> bool:
    return (folder / SUBFOLDER / "train_ids.txt").is_file()


def listing(options: PictureOptions) -> Listing:
    """What the files say; an id that names no image, and counts that do not fit, are faults."""
    root = Path(options.folder)
    found = Listing(root.name)
    ids = {name: read_lines(root / SUBFOLDER / f"{name}_ids.txt", found.faults) for name in SPLITS}
    captions = {name: read_lines(root / SUBFOLDER / f"{name}_caps.txt", found.faults) for name in SPLITS}
    if found.faults:
        return found
    path_of = _naming(root, next((i for lines in ids.values() for i in lines if i), ""), found)
    for name in SPLITS:
        _add(found, name, root, ids[name], captions[name], path_of)
    return found


def _add(
    found: Listing,
    name: str,
    root: Path,
    ids: list[str],
    captions: list[str],
    path_of: Callable[[str], str | None],
) -> None:
    files = f"{SUBFOLDER / name}_{{ids,caps}}.txt"
    if not ids or len(captions) not in (len(ids), CAPTIONS * len(ids)):
        found.faults.append(
            f"{files}: {len(ids)} ids do not fit {len(captions)} captions (expected one for each caption, "
            f"or for each {CAPTIONS} of them)"
        )
        return
    each = len(captions) // len(ids)
    distinct, of = by_image(Strings(ids))
    if each > 1 and len(distinct) < len(ids):
        found.faults += [
            f"{files}: the id {i!r} stands there {n} times" for i, n in Counter(ids).items() if n > 1
        ]
        return
    paths = [path_of(i) for i in distinct]
    wrong = [i for i, path in zip(distinct, paths, strict=True) if path is None]
    found.faults += [f"{files}: the id {i!r} names no image" for i in wrong]
    if not wrong:
        owner = np.repeat(of, each)
        found.add(name, Files(root / "images", Strings(str(p) for p in paths)), Strings(captions), owner)


def _naming(root: Path, first: str, found: Listing) -> Callable[[str], str | None]:
    """From ids to file names: told by what lies in the folder."""
    names_file = root / SUBFOLDER / "image_name.txt"
    if names_file.is_file():
        names = read_lines(names_file, found.faults)
        found.published = "flickr30k"
        return lambda i: names[int(i)] if i.isdecimal() and len(i) < 19 and int(i) < len(names) else None
    coco = f"COCO_2014_{first.rjust(12, '0')}.jpg"
    if is_file(root / "images" / coco):
        found.published = "coco"
        return lambda i: f"COCO_2014_{i.rjust(12, '0')}.jpg" if i.isdecimal() else None
    if not is_file(root / "images" / f"{first}.jpg"):
        found.faults.append(
            f"{root / 'images'}: neither {coco} (MS-COCO) nor {first}.jpg (CC120K) is there, and no "
            f"{names_file} (Flickr30K)"
        )
    found.published = "cc120k"
    return lambda i: f"{i}.jpg" if i else None
