"""Similarities that another program has computed: whether they fit a split, and their measures.

What goes wrong most is recognised: captions as rows, an image repeated for each of its captions, dropped
captions, one fold of five, distances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.base import COCO_FOLDS, DataError, DataSet
from harness.evaluation.coco import ECCV_MEASURES, FOLD_IMAGES, coco_metrics, fold_recalls
from harness.evaluation.metrics import Ranking, chance_rsum, rank_queries, recalls

_SAME = 1e-5  # how far copies of a row may be apart, for values of about 1
_ROWS = 2048  # images whose similarities are computed, or looked at, at a time


@dataclass(frozen=True)
class Evaluation:
    """What similarities are worth on a split.

    Attributes:
        metrics: recalls and rSum in percent, ranks from 1; of MS-COCO those of the 1K protocol (`1k_...`) and
            of ECCV Caption (`eccv_...`), too.
        chance: expected rSum of a random order.
        images: number of images.
        captions: number of captions.
        notes: what was recognised and put right, or looks wrong.
        i2t: rankings of images over captions.
        t2i: rankings of captions over images.
    """

    metrics: dict[str, float]
    chance: float
    images: int
    captions: int
    notes: tuple[str, ...]
    i2t: Ranking
    t2i: Ranking


def cosines(images: NDArray[np.floating], texts: NDArray[np.floating]) -> NDArray[np.float32]:
    """Cosine of each image with each caption: [N, D], [C, D] -> [N, C].

    Raises:
        DataError: the shapes do not fit, or a vector is zero.
    """
    if images.ndim != 2 or texts.ndim != 2 or images.shape[1] != texts.shape[1]:
        raise DataError(
            f"embeddings of shapes {images.shape} and {texts.shape}: expected (images, D) and (captions, D)"
        )
    units: list[NDArray[np.float32]] = []
    for name, vectors in (("image", images), ("caption", texts)):
        values = np.asarray(vectors, np.float32)
        lengths = np.linalg.norm(values, axis=1, keepdims=True)
        if (lengths == 0).any():
            raise DataError(f"the embedding of {name} {int((lengths == 0).argmax())} is zero")
        units.append((values / lengths).astype(np.float32))
    similarity: NDArray[np.float32] = units[0] @ units[1].T
    return similarity


def images_of(given: Sequence[int], per_image: int) -> int:
    """How many images there are, where each has as many captions.

    Args:
        given: how many rows of images (which may be copies) and of captions there are.
        per_image: captions of an image.

    Raises:
        DataError: it cannot be told; the fault is named where it is known.
    """
    if len(given) != 2 or not all(given):
        raise DataError(f"similarities of shape {tuple(given)}: expected [images, captions]")
    images, captions = given
    if images == captions * per_image > captions:
        raise DataError(
            f"{images} images and {captions} captions, of which each image has {per_image}: are --images and "
            "--texts exchanged?"
        )
    if captions % images == 0 and captions // images not in (1, per_image):
        raise DataError(
            f"{images} images and {captions} captions are {captions // images} captions an image: "
            f"--captions-per-image {captions // images}"
        )
    if captions < images * per_image < 2 * captions:  # captions are missing, and no image has several rows
        return images
    if captions % per_image:
        raise DataError(f"{captions} captions are not {per_image} for each image")
    return captions // per_image


def one_of_each(rows: NDArray[np.floating], images: int) -> NDArray[np.floating]:
    """Rows of which each is followed by its copies, once each; others as they are.

    The field's released code repeats images so, one row for each of their captions.

    Args:
        rows: [k N, ...], similarities or embeddings.
        images: N, how many images there are.
    """
    copies, rest = divmod(len(rows), images)
    return rows[::copies] if copies > 1 and not rest and _repeats(rows, copies) else rows


def copies_note(rows: int, images: int) -> str:
    """What is said where `one_of_each` has left copies out."""
    return f"each image stood there {rows // images} times: one row of each was taken"


def evaluate(
    scores: NDArray[np.floating],
    image_group: NDArray[np.int64],
    caption_group: NDArray[np.int64],
    *,
    distances: bool = False,
    coco: DataSet | None = None,
) -> Evaluation:
    """Measures of similarities, [N images, C captions]; `fitted` says which other shapes are recognised.

    Args:
        scores: similarities, or distances.
        image_group: int64 [N]; images and captions of one group match.
        caption_group: int64 [C].
        distances: whether smaller is better.
        coco: the data set whose test split the scores are of, for the measures of MS-COCO.

    Raises:
        DataError: they do not fit, are not finite, or an image or a caption has no match.
    """
    scores, notes = fitted(scores, image_group, caption_group)
    for start, part in zip(range(0, len(scores), _ROWS), _parts(scores), strict=True):
        wrong = np.argwhere(~np.isfinite(part))
        if len(wrong):
            row, column = wrong[0]
            raise DataError(
                f"the similarity of image {start + row} and caption {column} is {part[row, column]}: a model "
                "that has none for a pair must say a finite number, its lowest"
            )
    if distances:
        scores = -np.asarray(scores)
    _check_matches("image", image_group, "caption", caption_group)
    _check_matches("caption", caption_group, "image", image_group)
    i2t = rank_queries(scores, image_group, caption_group)
    t2i = rank_queries(scores.T, caption_group, image_group)
    metrics, chance = recalls(i2t, t2i), chance_rsum(image_group, caption_group)
    if metrics["rsum"] < chance / 2:
        notes.append(
            f"rSum is far below chance ({chance:.1f}): "
            + ("are these similarities?" if distances else "are these distances (--distances)?")
        )
    if coco is not None:
        metrics |= coco_metrics(scores, coco)
        if coco.folds and not any(measure in metrics for measure in ECCV_MEASURES):
            notes.append(
                "no measures of ECCV Caption: its package (eccv_caption) or MS-COCO's ids are missing"
            )
    if coco is None and _is_coco(image_group, caption_group, COCO_FOLDS):
        metrics |= fold_recalls(scores, image_group, caption_group, COCO_FOLDS)
        notes.append(
            "1K: taken for the 5,000 test images of MS-COCO, in their order; folds are 1,000 rows each"
        )
    elif coco is None and _is_coco(image_group, caption_group, 1):
        notes.append(
            "these are the numbers of one fold of MS-COCO's 1K protocol, whose results are the mean over "
            "all five"
        )
    return Evaluation(metrics, chance, len(image_group), len(caption_group), tuple(notes), i2t, t2i)


def _is_coco(image_group: NDArray[np.int64], caption_group: NDArray[np.int64], folds: int) -> bool:
    """Whether these are so many folds of 1,000 images, each with five captions of its own that follow one
    another.
    """
    images = folds * FOLD_IMAGES
    return (
        len(image_group) == images == len(np.unique(image_group))
        and len(caption_group) == 5 * images
        and bool((caption_group == np.repeat(image_group, 5)).all())
    )


def _check_matches(query: str, own: NDArray[np.int64], candidate: str, others: NDArray[np.int64]) -> None:
    """Raises DataError where a query has no match."""
    lone = np.flatnonzero(~np.isin(own, others))
    if len(lone):
        raise DataError(
            f"{len(lone)} {query}s have no {candidate} of their group; the first is {query} {lone[0]}, of "
            f"group {own[lone[0]]}"
        )


def fitted(
    scores: NDArray[np.floating], image_group: NDArray[np.int64], caption_group: NDArray[np.int64]
) -> tuple[NDArray[np.floating], list[str]]:
    """Similarities in the shape [N images, C captions], and what was put right.

    Captions as rows are turned, and of equal rows of an image for each of its captions one is taken (the
    field's released code repeats image embeddings so); also both.

    Raises:
        DataError: the shape does not fit; the fault is named where it is known.
    """
    images, captions = len(image_group), len(caption_group)
    if scores.ndim != 2 or not np.issubdtype(scores.dtype, np.number):
        raise DataError(
            f"similarities of shape {scores.shape} and type {scores.dtype}: expected numbers "
            f"[{images} images, {captions} captions]"
        )
    if scores.shape == (images, captions):
        return scores, []
    if scores.shape == (captions, images):
        return scores.T, ["rows were captions: the matrix was turned"]
    rows, columns = scores.shape
    for matrix, turned in ((scores, []), (scores.T, ["rows were captions: the matrix was turned"])):
        once = one_of_each(matrix, images)
        if once.shape == (images, captions):
            return once, [*turned, copies_note(len(matrix), images)]
    raise DataError(
        f"similarities of shape ({rows}, {columns}), and the split has {images} images and {captions} "
        f"captions{_known_fault(rows, columns, images, captions)}"
    )


def _repeats(scores: NDArray[np.floating], copies: int) -> bool:
    """Whether each row is followed by its copies, up to what other batches of a GPU round otherwise."""
    first = scores[::copies]
    return all(
        bool(np.allclose(part, scores[i::copies][start : start + _ROWS], rtol=0, atol=_SAME, equal_nan=True))
        for i in range(1, copies)
        for start, part in zip(range(0, len(first), _ROWS), _parts(first), strict=True)
    )


def _known_fault(rows: int, columns: int, images: int, captions: int) -> str:
    """What a shape that does not fit looks like, also turned; empty if it looks like nothing known."""
    shapes = ((rows, columns, ""), (columns, rows, ", with captions as rows"))
    for fault in (_fold, _missing):
        for given_images, given_captions, turned in shapes:
            text = fault(given_images, given_captions, images, captions, turned)
            if text:
                return text
    return ""


def _fold(rows: int, columns: int, images: int, captions: int, turned: str) -> str:
    """One fold, also with a row for each of its captions, as the field's code for folds writes it."""
    fold, of_captions = images // COCO_FOLDS, captions // COCO_FOLDS
    if not fold or rows not in (fold, of_captions) or columns not in (of_captions, captions):
        return ""
    copies = ", with a row for each caption" if rows == columns == of_captions else ""
    return (
        f". This looks like one fold of {COCO_FOLDS}{copies}{turned}: results on {fold} images are the mean "
        "over all folds, which are made here from the similarities of the complete split"
    )


def _missing(rows: int, columns: int, images: int, captions: int, turned: str) -> str:
    """Captions or images that a model dropped, also where each image has several rows."""
    copies, rest = divmod(rows, images)
    if not rest and copies and columns < captions:
        each = f", and {copies} rows for each image" if copies > 1 else ""
        return (
            f": {captions - columns} captions are missing{each}{turned}. A caption that a model drops counts "
            "as missed: give it a column with the lowest similarity"
        )
    if columns == captions and rows < images:
        return f": {images - rows} images are missing{turned}. An image that a model drops counts as missed"
    if columns == captions and not rest and copies > 1:
        return f": {copies} rows for each image, but they differ, so they are no copies of it{turned}"
    return ""


def _parts(array: NDArray[Any]) -> list[NDArray[Any]]:
    """The array in runs of rows; of a memory map little is read at a time."""
    return [array[i : i + _ROWS] for i in range(0, len(array), _ROWS)]
