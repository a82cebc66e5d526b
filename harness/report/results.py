"""The tidy frame of a sweep, the labels of its rows, and the aggregation of cells over seeds."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pandas as pd

from harness.config.labels import place_labels, row_labels
from harness.evaluation.coco import ECCV_MEASURES, FOLD_MEASURES
from harness.evaluation.metrics import DETECTION, PERFECT, RECALLS, chance_rsum
from harness.record.types import StoreError, SweepRecord
from harness.report.source import Source

MEASURES = (*RECALLS, "rsum")
COSTS = {
    "seconds": "cost/seconds",
    "train_seconds": "cost/train_seconds",
    "method_seconds": "cost/method_seconds",
    "evaluation_seconds": "cost/evaluation_seconds",
    "pairs_per_second": "cost/pairs_per_second",
    "train_pairs_per_second": "cost/train_pairs_per_second",
    "method_pairs_per_second": "cost/method_pairs_per_second",
    "evaluation_pairs_per_second": "cost/evaluation_pairs_per_second",
    "forward_passes": "cost/forward_passes",
    "joules": "cost/joules",
    "networks": "cost/networks_at_test",
    "parameters": "cost/parameters",
}
COLLAPSED = 0.02
"""A trial has collapsed if its rSum is at most chance level plus this share of the range up to a perfect
rSum.
"""


def tidy(sweep: SweepRecord) -> pd.DataFrame:
    """One line for each planned trial, finished or not.

    Columns: trial, run, status, done, method, row (method and what else varies), data set, noise (as text),
        granularity, noise model, backbone, noise_ratio,
    seed, noise_seed, the recalls and rsum of the best dev epoch (of MS-COCO also `1k_` and `eccv_` ones), the
    same with `last_` of the last epoch, dev_rsum, best_epoch, detection scores (last epoch), realised ratio,
    costs, and whether the method uses clean data or the ground truth.
    """
    labels = row_labels(sweep.planned, full=sweep.select)
    data, noise = place_labels(sweep.planned)
    lines = []
    for trial in sweep.planned:
        record = sweep.records.get(trial.id)
        recorded = record.metrics if record and record.done else {}
        method = sweep.methods[trial.method]
        line: dict[str, Any] = {
            "trial": trial.id,
            "run": record.run_id if record else "",
            "status": record.status if record else "MISSING",
            "done": bool(record and record.done),
            "method": trial.method,
            "row": labels[trial.id],
            "dataset": data[trial.id],
            "noise": noise[trial.id],
            "granularity": trial.noise_granularity,
            "noise_model": trial.noise.model,
            "backbone": trial.backbone_label,
            "noise_ratio": trial.noise_ratio,
            "seed": trial.seed,
            "noise_seed": trial.noise_seed,
            "warmup_epochs": trial.hyper.get("warmup_epochs", 0),
            "clean_data": method.uses_clean_data,
            "ground_truth": method.uses_ground_truth,
        }
        line |= {m: recorded.get(f"test/{m}", np.nan) for m in MEASURES}
        line |= {
            m: recorded[f"test/{m}"] for m in (*FOLD_MEASURES, *ECCV_MEASURES) if f"test/{m}" in recorded
        }
        line |= {f"last_{m}": recorded.get(f"last/{m}", np.nan) for m in MEASURES}
        line |= {
            "dev_rsum": recorded.get("dev/best_rsum", np.nan),
            "best_epoch": recorded.get("dev/best_epoch", np.nan),
        }
        line |= {m: recorded.get(f"detection/{m}", np.nan) for m in DETECTION}
        line |= {"realised_ratio": recorded.get("noise/realised_ratio", np.nan)}
        line |= {name: recorded.get(metric, np.nan) for name, metric in COSTS.items()}
        line |= {
            "peak_memory_mb": recorded.get("cost/peak_gpu_mb", recorded.get("cost/peak_memory_mb", np.nan)),
            "noise_digest": record.tags.get("noise_digest", "") if record else "",
            "failure": record.tags.get("failure", "") if record else "",
        }
        lines.append(line)
    return pd.DataFrame(lines)


def with_chance(frame: pd.DataFrame, source: Source) -> pd.DataFrame:
    """The frame with columns `chance` (expected rSum of a random ranking of the test split; NaN where no run
    recorded its groups) and `collapsed` (finished, and close to chance level).
    """
    chance_of = {}
    for name, part in frame[frame["done"]].groupby("dataset"):
        for run in part["run"]:
            # a lost artifact, or a record from before the groups were kept
            with contextlib.suppress(StoreError, KeyError):
                rankings = source.read(run, "test_rankings.npz")
                chance_of[name] = chance_rsum(rankings["i2t_group"], rankings["t2i_group"])
                break
    frame = frame.assign(chance=frame["dataset"].map(chance_of).astype(float))
    return frame.assign(collapsed=collapsed(frame, "rsum"))


def collapsed(frame: pd.DataFrame, measure: str) -> pd.Series:
    """Whether the rSum of each trial (`rsum`, `last_rsum`) is close to that of a random ranking."""
    return frame[measure] - frame["chance"] <= COLLAPSED * (PERFECT - frame["chance"])


def cells(frame: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Mean, sd (ddof 1), n and planned of a measure, indexed by (row, noise_ratio); planned is 0 where a row
    is not planned at a ratio.
    """
    grouped = frame.groupby(["row", "noise_ratio"], sort=False)[measure]
    table = grouped.agg(mean="mean", sd=lambda x: x.std(ddof=1), n="count", planned="size")
    planned_cells = pd.MultiIndex.from_product(
        [frame["row"].unique(), frame["noise_ratio"].unique()], names=table.index.names
    )
    table = table.reindex(planned_cells)
    return table.fillna({"n": 0, "planned": 0}).astype({"n": int, "planned": int})
