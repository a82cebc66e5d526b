"""NPC (AAAI 2024, arXiv 2312.05777): estimate the harm of a pair before training on it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.func import functional_call

from methods.base import Batch, Count, Method, Optimizers, Pairs, Report, Scan, Share, evaluation_mode
from methods.losses import pair_losses
from methods.mixtures import low_loss_posterior
from methods.seeding import seed_of


class NPC(Method):
    """Negative Pre-aware Cross-modal matching.

    Each epoch: pairs whose posterior of low loss exceeds `bank_threshold` are the strict clean set; every
    training pair gets two memory entries from it, the pair with the nearest image and the one with the
    nearest caption. Each step: a sibling takes one step on the batch; a pair whose entries it then does
    worse on gets less weight; the model trains on the weighted losses and on the entries.

    Args:
        variant: `paper` weighs every pair by itself, with gradient through the memory loss. `released` does
            what the published code does: one weight for the batch (the mean), and a memory loss that is
            a constant. (Its sibling also keeps Adam moments of its own and doubles the gradient; ours
            starts from the model's state in both variants.)
        bank_threshold: tau. Default 0.99 for `paper`, 0.9 for `released`.
        bank: `epoch` rebuilds the bank before each epoch (the paper's method text; default of `paper`),
            `frozen` builds it once after the warm-up (default of `released`).
        warmup_epochs: epochs of plain InfoNCE first, where the backbone is not aligned yet (the paper
            starts from CLIP and needs none: 0).
        least_bank: when fewer than this share of the pairs pass the threshold (without noise none does),
            the bank falls back to this share of the pairs, those with the highest posterior, the smaller
            loss first among equals; `bank_fallback` 1 in the record says so.
        weights: without, all pairs weigh 1, and there is no look-ahead and no confidence (ablation).
        memory_loss: without, the entries are not trained on (ablation; with `released` they never are).
            Without both it is plain InfoNCE, and there is no bank.

    The losses of memory entries, in the ratio and in the memory loss, are taken without dropout, from one
    pass. Optimizer and schedule are the sweep's (paper: AdamW, cosine).
    """

    paper = "NPC (AAAI 2024)"
    published = ("NPC",)
    id_neutral_defaults: ClassVar = {"weights": True, "memory_loss": True}

    entries: Tensor
    has_bank: Tensor
    weight: Tensor

    def __init__(
        self,
        *,
        variant: Literal["paper", "released"] = "paper",
        bank_threshold: Share | None = None,
        bank: Literal["epoch", "frozen"] | None = None,
        warmup_epochs: Count = 0,
        least_bank: Share = 0.05,
        weights: bool = True,
        memory_loss: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.variant = variant
        self.threshold = (
            bank_threshold if bank_threshold is not None else {"paper": 0.99, "released": 0.9}[variant]
        )
        self.rebuild = (bank or {"paper": "epoch", "released": "frozen"}[variant]) == "epoch"
        self.warmup_epochs = warmup_epochs
        self.least_bank = least_bank
        self.weights, self.memory_loss = weights, memory_loss
        n = len(self.pairs)
        self.register_buffer("entries", torch.zeros(2, n, dtype=torch.long))  # nearest image, nearest caption
        self.register_buffer("has_bank", torch.tensor(False))
        self.register_buffer("weight", torch.ones(n))

    def start_epoch(self, epoch: int, network: int, scan: Scan) -> Report:
        idle = not (self.weights or self.memory_loss)
        if idle or epoch < self.warmup_epochs or (self.has_bank and not self.rebuild):
            return {}
        net = self.networks[0]

        def look(images: Tensor, texts: Tensor) -> dict[str, Tensor]:
            return {
                "loss": pair_losses(net.logits(images, texts)),
                "image": net.pooled(images),
                "text": net.pooled(texts),
            }

        seen = scan(look)
        posterior = torch.from_numpy(
            low_loss_posterior(seen["loss"].numpy(), seed=seed_of(self.seed, "mixture", epoch))
        )
        clean, fallback = self._strict_clean_set(posterior, seen["loss"])
        image, text = (seen[side].to(self.entries.device) for side in ("image", "text"))
        self.entries[0] = self._nearest_images(image, clean).to(self.entries.device)
        self.entries[1] = clean[_nearest(text, text[clean])].to(self.entries.device)
        self.has_bank.fill_(True)
        return {"bank_size": len(clean), "bank_fallback": float(fallback)}

    def _nearest_images(self, embeddings: Tensor, clean: Tensor) -> Tensor:
        """For each pair the clean pair with the nearest image; each distinct image is compared once."""
        queries, back = _first_of_each(self.pairs.images)
        candidates, _ = _first_of_each(self.pairs.images[clean])
        nearest = _nearest(embeddings[queries], embeddings[clean[candidates]])
        return clean[candidates[nearest]][back]

    def _strict_clean_set(self, posterior: Tensor, losses: Tensor) -> tuple[Tensor, bool]:
        clean = (posterior > self.threshold).nonzero().flatten()
        least = max(1, round(self.least_bank * len(posterior)))
        if len(clean) >= least:
            return clean, False
        by_loss = losses.argsort(stable=True)
        return by_loss[posterior[by_loss].argsort(descending=True, stable=True)][:least].sort().values, True

    def auxiliary_pairs(self, index: Tensor, seed: int) -> dict[str, Pairs]:
        if not self.has_bank:
            return {}
        wanted = (
            self.entries[:, index.to(self.entries.device)].unique().cpu()
        )  # equal entries are encoded once
        return {"bank": self.pairs[wanted]}

    def step(self, batch: Batch, optimizers: Optimizers, network: int) -> Report:
        net = self.networks[0]
        losses = pair_losses(net.logits(*net(batch)))
        if not self.has_bank:
            loss = losses.mean()
            optimizers.update(loss, "network0")
            return {"loss": loss.detach()}

        places = self.entries[:, batch.index].unique(return_inverse=True)[1]  # [2, B]: rows of the bank batch

        def bank_losses(images: Tensor, texts: Tensor) -> Tensor:
            """[2, B]: losses of each pair's two entries, each within its own batch of B entries."""
            return torch.stack([pair_losses(net.logits(images[p], texts[p])) for p in places])

        bank = batch.auxiliary["bank"]
        with evaluation_mode(net):  # dropout noise would swamp the ratio
            with torch.set_grad_enabled(self.memory_loss):
                before = net(bank, then=bank_losses)
            if self.weights:
                sibling = optimizers.look_ahead(losses.mean(), "network0")
                with torch.no_grad():
                    after = functional_call(net, sibling, (bank,), {"then": bank_losses})
                self.weight[batch.index] = confidence_weight(before.detach(), after).to(self.weight.dtype)
        weight = self.weight[batch.index].to(losses.dtype)
        memory = before.sum(0).mean() if self.memory_loss else losses.new_zeros(())
        if self.variant == "released":
            loss = weight.mean() * losses.mean() + memory.detach()
        else:
            loss = (weight * losses).mean() + memory
        optimizers.update(loss, "network0")
        return {"loss": loss.detach(), "memory_loss": memory.detach(), "mean_weight": weight.mean()}

    def confidence(self) -> Tensor | None:
        return self.weight if self.has_bank and self.weights else None


def confidence_weight(before: Tensor, after: Tensor) -> Tensor:
    """w_k from the losses of the memory entries around the sibling's step, [2, B], [2, B] -> [B].

    r_k is the mean over both entries of loss before / loss after (NPC eq. 6); w_k = tanh(r_k) where the
    step did harm (r_k < 1), else 1 (eq. 7): a jump from 0.76 to 1 at r = 1, as published.
    """
    ratio = (before / after.clamp(min=torch.finfo(after.dtype).tiny)).mean(0)
    return torch.where(ratio < 1, ratio.tanh(), torch.ones_like(ratio))


def _nearest(queries: Tensor, candidates: Tensor, *, chunk: int = 4096, tie: float = 1e-6) -> Tensor:
    """For each query [N, D] the row of the candidate [C, D] with the largest cosine (both are unit vectors).

    Pairs share images and captions, so exact ties are common: the earliest of those within `tie` of the
    largest is taken, which does not depend on rounding.
    """
    nearest = []
    for part in queries.split(chunk):
        cosine = part @ candidates.T
        close = cosine >= cosine.amax(1, keepdim=True) - tie
        nearest.append(close.view(torch.uint8).argmax(1))  # the first of equals
    return torch.cat(nearest).cpu()


def _first_of_each(values: Tensor) -> tuple[Tensor, Tensor]:
    """The first index of each distinct value of [N], in order of index, and for each element its row among
    those.
    """
    place, row = values.unique(return_inverse=True)
    first = torch.full((len(place),), len(values)).scatter_reduce_(0, row, torch.arange(len(values)), "amin")
    order = first.argsort()
    return first[order], order.argsort()[row]
