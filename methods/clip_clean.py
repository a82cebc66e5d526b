"""InfoNCE on the training pairs and the clean set: the baseline for methods that need clean data."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import annotated_types as at
import torch
import torch.nn.functional as F
from torch import Tensor

from methods.base import Batch, Pairs, Report
from methods.clip import Clip
from methods.losses import pair_losses
from methods.seeding import torch_generator


class ClipClean(Clip):
    """`Clip` that also trains on clean pairs; every pair of a batch has the same weight (ours).

    Args:
        clean: the clean set; given by the harness.
        clean_pairs: number of pairs of the clean set that are used; None: all.
        placed: where the clean pairs go. `beside`: an auxiliary batch of them in every step, of the size of
            the training batch, or as many pairs as a smaller clean set allows; negatives are those of a
            pair's own batch, and a clean pair is used far more often than a training pair. `pool`: in the
            pool of the training pairs, once an epoch on average; negatives are those of the whole batch.
        common: the arguments of `Clip`.

    Raises:
        ValueError: `clean_pairs` exceeds the size of the clean set.
    """

    paper = "baseline"
    family = "clean data"
    published = ()
    uses_clean_data = True
    id_neutral_defaults: ClassVar = {**Clip.id_neutral_defaults, "placed": "beside"}

    def __init__(
        self,
        *,
        clean: Pairs,
        clean_pairs: Annotated[int, at.Ge(2)] | None = None,
        placed: Literal["beside", "pool"] = "beside",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.clean = clean.some(clean_pairs, torch_generator(self.seed, "clean pairs"))
        self.placed = placed

    def auxiliary_pools(self, network: int) -> dict[str, Tensor | Pairs]:
        """The clean set, as the pool `clean`, where it has batches of its own."""
        return {"clean": self.clean} if self.placed == "beside" else {}

    def auxiliary_pairs(self, index: Tensor, seed: int) -> dict[str, Pairs]:
        """In the pool: random clean pairs, in each batch the share that they have of all pairs; the first of
        each group, where no two of a group may meet.
        """
        if self.placed == "beside":
            return {}
        generator = torch_generator(seed, "clean pairs")
        share = len(self.clean) * len(index) / len(self.pairs)
        count = min(len(self.clean), int(share + torch.rand((), generator=generator)))
        drawn = self.clean.some(count, generator)
        if drawn.groups is not None:
            listed = drawn.groups.tolist()
            drawn = drawn[
                torch.tensor([i for i, g in enumerate(listed) if g not in listed[:i]], dtype=torch.long)
            ]
        return {"clean": drawn} if count else {}

    def loss(self, batch: Batch) -> tuple[Tensor, Report]:
        """The mean of `pair_losses` over training and clean pairs together."""
        network = self.networks[batch.network]
        # There is no clean batch if the clean set has fewer than two pairs, or fewer than two groups.
        embedded = [network(b) for b in (batch, *batch.auxiliary.values())]
        if self.placed == "pool":
            embedded = [tuple(_joined(sides) for sides in zip(*embedded, strict=True))]
        return torch.cat([pair_losses(network.logits(*both)) for both in embedded]).mean(), {}


def _joined(embeddings: tuple[Tensor, ...]) -> Tensor:
    """Embeddings [B, ...] one after another, with zeros where others have more words."""
    if embeddings[0].ndim == 3:
        width = max(x.shape[1] for x in embeddings)
        embeddings = tuple(F.pad(x, (0, 0, 0, width - x.shape[1])) for x in embeddings)
    return torch.cat(embeddings)
