"""What a trial spends: time, energy, memory, and how often pairs go through a network."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from harness.training.flops import FlopCounter

PARTS = ("train", "method", "evaluation")
"""The parts of a trial: optimizer steps, the method's passes over the training pairs, ranking dev and test.
"""


class CostMeter:
    """Counters of a trial over its finished epochs, by part; `state_dict` goes into the checkpoint. (Peak
    memory is that of the last attempt.)

    Attributes:
        seconds, joules, pairs: for each of `PARTS`. Pairs of `train` are those of the batches (with auxiliary
            pools), of `method` those of its passes over the training pairs, of `evaluation` the captions
            ranked; each counts once for each network. Joules are those of this process's GPU.
        batch_pairs: pairs of the batches alone.
        forwards: pairs in all forward passes of a network within steps.
        flops: of each step that was counted, on this process's device.
        flops_at_rate, rate_seconds: FLOPs and time of the steps that followed a counted one in its pass.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.joules = dict.fromkeys(PARTS, 0.0)
        self.pairs = dict.fromkeys(PARTS, 0)
        self.batch_pairs = 0
        self.forwards = 0
        self.flops: list[int] = []
        self.flops_at_rate = self.rate_seconds = 0.0
        self._part = ""
        self._counted: _Counted | None = None

    def clock(self, part: str) -> _Clock:
        """A block whose time and energy belong to a part."""
        return _Clock(self, part)

    def count_forwards(self, network: torch.nn.Module) -> None:
        """Count what goes forward through a network while it trains."""

        def count(module: torch.nn.Module, given: tuple[Any, ...]) -> None:
            if self._part == "train":
                self.forwards += given[0].total

        network.register_forward_pre_hook(count)

    @contextlib.contextmanager
    def step(self, *, count: bool) -> Iterator[None]:
        """An optimizer step.

        Args:
            count: count its FLOPs. A tiny step takes several times as long by that: in the time of `train` it
                counts no more than the mean of the steps that follow it in its pass.
        """
        if not count:
            yield
            if self._counted:
                self._counted.steps += 1
            return
        synchronize()
        began, counter = time.perf_counter(), FlopCounter()
        with counter:
            yield
        synchronize()
        ended = time.perf_counter()
        self._counted = _Counted(counter.total, ended - began, ended)
        if counter.total is not None:
            self.flops.append(counter.total)

    def _end_count(self, ended: float) -> float:
        """Seconds that counting has cost the pass that ends here; takes up the rate of its other steps."""
        counted, self._counted = self._counted, None
        if counted is None or not counted.steps:
            return 0.0
        seconds = ended - counted.ended
        if counted.flops is not None:
            self.flops_at_rate += counted.flops * counted.steps
            self.rate_seconds += seconds
        return max(0.0, counted.seconds - seconds / counted.steps)

    def state_dict(self) -> dict[str, Any]:
        """All counters."""
        return {k: v for k, v in vars(self).items() if not k.startswith("_")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the counters of `state_dict`."""
        vars(self).update(state)

    def metrics(self) -> dict[str, float]:
        """`cost/...` for the record: seconds and pairs a second of each part, seconds of all, pairs trained
        on a second without evaluation, forward passes a step (in batches), TFLOP of a step, joules, peak
        memory.
        """
        metrics = {f"cost/{part}_seconds": s for part, s in self.seconds.items()} | {
            "cost/seconds": sum(self.seconds.values())
        }
        metrics |= {
            f"cost/{part}_pairs_per_second": self.pairs[part] / s
            for part, s in self.seconds.items()
            if self.pairs[part] and s
        }
        if self.batch_pairs:
            metrics["cost/pairs_per_second"] = self.pairs["train"] / (
                self.seconds["train"] + self.seconds["method"]
            )
            metrics["cost/forward_passes"] = self.forwards / self.batch_pairs
        if self.flops:
            metrics["cost/tflop_per_step"] = sum(self.flops) / len(self.flops) / 1e12
        if torch.cuda.is_available():
            metrics["cost/peak_gpu_mb"] = torch.cuda.max_memory_allocated() / 2**20
        if any(self.joules.values()):
            metrics["cost/joules"] = sum(self.joules.values())
        return metrics | {"cost/peak_memory_mb": _peak_memory_mb()}

    @property
    def tflop_per_second(self) -> float | None:
        """TFLOP a second of the steps after those that were counted; None where none was."""
        return self.flops_at_rate / self.rate_seconds / 1e12 if self.rate_seconds else None


@dataclass
class _Counted:
    """A step whose FLOPs were counted: FLOPs, its time, when it ended, and the steps after it."""

    flops: int | None
    seconds: float
    ended: float
    steps: int = 0


class _Clock:
    """Adds the seconds and joules of a block to its part; waits for the device on both sides."""

    def __init__(self, spent: CostMeter, part: str) -> None:
        self.spent, self.part = spent, part

    def __enter__(self) -> None:
        synchronize()
        self.spent._part = self.part
        self.started, self.joules = time.perf_counter(), _joules()

    def __exit__(self, *error: object) -> None:
        synchronize()
        self.spent._part = ""
        ended = time.perf_counter()
        self.spent.seconds[self.part] += ended - self.started - self.spent._end_count(ended)
        self.spent.joules[self.part] += _joules() - self.joules


def reset_peak_memory() -> None:
    """Reset the counter: a worker process runs many trials. Where the kernel does not allow it, the peak is
    the process's.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory_mb() -> float:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _joules() -> float:
    """Energy of the GPU since its driver was loaded; 0 where it is not reported (no GPU, no NVML, one
    older than Volta).
    """
    handle = _nvml_handle()
    if handle is None:
        return 0.0
    import pynvml

    return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000


@lru_cache
def _nvml_handle() -> Any:
    if not torch.cuda.is_available():
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(
            f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        )
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None
    return handle


def synchronize() -> None:
    """Wait for the device, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
