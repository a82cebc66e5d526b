"""From records to numbers: the tidy frame of a sweep, and what tables say of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from harness.coco import ECCV_MEASURES, FOLD_MEASURES
from harness.metrics import RECALLS
from harness.spec import Trial, method_class
from harness.tracking import SweepRecord, parameters

_NOT_A_SETTING = ("noise_ratio", "seed", "noise_seed")
MEASURES = (*RECALLS, "rsum")


def tidy(sweep: SweepRecord) -> pd.DataFrame:
    """One line for each planned trial, finished or not.

    Columns: trial, run, status, done, method, row (method and what else varies), data set, noise (in words), granularity, noise model, backbone, noise_ratio,
    seed, noise_seed, the recalls and rsum of the best dev epoch (of MS-COCO also `1k_` and `eccv_` ones), the same with `last_` of the last epoch, dev_rsum,
    best_epoch, auroc (last epoch), realised ratio, cost, and whether the method uses clean data or the truth.
    """
    labels = row_labels(sweep.planned)
    lines = []
    for trial in sweep.planned:
        record = sweep.records.get(trial.id)
        found = record.metrics if record and record.done else {}
        cls = method_class(trial.method)
        line: dict[str, Any] = {
            "trial": trial.id,
            "run": record.run_id if record else "",
            "status": record.status if record else "MISSING",
            "done": bool(record and record.done),
            "method": trial.method,
            "row": labels[trial.id],
            "dataset": trial.dataset_label,
            "noise": trial.noise_label,
            "granularity": trial.noise_granularity,
            "noise_model": trial.noise.model,
            "backbone": trial.backbone_label,
            "noise_ratio": trial.noise_ratio,
            "seed": trial.seed,
            "noise_seed": trial.noise_seed,
            "clean_data": cls.uses_clean_data,
            "ground_truth": cls.uses_ground_truth,
        }
        line |= {m: found.get(f"test/{m}", np.nan) for m in MEASURES}
        line |= {m: found[f"test/{m}"] for m in (*FOLD_MEASURES, *ECCV_MEASURES) if f"test/{m}" in found}
        line |= {f"last_{m}": found.get(f"last/{m}", np.nan) for m in MEASURES}
        line |= {
            "dev_rsum": found.get("dev/best_rsum", np.nan),
            "best_epoch": found.get("dev/best_epoch", np.nan),
            "auroc": found.get("detection/auroc", np.nan),
            "realised_ratio": found.get("noise/realised_ratio", np.nan),
            "seconds": found.get("cost/seconds", np.nan),
            "pairs_per_second": found.get("cost/pairs_per_second", np.nan),
            "peak_memory_mb": found.get("cost/peak_gpu_mb", found.get("cost/peak_memory_mb", np.nan)),
            "networks": found.get("cost/networks_at_test", np.nan),
            "parameters": found.get("cost/parameters", np.nan),
            "noise_digest": record.tags.get("noise_digest", "") if record else "",
            "failure": record.tags.get("failure", "") if record else "",
        }
        lines.append(line)
    return pd.DataFrame(lines)


def settings(trial: Trial) -> dict[str, str]:
    """What defines a table row: all parameters but ratio and seeds; hyper-parameters without the method's name."""
    short = trial.method.rpartition(":")[2]
    return {k.removeprefix(f"{short}."): str(v) for k, v in parameters(trial).items() if k not in _NOT_A_SETTING}


def row_labels(trials: tuple[Trial, ...]) -> dict[str, str]:
    """A short label for each trial's row: the method, and the settings that vary among the method's trials."""
    by_method: dict[str, list[Trial]] = {}
    for trial in trials:
        by_method.setdefault(trial.method, []).append(trial)
    short = [method.rpartition(":")[2] for method in by_method]
    names = {m: m if short.count(s) > 1 else s for m, s in zip(by_method, short, strict=True)}
    labels = {}
    for method, members in by_method.items():
        own = [settings(t) for t in members]
        keys = dict.fromkeys(k for s in own for k in s)
        varied = [k for k in keys if len({s.get(k) for s in own}) > 1 and k not in ("dataset", "noise_granularity") and not k.startswith("noise.")]
        varied = [k for k in varied if not (k == "backbone" and any(v.startswith("backbone.") for v in varied))]
        for trial, values in zip(members, own, strict=True):
            extra = ", ".join(f"{k.removeprefix('backbone.')}={values.get(k, 'default')}" for k in varied)
            labels[trial.id] = f"{names[method]} ({extra})" if extra else names[method]
    return labels


def shared_and_own_settings(trials: tuple[Trial, ...]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Settings that most rows share, and for each row those in which it differs (and its hyper-parameters)."""
    labels = row_labels(trials)
    rows = {labels[t.id]: settings(t) for t in trials}
    keys = list(dict.fromkeys(k for values in rows.values() for k in values))
    shared: dict[str, str] = {}
    for key in keys:
        values = [v[key] for v in rows.values() if key in v]
        if key not in ("method",) and len(values) == len(rows):
            shared[key] = max(set(values), key=values.count)
    own = {row: {k: v for k, v in values.items() if k != "method" and shared.get(k) != v} for row, values in rows.items()}
    return shared, own


def cells(frame: pd.DataFrame, measure: str) -> pd.DataFrame:
    """mean, sd (ddof 1), n and planned of a measure for each (row, noise_ratio); planned 0 where a row has no such ratio."""
    grouped = frame.groupby(["row", "noise_ratio"], sort=False)[measure]
    found = grouped.agg(mean="mean", sd=lambda x: x.std(ddof=1), n="count", planned="size")
    every = pd.MultiIndex.from_product([frame["row"].unique(), frame["noise_ratio"].unique()], names=found.index.names)
    found = found.reindex(every)
    return found.fillna({"n": 0, "planned": 0}).astype({"n": int, "planned": int})
