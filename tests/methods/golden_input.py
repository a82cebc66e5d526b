"""The input of the numbers that published code gave, and of transcriptions of published formulas."""

from __future__ import annotations

import torch
import torch.nn.functional as F

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
