from __future__ import annotations

import pytest
import torch

from methods.losses import hardest_triplet, hardest_triplet_of_few, mean_triplet, pair_losses


def hinges_by_loop(s, margin, k):
    others = [j for j in range(len(s)) if j != k]
    by_image = [max(0.0, float(margin[k] + s[k, j] - s[k, k])) for j in others]
    by_text = [max(0.0, float(margin[k] + s[j, k] - s[k, k])) for j in others]
    return by_image, by_text


def test_triplets_against_loops():
    s, margin = torch.rand(6, 6), torch.rand(6)
    hardest, mean = hardest_triplet(s, margin), mean_triplet(s, margin)
    for k in range(6):
        by_image, by_text = hinges_by_loop(s, margin, k)
        assert hardest[k] == pytest.approx(max(by_image) + max(by_text), abs=1e-6)
        assert mean[k] == pytest.approx((sum(by_image) + sum(by_text)) / 6, abs=1e-6)


def test_the_margin_belongs_to_the_pair_in_both_directions():
    """Released code indexes it by column in both directions, so an image gets the margin of its negative."""
    s = torch.full((3, 3), 0.5)
    losses = hardest_triplet(s, torch.tensor([0.0, 0.1, 0.2]))
    assert losses.tolist() == pytest.approx([0.0, 0.2, 0.4])


def test_a_margin_matrix_is_indexed_by_image_and_caption_in_both_directions():
    s, margin = torch.rand(4, 4), torch.rand(4, 4)
    hardest = hardest_triplet(s, margin)
    for k in range(4):
        others = [j for j in range(4) if j != k]
        by_image = max(max(0.0, float(margin[k, j] + s[k, j] - s[k, k])) for j in others)
        by_text = max(max(0.0, float(margin[j, k] + s[j, k] - s[k, k])) for j in others)
        assert hardest[k] == pytest.approx(by_image + by_text, abs=1e-6)


@pytest.mark.parametrize("shape", [(), (7,), (7, 7)])
def test_scoring_the_hardest_negatives_gives_the_loss_and_gradient_of_all_pairs(shape):
    images, texts = (torch.randn(7, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    margin = 3 * torch.rand(shape, dtype=torch.float64)
    full = hardest_triplet(images @ texts.T, margin)
    few = hardest_triplet_of_few(
        (images @ texts.T).detach(), lambda i, t: (i * t).sum(-1), images, texts, margin
    )
    assert torch.allclose(few, full, atol=1e-12)
    for ours, theirs in zip(
        *(torch.autograd.grad(loss.sum(), (images, texts)) for loss in (few, full)), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_pair_losses_against_softmax():
    z = torch.randn(5, 5)
    expected = -(z.softmax(1).diagonal().log() + z.softmax(0).diagonal().log()) / 2
    assert torch.allclose(pair_losses(z), expected, atol=1e-6)
