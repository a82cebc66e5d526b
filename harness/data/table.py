"""Tables of captions (CSV or TSV) beside a folder of images: a user's own data, or Conceptual-Captions-like
sets of millions.

One table with a column that names the split, one for each split, or one from which dev and test are drawn.
Images are told by their path, so several lines about one image are its captions.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
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
_SUFFIXES = (".csv", ".tsv")


class TableOptions(HeldOut):
    """`dataset_options`: see `HeldOut`, and

    Attributes:
        captions: the table in `folder`, or one for each split ({train: a.tsv, dev: b.tsv, test: c.tsv});
            default: looked for.
        images: where the images are, under `folder` (default: `images` if there is one, else `folder`
            itself).
        columns: what the columns are called, where not as usual: {image: ..., caption: ..., split: ...}.
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


def recognise(folder: Path) -> bool:
    return bool(_tables(folder))


def listing(options: TableOptions) -> Listing:
    """What the tables say; lines without image or caption, and words for splits that mean none,
    are faults.
    """
    root = Path(options.folder)
    found = Listing(root.name)
    unknown = set(options.columns) - set(COLUMNS)
    found.faults += [
        f"dataset_options.columns: unknown {k!r} (allowed: {', '.join(COLUMNS)})" for k in sorted(unknown)
    ]
    tables = _given_tables(root, options.captions, found) if options.captions else _tables(root)
    images = (
        root / options.images if options.images else root / "images" if (root / "images").is_dir() else root
    )
    if not images.is_dir():
        found.faults.append(f"dataset_options.images = {options.images!r}: no such folder in {root}")
    if not tables:
        found.faults.append(
            f"{root}: no table of captions was found (*.csv, *.tsv); name it with dataset_options.captions"
        )
    if found.faults:
        return found
    rows = {
        name: _read(tables[name], name, images, options.columns, found)
        for name in ("", *WORDS)
        if name in tables
    }
    if set(rows) == {""}:
        _divide(found, images, rows[""])
    else:
        for name, (paths, captions, _) in rows.items():
            distinct, owner = by_image(paths)
            found.add(name, Files(images, distinct), captions, owner)
    found.draw_missing(options.held_out)
    return found


def _tables(folder: Path) -> dict[str, Path]:
    """Tables by split; `""` for one that holds all."""
    files = [f for f in sorted(folder.iterdir()) if f.suffix.lower() in _SUFFIXES and f.is_file()]
    named: dict[str, Path] = {}
    for file in files:
        split = split_name(file.stem.lower().removesuffix("_captions").removesuffix("_caps"))
        if split:
            named.setdefault(split, file)
    return named if "train" in named else {"": files[0]} if len(files) == 1 else {}


def _given_tables(root: Path, given: str | dict[str, str], found: Listing) -> dict[str, Path]:
    named = {"": given} if isinstance(given, str) else given
    tables = {}
    for word, file in named.items():
        split = split_name(word) if word else ""
        if split is None:
            found.faults.append(
                f"dataset_options.captions: unknown split {word!r} (allowed: {', '.join(WORDS)})"
            )
        elif not is_file(root / file):
            found.faults.append(f"{root / file} does not exist")
        else:
            tables[split] = root / file
    return tables


Rows = tuple[Strings, Strings, list[str]]


def _read(path: Path, name: str, images: Path, columns: dict[str, str], found: Listing) -> Rows:
    """Image paths, captions, and words for the split ("" where the table has no such column)."""
    nothing: Rows = (Strings([]), Strings([]), [])
    before = len(found.faults)
    lines = _lines(path, columns, found)
    head = next(lines, None)
    if head is None:
        found.faults += [f"{path} is empty"] if len(found.faults) == before else []
        return nothing
    place = _columns(head[1], columns)
    if place is None and not columns and len(head[1]) == 2 and is_file(images / head[1][0].strip()):
        place = {"image": 0, "caption": 1}  # no head, as Conceptual Captions has none
        lines = _chain(head, lines)
    if place is None:
        found.faults.append(
            f"{path}: expected columns for image and caption, found {', '.join(head[1])[:120]}; name "
            f"them with "
            f"dataset_options.columns: {{image: ..., caption: ...}}"
        )
        return nothing
    rows: tuple[list[str], list[str], list[str]] = ([], [], [])
    for number, cells in lines:
        if len(cells) != len(head[1]):
            hint = "" if path.suffix.lower() == ".tsv" else " (a caption that has commas stands in quotes)"
            found.faults.append(
                f"{path}, line {number}: {len(cells)} columns where the first line has {len(head[1])}{hint}"
            )
            continue
        image, caption = cells[place["image"]].strip(), " ".join(cells[place["caption"]].split())
        word = cells[place["split"]] if "split" in place else name
        if not image:
            found.faults.append(f"{path}, line {number}: a caption without an image")
        else:
            image = os.path.normpath(image)
            for column, value in zip(rows, (image, caption, word), strict=True):
                column.append(value)
    return Strings(rows[0]), Strings(rows[1]), rows[2]


def _lines(path: Path, columns: dict[str, str], found: Listing) -> Iterator[tuple[int, list[str]]]:
    """Rows with the numbers of their last lines. A TSV has no quotes (what stands there is text); in a CSV
    they may hold commas and line ends.
    """
    reader: Any = None
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            head = stream.readline()
            stream.seek(0)
            if path.suffix.lower() == ".tsv":
                reader = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
            else:
                fits = (
                    d
                    for d in ",|;\t"
                    if _columns(next(csv.reader([head], delimiter=d, skipinitialspace=True)), columns)
                )
                reader = csv.reader(stream, delimiter=next(fits, ","), skipinitialspace=True, strict=True)
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
    except OSError as error:
        found.faults.append(f"{path} cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        found.faults.append(
            f"{path}: expected UTF-8, found the byte {error.object[error.start]:#x} ({error.reason})"
        )
    except csv.Error as error:
        found.faults.append(f"{path}, line {reader.line_num if reader else 1}: {error}")


def _chain(
    first: tuple[int, list[str]], rest: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, list[str]]]:
    yield first
    yield from rest


def _columns(head: Sequence[str], given: dict[str, str]) -> dict[str, int] | None:
    """Where each column stands; None if those of image and caption are not there."""
    names = [cell.strip().lower() for cell in head]
    place = {}
    for column, usual in COLUMNS.items():
        wanted = [given[column].lower()] if column in given else usual
        there = [names.index(w) for w in wanted if w in names]
        if there:
            place[column] = there[0]
    return place if {"image", "caption"} <= set(place) and set(given) <= set(place) else None


def _divide(found: Listing, folder: Path, rows: Rows) -> None:
    """One table: by its split column, or all of it train."""
    paths, captions, words = rows
    if any(words):
        found.faults += [
            f"unknown split {w!r} (allowed: {', '.join(WORDS)})"
            for w in sorted(set(words))
            if split_name(w) is None
        ]
        of = [split_name(w) for w in words]
        for name in [n for n in WORDS if n in of]:
            mine = np.flatnonzero([word == name for word in of])
            distinct, owner = by_image(paths.only(mine))
            found.add(name, Files(folder, distinct), captions.only(mine), owner)
    elif len(paths):
        distinct, owner = by_image(paths)
        found.add("train", Files(folder, distinct), captions, owner)
