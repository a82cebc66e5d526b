"""The bundles that the site shows: found, checked and read. One with an error is left out, and says why."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.record.bundle import Bundle
from harness.record.check import check_bundle
from harness.record.types import StoreError, SweepRecord


@dataclass(frozen=True)
class Found:
    """A bundle that was read.

    Attributes:
        folder: where it is.
        name: its path in the directory of bundles, with `-` for `/`.
        errors: why it is left out; empty where it is shown.
        notes: what could not be checked, and what its check says otherwise.
        sweep: its content; None with errors.
        external: whether a program that is not of this project made it.
        source: of an external one, its program: `repository`, `commit`, `command`.
        repeated: ids of trials that were run again with the same numbers.
    """

    folder: Path
    name: str
    errors: list[str]
    notes: list[str] = field(default_factory=list)
    sweep: SweepRecord | None = None
    external: bool = False
    source: Mapping[str, str] = field(default_factory=dict)
    repeated: frozenset[str] = frozenset()


def find_bundles(results: Path) -> list[Found]:
    """All bundles of a directory, by name: `SWEEP/`, and `SWEEP/external/METHOD/` beside it."""
    return [_read(folder, results) for folder in _folders(results)]


def _folders(results: Path) -> Iterator[Path]:
    for plan in sorted([*results.glob("*/plan.json"), *results.glob("*/external/*/plan.json")]):
        if not plan.parent.name.startswith("."):  # one that is being written
            yield plan.parent


def _read(folder: Path, results: Path) -> Found:
    name = "-".join(folder.relative_to(results).parts)
    external = folder.parent.name == "external"
    try:
        errors, notes = check_bundle(folder, ids=False)
        if external:  # the check of its sweep says whether data and noise are those of the sweep
            mark = f"external/{folder.name}: "
            beside, _ = check_bundle(folder.parents[1], ids=False)
            errors = list(
                dict.fromkeys([*errors, *(e.removeprefix(mark) for e in beside if e.startswith(mark))])
            )
        errors = [e for e in errors if not e.startswith("external/")]
        if errors:
            return Found(folder, name, errors)
        bundle = Bundle(folder.name, folder)
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        source = _source(plan) if external else {}
        return Found(folder, name, [], notes, bundle.sweep(), external, source, _repeated(bundle))
    except StoreError as error:
        return Found(folder, name, [str(error)])


def _source(plan: Mapping[str, Any]) -> dict[str, str]:
    """The program of an external row, from its plan."""
    trials = plan.get("trials") or [{}]
    given = plan.get("source") or trials[0].get("source")
    return {str(k): str(v) for k, v in given.items()} if isinstance(given, Mapping) else {}


def source_address(source: Mapping[str, str]) -> str:
    """The address of an external row's repository, without a scheme; empty where it is not one of the web."""
    address = re.fullmatch(r"(?:https?://)?([\w.-]+\.[a-z]{2,}/[\w./@~+-]+)", source.get("repository", ""))
    return address[1].removesuffix(".git") if address else ""


def _repeated(bundle: Bundle) -> frozenset[str]:
    """Ids of trials that were run again with the same numbers; none where the bundle has no such notes."""
    notes: list[Any] = getattr(bundle, "repeated", list)()
    return frozenset(note.trial for note in notes if note.equal)
