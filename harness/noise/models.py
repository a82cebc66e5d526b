"""Noise models: what mismatches the training pairs, one class each, and `make_noise`, which applies one.

A model carries everything that the harness asks about it: what it is incompatible with, how it makes a noise
index, the files that it reads, and its label in tables. A new model is a class here, with its name in
`NoiseModel` and `MODELS`. The index follows from the data set, the model and the seed alone, so all methods
at one seed train on the same pairs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from harness.data.base import DataError, Split
from harness.noise import GRANULARITIES
from harness.noise.files import read_index
from harness.noise.index import NoiseIndex
from harness.noise.inject import hard, moved, moved_texts, partial

TOLERANCE = 0.02
"""Largest difference between the realised ratio of an index file and a trial's noise ratio, in excess of five
images of the data set: a published shuffle has fixed points."""


class _Model(BaseModel, ABC):
    """What every noise model has.

    Attributes:
        ground_truth_known: whether it is known which pairs match.
        changes_words: whether the model changes words of captions instead of their images.
        may_fail: whether the injection can fail on a valid data set, so that it is tried before a sweep.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ground_truth_known: ClassVar[bool] = True
    changes_words: ClassVar[bool] = False
    may_fail: ClassVar[bool] = True

    def incompatibility(self, ratio: float, granularity: str) -> str:
        """Why the model cannot be combined with a ratio and a granularity; empty if it can."""
        return ""

    @abstractmethod
    def inject(self, split: Split, *, ratio: float, granularity: str, seed: int) -> NoiseIndex:
        """The noise index of a training split at a ratio above 0.

        Call `make_noise` instead: it checks the arguments and handles ratio 0.

        Raises:
            ValueError: the split does not allow such noise.
            DataError: a file of the model cannot be read, or does not fit the split.
        """

    def files(self, ratio: float, seed: int) -> list[Path]:
        """The files that the index is made from in addition to the data set; none at ratio 0."""
        return self._files(ratio, seed) if ratio else []

    def _files(self, ratio: float, seed: int) -> list[Path]:
        return []

    @abstractmethod
    def label(self, granularity: str) -> str:
        """The noise in a few words, for tables: the ratio is a share of what it names."""


class Shuffle(_Model):
    """Random captions (or images) exchange their images by a random permutation, which has fixed points.

    Granularity `caption` draws int(ratio * C) captions (NCR, MSCN and NPC, released code). Granularity
    `image` draws int(ratio * N) images, and all captions of a noisy image go to one wrong image (DECL and
    RCL, released code). Each image keeps its number of captions. Granularity `text` (ours) draws strings,
    whose copies go together to another group: it has no fixed points, and changes how many captions an image
    has.
    """

    model: Literal["shuffle"] = "shuffle"

    may_fail: ClassVar[bool] = False

    def inject(self, split: Split, *, ratio: float, granularity: str, seed: int) -> NoiseIndex:
        """Permute what is drawn; see the base class."""
        if granularity == "text":
            image = moved_texts(split, ratio=ratio, seed=seed)
        else:
            image = moved(split, ratio=ratio, granularity=granularity, seed=seed, fixed_points=True)
        return _index(self.model, image, split, ratio=ratio, granularity=granularity, seed=seed)

    def label(self, granularity: str) -> str:
        """The noise by its granularity."""
        return f"{granularity}-level noise"


class Derangement(_Model):
    """`Shuffle` without fixed points: everything drawn mismatches, so that the realised ratio is the nominal.

    It fails where one group is more than half of what is drawn. Granularity `text` is the same as in
    `Shuffle`.
    """

    model: Literal["derangement"] = "derangement"

    def inject(self, split: Split, *, ratio: float, granularity: str, seed: int) -> NoiseIndex:
        """Permute what is drawn, without fixed points; see the base class."""
        if granularity == "text":
            image = moved_texts(split, ratio=ratio, seed=seed)
        else:
            image = moved(split, ratio=ratio, granularity=granularity, seed=seed, fixed_points=False)
        return _index(self.model, image, split, ratio=ratio, granularity=granularity, seed=seed)

    def label(self, granularity: str) -> str:
        """The noise by its granularity."""
        return f"{granularity}-level noise without fixed points"


class Hard(_Model):
    """Captions exchange images with a near neighbour: mismatched pairs that look alike (`docs/field.md`).

    Granularity `caption` only.

    Attributes:
        embedding: path of an `.npy` file, float [C, D] or [N, D], with a row for each training caption or
            image in data-set order (`python -m harness.data embed` writes one); nearness is the cosine.
    """

    model: Literal["hard"] = "hard"
    embedding: str

    def incompatibility(self, ratio: float, granularity: str) -> str:
        """Granularity `caption` only."""
        return _captions_only(self.model, granularity)

    def inject(self, split: Split, *, ratio: float, granularity: str, seed: int) -> NoiseIndex:
        """Exchange images between neighbours in the embedding; see the base class."""
        image = hard(split, Path(self.embedding), ratio=ratio, seed=seed)
        return _index(self.model, image, split, ratio=ratio, granularity=granularity, seed=seed)

    def _files(self, ratio: float, seed: int) -> list[Path]:
        return [Path(self.embedding)]

    def label(self, granularity: str) -> str:
        """The noise by the name of its embedding file."""
        return f"hard noise by {Path(self.embedding).stem}"


class Partial(_Model):
    """A share of the words of int(ratio * C) captions is replaced (partial mismatch, RCAR).

    The words come from another caption, and every caption keeps its image. Granularity `caption` only.

    Attributes:
        words: share of a caption's words that are replaced, in (0, 1]; at least one word is.
    """

    model: Literal["partial"] = "partial"
    words: Annotated[float, Field(gt=0, le=1)] = 0.5

    changes_words: ClassVar[bool] = True
    may_fail: ClassVar[bool] = False

    def incompatibility(self, ratio: float, granularity: str) -> str:
        """Granularity `caption` only."""
        return _captions_only(self.model, granularity)

    def inject(self, split: Split, *, ratio: float, granularity: str, seed: int) -> NoiseIndex:
        """Replace words of the captions that are drawn; see the base class."""
        captions, changed = partial(split, words=self.words, ratio=ratio, seed=seed)
        return NoiseIndex(
            split.owner.copy(), ~changed, ratio, granularity, seed, self.model, captions=captions
        )

    def label(self, granularity: str) -> str:
        """The noise by its share of words."""
        return f"partial noise ({self.words:g} of the words)"


class FromFile(_Model):
    """A published noise index; `harness.noise.files` describes the forms. At ratio 0 no file is read.

    Attributes:
        path: path of the file; `{ratio}` and `{seed}` in it are replaced by those of the trial.
    """

    model: Literal["from_file"] = "from_file"
    path: str

    def incompatibility(self, ratio: float, granularity: str) -> str:
        """Not with granularity `text`: a file's granularity is that of its index."""
        if granularity != "text":
            return ""
        return (
            f"noise {self.model!r} has the granularity of its index: noise_granularity must be 'caption' or "
            "'image', not 'text'"
        )

    def inject(self, split: Split, *, ratio: float, granularity: str, seed: int) -> NoiseIndex:
        """See the base class; the granularity is that of the file, whatever is asked for.

        Raises:
            DataError: the file cannot be read, does not fit the split, or has another ratio.
        """
        (path,) = self.files(ratio, seed)
        file = read_index(path, split)
        noise = NoiseIndex(
            file.image, file.matched, ratio, file.granularity, seed, self.model, ambiguous=file.ambiguous
        )
        if abs(noise.realised - ratio) > TOLERANCE + 5 / len(split.images):
            raise DataError(
                f"noise file {path}: {noise.realised:.4f} of its pairs mismatch in this data set, and the "
                f"trial's noise_ratio is {ratio:g}"
            )
        return noise

    def _files(self, ratio: float, seed: int) -> list[Path]:
        return [Path(self.path.replace("{ratio}", f"{ratio:g}").replace("{seed}", str(seed)))]

    def label(self, granularity: str) -> str:
        """The noise by the name of its file."""
        return f"noise of {Path(self.path).name}"


class Natural(_Model):
    """No noise is injected, and the ratio is 0: which pairs match in data noisy by nature is unknown."""

    model: Literal["none"] = "none"

    ground_truth_known: ClassVar[bool] = False

    def incompatibility(self, ratio: float, granularity: str) -> str:
        """The ratio must be 0."""
        return f"noise 'none' injects nothing: noise_ratio must be 0, not {ratio:g}" if ratio else ""

    def inject(self, split: Split, *, ratio: float, granularity: str, seed: int) -> NoiseIndex:
        """Raises ValueError: there is nothing to inject."""
        raise ValueError(self.incompatibility(ratio, granularity))

    def label(self, granularity: str) -> str:
        """The same for every data set."""
        return "its own noise"


NoiseModel = Annotated[
    Shuffle | Derangement | Hard | Partial | FromFile | Natural, Field(discriminator="model")
]
"""Any noise model; `model` is its name."""
MODELS = ("shuffle", "derangement", "hard", "partial", "from_file", "none")
"""Names of the noise models."""


def make_noise(
    split: Split, *, ratio: float, granularity: str, seed: int, model: NoiseModel | None = None
) -> NoiseIndex:
    """The noise index of a training split under a noise model.

    Args:
        split: the training split, C captions of N images.
        ratio: share of the captions or images that are noisy, in [0, 1).
        granularity: what moves to another image, one of `harness.noise.GRANULARITIES`.
        seed: the noise seed.
        model: the noise model; `Shuffle` if None.

    Raises:
        ValueError: a ratio outside [0, 1), an unknown granularity, or a model that is incompatible with them.
        DataError: a file of the model cannot be read, or does not fit the split.
    """
    model = model or Shuffle()
    if not 0 <= ratio < 1:
        raise ValueError(f"noise ratio {ratio} is outside [0, 1)")
    if granularity not in GRANULARITIES:
        raise ValueError(f"noise granularity {granularity!r}: expected one of {', '.join(GRANULARITIES)}")
    incompatibility = model.incompatibility(ratio, granularity)
    if incompatibility:
        raise ValueError(incompatibility)
    if ratio:
        return model.inject(split, ratio=ratio, granularity=granularity, seed=seed)
    matched = np.ones(len(split.owner), bool) if model.ground_truth_known else None
    return NoiseIndex(split.owner.copy(), matched, 0.0, "none", seed, model.model)


def _index(
    model: str, image: NDArray[np.int64], split: Split, *, ratio: float, granularity: str, seed: int
) -> NoiseIndex:
    matched = split.image_group[image] == split.caption_group
    return NoiseIndex(image, matched, ratio, granularity, seed, model)


def _captions_only(model: str, granularity: str) -> str:
    if granularity == "caption":
        return ""
    return (
        f"noise {model!r} applies to single captions: noise_granularity must be 'caption', not "
        f"{granularity!r}"
    )
