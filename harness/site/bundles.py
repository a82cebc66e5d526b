"""The bundles that the site shows: found, checked and read. One with an error is left out, and says why."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.config.external import ExternalTrial
from harness.record.bundle import Bundle
from harness.record.check import NO_RECORD, check_bundle, unchecked_trials
from harness.record.external import external_bundles
from harness.record.types import StoreError, SweepRecord
from harness.site.methods import facts


@dataclass(frozen=True)
class Found:
    """A bundle that was read.

    Attributes:
        folder: where it is.
        name: of its sweep, or `SWEEP-external-METHOD`.
        errors: why it is left out; empty where it is shown.
        notes: what could not be checked, and what its check says otherwise.
        sweep: its content; None with errors.
        program: of an external one, a trial of it, which says what made it; None of a sweep.
        repeated: ids of trials that were run again with the same numbers.
        unchecked: what of trials could not be checked, by id.
    """

    folder: Path
    name: str
    errors: list[str]
    notes: list[str] = field(default_factory=list)
    sweep: SweepRecord | None = None
    program: ExternalTrial | None = None
    repeated: frozenset[str] = frozenset()
    unchecked: Mapping[str, str] = field(default_factory=dict)


def find_bundles(results: Path) -> list[Found]:
    """All bundles of a directory: those of sweeps by name, each before the external rows beside it. A search
    chooses settings and has no rows, so it is no concern of the site's.
    """
    found = []
    for folder in sorted(results.glob("[!.]*/")):
        if (folder / "plan.json").is_file() and not _is_search(folder):
            found.append(_read(folder, folder.name))
        for beside in external_bundles(folder):
            found.append(_read(beside.folder, f"{folder.name}-external-{beside.name}"))
    return found


def _is_search(folder: Path) -> bool:
    """Whether it is the bundle of a search, which may be unfinished; one that cannot be read is none."""
    try:
        return bool(json.loads((folder / "plan.json").read_bytes()).get("search"))
    except (OSError, ValueError, AttributeError):
        return False


def _read(folder: Path, name: str) -> Found:
    try:
        errors, notes = check_bundle(folder, ids=False)
        # external rows beside a sweep are bundles of their own here
        errors, notes = ([t for t in texts if not t.startswith("external/")] for texts in (errors, notes))
        # Trials that have no record yet are no fault here: rows say how many of their seeds they have.
        lacking = [t for t in errors if t.startswith(NO_RECORD)]
        errors, notes = [t for t in errors if t not in lacking], [*notes, *lacking]
        if errors:
            return Found(folder, name, errors)
        bundle = Bundle(folder.name, folder)
        sweep = bundle.sweep()
        first = sweep.planned[0] if sweep.planned else None
        program = first if isinstance(first, ExternalTrial) else None
        if errors := _other_facts(sweep):
            return Found(folder, name, errors)
        unchecked = unchecked_trials(folder) if any("not checked" in note for note in notes) else {}
        return Found(folder, name, [], notes, sweep, program, _repeated(bundle), unchecked)
    except StoreError as error:
        return Found(folder, name, [str(error)])


def _other_facts(sweep: SweepRecord) -> list[str]:
    """What a plan says of registered methods and their classes do not: two of the columns that rows are
    filtered by, and the family.
    """
    errors = []
    for name, told in sweep.methods.items():
        known = facts().get(name)
        other = [
            k
            for k in ("uses_clean_data", "uses_ground_truth", "family")
            if known and getattr(known, k) != getattr(told, k)
        ]
        errors += [f"plan.json says of {name} another {' and '.join(other)} than its class"] if other else []
    return errors


def _repeated(bundle: Bundle) -> frozenset[str]:
    """Ids of trials that were run again with the same numbers."""
    return frozenset(note.trial for note in bundle.repeated() if note.equal)


def source_address(repository: str) -> str:
    """The address of a repository, without a scheme; empty where it is not one of the web."""
    address = re.fullmatch(r"(?:https?://)?([\w.-]+\.[a-z]{2,}/[\w./@~+-]+)", repository)
    return address[1].removesuffix(".git") if address else ""
