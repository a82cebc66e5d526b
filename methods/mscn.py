"""MSCN (CVPR 2023, arXiv 2304.06275): a similarity score, meta-learned from a small clean set."""

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

AtLeastTwo = Annotated[int, at.Ge(2)]
"""An integer of at least 2: batch normalisation needs two pairs."""


class MSCN(CoTeaching):
    """Meta Similarity Correction Network.

    Each of the two networks w has a similarity head V with parameters theta, the meta-network: similarity
    vector -> 64 units -> score in (0, 1).

    1. Warm-up: triplet loss averaged over negatives; w and theta are trained together.
    2. Purification, before each pass: the other network divides the training pairs by a Beta mixture over its
       scores, which starts from the scores of the meta-set. Pairs at or below `keep_above` are left out.
    3. Look-ahead, in each step: w_hat(theta) = w - lr * gradient of the training loss, one plain SGD step.
    4. Meta update: theta takes a step on the binary cross-entropy of a meta batch under w_hat(theta), with
       the gradient through the look-ahead (eqs. 5 and 6).
    5. Update: w takes a step on the training loss with the updated V (eqs. 7 and 8).

    Test scores of the networks are averaged.

    Sources: section 3 of the paper, purification from section 3.3. From the released code, where the paper
    gives no detail: the look-ahead is SGD without clipping, and networks are trained in turn (the first
    divides for the second, then the updated second for the first). Where the released code departs from the
    paper (`docs/field.md`), this follows the paper: a margin belongs to its pair in both directions, and meta
    positives come from a separate set, not from the split that selects the model.

    Ours: on an embedding backbone the similarity vector is the element-wise product (`sgraf` has its own).
    Meta negatives are drawn against the image that a caption is trained with, since the true image is
    unknown. Positives and negatives of a meta batch are two forward passes (released code: one mixed batch,
    which shares batch statistics). The optimizer of w continues after the warm-up (released code: a new one).
    Optimizer, weight decay, clipping and schedule of the sweep apply to V too.

    As published, on `sgraf` (module SGR): batch 64 with `warmup_batch: 2`, Adam at 2e-4, a tenth of it from
    epoch 30 after the warm-up, clipping at 2, `meta_lr: 1.7e-5` (`sweeps/f30k_regions.yaml`).

    Args:
        clean: the clean meta-set, i.e. the meta positives (paper: 2 % of the data); given by the harness.
        margin: alpha, in units of the score (paper: 0.2).
        meta_lr: base learning rate of V after the warm-up (paper: 1.7e-5).
        meta_batch_size: number of positives in a meta batch, with as many negatives (not in the paper).
        hidden: number of hidden units of V (paper: 64).
        margin_of: `pair` (paper), or `column`, by which the image-to-text half uses the margin of the
            negative caption (released code).
        clean_pairs: number of pairs of the clean set that are used; None: all. There are as many meta
            negatives.
        meta: kinds of pairs in the meta loss: `both` (paper), or `positives` (ablation). The mixture starts
            from both kinds.
        purify: if false, train on all pairs, without mixture and confidence (ablation).
        adaptive_margin: if false, the margin is alpha for every pair (ablation).
        hardest: if false, the training loss after the warm-up is averaged over negatives too (ablation).
        train_network: if false, w stays as the warm-up leaves it, and V alone goes on (ablation).
        common: the arguments of `CoTeaching` and `Method`.

    Raises:
        ValueError: the clean set has fewer than two pairs or fewer than `clean_pairs`, or a published head
            has another size.
    """

    paper = "MSCN (CVPR 2023)"
    family = "clean data"
    published = ("MSCN",)
    uses_clean_data = True
    differentiates_twice = True
    in_turn = True
    id_neutral_defaults: ClassVar = {
        "warmup_batch": 1,
        "margin_of": "pair",
        "clean_pairs": None,
        "meta": "both",
        "purify": True,
        "adaptive_margin": True,
        "hardest": True,
        "train_network": True,
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
        hardest: bool = True,
        train_network: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.clean = clean.some(clean_pairs, torch_generator(self.seed, "clean pairs"))
        if len(self.clean) < 2:
            raise ValueError("the clean set has one pair; mscn needs at least two")
        self.meta, self.purify, self.adaptive_margin = meta, purify, adaptive_margin
        self.hardest, self.train_network = hardest, train_network
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
        """Networks, heads in the warm-up (sweep's learning rate), and heads after it (`meta_lr`)."""
        warmup_heads = {f"head{i}": Group(trainable(head)) for i, head in enumerate(self.heads)}
        meta_heads = {
            f"meta{i}": Group(trainable(head), lr=self.meta_lr) for i, head in enumerate(self.heads)
        }
        return {**super().groups(), **warmup_heads, **meta_heads}

    def passes(self) -> Sequence[int]:
        """The last network first, so that the division by network 0 trains network 1 (released code)."""
        return range(self.n_networks)[::-1]

    def start_epoch(self, epoch: int, network: int, scan: Scan) -> Report:
        """Draw the meta negatives of this pass, and purify the training pairs."""
        self.negatives = self._draw_negatives(torch_generator(self.seed, "meta negatives", epoch, network))
        if not self.purify:
            self.epoch = epoch
            return {}
        return super().start_epoch(epoch, network, scan)

    def selected(self, network: int) -> Tensor | None:
        """Indices of the purified pairs; all pairs during the warm-up or without purification."""
        return super().selected(network) if self.purify else None

    def divide(self, judge: int, scan: Scan) -> Tensor:
        """Posterior of the matched component of a Beta mixture over the scores of network `judge`, [N]."""
        net, head = self.networks[judge], self.heads[judge]

        def scores(pairs: Pairs | None = None) -> Any:
            result = scan(
                lambda images, texts: {"score": head(net.pair_vectors(images, texts))},
                network=judge,
                pairs=pairs,
            )
            return result["score"].numpy()

        return torch.from_numpy(matched_posterior(scores(), scores(self.negatives), scores(self.clean)))

    def _draw_negatives(self, generator: torch.Generator) -> Pairs:
        """As many mismatched pairs as the meta-set has positives: captions with the image of another pair."""
        n, size = len(self.pairs), len(self.clean)
        captions = torch.randint(n, (size,), generator=generator)
        candidates = torch.randint(n, (8, size), generator=generator)  # the first with another image is taken
        differs = self.pairs.images[candidates] != self.pairs.images[captions]
        chosen = candidates.gather(0, differs.int().argmax(0, keepdim=True))[0]
        return Pairs(self.pairs.images[chosen], self.pairs.captions[captions])

    def auxiliary_pairs(self, index: Tensor, seed: int) -> dict[str, Pairs]:
        """The meta batch after the warm-up, as `positives` and `negatives`."""
        if self.warming_up:
            return {}
        generator = torch_generator(seed, "meta batch")
        size = min(self.meta_batch_size, len(self.clean))
        meta_set = {"positives": self.clean, "negatives": self.negatives}
        meta_batch = {
            kind: pairs[torch.randperm(len(pairs), generator=generator)[:size]]
            for kind, pairs in meta_set.items()
        }
        return meta_batch if self.meta == "both" else {self.meta: meta_batch[self.meta]}

    def step(self, batch: Batch, optimizers: Optimizers, network: int) -> Report:
        """One bi-level step: look-ahead of w, update of theta through it, update of w."""
        net, head = self.networks[network], self.heads[network]
        group = f"network{network}"
        if self.warming_up:
            loss = mean_triplet(head(net.vectors(*net(batch))), self.margin).sum()
            optimizers.update(loss, group, f"head{network}")
            return {"loss": loss.detach()}

        with twice_differentiable():
            images, texts = net(batch)
        with torch.set_grad_enabled(self._all_pairs(net)):
            vectors = net.vectors(images, texts)
        train_loss = self._main_loss(net, head, vectors, images, texts)
        gradients = optimizers.gradients(train_loss, group, create_graph=True)
        rate = optimizers.learning_rate(group)
        lookahead = {name: p - rate * gradients[name] for name, p in trainable(net).items()}

        meta_loss = self._meta_loss(net, head, lookahead, batch)
        optimizers.update(meta_loss, f"meta{network}")
        if not self.train_network:
            return {"loss": train_loss.detach(), "meta_loss": meta_loss.detach()}

        # w is unchanged, so the embeddings are reused; only the scores of the updated head are new.
        loss = self._main_loss(net, head, vectors, images, texts)
        optimizers.update(loss, group)
        return {"loss": loss.detach(), "meta_loss": meta_loss.detach()}

    def _all_pairs(self, net: Backbone) -> bool:
        """Whether the training loss is differentiated through the scores of all pairs of a batch, not of the
        few that are hardest.
        """
        return net.couples_pairs or not self.hardest

    def _main_loss(
        self, net: Backbone, head: ScoreHead, vectors: Vectors, images: Tensor, texts: Tensor
    ) -> Tensor:
        """Training loss L(w, theta): hinges with soft margins, of the hardest negative or averaged over
        negatives, summed over the batch.

        Source: eqs. (7) and (8).

        Args:
            net: the network w.
            head: its head V.
            vectors: similarity vectors [B, B, V]. They have a gradient only if `_all_pairs`; otherwise they
                only select the hardest negatives.
            images: embeddings [B, ...].
            texts: embeddings [B, ...].
        """
        with torch.set_grad_enabled(self._all_pairs(net)):
            scores = head(vectors)
        positive = scores.diagonal().detach()
        margin = (
            soft_margin(positive, self.margin)
            if self.adaptive_margin
            else torch.full_like(positive, self.margin)
        )
        if self.margin_of == "column":
            margin = margin.expand(scores.shape)
        if not self.hardest:
            return mean_triplet(scores, margin).sum()
        if net.couples_pairs:
            return hardest_triplet(scores, margin).sum()
        return hardest_triplet_of_few(
            scores, lambda i, t: head(net.pair_vectors(i, t)), images, texts, margin
        ).sum()

    def _meta_loss(
        self, net: Backbone, head: ScoreHead, lookahead: dict[str, Tensor], batch: Batch
    ) -> Tensor:
        """Binary cross-entropy of the meta batch under the look-ahead parameters, averaged over its kinds."""

        def logits(images: Tensor, texts: Tensor) -> Tensor:
            return head.logits(net.pair_vectors(images, texts))

        # The look-ahead network is discarded, and so are the running statistics of its forward passes.
        state = {**lookahead, **{name: buffer.clone() for name, buffer in net.named_buffers()}}  # type: ignore[attr-defined]
        losses = []
        for kind, meta_batch in batch.auxiliary.items():
            pair_logits = functional_call(net, state, (meta_batch,), {"then": logits})  # type: ignore[arg-type]
            label = torch.full_like(pair_logits, float(kind == "positives"))
            losses.append(F.binary_cross_entropy_with_logits(pair_logits, label))
        return torch.stack(losses).mean()

    def score(self, network: int, images: Tensor, texts: Tensor) -> Tensor:
        """Scores of all pairs by the head of a network, in (0, 1): [M, ...], [T, ...] -> [M, T]."""
        scores: Tensor = self.heads[network](self.networks[network].vectors(images, texts))
        return scores


class ScoreHead(nn.Module):
    """The meta-network: linear layer, ReLU, linear layer, sigmoid (paper: 256-64-1).

    Weights start from a normal distribution with variance 1 / inputs, biases from 0 (ours).

    Args:
        vector_size: dimension V of the similarity vector.
        hidden: number H of hidden units.
        generator: random stream of the initial weights.
    """

    def __init__(self, vector_size: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(hidden, vector_size, generator=generator) / math.sqrt(vector_size)
        )
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.out_weight = nn.Parameter(torch.randn(1, hidden, generator=generator) / math.sqrt(hidden))
        self.out_bias = nn.Parameter(torch.zeros(1))

    def forward(self, vectors: Vectors) -> Tensor:
        """Scores of similarity vectors, in (0, 1): [..., V] -> [...]."""
        return self.logits(vectors).sigmoid()

    def logits(self, vectors: Vectors) -> Tensor:
        """Scores before the sigmoid: [..., V] -> [...].

        The last layer is in full precision: in half precision most scores would tie.
        """
        hidden = vectors.project(self.weight, self.bias).relu()
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden, self.out_weight, self.out_bias).squeeze(-1)

    def take_over(self, published: Mapping[str, Tensor] | None) -> None:
        """Load published weights, if a checkpoint has them.

        Args:
            published: weights by their names in the released code; None: keep the initial weights.

        Raises:
            ValueError: a weight has another shape.
        """
        if published is None:
            return
        published_names = {
            "weight": "first_hidden_layer.fc.weight",
            "bias": "first_hidden_layer.fc.bias",
            "out_weight": "output_layer.weight",
            "out_bias": "output_layer.bias",
        }
        for name, key in published_names.items():
            expected, loaded = getattr(self, name), published[key]
            if expected.shape != loaded.shape:
                shapes = f"expected {tuple(expected.shape)}, found {tuple(loaded.shape)}"
                raise ValueError(
                    f"the similarity head in the checkpoint (backbone.pretrained), {key}: {shapes}"
                )
        self.load_state_dict({name: published[key] for name, key in published_names.items()})


def soft_margin(score: Tensor, margin: float) -> Tensor:
    """alpha_k = alpha / (1 + (s_k / (1 - s_k))^-2), near alpha for a score near 1: [B] -> [B].

    Source: MSCN eq. (8).

    Args:
        score: s_k, in [0, 1].
        margin: alpha.
    """
    score = score.clamp(1e-3, 1 - 1e-3)
    return margin / (1 + (score / (1 - score)) ** -2)
