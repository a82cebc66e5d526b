"""A process of its own in which the pretended device is there: what it needs, and what it is given to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

DRIVER = "libcuda.so.1"
SHIM = Path(__file__).parent / "shim.c"


@dataclass(frozen=True)
class Driven:
    """A method that was driven under a setting.

    Attributes:
        waits: for each step, its waits for the device: kind and place.
        error: why it could not be driven; empty if it could.
    """

    setting: str
    method: str
    waits: list[list[str]]
    error: str


def missing() -> str | None:
    """What is missing here for a pretended device, if anything is."""
    if _compiler() is None:
        return "a pretended device needs a C compiler"
    if not _library().is_file():
        return "a pretended device needs a build of PyTorch for CUDA"
    return None


def drive(jobs: Iterable[tuple[str, str]], folder: Path) -> Iterator[Driven]:
    """Drive methods, each under a setting, in a process of its own.

    Args:
        jobs: settings (`drive.SETTINGS`) and methods.
        folder: a directory for what is compiled.
    """
    command = [sys.executable, "-m", "tests.pretended.drive", json.dumps(list(jobs))]
    with subprocess.Popen(command, env=_environment(folder), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                yield Driven(**json.loads(line))
    if process.returncode:
        raise RuntimeError(f"the process with the pretended device ended with {process.returncode}")


def _environment(folder: Path) -> Mapping[str, str]:
    compiler = _compiler()
    assert compiler is not None
    shim = folder / DRIVER
    subprocess.run([compiler, "-shared", "-fPIC", f"-Wl,-soname,{DRIVER}", "-o", shim, SHIM], check=True)
    root = str(Path(__file__).parents[2])
    return {
        **os.environ,
        "LD_PRELOAD": ":".join([str(shim), *filter(None, [os.environ.get("LD_PRELOAD")])]),
        "PYTHONPATH": ":".join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def _library() -> Path:
    return Path(torch.__file__).parent / "lib" / "libc10_cuda.so"
