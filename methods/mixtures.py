"""Two-component mixtures that tell matched from mismatched pairs by one value each."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.stats import beta as beta_distribution
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture


def low_loss_posterior(losses: np.ndarray, *, seed: int, max_iter: int = 100) -> np.ndarray:
    """Posterior of the component with the smaller mean, [N] -> [N] in [0, 1].

    Losses are brought to [0, 1] first, which gives `reg_covar` its meaning (NCR and NPC, released
    code: tol 1e-2, reg_covar 5e-4, 100 iterations in NPC). Equal losses tell nothing: 1 for all.
    """
    span = float(losses.max() - losses.min())
    if span <= 0:
        return np.ones(len(losses))
    values = ((losses - losses.min()) / span).reshape(-1, 1).astype(np.float64)
    mixture = GaussianMixture(2, max_iter=max_iter, tol=1e-2, reg_covar=5e-4, random_state=seed % 2**32)
    with warnings.catch_warnings():  # the published settings stop early on purpose
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(values)
    return np.asarray(mixture.predict_proba(values)[:, mixture.means_.argmin()])


def matched_posterior(
    scores: np.ndarray, negatives: np.ndarray, positives: np.ndarray, *, max_iter: int = 10, tol: float = 1e-2
) -> np.ndarray:
    """Posterior of the matched component of a two-component Beta mixture over scores, [N] -> [N].

    MSCN section 3.3: the components start from the scores of clean negatives and positives, with equal
    weights; at most `max_iter` EM iterations, stopped when the log-likelihood of all scores gains less than
    `tol`. Scores at or beyond the ends are set to 1e-3 and 1 - 1e-3 (released code). The M-step matches
    moments (the released code's fork maximises the likelihood instead).
    """
    scores, negatives, positives = (_inside(x) for x in (scores, negatives, positives))
    shapes = np.array(
        [_moments(negatives, np.ones(len(negatives))), _moments(positives, np.ones(len(positives)))]
    )
    weights, before = np.array([0.5, 0.5]), -np.inf
    for _ in range(max_iter):
        posterior, likelihood = _expect(scores, shapes, weights)
        if likelihood - before < tol:
            break
        before = likelihood
        weights = posterior.mean(1)
        shapes = np.array([_moments(scores, p) for p in posterior])
    matched: np.ndarray = _expect(scores, shapes, weights)[0][1]
    return matched


def _inside(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64).copy()
    x[x <= 0], x[x >= 1] = 1e-3, 1 - 1e-3
    return x


def _moments(x: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """(a, b) of the Beta distribution with the weighted mean and variance of x."""
    weight = weight / max(weight.sum(), 1e-12)
    mean = float(np.clip(weight @ x, 1e-4, 1 - 1e-4))
    variance = max(float(weight @ (x - mean) ** 2), 1e-6)
    common = max(mean * (1 - mean) / variance - 1, 1e-2)
    return mean * common, (1 - mean) * common


def _expect(scores: np.ndarray, shapes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Posterior [2, N] and the log-likelihood of all scores."""
    log = np.stack(
        [
            np.log(max(w, 1e-12)) + beta_distribution.logpdf(scores, a, b)
            for w, (a, b) in zip(weights, shapes, strict=True)
        ]
    )
    total = np.logaddexp(log[0], log[1])
    return np.exp(log - total), float(total.sum())
