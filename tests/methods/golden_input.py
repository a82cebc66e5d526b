"""The input of the numbers that published code gave, and of transcriptions of published formulas."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from methods.base import Method

S = torch.tensor(
    [[0.62, 0.10, -0.05, 0.30], [0.05, 0.48, 0.22, 0.15], [0.12, 0.35, 0.28, -0.10], [0.20, 0.02, 0.18, 0.55]]
)
"""Similarities of four pairs; the third looks mismatched."""
I = F.normalize(torch.tensor([[1, 0.2, 0.1], [0.1, 1, 0.3], [0.3, 0.9, -0.4], [-0.2, 0.1, 1]]))  # noqa: E741
T = F.normalize(torch.tensor([[0.9, 0.1, 0.3], [0.2, 0.8, 0.1], [-0.5, 0.2, 0.6], [0.1, -0.1, 1]]))
"""Embeddings of four images, and of their captions."""
I6 = F.normalize(
    torch.tensor(
        [[1, 0.2, 0.1], [0.1, 1, 0.3], [0.3, 0.9, 0.4], [0.2, 0.1, 1], [0.7, 0.7, 0.1], [0.5, 0.1, 0.6]]
    )
)
T6 = F.normalize(
    torch.tensor(
        [[0.9, 0.1, 0.3], [0.2, 0.8, 0.1], [0.5, 0.2, 0.6], [0.1, 0.1, 1], [0.2, 0.6, 0.8], [0.6, 0.2, 0.5]]
    )
)
"""Embeddings of six images, and of their captions."""


class Given(nn.Module):
    """A network whose embeddings are `I` and `T`, and whose similarities are given; `scale` makes logits."""

    sigmoid = False

    def __init__(self, similarity: torch.Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.given, self.scale = similarity, scale

    def forward(self, batch: object) -> tuple[torch.Tensor, torch.Tensor]:
        return I, T

    def similarity(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        return self.given

    def scaled(self, similarity: torch.Tensor) -> torch.Tensor:
        return self.scale * similarity

    def logits(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        return self.scaled(self.given)

    def pooled(self, embeddings: torch.Tensor) -> torch.Tensor:
        return embeddings


def loss_of(method: Method, similarity: torch.Tensor, scale: float = 1.0) -> float:
    """The loss of a method on a batch of its first four pairs, with such a network."""
    method.networks = nn.ModuleList([Given(similarity, scale)])
    batch = SimpleNamespace(index=torch.arange(4), network=0, progress=0.0, auxiliary={})
    return float(method.loss(batch)[0])  # type: ignore[arg-type]
