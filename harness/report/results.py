"""The tidy frame of a sweep, the labels of its rows, and the aggregation of cells over seeds."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.config.trial import Trial
from harness.evaluation.coco import ECCV_MEASURES, FOLD_MEASURES
from harness.evaluation.metrics import DETECTION, PERFECT, RECALLS, chance_rsum
from harness.record.types import StoreError, SweepRecord
from harness.report.source import Source

_NOT_A_SETTING = ("noise_ratio", "seed", "noise_seed")
_OF_THE_DATA = ("dataset", "dataset.", "noise", "noise.", "noise_granularity")
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
    data = _disambiguated({t.id: (t.dataset_label, t.dataset_options) for t in sweep.planned})
    noise = _disambiguated({t.id: (t.noise_label, t.noise.model_dump(mode="json")) for t in sweep.planned})
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


def _disambiguated(given: Mapping[str, tuple[str, Mapping[str, Any]]]) -> dict[str, str]:
    """Labels by trial: where two that differ in their settings would be called the same (and pooled as
    seeds), with what differs.
    """
    of_label: dict[str, list[Mapping[str, Any]]] = {}
    for label, settings in given.values():
        of_label.setdefault(label, []).append(settings)
    differing = {}
    for label, members in of_label.items():
        keys = sorted({k for settings in members for k in settings})
        differing[label] = [k for k in keys if len({repr(settings.get(k)) for settings in members}) > 1]
    return {
        trial: f"{label} ({', '.join(f'{k}={settings.get(k)}' for k in differing[label])})"
        if differing[label]
        else label
        for trial, (label, settings) in given.items()
    }


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


def settings(trial: Trial) -> dict[str, str]:
    """The settings that define a row of a table: all parameters except ratio and seeds; hyper-parameters
    without the name of the method.
    """
    short = trial.method.rpartition(":")[2]
    return {
        k.removeprefix(f"{short}."): str(v) for k, v in trial.parameters().items() if k not in _NOT_A_SETTING
    }


def of_the_data(key: str) -> bool:
    """Whether a setting belongs to the data set or its noise, and so does not define a row."""
    return key in _OF_THE_DATA or key.startswith(("dataset.", "noise."))


def row_labels(trials: Sequence[Trial], *, full: bool = False) -> dict[str, str]:
    """A short label for each trial's row: the method, and the settings that vary among the method's trials.

    A setting that has one value in at least half of the method's rows is named where it has another; with
    `full` everywhere.
    """
    by_method: dict[str, list[Trial]] = {}
    for trial in trials:
        by_method.setdefault(trial.method, []).append(trial)
    short = [method.rpartition(":")[2] for method in by_method]
    names = {m: m if short.count(s) > 1 else s for m, s in zip(by_method, short, strict=True)}
    labels = {}
    for method, members in by_method.items():
        settings_of = [settings(t) for t in members]
        keys, usual = varied(settings_of), {} if full else _usual(settings_of)
        for trial, values in zip(members, settings_of, strict=True):
            extra = ", ".join(
                f"{k.removeprefix('backbone.')}={values.get(k, 'default')}"
                for k in keys
                if values.get(k, "default") != usual.get(k)
            )
            labels[trial.id] = f"{names[method]} ({extra})" if extra else names[method]
    return labels


def varied(rows: Sequence[dict[str, str]]) -> list[str]:
    """The settings that differ among rows, except those of the data; a backbone is identified by its parts
    where these differ.
    """
    keys = dict.fromkeys(k for row in rows for k in row)
    differing = [
        k
        for k in keys
        if len({row.get(k) for row in rows}) > 1 and (k.startswith("dataset.") or not of_the_data(k))
    ]
    return [
        k for k in differing if not (k == "backbone" and any(v.startswith("backbone.") for v in differing))
    ]


def _usual(rows: Sequence[dict[str, str]]) -> dict[str, str]:
    """For each varied setting, the value that at least half of the distinct rows have, if it is unique."""
    keys = varied(rows)
    distinct = {tuple(row.get(k, "default") for k in keys) for row in rows}
    usual = {}
    for index, key in enumerate(keys):
        values = [row[index] for row in distinct]
        common = [v for v in set(values) if 2 * values.count(v) >= len(values)]
        if len(common) == 1 and len(values) > 2:
            usual[key] = common[0]
    return usual


def shared_and_own_settings(
    trials: Sequence[Trial], *, full: bool = False
) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Settings that most rows share, and for each row those in which it differs (and its
    hyper-parameters).
    """
    labels = row_labels(trials, full=full)
    rows = {labels[t.id]: settings(t) for t in trials}
    keys = list(dict.fromkeys(k for values in rows.values() for k in values))
    shared: dict[str, str] = {}
    for key in keys:
        values = [v[key] for v in rows.values() if key in v]
        if key not in ("method",) and len(values) == len(rows):
            shared[key] = max(dict.fromkeys(values), key=values.count)
    own = {
        row: {k: v for k, v in values.items() if k != "method" and shared.get(k) != v}
        for row, values in rows.items()
    }
    return shared, own


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
