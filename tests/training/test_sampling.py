from __future__ import annotations

import numpy as np
import pytest

from harness.data import load_dataset
from harness.noise.models import make_noise
from harness.training.sampling import PoolTooNarrow, epoch_batches, scan_batches


@pytest.fixture(scope="module")
def groups():
    train = load_dataset("emoji")["train"]
    return train.image_group[make_noise(train, ratio=0.4, granularity="caption", seed=0).image]


def distinct(batch, groups):
    return len(np.unique(groups[batch])) == len(batch)


def test_no_batch_holds_two_pairs_of_a_group(groups):
    batches = epoch_batches(np.arange(len(groups)), groups, size=256, steps=58, seed=(0, 1))
    assert len(batches) == 58
    assert all(len(b) == 256 and distinct(b, groups) for b in batches)
    assert len(np.unique(np.concatenate(batches))) == 58 * 256  # no pair twice in an epoch


def test_a_restricted_pool_takes_the_same_number_of_steps(groups):
    pool = np.random.default_rng(0).permutation(len(groups))[:5000]
    batches = epoch_batches(pool, groups, size=256, steps=58, seed=(0, 1))
    assert len(batches) == 58
    assert all(distinct(b, groups) for b in batches)
    assert set(np.concatenate(batches)) <= set(pool)
    counts = np.bincount(np.concatenate(batches), minlength=len(groups))[pool]
    assert counts.mean() == pytest.approx(58 * 256 / 5000)
    assert counts.max() <= 5  # cycles are even: four of them, and the begun fifth


def test_a_crowded_group_leaves_room_for_the_others():
    groups = np.array([0] * 50 + list(range(1, 31)))  # one group of fifty, thirty of one
    batches = epoch_batches(np.arange(80), groups, size=8, steps=4, seed=(0,))
    assert all(distinct(b, groups) for b in batches)


def test_epochs_differ_and_repeat(groups):
    one, again, two = (
        epoch_batches(np.arange(len(groups)), groups, size=256, steps=58, seed=(0, e)) for e in (1, 1, 2)
    )
    assert all((a == b).all() for a, b in zip(one, again, strict=True))
    assert not all((a == b).all() for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(("pool", "groups"), [(np.arange(5), None), (np.arange(20), np.zeros(20, int))])
def test_a_pool_that_fills_no_batch_is_refused(pool, groups):
    with pytest.raises(PoolTooNarrow, match="do not fill a batch of 8"):
        epoch_batches(pool, groups, size=8, steps=1, seed=(0,))


def test_a_scan_visits_every_pair_once_in_equal_batches(groups):
    batches = scan_batches(len(groups), groups, size=256, seed=0)
    assert sorted(np.concatenate(batches)) == list(range(len(groups)))
    assert {len(b) for b in batches} <= {254, 255}
    assert all(distinct(b, groups) for b in batches)


def test_without_groups_batches_are_a_plain_shuffle():
    batches = epoch_batches(np.arange(100), None, size=10, steps=10, seed=(0,))
    assert sorted(np.concatenate(batches)) == list(range(100))
    assert sorted(np.concatenate(scan_batches(101, None, size=10, seed=0))) == list(range(101))
