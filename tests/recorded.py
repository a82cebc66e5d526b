"""Records of sweeps that were never run: stores as large as one likes, and bundles, in seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from harness import PROTOCOL_VERSION
from harness.config.labels import run_labels
from harness.config.sweep_file import Sweep
from harness.data import load_dataset
from harness.data.base import Split
from harness.evaluation.given import evaluate
from harness.evaluation.metrics import RECALLS
from harness.noise.files import write_index
from harness.record.arrays import save_arrays
from harness.record.bundle import Bundle, record_line
from harness.record.lines import records_text
from harness.record.store import Store, plan_of
from harness.record.types import SweepHandle, TrialRecord

EPOCHS = 8


def fill(store: Store, sweep: Sweep, *, file: str = "sweeps/many.yaml", seed: int = 0) -> SweepHandle:
    """A finished record for each trial that has none; better methods are worse at higher noise."""
    handle = store.open_sweep(sweep, file)
    known, labels = store.records(handle, sweep.trials), run_labels(sweep.trials)
    methods = list(dict.fromkeys(t.method for t in sweep.trials))
    for trial in sweep.trials:
        if trial.id in known:
            continue
        draw = np.random.default_rng([seed, trial.seed, int(trial.id, 16) % 2**32])
        level = 60 + 5 * methods.index(trial.method) - 40 * trial.noise_ratio + draw.normal(0, 2)
        epochs = np.arange(EPOCHS)
        rise = 6 * level * (1 - np.exp(-(epochs + 1) / 2)) + draw.normal(0, 5, EPOCHS)
        curves = {
            "dev/rsum": rise,
            "train/loss": 4 * np.exp(-epochs / 3) + draw.normal(0, 0.05, EPOCHS),
            "detection/auroc": 0.5 + 0.4 * (1 - np.exp(-epochs / 2)) + draw.normal(0, 0.01, EPOCHS),
            "seconds/train": np.full(EPOCHS, 2.0),
        }
        best = {f"{part}/{m}": level for part in ("test", "last") for m in RECALLS}
        best |= {"test/rsum": 6 * level, "last/rsum": 6 * level - 5, "dev/best_rsum": float(rise.max())}
        best |= {"dev/best_epoch": float(rise.argmax()), "cost/seconds": 20 + 5 * methods.index(trial.method)}
        best |= {"cost/networks_at_test": float(trial.hyper.get("n_networks", 1))}
        best |= {"noise/realised_ratio": trial.noise_ratio}
        run_id = store.create_run(handle, trial, {**labels[trial.id], "attempts": "1"})
        points = {k: dict(enumerate(map(float, v))) for k, v in curves.items()}
        store.client.log_curves(run_id, points | {k: {0: v} for k, v in best.items()})
        store.client.set_status(run_id, "FINISHED")
    return handle


def similarities(split: Split, *, seed: int, ratio: float) -> np.ndarray:
    """Of a model that is better where there is less noise: float32 [images, captions]."""
    draw = np.random.default_rng([seed, round(100 * ratio)])
    match = split.image_group[:, None] == split.caption_group[None]
    return (draw.normal(size=match.shape) + (2 - 2 * ratio) * match).astype(np.float32)


def bundle(sweep: Sweep, folder: Path) -> Bundle:
    """A bundle without errors: a finished trial of each method, with ranks that give its recalls."""
    made = Bundle(sweep.name, folder)
    made.describe(plan_of(sweep), yaml.safe_dump(sweep.file.model_dump(mode="json", exclude_unset=True)))
    lines = []
    for number, trial in enumerate(sweep.trials):
        data = load_dataset(trial.dataset, **trial.dataset_options)
        test, noise = data["test"], trial.noise_index(data)
        groups = {"i2t_group": test.image_group, "t2i_group": test.caption_group}
        scores = similarities(test, seed=100 * number + trial.seed, ratio=trial.noise_ratio)
        found = evaluate(scores, *groups.values())
        metrics = {f"{part}/{k}": v for part in ("last", "test") for k, v in found.metrics.items()}
        networks = float(trial.hyper.get("n_networks", 1))
        metrics |= {"cost/seconds": 10.0 + number, "cost/networks_at_test": networks}
        metrics |= {"noise/realised_ratio": noise.realised}
        tags = {"protocol_version": str(PROTOCOL_VERSION), "noise_digest": noise.digest}
        tags |= {"data_fingerprint": trial.fingerprint(data)}
        lines.append(record_line(TrialRecord(trial, f"run-{trial.id}", "FINISHED", metrics, tags), {}))
        ranks = {**found.i2t.arrays("i2t"), **found.t2i.arrays("t2i")}
        save_arrays(folder / "arrays" / f"{trial.id}.npz", {f"last/{k}": v for k, v in ranks.items()})
        save_arrays(folder / "queries" / f"{tags['data_fingerprint']}.npz", groups)
        save_arrays(
            folder / "noise" / f"{noise.digest}.npz", {"image": noise.image, "matched": noise.matched}
        )
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "environment.json").write_text("[]\n")
    return made


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of a bundle, compressed or not."""
    return [json.loads(line) for line in records_text(folder).splitlines()]


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> str:
    """Change the first line of a bundle. Returns the id of its trial."""
    first, *others = lines_of(folder)
    change(first)
    (folder / "records.jsonl").write_text("".join(json.dumps(x) + "\n" for x in (first, *others)))
    return str(first["trial"])


def program(sweep: Sweep, folder: Path) -> None:
    """What a program that was run on the grid of a sweep leaves: `noise/RATIO_SEED.npy`, the indices it was
    given, and `out/RATIO_SEED_SPLIT.npy`, similarities.
    """
    for part in ("noise", "out"):
        (folder / part).mkdir(exist_ok=True)
    first = sweep.trials[0]
    data = load_dataset(first.dataset, **first.dataset_options)
    for trial in (t for t in sweep.trials if t.method == first.method):
        name = f"{trial.noise_ratio:g}_{trial.seed}"
        index = trial.noise_index(data).image
        write_index(index, data["train"], folder / "noise" / f"{name}.npy", "caption")
        for split in ("dev", "test"):
            scores = similarities(data[split], seed=trial.seed + 1000, ratio=trial.noise_ratio)
            np.save(folder / "out" / f"{name}_{split}.npy", scores)
