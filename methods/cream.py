"""CREAM (TIP 2024): pairs in three parts by two networks' verdicts, with soft targets for each."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from methods.base import Backbone, Batch, Count, Optimizers, Pairs, Positive, Report, Scan, evaluation_mode
from methods.co_teaching import CoTeaching, clean_part
from methods.losses import match_probability, pair_losses
from methods.mixtures import low_loss_posterior
from methods.seeding import seed_of


class CREAM(CoTeaching):
    """Cross-modal retrieval by consistency refining and mining.

    1. Warm-up: cross-entropy.
    2. Before each epoch each network fits a Gaussian mixture to the losses of all pairs and divides them
       (`clean_part`). Pairs that all networks take for matched are clean, those that none does are noisy,
       others are hard.
    3. Targets y for a network: clean w + (1 - w) p, with the other network's posterior w and its own
       prediction p in the batch; hard the same with the mean posterior; noisy the mean prediction.
    4. Cross-entropy with y on the diagonal, and with the rest shared out over the row by similarity where a
       share reaches a threshold (`soft_cross_entropy`). A step is one optimizer step for each part, in this
       order. A hard pair is seen about as often as a clean one, so not every step has a hard part; none has
       two, however many pairs are hard.

    With `n_networks: 1` no pair is hard.

    Source: Ma et al., TIP 2024; released code (train.py:309-546, 647-760, InfoNCELoss.py). There the warm-up
    ends with the epoch that is best on dev, which a method does not see here; the mean target, to which
    shares are compared, is that of a step's three batches, here of all pairs before the epoch; and shares
    carry a gradient. Ours: on cosines the shares are those of (1 + s) / 2.

    Args:
        temperature: of the cross-entropy, in units of the similarity (released code: 0.07).
        hard_after: number of epochs after the warm-up without the hard part and, with `adaptive`, without
            shares in the clean part (released code: 10, `hard_start_epoch`).
        noisy_after: number of epochs after the warm-up without the noisy part (released code: 15).
        shares: which shares count: `adaptive`, those that reach the mean target of all pairs, or all in the
            clean and the hard part where more than 85 % are clean, in the first epochs too (released code,
            train.py:461-471); or `all`.
        common: the arguments of `CoTeaching` and `Method`.
    """

    paper = "CREAM (TIP 2024)"
    family = "co-teaching"
    published = ("CREAM",)

    prediction: Tensor

    def __init__(
        self,
        *,
        temperature: Positive = 0.07,
        hard_after: Count = 10,
        noisy_after: Count = 15,
        shares: Literal["adaptive", "all"] = "adaptive",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.temperature, self.shares = temperature, shares
        self.hard_after, self.noisy_after = hard_after, noisy_after
        self.register_buffer("prediction", torch.ones(self.n_networks, len(self.pairs)))

    def divide(self, judge: int, scan: Scan) -> Tensor:
        """Posterior of a low loss under network `judge`, [N]; its predictions are kept too."""
        net = self.networks[judge]

        def look(images: Tensor, texts: Tensor) -> dict[str, Tensor]:
            logits = net.similarity(images, texts) / self.temperature
            return {"loss": pair_losses(logits), "prediction": match_probability(logits)}

        found = scan(look, network=judge)
        self.prediction[judge] = found["prediction"].to(self.prediction)
        seed = seed_of(self.seed, "mixture", self.epoch, judge)
        return torch.from_numpy(low_loss_posterior(found["loss"].numpy(), seed=seed, max_iter=10))

    def kept(self, network: int) -> Tensor:
        """Whether each training pair is clean, by all networks: bool [N]."""
        return self._clean_by().all(0)

    def noisy(self) -> Tensor:
        """Whether each training pair is noisy, by all networks: bool [N]."""
        return ~self._clean_by().any(0)

    def _clean_by(self) -> Tensor:
        """Whether each network takes each pair for matched: bool [networks, N]."""
        return torch.stack([clean_part(posterior, self.keep_above) for posterior in self.posterior])

    def auxiliary_pools(self, network: int) -> dict[str, Tensor | Pairs]:
        """The parts `hard` and `noisy`, in the epochs that train on them."""
        since, noisy = self.epoch - self.warmup_epochs, self.noisy()
        parts = {"hard": (self.hard_after, ~self.kept(network) & ~noisy), "noisy": (self.noisy_after, noisy)}
        return {name: part.nonzero().flatten() for name, (after, part) in parts.items() if since >= after}

    def weights(self, network: int) -> Tensor:
        """The part of the label in the targets of all pairs for a network, [N] in [0, 1]."""
        other, mean = self.posterior[self.judge(network)], self.posterior.mean(0)
        return other.where(self.kept(network), mean).where(~self.noisy(), 0)

    def start_epoch(self, epoch: int, network: int, scan: Scan) -> Report:
        """Divide the pairs when it is due, and set the network's weights and least shares."""
        report = dict(super().start_epoch(epoch, network, scan))
        if self.warming_up:
            return report
        self.weight, noisy = self.weights(network), self.noisy()
        clean = int(self.kept(network).sum())
        hard = len(noisy) - clean - int(noisy.sum())
        self.hard_rate = hard / min(self.batch_size, max(hard, 1)) / max(clean / self.batch_size, 1)
        self.hard_due = 0.5  # so that their number in the epoch is rounded to the nearest
        prediction = self.prediction[network].where(~noisy, self.prediction.mean(0))
        mean = float(refined(self.weight, prediction).mean())
        least = mean if self.shares == "adaptive" else 0.0
        self.least_share = {"clean": least, "hard": least, "noisy": least}
        if report["kept"] > 0.85:
            self.least_share |= {"clean": 0.0, "hard": 0.0}
        elif self.shares == "adaptive" and epoch - self.warmup_epochs < self.hard_after:
            self.least_share["clean"] = 1.0  # which no share reaches
        return {**report, "noisy": float(noisy.float().mean()), "mean_target": mean}

    def step(self, batch: Batch, optimizers: Optimizers, network: int) -> Report:
        """Train on a batch of the clean part, and on one of each further part that is due."""
        net, group = self.networks[network], f"network{network}"
        if self.warming_up:
            loss = 2 * pair_losses(net.similarity(*net(batch)) / self.temperature).mean()
            optimizers.update(loss, group)
            return {"loss": loss.detach()}
        due = ["hard", "noisy"] if self._hard_is_due() else ["noisy"]
        parts = {"clean": batch} | {name: batch.auxiliary[name] for name in due if name in batch.auxiliary}
        targets = {name: self._targets(name, part, network) for name, part in parts.items()}
        report: Report = {}
        for name, part in parts.items():
            loss = self._loss(net, part, targets[name], self.least_share[name])
            optimizers.update(loss, group)
            report["loss" if name == "clean" else f"{name}_loss"] = loss.detach()
        return report

    def _hard_is_due(self) -> bool:
        """Whether this step has a hard part: as many have as keep hard pairs in step with clean ones."""
        self.hard_due += min(self.hard_rate, 1)
        due = self.hard_due >= 1
        self.hard_due -= due
        return due

    @torch.no_grad()
    def _targets(self, name: str, batch: Batch, network: int) -> Tensor:
        """Targets of a batch of a part, [B] in [0, 1], as the networks are now."""
        judges = self.networks if name == "noisy" else [self.networks[network]]
        predictions = []
        for net in judges:
            with evaluation_mode(net):
                predictions.append(match_probability(net.similarity(*net(batch)) / self.temperature))
        return refined(self.weight[batch.index], torch.stack(predictions).mean(0))

    def _loss(self, net: Backbone, batch: Batch, target: Tensor, least_share: float) -> Tensor:
        similarity = net.similarity(*net(batch))
        positive = similarity if net.sigmoid else (1 + similarity) / 2
        return soft_cross_entropy(similarity / self.temperature, positive, target, least_share).mean()


def refined(weight: Tensor, prediction: Tensor) -> Tensor:
    """w + (1 - w) p: a label of 1 with weight w, and a prediction with the rest."""
    return weight + (1 - weight) * prediction


def soft_cross_entropy(logits: Tensor, similarity: Tensor, target: Tensor, least_share: float) -> Tensor:
    """Cross-entropy with target y_k on the diagonal, both directions added: [B, B] -> [B].

    The rest, 1 - y_k, is shared out over the others of the row in proportion to their similarity. Shares
    below `least_share` count as 0.

    Args:
        logits: similarities divided by the temperature.
        similarity: [B, B], at least 0; shares have no gradient.
        target: y, [B].
        least_share: in [0, 1].
    """
    diagonal = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    losses = torch.zeros_like(target)
    for z, s in ((logits, similarity.detach()), (logits.T, similarity.detach().T)):
        others = s.masked_fill(diagonal, 0)
        share = (1 - target)[:, None] * others / (others.sum(1, keepdim=True) + 1e-6)
        weight = share.where(share >= least_share, 0) + torch.diag(target)
        losses = losses - (weight * z.log_softmax(1)).sum(1)
    return losses
