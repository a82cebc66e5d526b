"""What each process of a group does for the conformance suite: train methods, and save what came out."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from harness.training.trainer import Trainer
from tests import build, small


def few_embeddings(trainer: Trainer) -> torch.Tensor:
    """A scan over so few pairs that there are more processes than batches."""
    return trainer.scan(
        lambda images, texts: {"images": images}, pairs=trainer.method.pairs[torch.arange(5)]
    )["images"]


def train_cases(rank: int, out: Path, cases: list[tuple[str, str]]) -> None:
    """Train the (method, setting) cases one after another in one process group; a file for each."""
    for name, setting in cases:
        trainer = (
            build.few_pairs(name)
            if setting == "few pairs"
            else build.trainer(name, precision="fp64", **small.SETTINGS[setting])
        )
        records = []
        outcome = trainer.fit(records.append)
        few = few_embeddings(trainer)
        if rank == 0:
            metrics = {"epochs": [r.metrics for r in records], "test/rsum": outcome.metrics["test/rsum"]}
            weights = {k: v for k, v in trainer.method.state_dict().items() if v.is_floating_point()}
            content = {
                "weights": weights,
                "metrics": json.dumps(metrics),
                "processes": trainer.accelerator.num_processes,
                "few": few,
            }
            torch.save(content, out / f"{name}-{setting}.pt")
        trainer.accelerator.wait_for_everyone()
