"""What a number was made by: commit, package versions, and a digest of the code that makes numbers.

The digest decides whether an interrupted trial may resume. It covers the layers that make numbers and nothing
else, and of `methods` only the trial's own file and what that imports, so a change to a report, to scheduling
or to another method restarts nobody. It is of the syntax trees without docstrings, so a comment changes
nothing.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import site
import subprocess
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from pathlib import Path

from harness.backbones import BACKBONES
from harness.config.trial import Trial
from methods import METHODS

PACKAGES = (
    "torch",
    "torchvision",
    "accelerate",
    "open_clip_torch",
    "timm",
    "transformers",
    "numpy",
    "scipy",
    "scikit-learn",
    "Pillow",
)
"""Packages whose versions are in every record."""
NUMERIC_LAYERS = ("data", "noise", "backbones", "evaluation", "training")
"""Folders of `harness` that make numbers; with them goes what they use of `harness.lib` and `harness.config`.
"""
NO_NUMBERS = frozenset(
    {
        "harness.config.resources",
        "harness.evaluation.given",
        "harness.lib.console",
        "harness.lib.locks",
        "harness.lib.watchdog",
        "harness.training.cost",
        "harness.training.flops",
    }
)
"""Modules that numeric layers use or hold and that change no number of a trial: resources, display, locks,
heartbeats, the measurement of time and memory, and what evaluates the results of other programs.
"""
_HELPERS = ("harness.lib.", "harness.config.", "methods.")
_HARNESS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Provenance:
    """What the driver of a sweep knows of its code; it travels to the trials, and into every record.

    Attributes:
        git_commit: see `git_commit`.
        code: the digest of the code behind each method's numbers, by `code_key`.
    """

    git_commit: str
    code: Mapping[str, str]

    @classmethod
    def of(cls, trials: Iterable[Trial]) -> Provenance:
        """The provenance of trials that are about to run."""
        return cls(git_commit(), {code_key(t): code_digest(t) for t in trials})


def code_key(trial: Trial) -> str:
    """Trials with equal keys are made by the same code: method, and backbone kind."""
    return f"{trial.method} {trial.backbone.get('kind', 'clip')}"


def code_digest(trial: Trial) -> str:
    """12 hex digits: the numeric layers of the harness, and the trial's method (and a backbone of the
    user's).
    """
    return _code_digest(trial.method, trial.backbone.get("kind", "clip"))


@lru_cache
def _code_digest(method: str, backbone: str) -> str:
    names = [METHODS.get(method, method)] + ([] if backbone in BACKBONES else [backbone])
    parts = [harness_digest()]
    for module, file in sorted(_closure([n.partition(":")[0] for n in names]).items()):
        parts.append(f"{module} {syntax_digest(file)}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


@lru_cache
def harness_digest() -> str:
    """SHA-256 of the code of the harness that makes numbers."""
    files = sorted(numeric_modules().items())
    text = "\n".join(f"{module} {syntax_digest(file)}" for module, file in files)
    return hashlib.sha256(text.encode()).hexdigest()


def numeric_modules() -> dict[str, Path]:
    """Modules that make numbers whatever the method, and their files: the numeric layers,
    `harness.config.trial`, and what these use of `harness.lib`, `harness.config` and `methods` (the contract
    and the seeding).
    """
    modules = {"harness.config.trial": _HARNESS / "config" / "trial.py"}
    for layer in NUMERIC_LAYERS:
        for file in (_HARNESS / layer).rglob("*.py"):
            parts = file.relative_to(_HARNESS).with_suffix("").parts
            name = ".".join(["harness", *parts]).removesuffix(".__init__")
            if parts[-1] != "__main__" and name not in NO_NUMBERS:  # a command makes no number either
                modules[name] = file
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        for name in imported_modules(modules[module], module):
            helper = name.startswith(_HELPERS) and name not in NO_NUMBERS
            file = _HARNESS.parent.joinpath(*name.split(".")).with_suffix(".py")
            if helper and name not in modules and file.is_file():
                modules[name] = file
                waiting.append(name)
    return modules


def syntax_digest(file: Path) -> str:
    """SHA-256 of a Python file's syntax tree without docstrings: comments and layout do not enter."""
    tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [s for s in node.body if not _is_text(s)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_text(statement: ast.stmt) -> bool:
    """A string that stands alone: a docstring, of a definition or of an attribute."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def imported_modules(file: Path, module: str = "") -> set[str]:
    """Dotted names of the modules that a file imports, anywhere in it; names of `from a import b` count as
    `a` and as `a.b`, and one of the two may be no module.

    Args:
        module: the file's own dotted name, to which relative imports are resolved; without it they are left
            out.
    """
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = _absolute("." * node.level + (node.module or ""), package)
            names |= {source, *(f"{source}.{alias.name}" for alias in node.names)} if source else set()
    return names


def _absolute(name: str, package: str) -> str:
    """A module's name in `from NAME import ...`, seen from a package; empty where it leads out of it."""
    try:
        return importlib.util.resolve_name(name, package)
    except ImportError:
        return ""


def _closure(modules: Iterable[str]) -> dict[str, Path]:
    """The files of modules, of their packages and of all that they import, except the harness, installed
    packages, and the registry of methods (a new line in it changes no number).
    """
    files: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in files or name.partition(".")[0] == "harness" or name == "methods":
            continue
        file = _own_source(name)
        if file is not None:
            files[name] = file
            waiting += [name.rpartition(".")[0] or name, *imported_modules(file, name)]
    return files


def _own_source(module: str) -> Path | None:
    """The file of a module of this project or of the user's; None for an installed or built-in one."""
    package = module.partition(".")[0]
    if package != "methods" and _is_installed(package):  # which may be installed itself
        return None
    origin = getattr(_find(module), "origin", None) or ""
    return Path(origin) if origin.endswith(".py") else None


def _is_installed(package: str) -> bool:
    """Whether a package is in the environment, by whatever links it was reached: `ray start` may run another
    path to the same one than the sweep does.
    """
    spec = _find(package)
    places = [spec.origin or "", *(spec.submodule_search_locations or ())] if spec else []
    installed = [*site.getsitepackages(), sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    folders = [Path(folder).resolve() for folder in installed]
    return any(Path(place).resolve().is_relative_to(folder) for place in places for folder in folders)


def _find(module: str) -> ModuleSpec | None:
    """Where a module is, if it is one. Imports the packages that it is in, and no module (PyTorch, which a
    method imports, takes seconds).
    """
    package = module.rpartition(".")[0]
    if package and getattr(_find(package), "submodule_search_locations", None) is None:
        return None
    try:
        return importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError):
        return None


@lru_cache
def versions() -> dict[str, str]:
    """Versions of `PACKAGES`."""
    return {name: version(name) for name in PACKAGES}


def git_commit() -> str:
    """The commit of the code, with `+changes` if tracked files differ from it; `unknown` outside a checkout,
    also where the code is installed below somebody else's.
    """

    def git(*words: str) -> str:
        run = subprocess.run(
            ["git", *words],
            cwd=_HARNESS.parent,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        return run.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "--", "harness/__init__.py")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "harness", "methods")
        return git("rev-parse", "HEAD")[:12] + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
