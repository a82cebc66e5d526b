from __future__ import annotations

import pytest
import torch

from methods.losses import hardest_negatives, hardest_triplet, mean_triplet, pair_losses


def naive_hinges(s, margin, k):
    others = [j for j in range(len(s)) if j != k]
    by_image = [max(0.0, float(margin[k] + s[k, j] - s[k, k])) for j in others]
    by_text = [max(0.0, float(margin[k] + s[j, k] - s[k, k])) for j in others]
    return by_image, by_text


def test_triplets_against_loops():
    s, margin = torch.rand(6, 6), torch.rand(6)
    hardest, mean = hardest_triplet(s, margin), mean_triplet(s, margin)
    for k in range(6):
        by_image, by_text = naive_hinges(s, margin, k)
        assert hardest[k] == pytest.approx(max(by_image) + max(by_text), abs=1e-6)
        assert mean[k] == pytest.approx((sum(by_image) + sum(by_text)) / 6, abs=1e-6)


def test_the_margin_belongs_to_the_pair_in_both_directions():
    """Published code indexes it by column in both halves, which gives an image the margin of its negative caption."""
    s = torch.full((3, 3), 0.5)
    losses = hardest_triplet(s, torch.tensor([0.0, 0.1, 0.2]))
    assert losses.tolist() == pytest.approx([0.0, 0.2, 0.4])


def test_hardest_negatives_are_the_ones_that_the_hinge_sees():
    s = torch.rand(7, 7)
    captions, images = hardest_negatives(s)
    positive, at = s.diagonal(), torch.arange(7)
    by_hand = (0.2 + s[at, captions] - positive).clamp(min=0) + (0.2 + s[images, at] - positive).clamp(min=0)
    assert torch.allclose(by_hand, hardest_triplet(s, 0.2), atol=1e-6)


def test_pair_losses_against_softmax():
    z = torch.randn(5, 5)
    expected = -(z.softmax(1).diagonal().log() + z.softmax(0).diagonal().log()) / 2
    assert torch.allclose(pair_losses(z), expected, atol=1e-6)
