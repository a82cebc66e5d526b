"""Floating-point operations of a step, and what share of the device's peak they come to."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

PEAK_TFLOPS = {
    r"NVIDIA (H100 80GB HBM3|H200|GH200 .*)": {"bf16": 989.4, "float32": 66.9},
    r"NVIDIA (H100|H200) NVL": {"bf16": 835.5, "float32": 60.0},
    r"NVIDIA H100 PCIe": {"bf16": 756.0, "float32": 51.0},
    r"NVIDIA A100-(SXM4|PCIE)-\d+GB|NVIDIA A100 80GB PCIe": {"bf16": 312.0, "float32": 19.5},
    r"NVIDIA A40": {"bf16": 149.7, "float32": 37.4},
    r"NVIDIA RTX A6000": {"bf16": 154.8, "float32": 38.7},
    r"NVIDIA RTX 6000 Ada Generation": {"bf16": 364.2, "float32": 91.1},
    r"NVIDIA L40S": {"bf16": 362.0, "float32": 91.6},
    r"NVIDIA GeForce RTX 4090": {"bf16": 165.2, "float32": 82.6},
    r"NVIDIA GeForce RTX 3090": {"bf16": 71.0, "float32": 35.6},
    r"Tesla V100-SXM2-\d+GB": {"float32": 15.7},
}
"""Dense peak by the name of a device (a pattern) and precision, in TFLOP a second: NVIDIA's data sheets and
architecture white papers, without sparsity; bf16 with fp32 accumulation on tensor cores, float32 without
them. A slice of a GPU (MIG) has no entry."""


def peak_tflops(device: str, precision: str) -> float | None:
    """Dense peak of a device in TFLOP a second; None where it is not known.

    Args:
        device: the name that the driver gives.
        precision: `bf16`, or a type as `float32`.
    """
    known = (peaks for pattern, peaks in PEAK_TFLOPS.items() if re.fullmatch(pattern, device))
    return next(known, {}).get(precision)


class FlopCounter(FlopCounterMode):
    """Counts the FLOPs (two for a multiplication with addition) of matrix products, convolutions, attention
    and recurrent layers inside a block, forward and backward. What is computed is the same to the last bit.

    An operation whose count fails does not stop the block; `total` is then None.
    """

    def __init__(self) -> None:
        rnn = {torch.ops.aten._cudnn_rnn: _rnn_flops, torch.ops.aten._cudnn_rnn_backward: _rnn_backward_flops}
        super().__init__(display=False, custom_mapping=rnn, skip_unsupported=True)
        # The library's tracker of modules keeps activations alive in reference cycles.
        self.mod_tracker = _NoModules()  # type: ignore[assignment]
        self.complete = True

    @property
    def total(self) -> int | None:
        """FLOPs counted; None where some could not be."""
        return int(self.get_total_flops()) if self.complete and not self.get_unsupported_ops() else None

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        try:
            super()._count_flops(func_packet, out, args, kwargs)  # type: ignore[no-untyped-call]
        except Exception:  # a formula that does not know the arguments: the step goes on
            self.complete = False
        return out


class _NoModules(contextlib.nullcontext[None]):
    """In place of a `ModuleTracker`: all belongs to the total."""

    parents = frozenset({"Global"})


def _rnn_flops(inputs: Sequence[int], weights: Sequence[Sequence[int]], *_: Any, **__: Any) -> int:
    """FLOPs of cuDNN's recurrent layers, which the library's counter leaves out: each matrix times each row.

    Args:
        inputs: shape of the input, [T, B, F], or [rows, F] of a packed sequence.
        weights: shapes of the weights of all layers and directions; matrices count, biases do not.
    """
    return 2 * prod(inputs[:-1]) * sum(prod(shape) for shape in weights if len(shape) == 2)


def _rnn_backward_flops(inputs: Sequence[int], weights: Sequence[Sequence[int]], *_: Any, **__: Any) -> int:
    """Twice those of the forward pass: the gradients of the inputs and of the weights."""
    return 2 * _rnn_flops(inputs, weights)


def precision_of(mixed: str, dtype: torch.dtype) -> str | None:
    """The precision of most products, as `peak_tflops` takes it; None where TF32 stands in for float32.

    Args:
        mixed: Accelerate's mixed precision.
        dtype: type of the parameters.
    """
    if mixed == "bf16":
        return "bf16"
    tf32 = torch.backends.cuda.matmul.allow_tf32 and dtype == torch.float32
    return None if tf32 else str(dtype).removeprefix("torch.")


def utilization(tflop_per_second: float, mixed: str, dtype: torch.dtype) -> Mapping[str, float]:
    """`cost/mfu` of the present GPU; nothing without a GPU, or where its peak is not known."""
    precision = precision_of(mixed, dtype)
    if not torch.cuda.is_available() or precision is None:
        return {}
    peak = peak_tflops(torch.cuda.get_device_name(), precision)
    return {"cost/mfu": tflop_per_second / peak} if peak else {}
