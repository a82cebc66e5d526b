"""Oracle: InfoNCE on the truly matched pairs only, the reference for every method that filters pairs."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from methods.base import Batch, Report
from methods.clip import Clip
from methods.losses import pair_losses, weighted_mean


class Oracle(Clip):
    """`Clip` on the pairs that match according to the ground truth, for the same number of steps.

    It is a reference and never a competitor (ours), and no bound: it has settings of its own, and leaving
    mismatched pairs out is not the best that the truth can do. As a weight it keeps their images and
    captions as negatives.

    Args:
        ground_truth: bool [N], whether training pair k matches; given by the harness.
        truth: `selects` the pairs that batches are drawn from, or `weights` the losses of all pairs.
        common: the arguments of `Clip`.
    """

    paper = "oracle"
    family = "reference"
    published = ()
    uses_ground_truth = True

    id_neutral_defaults: ClassVar = {**Clip.id_neutral_defaults, "truth": "selects"}

    weight: Tensor

    def __init__(
        self, *, ground_truth: Tensor, truth: Literal["selects", "weights"] = "selects", **common: Any
    ) -> None:
        super().__init__(**common)
        self.truth = truth
        self.matched = ground_truth.nonzero().flatten()
        self.register_buffer("weight", ground_truth.float(), persistent=False)

    def selected(self, network: int) -> Tensor | None:
        """Indices of the matched training pairs, where the truth selects."""
        return self.matched if self.truth == "selects" else None

    def loss(self, batch: Batch) -> tuple[Tensor, Report]:
        """The mean of `pair_losses` over the matched pairs of the batch."""
        if self.truth == "selects":
            return super().loss(batch)
        network = self.networks[batch.network]
        return weighted_mean(pair_losses(network.logits(*network(batch))), self.weight[batch.index]), {}

    def training_weight(self, network: int) -> Tensor | None:
        """The ground truth, where it weights the losses."""
        return self.weight if self.truth == "weights" else None
