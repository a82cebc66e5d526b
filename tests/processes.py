"""Run by torchrun from the conformance suite: train methods on several processes and save what came out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from tests import build, small


def main(out: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    for name in names:
        for dropout in (0.0, 0.3):
            trainer = build.trainer(name, precision="fp64", backbone=small.backbone(head={"dropout": dropout}))
            records = []
            outcome = trainer.fit(records.append)
            if trainer.accelerator.is_main_process:
                metrics = {"epochs": [r.metrics for r in records], "test/rsum": outcome.metrics["test/rsum"]}
                weights = {k: v for k, v in trainer.method.state_dict().items() if v.is_floating_point()}
                content = {"weights": weights, "metrics": json.dumps(metrics), "processes": trainer.accelerator.num_processes}
                torch.save(content, out / f"{name}-{dropout}.pt")
            trainer.accelerator.wait_for_everyone()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
