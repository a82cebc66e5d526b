"""The tidy frame of a sweep, the labels of its rows, and the aggregation of cells over seeds."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pandas as pd

from harness.config.external import ExternalTrial
from harness.config.labels import place_labels, row_labels
from harness.config.search import judges_before, own_stage, warmup_epochs
from harness.config.trial import Trial
from harness.evaluation.coco import ECCV_MEASURES, FOLD_MEASURES
from harness.evaluation.metrics import DETECTION, PERFECT, RECALLS, chance_rsum
from harness.record.types import StoreError, SweepRecord, TrialRecord
from harness.report.source import Source
from methods import FAMILIES

MEASURES = (*RECALLS, "rsum")
MEAN = -1.0
"""In place of a noise ratio: the mean over all of them."""
TRACKS = ("one network", "several networks")
"""Rows that may be compared with each other."""
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
    """One line for each planned trial, finished or not; by family, and within one in the order of the plan.

    Columns: trial, run, status, done, method, family, row (method and what else varies), data set, noise (as
    text), granularity, noise model, backbone, noise_ratio, seed, noise_seed, perturbed, warm-up epochs and
    the share of the learning rate after them (`own_stage`), the recalls and rsum of the best dev epoch (of
    MS-COCO also `1k_` and `eccv_` ones), the same with `last_` of the last epoch, dev_rsum and last_dev_rsum,
    best_epoch, share and purity of what was trained on and detection scores (last epoch), realised ratio,
    costs, and whether the method uses clean data or the ground truth, or is an external row.
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
            "family": method.family,
            "row": labels[trial.id],
            "dataset": data[trial.id],
            "noise": noise[trial.id],
            "granularity": _granularity(trial, record),
            "noise_model": trial.noise.model,
            "backbone": trial.backbone_label,
            "noise_ratio": trial.noise_ratio,
            "seed": trial.seed,
            "noise_seed": trial.noise_seed,
            "perturbed": trial.perturbed,
            "warmup_epochs": warmup_epochs(trial),
            "restarts": trial.hyper.get("restarts") or 0,
            "aligned": judges_before(trial),
            "own_stage": own_stage(trial),
            "clean_data": method.uses_clean_data,
            "ground_truth": method.uses_ground_truth,
            "external": isinstance(trial, ExternalTrial),
        }
        line |= {m: recorded.get(f"test/{m}", np.nan) for m in MEASURES}
        line |= {
            m: recorded[f"test/{m}"] for m in (*FOLD_MEASURES, *ECCV_MEASURES) if f"test/{m}" in recorded
        }
        line |= {f"last_{m}": recorded.get(f"last/{m}", np.nan) for m in MEASURES}
        line |= {
            f"last_{m}": recorded[f"last/{m}"]
            for m in (*FOLD_MEASURES, *ECCV_MEASURES)
            if f"last/{m}" in recorded
        }
        line |= {
            "dev_rsum": recorded.get("dev/best_rsum", np.nan),
            "last_dev_rsum": recorded.get("dev/rsum", np.nan),
            "best_epoch": recorded.get("dev/best_epoch", np.nan),
        }
        line |= {k: recorded.get(f"trained_on/{k}", np.nan) for k in ("share", "purity")}
        line |= {m: recorded.get(f"detection/{m}", np.nan) for m in DETECTION}
        line |= {"realised_ratio": recorded.get("noise/realised_ratio", np.nan)}
        line |= {name: recorded.get(metric, np.nan) for name, metric in COSTS.items()}
        line |= {
            "peak_memory_mb": recorded.get("cost/peak_gpu_mb", recorded.get("cost/peak_memory_mb", np.nan)),
            "noise_digest": record.tags.get("noise_digest", "") if record else "",
            "device": record.tags.get("device", "") if record else "",
            "failure": record.tags.get("failure", "") if record else "",
        }
        lines.append(line)
    lines.sort(key=lambda line: FAMILIES.index(line["family"]))
    return pd.DataFrame(lines)


def _granularity(trial: Trial, record: TrialRecord | None) -> str:
    """What moves to another image: of noise from a file what the file says, once a trial has read it."""
    told = record.tags.get("noise_granularity", "") if record else ""
    return told if trial.noise.model == "from_file" and told not in ("", "none") else trial.noise_granularity


def primary(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame of `tidy` in the words of the protocol: measures are of the last epoch, and those of the
    epoch with the best dev rSum begin with `selected_`. With the column `track`: whether one network or
    several are averaged at test.
    """
    last = [c for c in frame if c.startswith("last_")]
    names = {c.removeprefix("last_"): f"selected_{c.removeprefix('last_')}" for c in last}
    frame = frame.rename(columns=names).rename(columns={c: c.removeprefix("last_") for c in last})
    several = frame.groupby("row")["networks"].transform("max") > 1
    return frame.assign(track=np.where(several, TRACKS[1], TRACKS[0]))


def over_noise_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with one line for each independent result: where seeds are crossed with noise seeds, results
    of one seed share a model's seed, and those of one noise seed an index, so each seed has the mean over its
    noise seeds (NaN until it has all). Unchanged where every seed has one noise seed, or every noise seed one
    seed.
    """
    keys = ["dataset", "noise", "row", "noise_ratio", "seed", "perturbed"]
    pairs = frame[["seed", "noise_seed"]].drop_duplicates()
    if pairs["seed"].is_unique or pairs["noise_seed"].is_unique:
        return frame
    groups = frame.groupby(keys, sort=False)
    lines = groups.first()
    numbers = [c for c in frame.select_dtypes("number") if c not in (*keys, "noise_seed")]
    lines[numbers] = groups[numbers].mean().where(groups[numbers].count().eq(groups.size(), axis=0))
    lines["trial"] = groups["trial"].agg(" ".join)  # a mean is none of its trials
    for flag in {"done", "repeated"} & set(frame):
        lines[flag] = groups[flag].all()
    for flag in {"collapsed", "in_warmup"} & set(frame):
        lines[flag] = groups[flag].any()
    return lines.reset_index()[list(frame)]


def with_mean(frame: pd.DataFrame, measure: str) -> pd.DataFrame:
    """The frame with a line for each row and seed more, of its mean over the noise ratios, where it has all
    of them (NaN until it has); their noise ratio is `MEAN`. Unchanged with one ratio.
    """
    ratios = frame["noise_ratio"].nunique()
    if ratios < 2:
        return frame
    groups = frame.groupby(["row", "seed", "noise_seed"], sort=False)
    lines = groups.first().assign(**{measure: groups[measure].mean()})
    complete = groups[measure].count() == ratios
    planned = groups.size() == ratios
    lines.loc[~complete, measure] = np.nan
    return pd.concat([lines[planned].reset_index().assign(noise_ratio=MEAN), frame], ignore_index=True)


def needs(part: pd.DataFrame) -> str:
    """What a row needs beside the training pairs and one network, of its lines in the frame of `tidy`."""
    networks, warmup, restarts = (part[k].max() for k in ("networks", "warmup_epochs", "restarts"))
    texts = {
        "the truth": part["ground_truth"].any(),
        "clean pairs": part["clean_data"].any(),
        f"{networks:g} networks": networks > 1,
        f"{warmup:g} warm-up epochs".replace("1 warm-up epochs", "1 warm-up epoch"): warmup > 0,
        f"{restarts:g} restarts".replace("1 restarts", "1 restart"): restarts > 0,
        "aligned weights": part["aligned"].any(),
        "further passes": (part["method_pairs_per_second"] > 0).any(),
    }
    return ", ".join(text for text, needed in texts.items() if needed) or "–"


def heading(ratio: float) -> str:
    """The head of a column of a noise ratio, or of the mean over them."""
    return "mean over ratios" if ratio == MEAN else f"noise {ratio:g}"


def with_chance(frame: pd.DataFrame, source: Source) -> pd.DataFrame:
    """The frame with columns `chance` (expected rSum of a random ranking of the test split; NaN where no run
    recorded its groups) and `collapsed` (finished, and close to chance level).
    """
    chance_of = {}
    for name, part in frame[frame["done"]].groupby("dataset"):
        for run in part["run"]:
            # a lost artifact, or a record from before the groups were kept
            with contextlib.suppress(StoreError, KeyError):
                rankings = source.read(run, "test_rankings.npz")  # which older records have too
                chance_of[name] = chance_rsum(rankings["i2t_group"], rankings["t2i_group"])
                break
    frame = frame.assign(chance=frame["dataset"].map(chance_of).astype(float))
    return frame.assign(collapsed=collapsed(frame, "rsum"))


def collapsed(frame: pd.DataFrame, measure: str) -> pd.Series:
    """Whether the rSum of each trial (`rsum`, `selected_rsum`) is close to that of a random ranking."""
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
