"""MSCN (CVPR 2023, arXiv 2304.06275): a small network learns the similarity score from a little clean data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from methods.base import Backbone, Batch, Count, Group, Method, Optimizers, Pairs, Positive, Report, Scan, Share, Size, trainable
from methods.losses import hardest_negatives, mean_triplet
from methods.mixtures import matched_posterior
from methods.seeding import torch_generator


class MSCN(Method):
    """Meta Similarity Correction Network, section 3 of the paper.

    Two networks, each with a similarity head V (similarity vector -> 64 -> 1, sigmoid). After a warm-up
    with the triplet loss averaged over negatives, every step: a look-ahead copy of the network takes one
    plain SGD step on the training loss, V is updated through that step on the clean meta-set (eq. 5, 6),
    then the network trains with the corrected V. Before each pass the other network splits the pairs by a
    Beta mixture over its scores, started from the meta-set (section 3.3); pairs at or below
    `keep_above` are left out. Test scores are averaged.

    Where the released code departs from the paper (field notes: seven points), this follows the paper: the
    margin belongs to the pair in both directions, and meta positives come from a set of their own, not from
    the split that selects the model. It follows the code where the paper is silent: the look-ahead is SGD
    without clipping, networks are trained in turn (the split of the first trains the second, then that of
    the updated second trains the first). Ours: on an embedding backbone the similarity vector is the
    element-wise product (SGRAF's L2-normalised squared difference is that backbone's own); negatives are
    drawn against the image that a caption is trained with, since the true one is not known; the
    warm-up keeps the batch size of the sweep, so that all methods take the same steps; optimizer, weight decay, clipping and
    schedule are the sweep's for V too (paper: Adam, clipping 2, a tenth of the rate from epoch 30).

    Args:
        margin: alpha.
        warmup_epochs: epochs of the averaged triplet loss on all pairs.
        meta_lr: learning rate of V after the warm-up (paper: 1.7e-5, for its backbone).
        meta_batch_size: clean positives in a meta batch, with as many negatives (not in the paper).
        hidden: units of V.
        keep_above: posterior of the matched component that a pair must exceed.
        n_networks: 2 as published; with 1 the network purifies for itself.
    """

    paper = "MSCN (CVPR 2023)"
    uses_clean_data = True

    heads: Sequence[ScoreHead]
    posterior: Tensor
    purified: Tensor

    def __init__(
        self,
        *,
        clean: Pairs,
        margin: Positive = 0.2,
        warmup_epochs: Count = 5,
        meta_lr: Positive = 1.7e-5,
        meta_batch_size: Size = 64,
        hidden: Size = 64,
        keep_above: Share = 0.5,
        n_networks: Size = 2,
        **common: Any,
    ) -> None:
        super().__init__(n_networks=n_networks, **common)
        self.clean = clean
        self.margin = margin
        self.warmup_epochs = warmup_epochs
        self.meta_lr = meta_lr
        self.meta_batch_size = meta_batch_size
        self.keep_above = keep_above
        self.heads = nn.ModuleList(  # type: ignore[assignment]
            ScoreHead(net.vector_size, hidden, torch_generator(self.seed, "score head", i))
            for i, net in enumerate(self.networks)
        )
        self.register_buffer("posterior", torch.ones(n_networks, len(self.pairs)))
        self.register_buffer("purified", torch.tensor(False))
        self.negatives = clean
        self.warming_up = True

    def groups(self) -> dict[str, Group]:
        heads = {f"head{i}": Group(trainable(head)) for i, head in enumerate(self.heads)}
        metas = {f"meta{i}": Group(trainable(head), lr=self.meta_lr) for i, head in enumerate(self.heads)}
        return {**super().groups(), **heads, **metas}

    def passes(self) -> Sequence[int]:
        return range(self.n_networks)[::-1]

    def start_epoch(self, epoch: int, network: int, scan: Scan) -> Report:
        self.warming_up = epoch < self.warmup_epochs
        if self.warming_up:
            return {}
        self.negatives = self._mismatched(torch_generator(self.seed, "meta negatives", epoch, network))
        judge = (network + 1) % self.n_networks
        net, head = self.networks[judge], self.heads[judge]

        def scores(pairs: Pairs | None = None) -> Any:
            found = scan(lambda images, texts: {"score": head.pairs(net, images, texts)}, network=judge, pairs=pairs)
            return found["score"].numpy()

        posterior = matched_posterior(scores(), scores(self.negatives), scores(self.clean))
        self.posterior[judge] = torch.from_numpy(posterior)
        self.purified.fill_(True)
        return {"kept": float((posterior > self.keep_above).mean())}

    def _mismatched(self, generator: torch.Generator) -> Pairs:
        """As many mismatched pairs as the meta-set has positives: captions with the image of another pair."""
        n, size = len(self.pairs), len(self.clean)
        captions = torch.randint(n, (size,), generator=generator)
        others = torch.randint(n, (8, size), generator=generator)  # tries: the first with another image counts
        differs = self.pairs.images[others] != self.pairs.images[captions]
        chosen = others.gather(0, differs.int().argmax(0, keepdim=True))[0]
        return Pairs(self.pairs.images[chosen], self.pairs.captions[captions])

    def selected(self, network: int) -> Tensor | None:
        if self.warming_up:
            return None
        judge = (network + 1) % self.n_networks
        return (self.posterior[judge] > self.keep_above).nonzero().flatten()

    def also(self, index: Tensor, seed: int) -> dict[str, Pairs]:
        if self.warming_up:
            return {}
        generator = torch_generator(seed, "meta batch")
        size = min(self.meta_batch_size, len(self.clean))
        return {
            "positives": self.clean[torch.randperm(len(self.clean), generator=generator)[:size]],
            "negatives": self.negatives[torch.randperm(len(self.negatives), generator=generator)[:size]],
        }

    def step(self, batch: Batch, optimizers: Optimizers, network: int) -> Report:
        net, head = self.networks[network], self.heads[network]
        main, images_texts = f"network{network}", net(batch)
        if self.warming_up:
            loss = mean_triplet(head(net, *images_texts), self.margin).sum()
            optimizers.update(loss, main, f"head{network}")
            return {"loss": loss.detach()}

        train_loss = self._main_loss(net, head, *images_texts)
        slope = optimizers.gradients(train_loss, main, create_graph=True)
        rate = optimizers.learning_rate(main)
        ahead = {name: p - rate * slope[name] for name, p in trainable(net).items()}
        meta_loss = self._meta_loss(net, head, ahead, batch)
        optimizers.update(meta_loss, f"meta{network}")

        loss = self._main_loss(net, head, *images_texts)  # the same embeddings under the corrected head
        optimizers.update(loss, main)
        return {"loss": loss.detach(), "meta_loss": meta_loss.detach()}

    def _main_loss(self, net: Backbone, head: ScoreHead, images: Tensor, texts: Tensor) -> Tensor:
        """Hardest negatives with the margin of the corrected score, eq. (7) and (8), summed over the batch.

        Gradient reaches only the hardest negatives, so all B x B pairs are scored without it, and the 3 B
        pairs that count are scored again with it: the same loss and gradient at a fraction of the cost.
        """
        with torch.no_grad():
            captions, pictures = hardest_negatives(head(net, images, texts))
        positive = head.pairs(net, images, texts)
        margin = soft_margin(positive.detach(), self.margin)
        by_image = (margin + head.pairs(net, images, texts[captions]) - positive).clamp(min=0)
        by_text = (margin + head.pairs(net, images[pictures], texts) - positive).clamp(min=0)
        return (by_image + by_text).sum()

    def _meta_loss(self, net: Backbone, head: ScoreHead, ahead: dict[str, Tensor], batch: Batch) -> Tensor:
        def logits(images: Tensor, texts: Tensor) -> Tensor:
            return head.pair_logits(net, images, texts)

        losses = []
        for name, label in (("positives", 1.0), ("negatives", 0.0)):
            found = functional_call(net, ahead, (batch.extra[name],), {"then": logits})  # type: ignore[arg-type]
            losses.append(F.binary_cross_entropy_with_logits(found, torch.full_like(found, label)))
        return torch.stack(losses).mean()

    def score(self, network: int, images: Tensor, texts: Tensor) -> Tensor:
        scores: Tensor = self.heads[network](self.networks[network], images, texts)
        return scores

    def confidence(self) -> Tensor | None:
        return self.posterior.mean(0) if self.purified else None


class ScoreHead(nn.Module):
    """The meta-network V: similarity vector [V] -> hidden -> 1, sigmoid (paper: 256-64-1)."""

    def __init__(self, vector_size: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(hidden, vector_size, generator=generator) / math.sqrt(vector_size))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.out_weight = nn.Parameter(torch.randn(1, hidden, generator=generator) / math.sqrt(hidden))
        self.out_bias = nn.Parameter(torch.zeros(1))

    def forward(self, net: Backbone, images: Tensor, texts: Tensor) -> Tensor:
        """Scores in (0, 1) of all pairs: [M, D], [N, D] -> [M, N]."""
        return self._out(net.project_vectors(images, texts, self.weight, self.bias)).sigmoid()

    def pairs(self, net: Backbone, images: Tensor, texts: Tensor) -> Tensor:
        """Scores in (0, 1) of the pairs on the diagonal: [B, D], [B, D] -> [B]."""
        return self.pair_logits(net, images, texts).sigmoid()

    def pair_logits(self, net: Backbone, images: Tensor, texts: Tensor) -> Tensor:
        """`pairs` before the sigmoid."""
        return self._out(net.project_pair_vectors(images, texts, self.weight, self.bias))

    def _out(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden.relu(), self.out_weight, self.out_bias).squeeze(-1)


def soft_margin(score: Tensor, margin: float) -> Tensor:
    """alpha_k = alpha / (1 + (s_k / (1 - s_k))^-2), eq. (8): [B] -> [B], near alpha for a sure match."""
    score = score.clamp(1e-3, 1 - 1e-3)
    return margin / (1 + (score / (1 - score)) ** -2)
