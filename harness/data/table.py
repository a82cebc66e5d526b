"""Tables of captions (CSV or TSV) with a directory of images: a user's own data, or sets like Conceptual
Captions with millions of pairs.

There is one table with a split column, one table per split, or one table from which dev and test are drawn.
An image is identified by its path; several rows with one path are captions of one image.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from harness.data.base import DataSet, Strings
from harness.data.layout import WORDS, HeldOut, Listing, by_image, read_options, split_name
from harness.data.pictures import Files
from harness.lib.files import is_file

COLUMNS = {
    "image": (
        "image",
        "image_path",
        "image_name",
        "filepath",
        "file_path",
        "path",
        "file_name",
        "filename",
        "file",
    ),
    "caption": ("caption", "title", "text", "comment", "sentence", "raw", "description"),
    "split": ("split", "subset", "partition"),
}
"""Recognised names of each column, in order of preference."""
_SUFFIXES = (".csv", ".tsv")


class TableOptions(HeldOut):
    """`dataset_options` of this layout; see also `HeldOut`.

    Attributes:
        captions: the table in `folder`, or one table per split ({train: a.tsv, dev: b.tsv, test: c.tsv});
            default: searched for.
        images: the directory of the images, relative to `folder` (default: `images` if it exists, else
            `folder`).
        columns: names of columns that are not in `COLUMNS`: {image: ..., caption: ..., split: ...}.
    """

    captions: str | dict[str, str] | None = None
    images: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)


OPTIONS = TableOptions


def load(**options: Any) -> DataSet:
    """Read the data set; see `TableOptions`.

    Raises:
        DataError: an option or a table is wrong, or an image is missing.
    """
    given = read_options(OPTIONS, options)
    return listing(given).dataset(given)


def recognise(directory: Path) -> bool:
    """Whether a directory has this layout."""
    return bool(_tables(directory))


def listing(options: TableOptions) -> Listing:
    """Read the tables. Rows without an image and unknown splits are errors."""
    root = Path(options.folder)
    listing = Listing(root.name)
    unknown = set(options.columns) - set(COLUMNS)
    listing.errors += [
        f"dataset_options.columns: unknown {k!r} (allowed: {', '.join(COLUMNS)})" for k in sorted(unknown)
    ]
    tables = _given_tables(root, options.captions, listing) if options.captions else _tables(root)
    default = root / "images" if (root / "images").is_dir() else root
    images = root / options.images if options.images else default
    if not images.is_dir():
        listing.errors.append(f"dataset_options.images = {options.images!r}: no such directory in {root}")
    if not tables:
        listing.errors.append(
            f"{root}: no table of captions was found (*.csv, *.tsv); name it with dataset_options.captions"
        )
    if listing.errors:
        return listing
    rows = {
        name: _read(tables[name], name, images, options.columns, listing)
        for name in ("", *WORDS)
        if name in tables
    }
    if set(rows) == {""}:
        _divide(listing, images, rows[""])
    else:
        for name, (paths, captions, _) in rows.items():
            distinct, owner = by_image(paths)
            listing.add_split(name, Files(images, distinct), captions=captions, owner=owner)
    listing.draw_missing(options.held_out)
    return listing


def _tables(directory: Path) -> dict[str, Path]:
    """The tables in a directory by split; the key of a single table of all splits is empty."""
    files = [f for f in sorted(directory.iterdir()) if f.suffix.lower() in _SUFFIXES and f.is_file()]
    named: dict[str, Path] = {}
    for file in files:
        split = split_name(file.stem.lower().removesuffix("_captions").removesuffix("_caps"))
        if split:
            named.setdefault(split, file)
    return named if "train" in named else {"": files[0]} if len(files) == 1 else {}


def _given_tables(root: Path, given: str | dict[str, str], listing: Listing) -> dict[str, Path]:
    """The tables of `dataset_options.captions`, with the keys of `_tables`."""
    named = {"": given} if isinstance(given, str) else given
    tables = {}
    for word, file in named.items():
        split = split_name(word) if word else ""
        if split is None:
            listing.errors.append(
                f"dataset_options.captions: unknown split {word!r} (allowed: {', '.join(WORDS)})"
            )
        elif not is_file(root / file):
            listing.errors.append(f"dataset_options.captions: {root / file} does not exist")
        else:
            tables[split] = root / file
    return tables


Rows = tuple[Strings, Strings, list[str]]
"""Image paths, captions, and values of the split column of a table."""


def _read(path: Path, name: str, images: Path, columns: dict[str, str], listing: Listing) -> Rows:
    """The rows of a table; without a split column, `name` is the split of each row."""
    nothing: Rows = (Strings([]), Strings([]), [])
    before = len(listing.errors)
    lines = _lines(path, columns, listing)
    header = next(lines, None)
    if header is None:
        listing.errors += [f"{path} is empty"] if len(listing.errors) == before else []
        return nothing
    index = _columns(header[1], columns)
    if index is None and not columns and len(header[1]) == 2 and is_file(images / header[1][0].strip()):
        index = {"image": 0, "caption": 1}  # Conceptual Captions' files have no header
        lines = chain([header], lines)
    if index is None:
        listing.errors.append(
            f"{path}: expected columns for image and caption, found {', '.join(header[1])[:120]}; name "
            f"them with dataset_options.columns: {{image: ..., caption: ...}}"
        )
        return nothing
    rows: tuple[list[str], list[str], list[str]] = ([], [], [])
    for number, cells in lines:
        if len(cells) != len(header[1]):
            hint = "" if path.suffix.lower() == ".tsv" else " (put a caption with commas in quotes)"
            listing.errors.append(
                f"{path}, line {number}: {len(cells)} columns, expected {len(header[1])} as in the first "
                f"line{hint}"
            )
            continue
        image, caption = cells[index["image"]].strip(), " ".join(cells[index["caption"]].split())
        split = cells[index["split"]] if "split" in index else name
        if not image:
            listing.errors.append(f"{path}, line {number}: a caption without an image")
        else:
            image = os.path.normpath(image)
            for column, value in zip(rows, (image, caption, split), strict=True):
                column.append(value)
    return Strings(rows[0]), Strings(rows[1]), rows[2]


def _lines(path: Path, columns: dict[str, str], listing: Listing) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table, each with the number of its last line.

    In a TSV quotes are part of the text; in a CSV, quoted cells may contain delimiters and line ends.
    """
    reader: Any = None
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            header = stream.readline()
            stream.seek(0)
            if path.suffix.lower() == ".tsv":
                reader = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
            else:
                delimiters = (
                    d
                    for d in ",|;\t"
                    if _columns(next(csv.reader([header], delimiter=d, skipinitialspace=True)), columns)
                )
                reader = csv.reader(
                    stream, delimiter=next(delimiters, ","), skipinitialspace=True, strict=True
                )
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
    except OSError as error:
        listing.errors.append(f"{path} cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        listing.errors.append(
            f"{path}: expected UTF-8, found the byte {error.object[error.start]:#x} ({error.reason})"
        )
    except csv.Error as error:
        listing.errors.append(f"{path}, line {reader.line_num if reader else 1}: {error}")


def _columns(header: Sequence[str], given: dict[str, str]) -> dict[str, int] | None:
    """Index of each column by its key in `COLUMNS`; None if image, caption or a given column is missing."""
    names = [cell.strip().lower() for cell in header]
    index = {}
    for column, usual in COLUMNS.items():
        allowed = [given[column].lower()] if column in given else usual
        matches = [names.index(name) for name in allowed if name in names]
        if matches:
            index[column] = matches[0]
    return index if {"image", "caption"} <= set(index) and set(given) <= set(index) else None


def _divide(listing: Listing, directory: Path, rows: Rows) -> None:
    """Add the splits of a single table: by its split column, or everything as train."""
    paths, captions, words = rows
    if any(words):
        listing.errors += [
            f"unknown split {w!r} (allowed: {', '.join(WORDS)})"
            for w in sorted(set(words))
            if split_name(w) is None
        ]
        splits = [split_name(w) for w in words]
        for name in [n for n in WORDS if n in splits]:
            selected = np.flatnonzero([split == name for split in splits])
            distinct, owner = by_image(paths.only(selected))
            listing.add_split(name, Files(directory, distinct), captions=captions.only(selected), owner=owner)
    elif len(paths):
        distinct, owner = by_image(paths)
        listing.add_split("train", Files(directory, distinct), captions=captions, owner=owner)
