"""Operations on the rows of a global batch whose result does not depend on the number of processes.

Embeddings are gathered with gradient, dropout masks belong to the pair, and batch normalisation takes the
statistics of the global batch.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from methods.base import Batch
from methods.seeding import torch_generator

MOMENTUM = 0.1
"""Momentum of running statistics in batch normalisation: PyTorch's default, as in SGRAF's released code."""


class SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over processes; its gradient is the sum of the gradients, to any order.

    A loss that every process computes on gathered embeddings is counted once by each process, so after a
    backward pass the *mean* of the parameters' gradients over processes is the exact gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """A tensor [...] of this process -> its sum over processes [...]."""
        total = x.clone(memory_format=torch.contiguous_format)  # which NCCL requires
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        """The gradient [...] of the sum -> its sum over processes [...]."""
        return sum_over_processes(gradient.contiguous())


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of equally shaped tensors over processes, on every process, with gradient.

    Requires an initialised process group.
    """
    result: Tensor = SumOverProcesses.apply(x)  # type: ignore[no-untyped-call]
    return result


def sums_over_processes(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Sum each of several tensors of one type over processes, in one transfer.

    A transfer of small tensors takes as long as its latency, so one is quicker than many.
    """
    flat = sum_over_processes(torch.cat([x.flatten() for x in tensors]))
    parts = flat.split([x.numel() for x in tensors])
    return tuple(part.view_as(x) for part, x in zip(parts, tensors, strict=True))


def gather_pair(images: Tensor, texts: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Gather the rows of a global batch's images and texts in one transfer, with gradient.

    Processes may hold different numbers of rows. Each puts its rows at their index and zeros elsewhere, and
    the sum over processes is the global batch.

    Args:
        images: this process's rows [b, ...].
        texts: this process's rows [b, ...], of the same type.

    Returns:
        All rows of both: [total, ...] each.
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


def columns_over_processes(compute: Callable[[slice], tuple[Tensor, ...]], count: int) -> tuple[Tensor, ...]:
    """Compute tensors of captions, divided among processes.

    Args:
        compute: from n of the captions to tensors with captions in dimension 1, [..., n, ...].
        count: number of captions, the same on all processes.

    Returns:
        The tensors of all captions on every process, with gradient.
    """
    processes = dist.get_world_size() if dist.is_initialized() else 1
    if processes == 1 or count < processes:
        return compute(slice(0, count))
    start, stop = (count * (dist.get_rank() + i) // processes for i in (0, 1))

    def gather_columns(x: Tensor) -> Tensor:
        before, after = (x.new_zeros(x.shape[0], n, *x.shape[2:]) for n in (start, count - stop))
        return sum_over_processes(torch.cat([before, x, after], 1))

    return tuple(map(gather_columns, compute(slice(start, stop))))


class Stream:
    """The source of a network's dropout masks: the seed of the batch and the order of layers in a pass.

    Args:
        network: number of the network within the method. Networks get different masks.

    Attributes:
        seed: the seed of the present batch.
        start: row of the global batch where this process's share begins.
        total: rows of the global batch.
        layer: dropout layers applied so far in this forward pass.
        sharded: whether the batch is divided among processes.
    """

    def __init__(self, network: int) -> None:
        self.network = network
        self.seed = self.start = self.total = self.layer = 0
        self.sharded = False

    def restart(self, batch: Batch) -> None:
        """Begin a forward pass. Two passes over one batch get equal masks."""
        self.seed, self.start, self.total, self.layer = batch.seed, batch.start, batch.total, 0
        self.sharded = batch.sharded


class PairDropout(nn.Module):
    """Dropout with a mask for each pair of the global batch, on any number of processes.

    Every process draws the mask of the global batch and applies its own rows.

    Args:
        p: probability that an element is zeroed.
        stream: the network's source of masks.
    """

    def __init__(self, p: float, stream: Stream) -> None:
        super().__init__()
        self.p = p
        self.stream = stream

    def forward(self, x: Tensor) -> Tensor:
        """[b, ...], this process's rows of the batch -> the same shape."""
        if not self.training or self.p == 0:
            return x
        stream = self.stream
        generator = torch_generator(stream.seed, "dropout", stream.network, stream.layer, device=x.device)
        stream.layer += 1
        draws = torch.rand(stream.total, *x.shape[1:], generator=generator, device=x.device)
        kept = draws[stream.start : stream.start + len(x)] >= self.p
        return x * kept / (1 - self.p)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The items of the outermost lists of equal modules in a module: the layers of a transformer, the stages
    of a convolutional network.
    """
    for child in module.children():
        listed = isinstance(child, nn.ModuleList) or (isinstance(child, nn.Sequential) and len(child) > 1)
        alike = listed and len({type(block) for block in child.children()}) == 1
        yield from child.children() if alike else blocks(child)


def checkpoint_blocks(module: nn.Module, stream: Stream) -> None:
    """Keep no activations inside the blocks of a module: the backward pass computes them again, in place.

    Results are the same to the last bit: a block sees the modes and the dropout masks of its first pass
    again. A block must not be differentiated through replaced parameters (`torch.func.functional_call`),
    which the backward pass would not see.
    """
    for block in blocks(module):
        block.forward = functools.partial(_checkpointed, block, block.forward, stream)


def compile_blocks(module: nn.Module) -> None:
    """Compile the blocks of a module as they are first used. Results are the same up to rounding; dropout,
    whose masks belong to pairs, is not compiled.
    """
    for part in module.modules():
        if isinstance(part, PairDropout):
            part.forward = torch.compiler.disable(part.forward)  # type: ignore[method-assign]
    # A method may ask for two gradients of a graph, so a backward pass must not reuse what the graph keeps.
    import torch._functorch.config as functorch_config  # takes a second

    functorch_config.donated_buffer = False
    for block in blocks(module):
        block.compile()


def _checkpointed(
    block: nn.Module, forward: Callable[..., Any], stream: Stream, *given: Any, **named: Any
) -> Any:
    """A block's forward pass, without its activations where a backward pass will follow."""
    if not torch.is_grad_enabled():
        return forward(*given, **named)
    return checkpoint(
        forward,
        *given,
        use_reentrant=False,
        preserve_rng_state=False,  # dropout draws from the stream
        context_fn=lambda: (contextlib.nullcontext(), _AsBefore(block, stream)),
        **named,
    )


class _AsBefore:
    """Context, entered for each backward pass, in which a block and its stream are as they are now."""

    def __init__(self, block: nn.Module, stream: Stream) -> None:
        self.block, self.stream = block, stream
        self.parameters = list(block.parameters())
        self.then = self._state()

    def _state(self) -> tuple[dict[str, Any], list[bool]]:
        return dict(vars(self.stream)), [module.training for module in self.block.modules()]

    def _set(self, state: tuple[dict[str, Any], list[bool]]) -> None:
        vars(self.stream).update(state[0])
        for module, training in zip(self.block.modules(), state[1], strict=True):
            module.training = training

    def __enter__(self) -> None:
        if any(now is not then for now, then in zip(self.block.parameters(), self.parameters, strict=True)):
            raise RuntimeError("backbone.checkpointing: a gradient through replaced parameters")
        self.now = self._state()
        self._set(self.then)

    def __exit__(self, *error: object) -> None:
        self._set(self.now)


class RowsBatchNorm(nn.BatchNorm1d):
    """Batch normalisation with the statistics of the global batch, on any number of processes.

    Args:
        features: size of dimension 1 of the input.
        stream: the network's `Stream`, for the size of the global batch.
    """

    def __init__(self, features: int, stream: Stream) -> None:
        super().__init__(features, momentum=MOMENTUM)
        self.stream = stream

    def forward(self, x: Tensor) -> Tensor:
        """[b, C] or [b, C, L], this process's rows of the batch -> the same shape."""
        if not (self.training and self.stream.sharded):
            return super().forward(x)
        reduced, shape = [d for d in range(x.ndim) if d != 1], [1, -1] + [1] * (x.ndim - 2)
        count = self.stream.total * x.shape[2:].numel()
        mean = sum_over_processes(x.sum(reduced)) / count
        centred = x - mean.view(shape)
        variance = sum_over_processes(centred.square().sum(reduced)) / count
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
    """Replace every dropout inside a module by `PairDropout`, in place.

    Dropout inside fused attention, stochastic depth and patch dropout draw from the global generator of the
    process and are turned off.
    """
    attention = "Attention" in type(module).__name__
    for name, child in module.named_children():
        if isinstance(child, nn.Dropout):
            setattr(module, name, PairDropout(0.0 if attention else child.p, stream))
        else:
            use_pair_dropout(child, stream)
    for switch in ("drop_prob", "dropout_prob", "prob", "attn_drop"):  # DropPath, PatchDropout, attention
        if isinstance(getattr(module, switch, None), float):
            setattr(module, switch, 0.0)
    if isinstance(module, nn.MultiheadAttention):
        module.dropout = 0.0
