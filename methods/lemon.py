"""LEMoN (ICML 2025): a pair is suspect where the neighbours of its image have captions unlike its own."""

from __future__ import annotations

from typing import Annotated, Any

import annotated_types as at
import torch
from torch import Tensor

from methods.base import NonNegative, Report, Scan, Share, Size
from methods.estimating import Estimating
from methods.mixtures import low_loss_posterior
from methods.seeding import seed_of, torch_generator

AtLeastTwo = Annotated[int, at.Ge(2)]
"""An integer of at least 2."""


class LEMoN(Estimating):
    """InfoNCE on the pairs with a low multimodal-neighbour score.

    The score of a pair adds to the distance of image and caption that between its caption and the captions of
    its image's neighbours, and that between its image and the images of its caption's neighbours
    (`neighbour_scores`). A Gaussian mixture over the scores divides the pairs.

    Source: Zhang et al., ICML 2025 (arXiv 2407.18941), and its released code (run_lemon.py:170-290). There
    weights and exponents are tuned on a validation set with labels; here they are those of its notebook
    without labels. Ours: the mixture, where the paper filters a given share.

    Args:
        neighbours: k (released code: 5; 30 for real captions).
        weight: beta and gamma, of both sums over neighbours (released notebook: 5).
        near: tau_1, by which a neighbour's distance lowers its weight (released notebook: 0.1).
        trusted: tau_2, by which the distance of its own image and caption does (released notebook: 5).
        candidates: neighbours are sought among at most so many random pairs (released code: 50,000).
        keep_above: threshold that the posterior of a low score must exceed.
        released: measure a neighbour's distance by minus the cosine, not 1 minus the cosine
            (run_lemon.py:270, 286): sums are larger by e^tau_1.
        common: the arguments of `Estimating` and `Method`.
    """

    paper = "LEMoN (ICML 2025)"
    family = "filter"

    posterior: Tensor

    def __init__(
        self,
        *,
        neighbours: Size = 30,
        weight: NonNegative = 5.0,
        near: NonNegative = 0.1,
        trusted: NonNegative = 5.0,
        candidates: AtLeastTwo = 50_000,
        keep_above: Share = 0.5,
        released: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.neighbours, self.weight, self.near, self.trusted = neighbours, weight, near, trusted
        self.candidates, self.keep_above, self.released = candidates, keep_above, released
        self.register_buffer("posterior", torch.ones(len(self.pairs)))

    def estimate(self, scan: Scan) -> Report:
        """Score all pairs, and fit the mixture."""
        net = self.networks[0]
        vectors = scan(lambda images, texts: {"image": net.pooled(images), "text": net.pooled(texts)})
        order = torch.randperm(len(self.pairs), generator=torch_generator(self.seed, "candidates"))
        scores = neighbour_scores(
            vectors["image"].to(self.posterior.device),
            vectors["text"].to(self.posterior.device),
            order[: self.candidates].sort().values.to(self.posterior.device),
            count=self.neighbours,
            weight=self.weight,
            near=self.near,
            trusted=self.trusted,
            offset=0.0 if self.released else 1.0,
        )
        seed = seed_of(self.seed, "mixture")
        posterior = low_loss_posterior(scores.double().cpu().numpy(), seed=seed)
        self.posterior.copy_(torch.from_numpy(posterior))
        return {"kept": float((self.posterior > self.keep_above).float().mean())}

    def selected(self, network: int) -> Tensor | None:
        """Indices of the pairs with a low score; all pairs during the warm-up."""
        return (self.posterior > self.keep_above).nonzero().flatten() if self.judged else None

    def confidence(self) -> Tensor | None:
        """Posterior of a low score, [N] in [0, 1]; None during the warm-up."""
        return self.posterior if self.judged else None


def neighbour_scores(
    images: Tensor,
    texts: Tensor,
    candidates: Tensor,
    *,
    count: int,
    weight: float,
    near: float,
    trusted: float,
    offset: float = 1.0,
    chunk: int = 2048,
) -> Tensor:
    """How suspect each pair is: [N, D], [N, D] -> [N], larger for mismatched ones.

    Distances are 1 minus the cosine. A pair is no neighbour of itself; where there are fewer candidates than
    neighbours, all are taken.

    Source: LEMoN section 3, with beta = gamma and equal tau for both modalities.

    Args:
        images: unit vectors.
        texts: unit vectors.
        candidates: pairs among which neighbours are sought, int64 [C], ascending.
        count: k.
        weight: beta, gamma.
        near: tau_1.
        trusted: tau_2.
        offset: a neighbour's distance in the weight is `offset` minus the cosine.
        chunk: pairs that are compared with all candidates at a time.
    """
    own = 1 - (images * texts).sum(1)
    scores = own.clone()
    for here, there in ((images, texts), (texts, images)):
        for rows in torch.arange(len(own), device=own.device).split(chunk):
            cosine = here[rows] @ here[candidates].T
            cosine.masked_fill_(rows[:, None] == candidates, -torch.inf)
            k = min(count, len(candidates) - 1)
            nearest = cosine.topk(k, dim=1)
            pairs = candidates[nearest.indices]
            trust = (-near * (offset - nearest.values) - trusted * own[pairs]).exp()
            apart = 1 - torch.einsum("nd,nkd->nk", there[rows], there[pairs])
            scores[rows] += weight * (trust * apart).sum(1) / k
    return scores
