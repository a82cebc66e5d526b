"""NPC (AAAI 2024, arXiv 2312.05777): estimate the negative impact of a pair before training on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.func import functional_call

from methods.base import (
    Batch,
    Count,
    Method,
    Optimizers,
    Pairs,
    Positive,
    Report,
    Scan,
    Share,
    evaluation_mode,
    trainable,
)
from methods.losses import pair_losses
from methods.mixtures import low_loss_posterior
from methods.seeding import seed_of


class NPC(Method):
    """Negative Pre-aware Cross-modal matching.

    Before an epoch:

    1. Strict clean set: the pairs with a posterior of a low loss above tau.
    2. Memory bank: two entries of the strict clean set for every training pair, the pair with the nearest
       image and the pair with the nearest caption (cosine).

    In each step:

    3. Look-ahead: a sibling of the model takes one optimizer step on the mean loss l of the batch. The losses
       of the entries are b before that step and a after it.
    4. Weights: r_k is the mean of b / a over the two entries of pair k; w_k = tanh(r_k) if r_k < 1, else 1.
    5. Train the model on mean(w l) plus the memory loss mean(b_image + b_text).

    Sources: the paper, eqs. (1), (6) and (7); the settings of the mixture, and evaluation mode for the losses
    of entries, from the released code. Ours: `warmup_epochs`, `least_bank` and the ablations. Equal entries
    of a batch are encoded once, and the look-ahead shares the forward pass of the batch; neither changes the
    result. Optimizer and schedule are the sweep's (paper: AdamW, cosine). `docs/field.md` lists where the
    released code differs from the paper.

    Args:
        variant: `paper` weights each pair and differentiates the memory loss. `released` follows the released
            code in these two: one weight for the batch, the mean, and a memory loss that is a constant. The
            sibling starts from the model's optimizer state in both variants (released code: it has Adam
            moments of its own, and its gradient is doubled).
        bank_threshold: tau, a posterior. Default: 0.99 for `paper` (no source that we could check confirms
            it), 0.9 for `released` (released code).
        bank: `epoch` rebuilds the memory bank before each epoch (default for `paper`: ours); `frozen` builds
            it once, after the warm-up (released code, whose README says that this is what the paper reports;
            default for `released`).
        warmup_epochs: number of first epochs with plain InfoNCE, for a backbone that is not aligned (paper:
            0, it starts from CLIP).
        least_bank: smallest strict clean set, as a share of the training pairs. If fewer pass the threshold
            (without noise none does), the set is this share of the pairs with the highest posterior, ordered
            by loss among equals. `bank_fallback` is then 1 in the record.
        weights: if false, all weights are 1, without look-ahead and confidence (ablation).
        memory_loss: if false, the memory loss is 0 (ablation). If `weights` is false too, the method is plain
            InfoNCE without a bank.
        sibling: the sibling's step. `adam`: a step of the model's optimizer from its state, whose momentum
            hides the batch (in `paper` it holds the memory loss too). Ours, ablations: `sgd`, a plain step on
            the mean loss of the batch; `pair`, for each pair a plain step on its own loss, at the cost of a
            pass over the entries for every pair.
        sibling_lr: size of the plain steps of `sgd` and `pair` (ours; a step of the sweep's learning rate
            changes a loss by less than rounding).
        common: the arguments of `Method`.
    """

    paper = "NPC (AAAI 2024)"
    family = "weighting"
    published = ("NPC",)
    id_neutral_defaults: ClassVar = {
        "weights": True,
        "memory_loss": True,
        "sibling": "adam",
        "sibling_lr": 0.1,
    }

    entries: Tensor
    has_bank: Tensor
    weight: Tensor
    ratio: Tensor

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
        sibling: Literal["adam", "sgd", "pair"] = "adam",
        sibling_lr: Positive = 0.1,
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
        self.sibling, self.sibling_lr = sibling, sibling_lr
        n = len(self.pairs)
        self.register_buffer("entries", torch.zeros(2, n, dtype=torch.long))  # nearest image, nearest caption
        self.register_buffer("has_bank", torch.tensor(False))
        self.register_buffer("weight", torch.ones(n))
        self.register_buffer("ratio", torch.ones(n))
        self.bank: Tensor | None = None  # `entries` on the CPU, from which batches are planned

    def start_epoch(self, epoch: int, network: int, scan: Scan) -> Report:
        """After the warm-up: build the memory bank, `entries` [2, N], or keep a frozen one."""
        plain = not (self.weights or self.memory_loss)
        if plain or epoch < self.warmup_epochs:
            return {}
        if self.has_bank and not self.rebuild:
            self.bank = self.entries.cpu()
            return {}
        net = self.networks[0]

        def losses_and_embeddings(images: Tensor, texts: Tensor) -> dict[str, Tensor]:
            return {
                "loss": pair_losses(net.logits(images, texts)),
                "image": net.pooled(images),
                "text": net.pooled(texts),
            }

        outputs = scan(losses_and_embeddings)
        posterior = torch.from_numpy(
            low_loss_posterior(outputs["loss"].numpy(), seed=seed_of(self.seed, "mixture", epoch))
        )
        clean, fallback = self._strict_clean_set(posterior, outputs["loss"])
        image, text = (outputs[side].to(self.entries.device) for side in ("image", "text"))
        for row, embeddings, index in ((0, image, self.pairs.images), (1, text, self.pairs.captions)):
            self.entries[row] = _nearest_pairs(embeddings, index, clean).to(self.entries.device)
        self.has_bank.fill_(True)
        self.bank = self.entries.cpu()
        return {"bank_size": len(clean), "bank_fallback": float(fallback)}

    def _strict_clean_set(self, posterior: Tensor, losses: Tensor) -> tuple[Tensor, bool]:
        """Indices of the strict clean set from posteriors [N] and losses [N], and whether it fell back."""
        clean = (posterior > self.threshold).nonzero().flatten()
        least = max(1, round(self.least_bank * len(posterior)))
        if len(clean) >= least:
            return clean, False
        by_loss = losses.argsort(stable=True)
        return by_loss[posterior[by_loss].argsort(descending=True, stable=True)][:least].sort().values, True

    def auxiliary_pairs(self, index: Tensor, seed: int) -> dict[str, Pairs]:
        """The distinct memory entries of the batch, as `bank`; equal entries are encoded once."""
        return {} if self.bank is None else {"bank": self.pairs[self.bank[:, index].unique()]}

    def step(self, batch: Batch, optimizers: Optimizers, network: int) -> Report:
        """Weight the pairs of the batch by the look-ahead, then train on them and on the memory entries."""
        net = self.networks[0]
        losses = pair_losses(net.logits(*net(batch)))
        bank = batch.auxiliary.get("bank")
        if bank is None:
            loss = losses.mean()
            optimizers.update(loss, "network0")
            return {"loss": loss.detach()}

        bank_rows = torch.searchsorted(bank.index, self.entries[:, batch.index])  # [2, B]

        def entry_losses(images: Tensor, texts: Tensor) -> Tensor:
            """Losses of the two entries of each pair, [2, B]; negatives are entries of the same kind."""
            return torch.stack([pair_losses(net.logits(images[rows], texts[rows])) for rows in bank_rows])

        released, gradients = self.variant == "released", {}
        if self.weights or released:
            gradients = optimizers.gradients(losses.mean(), "network0", retain_graph=self._keeps_graph)
        with evaluation_mode(net):  # dropout noise would dominate the ratio
            with torch.set_grad_enabled(self.memory_loss and not released):
                before = net(bank, then=entry_losses)
            if self.weights:
                after = self._losses_after(optimizers, losses, gradients, bank, entry_losses)
                rows, before_step = batch.index, before.detach()
                self.ratio[rows] = loss_ratio(before_step, after).to(self.ratio.dtype)
                self.weight[rows] = confidence_weight(before_step, after).to(self.weight.dtype)
        weight = self.weight[batch.index].to(losses.dtype)
        memory = before.sum(0).mean() if self.memory_loss else losses.new_zeros(())
        if released:  # the memory loss is a constant, and the rest a multiple of the mean loss
            loss = weight.mean() * losses.mean() + memory
            optimizers.step({name: weight.mean() * g for name, g in gradients.items()}, "network0")
        else:
            loss = (weight * losses).mean() + memory
            optimizers.update(loss, "network0")
        return {"loss": loss.detach(), "memory_loss": memory.detach(), "mean_weight": weight.mean()}

    @property
    def _keeps_graph(self) -> bool:
        """Whether the batch is differentiated again after the gradient of its mean loss."""
        return self.variant == "paper" or self.sibling == "pair"

    @torch.no_grad()
    def _losses_after(
        self,
        optimizers: Optimizers,
        losses: Tensor,
        gradients: Mapping[str, Tensor],
        bank: Batch,
        entry_losses: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Losses of the entries of each pair after the sibling's step, [2, B].

        Args:
            losses: of the batch, [B], with their graph.
            gradients: of the mean of `losses`, by parameter.
            bank: the entries.
            entry_losses: from embeddings of the entries to their losses, [2, B].
        """
        net = self.networks[0]

        def after(sibling: Mapping[str, Tensor]) -> Tensor:
            found: Tensor = functional_call(net, dict(sibling), (bank,), {"then": entry_losses})
            return found

        def plain_step(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: p - self.sibling_lr * gradients[name] for name, p in trainable(net).items()}

        if self.sibling == "adam":
            return after(optimizers.look_ahead(gradients, "network0"))
        if self.sibling == "sgd":
            return after(plain_step(gradients))
        columns = []
        for k in range(len(losses)):
            with torch.enable_grad():
                own = optimizers.gradients(losses[k], "network0", retain_graph=True)
            columns.append(after(plain_step(own))[:, k])
        return torch.stack(columns, 1)

    def confidence(self) -> Tensor | None:
        """The latest weight of each pair, [N] in [0, 1]; None without a bank or without weights."""
        return self.weight if self.has_bank and self.weights else None

    def training_weight(self, network: int) -> Tensor | None:
        """The latest weight of each pair; `released` weights all pairs of a batch alike."""
        return self.weight if self.variant == "paper" else None

    def diagnostics(self) -> Mapping[str, Tensor]:
        """The latest r_k of each pair, as `ratio`: what the weight is made from."""
        return {"ratio": self.ratio} if self.has_bank and self.weights else {}


def loss_ratio(before: Tensor, after: Tensor) -> Tensor:
    """r_k of each pair, the mean over its two entries of the ratio before / after: [2, B], [2, B] -> [B].

    Source: NPC eq. (6).

    Args:
        before: losses of the entries before the sibling's step.
        after: losses of the entries after it.
    """
    return (before / after.clamp(min=torch.finfo(after.dtype).tiny)).mean(0)


def confidence_weight(before: Tensor, after: Tensor) -> Tensor:
    """Weight w_k of each pair: tanh(r_k) where the look-ahead did harm (r_k < 1), else 1: [2, B], [2, B] ->
    [B].

    The jump from 0.76 to 1 at r_k = 1 is as published: near it, where most pairs are, the weight has two
    values.

    Source: NPC eq. (7).

    Args:
        before, after: as `loss_ratio` takes them.
    """
    ratio = loss_ratio(before, after)
    return torch.where(ratio < 1, ratio.tanh(), torch.ones_like(ratio))


def _nearest_pairs(embeddings: Tensor, index: Tensor, clean: Tensor) -> Tensor:
    """The clean pair with the nearest image (or caption) for each pair: [N, D], [N], [C] -> [N].

    Args:
        embeddings: unit vectors of the pairs' images.
        index: the image of each pair; a distinct image is compared once.
        clean: the pairs that are searched.
    """
    queries, query_of_pair = _first_of_each(index)
    candidates, _ = _first_of_each(index[clean])
    nearest = _nearest(embeddings[queries], embeddings[clean[candidates]])
    return clean[candidates[nearest]][query_of_pair]


def _nearest(queries: Tensor, candidates: Tensor, *, chunk: int = 4096, tie: float = 1e-6) -> Tensor:
    """Row of the candidate with the largest cosine for each query: unit vectors [N, D], [C, D] -> [N].

    Pairs share images and captions, so exact ties are common. The first candidate within `tie` of the largest
    cosine is taken, so that the result does not depend on rounding.
    """
    nearest = []
    for part in queries.split(chunk):
        cosine = part @ candidates.T
        close = cosine >= cosine.amax(1, keepdim=True) - tie
        nearest.append(close.view(torch.uint8).argmax(1))  # the first of equals
    return torch.cat(nearest).cpu()


def _first_of_each(values: Tensor) -> tuple[Tensor, Tensor]:
    """First index of each distinct value, in ascending order, and the row of each element in that list.

    [N] -> [distinct values], [N].
    """
    distinct, inverse = values.unique(return_inverse=True)
    first = torch.full((len(distinct),), len(values)).scatter_reduce_(
        0, inverse, torch.arange(len(values)), "amin"
    )
    order = first.argsort()
    return first[order], order.argsort()[inverse]
