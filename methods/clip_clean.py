"""InfoNCE on the training pairs and the clean set: the baseline for methods that need clean data."""

from __future__ import annotations

from typing import Annotated, Any

import annotated_types as at
import torch
from torch import Tensor

from methods.base import Batch, Pairs, Report
from methods.clip import Clip
from methods.losses import pair_losses
from methods.seeding import torch_generator


class ClipClean(Clip):
    """`Clip` with an auxiliary batch of clean pairs in every step; every pair has the same weight (ours).

    The auxiliary batch has the size of the training batch, or as many pairs as a smaller clean set allows.
    Negatives are those of a pair's own batch. A clean pair is used far more often than a training pair.

    Args:
        clean: the clean set; given by the harness.
        clean_pairs: number of pairs of the clean set that are used; None: all.
        common: the arguments of `Method`.

    Raises:
        ValueError: `clean_pairs` exceeds the size of the clean set.
    """

    paper = "baseline"
    published = ()
    uses_clean_data = True

    def __init__(
        self, *, clean: Pairs, clean_pairs: Annotated[int, at.Ge(2)] | None = None, **common: Any
    ) -> None:
        super().__init__(**common)
        self.clean = clean.some(clean_pairs, torch_generator(self.seed, "clean pairs"))

    def auxiliary_pools(self, network: int) -> dict[str, Tensor | Pairs]:
        """The clean set, as the pool `clean`."""
        return {"clean": self.clean}

    def loss(self, batch: Batch) -> tuple[Tensor, Report]:
        """The mean of `pair_losses` over the training batch and the clean batch together."""
        (network,) = self.networks
        # There is no clean batch if the clean set has fewer than two pairs, or fewer than two groups.
        batches = [batch, *batch.auxiliary.values()]
        return torch.cat([pair_losses(network.logits(*network(b))) for b in batches]).mean(), {}
