"""Records of sweeps that were never run: stores as large as one likes, in seconds."""

from __future__ import annotations

import numpy as np

from harness.config.labels import run_labels
from harness.config.sweep_file import Sweep
from harness.evaluation.metrics import RECALLS
from harness.record.store import Store
from harness.record.types import SweepHandle

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
        best |= {"cost/networks_at_test": 1.0, "noise/realised_ratio": trial.noise_ratio}
        run_id = store.create_run(handle, trial, {**labels[trial.id], "attempts": "1"})
        store.client.log_curves(run_id, {k: dict(enumerate(map(float, v))) for k, v in curves.items()})
        store.client.log(run_id, metrics=best)
        store.client.set_status(run_id, "FINISHED")
    return handle
