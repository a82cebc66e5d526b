"""Sweeps in the tests' own process: the real command, store and report, without Ray."""

from __future__ import annotations

from pathlib import Path

import yaml

from harness.record.store import Store
from harness.record.types import TrialRecord
from harness.sweep.__main__ import parse
from harness.sweep.command import execute
from harness.sweep.launcher import InProcessLauncher
from tests import small


def sweep(arguments: list[str]) -> int:
    """`python -m harness.sweep` with an in-process launcher. Returns the exit code."""
    return execute(parse(arguments), InProcessLauncher())


def write(folder: Path, *methods: str, name: str, **changes) -> str:
    """A sweep file of three quick epochs."""
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(small.content(*methods, name=name, **changes)))
    return str(file)


def records(name: str, uri: str | None = None) -> dict[str, TrialRecord]:
    """What is on record of a sweep, by trial id."""
    return Store(uri).read_sweep(name).records
