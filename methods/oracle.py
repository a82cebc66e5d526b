"""InfoNCE on the truly matched pairs only: the ceiling that any filter of pairs can reach."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from methods.clip import Clip


class Oracle(Clip):
    """Knows which pairs match, trains on those, for the same number of steps. Not a competitor."""

    paper = "ceiling"
    published = ()
    uses_ground_truth = True

    def __init__(self, *, ground_truth: Tensor, **common: Any) -> None:
        super().__init__(**common)
        self.matched = ground_truth.nonzero().flatten()

    def selected(self, network: int) -> Tensor | None:
        return self.matched
