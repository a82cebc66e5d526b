"""SigLIP (ICCV 2023): every image and caption of a batch is a binary decision of its own."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import Batch, Group, Method, Positive, Report, Scan, trainable
from methods.losses import off_diagonal_mean


class SigLIP(Method):
    """Logistic loss of all B x B similarities, with a learned scale t and a learned bias b.

    There is no softmax: a mismatched pair pays a price that is linear in its similarity, and negatives do not
    compete.

    Source: Zhai et al., ICCV 2023, algorithm 1; values at the start as in `open_clip`. Scale and bias have
    no weight decay.

    Args:
        scale: t at the start (section 3.2: 10).
        bias: b at the start (section 3.2: -10, which suits batches of 32,768). None: the bias at which the
            mean similarity of mismatched pairs, measured before training, has the odds 1 : B - 1 (ours): for
            smaller batches, and for similarities that are not centred on 0, as those of `sgraf`.
        common: the arguments of `Method`.
    """

    paper = "SigLIP (ICCV 2023)"
    family = "loss"

    belief: Tensor

    def __init__(self, *, scale: Positive = 10.0, bias: float | None = -10.0, **common: Any) -> None:
        super().__init__(**common)
        self.measures_bias = bias is None
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(0.0 if bias is None else bias))
        self.register_buffer("belief", torch.ones(len(self.pairs)))

    def groups(self) -> dict[str, Group]:
        """One group: the network with scale and bias."""
        own = {"log_scale": self.log_scale, "bias": self.bias}
        return {"network0": Group({**trainable(self.networks[0]), **own})}  # type: ignore[arg-type]

    @torch.no_grad()
    def start_epoch(self, epoch: int, network: int, scan: Scan) -> Report:
        """Before the first epoch, measure the bias if none is given."""
        if epoch == 0 and self.measures_bias:
            similarity = self.networks[0].similarity
            mean = scan(lambda images, texts: {"mean": off_diagonal_mean(similarity(images, texts))})["mean"]
            self.bias.copy_(-math.log(self.batch_size - 1) - self.log_scale.exp() * mean.mean())
        return {}

    def loss(self, batch: Batch) -> tuple[Tensor, Report]:
        """The mean over the batch of `sigmoid_losses`; scale and bias in the record."""
        network = self.networks[0]
        logits = self.log_scale.exp() * network.similarity(*network(batch)) + self.bias
        self.belief[batch.index] = logits.detach().diagonal().sigmoid().to(self.belief)
        report: Report = {"scale": self.log_scale.detach().exp(), "bias": self.bias.detach()}
        return sigmoid_losses(logits).mean(), report

    def confidence(self) -> Tensor | None:
        """Sigmoid of each pair's logit in its last step, [N] in [0, 1]; 1 before its first."""
        return self.belief


def sigmoid_losses(logits: Tensor) -> Tensor:
    """-log sigmoid(y z) of each image with all captions, summed; y is 1 for its own, else -1: [B, B] -> [B].

    Args:
        logits: t s + b.
    """
    own = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    return -F.logsigmoid(own * logits).sum(1)
