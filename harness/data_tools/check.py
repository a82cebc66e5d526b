"""`python -m harness.data check PATH`: check a data set completely before a long run.

Errors make the exit code 1. Notes do not: numbers of images that differ from the published ones, captions
that a model will truncate, characters that look wrongly decoded.
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
"""Published number of images in each split (`docs/field.md`)."""
CONTEXT = 77
"""Context length of CLIP's text tower in tokens, with the start and end tokens."""
_MOJIBAKE = re.compile(r"\ufffd|Ã[\x80-\xbf¡-¿]|â€|[\x00-\x08\x0b-\x1f\x7f]")


@dataclass
class Findings:
    """The result of `check`.

    Attributes:
        layout: name of the layout.
        listing: the content of the files.
        errors: what makes a run fail or its numbers wrong, one line each.
        notes: what a user should know, one line each.
    """

    layout: str
    listing: Listing
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check(
    directory: Path,
    *,
    layout: str | None = None,
    options: dict[str, Any] | None = None,
    threads: int | None = None,
) -> Findings:
    """Check texts, numbers of images, and every picture or region feature.

    Args:
        directory: the directory of the data set.
        layout: name of its layout (default: recognised from its files).
        options: further `dataset_options`.
        threads: number of decoding threads (default: the number of processors).

    Raises:
        DataError: the directory does not exist or has no known layout, or an option is wrong.
    """
    if not directory.is_dir():
        raise DataError(
            f"the directory {directory} does not exist (`check` reads the files of a directory; "
            "`harness.data show` also takes the name of a data set)"
        )
    name = layout or recognise(directory)
    module = importlib.import_module(f"harness.data.{name}")
    given = read_options(module.OPTIONS, {"folder": str(directory), **(options or {})})
    listing: Listing = module.listing(given)
    listing.published = listing.published or _published_name(directory, listing)
    findings = Findings(name, listing)
    findings.errors += listing.problems
    for split, listed in listing.splits.items():
        _check_captions(split, listed, findings)
    digests = {
        s: _check_pictures(s, listed.images, findings, threads)
        for s, listed in listing.splits.items()
        if isinstance(listed.images, Pictures)
    }
    for split, listed in listing.splits.items():
        if listed.kind == "regions":
            findings.errors += [
                f"{split}: the region features of image {i} are not finite"
                for i in _not_finite(listed.images)
            ]
    findings.errors += _duplicates(digests, listing)
    if not findings.errors:
        try:  # loading also refuses options that do not fit the number of images
            listing.dataset(given.model_copy(update={"on_bad_image": "error"}))
        except DataError as error:
            findings.errors.append(str(error))
    findings.notes += _unused(listing) + _counts(listing)
    return findings


def _published_name(directory: Path, listing: Listing) -> str:
    """The key in `PUBLISHED` that the names of the data set and the directory suggest; empty if none."""
    names = f"{listing.name} {directory.resolve().name}".lower()
    aliases = (("f30k", "flickr30k"), *((n, n) for n in PUBLISHED))
    return next((name for alias, name in aliases if alias in names), "")


def show(findings: Findings) -> int:
    """Print all findings.

    Returns:
        The exit code: 1 if there are errors, else 0.
    """
    listing = findings.listing
    published = PUBLISHED.get(listing.published, {})
    table = Table(
        "split",
        "images",
        "captions",
        "captions per image",
        *(["published images"] if published else []),
        title=escape(f"{listing.name} (layout {findings.layout})"),
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
    for heading, lines in (("error", findings.errors), ("note", findings.notes)):
        for line in lines:
            print(f"{heading}: {line}")
    errors = f"{len(findings.errors)} error{'' if len(findings.errors) == 1 else 's'}"
    notes = f"{len(findings.notes)} note{'' if len(findings.notes) == 1 else 's'}"
    console.print(f"[bold red]{errors}[/], {notes}" if findings.errors else f"no errors, {notes}")
    return 1 if findings.errors else 0


def _check_captions(split: str, listed: Listed, findings: Findings) -> None:
    """Add empty captions and images without captions to the errors, and odd captions to the notes."""
    texts = list(listed.captions)

    def where(i: int) -> str:
        return f"{split}: caption {i} (of {_name(listed.images, int(listed.owner[i]))})"

    findings.errors += [f"{where(i)} is empty" for i, text in enumerate(texts) if not text.strip()]
    without = np.flatnonzero(np.bincount(listed.owner, minlength=len(listed.images)) == 0)
    if listed.group is None or split == "train":
        findings.errors += [f"{split}: {_name(listed.images, int(i))} has no caption" for i in without]
    odd = [i for i, text in enumerate(texts) if _MOJIBAKE.search(text)]
    findings.notes += [f"{where(i)} looks wrongly decoded: {texts[i][:60]!r}" for i in odd]
    findings.notes += [
        f"{where(i)} has {n} tokens: CLIP reads {CONTEXT - 2} of them" for i, n in _too_long(texts)
    ]


def _too_long(texts: Sequence[str]) -> Iterable[tuple[int, int]]:
    """Index and number of tokens of each caption that CLIP would truncate.

    A token is at least one byte, so only captions with more bytes are tokenised.
    """
    candidates = [i for i, text in enumerate(texts) if len(text.encode()) > CONTEXT - 2]
    if not candidates:
        return
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    for i in candidates:
        count = len(tokenizer.encode(texts[i]))
        if count > CONTEXT - 2:
            yield i, count


def _name(images: Any, i: int) -> str:
    return images.name(i) if isinstance(images, Pictures) else f"image {i}"


def _check_pictures(split: str, images: Pictures, findings: Findings, threads: int | None) -> list[str]:
    """Digest of each picture's bytes, empty if it cannot be read; errors are added to the findings."""
    digests = []
    label = f"decoding {len(images):,} pictures of {split}"
    for decoded in decode_all(images, label, threads=threads or os.cpu_count() or 1):
        digests.append(decoded.digest)
        if decoded.error:
            findings.errors.append(f"{split}: {decoded.error}")
    return digests


def _not_finite(images: Regions) -> Iterable[int]:
    """Indices of images with infinite or NaN features; read in blocks, as the file may exceed the memory."""
    for start in range(0, len(images), 256):
        rows = np.arange(start, min(start + 256, len(images)))
        yield from rows[~np.isfinite(images[rows]).all(axis=(1, 2))].tolist()


def _duplicates(digests: dict[str, list[str]], listing: Listing) -> list[str]:
    """A message for each picture that is in several splits, byte for byte."""
    occurrences: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for split, picture_digests in digests.items():
        for i, digest in enumerate(picture_digests):
            if digest:
                occurrences[digest].append((split, i))
    errors = []
    for same in occurrences.values():
        if len({split for split, _ in same}) > 1:
            names = [f"{split} {listing.splits[split].images.name(i)}" for split, i in same]
            errors.append(f"the same picture in several splits: {', '.join(names[:6])}")
    return errors


def _unused(listing: Listing) -> list[str]:
    """A note about pictures in the directory that are in no split (Flickr30K and MS-COCO have some)."""
    pictures = [s.images for s in listing.splits.values() if isinstance(s.images, Files)]
    if not pictures:
        return []
    folder = pictures[0].folder
    used = {os.path.normpath(path.as_py()) for images in pictures for path in images.paths.array}
    present = (
        os.path.relpath(Path(parent, f), folder)
        for parent, _, files in os.walk(folder)
        for f in files
        if Path(f).suffix.lower() in PICTURE_SUFFIXES
    )
    unused = sorted(f for f in present if f not in used)
    shown = f"{', '.join(unused[:5])}{' ...' if len(unused) > 5 else ''}"
    return [f"{len(unused):,} pictures in {folder} have no caption in any split: {shown}"] if unused else []


def _counts(listing: Listing) -> list[str]:
    """A note for each split with another number of images than published."""
    published = PUBLISHED.get(listing.published, {})
    counts = {s: len(listing.splits[s].images) if s in listing.splits else 0 for s in published}
    return [
        f"{split} has {counts[split]:,} images, {listing.published} as published {count:,}"
        for split, count in published.items()
        if counts[split] != count
    ]
