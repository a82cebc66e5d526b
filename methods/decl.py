"""DECL (ACM MM 2022): evidential learning of similarities, with a hinge that anneals."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from methods.base import Backbone, Batch, Count, Method, Positive, Report, Scan
from methods.losses import hinges

ANNEALED = 0.096
"""Part of the trial in which the hinge anneals from all negatives to the fewest: 4,920 of the 50,985 steps of
the released code on Flickr30K.
"""
FEWEST = 5
"""Negatives of the annealed hinge (released code)."""


class DECL(Method):
    """Deep evidential cross-modal learning.

    The similarities of an image to all captions of a batch are evidence for a Dirichlet distribution over
    them, and those of a caption to all images likewise. Before each epoch after the warm-up a pair counts as
    matched if it has the most evidence of its row, in a batch of others. Pairs that do not are trained
    towards no evidence at all, and are left out of the hinge.

    Source: Qin et al., ACM MM 2022; released code (2022-ACMMM-DECL/model/DECL.py:7-149, train.py:227-255).
    There the warm-up has 5, 5, 2, 2 epochs at noise 0.2, 0.4, 0.6, 0.8: it knows the ratio. Here one number
    serves all. Ours: the verdict comes from batches in a fixed order, where the released code shuffles them
    (in either case it depends on the size of a batch); on cosines the evidence is exp(cosine / tau), where
    the released code has the tanh of a raw score (which `sgraf` has here, too); the hinge anneals over the
    same part of the trial, however long.

    Args:
        temperature: tau of the evidence (released code: 0.1).
        margin: of the hinge (released code: 0.2).
        hinge: lambda_1, weight of the hinge (released code: 0.8).
        no_evidence: lambda_2, weight of the divergence from no evidence (released code: 0.1).
        warmup_epochs: first epochs in which all pairs count as matched.
        released_sum: take the sum of the hinge over the batch where the evidential loss is a mean, as the
            released code (DECL.py:149), so that the hinge outweighs it by B at first.
        common: the arguments of `Method`.
    """

    paper = "DECL (ACM MM 2022)"
    family = "weighting"
    published = ("DECL", "DECL-SAF", "DECL-SGR", "DECL-SGRAF")

    belief: Tensor
    matched: Tensor
    judged: Tensor

    def __init__(
        self,
        *,
        temperature: Positive = 0.1,
        margin: Positive = 0.2,
        hinge: Positive = 0.8,
        no_evidence: Positive = 0.1,
        warmup_epochs: Count = 2,
        released_sum: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.temperature, self.margin, self.hinge, self.no_evidence = temperature, margin, hinge, no_evidence
        self.warmup_epochs, self.released_sum = warmup_epochs, released_sum
        self.register_buffer("belief", torch.ones(len(self.pairs)))
        self.register_buffer("matched", torch.ones(len(self.pairs)))
        self.register_buffer("judged", torch.tensor(False))

    def start_epoch(self, epoch: int, network: int, scan: Scan) -> Report:
        """After the warm-up, find the pairs with the most evidence of their row."""
        if epoch < self.warmup_epochs:
            return {}
        net = self.networks[network]
        found = scan(lambda images, texts: judgement(self._evidence(net, images, texts)))
        self.belief, self.matched = (found[k].to(self.belief) for k in ("belief", "matched"))
        self.judged.fill_(True)
        return {"matched": float(self.matched.mean())}

    def _evidence(self, network: Backbone, images: Tensor, texts: Tensor) -> Tensor:
        return (tanh_scores(network, network.similarity(images, texts)) / self.temperature).exp()

    def loss(self, batch: Batch) -> tuple[Tensor, Report]:
        """The mean of the evidential loss, and the weighted hinge of the pairs that count as matched."""
        network = self.networks[batch.network]
        scores = tanh_scores(network, network.similarity(*network(batch)))
        matched = self.matched[batch.index]
        evidence = (scores / self.temperature).exp()
        evidential = sum(evidential_losses(e, matched, self.no_evidence) for e in (evidence, evidence.T))
        count = max(int(len(scores) * (1 - batch.progress / ANNEALED)), min(FEWEST, len(scores)))
        hinge = matched * annealed_hinges(scores, self.margin, count)
        hinge = hinge.sum() if self.released_sum else hinge.mean()
        return evidential.mean() + self.hinge * hinge, {}  # type: ignore[union-attr]

    def confidence(self) -> Tensor | None:
        """The share of a pair's own evidence in that of its row, [N] in [0, 1]; None during the warm-up."""
        return self.belief if self.judged else None

    def training_weight(self, network: int) -> Tensor | None:
        """1 for the pairs that count as matched, 0 for others."""
        return self.matched


def tanh_scores(network: Backbone, similarity: Tensor) -> Tensor:
    """tanh of the raw scores behind sigmoids; cosines as they are: [B, B] -> [B, B] in [-1, 1]."""
    if not network.sigmoid:
        return similarity
    return (2 * similarity - 1) / (2 * similarity**2 - 2 * similarity + 1)


def judgement(evidence: Tensor) -> dict[str, Tensor]:
    """Share of each pair's own evidence in its row (`belief`), and whether it is the largest (`matched`).

    Args:
        evidence: [B, B]; both directions are added.
    """
    both = evidence + evidence.T
    own = both.diagonal()
    return {"belief": own / both.sum(1), "matched": (own >= both.amax(1)).to(own.dtype)}


def evidential_losses(evidence: Tensor, matched: Tensor, no_evidence: float) -> Tensor:
    """Expected squared error under the Dirichlet distribution of each row, and divergence of the evidence for
    others from none: [B, B] -> [B].

    Args:
        evidence: e, [B, B].
        matched: [B]: 1 for rows with the label on the diagonal, 0 for rows without a label.
        no_evidence: lambda_2.
    """
    label = torch.diag(matched.to(evidence.dtype))
    alpha = evidence + 1
    strength = alpha.sum(1, keepdim=True)
    error = (label - alpha / strength).square()
    variance = alpha * (strength - alpha) / (strength.square() * (strength + 1))
    return (error + variance).sum(1) + no_evidence * divergence_from_none(evidence * (1 - label) + 1)


def divergence_from_none(alpha: Tensor) -> Tensor:
    """KL(Dirichlet(alpha) || Dirichlet(1)) of each row: [B, K] -> [B].

    In double precision: it is a small difference of logarithms of factorials.
    """
    dtype, alpha = alpha.dtype, alpha.double()
    strength = alpha.sum(1, keepdim=True)
    normalisers = strength[:, 0].lgamma() - alpha.lgamma().sum(1) - math.lgamma(alpha.shape[1])
    return (normalisers + ((alpha - 1) * (alpha.digamma() - strength.digamma())).sum(1)).to(dtype)


def annealed_hinges(similarity: Tensor, margin: float, count: int) -> Tensor:
    """The `count` largest hinges of each pair, averaged, both directions added: [B, B] -> [B]."""
    by_image, by_text = hinges(similarity, margin)
    return by_image.topk(count).values.mean(1) + by_text.topk(count).values.mean(1)
