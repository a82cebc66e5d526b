"""NCR (NeurIPS 2021): co-teaching with rectified labels, used as soft margins."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from methods.base import Backbone, Batch, Optimizers, Report, Scan, evaluation_mode
from methods.co_teaching import TwoPart
from methods.losses import hardest_triplet_of, mean_triplet, retained_margin, soft_margin
from methods.mixtures import low_loss_posterior
from methods.seeding import seed_of


class NCR(TwoPart):
    """Noisy Correspondence Rectifier.

    1. Warm-up: triplet loss averaged over negatives, on all pairs.
    2. Co-divide, before each epoch: a Gaussian mixture over each network's losses gives the posterior w of
       each pair, which divides the pairs into a clean and a noisy part for the other network.
    3. Co-rectify, in each step: a pair of the clean part gets the target y = w + (1 - w) p, with p the
       network's prediction; a pair of the noisy part gets the mean prediction of all networks.
    4. Train with the hardest-negative triplet loss and the soft margin alpha (10^y - 1) / 9. From
       `noisy_after` on, a step is two optimizer steps, one on a batch of each part.

    Sources: section 3 of the paper; the released code for the mixture's settings, `noisy_after`, the two
    optimizer steps and `kept`. Ours: the losses for the mixture come from batches in a fixed order (released
    code: shuffled batches, so a posterior depends on the composition of its batch). See `docs/field.md`.

    Args:
        released_margins: reproduce two properties of the released code. The target of a clean pair is
            broadcast to [B, B] and mixes its posterior with the predictions of the other pairs
            (co_train.py:251-252). In one direction of the noisy part, the margin of a negative image replaces
            that of the pair (co_train.py:257-261, model.py:476-486).
        common: the arguments of `TwoPart` and `Method`.
    """

    paper = "NCR (NeurIPS 2021)"
    family = "co-teaching"
    published = ("NCR", "NCR-single")

    def __init__(
        self,
        *,
        released_margins: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.released_margins = released_margins

    def divide(self, judge: int, scan: Scan) -> Tensor:
        """Posterior of a low warm-up loss under network `judge`, [N]; at most 10 EM iterations."""
        seed = seed_of(self.seed, "mixture", self.epoch, judge)
        losses = self.triplet_losses(judge, scan)
        return torch.from_numpy(low_loss_posterior(losses, seed=seed, max_iter=10))

    def step(self, batch: Batch, optimizers: Optimizers, network: int) -> Report:
        """Train on a batch of the clean part and, if there is one, on a batch of the noisy part.

        All targets are computed before the first of the two optimizer steps.
        """
        net, group = self.networks[network], f"network{network}"
        if self.warming_up:
            loss = mean_triplet(net.similarity(*net(batch)), self.margin).sum()
            optimizers.update(loss, group)
            return {"loss": loss.detach()}

        posterior = self.posterior[self.judge(network)][batch.index]
        clean_margin = self._clean_margin(posterior, self._predict(net, batch))
        noisy = batch.auxiliary.get("noisy")
        noisy_margin = self._noisy_margin(noisy) if noisy else None

        images, texts = net(batch)
        loss = hardest_triplet_of(net, images, texts, clean_margin).sum()
        optimizers.update(loss, group)
        if noisy is None or noisy_margin is None:
            return {"loss": loss.detach()}

        images, texts = net(noisy)
        noisy_loss = hardest_triplet_of(net, images, texts, noisy_margin).sum()
        optimizers.update(noisy_loss, group)
        return {"loss": loss.detach(), "noisy_loss": noisy_loss.detach()}

    def _clean_margin(self, posterior: Tensor, predicted: Tensor) -> Tensor:
        """Soft margins of the clean part: [B], [B] -> [B], or [B, B] with `released_margins`."""
        if self.released_margins:
            posterior = posterior[:, None]  # the broadcast: entry (i, j) has w_i and p_j
        return soft_margin(posterior + (1 - posterior) * predicted, self.margin)

    def _noisy_margin(self, batch: Batch) -> Tensor:
        """Soft margins of the noisy part: [B], or [B, B] with `released_margins`."""
        predicted = torch.stack([self._predict(net, batch) for net in self.networks]).mean(0)
        margin = soft_margin(predicted, self.margin)
        return margin[:, None].expand(-1, len(margin)) if self.released_margins else margin

    @torch.no_grad()
    def _predict(self, net: Backbone, batch: Batch) -> Tensor:
        """A network's predictions [B], in evaluation mode."""
        with evaluation_mode(net):  # type: ignore[arg-type]
            return predicted_match(net.similarity(*net(batch)), self.margin)


def predicted_match(similarity: Tensor, margin: float) -> Tensor:
    """A network's prediction that each pair of a batch matches: [B, B] -> [B] in [0, 1].

    The part of the margin that a pair retains, averaged over negatives and directions, divided by the mean of
    the best tenth of the batch.

    Source: section 3.3; the size of the best tenth, B // 10 + 1, is that of the released code.

    Args:
        similarity: [B, B].
        margin: alpha.
    """
    retained = retained_margin(similarity, margin)
    best = retained.topk(len(retained) // 10 + 1).values.mean()
    return (retained / best.clamp(min=torch.finfo(retained.dtype).tiny)).clamp(0, 1)
