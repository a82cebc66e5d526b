"""Rows of a global batch over processes: gathered with gradient, and dropped out alike on any number of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from methods.base import Batch
from methods.seeding import torch_generator


class SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over processes; its gradient is the sum of the gradients, to any order.

    A loss that every process computes on gathered embeddings is counted once by each process, so after a
    backward pass the *mean* of the parameters' gradients over processes is the exact gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return sum_over_processes(gradient.contiguous())


def sum_over_processes(x: Tensor) -> Tensor:
    result: Tensor = SumOverProcesses.apply(x)  # type: ignore[no-untyped-call]
    return result


def gather_rows(x: Tensor, batch: Batch) -> Tensor:
    """This process's rows [b, ...] -> the global batch's [total, ...], with gradient.

    Rows may be spread unevenly: each process puts its own in place and zeros elsewhere, and the sum is the whole.
    """
    if not batch.sharded:
        return x
    before, after = batch.start, batch.total - batch.start - len(x)
    rest = tuple(x.shape[1:])
    return sum_over_processes(torch.cat([x.new_zeros(before, *rest), x, x.new_zeros(after, *rest)]))


class Stream:
    """Where dropout masks come from: the batch's seed, and the order of the dropout layers in a pass."""

    def __init__(self, network: int) -> None:
        self.network = network
        self.seed = self.start = self.total = self.layer = 0

    def restart(self, batch: Batch) -> None:
        """A new pass over a batch: equal passes over one batch get equal masks."""
        self.seed, self.start, self.total, self.layer = batch.seed, batch.start, batch.total, 0


class PairDropout(nn.Module):
    """Dropout whose mask belongs to the pair: drawn for the global batch, this process's rows taken from it."""

    def __init__(self, p: float, stream: Stream) -> None:
        super().__init__()
        self.p = p
        self.stream = stream

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        stream = self.stream
        generator = torch_generator(stream.seed, "dropout", stream.network, stream.layer, device=x.device)
        stream.layer += 1
        draws = torch.rand(stream.total, *x.shape[1:], generator=generator, device=x.device)
        kept = draws[stream.start : stream.start + len(x)] >= self.p
        return x * kept / (1 - self.p)


def use_pair_dropout(module: nn.Module, stream: Stream) -> None:
    """Tie every dropout inside a module to the pair.

    What cannot be tied to it is turned off: dropout inside fused attention, stochastic depth and patch dropout draw from the
    process's own stream.
    """
    attention = "Attention" in type(module).__name__
    for name, child in module.named_children():
        if isinstance(child, nn.Dropout):
            setattr(module, name, PairDropout(0.0 if attention else child.p, stream))
        else:
            use_pair_dropout(child, stream)
    for switch in ("drop_prob", "dropout_prob", "prob", "attn_drop"):  # DropPath, PatchDropout, fused attention
        if isinstance(getattr(module, switch, None), float):
            setattr(module, switch, 0.0)
    if isinstance(module, nn.MultiheadAttention):
        module.dropout = 0.0
