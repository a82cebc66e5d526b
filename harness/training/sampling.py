"""Which pairs are in which batch: one rule for all methods, in training and in passes over all pairs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from methods.seeding import numpy_generator

Index = NDArray[np.int64]


def assign(groups: NDArray | None, batches: int, draw: np.random.Generator, count: int) -> Index:
    """A batch number for each of `count` pairs: sizes differ by at most one.

    With `groups` [count], no batch gets two pairs of one group: each group, in random order, takes the
    batches that are emptiest so far, random among equals, which keeps the sizes within one of each other.
    No group may be larger than the number of batches.
    """
    if groups is None:
        return (np.arange(count) % batches)[draw.permutation(count)]
    number = np.empty(count, np.int64)
    load = np.zeros(batches, np.int64)
    order = draw.permutation(count)
    # Pairs of one group are adjacent; which group comes first, and which pair in it, is random.
    shuffled = draw.permutation(int(groups.max()) + 1)[groups]
    order = order[np.argsort(shuffled[order], kind="stable")]
    starts = np.flatnonzero(np.diff(shuffled[order], prepend=-1))
    for members in np.split(order, starts[1:]):
        emptiest = np.lexsort((draw.random(batches), load))[: len(members)]
        number[members] = draw.permutation(emptiest)
        load[emptiest] += 1
    return number


SHARDS_AT_ONCE = 16  # shards that an epoch reads from at a time, where the data set comes in shards


def epoch_batches(
    pool: Index,
    groups: NDArray | None,
    *,
    size: int,
    steps: int,
    seed: tuple[int | str, ...],
    shards: Index | None = None,
) -> list[Index]:
    """`steps` batches of exactly `size` pairs drawn from `pool`, without repetition within a cycle.

    A cycle goes through the pool once (less what does not fill a batch); a smaller pool takes several
    cycles, so a method that restricts the pairs takes as many steps as one that does not. With
    `groups` (of all pairs), no batch holds two pairs of one group. With `shards` (of all pairs, the file that
    each is read from) a cycle takes the files in random order, a few at a time, and shuffles the pairs among
    those.

    Raises:
        PoolTooNarrow: the pool has fewer pairs, or fewer groups, than a batch holds.
    """
    batches: list[Index] = []
    cycle = 0
    while len(batches) < steps:
        batches += _cycle(pool, groups, size, numpy_generator(*seed, cycle), shards)
        cycle += 1
    return batches[:steps]


class PoolTooNarrow(ValueError):
    """Not one batch can be drawn from the pool under the data set's batch rule."""


def _cycle(
    pool: Index, groups: NDArray | None, size: int, draw: np.random.Generator, shards: Index | None
) -> list[Index]:
    pool = draw.permutation(pool)
    if shards is not None:
        pool = _by_shards(pool, shards, draw)
    if groups is None:
        count = len(pool) // size
        if count == 0:
            raise PoolTooNarrow(f"{len(pool)} pairs do not fill a batch of {size}")
        return list(pool[: count * size].reshape(count, size))
    local, sizes = np.unique(groups[pool], return_inverse=True, return_counts=True)[1:]
    count = len(pool) // size
    while count and np.minimum(sizes, count).sum() < count * size:  # groups larger than the number of batches
        count -= 1
    if count == 0:
        raise PoolTooNarrow(
            f"{len(pool)} pairs of {len(sizes)} groups do not fill a batch of {size} distinct groups"
        )
    order = np.argsort(local, kind="stable")
    within = np.arange(len(pool)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    usable = np.sort(order[within < count])  # at most `count` pairs of a group, in the pool's random order
    kept = pool[np.sort(draw.permutation(usable)[: count * size])]
    number = assign(groups[kept], count, draw, len(kept))
    return [kept[number == b] for b in draw.permutation(count)]


def _by_shards(pool: Index, shards: Index, draw: np.random.Generator) -> Index:
    """A shuffled pool in the order of its shards, which come in random order, `SHARDS_AT_ONCE` together."""
    turn = draw.permutation(int(shards.max()) + 1) // SHARDS_AT_ONCE
    return pool[np.argsort(turn[shards[pool]], kind="stable")]


def scan_batches(
    count: int, groups: NDArray | None, *, size: int, seed: int, shards: Index | None = None
) -> list[Index]:
    """All pairs once, in batches of at most `size` whose sizes differ by at most one; the order is the
    seed's, by `shards` as in an epoch.
    """
    batches = -(-count // size)
    if shards is not None and groups is None:
        draw = numpy_generator(seed, "scan")
        return np.array_split(_by_shards(draw.permutation(count), shards, draw), batches)
    if groups is not None:
        batches = max(batches, int(np.bincount(groups).max()))
    number = assign(groups, batches, numpy_generator(seed, "scan"), count)
    return [np.flatnonzero(number == b) for b in range(batches)]
