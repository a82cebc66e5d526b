"""The folders of the harness are layers: no import climbs, each framework has one module, and no import has
an effect.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = (
    "lib",
    "data",
    "evaluation",
    "noise",
    "backbones",
    "config",
    "data_tools",
    "record",
    "training",
    "report",
    "site",
    "sweep",
    "bench",
)
"""From the bottom to the top: a module imports from its own folder and from those before it."""
DOORS = {
    "harness.__main__",
    "harness.results",
    "harness.train",
    "harness.evaluate",
    *(f"harness.{folder}.__main__" for folder in ("sweep", "report", "site", "data", "bench")),
}
"""Commands: they are above all layers, and nothing imports them."""
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for package in ("harness", "methods")
    for file in sorted((ROOT / package).rglob("*.py"))
}


def imports_of(module: str) -> set[str]:
    """Dotted names of the modules that a module imports, wherever in it, for types or in functions."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: relative imports hide the layer"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name for name in full if name in MODULES} or {str(node.module)}
    return names


def rank(module: str) -> int:
    """The place of a module's layer, from the bottom; `harness` itself is below all, a door above all."""
    if module in DOORS:
        return len(ORDER)
    parts = module.split(".")
    return ORDER.index(parts[1]) if len(parts) > 1 else -1


def test_every_folder_is_a_layer():
    folders = {p.parent.name for p in (ROOT / "harness").glob("*/__init__.py")}
    assert folders == set(ORDER)
    assert {
        m for m in MODULES if m.count(".") == 1 and (ROOT / "harness" / f"{m.partition('.')[2]}.py").is_file()
    } == {"harness.__main__", "harness.train", "harness.evaluate", "harness.results"}


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("harness")])
def test_no_import_climbs(module):
    """Which also means that no folders form a cycle: the order is total."""
    for name in imports_of(module):
        if name.partition(".")[0] == "harness":
            assert name in MODULES, f"{module} imports {name}, which is no module"
            assert name not in DOORS, f"{module} imports the command {name}"
            assert rank(name) <= rank(module), f"{module} imports {name} from a layer above its own"


def test_methods_import_nothing_of_the_harness():
    for module in MODULES:
        if module.startswith("methods"):
            assert not any(n.partition(".")[0] == "harness" for n in imports_of(module)), module


@pytest.mark.parametrize(
    ("package", "module"),
    [
        ("ray", "harness.sweep.ray_launcher"),
        ("mlflow", "harness.record.client"),
        ("accelerate", "harness.training.accelerator"),
    ],
)
def test_each_framework_is_imported_by_one_module(package, module):
    users = {m for m in MODULES if any(n.partition(".")[0] == package for n in imports_of(m))}
    assert users == {module}


EFFECTS = """
import os, subprocess, sys, importlib
def refuse(*arguments, **options): raise AssertionError("a process is started at import")
subprocess.Popen.__init__ = os.posix_spawn = os.fork = refuse
before, streams = dict(os.environ), (sys.stdout.errors, sys.stderr.errors)
import matplotlib; drawn = dict(matplotlib.rcParams)
for name in sys.argv[1:]:
    importlib.import_module(name)
    changes = set(os.environ.items()) ^ set(before.items())
    assert not changes, f"{name} changes the environment: {changes}"
    assert (sys.stdout.errors, sys.stderr.errors) == streams, f"{name} changes the standard streams"
    assert dict(matplotlib.rcParams) == drawn, f"{name} changes matplotlib's settings"
"""


def test_no_import_has_an_effect():
    """Torch and others may set what they like: they are imported first."""
    code = (
        "import torch, accelerate, sklearn, pyarrow, pandas, scipy.stats, open_clip, transformers\n"
    ) + EFFECTS
    run = subprocess.run(
        [sys.executable, "-c", code, *MODULES], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]


def public(body: list[ast.stmt], prefix: str = "") -> list[tuple[str, ast.AST]]:
    """Public classes, functions and methods of a module, with their names."""
    definitions = []
    for node in body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            definitions.append((prefix + node.name, node))
            if isinstance(node, ast.ClassDef):
                definitions += public(node.body, f"{prefix}{node.name}.")
    return definitions


def test_all_that_is_public_has_a_docstring():
    modules = {name: ast.parse(file.read_bytes()) for name, file in MODULES.items()}
    assert not [
        f"{module}: {name}"
        for module, tree in modules.items()
        for name, node in public(tree.body)
        if not ast.get_docstring(node)
    ]
