"""Ranks and best candidates against the definition, one query at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.evaluation import device_ranking, ranking
from harness.evaluation.device_ranking import rank_on_device
from harness.evaluation.metrics import rank_queries


def from_tensor(similarity, query_group, candidate_group):
    """As it is on a device."""
    return rank_on_device(torch.as_tensor(similarity), query_group, candidate_group)


everywhere = pytest.mark.parametrize("rank", [rank_queries, from_tensor], ids=["host", "device"])


def by_definition(similarity, query_group, candidate_group):
    """Ranks, tied mismatches, tied matches, best candidates."""
    ranks, tied, matches, tops = [], [], [], []
    for row, group in zip(similarity, query_group, strict=True):
        match = candidate_group == group
        best = row[match].max()
        tie = np.abs(row - best) <= 1e-6 * max(1, abs(best))
        ranks.append(int(((row > best) & ~tie).sum()))
        tied.append(int((tie & ~match).sum()))
        matches.append(int((tie & match).sum()))
        tops.append(sorted(range(len(row)), key=lambda c: (-row[c], match[c], c))[:5])
    return ranks, tied, matches, tops


def listed(ranking):
    return tuple(x.tolist() for x in (ranking.rank, ranking.tied, ranking.matches, ranking.top))


@everywhere
@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
    st.integers(0, 400),
    st.integers(1, 12),
    st.sampled_from([2, 5, 1000, None]),
    st.sampled_from([np.float32, np.float64]),
    st.booleans(),
)
def test_every_rank_and_order_is_by_definition(rank, seed, queries, more, groups, levels, dtype, transposed):
    draw = np.random.default_rng(seed)
    candidate_group = np.concatenate([np.arange(groups), draw.integers(groups, size=more)])
    draw.shuffle(candidate_group)
    query_group = draw.integers(groups, size=queries)
    similarity = draw.normal(size=(queries, len(candidate_group)))
    if levels:  # ties
        similarity = np.round(similarity * levels / 4) / levels
    similarity = similarity.astype(dtype)
    given_matrix = np.ascontiguousarray(similarity.T).T if transposed else similarity
    found = rank(given_matrix, query_group, candidate_group)
    assert listed(found) == by_definition(similarity, query_group, candidate_group)
    assert found.rank.dtype == found.tied.dtype == found.matches.dtype == found.top.dtype == np.int64


@everywhere
@pytest.mark.parametrize("transposed", [False, True])
def test_blocks_of_queries_are_put_together(monkeypatch, rank, transposed):
    monkeypatch.setattr(device_ranking, "_BLOCK", 3 * 90)
    monkeypatch.setattr(ranking, "_BLOCK", 3 * 90)
    monkeypatch.setattr(ranking, "_COLUMNS", 4)
    draw = np.random.default_rng(0)
    similarity, groups = draw.normal(size=(30, 90)), np.repeat(np.arange(30), 3)
    matrix = np.ascontiguousarray(similarity.T).T if transposed else similarity
    found = rank(matrix, np.arange(30), groups)
    assert listed(found) == by_definition(similarity, np.arange(30), groups)


@everywhere
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (3, 99), (39, 50)])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_value_that_is_not_finite_is_found_anywhere(rank, value, place, transposed):
    similarity = np.random.default_rng(0).normal(size=(40, 100))
    similarity[place] = value
    groups = np.arange(100) % 40
    arguments = (similarity.T, groups, np.arange(40)) if transposed else (similarity, np.arange(40), groups)
    with pytest.raises(ValueError, match="not finite"):
        rank(*arguments)
