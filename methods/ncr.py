"""NCR (NeurIPS 2021): co-teaching with rectified labels that become soft margins."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from methods.base import Backbone, Batch, Count, Optimizers, Pairs, Positive, Report, Scan, evaluation_mode
from methods.co_teaching import CoTeaching
from methods.losses import hardest_triplet_of, mean_triplet
from methods.mixtures import low_loss_posterior
from methods.seeding import seed_of


class NCR(CoTeaching):
    """Noisy Correspondence Rectifier, section 3 of the paper; where it is silent, the released code.

    Warm-up with the triplet loss averaged over negatives. Then, before each epoch, a Gaussian mixture over
    each network's losses divides the pairs for the other one. The target of a pair of the clean part is
    w + (1 - w) p, with its posterior w and the network's own prediction p; that of the noisy part the mean of
    all networks' predictions, so with two the other's has its say. A target y becomes the margin
    alpha (10^y - 1) / 9 of a hardest-negative triplet loss. A step of the second stage (from `noisy_after`
    on) is two optimizer steps, one on a batch of each part, as released.

    Losses that the mixture sees come from batches of a fixed order: in the released code they come from
    shuffled ones, and the posterior depends on the other pairs of a batch.

    Args:
        margin: alpha.
        noisy_after: epochs after the warm-up before the noisy part is trained on (released: half of all).
        released_margins: as in the released code, the target of a clean pair mixes its posterior with the
            prediction of each *other* pair (a broadcast to B x B), and a negative image's margin stands
            in for the pair's own in one direction of the noisy part.
    """

    paper = "NCR (NeurIPS 2021)"
    published = ("NCR", "NCR-single")

    def __init__(
        self,
        *,
        margin: Positive = 0.2,
        noisy_after: Count = 20,
        released_margins: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.margin = margin
        self.noisy_after = noisy_after
        self.released_margins = released_margins

    def divide(self, judge: int, scan: Scan) -> Tensor:
        net = self.networks[judge]
        losses = scan(
            lambda images, texts: {"loss": mean_triplet(net.similarity(images, texts), self.margin)},
            network=judge,
        )["loss"]
        seed = seed_of(self.seed, "mixture", self.epoch, judge)
        return torch.from_numpy(low_loss_posterior(losses.numpy(), seed=seed, max_iter=10))

    def kept(self, network: int) -> Tensor:
        """Where nothing looks noisy, the hundredth with the lowest posterior is called so (released code)."""
        kept = super().kept(network)
        if not kept.all():
            return kept
        posterior = self.posterior[self.judge(network)]
        return posterior > posterior.sort().values[len(posterior) // 100]

    def auxiliary_pools(self, network: int) -> dict[str, Tensor | Pairs]:
        if self.epoch < self.warmup_epochs + self.noisy_after:
            return {}
        return {"noisy": (~self.kept(network)).nonzero().flatten()}

    def step(self, batch: Batch, optimizers: Optimizers, network: int) -> Report:
        net, own = self.networks[network], f"network{network}"
        if self.warming_up:
            loss = mean_triplet(net.similarity(*net(batch)), self.margin).sum()
            optimizers.update(loss, own)
            return {"loss": loss.detach()}

        posterior = self.posterior[self.judge(network)][batch.index]
        clean_margin = self._clean_margin(posterior, self._predict(net, batch))
        noisy = batch.auxiliary.get("noisy")
        noisy_margin = self._noisy_margin(noisy) if noisy else None
        images, texts = net(batch)
        loss = hardest_triplet_of(net, images, texts, clean_margin).sum()
        optimizers.update(loss, own)
        if noisy is None or noisy_margin is None:
            return {"loss": loss.detach()}
        images, texts = net(noisy)
        noisy_loss = hardest_triplet_of(net, images, texts, noisy_margin).sum()
        optimizers.update(noisy_loss, own)
        return {"loss": loss.detach(), "noisy_loss": noisy_loss.detach()}

    def _clean_margin(self, posterior: Tensor, predicted: Tensor) -> Tensor:
        if self.released_margins:
            posterior = posterior[:, None]  # the broadcast: entry (i, j) has w_i and p_j
        return soft_margin(posterior + (1 - posterior) * predicted, self.margin)

    def _noisy_margin(self, batch: Batch) -> Tensor:
        predicted = torch.stack([self._predict(net, batch) for net in self.networks]).mean(0)
        margin = soft_margin(predicted, self.margin)
        return margin[:, None].expand(-1, len(margin)) if self.released_margins else margin

    @torch.no_grad()
    def _predict(self, net: Backbone, batch: Batch) -> Tensor:
        with evaluation_mode(net):  # type: ignore[arg-type]
            return predicted_match(net.similarity(*net(batch)), self.margin)


def predicted_match(similarity: Tensor, margin: float) -> Tensor:
    """A network's prediction that each pair of a batch matches, [B, B] -> [B] in [0, 1].

    How much of the margin a pair keeps on average over negatives and directions, over the mean of that of the
    batch's best tenth (section 3.3; released code: B // 10 + 1 pairs).
    """
    kept = (margin - mean_triplet(similarity, margin) / 2).clamp(0, margin)
    best = kept.topk(len(kept) // 10 + 1).values.mean()
    return (kept / best.clamp(min=torch.finfo(kept.dtype).tiny)).clamp(0, 1)


def soft_margin(target: Tensor, margin: float) -> Tensor:
    """alpha (10^y - 1) / 9: from 0 at y = 0 to alpha at y = 1."""
    return margin * (10**target - 1) / 9
