"""What all layouts on disk share: options, the listing of what the files say, and the way from there to a
data set.

A layout is a function from options to a `Listing`: it reads the text files, looks at no picture, and notes
every fault instead of stopping at the first. `python -m harness.data check` shows the faults; loading refuses
a listing that has any.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
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

SHOWN = 8  # faults that an error names; `check` lists all
SPLITS = ("train", "dev", "test")
WORDS = (*SPLITS, "meta")
"""What files may say of a split: the three that a data set has, and a clean set beside them."""
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
    """`dataset_options` that every layout takes.

    Attributes:
        folder: where the files are.
        meta_share: make a clean set `meta` of images drawn from dev, as large as this share of the training
            pairs (MSCN: 0.02). They leave dev, so that no method is selected on pairs it has trained on.
        meta_leak: they stay in dev too, as in MSCN's released code (`docs/field.md`).
        train_groups: train on the first so many images (groups of images, where there are any) only.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    folder: str
    meta_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    meta_leak: bool = False
    train_groups: Annotated[int, Field(ge=1)] | None = None


class PictureOptions(Options):
    """The same for layouts with pictures.

    Attributes:
        on_bad_image: `error`: a picture that cannot be decoded stops the trial that meets it. `skip`: all
            pictures are decoded once, before training (the result is kept in the cache), and those that
            cannot be are left out with their captions; the record counts them.
    """

    on_bad_image: Literal["error", "skip"] = "error"


class HeldOut(PictureOptions):
    """The same where dev and test may have to be drawn.

    Attributes:
        held_out: images of each of dev and test where the files do not say which are in them.
    """

    held_out: Annotated[int, Field(ge=1)] | None = None


Kind = TypeVar("Kind", bound=Options)


def read_options(kind: type[Kind], given: Mapping[str, Any]) -> Kind:
    """Checked options. Raises DataError naming every option that is wrong, and those there are."""
    try:
        options = kind.model_validate(dict(given))
    except ValidationError as error:
        found = [(".".join(map(str, e["loc"])), e) for e in error.errors()]
        texts = [
            f"dataset_options.{k}: {e['msg']}" + ("" if e["type"] == "missing" else f", found {e['input']!r}")
            for k, e in found
        ]
        raise DataError("; ".join(texts) + f" (allowed: {', '.join(kind.model_fields)})") from None
    if options.meta_leak and options.meta_share is None:
        raise DataError("dataset_options.meta_leak: there is nothing to leak without meta_share")
    if not Path(options.folder).is_dir():
        raise DataError(f"folder {options.folder} does not exist")
    return options


@dataclass
class Listed:
    """One split, as its files say: pictures or regions [N], captions [C], the image of each caption [C],
    groups [N].
    """

    images: Any
    captions: Strings
    owner: NDArray[np.int64]
    group: NDArray[np.int64] | None = None
    kind: DataKind = "pictures"

    def split(self) -> Split:
        group = (
            np.arange(len(self.images))
            if self.group is None
            else np.unique(self.group, return_inverse=True)[1]
        )
        return Split(self.images, self.captions, self.owner, group.astype(np.int64), kind=self.kind)

    def only(self, images: NDArray[np.int64]) -> Listed:
        """Those of the images, by number and in that order, with their captions."""
        place = np.full(len(self.images), -1)
        place[images] = np.arange(len(images))
        rows = np.flatnonzero(place[self.owner] >= 0)
        group = None if self.group is None else self.group[images]
        return Listed(
            choose(self.images, images), self.captions.only(rows), place[self.owner[rows]], group, self.kind
        )

    def content(self) -> tuple[str, ...]:
        """Digests of all that is not the pictures themselves."""
        group = "" if self.group is None else array_digest(self.group)
        return self.captions.digest(), array_digest(self.owner), group


@dataclass
class Listing:
    """A data set as its files say, with every fault that was found on the way.

    Attributes:
        content: what the fingerprint is made of: texts, names and sizes of pictures.
        published: whose counts its own are compared with (`flickr30k`, `coco`, `cc120k`, `cc152k`), where
            that is known.
        by_shard: whether an epoch goes through train's pictures file by file.
        vocabularies, coco_ids: see `DataSet`.
        skipped: pictures that were left out of each split before these files were made.
        missing: for each split of pictures in files, bool [N], those that are not there.
    """

    name: str
    splits: dict[str, Listed] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    content: list[Any] = field(default_factory=list)
    published: str = ""
    note: str = ""
    by_shard: bool = False
    vocabularies: tuple[Path, ...] = ()
    coco_ids: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    skipped: dict[str, int] = field(default_factory=dict)
    missing: dict[str, NDArray[np.bool_]] = field(default_factory=dict)

    def add(
        self,
        name: str,
        images: Any,
        captions: Strings,
        owner: Sequence[int] | NDArray[np.int64],
        group: NDArray[np.int64] | None = None,
        *,
        kind: DataKind = "pictures",
    ) -> None:
        """Add a split. Of pictures in files, missing ones, paths that leave the folder, and those that stand
        twice are found; of others the layout fills `content`."""
        self.splits[name] = listed = Listed(images, captions, np.asarray(owner, np.int64), group, kind)
        if isinstance(images, Files):
            out = [path for path in images.paths if leaves_folder(path)]
            self.faults += [
                f"{name}: {path!r} leads out of {images.folder} (allowed: paths inside it)" for path in out
            ]
            if out:
                return
            counts = pc.value_counts(images.paths.array)
            self.faults += [
                f"{name}: {c['values']} stands there {c['counts']} times"
                for c in counts.filter(pc.greater(counts.field(1), 1)).to_pylist()
            ]
            digests = images.digests()
            self.content.append((name, images.paths.digest(), array_digest(digests), *listed.content()))
            self.missing[name] = digests == b""

    def draw_missing(self, held_out: int | None) -> None:
        """Draw dev and test from train by a fixed seed, where they are missing; a fault where that
        cannot be.
        """
        missing = [n for n in ("dev", "test") if n not in self.splits]
        if not missing or "train" not in self.splits or self.faults:
            return
        whole = self.splits["train"]
        count = len(whole.images)
        if held_out is None:
            self.faults.append(
                f"no {' and no '.join(missing)} split was found: name its file, or draw it from train with "
                f"held_out: NUMBER"
            )
            return
        self.content.append(("held out", held_out, *missing))
        gone, left = self.missing.get("train"), np.arange(count)
        for name in missing:
            drawn = draw_images(left, whole.group, held_out, "held out", name)
            self.splits[name] = whole.only(drawn)
            left = np.setdiff1d(left, drawn)
            if gone is not None:
                self.missing[name] = gone[drawn]
        if not len(left):
            self.faults.append(
                f"held_out = {held_out} for each of {', '.join(missing)}: there are {count} images in all"
            )
            return
        self.splits["train"] = whole.only(left)
        if gone is not None:
            self.missing["train"] = gone[left]

    @property
    def missing_pictures(self) -> list[str]:
        return [
            f"picture {self.splits[n].images.name(i)} is missing ({n})"
            for n, gone in self.missing.items()
            for i in np.flatnonzero(gone)
        ]

    @property
    def overlaps(self) -> list[str]:
        """Pictures that stand in two splits, by name."""
        found = []
        names = {n: s.images.paths.array for n, s in self.splits.items() if isinstance(s.images, Files)}
        for i, first in enumerate(names):
            for second in list(names)[i + 1 :]:
                both = names[first].filter(pc.is_in(names[first], value_set=names[second]))
                found += [f"{path} stands in {first} and in {second}" for path in both.to_pylist()]
        return found

    def dataset(self, options: Options) -> DataSet:
        """The data set of a listing without faults.

        Raises:
            DataError: what is wrong, the first few faults by name.
        """
        skip = getattr(options, "on_bad_image", "error") == "skip"
        self._refuse_faults(but_missing_pictures=skip)
        splits = {n: s.split() for n, s in self.splits.items()}
        kept = {n: np.ones(len(s.images), bool) for n, s in splits.items()}
        settings: list[Any] = [options.meta_share, options.meta_leak, options.train_groups]
        if skip:
            kept = {n: self._decodable(n, s) for n, s in splits.items()}
            splits = {n: s.only(kept[n]) for n, s in splits.items()}
            settings.append([(n, np.flatnonzero(~k).tolist()) for n, k in kept.items()])
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
            and (self.coco_ids[0][kept["test"]], self.coco_ids[1][kept["test"][self.splits["test"].owner]]),
            skipped={n: int((~k).sum()) + self.skipped.get(n, 0) for n, k in kept.items()}
            if skip
            else self.skipped,
        )

    @property
    def problems(self) -> list[str]:
        """All that is wrong but missing pictures."""
        lacking = [] if self.faults else [f"no {n} split was found" for n in SPLITS if n not in self.splits]
        empty = [
            f"{n} has no {what}"
            for n, s in self.splits.items()
            for what, k in (("images", s.images), ("captions", s.captions))
            if not len(k)
        ]
        return self.faults + lacking + empty + self.overlaps

    def _refuse_faults(self, *, but_missing_pictures: bool) -> None:
        faults = self.problems + ([] if but_missing_pictures else self.missing_pictures)
        if faults:
            more = (
                f"; and {len(faults) - SHOWN} more (`python -m harness.data check` lists all)"
                if len(faults) > SHOWN
                else ""
            )
            raise DataError("; ".join(faults[:SHOWN]) + more)

    def _decodable(self, name: str, split: Split) -> NDArray[np.bool_]:
        """bool [N], pictures that can be decoded; some with captions must be among them."""
        kept = ~_bad(split.images, hashlib.sha256(repr((name, self.content)).encode()).hexdigest())
        if not kept[split.owner].any():
            raise DataError(f"{name}: none of its {len(kept)} pictures can be decoded")
        return kept


def _first_groups(train: Split, count: int) -> Split:
    have = len(np.unique(train.image_group))
    if count > have:
        raise DataError(f"dataset_options.train_groups = {count}: train has {have} groups of images")
    return train.only(train.image_group < count)


def meta_from_dev(splits: Mapping[str, Split], share: float, *, leak: bool) -> dict[str, Split]:
    """`meta` of images drawn from dev, and what is left of dev."""
    if "meta" in splits:
        raise DataError("meta_share: the folder has a clean set of its own")
    train, dev = splits["train"], splits["dev"]
    each = len(dev.captions) / len(dev.images)
    wanted = round(share * len(train.captions) / each)
    if not 0 < wanted < len(dev.images):
        raise DataError(
            f"meta_share = {share}: {wanted} images, and dev has {len(dev.images)}, of which some must stay"
        )
    drawn = np.zeros(len(dev.images), bool)
    drawn[draw_images(np.arange(len(drawn)), dev.image_group, wanted, "meta images")] = True
    if drawn.all():
        raise DataError(f"meta_share = {share}: no group of images is left for dev")
    return {"meta": dev.only(drawn)} | ({} if leak else {"dev": dev.only(~drawn)})


# Pieces of layouts ----------------------------------------------------------------------------------


def split_name(word: str) -> str | None:
    """One of `WORDS` for what the field calls it (val, restval, ...); None for anything else."""
    return _ALIASES.get(word.strip().lower())


def read_lines(path: Path, faults: list[str]) -> list[str]:
    """Lines of a UTF-8 text file without their ends; a file that is missing or of another encoding is a
    fault.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        faults.append(f"{path} cannot be read: {error.strerror}")
        return []
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        faults.append(f"{path}, line {line}: expected UTF-8, found the byte {error.object[error.start]:#x}")
        return []
    return [line.strip() for line in text.removesuffix("\n").split("\n")] if text else []


def by_image(paths: Strings) -> tuple[Strings, NDArray[np.int64]]:
    """Distinct paths in order of first appearance, and the place of each given one among them."""
    encoded = paths.array.dictionary_encode()
    return Strings(encoded.dictionary), encoded.indices.to_numpy().astype(np.int64)


def draw_images(
    among: NDArray[np.int64], group: NDArray[np.int64] | None, count: int, *purpose: str
) -> NDArray[np.int64]:
    """Sorted numbers of `count` images drawn from `among` by a fixed seed; whole groups of images, so at
    least so many.
    """
    from methods.seeding import numpy_generator  # loads PyTorch, which reading a data set does not need

    draw = numpy_generator(*purpose)
    if group is None:
        return np.sort(among[draw.permutation(len(among))[:count]])
    groups, sizes = np.unique(group[among], return_counts=True)
    order = draw.permutation(len(groups))
    taken = order[: int(np.searchsorted(np.cumsum(sizes[order]), count)) + 1]
    return among[np.isin(group[among], groups[taken])]


# Looking at pictures --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What decoding a picture showed: a hash of its bytes (empty where it cannot be read), and what is wrong
    with it.
    """

    digest: str
    fault: str


def look_at(images: Pictures, label: str | None, *, threads: int) -> Iterator[Seen]:
    """Read and decode every picture, in order, on several threads (decoders let go of Python's lock)."""

    def look(i: int) -> Seen:
        try:
            content = images.read(i)
        except (OSError, ValueError) as error:
            return Seen(
                "", f"picture {images.name(i)} cannot be read: {getattr(error, 'strerror', None) or error}"
            )
        digest = hashlib.sha256(content).hexdigest()
        try:
            decode(content, images.name(i))
        except BadPicture as error:
            return Seen(digest, str(error))
        return Seen(digest, "")

    count = range(len(images))
    with ThreadPoolExecutor(threads) as pool:
        found = (seen for start in count[::256] for seen in pool.map(look, count[start : start + 256]))
        for _, seen in zip(progress(count, label), found, strict=True):
            yield seen


def _bad(images: Any, key: str) -> NDArray[np.bool_]:
    """bool [N], pictures that cannot be decoded; found once for the content that `key` stands for,
    and kept.
    """
    file = cache_directory() / "pictures" / f"{key[:24]}.json"
    bad = np.zeros(len(images), bool)
    try:
        bad[json.loads(file.read_text())] = True
        return bad
    except (OSError, ValueError, IndexError):
        pass
    label = f"decoding {len(images):,} pictures, to leave out those that cannot be"
    bad[:] = [bool(seen.fault) for seen in look_at(images, label, threads=os.cpu_count() or 1)]
    with atomic_write(file, "w") as stream:
        json.dump(np.flatnonzero(bad).tolist(), stream)
    return bad


def array_digest(values: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
