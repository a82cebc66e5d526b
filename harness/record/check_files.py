"""Whether a bundle holds its files and nothing else: what is published must be what was checked."""

from __future__ import annotations

from collections.abc import Iterator

from harness.record.bundle import Bundle, bundle_files
from harness.record.check_content import Content
from harness.record.types import StoreError


def file_errors(content: Content) -> Iterator[str]:
    """Files that no bundle has, arrays of no trial, folders of external rows without a plan."""
    folder = content.folder
    known = set(bundle_files(folder))
    for file in sorted(folder.rglob("*")):
        place = file.relative_to(folder)
        if place.parts[0] == "external":
            if len(place.parts) == 2 and not (file / "plan.json").is_file():
                yield f"{place} is no external row: it has no plan.json"
        elif (file.is_symlink() or not file.is_dir()) and file not in known:
            yield f"{place} is no file of a bundle"
    if not content.plan.get("external") and not (folder / "environment.json").is_file():
        yield "environment.json is missing"
    yield from _arrays_of_nothing(content)


def _arrays_of_nothing(content: Content) -> Iterator[str]:
    """Arrays that belong to no trial: ranks, noise indices and groups of queries. Where trials have no record
    yet, a process may have been ended between the arrays of one and its line.
    """
    lines, unfinished = content.lines, not content.trials.keys() <= content.lines.keys()
    try:
        of_trials = Bundle(content.folder.name, content.folder).array_files()
    except StoreError:  # which is told where ranks are read
        of_trials = {}
    for file, trials in of_trials.items():
        if unknown := [trial for trial in trials if trial not in lines and trial not in content.trials]:
            yield f"arrays/{file.name} has arrays of {unknown[0]!r}, which has no record"
    if unfinished:
        return
    for name, tag in (("noise", "noise_digest"), ("queries", "data_fingerprint")):
        told = {line["tags"].get(tag) for line in lines.values()}
        for file in sorted((content.folder / name).glob("*.npz")):
            if file.stem not in told:
                yield f"{name}/{file.name} is of no trial"
