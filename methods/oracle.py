"""Oracle: InfoNCE on the truly matched pairs only, the upper bound for every method that filters pairs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from methods.clip import Clip


class Oracle(Clip):
    """`Clip` on the pairs that match according to the ground truth, for the same number of steps.

    It is an upper bound and never a competitor (ours).

    Args:
        ground_truth: bool [N], whether training pair k matches; given by the harness.
        common: the arguments of `Method`.
    """

    paper = "oracle upper bound"
    published = ()
    uses_ground_truth = True

    def __init__(self, *, ground_truth: Tensor, **common: Any) -> None:
        super().__init__(**common)
        self.matched = ground_truth.nonzero().flatten()

    def selected(self, network: int) -> Tensor | None:
        """Indices of the matched training pairs."""
        return self.matched
