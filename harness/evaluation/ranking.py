"""Ranks and best candidates of many queries, in one pass over their similarities.

A rank takes two comparisons of each candidate with the query's best match. The best candidates are looked for
in the runs of candidates with the largest maxima, so that nothing of the size of the matrix is sorted.

Similarities that are equal up to rounding are ties, and their order is random: a measure is its expectation
over that order. So no rule decides for or against a model, and one that scores all pairs alike has exactly
the recalls of chance.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

TOP = 5
"""Best candidates that are kept of each query."""
ROUNDING = 1e-6
"""Similarities tie if they differ by at most this, times the larger of 1 and their size: some ten steps of
single precision, which has 6e-8 near 1."""
_PARTS = ("rank", "tied", "matches", "top")
_RUN = 32  # candidates of a run
_BLOCK = 2**20  # similarities of the queries that are ranked at a time
_COLUMNS = 2048  # queries at a time where they are columns in memory


@dataclass(frozen=True)
class Ranking:
    """Ranks and best candidates of Q queries in one direction of retrieval.

    Attributes:
        rank: int64 [Q], the rank of each query's best match, from 0, if it comes first among the tied: the
            number of candidates that score higher.
        tied: int64 [Q], candidates that do not match and tie with the best match.
        matches: int64 [Q], candidates that match and tie with it; at least 1, itself.
        top: int64 [Q, 5] (fewer columns if there are fewer candidates), indices of the best candidates, best
            first; among equal similarities those that do not match come first, then the lower index.
    """

    rank: NDArray[np.int64]
    tied: NDArray[np.int64]
    matches: NDArray[np.int64]
    top: NDArray[np.int64]

    def hits(self, k: int) -> NDArray[np.float64]:
        """float64 [Q]: the probability that a match is among the first k, over random orders of the tied."""
        # All of the places that are left are taken by mismatches: a hypergeometric draw without a match.
        return 1 - missed(self.tied, self.matches, np.clip(k - self.rank, 0, None))

    def arrays(self, direction: str) -> dict[str, NDArray]:
        """The parts by name (`i2t_rank`, ...), as small integers, for a file.

        Args:
            direction: `i2t` or `t2i`.
        """
        parts = {name: getattr(self, name) for name in _PARTS}
        return {f"{direction}_{n}": x.astype(np.min_scalar_type(x.max(initial=0))) for n, x in parts.items()}

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray], direction: str) -> Ranking:
        """From the arrays of a file, which may lack the best candidates: `top` then has no columns. In those
        of the first protocol version a tie counts against the model, so `rank` is the last of the tied.

        Raises:
            KeyError: the ranks are missing.
        """
        rank = arrays[f"{direction}_rank"].astype(np.int64)
        missing = {
            "tied": np.zeros_like(rank),
            "matches": np.ones_like(rank),
            "top": np.zeros((len(rank), 0), np.int64),
        }
        parts = {n: arrays.get(f"{direction}_{n}", missing.get(n)) for n in _PARTS}
        return cls(**{name: np.asarray(x, np.int64) for name, x in parts.items()})

    @property
    def expected(self) -> NDArray[np.float64]:
        """float64 [Q]: the mean rank of the first match over random orders of the tied, from 0."""
        expected: NDArray[np.float64] = self.rank + self.tied / (self.matches + 1)
        return expected


def missed(others: NDArray[np.int64], matches: NDArray[np.int64], drawn: NDArray[np.int64]) -> NDArray:
    """The probability that candidates drawn without replacement include no match: [Q], [Q], [Q] -> [Q].

    Args:
        others: candidates that do not match.
        matches: candidates that match.
        drawn: how many are drawn; all there are, if it is more.
    """
    probability = np.ones(len(drawn))
    for i in range(int(drawn.max(initial=0))):
        left = np.clip(others - i, 0, None) / np.maximum(others + matches - i, 1)
        probability *= np.where(i < drawn, left, 1)
    return probability


def rank_queries(similarity: NDArray[np.floating], query_group: NDArray, candidate_group: NDArray) -> Ranking:
    """Rank all candidates for each query, on as many threads as `OMP_NUM_THREADS` (default: all cores).

    Args:
        similarity: [Q, C]; a transposed view is read in the order of its memory.
        query_group: int64 [Q].
        candidate_group: int64 [C].

    Raises:
        ValueError: a similarity is not finite (every comparison with NaN is false, so a diverged model would
            have perfect recalls), or a query has no match among the candidates.
    """
    matches = Matches(query_group, candidate_group)
    count, candidates = similarity.shape
    size = _COLUMNS if _in_columns(similarity) else max(1, _BLOCK // candidates)

    def rank(start: int) -> tuple[NDArray, ...]:
        queries = slice(start, start + size)
        return _rank_block(similarity[queries], query_group[queries], candidate_group, matches.of(queries))

    with ThreadPoolExecutor(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)) as pool:
        blocks = zip(*pool.map(rank, range(0, count, size)), strict=True)
        return Ranking(*map(np.concatenate, blocks))


class Matches:
    """The candidates of each query's group.

    Attributes:
        count: int64 [Q], matches of each query.

    Raises:
        ValueError: a query has none.
    """

    def __init__(self, query_group: NDArray, candidate_group: NDArray) -> None:
        self.order = np.argsort(candidate_group, kind="stable")
        groups = candidate_group[self.order]
        self.start = np.searchsorted(groups, query_group, "left")
        self.count = np.searchsorted(groups, query_group, "right") - self.start
        unmatched = int((self.count == 0).sum())
        if unmatched:
            raise ValueError(f"{unmatched} queries have no match among the candidates")

    def of(self, queries: slice) -> tuple[NDArray, NDArray]:
        """Indices of matches [q, most], the last one repeated, and which of them are no repetition."""
        count = self.count[queries, None]
        place = np.arange(count.max())
        return self.order[self.start[queries, None] + np.minimum(place, count - 1)], place < count


def _in_columns(similarity: NDArray) -> bool:
    """Whether the similarities of a query are a column in memory."""
    return abs(similarity.strides[0]) < abs(similarity.strides[1])


def tie_bounds(best: NDArray) -> tuple[NDArray, NDArray]:
    """The similarities between which candidates tie with the best match: [Q] -> [Q], [Q]."""
    width = ROUNDING * np.maximum(1, np.abs(best))
    return (best - width).astype(best.dtype), (best + width).astype(best.dtype)


def _rank_block(
    similarity: NDArray, query_group: NDArray, candidate_group: NDArray, matches: tuple[NDArray, NDArray]
) -> tuple[NDArray[np.int64], ...]:
    """What `Ranking` holds, of a block of q queries."""
    members, real = matches
    scores = np.take_along_axis(similarity, members, 1)
    low, high = tie_bounds(scores.max(1))
    scan = _scan_columns if _in_columns(similarity) else _scan_rows
    at_least, higher, maxima, lowest = scan(similarity, low, high)
    if not (np.isfinite(maxima).all() and np.isfinite(lowest)):
        raise ValueError("similarities are not finite: the model has diverged")
    tied_matches = ((scores >= low[:, None]) & real).sum(1)
    top = _best_candidates(similarity, maxima, query_group, candidate_group)
    return higher, at_least - higher - tied_matches, tied_matches, top


def _scan_rows(
    similarity: NDArray, low: NDArray, high: NDArray
) -> tuple[NDArray, NDArray, NDArray, np.floating]:
    """Of queries in rows: how many candidates score at least `low` [q] and above `high` [q], the maxima of
    runs [q, runs], and the smallest similarity.
    """
    bounds = list(zip(similarity, low, high, strict=True))
    at_least = [np.count_nonzero(row >= bound) for row, bound, _ in bounds]
    higher = [np.count_nonzero(row > bound) for row, _, bound in bounds]
    count, candidates = similarity.shape
    row, column = similarity.strides
    runs = candidates // _RUN
    maxima = as_strided(similarity, (count, runs, _RUN), (row, column * _RUN, column)).max(2)
    rest = similarity[:, runs * _RUN :]
    if rest.size:
        maxima = np.concatenate([maxima, rest.max(1, keepdims=True)], 1)
    return np.array(at_least, np.int64), np.array(higher, np.int64), maxima, similarity.min()


def _scan_columns(
    similarity: NDArray, low: NDArray, high: NDArray
) -> tuple[NDArray, NDArray, NDArray, np.floating]:
    """The same of queries in columns."""
    at_least, higher = np.zeros((2, len(low)), np.int64)
    maxima, lowest = [], []
    for start in range(0, similarity.shape[1], _RUN):
        run = similarity[:, start : start + _RUN].T
        at_least += (run >= low).view(np.uint8).sum(0, dtype=np.uint8)
        higher += (run > high).view(np.uint8).sum(0, dtype=np.uint8)
        maxima.append(run.max(0))
        lowest.append(run.min())
    return at_least, higher, np.stack(maxima, 1), np.min(lowest)


def _best_candidates(
    similarity: NDArray, maxima: NDArray, query_group: NDArray, candidate_group: NDArray
) -> NDArray[np.int64]:
    """Indices of the best candidates [q, TOP]."""
    count, candidates = similarity.shape
    width = min(TOP, candidates)
    if maxima.shape[1] < width:
        index = np.broadcast_to(np.arange(candidates), similarity.shape)
        values, many = similarity, np.zeros(count, bool)
    else:
        # The best candidates are in the runs with the largest maxima, if no other run ties with these.
        chosen = np.argpartition(-maxima, width - 1, axis=1)[:, :width]
        bound = np.take_along_axis(maxima, chosen, 1).min(1, keepdims=True)
        many = (maxima >= bound).sum(1) > width
        index = (chosen[:, :, None] * _RUN + np.arange(_RUN)).reshape(count, -1)
        values = np.take_along_axis(similarity, np.minimum(index, candidates - 1), 1)
        values[index >= candidates] = -np.inf
    head = np.argpartition(-values, width - 1, axis=1)[:, :width]
    bound = np.take_along_axis(values, head, 1).min(1, keepdims=True)
    many |= (values >= bound).sum(1) > width
    index, values = (np.take_along_axis(x, head, 1) for x in (index, values))
    top = in_order(index, values, query_group, candidate_group)
    for query in np.flatnonzero(many):  # of candidates that tie for the last place, the order decides
        row = similarity[query]
        tied = np.flatnonzero(row >= np.partition(row, -width)[-width])
        one = slice(query, query + 1)
        top[query] = in_order(tied[None], row[None, tied], query_group[one], candidate_group)[0, :width]
    return top


def in_order(
    index: NDArray, values: NDArray, query_group: NDArray, candidate_group: NDArray
) -> NDArray[np.int64]:
    """Candidates [q, n] of each query, best first; within a tie matches last, then by index.

    Args:
        index: int64 [q, n], candidates in any order.
        values: [q, n], their similarities to the query.
        query_group: int64 [q].
        candidate_group: int64 [C].
    """
    match = candidate_group[index] == query_group[:, None]
    order = np.lexsort((index, match, -values), axis=1)
    return np.take_along_axis(index, order, 1).astype(np.int64)
