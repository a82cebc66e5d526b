"""The injections behind the noise models of `harness.noise.models`.

Each draws from its own random stream of the noise seed. `partial` changes words; the others change only the
image that a caption is trained with.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.data.base import DataError, Split, read_array
from harness.lib.files import file_digest
from methods.seeding import numpy_generator

# Permutations --------------------------------------------------------------------------------------


def moved(
    split: Split, *, ratio: float, granularity: str, seed: int, fixed_points: bool
) -> NDArray[np.int64]:
    """Draw int(ratio * C) captions, or int(ratio * N) images, and permute the images among them (NCR for
    captions, DECL and RCL for images: released code).

    Args:
        split: the training split, C captions of N images.
        ratio: share of the captions or images that are drawn.
        granularity: `caption` or `image`.
        seed: the noise seed.
        fixed_points: whether a caption may keep its image, or get another one of its group.

    Returns:
        int64 [C], the image that each caption is trained with.

    Raises:
        ValueError: no permutation without fixed points exists.
    """
    draw = numpy_generator("noise", granularity, seed)
    image = split.owner.copy()
    if granularity == "caption":
        chosen = draw.permutation(len(image))[: int(ratio * len(image))]
        image[chosen] = (
            image[draw.permutation(chosen)]
            if fixed_points
            else image[derange(chosen, split.caption_group, draw=draw)]
        )
        return image
    chosen = draw.permutation(len(split.images))[: int(ratio * len(split.images))]
    new_image = np.arange(len(split.images))
    new_image[chosen] = (
        draw.permutation(chosen) if fixed_points else derange(chosen, split.image_group, draw=draw)
    )
    return new_image[image]


def moved_texts(split: Split, *, ratio: float, seed: int) -> NDArray[np.int64]:
    """Draw strings until their copies make up int(ratio * C) captions; each string draws another group, and
    its copies train with that group's images, in turn.

    Where images of a group share their captions, moving a single caption leaves copies of it that still match
    their images. A string that stands for several groups draws one that is none of them; one that stands for
    all stays.

    Args:
        split: the training split, C captions of N images.
        ratio: share of the captions that mismatch; reached within the copies of one string.
        seed: the noise seed.

    Returns:
        int64 [C], the image that each caption is trained with.
    """
    draw = numpy_generator("noise", "text", seed)
    copies: dict[str, list[int]] = {}
    for caption, text in enumerate(split.captions):
        copies.setdefault(text, []).append(caption)
    texts, groups = list(copies), np.unique(split.image_group)
    by_group = np.argsort(split.image_group, kind="stable")
    start = np.searchsorted(split.image_group[by_group], groups)
    images_of = dict(zip(groups.tolist(), np.split(by_group, start[1:]), strict=True))
    image, wanted, moved_captions = split.owner.copy(), int(ratio * len(split.owner)), 0
    for number in draw.permutation(len(texts)).tolist():
        members = copies[texts[number]]
        # The last string may overshoot: it is taken where that comes closer to the ratio.
        if moved_captions + len(members) / 2 > wanted:
            break
        others = np.setdiff1d(groups, split.caption_group[members])
        if not len(others):
            continue
        images = images_of[int(draw.choice(others))]
        image[members] = np.resize(draw.permutation(images), len(members))
        moved_captions += len(members)
    return image


def derange(
    chosen: NDArray[np.int64], group: NDArray[np.int64], *, draw: np.random.Generator
) -> NDArray[np.int64]:
    """A random order of the chosen in which no element takes the index of one of its own group.

    A permutation, in which each element that is left at an index of its group is then exchanged with a random
    one such that both fit.

    Args:
        chosen: int64 [K], indices of captions or images.
        group: int64 [C] or [N], the group of each caption or image.
        draw: the random stream.

    Returns:
        int64 [K], the chosen in their new order.

    Raises:
        ValueError: one group is more than half of the chosen, so that no such order exists.
    """
    largest = int(np.bincount(group[chosen]).max()) if len(chosen) else 0
    if 2 * largest > len(chosen):
        raise ValueError(
            f"no derangement exists: {largest} of the {len(chosen)} captions or images that were drawn are "
            f"of one group, and at most half may be"
        )
    order = draw.permutation(chosen)
    original = group[chosen]
    for k in np.flatnonzero(group[order] == original):
        if group[order[k]] != original[k]:
            continue  # an earlier exchange has moved it
        fits = np.flatnonzero((group[order] != original[k]) & (original != group[order[k]]))
        other = fits[draw.integers(len(fits))]
        order[k], order[other] = order[other], order[k]
    return order


# Noise that resembles the data ---------------------------------------------------------------------


def hard(split: Split, file: Path, *, ratio: float, seed: int) -> NDArray[np.int64]:
    """Pairs of captions exchange their images: a random caption, and the nearest one of another group and
    another text that has not been exchanged yet. (Captions of one text that exchange their images change
    nothing.)

    The search starts with the 16 nearest neighbours, and widens until int(ratio * C) // 2 pairs are
    exchanged.

    Args:
        split: the training split, C captions of N images.
        file: the embedding; see `read_embedding`.
        ratio: share of the captions that are exchanged.
        seed: the noise seed.

    Returns:
        int64 [C], the image that each caption is trained with.

    Raises:
        DataError: the embedding cannot be read, or does not fit the split.
        ValueError: the groups leave too few partners for the ratio.
    """
    from harness.noise.neighbours import nearest  # needs torch, which the other models do without

    embedding = read_embedding(file, split)
    by_caption = len(embedding) == len(split.captions)
    group = split.caption_group
    text = np.unique(split.captions, return_inverse=True)[1]
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
                fits = (o for o in candidates if free[o] and group[o] != group[c] and text[o] != text[c])
                other = next(fits, None)
                if other is not None:
                    image[c], image[other] = image[other], image[c]
                    free[c] = free[other] = False
                    swaps += 1
        if width == len(embedding) - 1 and swaps < wanted:
            raise ValueError(
                f"noise 'hard': no partners of another group and text are left after {2 * swaps} of "
                f"{2 * wanted} captions"
            )
        width *= 4
    return image


def read_embedding(file: Path, split: Split) -> NDArray[np.floating]:
    """The embedding of the training captions or images in an `.npy` file.

    Returns:
        float [C, D] or [N, D], as a memory map; no row is zero, and all values are finite.

    Raises:
        DataError: the file cannot be read, or has other contents.
    """
    embedding = read_array(file, "embedding", mapped=True)
    if (
        embedding.ndim != 2
        or not np.issubdtype(embedding.dtype, np.floating)
        or len(embedding) not in (len(split.captions), len(split.images))
    ):
        raise DataError(
            f"embedding {file}: expected floating-point rows for the {len(split.captions)} captions or the "
            f"{len(split.images)} images of train, found {embedding.dtype} {embedding.shape}"
        )
    for start in range(0, len(embedding), 65536):
        norm = np.linalg.norm(np.asarray(embedding[start : start + 65536], np.float64), axis=1)
        invalid = np.flatnonzero(~(np.isfinite(norm) & (norm > 0)))
        if len(invalid):
            raise DataError(
                f"embedding {file}: row {start + invalid[0]} is zero or not finite, and has no direction"
            )
    return embedding


def partial(split: Split, *, words: float, ratio: float, seed: int) -> tuple[list[str], NDArray[np.bool_]]:
    """Draw int(ratio * C) captions, and replace some of their words by words of a random caption of another
    group (RCAR's partial mismatch).

    Args:
        split: the training split, C captions of N images.
        words: share of a caption's words that are replaced; at least one is.
        ratio: share of the captions that are drawn.
        seed: the noise seed.

    Returns:
        The C captions, and bool [C]: whether a caption has changed.
    """
    draw = numpy_generator("noise", "partial", seed)
    group = split.caption_group
    captions = list(split.captions)
    changed = np.zeros(len(captions), bool)
    for c in draw.permutation(len(captions))[: int(ratio * len(captions))].tolist():
        old = split.captions[c].split()
        for _ in range(100):  # a donor may be of the same group, or bring the same words
            donor = int(draw.integers(len(captions)))
            donated = split.captions[donor].split()
            if group[donor] == group[c] or not donated:
                continue
            count = max(1, round(words * len(old)))
            new = list(old) or [""]
            for index, word in zip(
                draw.permutation(len(new))[:count].tolist(),
                draw.permutation(len(donated)).tolist(),
                strict=False,
            ):
                new[index] = donated[word]
            if new != old:
                captions[c], changed[c] = " ".join(new), True
                break
    return captions, changed
