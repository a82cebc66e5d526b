"""No training: the backbone as it comes. A fine-tuned model can fall below this row, so it belongs in the
table.
"""

from __future__ import annotations

from methods.base import Method


class ZeroShot(Method):
    """Only meaningful where the backbone's towers are aligned (CLIP weights); else it is chance."""

    paper = "CLIP (ICML 2021)"
    published = ("CLIP zero-shot", "CLIP ViT-B/32 zero-shot", "CLIP ViT-L/14 zero-shot")
    trains = False
