"""What all layouts on disk share: options, the `Listing` of a directory, and the data set made of it.

A layout is a function from options to a `Listing`. It reads the text files, decodes no picture, and collects
all errors instead of stopping at the first. `python -m harness.data check` prints the errors; loading a
listing with errors raises a `DataError`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.data.base import DataError, DataKind, DataSet, Split, Strings, choose
from harness.data.pictures import BadPicture, Files, Pictures, decode, leaves_folder
from harness.lib.console import progress
from harness.lib.files import atomic_write, cache_directory
from harness.lib.registry import suggest
from methods.seeding import numpy_generator

SHOWN = 8
"""Number of errors that a `DataError` lists; `check` prints all."""
SPLITS = ("train", "dev", "test")
"""The splits that every data set has."""
WORDS = (*SPLITS, "meta")
"""The splits that files may contain: those of every data set, and a clean set."""
_ALIASES = {
    "meta": "meta",
    "train": "train",
    "training": "train",
    "restval": "train",
    "dev": "dev",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "test": "test",
}


class Options(BaseModel):
    """`dataset_options` of every layout.

    Attributes:
        folder: the directory of the data set.
        meta_share: draw a clean set `meta` from dev, with this share of the number of training pairs (MSCN:
            0.02). Its images are removed from dev, so that no method is selected on pairs it has trained on.
        meta_leak: keep the images of `meta` in dev, as MSCN's released code does (`docs/field.md`).
        train_groups: train on the first n groups of images only (without groups: on the first n images).
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    folder: str
    meta_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    meta_leak: bool = False
    train_groups: Annotated[int, Field(ge=1)] | None = None


class PictureOptions(Options):
    """`dataset_options` of layouts with pictures; see also `Options`.

    Attributes:
        on_bad_image: `error`: a picture that cannot be decoded ends the trial that reads it. `skip`: all
            pictures are decoded once before training (the result is cached), and those that cannot be
            decoded are left out with their captions; the record has their number.
    """

    on_bad_image: Literal["error", "skip"] = "error"


class HeldOut(PictureOptions):
    """`dataset_options` of layouts that may lack dev and test; see also `PictureOptions`.

    Attributes:
        held_out: number of images to draw from train for each of dev and test, if the files do not define
            them.
    """

    held_out: Annotated[int, Field(ge=1)] | None = None


Kind = TypeVar("Kind", bound=Options)


def read_options(kind: type[Kind], given: Mapping[str, Any]) -> Kind:
    """Validate `dataset_options`.

    Args:
        kind: the options class of the layout.
        given: the options by name.

    Raises:
        DataError: options are wrong, or the directory does not exist. The message lists every wrong option
            and the allowed names.
    """
    try:
        options = kind.model_validate(dict(given))
    except ValidationError as error:
        texts = [_describe(e, kind.model_fields) for e in error.errors()]
        raise DataError("; ".join(texts)) from None
    if options.meta_leak and options.meta_share is None:
        raise DataError(
            "dataset_options.meta_leak: nothing to leak without meta_share (give both, or neither)"
        )
    if not Path(options.folder).is_dir():
        raise DataError(f"dataset_options.folder: the directory {options.folder} does not exist")
    return options


def _describe(error: Any, allowed: Iterable[str]) -> str:
    """A pydantic error of an option as text: option, value, what is allowed."""
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return f"dataset_options.{name} is missing"
    if error["type"] == "extra_forbidden":
        return f"unknown option dataset_options.{name}{suggest(name, allowed)}"
    message = re.sub(r"^Input should be", "expected", error["msg"])
    return f"dataset_options.{name} = {error['input']!r}: {message}"


@dataclass
class Listed:
    """One split of a `Listing`.

    Attributes:
        images: N pictures or region features.
        captions: C captions.
        owner: int64 [C], index of the image of each caption.
        group: int64 [N], group of each image; None if each image is its own group.
    """

    images: Any
    captions: Strings
    owner: NDArray[np.int64]
    group: NDArray[np.int64] | None = None
    kind: DataKind = "pictures"

    def split(self) -> Split:
        """The split of a data set; groups are numbered from 0.

        Raises:
            DataError: the split is empty or inconsistent.
        """
        group = (
            np.arange(len(self.images))
            if self.group is None
            else np.unique(self.group, return_inverse=True)[1]
        )
        return Split(self.images, self.captions, self.owner, group.astype(np.int64), kind=self.kind)

    def only(self, images: NDArray[np.int64]) -> Listed:
        """The images at the indices `images` (int64 [M]), in that order, and their captions."""
        new_index = np.full(len(self.images), -1)
        new_index[images] = np.arange(len(images))
        rows = np.flatnonzero(new_index[self.owner] >= 0)
        group = None if self.group is None else self.group[images]
        return Listed(
            choose(self.images, images),
            self.captions.only(rows),
            new_index[self.owner[rows]],
            group,
            self.kind,
        )

    def content(self) -> tuple[str, ...]:
        """Digests of captions, owners and groups, for the fingerprint."""
        group = "" if self.group is None else array_digest(self.group)
        return self.captions.digest(), array_digest(self.owner), group


@dataclass
class Listing:
    """A data set as its files describe it, with all errors in these files.

    Attributes:
        name: see `DataSet`.
        splits: the splits by name.
        errors: what is wrong, one message each.
        content: what the fingerprint is computed from: digests of texts and pictures.
        published: key of the published counts to compare with (`flickr30k`, `coco`, `cc120k`, `cc152k`), or
            empty if unknown.
        note: see `DataSet`.
        by_shard: whether an epoch reads the training pictures file by file.
        vocabularies: see `DataSet`.
        coco_ids: see `DataSet`.
        skipped: number of pictures per split that were left out before these files were written.
        missing: bool [N] for each split of picture files: which files are missing.
    """

    name: str
    splits: dict[str, Listed] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    content: list[Any] = field(default_factory=list)
    published: str = ""
    note: str = ""
    by_shard: bool = False
    vocabularies: tuple[Path, ...] = ()
    coco_ids: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    skipped: dict[str, int] = field(default_factory=dict)
    missing: dict[str, NDArray[np.bool_]] = field(default_factory=dict)

    def add_split(
        self,
        name: str,
        images: Any,
        *,
        captions: Strings,
        owner: Sequence[int] | NDArray[np.int64],
        group: NDArray[np.int64] | None = None,
        kind: DataKind = "pictures",
    ) -> None:
        """Add a split.

        Picture files are checked: paths that lead out of the directory and duplicates are errors, missing
        files are noted in `missing`, and their digests are added to `content`. For other images, the layout
        adds to `content` itself.

        Args:
            name: the split.
            images: N images.
            captions: C captions.
            owner: [C], index of the image of each caption.
            group: int64 [N], group of each image, if there are groups.
            kind: what the images are.
        """
        self.splits[name] = listed = Listed(images, captions, np.asarray(owner, np.int64), group, kind)
        if isinstance(images, Files):
            outside = [path for path in images.paths if leaves_folder(path)]
            self.errors += [
                f"{name}: {path!r} leads out of {images.folder} (allowed: paths inside it)"
                for path in outside
            ]
            if outside:
                return
            counts = pc.value_counts(images.paths.array)
            self.errors += [
                f"{name}: {c['values']} occurs {c['counts']} times (allowed: once)"
                for c in counts.filter(pc.greater(counts.field(1), 1)).to_pylist()
            ]
            digests = images.digests()
            self.content.append((name, images.paths.digest(), array_digest(digests), *listed.content()))
            self.missing[name] = digests == b""

    def draw_missing(self, held_out: int | None) -> None:
        """Draw dev and test from train by a fixed seed if they are missing.

        Args:
            held_out: number of images of each; None makes a missing split an error.
        """
        missing = [n for n in ("dev", "test") if n not in self.splits]
        if not missing or "train" not in self.splits or self.errors:
            return
        train = self.splits["train"]
        count = len(train.images)
        if held_out is None:
            self.errors.append(
                f"no {' and no '.join(missing)} split was found: name its file, or draw it from train with "
                f"held_out: NUMBER"
            )
            return
        self.content.append(("held out", held_out, *missing))
        absent, remaining = self.missing.get("train"), np.arange(count)
        for name in missing:
            drawn = draw_images(remaining, train.group, held_out, "held out", name)
            self.splits[name] = train.only(drawn)
            remaining = np.setdiff1d(remaining, drawn)
            if absent is not None:
                self.missing[name] = absent[drawn]
        if not len(remaining):
            self.errors.append(
                f"held_out = {held_out} for each of {', '.join(missing)} leaves no image for train: there "
                f"are {count} images in total"
            )
            return
        self.splits["train"] = train.only(remaining)
        if absent is not None:
            self.missing["train"] = absent[remaining]

    @property
    def missing_pictures(self) -> list[str]:
        """A message for each missing picture file."""
        return [
            f"picture {self.splits[n].images.name(i)} is missing ({n})"
            for n, absent in self.missing.items()
            for i in np.flatnonzero(absent)
        ]

    @property
    def overlaps(self) -> list[str]:
        """A message for each path that is in two splits."""
        messages = []
        names = {n: s.images.paths.array for n, s in self.splits.items() if isinstance(s.images, Files)}
        for i, first in enumerate(names):
            for second in list(names)[i + 1 :]:
                both = names[first].filter(pc.is_in(names[first], value_set=names[second]))
                messages += [f"{path} is in two splits: {first} and {second}" for path in both.to_pylist()]
        return messages

    def dataset(self, options: Options) -> DataSet:
        """The data set of a listing without errors.

        Args:
            options: the validated options of the layout.

        Raises:
            DataError: the listing has errors (the message lists the first `SHOWN`), or the options do not
                fit the data.
        """
        skip = getattr(options, "on_bad_image", "error") == "skip"
        self._raise_errors(allow_missing_pictures=skip)
        splits = {n: s.split() for n, s in self.splits.items()}
        usable = {n: np.ones(len(s.images), bool) for n, s in splits.items()}
        settings: list[Any] = [options.meta_share, options.meta_leak, options.train_groups]
        if skip:
            usable = {n: self._decodable(n, s) for n, s in splits.items()}
            splits = {n: s.only(usable[n]) for n, s in splits.items()}
            settings.append([(n, np.flatnonzero(~u).tolist()) for n, u in usable.items()])
        if options.train_groups is not None:
            splits["train"] = _first_groups(splits["train"], options.train_groups)
        if options.meta_share is not None:
            splits |= meta_from_dev(splits, options.meta_share, leak=options.meta_leak)
        train = splits["train"]
        return DataSet(
            name=self.name,
            splits=splits,
            note=self.note,
            vocabularies=self.vocabularies,
            fingerprint=hashlib.sha256(repr((self.content, *settings)).encode()).hexdigest()[:16],
            distinct_groups=len(np.unique(train.image_group)) < len(train.images),
            shard=train.images.file if self.by_shard else None,  # type: ignore[attr-defined]
            coco_ids=self.coco_ids
            and (
                self.coco_ids[0][usable["test"]],
                self.coco_ids[1][usable["test"][self.splits["test"].owner]],
            ),
            skipped={n: int((~u).sum()) + self.skipped.get(n, 0) for n, u in usable.items()}
            if skip
            else self.skipped,
        )

    @property
    def problems(self) -> list[str]:
        """Errors in the files, and missing, empty or overlapping splits; without `missing_pictures`."""
        lacking = [] if self.errors else [f"no {n} split was found" for n in SPLITS if n not in self.splits]
        empty = [
            f"{n} has no {what}"
            for n, s in self.splits.items()
            for what, k in (("images", s.images), ("captions", s.captions))
            if not len(k)
        ]
        return self.errors + lacking + empty + self.overlaps

    def _raise_errors(self, *, allow_missing_pictures: bool) -> None:
        errors = self.problems + ([] if allow_missing_pictures else self.missing_pictures)
        if errors:
            more = (
                f"; and {len(errors) - SHOWN} more (`python -m harness.data check` lists all)"
                if len(errors) > SHOWN
                else ""
            )
            raise DataError("; ".join(errors[:SHOWN]) + more)

    def _decodable(self, name: str, split: Split) -> NDArray[np.bool_]:
        """Which pictures can be decoded, bool [N]. Raises DataError if none of them has a caption."""
        decodable = ~_undecodable(
            split.images, hashlib.sha256(repr((name, self.content)).encode()).hexdigest()
        )
        if not decodable[split.owner].any():
            raise DataError(f"{name}: none of its {len(decodable)} pictures can be decoded")
        return decodable


def _first_groups(train: Split, count: int) -> Split:
    groups = len(np.unique(train.image_group))
    if count > groups:
        raise DataError(f"dataset_options.train_groups = {count}: train has {groups} groups of images")
    return train.only(train.image_group < count)


def meta_from_dev(splits: Mapping[str, Split], share: float, *, leak: bool) -> dict[str, Split]:
    """Draw the clean set `meta` from dev by a fixed seed (MSCN's setting, `docs/field.md`).

    Args:
        splits: the splits of the data set.
        share: size of `meta`, as a share of the number of training pairs.
        leak: keep the drawn images in dev.

    Returns:
        `meta`, and without `leak` also the rest of dev.

    Raises:
        DataError: there is a `meta` split already, or too few images for `meta` or dev.
    """
    if "meta" in splits:
        raise DataError("dataset_options.meta_share: the data set has a clean set (meta) already")
    train, dev = splits["train"], splits["dev"]
    each = len(dev.captions) / len(dev.images)
    wanted = round(share * len(train.captions) / each)
    if not 0 < wanted < len(dev.images):
        raise DataError(
            f"dataset_options.meta_share = {share}: the clean set is drawn from dev, with that share of the "
            f"{len(train.captions)} training pairs, which is {wanted} images of dev, and dev has "
            f"{len(dev.images)} (allowed: at least 1 image, and fewer than dev has)"
        )
    drawn = np.zeros(len(dev.images), bool)
    drawn[draw_images(np.arange(len(drawn)), dev.image_group, wanted, "meta images")] = True
    if drawn.all():
        raise DataError(f"dataset_options.meta_share = {share} leaves no group of images for dev")
    return {"meta": dev.only(drawn)} | ({} if leak else {"dev": dev.only(~drawn)})


# Pieces of layouts ----------------------------------------------------------------------------------


def split_name(word: str) -> str | None:
    """The name in `WORDS` for any of the field's names of a split (val, restval, ...); None if unknown."""
    return _ALIASES.get(word.strip().lower())


def read_lines(path: Path, errors: list[str]) -> list[str]:
    """Lines of a UTF-8 text file, without surrounding white space.

    Args:
        path: the file.
        errors: a message is appended if the file cannot be read or is not UTF-8; the result is then empty.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        errors.append(f"{path} cannot be read: {error.strerror}")
        return []
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        errors.append(f"{path}, line {line}: expected UTF-8, found the byte {error.object[error.start]:#x}")
        return []
    return [line.strip() for line in text.removesuffix("\n").split("\n")] if text else []


def by_image(paths: Strings) -> tuple[Strings, NDArray[np.int64]]:
    """Distinct paths in order of first appearance, and the index of each given path in them, int64 [C]."""
    encoded = paths.array.dictionary_encode()
    return Strings(encoded.dictionary), encoded.indices.to_numpy().astype(np.int64)


def draw_images(
    among: NDArray[np.int64], group: NDArray[np.int64] | None, count: int, *purpose: str
) -> NDArray[np.int64]:
    """Draw images by a fixed seed. Groups of images are drawn together, so there may be more than `count`.

    Args:
        among: int64 [M], indices of the images to draw from.
        group: int64 [N], group of each image, or None.
        count: number of images to draw.
        purpose: names the random stream.

    Returns:
        Sorted indices of the drawn images, int64.
    """
    draw = numpy_generator(*purpose)
    if group is None:
        return np.sort(among[draw.permutation(len(among))[:count]])
    groups, sizes = np.unique(group[among], return_counts=True)
    order = draw.permutation(len(groups))
    drawn = order[: int(np.searchsorted(np.cumsum(sizes[order]), count)) + 1]
    return among[np.isin(group[among], groups[drawn])]


# Decoding all pictures ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decoded:
    """The result of decoding one picture.

    Attributes:
        digest: SHA-256 of its encoded bytes; empty if it cannot be read.
        error: what is wrong with it; empty if nothing is.
    """

    digest: str
    error: str


def decode_all(images: Pictures, label: str | None, *, threads: int) -> Iterator[Decoded]:
    """Read and decode every picture, in order, on several threads (decoders release Python's lock).

    Args:
        images: the pictures.
        label: text of the progress bar; None for no progress bar.
        threads: number of threads.
    """

    def decode_one(i: int) -> Decoded:
        try:
            content = images.read(i)
        except (OSError, ValueError) as error:
            return Decoded(
                "", f"picture {images.name(i)} cannot be read: {getattr(error, 'strerror', None) or error}"
            )
        digest = hashlib.sha256(content).hexdigest()
        try:
            decode(content, images.name(i))
        except BadPicture as error:
            return Decoded(digest, str(error))
        return Decoded(digest, "")

    count = range(len(images))
    with ThreadPoolExecutor(threads) as pool:
        # In blocks, because `map` would queue the results of all pictures ahead of their reader.
        results = (
            result for start in count[::256] for result in pool.map(decode_one, count[start : start + 256])
        )
        for _, result in zip(progress(count, label), results, strict=True):
            yield result


def _undecodable(images: Any, key: str) -> NDArray[np.bool_]:
    """Which pictures cannot be decoded, bool [N]; cached under `key`, a digest of the content."""
    file = cache_directory() / "pictures" / f"{key[:24]}.json"
    bad = np.zeros(len(images), bool)
    try:
        bad[json.loads(file.read_text())] = True
        return bad
    except (OSError, ValueError, IndexError):
        pass
    label = f"decoding {len(images):,} pictures, to skip those that cannot be decoded"
    bad[:] = [bool(result.error) for result in decode_all(images, label, threads=os.cpu_count() or 1)]
    with atomic_write(file, "w") as stream:
        json.dump(np.flatnonzero(bad).tolist(), stream)
    return bad


def array_digest(values: NDArray[Any]) -> str:
    """SHA-256 of the bytes of an array, as hexadecimal digits."""
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
