"""Zero-shot retrieval: the backbone without any training."""

from __future__ import annotations

from methods.base import Method


class ZeroShot(Method):
    """The backbone as it is loaded, ranked by its similarity.

    It is meaningful only if the image and text encoders are aligned (CLIP weights); otherwise its recalls are
    at chance level. A fine-tuned model can score below it, so tables with aligned weights include it.

    Source: Radford et al., ICML 2021. It has no hyper-parameters.
    """

    paper = "CLIP (ICML 2021)"
    family = "reference"
    published = ("CLIP zero-shot", "CLIP ViT-B/32 zero-shot", "CLIP ViT-L/14 zero-shot")
    trains = False
