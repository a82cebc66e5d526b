"""What is installed: a wheel outside the checkout runs every command, and one without its extras is small and
reads, reports and evaluates.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from harness.__main__ import DOORS
from harness.config.sweep_file import read_sweep_file
from tests import layouts
from tests.sweep.running import run_sweep, write

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
CONSTRAINTS = ROOT / "constraints.txt"
MOST_MEGABYTES = 600
BUILT_FROM = (
    *("harness", "methods", "results", "sweeps"),
    *("docs/assets/katex", "pyproject.toml", "README.md", "LICENSE"),
)


def needed(requirements: list[str]) -> set[str]:
    """The distributions that requirements install here, with all that these require."""
    found: set[str] = set()
    waiting = [(Requirement(text), "") for text in requirements]
    seen = set()
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in ("", *requirement.extras):
            if (name, wanted) in seen:
                continue
            seen.add((name, wanted))
            found.add(name)
            with contextlib.suppress(PackageNotFoundError):  # an extra that this environment does not have
                waiting += [(Requirement(text), wanted) for text in distribution(name).requires or []]
    return found


def test_the_constraints_pin_all_that_is_installed():
    """By the requirements of what is installed here."""
    pinned = {canonicalize_name(line.split("==")[0]) for line in CONSTRAINTS.read_text().split()}
    own = [text for text in (*EXTRAS["train"], *EXTRAS["test"]) if PROJECT["project"]["name"] not in text]
    assert needed([*PROJECT["project"]["dependencies"], *own]) - pinned == set()


def test_the_tests_have_what_training_needs():
    assert f"{PROJECT['project']['name']}[train]" in EXTRAS["test"]


def test_what_sweeps_that_ship_take_from_searches_ships():
    """`settings_from` names a directory of `results/`, which a wheel has only if it is packaged."""
    searches = {
        name
        for file in (ROOT / "sweeps").glob("*.yaml")
        for name in np.atleast_1d(read_sweep_file(file)[0].get("settings_from", []))
    }
    packaged = PROJECT["tool"]["setuptools"]["package-dir"]
    assert not searches or packaged["harness.shipped.results"] == "results"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, as a build leaves its own files behind."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, copy / name)
    pip("wheel", "--no-deps", "--wheel-dir", str(out), str(copy))
    (file,) = out.glob("*.whl")
    return file


def pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "-q", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def command(python: Path | str, folder: Path, *words: str, path: Path | None = None):
    """Run `python -m ...` in a folder; no module is found there but what is installed, or lies in `path`."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    if path:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [str(python), *words],
        cwd=folder,
        env={**environment, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    """The wheel in a directory of its own; what it needs is that of this environment."""
    folder = tmp_path_factory.mktemp("unpacked")
    pip("install", "--no-deps", "--no-compile", "--target", str(folder), str(wheel))
    return folder


@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_every_command_runs_from_a_wheel_in_an_empty_folder(unpacked, tmp_path):
    where = command(
        sys.executable, tmp_path, "-c", "import harness, methods; print(harness.__file__)", path=unpacked
    )
    assert Path(where.stdout.strip()).is_relative_to(unpacked)
    for door in {text.split()[0] for text in DOORS}:
        told = command(sys.executable, tmp_path, "-m", door, "--help", path=unpacked)
        assert told.returncode == 0, told.stderr
    for sweep in ("quickstart", "emoji"):  # the second takes its settings from a search, whose result ships
        run = command(sys.executable, tmp_path, "-m", "harness.sweep", sweep, "--dry-run", path=unpacked)
        assert run.returncode == 0, run.stdout + run.stderr
    run = command(
        sys.executable, tmp_path, "-m", "harness.train", "quickstrat", "--trial", "0", path=unpacked
    )
    assert run.returncode == 2
    assert "there is no sweep 'quickstrat'; did you mean 'quickstart'" in run.stderr


@pytest.fixture(scope="module")
def light(wheel, tmp_path_factory):
    """An environment of its own with the wheel and its base dependencies; the Python in it."""
    folder = tmp_path_factory.mktemp("light")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    pip(
        *("--python", str(python), "install", "--no-compile", "--no-warn-script-location"),
        *("-c", str(CONSTRAINTS), str(wheel)),
    )
    return python


@pytest.fixture(scope="module")
def swept(tmp_path_factory, feature_cache):
    """A directory with the store, the bundle and the data of a finished sweep."""
    folder = tmp_path_factory.mktemp("swept")
    layouts.own_table(folder / "photos")
    changes = {
        "grid": {"dataset": ["table"]},
        "fixed": {"dataset_options": {"folder": "photos", "held_out": 6}},
    }
    with contextlib.chdir(folder):
        assert run_sweep([write(folder, "clip", "small_loss", name="made", **changes)]) == 0
    return folder


@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_a_light_install_is_small_and_has_no_torch(light, tmp_path):
    """As `du` counts, without compiled bytecode."""
    files = [f for f in light.parents[1].rglob("*") if not f.is_symlink()]
    megabytes = sum(f.stat().st_blocks * 512 for f in files) / 1e6
    print(f"light install: {megabytes:.0f} MB")
    assert megabytes < MOST_MEGABYTES
    for module in ("torch", "ray", "open_clip", "transformers"):
        assert command(light, tmp_path, "-c", f"import {module}").returncode == 1


@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_a_light_install_reads_reports_and_evaluates(light, swept, tmp_path):
    for name in ("results", "photos"):
        shutil.copytree(swept / name, tmp_path / name)
    run = command(light, tmp_path, "-m", "harness")
    assert run.returncode == 0, run.stderr
    run = command(light, tmp_path, "-m", "harness.results", "check", "results/made")
    assert run.returncode == 0, run.stderr
    assert "2 planned, 2 finished" in run.stderr
    assert "trial ids, facts of methods and what a search found are not checked" in run.stderr
    run = command(light, tmp_path, "-m", "harness.report", "made")
    assert run.returncode == 0, run.stderr
    ours, theirs = ((f / "reports" / "made" / "report.md").read_text() for f in (tmp_path, swept))
    assert tables(ours) == tables(theirs)
    run = command(light, tmp_path, "-m", "harness.site", "--out", "site")
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "site" / "index.html").is_file()
    np.save(tmp_path / "found.npy", np.eye(6).repeat(2, axis=1))
    run = command(
        light,
        tmp_path,
        "-m",
        "harness.evaluate",
        "found.npy",
        "--captions-per-image",
        "2",
        "--json",
        "o.json",
    )
    assert run.returncode == 0, run.stderr
    assert "600.00" in run.stdout


@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_a_light_install_reads_a_store_and_says_what_it_cannot_do(light, swept):
    run = command(light, swept, "-m", "harness.sweep", "made.yaml", "--status")
    assert run.returncode == 0, run.stderr
    assert "2 done" in run.stderr
    run = command(light, swept, "-m", "harness.sweep", "made.yaml", "--dry-run")
    assert run.returncode == 2
    assert re.search(r"this needs the extra `train`, for torch is not installed: pip install ", run.stderr)
    assert "Traceback" not in run.stderr


def tables(report: str) -> list[str]:
    """The rows of a report's tables."""
    return [line for line in report.splitlines() if line.startswith("|")]
