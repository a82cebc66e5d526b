"""Bundles for the site's tests: of a sweep, and of an external row beside it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import yaml

from harness.record.external import import_row
from tests import recorded, small
from tests.config.test_external import row_with

ROOT = Path(__file__).parents[2]
RATIOS, SEEDS = (0.2, 0.4), (0, 1)


def results(folder: Path, *methods: str) -> Path:
    """A directory of bundles: `made`, of two noise ratios and two seeds, and one external row."""
    made = folder / "results" / "made"
    sweep = small.sweep(*methods, name="made", grid={"noise_ratio": list(RATIOS), "seed": list(SEEDS)})
    recorded.bundle(sweep, made)
    recorded.program(sweep, folder)
    with contextlib.chdir(folder):
        Path("row.yaml").write_text(yaml.safe_dump(row_with()))
        import_row(Path("row.yaml"))
    return folder / "results"
