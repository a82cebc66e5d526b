"""The noise index: for every training caption, the image it is trained with.

It is the only thing that noise changes (the model `partial` changes words instead), and it is made here, from
the data set's owners and a seed, so all methods at one seed train on the same pairs. Index files that others
published are read by `harness.noise.files`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from harness.data.base import DataError, Split, read_array
from harness.lib.files import file_digest
from harness.noise import GRANULARITIES
from harness.noise.neighbours import nearest
from methods.seeding import numpy_generator

# how far a file's realised ratio may be from the one that a trial asks for, and some fixed points of a
# shuffle
TOLERANCE = 0.02


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shuffle(_Model):
    """Captions (or whole images) are drawn, and their images shuffled among themselves; some fall back in
    place.

    `caption`: int(ratio * C) captions (NCR, MSCN, NPC: released code). `image`: int(ratio * N) images, so
        that all captions of
    a noisy image go to one wrong image (DECL, RCL: released code). Each image keeps its number of captions.
    """

    model: Literal["shuffle"] = "shuffle"


class Derangement(_Model):
    """The same without fixed points: every caption (or image) that was drawn mismatches, so the realised
    ratio is the nominal one.
    """

    model: Literal["derangement"] = "derangement"


class Hard(_Model):
    """Captions swap images with a near neighbour: mismatches that look alike (field notes, section 5f).
    Captions only.

    Attributes:
        embedding: an `.npy` file [C, D] or [N, D] with a row for each training caption or image, in data-set
            order (`python -m harness.data embed` makes one); near is by cosine.
    """

    model: Literal["hard"] = "hard"
    embedding: str


class Partial(_Model):
    """int(ratio * C) captions keep their image, and lose a share of their words to words of another caption
    (RCAR's partial mismatch).

    Attributes:
        words: share of a caption's words that are replaced; at least one is.
    """

    model: Literal["partial"] = "partial"
    words: Annotated[float, Field(gt=0, le=1)] = 0.5


class FromFile(_Model):
    """An index that was made elsewhere; see `harness.noise.files` for the forms.

    Attributes:
        path: the file; {ratio} and {seed} in it stand for those of the trial. At ratio 0 no file is read.
    """

    model: Literal["from_file"] = "from_file"
    path: str

    def of(self, ratio: float, seed: int) -> Path:
        return Path(self.path.replace("{ratio}", f"{ratio:g}").replace("{seed}", str(seed)))


class Natural(_Model):
    """Nothing is injected: the data is noisy by nature, and which pairs mismatch is not known. The ratio is
    0.
    """

    model: Literal["none"] = "none"


NoiseModel = Annotated[
    Shuffle | Derangement | Hard | Partial | FromFile | Natural, Field(discriminator="model")
]
MODELS = ("shuffle", "derangement", "hard", "partial", "from_file", "none")


@dataclass(frozen=True)
class NoiseIndex:
    """Which image each training caption is trained with, and what is known about it.

    Attributes:
        image: int64 [C], image index of each caption.
        matched: bool [C], whether caption and image are of one group (and the words the caption's own). The
            truth: the harness scores with it, the oracle trains on it, and no other method sees it. None
                where nobody knows it.
        nominal: the ratio asked for.
        granularity: `caption` or `image`, of a file as its index shows; `none` at ratio 0.
        seed: the noise seed.
        model: what kind of noise it is, one of `MODELS`.
        captions: the captions as they are trained with, where noise changed their words.
        ambiguous: of a file that names captions by their text, those whose text stands several times in the
            data set.
    """

    image: NDArray[np.int64]
    matched: NDArray[np.bool_] | None
    nominal: float
    granularity: str
    seed: int
    model: str = "shuffle"
    captions: Sequence[str] | None = None
    ambiguous: int = 0

    @property
    def realised(self) -> float:
        """Share of pairs that really mismatch: below nominal, since a shuffle has fixed points; NaN where it
        is not known.
        """
        return float("nan") if self.matched is None else float(1 - self.matched.mean())

    @property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the index (and of the words, where they were changed)."""
        if self.captions is None:
            return index_digest(self.image)
        words = "\n".join([index_digest(self.image), *self.captions])
        return hashlib.sha256(words.encode()).hexdigest()[:16]

    def words_of(self, split: Split) -> Split:
        """The training split with the captions that it is trained with."""
        if self.captions is None:
            return split
        return Split(split.images, self.captions, split.owner, split.image_group, altered=self.digest)


def index_digest(image: NDArray[np.int64]) -> str:
    """First 16 hex digits of the SHA-256 of an index: equal for equal indices, whatever file they came in."""
    return hashlib.sha256(np.ascontiguousarray(image, "<i8").tobytes()).hexdigest()[:16]


def make_noise(split: Split, *, ratio: float, granularity: str, seed: int, model: Any = None) -> NoiseIndex:
    """The noise index of a training split under a noise model (default: `Shuffle`).

    Raises:
        ValueError: ratio outside [0, 1), an unknown granularity, or a model that cannot do what is asked.
        DataError: a file that the model names cannot be read or does not fit.
    """
    model = model or Shuffle()
    if not 0 <= ratio < 1:
        raise ValueError(f"noise ratio {ratio} is outside [0, 1)")
    if granularity not in GRANULARITIES:
        raise ValueError(f"noise granularity {granularity!r}: expected one of {', '.join(GRANULARITIES)}")
    fault = misfit(model, ratio, granularity)
    if fault:
        raise ValueError(fault)
    if isinstance(model, Natural):
        return NoiseIndex(split.owner.copy(), None, 0.0, "none", seed, "none")
    if not ratio:
        return NoiseIndex(split.owner.copy(), np.ones(len(split.owner), bool), 0.0, "none", seed, model.model)
    if isinstance(model, FromFile):
        return _from_file(split, model, ratio, seed)
    if isinstance(model, Partial):
        return _partial(split, model.words, ratio, seed)
    if isinstance(model, Hard):
        image = _hard(split, Path(model.embedding), ratio, seed)
    else:
        image = _moved(split, ratio, granularity, seed, fixed_points=isinstance(model, Shuffle))
    return NoiseIndex(
        image, split.image_group[image] == split.caption_group, ratio, granularity, seed, model.model
    )


def misfit(model: Any, ratio: float, granularity: str) -> str:
    """Why a noise model does not go with a ratio and a granularity; empty if it does."""
    if isinstance(model, (Hard, Partial)) and granularity != "caption":
        return (
            f"noise {model.model!r} is of single captions: noise_granularity must be 'caption', not "
            f"{granularity!r}"
        )
    if isinstance(model, Natural) and ratio:
        return f"noise 'none' injects nothing: noise_ratio must be 0, not {ratio:g}"
    return ""


def source_files(model: Any, ratio: float, seed: int) -> list[Path]:
    """Files that an index is made from, beside the data set."""
    if not ratio:
        return []
    return (
        [model.of(ratio, seed)]
        if isinstance(model, FromFile)
        else [Path(model.embedding)]
        if isinstance(model, Hard)
        else []
    )


# Shuffles -------------------------------------------------------------------------------------------


def _moved(
    split: Split, ratio: float, granularity: str, seed: int, *, fixed_points: bool
) -> NDArray[np.int64]:
    draw = numpy_generator("noise", granularity, seed)
    image = split.owner.copy()
    if granularity == "caption":
        chosen = draw.permutation(len(image))[: int(ratio * len(image))]
        image[chosen] = (
            image[draw.permutation(chosen)]
            if fixed_points
            else image[_derange(chosen, split.caption_group, draw)]
        )
        return image
    chosen = draw.permutation(len(split.images))[: int(ratio * len(split.images))]
    moved = np.arange(len(split.images))
    moved[chosen] = draw.permutation(chosen) if fixed_points else _derange(chosen, split.image_group, draw)
    return moved[image]


def _derange(
    chosen: NDArray[np.int64], group: NDArray[np.int64], draw: np.random.Generator
) -> NDArray[np.int64]:
    """The chosen in another order, each in the place of one of another group.

    A shuffle, and then each that is still at home changes places with a random other that both may go to.
    Raises ValueError where one group is more than half of the chosen.
    """
    most = int(np.bincount(group[chosen]).max()) if len(chosen) else 0
    if 2 * most > len(chosen):
        raise ValueError(f"no derangement: of the {len(chosen)} that were drawn, {most} are of one group")
    order = draw.permutation(chosen)
    here = group[chosen]
    for k in np.flatnonzero(group[order] == here):
        if group[order[k]] != here[k]:
            continue  # an earlier exchange has moved it
        fits = np.flatnonzero((group[order] != here[k]) & (here != group[order[k]]))
        other = fits[draw.integers(len(fits))]
        order[k], order[other] = order[other], order[k]
    return order


# Noise that looks like data -------------------------------------------------------------------------


def _hard(split: Split, file: Path, ratio: float, seed: int) -> NDArray[np.int64]:
    """Pairs of captions swap their images: a random caption and, of its nearest that are still free and of
    another group, the first.
    """
    embedding = read_embedding(file, split)
    by_caption = len(embedding) == len(split.captions)
    group = split.caption_group
    draw = numpy_generator("noise", "hard", seed)
    wanted = int(ratio * len(group)) // 2
    image, free, swaps = split.owner.copy(), np.ones(len(group), bool), 0
    captions_of: list[list[int]] = [[] for _ in range(len(split.images))]
    for c in draw.permutation(len(group)).tolist():
        captions_of[split.owner[c]].append(c)
    width = 16
    while swaps < wanted:
        width = min(width, len(embedding) - 1)
        near = nearest(embedding, width, key=file_digest(file))
        for c in draw.permutation(np.flatnonzero(free)).tolist():
            if swaps == wanted:
                break
            if free[c]:
                rows = near[c if by_caption else split.owner[c]].tolist()
                candidates = rows if by_caption else [o for i in rows for o in captions_of[i]]
                other = next((o for o in candidates if free[o] and group[o] != group[c]), None)
                if other is not None:
                    image[c], image[other] = image[other], image[c]
                    free[c] = free[other] = False
                    swaps += 1
        if width == len(embedding) - 1 and swaps < wanted:
            raise ValueError(
                f"noise 'hard': no partners of another group are left after {2 * swaps} of {2 * wanted} "
                f"captions"
            )
        width *= 4
    return image


def read_embedding(file: Path, split: Split) -> NDArray[np.floating]:
    """An embedding of the training captions or images, as a memory map.

    Raises:
        DataError: it cannot be read, or has a row for neither.
    """
    found = read_array(file, "embedding", mapped=True)
    if (
        found.ndim != 2
        or not np.issubdtype(found.dtype, np.floating)
        or len(found) not in (len(split.captions), len(split.images))
    ):
        raise DataError(
            f"embedding {file}: expected floating-point rows for the {len(split.captions)} captions or the "
            f"{len(split.images)} images of train, found {found.dtype} {found.shape}"
        )
    for start in range(0, len(found), 65536):
        length = np.linalg.norm(np.asarray(found[start : start + 65536], np.float64), axis=1)
        bad = np.flatnonzero(~(np.isfinite(length) & (length > 0)))
        if len(bad):
            raise DataError(
                f"embedding {file}: row {start + bad[0]} is zero or not finite, and has no direction"
            )
    return found


def _partial(split: Split, share: float, ratio: float, seed: int) -> NoiseIndex:
    """Random captions with some words replaced, in place, by words of a random caption of another group."""
    draw = numpy_generator("noise", "partial", seed)
    group = split.caption_group
    captions = list(split.captions)
    changed = np.zeros(len(captions), bool)
    for c in draw.permutation(len(captions))[: int(ratio * len(captions))].tolist():
        words = split.captions[c].split()
        for _ in range(100):  # a donor may be of the same group, or bring the same words
            donor = int(draw.integers(len(captions)))
            theirs = split.captions[donor].split()
            if group[donor] == group[c] or not theirs:
                continue
            count = max(1, round(share * len(words)))
            new = list(words) or [""]
            for place, word in zip(
                draw.permutation(len(new))[:count].tolist(),
                draw.permutation(len(theirs)).tolist(),
                strict=False,
            ):
                new[place] = theirs[word]
            if new != words:
                captions[c], changed[c] = " ".join(new), True
                break
    return NoiseIndex(split.owner.copy(), ~changed, ratio, "caption", seed, "partial", captions=captions)


def _from_file(split: Split, model: FromFile, ratio: float, seed: int) -> NoiseIndex:
    from harness.noise.files import read_index

    path = model.of(ratio, seed)
    found = read_index(path, split)
    noise = NoiseIndex(
        found.image, found.matched, ratio, found.granularity, seed, "from_file", ambiguous=found.ambiguous
    )
    if abs(noise.realised - ratio) > TOLERANCE + 5 / len(split.images):
        raise DataError(
            f"noise file {path}: {noise.realised:.4f} of its pairs mismatch in this data set, and the "
            f"trial's noise_ratio is {ratio:g}"
        )
    return noise
