"""Bundles for the site's tests: sweeps that were really run, in miniature."""

from __future__ import annotations

import contextlib
from pathlib import Path

from tests.sweep.running import run_sweep, write

ROOT = Path(__file__).parents[2]


def sweep_folder(folder: Path, *methods: str) -> Path:
    """A directory in which a sweep `made` was run: two noise ratios, two seeds, one epoch."""
    with contextlib.chdir(folder):
        grid = {"noise_ratio": [0.0, 0.4], "seed": [0, 1]}
        assert run_sweep([write(folder, *methods, name="made", grid=grid, fixed={"epochs": 1})]) == 0
    return folder
