"""BiCro (CVPR 2023): labels from how alike the places of image and caption are relative to sure pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from methods.base import Backbone, Batch, Count, Optimizers, Report, Share, evaluation_mode
from methods.co_teaching import TwoPart
from methods.losses import hardest_triplet_of, mean_triplet, retained_margin, soft_margin
from methods.precision import full, full_precision


class BiCro(TwoPart):
    """Bidirectional cross-modal similarity consistency.

    1. Warm-up: triplet loss averaged over negatives, on the part of each batch with the smallest losses.
    2. Before each epoch a Beta mixture over each network's losses divides the pairs for the other network.
    3. In each step the tenth of the clean batch that retains most of its margin are anchors. An image and its
       caption should be equally near to the nearest anchor: the ratio of both similarities, for the anchor of
       the nearest image and for that of the nearest caption, is the label of a pair.
    4. Hardest-negative triplet loss with the soft margin of the label: a step on a batch of the noisy part,
       from `noisy_after` on, then one on a batch of the clean part.

    Labels come from the other network. Source: Yang et al., CVPR 2023; released code (model.py:473-589,
    804-850, co_train.py:189-372), whose optimizer steps, sums and mixture this follows. Ours: the vectors
    that labels come from are those of `pooled`, where the released code takes means over regions and words.

    Args:
        warmup_epochs: see `CoTeaching` (released code: 10).
        warmup_share: part of a warm-up batch that is trained on (scripts of the released code: 0.3).
        least_label: labels up to it become 0, but for those of anchors (scripts of the released code: 0.5).
        released: reproduce three faults of the released code. Labels of the clean part are scattered to the
            pairs in the order of their margins, so that each is another pair's (model.py:828-829). The ratio
            of two similarities with different signs is negative and unbounded (model.py:579-582). In one
            direction a negative's margin replaces that of the pair (model.py:511-514).
        common: the arguments of `TwoPart`, `CoTeaching` and `Method`.
    """

    paper = "BiCro (CVPR 2023)"
    family = "co-teaching"
    published = ("BiCro",)

    label: Tensor

    def __init__(
        self,
        *,
        warmup_epochs: Count = 10,
        warmup_share: Share = 0.3,
        least_label: Share = 0.5,
        released: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(warmup_epochs=warmup_epochs, **common)
        self.warmup_share = warmup_share
        self.least_label, self.released = least_label, released
        self.register_buffer("label", torch.ones(self.n_networks, len(self.pairs)))

    def step(self, batch: Batch, optimizers: Optimizers, network: int) -> Report:
        """Train on a batch of the noisy part, if there is one, and then on a batch of the clean part."""
        net, group = self.networks[network], f"network{network}"
        if self.warming_up:
            losses = mean_triplet(net.similarity(*net(batch)), self.margin)
            smallest = losses.topk(max(1, int(self.warmup_share * len(losses))), largest=False).values
            optimizers.update(smallest.sum(), group)
            return {"loss": smallest.sum().detach()}

        noisy = batch.auxiliary.get("noisy")
        clean_label, noisy_label = self._labels(self.networks[self.judge(network)], batch, noisy)
        self.label[network, batch.index] = clean_label.to(self.label)
        report: Report = {}
        if noisy is not None and noisy_label is not None:
            self.label[network, noisy.index] = noisy_label.to(self.label)
            loss = self._triplet(net, noisy, noisy_label)
            optimizers.update(loss, group)
            report["noisy_loss"] = loss.detach()
        loss = self._triplet(net, batch, clean_label)
        optimizers.update(loss, group)
        return {"loss": loss.detach(), **report}

    def diagnostics(self) -> Mapping[str, Tensor]:
        """The mean over the networks of each pair's last label; 1 before its first."""
        return {"label": self.label.mean(0)}

    def _triplet(self, net: Backbone, batch: Batch, label: Tensor) -> Tensor:
        margin = soft_margin(label, self.margin)
        if self.released:
            margin = margin.expand(len(margin), -1)  # entry (i, j) has caption j's
        images, texts = net(batch)
        return hardest_triplet_of(net, images, texts, margin).sum()

    @torch.no_grad()
    def _labels(self, judge: Backbone, clean: Batch, noisy: Batch | None) -> tuple[Tensor, Tensor | None]:
        """Labels of the clean batch, [B], and of the noisy one, according to a network."""
        with evaluation_mode(judge):  # type: ignore[arg-type]
            images, texts = judge(clean)
            retained = retained_margin(judge.similarity(images, texts), self.margin)
            anchors = Anchors.of(retained, judge.pooled(images), judge.pooled(texts))
            of_clean = clean_labels(anchors, retained, self.least_label, released=self.released)
            if noisy is None:
                return of_clean, None
            images, texts = (judge.pooled(x) for x in judge(noisy))
        label = anchors.consistency(images, texts, bounded=not self.released)
        return of_clean, label.where(label > self.least_label, 0).clamp(0, 1)


@dataclass(frozen=True)
class Anchors:
    """The pairs of a batch that are taken for sure, and all of its unit vectors.

    Attributes:
        index: rows of the batch, [A].
        images: [B, D].
        texts: [B, D].
    """

    index: Tensor
    images: Tensor
    texts: Tensor

    @classmethod
    def of(cls, retained: Tensor, images: Tensor, texts: Tensor) -> Anchors:
        """The B // 10 + 1 pairs that retain most of their margin (released code)."""
        return cls(retained.argsort(stable=True)[-(len(retained) // 10 + 1) :], images, texts)

    @full_precision
    def consistency(self, images: Tensor, texts: Tensor, *, bounded: bool = True) -> Tensor:
        """How alike image and caption of each pair are to an anchor's: the mean of the ratio at the anchor of
        the nearest image and at that of the nearest caption: [b, D], [b, D] -> [b].

        Args:
            images: unit vectors.
            texts: unit vectors.
            bounded: a ratio is at least 0; otherwise as released, unbounded below where signs differ.
        """
        by_image, by_text = images @ full(self.images)[self.index].T, texts @ full(self.texts)[self.index].T
        ratios = []
        for nearest in (by_image.argmax(1, keepdim=True), by_text.argmax(1, keepdim=True)):
            u, v = by_image.gather(1, nearest)[:, 0], by_text.gather(1, nearest)[:, 0]
            ratio = (u / v).where(u / v < 1, v / u).nan_to_num()
            ratios.append(ratio.clamp(min=0) if bounded else ratio)
        return (ratios[0] + ratios[1]) / 2


def clean_labels(anchors: Anchors, retained: Tensor, least_label: float, *, released: bool = False) -> Tensor:
    """Labels of the clean batch: half of 1 and the consistency, 0 up to `least_label`; 1 for anchors: -> [B]
    in [0, 1].

    Args:
        anchors: anchors of the batch.
        retained: margin that each pair retains, [B].
        least_label: see `BiCro`.
        released: see `BiCro`.
    """
    label: Tensor = (1 + anchors.consistency(anchors.images, anchors.texts, bounded=not released)) / 2
    label = label.where(label > least_label, 0).index_fill(0, anchors.index, 1)
    if released:
        others = retained.argsort(stable=True)[: -len(anchors.index)]
        label = torch.ones_like(label).index_copy(0, others, label[: len(others)])
    return label.clamp(0, 1)
