"""`python -m harness.data check PATH`: everything about a data set that can be known before a long run.

Faults make the exit code 1; notes (counts that differ from the published ones, captions that a model will
cut, odd characters) do not.
"""

from __future__ import annotations

import importlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from harness.data import recognise
from harness.data.base import DataError
from harness.data.layout import Listed, Listing, decode_all, read_options
from harness.data.pictures import PICTURE_SUFFIXES, Files, Pictures
from harness.data.scan import Regions
from harness.lib.console import console

PUBLISHED = {
    "flickr30k": {"train": 29_000, "dev": 1_014, "test": 1_000},
    "coco": {"train": 113_287, "dev": 5_000, "test": 5_000},
    "cc120k": {"train": 118_851, "dev": 1_000, "test": 1_000},
    "cc152k": {"train": 150_000, "dev": 1_000, "test": 1_000},
}
"""Images in each split, as the papers have them (`docs/field.md`)."""
CONTEXT = 77  # tokens that CLIP's text tower reads; start and end are two of them
_MOJIBAKE = re.compile(r"\ufffd|Ã[\x80-\xbf¡-¿]|â€|[\x00-\x08\x0b-\x1f\x7f]")


@dataclass
class Findings:
    """What `check` found.

    Attributes:
        layout: the layout's name.
        listing: the files as they were read.
        errors: what would spoil a run, one line each.
        notes: what one should know.
    """

    layout: str
    listing: Listing
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check(
    folder: Path,
    *,
    layout: str | None = None,
    options: dict[str, Any] | None = None,
    threads: int | None = None,
) -> Findings:
    """Look at everything: texts, counts, and every picture.

    Raises:
        DataError: the folder is of no known layout, or an option is wrong.
    """
    if not folder.is_dir():
        raise DataError(f"folder {folder} does not exist")
    name = layout or recognise(folder)
    module = importlib.import_module(f"harness.data.{name}")
    given = read_options(module.OPTIONS, {"folder": str(folder), **(options or {})})
    listing: Listing = module.listing(given)
    listing.published = listing.published or _guess(folder, listing)
    found = Findings(name, listing)
    found.errors += listing.problems
    for split, listed in listing.splits.items():
        _check_captions(split, listed, found)
    digests = {
        s: _check_pictures(s, listed.images, found, threads)
        for s, listed in listing.splits.items()
        if isinstance(listed.images, Pictures)
    }
    for split, listed in listing.splits.items():
        if listed.kind == "regions":
            found.errors += [
                f"{split}: the region features of image {i} are not finite" for i in _broken(listed.images)
            ]
    found.errors += _duplicates(digests, listing)
    if not found.errors:
        try:  # what else loading would refuse: options that do not go with these counts
            listing.dataset(given.model_copy(update={"on_bad_image": "error"}))
        except DataError as error:
            found.errors.append(str(error))
    found.notes += _unused(listing) + _counts(listing)
    return found


def _guess(folder: Path, listing: Listing) -> str:
    """Whose counts to compare with, by the folder's name, where the layout does not tell."""
    word = f"{listing.name} {folder.resolve().name}".lower()
    return next(
        (name for part, name in (("f30k", "flickr30k"), *((n, n) for n in PUBLISHED)) if part in word), ""
    )


def show(found: Findings) -> int:
    """Print the findings, every one; returns the exit code."""
    listing = found.listing
    published = PUBLISHED.get(listing.published, {})
    table = Table(
        "split",
        "images",
        "captions",
        "captions an image",
        *(["images published"] if published else []),
        title=escape(f"{listing.name} (layout {found.layout})"),
    )
    for split, listed in listing.splits.items():
        counts = Counter(np.bincount(listed.owner, minlength=len(listed.images)).tolist())
        each = (
            ", ".join(f"{k}: {n:,} images" for k, n in sorted(counts.items())[:6])
            if len(counts) > 1
            else str(next(iter(counts), 0))
        )
        more = [f"{published[split]:,}" if split in published else "–"] if published else []
        table.add_row(split, f"{len(listed.images):,}", f"{len(listed.captions):,}", each, *more)
    console.print(table)
    for heading, lines in (("error", found.errors), ("note", found.notes)):
        for line in lines:
            print(f"{heading}: {line}")
    if found.errors:
        console.print(
            f"[bold red]{len(found.errors)} error{'s' if len(found.errors) > 1 else ''}[/], "
            f"{len(found.notes)} notes"
        )
        return 1
    console.print(f"no faults, {len(found.notes)} note{'' if len(found.notes) == 1 else 's'}")
    return 0


def _check_captions(split: str, listed: Listed, found: Findings) -> None:
    texts = list(listed.captions)

    def where(i: int) -> str:
        return f"{split}: caption {i} (of {_name(listed.images, int(listed.owner[i]))})"

    found.errors += [f"{where(i)} is empty" for i, text in enumerate(texts) if not text.strip()]
    without = np.flatnonzero(np.bincount(listed.owner, minlength=len(listed.images)) == 0)
    if listed.group is None or split == "train":
        found.errors += [f"{split}: {_name(listed.images, int(i))} has no caption" for i in without]
    odd = [i for i, text in enumerate(texts) if _MOJIBAKE.search(text)]
    found.notes += [f"{where(i)} looks wrongly decoded: {texts[i][:60]!r}" for i in odd]
    found.notes += [
        f"{where(i)} has {n} tokens: CLIP reads {CONTEXT - 2} of them" for i, n in _too_long(texts)
    ]


def _too_long(texts: Sequence[str]) -> Iterable[tuple[int, int]]:
    """Captions with more tokens than CLIP reads. A token is at least a byte, so short ones are not
    looked at.
    """
    suspects = [i for i, text in enumerate(texts) if len(text.encode()) > CONTEXT - 2]
    if not suspects:
        return
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    for i in suspects:
        count = len(tokenizer.encode(texts[i]))
        if count > CONTEXT - 2:
            yield i, count


def _name(images: Any, i: int) -> str:
    return images.name(i) if isinstance(images, Pictures) else f"image {i}"


def _check_pictures(split: str, images: Pictures, found: Findings, threads: int | None) -> list[str]:
    """Hash of each picture's bytes, empty where there are none; the faults go to `found`."""
    digests = []
    for decoded in decode_all(
        images, f"decoding {len(images):,} pictures of {split}", threads=threads or os.cpu_count() or 1
    ):
        digests.append(decoded.digest)
        if decoded.error:
            found.errors.append(f"{split}: {decoded.error}")
    return digests


def _broken(images: Regions) -> Iterable[int]:
    """Images with an infinite region feature or one that is no number; read piece by piece, for the file may
    be larger than the memory.
    """
    for start in range(0, len(images), 256):
        rows = np.arange(start, min(start + 256, len(images)))
        yield from rows[~np.isfinite(images[rows]).all(axis=(1, 2))].tolist()


def _duplicates(digests: dict[str, list[str]], listing: Listing) -> list[str]:
    """The same picture, byte for byte, in two splits."""
    places: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for split, found in digests.items():
        for i, digest in enumerate(found):
            if digest:
                places[digest].append((split, i))
    faults = []
    for same in places.values():
        if len({split for split, _ in same}) > 1:
            names = [f"{split} {listing.splits[split].images.name(i)}" for split, i in same]
            faults.append(f"the same picture in several splits: {', '.join(names[:6])}")
    return faults


def _unused(listing: Listing) -> list[str]:
    """Pictures that lie in the folder and in no split (Flickr30K and MS-COCO come with some)."""
    mine = [s.images for s in listing.splits.values() if isinstance(s.images, Files)]
    if not mine:
        return []
    folder = mine[0].folder
    used = {os.path.normpath(path.as_py()) for images in mine for path in images.paths.array}
    there = (
        os.path.relpath(Path(at, f), folder)
        for at, _, files in os.walk(folder)
        for f in files
        if Path(f).suffix.lower() in PICTURE_SUFFIXES
    )
    unused = sorted(f for f in there if f not in used)
    shown = f"{', '.join(unused[:5])}{' ...' if len(unused) > 5 else ''}"
    return [f"{len(unused):,} pictures in {folder} have no caption in any split: {shown}"] if unused else []


def _counts(listing: Listing) -> list[str]:
    published = PUBLISHED.get(listing.published, {})
    have = {split: len(listing.splits[split].images) if split in listing.splits else 0 for split in published}
    return [
        f"{split} has {have[split]:,} images, {listing.published} as published {count:,}"
        for split, count in published.items()
        if have[split] != count
    ]
