"""MSCN (CVPR 2023, arXiv 2304.06275): a small network learns the similarity score from a little
clean data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import annotated_types as at
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from methods.base import (
    Backbone,
    Batch,
    Group,
    Optimizers,
    Pairs,
    Positive,
    Report,
    Scan,
    Size,
    Vectors,
    trainable,
    twice_differentiable,
)
from methods.co_teaching import CoTeaching
from methods.losses import hardest_triplet, hardest_triplet_of_few, mean_triplet
from methods.mixtures import matched_posterior
from methods.seeding import torch_generator

AtLeastTwo = Annotated[int, at.Ge(2)]  # batch normalisation needs two


class MSCN(CoTeaching):
    """Meta Similarity Correction Network, section 3 of the paper.

    Two networks, each with a similarity head V (similarity vector -> 64 -> 1, sigmoid). After a warm-up
    with the triplet loss averaged over negatives, every step: a look-ahead copy of the network takes one
    plain SGD step on the training loss, V is updated through that step on the clean meta-set (eq. 5, 6),
    then the network trains with the corrected V. Before each pass the other network divides the pairs by a
    Beta mixture over its scores, started from the meta-set (section 3.3); pairs at or below
    `keep_above` are left out. Test scores are averaged.

    Where the released code departs from the paper (`docs/field.md`), this follows the paper: the
    margin belongs to the pair in both directions, and meta positives come from a set of their own, not from
    the split that selects the model. It follows the code where the paper is silent: the look-ahead is SGD
    without clipping, networks are trained in turn (the division by the first trains the second, then that by
    the updated second trains the first). Ours: on an embedding backbone the similarity vector is the
    element-wise product (`sgraf` has its own); negatives are drawn against the image that a caption is
    trained with, since the true one is not known; positives and negatives of a meta batch are two passes
    (released: one mixed batch, whose statistics they share); the network's optimizer goes on after the
    warm-up (released: a new one); optimizer, weight decay, clipping and schedule are the sweep's for V too.

    As published, on `sgraf` (module SGR): batch 64 with `warmup_batch: 2`, Adam at 2e-4, a tenth of it from
    epoch 30 after the warm-up, clipping at 2, `meta_lr: 1.7e-5` (sweeps/f30k_regions.yaml).

    Args:
        margin: alpha.
        meta_lr: learning rate of V after the warm-up (paper: 1.7e-5, for its backbone).
        meta_batch_size: clean positives in a meta batch, with as many negatives (not in the paper).
        hidden: units of V.
        margin_of: `pair`, or as in the released code `column`: an image's negative caption brings its own
            margin.
        clean_pairs: how many pairs of the clean set are used, and as many meta negatives; None: all.
        meta: what the meta-loss is taken over: `both` kinds, or `positives` alone (ablation; the mixture
            starts from both).
        purify: without, all pairs are trained on, and there is no mixture and no confidence (ablation).
        adaptive_margin: without, the margin is alpha for every pair (ablation).
    """

    paper = "MSCN (CVPR 2023)"
    published = ("MSCN",)
    uses_clean_data = True
    in_turn = True
    id_neutral_defaults: ClassVar = {
        "warmup_batch": 1,
        "margin_of": "pair",
        "clean_pairs": None,
        "meta": "both",
        "purify": True,
        "adaptive_margin": True,
    }

    heads: Sequence[ScoreHead]

    def __init__(
        self,
        *,
        clean: Pairs,
        margin: Positive = 0.2,
        meta_lr: Positive = 1.7e-5,
        meta_batch_size: AtLeastTwo = 64,
        hidden: Size = 64,
        margin_of: Literal["pair", "column"] = "pair",
        clean_pairs: AtLeastTwo | None = None,
        meta: Literal["both", "positives"] = "both",
        purify: bool = True,
        adaptive_margin: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.clean = clean.some(clean_pairs, torch_generator(self.seed, "clean pairs"))
        if len(self.clean) < 2:
            raise ValueError("the clean set has one pair: mscn needs at least two")
        self.meta, self.purify, self.adaptive_margin = meta, purify, adaptive_margin
        self.margin = margin
        self.meta_lr = meta_lr
        self.meta_batch_size = meta_batch_size
        self.margin_of = margin_of
        self.heads = nn.ModuleList(  # type: ignore[assignment]
            ScoreHead(net.vector_size, hidden, torch_generator(self.seed, "score head", i))
            for i, net in enumerate(self.networks)
        )
        for net, head in zip(self.networks, self.heads, strict=True):
            head.take_over(net.published_head)
        self.negatives = self.clean

    def groups(self) -> dict[str, Group]:
        heads = {f"head{i}": Group(trainable(head)) for i, head in enumerate(self.heads)}
        metas = {f"meta{i}": Group(trainable(head), lr=self.meta_lr) for i, head in enumerate(self.heads)}
        return {**super().groups(), **heads, **metas}

    def passes(self) -> Sequence[int]:
        return range(self.n_networks)[::-1]

    def start_epoch(self, epoch: int, network: int, scan: Scan) -> Report:
        self.negatives = self._mismatched(torch_generator(self.seed, "meta negatives", epoch, network))
        if not self.purify:
            self.epoch = epoch
            return {}
        return super().start_epoch(epoch, network, scan)

    def selected(self, network: int) -> Tensor | None:
        return super().selected(network) if self.purify else None

    def divide(self, judge: int, scan: Scan) -> Tensor:
        net, head = self.networks[judge], self.heads[judge]

        def scores(pairs: Pairs | None = None) -> Any:
            result = scan(
                lambda images, texts: {"score": head(net.pair_vectors(images, texts))},
                network=judge,
                pairs=pairs,
            )
            return result["score"].numpy()

        return torch.from_numpy(matched_posterior(scores(), scores(self.negatives), scores(self.clean)))

    def _mismatched(self, generator: torch.Generator) -> Pairs:
        """As many mismatched pairs as the meta-set has positives: captions with the image of another pair."""
        n, size = len(self.pairs), len(self.clean)
        captions = torch.randint(n, (size,), generator=generator)
        others = torch.randint(
            n, (8, size), generator=generator
        )  # tries: the first with another image counts
        differs = self.pairs.images[others] != self.pairs.images[captions]
        chosen = others.gather(0, differs.int().argmax(0, keepdim=True))[0]
        return Pairs(self.pairs.images[chosen], self.pairs.captions[captions])

    def auxiliary_pairs(self, index: Tensor, seed: int) -> dict[str, Pairs]:
        if self.warming_up:
            return {}
        generator = torch_generator(seed, "meta batch")
        size = min(self.meta_batch_size, len(self.clean))
        kinds = {"positives": self.clean, "negatives": self.negatives}
        drawn = {
            kind: pairs[torch.randperm(len(pairs), generator=generator)[:size]]
            for kind, pairs in kinds.items()
        }
        return drawn if self.meta == "both" else {self.meta: drawn[self.meta]}

    def step(self, batch: Batch, optimizers: Optimizers, network: int) -> Report:
        net, head = self.networks[network], self.heads[network]
        main = f"network{network}"
        if self.warming_up:
            loss = mean_triplet(head(net.vectors(*net(batch))), self.margin).sum()
            optimizers.update(loss, main, f"head{network}")
            return {"loss": loss.detach()}

        with twice_differentiable():
            images, texts = net(batch)
        with torch.set_grad_enabled(net.couples_pairs):
            vectors = net.vectors(images, texts)
        train_loss = self._main_loss(net, head, vectors, images, texts)
        slope = optimizers.gradients(train_loss, main, create_graph=True)
        rate = optimizers.learning_rate(main)
        ahead = {name: p - rate * slope[name] for name, p in trainable(net).items()}
        meta_loss = self._meta_loss(net, head, ahead, batch)
        optimizers.update(meta_loss, f"meta{network}")

        loss = self._main_loss(
            net, head, vectors, images, texts
        )  # the same embeddings under the corrected head
        optimizers.update(loss, main)
        return {"loss": loss.detach(), "meta_loss": meta_loss.detach()}

    def _main_loss(
        self, net: Backbone, head: ScoreHead, vectors: Vectors, images: Tensor, texts: Tensor
    ) -> Tensor:
        """Hardest negatives with the margin of the corrected score, eq. (7) and (8), summed over the batch.

        `vectors` of all pairs have a gradient where pairs are coupled only: elsewhere they tell which
        negatives count.
        """
        with torch.set_grad_enabled(net.couples_pairs):
            scores = head(vectors)
        positive = scores.diagonal().detach()
        margin = (
            soft_margin(positive, self.margin)
            if self.adaptive_margin
            else torch.full_like(positive, self.margin)
        )
        if self.margin_of == "column":
            margin = margin.expand(scores.shape)
        if net.couples_pairs:
            return hardest_triplet(scores, margin).sum()
        return hardest_triplet_of_few(
            scores, lambda i, t: head(net.pair_vectors(i, t)), images, texts, margin
        ).sum()

    def _meta_loss(self, net: Backbone, head: ScoreHead, ahead: dict[str, Tensor], batch: Batch) -> Tensor:
        def logits(images: Tensor, texts: Tensor) -> Tensor:
            return head.logits(net.pair_vectors(images, texts))

        # The copy ahead is thrown away, and so are the running statistics of its passes.
        state = {**ahead, **{name: buffer.clone() for name, buffer in net.named_buffers()}}  # type: ignore[attr-defined]
        losses = []
        for kind, meta_batch in batch.auxiliary.items():
            scores = functional_call(net, state, (meta_batch,), {"then": logits})  # type: ignore[arg-type]
            losses.append(
                F.binary_cross_entropy_with_logits(
                    scores, torch.full_like(scores, float(kind == "positives"))
                )
            )
        return torch.stack(losses).mean()

    def score(self, network: int, images: Tensor, texts: Tensor) -> Tensor:
        scores: Tensor = self.heads[network](self.networks[network].vectors(images, texts))
        return scores


class ScoreHead(nn.Module):
    """The meta-network V: similarity vector [V] -> hidden -> 1, sigmoid (paper: 256-64-1)."""

    def __init__(self, vector_size: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(hidden, vector_size, generator=generator) / math.sqrt(vector_size)
        )
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.out_weight = nn.Parameter(torch.randn(1, hidden, generator=generator) / math.sqrt(hidden))
        self.out_bias = nn.Parameter(torch.zeros(1))

    def forward(self, vectors: Vectors) -> Tensor:
        """Scores in (0, 1): [..., V] -> [...]."""
        return self.logits(vectors).sigmoid()

    def logits(self, vectors: Vectors) -> Tensor:
        """Scores before the sigmoid, in full precision: half of it would make ties of what is compared."""
        hidden = vectors.project(self.weight, self.bias).relu()
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden, self.out_weight, self.out_bias).squeeze(-1)

    def take_over(self, published: Mapping[str, Tensor] | None) -> None:
        """Weights under the names of the released code, where a checkpoint brought some.

        Raises:
            ValueError: sizes differ.
        """
        if published is None:
            return
        names = {
            "weight": "first_hidden_layer.fc.weight",
            "bias": "first_hidden_layer.fc.bias",
            "out_weight": "output_layer.weight",
            "out_bias": "output_layer.bias",
        }
        for own, theirs in names.items():
            expected, loaded = getattr(self, own), published[theirs]
            if expected.shape != loaded.shape:
                shapes = f"expected {tuple(expected.shape)}, found {tuple(loaded.shape)}"
                raise ValueError(
                    f"the similarity head in the checkpoint (backbone.pretrained), {theirs}: {shapes}"
                )
        self.load_state_dict({own: published[theirs] for own, theirs in names.items()})


def soft_margin(score: Tensor, margin: float) -> Tensor:
    """alpha_k = alpha / (1 + (s_k / (1 - s_k))^-2), eq. (8): [B] -> [B], near alpha for a sure match."""
    score = score.clamp(1e-3, 1 - 1e-3)
    return margin / (1 + (score / (1 - score)) ** -2)
