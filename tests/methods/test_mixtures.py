from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from methods.mixtures import low_loss_posterior, matched_posterior


def test_gaussian_mixture_separates_two_components():
    random = np.random.default_rng(0)
    losses = np.concatenate([random.normal(1, 0.3, 600), random.normal(4, 0.5, 400)])
    posterior = low_loss_posterior(losses, seed=1)
    assert (posterior[:600] > 0.5).mean() > 0.99
    assert (posterior[600:] < 0.5).mean() > 0.99
    order = random.permutation(1000)
    assert low_loss_posterior(losses[order], seed=1) == pytest.approx(posterior[order], abs=1e-6)


def test_equal_losses_give_posterior_one():
    assert (low_loss_posterior(np.full(10, 2.0), seed=0) == 1).all()


def test_beta_mixture_starts_from_the_clean_set():
    random = np.random.default_rng(0)
    matched, mismatched = random.beta(6, 2, 700), random.beta(2, 5, 300)
    scores = np.concatenate([matched, mismatched])
    posterior = matched_posterior(scores, random.beta(2, 5, 50), random.beta(6, 2, 50))
    assert roc_auc_score(np.arange(1000) < 700, posterior) > 0.95
    assert (posterior[:700] > 0.5).mean() > 0.85
    # With the start swapped, the components are swapped too.
    swapped = matched_posterior(scores, random.beta(6, 2, 50), random.beta(2, 5, 50))
    assert roc_auc_score(np.arange(1000) < 700, swapped) < 0.1


def test_scores_outside_the_open_interval_are_clamped():
    posterior = matched_posterior(
        np.array([0.0, 1.0, 0.5, -3.0, 7.0]), np.array([0.1, 0.0, 0.2]), np.array([0.9, 1.0, 0.8])
    )
    assert np.isfinite(posterior).all()
    assert posterior[1] > 0.5 > posterior[0]
