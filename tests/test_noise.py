from __future__ import annotations

import numpy as np
import pytest

from harness.data import load_dataset
from harness.noise import make_noise


@pytest.fixture(scope="module")
def train():
    return load_dataset("emoji")["train"]


@pytest.mark.parametrize("granularity", ["caption", "image"])
@pytest.mark.parametrize("ratio", [0.2, 0.6])
def test_every_image_keeps_its_number_of_captions(train, ratio, granularity):
    noise = make_noise(train, ratio=ratio, granularity=granularity, seed=1)
    assert (np.bincount(noise.image) == np.bincount(train.owner)).all()
    # A shuffle has fixed points, and moves within a concept still match: below nominal, by little.
    assert ratio - 0.02 < noise.realised <= ratio
    assert noise.realised == pytest.approx(np.mean(train.image_group[noise.image] != train.caption_group))


def test_caption_granularity_moves_exactly_the_chosen_captions(train):
    moved = make_noise(train, ratio=0.4, granularity="caption", seed=0).image != train.owner
    assert 0.39 < moved.mean() <= 0.4
    per_image = np.bincount(train.owner, weights=moved)
    assert (per_image[np.bincount(train.owner) == 5] == [0]).mean() < 0.2  # single captions: few images are spared


def test_image_granularity_moves_whole_images(train):
    noise = make_noise(train, ratio=0.4, granularity="image", seed=0)
    for image in range(0, len(train.images), 97):
        assert len(set(noise.image[train.owner == image])) == 1
    spared = np.array([(noise.image[train.owner == i] == i).all() for i in range(len(train.images))])
    assert spared.mean() == pytest.approx(0.6, abs=0.01)


def test_no_noise_is_the_truth(train):
    noise = make_noise(train, ratio=0, granularity="image", seed=5)
    assert (noise.image == train.owner).all()
    assert noise.matched.all()
    assert noise.granularity == "none"


def test_one_seed_one_index(train):
    first, again, other = (make_noise(train, ratio=0.4, granularity="caption", seed=s) for s in (3, 3, 4))
    assert first.digest == again.digest != other.digest
    # A golden number: if it changes, published records cannot be repeated, and the protocol version must rise.
    assert make_noise(train, ratio=0.4, granularity="caption", seed=0).digest == "9215fb6fa9539850"


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_bad_ratio_is_refused(train, ratio):
    with pytest.raises(ValueError, match="outside"):
        make_noise(train, ratio=ratio, granularity="caption", seed=0)


def test_bad_granularity_is_refused(train):
    with pytest.raises(ValueError, match="expected one of caption, image"):
        make_noise(train, ratio=0.1, granularity="word", seed=0)
