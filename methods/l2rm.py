"""L2RM (CVPR 2024): mismatched pairs are matched anew within their batch, by partial optimal transport."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.base import Backbone, Batch, Count, Optimizers, Positive, Report, Share, Size
from methods.co_teaching import TwoPart
from methods.losses import hardest_triplet_of, symmetric_cross_entropy


class L2RM(TwoPart):
    """Learning to rematch mismatched pairs.

    1. Warm-up: cross-entropy and reverse cross-entropy.
    2. Before each epoch a Beta mixture over the losses of all pairs divides them.
    3. In each step, hardest-negative triplet loss on a batch of the clean part; and for a batch of the noisy
       part a transport plan of a small part of the mass between its images and captions, by which the
       network's softmax over rows and columns is trained.

    Source: Han et al., CVPR 2024; released code (main_L2RM.py:100-168, 270-360, models.py:485-872). Ours: the
    cost is 1 minus the similarity, where the released code adds a learned map over positions in the batch
    (models.py:856-872), which mean nothing, so that no flag reproduces it; Sinkhorn takes a fixed number of
    steps in float64; and the mixture is that of `bicro`, where the released code has a library's.

    Args:
        temperature: tau of softmax, in units of the similarity (released code: 0.05).
        mass: rho, part of the mass that is transported (released code: 0.1).
        entropy: regularisation of the plan (released code: 0.07; 0.01 on Flickr30K).
        iterations: steps of Sinkhorn (ours).
        keep_pairs: let the plan match the pairs of the noisy part again. The released code forbids it, except
            at noise ratio 0 (models.py:779): it knows the ratio. Here one value serves all.
        released: every image of the noisy part has the same weight, whatever part of its mass is transported
            (models.py:634-646). Otherwise rows and columns count by their mass, as the paper intends.
        n_networks: number of networks (paper: 1).
        common: the arguments of `TwoPart`, `CoTeaching` and `Method`.
    """

    paper = "L2RM (CVPR 2024)"
    family = "label refinement"
    published = ("L2RM",)

    def __init__(
        self,
        *,
        temperature: Positive = 0.05,
        mass: Share = 0.1,
        entropy: Positive = 0.07,
        iterations: Size = 200,
        keep_pairs: bool = False,
        released: bool = False,
        noisy_after: Count = 0,
        n_networks: Size = 1,
        **common: Any,
    ) -> None:
        super().__init__(n_networks=n_networks, noisy_after=noisy_after, **common)
        self.temperature = temperature
        self.mass, self.entropy, self.iterations = mass, entropy, iterations
        self.keep_pairs, self.released = keep_pairs, released

    def step(self, batch: Batch, optimizers: Optimizers, network: int) -> Report:
        """Train on a batch of the clean part and one of the noisy part, in one optimizer step."""
        net, group = self.networks[network], f"network{network}"
        if self.warming_up:
            logits = net.similarity(*net(batch)) / self.temperature
            loss = symmetric_cross_entropy(logits).mean()
            optimizers.update(loss, group)
            return {"loss": loss.detach()}
        images, texts = net(batch)
        loss, report = hardest_triplet_of(net, images, texts, self.margin).sum(), {}
        if noisy := batch.auxiliary.get("noisy"):
            rematched = self._rematching_loss(net, noisy)
            report["noisy_loss"] = rematched.detach()
            loss = loss + rematched
        optimizers.update(loss, group)
        return {"loss": loss.detach(), **report}

    def _rematching_loss(self, net: Backbone, batch: Batch) -> Tensor:
        similarity = net.similarity(*net(batch))
        plan = transport_plan(
            1 - similarity.detach(),
            mass=self.mass,
            entropy=self.entropy,
            iterations=self.iterations,
            masked=not self.keep_pairs,
        )
        return rematching_loss(similarity / self.temperature, plan, by_mass=not self.released)


@torch.no_grad()
def transport_plan(
    cost: Tensor, *, mass: float, entropy: float, iterations: int = 200, masked: bool = True
) -> Tensor:
    """Plan that transports a part of the mass between uniform marginals, with entropy: [B, B] -> [B, B].

    A further row and column take the mass that is not transported, at a cost beyond all others. Sinkhorn in
    the log domain, in float64.

    Source: Chapel et al. (NeurIPS 2020) for the further row and column; their costs from L2RM's released
    code.

    Args:
        cost: cost of each image with each caption.
        mass: part of the mass that is transported, in [0, 1].
        entropy: weight of the entropy, in units of the cost.
        iterations: steps.
        masked: nothing is transported on the diagonal.
    """
    size, largest = len(cost), cost.double().amax()
    extended = F.pad(cost.double(), (0, 1, 0, 1))
    extended[:size, size] = extended[size, :size] = 100 * largest
    extended[size, size] = 201 * largest
    log_kernel = -extended / entropy
    if masked:
        log_kernel[:size, :size].fill_diagonal_(-1e6 / entropy)
    share = torch.full((size + 1,), 1 / size, dtype=torch.float64, device=cost.device)
    share[size] = 1 - mass
    log_share = share.log()
    rows = columns = torch.zeros_like(share)
    for _ in range(iterations):
        rows = log_share - (log_kernel + columns).logsumexp(1)
        columns = log_share - (log_kernel + rows[:, None]).logsumexp(0)
    return (log_kernel + rows[:, None] + columns).exp()[:size, :size].to(cost.dtype)


def rematching_loss(logits: Tensor, plan: Tensor, *, by_mass: bool) -> Tensor:
    """Half of the symmetric divergences between softmax and plan, over rows and over columns: -> scalar.

    Args:
        logits: [B, B], similarities divided by the temperature.
        plan: [B, B]; rows and columns are normalised, entries of at least 1e-10 (released code).
        by_mass: rows and columns count by their mass; otherwise all alike.
    """
    total = logits.new_zeros(())
    for z, part in ((logits, plan), (logits.T, plan.T)):
        floored = part.clamp(min=1e-10)
        target = (floored / floored.sum(1, keepdim=True)).log()
        found = z.log_softmax(1)
        divergence = ((found.exp() - target.exp()) * (found - target)).sum(1)
        weight = part.sum(1) if by_mass else torch.ones_like(divergence)
        total = total + (weight * divergence).sum() / weight.sum().clamp(min=1e-10)
    return total / 2
