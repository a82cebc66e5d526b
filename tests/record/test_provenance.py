"""The digest that decides whether an interrupted trial resumes: of the code that makes numbers alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.record import provenance
from harness.record.provenance import code_digest, imported_modules, numeric_modules, syntax_digest, versions
from tests import small

ROOT = Path(__file__).parents[2]
# Imports what takes seconds once; each answer is a fork's, which has read no file of the checkout's yet.
ANSWER = """
import importlib, os, sys
from harness.config.trial import Trial
from harness.record.provenance import code_digest
for line in sys.stdin:
    if not os.fork():
        importlib.invalidate_caches()
        for method in ("clip", "npc", "mine:Mine", "own.mine:Mine"):
            trial = Trial(method=method, dataset="emoji", noise_ratio=0, seed=0, noise_seed=0)
            print(code_digest(trial), end=" ")
        print("torch" in sys.modules, flush=True)
        os._exit(0)
    os.wait()
"""
MINE = '''
from {helper} import SHARE
from methods.clip import Clip

class Mine(Clip):
    """A user's own."""
    share = SHARE
'''


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the code, with a method of the user's as a module and one in a package, and what these
    import.
    """
    folder = tmp_path_factory.mktemp("checkout")
    for package in ("harness", "methods"):
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "emoji", "icons")
        )
    (folder / "own").mkdir()
    (folder / "own" / "__init__.py").write_text("")
    for directory, helper in ((folder, "helper"), (folder / "own", ".helper")):
        (directory / "mine.py").write_text(MINE.format(helper=helper))
        (directory / "helper.py").write_text("SHARE = 0.3\n")
    return folder


@pytest.fixture(scope="module")
def digests(checkout):
    """The digests of four methods as the checkout is now."""
    with subprocess.Popen(
        [sys.executable, "-c", ANSWER], cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def ask():
            print(file=process.stdin, flush=True)
            *found, torch = process.stdout.readline().split()
            assert torch == "False", "it takes seconds to load, and nothing needs it to read a file"
            return found

        yield ask
        process.stdin.close()


@pytest.fixture(scope="module")
def before(digests):
    return digests()


@pytest.fixture
def edited(checkout, digests):
    """The digests after an edit of a file, which is undone."""

    def edit(file, change):
        path = checkout / file
        text = path.read_text()
        try:
            path.write_text(change(text))
            return digests()
        finally:
            path.write_text(text)

    return edit


NO_NUMBER = {
    "harness/training/trainer.py": lambda s: s + "\n# a comment\n",
    "harness/training/optimizers.py": lambda s: s.replace('"""The harness', '"""Our', 1),
    "methods/clip.py": lambda s: '"""Another docstring."""\n' + s.partition('"""\n')[2],
    "methods/newcomer.py": lambda s: "X = 1\n",
    "methods/__init__.py": lambda s: s.replace(
        "METHODS = {", 'METHODS = {"newcomer": "methods.newcomer:N",', 1
    ),
    **dict.fromkeys(
        (
            "harness/sweep/status.py",
            "harness/sweep/ray_launcher.py",
            "harness/report/write.py",
            "harness/record/store.py",
            "harness/config/sweep_file.py",
            "harness/config/resources.py",
            "harness/training/cost.py",
            "harness/lib/console.py",
            "harness/lib/watchdog.py",
            "harness/bench/methods.py",
            "harness/data_tools/check.py",
            "methods/mscn.py",
        ),
        lambda s: s + "\nX = 1\n",
    ),
}


def test_what_makes_no_number_of_a_trial_lets_it_resume(checkout, digests, before):
    """Comments, docstrings, status, reports, scheduling, the record, another method and a new one, all at
    once.
    """
    texts = {f: (checkout / f).read_text() if (checkout / f).exists() else None for f in NO_NUMBER}
    try:
        for file, change in NO_NUMBER.items():
            changed = change(texts[file] or "")
            assert changed != texts[file], file
            (checkout / file).write_text(changed)
        assert digests() == before
    finally:
        for file, text in texts.items():
            (checkout / file).write_text(text) if text is not None else (checkout / file).unlink()


@pytest.mark.parametrize(
    "file",
    [
        "harness/training/sampling.py",
        "harness/training/trainer.py",
        "harness/noise/inject.py",
        "harness/data/concepts.py",
        "harness/data/emoji.py",
        "harness/backbones/clip.py",
        "harness/evaluation/metrics.py",
        "harness/config/trial.py",
        "harness/lib/files.py",
        "methods/base.py",
        "methods/seeding.py",
        "methods/losses.py",
    ],
)
def test_what_makes_numbers_restarts_all(edited, before, file):
    assert not set(edited(file, lambda s: s + "\nX = 1\n")) & set(before)


def test_a_method_restarts_its_own_trials_only(edited, before):
    clip, npc, *mine = edited("methods/npc.py", lambda s: s + "\nX = 1\n")
    assert [clip, *mine] == [before[0], *before[2:]]
    assert npc != before[1]


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("mine.py", 2),
        ("helper.py", 2),  # by an absolute import
        ("own/mine.py", 3),
        ("own/helper.py", 3),  # by a relative import
        ("own/__init__.py", 3),  # which Python runs before the method's own file
    ],
)
def test_what_a_users_method_imports_is_part_of_it(edited, before, file, changed):
    after = edited(file, lambda s: s.replace("0.3", "0.4") + "\nX = 1\n")
    assert [i for i, digest in enumerate(after) if digest != before[i]] == [changed]


def test_installed_packages_are_known_by_another_path(tmp_path):
    """As in a virtual environment behind a link: or its packages would count as the user's code."""
    (tmp_path / "packages").symlink_to(Path(pytest.__file__).parents[1])
    path = os.pathsep.join([str(ROOT), str(tmp_path / "packages")])
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "from harness.record.provenance import _own_source; print(_own_source('mlflow'))",
        ],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == "None", found


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("from .helper import X", {"a.b.helper", "a.b.helper.X"}),
        ("from . import helper", {"a.b", "a.b.helper"}),
        ("from ..helper import X", {"a.helper", "a.helper.X"}),
        ("from ....helper import X", set()),  # beyond the top: Python refuses it
        ("from helper import X", {"helper", "helper.X"}),
        ("import helper.x", {"helper.x"}),
    ],
)
def test_imports_are_resolved_to_the_package(tmp_path, line, names):
    file = tmp_path / "mine.py"
    file.write_text(line)
    assert imported_modules(file, "a.b.mine") == names


def test_the_numeric_part_is_the_layers_and_what_they_use():
    """A new helper of a numeric layer counts by itself, unless it is declared to change no number."""
    modules = numeric_modules()
    folders = {m.split(".")[1] for m in modules if m.startswith("harness.")}
    assert folders == {*provenance.NUMERIC_LAYERS, "config", "lib"}
    assert {m for m in modules if m.startswith("harness.config")} == {
        "harness.config.trial",
        "harness.config.base",
    }
    layers = (
        "harness.lib.",
        "harness.config.",
        *(f"harness.{layer}." for layer in provenance.NUMERIC_LAYERS),
    )
    used = {n for file in modules.values() for n in imported_modules(file) if n.startswith(layers)}
    helpers = {n for n in used if (ROOT / Path(*n.split("."))).with_suffix(".py").is_file()}
    # What evaluates the results of other programs lies in a numeric layer, and none uses it.
    assert helpers - set(modules) == provenance.NO_NUMBERS - {"harness.evaluation.given"}


def test_the_versions_of_all_that_computes_are_on_record():
    """Pictures are decoded by Pillow and resized by torchvision; mixtures are fitted with SciPy."""
    assert {"torch", "torchvision", "Pillow", "numpy", "scipy", "scikit-learn"} <= set(versions())


def test_a_digest_is_of_the_syntax(tmp_path):
    file = tmp_path / "a.py"

    def digest(text):
        file.write_text(text)
        return syntax_digest(file)

    first = digest('"""Doc."""\n\ndef f(x):\n    """Doc."""\n    return x + 1\n')
    assert digest("def f( x ):\n    # why\n    return (x + 1)\n") == first
    assert digest("def f(x):\n    return x + 2\n") != first


def test_a_digest_is_twelve_digits_and_the_same_for_equal_code():
    trial = small.trial("clip")
    assert len(code_digest(trial)) == 12
    assert code_digest(trial) == code_digest(small.trial("clip", seed=1))


def test_code_that_is_installed_below_another_repository_has_no_commit(tmp_path, monkeypatch):
    """As in a user's own project with its environment in it."""
    git = ("git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x")
    place = tmp_path / "site-packages" / "harness"
    place.mkdir(parents=True)
    monkeypatch.setattr(provenance, "_HARNESS", place)
    (place / "__init__.py").touch()
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    assert provenance.git_commit() == "unknown"
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "ours"], check=True)
    assert len(provenance.git_commit()) == 12
