"""How much memory a step takes with and without activation checkpointing: counted, not measured."""

from __future__ import annotations

from dataclasses import replace

from rich.table import Table

from harness.config.sweep_file import parse_sweep
from harness.data import load_dataset
from harness.lib.console import console
from harness.sweep.estimate import estimate_step

METHODS = ("clip", "npc")
"""The baseline, and the method that needs the most memory of those that can be checkpointed."""


def bench_memory(*, model: str) -> None:
    """Print TFLOP and memory of a step at batches of 128 and 4,096 in bf16.

    Args:
        model: an open_clip model, whose towers are trained from random weights.
    """
    table = Table("method", "batch", "checkpointing", "TFLOP", "GiB", title=f"{model}, bf16, one process")
    data = replace(load_dataset("emoji"), distinct_groups=False)  # it has too few groups for 4,096
    for method in METHODS:
        for batch_size in (128, 4096):
            for checkpointing in (False, True):
                backbone = {"model": model, "pretrained": "none", "locked": False, "head": None}
                fixed = {
                    "backbone": {**backbone, "checkpointing": checkpointing},
                    "batch_size": batch_size,
                    "precision": "bf16",
                    "dataset": "emoji",
                    "noise_ratio": 0.4,
                    "seed": 0,
                }
                # All pairs in the memory bank: nearly every pair of a batch then has entries of its own.
                overrides = {"npc": {"least_bank": 1}} if method == "npc" else {}
                grid = {"method": [method]}
                sweep = parse_sweep({"name": "memory", "grid": grid, "fixed": fixed, "overrides": overrides})
                estimate = estimate_step(sweep.trials[0], data, gpu=True)
                tflop = "–" if estimate.tflop is None else f"{estimate.tflop:,.1f}"
                table.add_row(
                    method, f"{batch_size:,}", "yes" if checkpointing else "no", tflop, f"{estimate.gib:.1f}"
                )
    console.print(table)
