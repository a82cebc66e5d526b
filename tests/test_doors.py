"""Commands open at once: what each of them loads."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.__main__ import DOORS
from harness.__main__ import main as list_doors
from tests import layouts
from tests.sweep.running import run_sweep, write

ROOT = Path(__file__).parents[1]
HEAVY = {
    "torch",
    "ray",
    "mlflow",
    "numpy",
    "pandas",
    "pyarrow",
    "matplotlib",
    "scipy",
    "sklearn",
    "pydantic",
    "PIL",
}
REPORT = """
import json, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code
print("LOADED", json.dumps([code, sorted({m.partition(".")[0] for m in sys.modules})]))
"""


def loaded(*command: str, cwd: Path = ROOT) -> tuple[int, set[str]]:
    """Run a command; its exit code, and the top-level modules that it has loaded at its end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", REPORT, *command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    line = next((x for x in run.stdout.splitlines() if x.startswith("LOADED ")), None)
    assert line, run.stderr[-2000:]
    code, modules = json.loads(line.removeprefix("LOADED "))
    return code, set(modules)


def test_the_doors_are_listed_without_loading_anything():
    """Each with a line, and none that is not there."""
    code, modules = loaded("harness")
    assert code == 0
    assert not HEAVY & modules
    packages = {f"harness.{p.parent.name}" for p in (ROOT / "harness").glob("*/__main__.py")}
    commands = {f"harness.{p.stem}" for p in (ROOT / "harness").glob("[a-z]*.py")}
    assert {command.split()[0] for command in DOORS} == packages | commands


def test_a_door_that_is_asked_for_without_its_dot_is_told(capsys):
    assert list_doors(["evaluate", "s.npy"]) == 2
    assert "python -m harness.evaluate s.npy?" in capsys.readouterr().err


@pytest.mark.parametrize("door", ["sweep", "train", "report", "site", "data", "bench", "evaluate", "results"])
def test_help_loads_nothing_heavy(door):
    code, modules = loaded(f"harness.{door}", "--help")
    assert code == 0
    assert not modules & HEAVY


@pytest.fixture(scope="module")
def swept(tmp_path_factory, feature_cache):
    """A directory with a finished sweep of two methods."""
    folder = tmp_path_factory.mktemp("doors")
    layouts.own_table(folder / "photos")
    options = {"folder": "photos", "held_out": 6}
    changes = {"grid": {"dataset": ["table"]}, "fixed": {"dataset_options": options}}
    with contextlib.chdir(folder):
        assert run_sweep([write(folder, "clip", "small_loss", name="doors", **changes)]) == 0
    return folder


def test_a_report_loads_neither_torch_nor_ray(swept):
    code, modules = loaded("harness.report", "doors", cwd=swept)
    assert code == 0
    assert not modules & {"torch", "ray", "accelerate", "open_clip", "transformers"}


def test_the_site_loads_neither_torch_nor_ray(swept):
    code, modules = loaded("harness.site", "--out", "site", cwd=swept)
    assert code == 0
    assert (swept / "site" / "bundles" / "doors.zip").is_file()
    assert not modules & {"torch", "ray", "mlflow", "accelerate", "matplotlib", "open_clip"}


def test_the_status_of_a_planned_sweep_loads_neither_torch_nor_ray(swept):
    code, modules = loaded("harness.sweep", "doors.yaml", "--status", cwd=swept)
    assert code == 0
    assert not modules & {"torch", "ray", "accelerate", "matplotlib", "open_clip"}


def test_a_dry_run_loads_no_ray(swept):
    code, modules = loaded("harness.sweep", "doors.yaml", "--dry-run", cwd=swept)
    assert code == 0
    assert not modules & {"ray", "accelerate", "matplotlib"}


def test_status_follows_the_file_once_it_has_changed(swept):
    """The plan in the store is of another text then, so the file is expanded."""
    changed = swept / "doors.yaml"
    before = changed.read_text()
    try:
        changed.write_text(before.replace("seed:\n  - 0", "seed:\n  - 0\n  - 1"))
        code, modules = loaded("harness.sweep", "doors.yaml", "--status", cwd=swept)
        assert code == 1  # the trials of seed 1 are to run
        assert "torch" in modules
    finally:
        changed.write_text(before)
