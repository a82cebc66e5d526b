"""SGR in tiles against SGR caption by caption, in turn in one run: time, memory, and the memory of
scoring.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from harness.backbones.sgraf import SgrafBackbone, SgrafConfig
from harness.lib.console import console
from methods.base import Batch

BATCH, REGIONS, WIDTH = 64, 36, 2048
WORDS = (6, 20)  # of a caption


def bench_sgraf(steps: int) -> None:
    """Forward and backward at the published sizes against the naive version, and the peak of scoring more and
    more captions.

    The naive version lives in the tests, so this runs in a checkout only.
    """
    reference_sgraf = importlib.import_module("harness.bench.reference_sgraf")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    net = SgrafBackbone(SgrafConfig(dropout=0.0), (REGIONS, WIDTH), 1000, 0).to(device)
    versions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "caption by caption": lambda images, texts: reference_sgraf.similarity(net, images, texts),
        "in tiles": net.similarity,
    }
    batch = _batch(BATCH, BATCH, device)
    seconds: dict[str, list[float]] = {name: [] for name in versions}
    peaks = {}
    for step in range(steps + 1):  # the first does not count
        for name, similarity in versions.items():
            spent, peak = _measure(lambda similarity=similarity: _train(net, batch, similarity), device)  # type: ignore[misc]
            peaks[name] = peak
            if step:
                seconds[name].append(spent)
    base = statistics.median(seconds["caption by caption"])
    table = Table(
        "SGR",
        "s, forward and backward",
        "times as fast",
        "peak MB",
        title=f"batch {BATCH}, {REGIONS} x {WIDTH}, 1024, 256, {device}",
    )
    for name, values in seconds.items():
        median = statistics.median(values)
        table.add_row(name, f"{median:.3f}", f"{base / median:.2f}", f"{peaks[name]:.0f}")
    console.print(table)
    _scoring(net.eval(), device)


def _scoring(net: SgrafBackbone, device: torch.device) -> None:
    """A slice of MS-COCO 5K: the peak beside embeddings and result, as the number of tiles grows."""
    table = Table("images x captions", "s", "peak MB beside the embeddings", title="scoring, no gradient")
    with torch.no_grad():
        for count in (64, 256, 1024):
            images, texts = net(_batch(128, count, device))
            spent, peak = _measure(lambda i=images, t=texts: net.similarity(i, t), device)  # type: ignore[misc]
            table.add_row(f"128 x {count}", f"{spent:.1f}", f"{peak:.0f}")
    console.print(table)


def _batch(images: int, captions: int, device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(WORDS[0], WORDS[1] + 1, (captions,), generator=generator)
    tokens = torch.randint(4, 1000, (captions, WORDS[1]), generator=generator) * (
        torch.arange(WORDS[1]) < lengths[:, None]
    )
    features = torch.randn(images, REGIONS, WIDTH, generator=generator)
    return Batch(torch.arange(captions), features.to(device), tokens.to(device), 0, captions, 0)


def _train(net: SgrafBackbone, batch: Batch, similarity: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """One pass and its gradients, of the embeddings too."""
    net.train()
    scores = similarity(*net(batch))
    return torch.autograd.grad(scores.sum(), list(net.parameters()), materialize_grads=True)


def _measure(call: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Seconds, and MB at the peak above what was there before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(
            0
        )  # memory that was freed earlier goes back, and counts when it is taken again
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS:")
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    spent = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else _status("VmHWM:")
    return spent, peak - before


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))
