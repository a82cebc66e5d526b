"""Two-component mixtures that separate matched from mismatched pairs by one value of each pair."""

from __future__ import annotations

import warnings

import numpy as np

# scipy.stats and scikit-learn take most of a second to load, and reading a sweep file loads every method of
# it: they are imported where a mixture is fitted.


def low_loss_posterior(losses: np.ndarray, *, seed: int, max_iter: int = 100) -> np.ndarray:
    """Posterior of the low-loss component of a two-component Gaussian mixture: [N] -> [N] in [0, 1].

    Source: released code of NCR (tol 1e-2, reg_covar 5e-4), after DivideMix, section 3.1. Losses are scaled
    to [0, 1] first, which gives `reg_covar` its meaning. NPC's released code has the same settings and fits
    the losses as they are; we scale them there too (on `emoji`, under version 1, shares then
    changed by up to 6 points, and their purity by .013).

    Args:
        losses: losses of all training pairs, [N].
        seed: seed of the initialisation.
        max_iter: largest number of EM iterations (released code: 10 in NCR, 100 in NPC).

    Returns:
        The posterior of the component with the smaller mean; 1 for all pairs if all losses are equal.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

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
    """Posterior of the matched component of a two-component Beta mixture: [N] -> [N] in [0, 1].

    Source: MSCN section 3.3; iterations, tolerance and clamping from its released code. Ours: the M-step
    matches moments, where the released code maximises the likelihood. Components start with equal weights.

    Args:
        scores: scores of all training pairs, [N]. In all three arguments, values <= 0 become 1e-3 and values
            >= 1 become 1 - 1e-3.
        negatives: scores of meta negatives, [M]: the start of the mismatched component.
        positives: scores of meta positives, [P]: the start of the matched component.
        max_iter: largest number of EM iterations (released code: 10).
        tol: EM stops when the log-likelihood of all scores, in nats, gains less (released code: 1e-2).
    """
    scores, negatives, positives = (_clamp(x) for x in (scores, negatives, positives))
    shapes = np.array(
        [
            _match_moments(negatives, np.ones(len(negatives))),
            _match_moments(positives, np.ones(len(positives))),
        ]
    )
    weights, previous = np.array([0.5, 0.5]), -np.inf
    for _ in range(max_iter):
        posterior, likelihood = _e_step(scores, shapes, weights)
        if likelihood - previous < tol:
            break
        previous = likelihood
        weights = posterior.mean(1)
        shapes = np.array([_match_moments(scores, p) for p in posterior])
    matched: np.ndarray = _e_step(scores, shapes, weights)[0][1]
    return matched


def low_loss_beta_posterior(losses: np.ndarray, *, iterations: int = 10) -> np.ndarray:
    """Posterior of the low-loss component of a two-component Beta mixture: [N] -> [N] in [0, 1].

    Source: released code of BiCro, after Arazo et al. (ICML 2019): the components start as
    Beta(1, 2) and Beta(2, 1) with equal weights, and the M-step matches moments.

    Args:
        losses: losses of all training pairs, [N]; they are scaled to [0, 1] first.
        iterations: EM iterations (released code: 10; with matched moments, many more can end in two equal
            components).

    Returns:
        The posterior of the first component; 1 for all pairs if all losses are equal.
    """
    span = float(losses.max() - losses.min())
    if span <= 0:
        return np.ones(len(losses))
    values = np.clip((losses - losses.min()) / span, 1e-4, 1 - 1e-4).astype(np.float64)
    shapes, weights = np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([0.5, 0.5])
    for _ in range(iterations):
        posterior, _ = _e_step(values, shapes, weights)
        weights = posterior.mean(1)
        shapes = np.array([_match_moments(values, p) for p in posterior])
    low: np.ndarray = _e_step(values, shapes, weights)[0][0]
    return low


def _clamp(scores: np.ndarray) -> np.ndarray:
    """A copy in which scores outside (0, 1) are moved inside; others stay."""
    scores = np.asarray(scores, np.float64).copy()
    scores[scores <= 0], scores[scores >= 1] = 1e-3, 1 - 1e-3
    return scores


def _match_moments(scores: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Shape parameters (a, b) of the Beta distribution with the weighted mean and variance of the scores."""
    weight = weight / max(weight.sum(), 1e-12)
    mean = float(np.clip(weight @ scores, 1e-4, 1 - 1e-4))
    variance = max(float(weight @ (scores - mean) ** 2), 1e-6)
    total = max(mean * (1 - mean) / variance - 1, 1e-2)  # a + b
    return mean * total, (1 - mean) * total


def _e_step(scores: np.ndarray, shapes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Posterior of each component, [2, N], and the log-likelihood of all scores."""
    from scipy.stats import beta as beta_distribution

    joint = np.stack(
        [
            np.log(max(w, 1e-12)) + beta_distribution.logpdf(scores, a, b)
            for w, (a, b) in zip(weights, shapes, strict=True)
        ]
    )
    marginal = np.logaddexp(joint[0], joint[1])
    return np.exp(joint - marginal), float(marginal.sum())
