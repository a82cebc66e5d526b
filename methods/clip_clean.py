"""InfoNCE that also trains on the clean set: what clean data is worth before any method makes more of it."""

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
    """To each batch comes one of clean pairs, as large or, where the clean set is smaller, as large as it can
    be; every pair counts alike.

    Negatives are those of a pair's own batch. A clean pair is trained on far more often than another. The
    baseline to hold methods against that need clean data.

    Args:
        clean_pairs: how many pairs of the clean set are used; None: all.
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
        return {"clean": self.clean}

    def loss(self, batch: Batch) -> tuple[Tensor, Report]:
        (network,) = self.networks
        batches = [
            batch,
            *batch.auxiliary.values(),
        ]  # no second one where the clean pairs are too few, or of one concept
        return torch.cat([pair_losses(network.logits(*network(b))) for b in batches]).mean(), {}
