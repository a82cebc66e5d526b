"""Rows of a global batch over processes: gathered with gradient, and dropped out alike on any
number of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from methods.base import Batch
from methods.seeding import torch_generator

MOMENTUM = 0.1  # of running statistics, torch's default and that of all published code


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


def sums_over_processes(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The sum of each of several tensors of one type, in one transfer: each transfer costs its latency."""
    flat = sum_over_processes(torch.cat([x.flatten() for x in tensors]))
    parts = flat.split([x.numel() for x in tensors])
    return tuple(part.view_as(x) for part, x in zip(parts, tensors, strict=True))


def gather_pair(images: Tensor, texts: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """This process's rows [b, ...] of both sides -> the global batch's [total, ...], with gradient.

    Rows may be spread unevenly: each process puts its own in place and zeros elsewhere, and the sum is the
    whole.
    """
    if not batch.sharded:
        return images, texts
    images, texts = sums_over_processes(_in_place(images, batch), _in_place(texts, batch))
    return images, texts


def _in_place(x: Tensor, batch: Batch) -> Tensor:
    """This process's rows [b, ...] among zeros: [total, ...]."""
    before, after = batch.start, batch.total - batch.start - len(x)
    rest = tuple(x.shape[1:])
    return torch.cat([x.new_zeros(before, *rest), x, x.new_zeros(after, *rest)])


def columns_over_processes(
    compute: Callable[[Tensor], tuple[Tensor, ...]], texts: Tensor
) -> tuple[Tensor, ...]:
    """`compute` on this process's share of the captions, put together with those of the others.

    All processes hold the same texts [N, ...]; `compute` gives tensors whose dimension 1 is the caption's.
    """
    processes = dist.get_world_size() if dist.is_initialized() else 1
    if processes == 1 or len(texts) < processes:
        return compute(texts)
    start, stop = (len(texts) * (dist.get_rank() + i) // processes for i in (0, 1))

    def whole(x: Tensor) -> Tensor:
        before, after = (x.new_zeros(x.shape[0], n, *x.shape[2:]) for n in (start, len(texts) - stop))
        return sum_over_processes(torch.cat([before, x, after], 1))

    return tuple(map(whole, compute(texts[start:stop])))


def largest_over_processes(number: int, device: torch.device) -> int:
    found = torch.tensor(number, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


class Stream:
    """Where dropout masks come from: the batch's seed, and the order of the dropout layers in a pass."""

    def __init__(self, network: int) -> None:
        self.network = network
        self.seed = self.start = self.total = self.layer = 0
        self.sharded = False

    def restart(self, batch: Batch) -> None:
        """A new pass over a batch: equal passes over one batch get equal masks."""
        self.seed, self.start, self.total, self.layer = batch.seed, batch.start, batch.total, 0
        self.sharded = batch.sharded


class PairDropout(nn.Module):
    """Dropout whose mask belongs to the pair: drawn for the global batch, this process's rows
    taken from it.
    """

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


class RowsBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over the global batch, on any number of processes."""

    def __init__(self, features: int, stream: Stream) -> None:
        super().__init__(features, momentum=MOMENTUM)
        self.stream = stream

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.stream.sharded):
            return super().forward(x)
        over, shape = [d for d in range(x.ndim) if d != 1], [1, -1] + [1] * (x.ndim - 2)
        count = self.stream.total * x.shape[2:].numel()
        mean = sum_over_processes(x.sum(over)) / count
        centred = x - mean.view(shape)
        variance = sum_over_processes(centred.square().sum(over)) / count
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean), MOMENTUM)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), MOMENTUM)
            self.num_batches_tracked.add_(1)
        scaled = centred * (self.weight / (variance + self.eps).sqrt()).view(shape)
        return scaled + self.bias.view(shape)


def use_pair_dropout(module: nn.Module, stream: Stream) -> None:
    """Tie every dropout inside a module to the pair.

    What cannot be tied to it is turned off: dropout inside fused attention, stochastic depth and patch
    dropout draw from the process's own stream.
    """
    attention = "Attention" in type(module).__name__
    for name, child in module.named_children():
        if isinstance(child, nn.Dropout):
            setattr(module, name, PairDropout(0.0 if attention else child.p, stream))
        else:
            use_pair_dropout(child, stream)
    for switch in (
        "drop_prob",
        "dropout_prob",
        "prob",
        "attn_drop",
    ):  # DropPath, PatchDropout, fused attention
        if isinstance(getattr(module, switch, None), float):
            setattr(module, switch, 0.0)
    if isinstance(module, nn.MultiheadAttention):
        module.dropout = 0.0
