"""The examples do what they say, from their data to their last file."""

from __future__ import annotations

import ast
import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.record.bundle import Bundle
from harness.record.check import check_bundle
from tests import small
from tests.sweep.running import run_sweep, write
from tests.test_doors import loaded

ROOT = Path(__file__).parents[1]
EXTERNAL = ROOT / "examples" / "external"


@pytest.fixture(scope="module")
def place(tmp_path_factory, feature_cache):
    """A directory with small region features, and a sweep `regions` on them."""
    folder = tmp_path_factory.mktemp("examples")
    small.write_scan(folder / "data" / "emoji_precomp")
    options = {"folder": "data/emoji_precomp", "train_groups": 12}
    backbone = {**small.SGRAF, "module": "SGR"}
    fixed = {"dataset_options": options, "backbone": backbone, "epochs": 1, "batch_size": 8}
    grid = {"dataset": ["scan"], "noise_ratio": [0.4], "seed": [0]}
    with contextlib.chdir(folder):
        assert run_sweep([write(folder, "triplet", name="regions", grid=grid, fixed=fixed)]) == 0
    return folder


def test_a_program_of_its_own_becomes_a_row_beside_a_sweep(place):
    given = {"PYTHON": sys.executable, "RATIOS": "0.4", "SEEDS": "0", "TRAIN_GROUPS": "12"}
    environment = {**os.environ, **given, "COMMIT": "0123456", "PYTHONPATH": str(ROOT)}
    command = ["bash", str(EXTERNAL / "run.sh")]
    run = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    sweep = Bundle("regions", place / "results" / "regions")
    row = Bundle("two_tower", sweep.folder / "external" / "two_tower").sweep()
    (ours,), (theirs,) = sweep.sweep().records.values(), row.records.values()
    assert theirs.done
    assert theirs.trial.source.commit == "0123456"
    for tag in ("data_fingerprint", "noise_digest"):
        assert theirs.tags[tag] == ours.tags[tag]
    with contextlib.chdir(place):
        assert check_bundle(sweep.folder) == ([], [])
    code, modules = loaded("harness.results", "import", "data/two_tower/row.yaml", cwd=place)
    assert code == 0
    assert not modules & {"torch", "ray", "mlflow", "matplotlib"}


def test_the_program_is_short_and_imports_nothing_of_the_harness():
    text = (EXTERNAL / "two_tower.py").read_text()
    assert len(text.splitlines()) < 100
    nodes = list(ast.walk(ast.parse(text)))
    imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    assert {str(name).partition(".")[0] for name in imported} == {
        "argparse",
        "re",
        "pathlib",
        "numpy",
        "torch",
    }
