"""What a bundle says of searches: what its own has found, and whose settings its trials claim to have."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator

from harness.config.search import read_result, result_file
from harness.config.sweep_file import BadInput, read_sweep_file
from harness.record.bundle import Bundle
from harness.record.check_data import Content
from harness.record.tries import result_of

_TAG = "search"


def found_errors(content: Content) -> Iterator[str]:
    """What a search found, from its records."""
    if not content.plan.get("search") or content.unknown or importlib.util.find_spec("torch") is None:
        return
    bundle = Bundle(content.folder.name, content.folder)
    try:
        kept = json.loads((content.folder / "search.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield f"search.json cannot be read: {error}"
        return
    if kept != json.loads(result_of(bundle.sweep()).model_dump_json(exclude_none=True)):
        yield "search.json is not what the records of the search say"


def claim_errors(content: Content) -> Iterator[str]:
    """Records name the searches that the sweep's file takes settings from, and no other."""
    taken = _taken(content)
    told = {str(tags.get(_TAG)) for tags in content.plan.get("settings_from") or []}
    if told != set(taken):
        yield (
            f"plan.json says that settings are from {', '.join(sorted(told)) or 'no search'}, and sweep.yaml "
            f"from {', '.join(sorted(taken)) or 'none'}"
        )
    names = [str(line["tags"][_TAG]) for line in content.lines.values() if _TAG in line["tags"]]
    for name in dict.fromkeys(names):
        if name not in taken:
            count = names.count(name)
            yield f"{count} records name the search {name!r}, from which sweep.yaml takes no settings"


def unknown_searches(content: Content) -> list[str]:
    """The searches that settings are from and that are not here as the plan names them, as notes: whether
    trials have the settings that these found is then not checked.
    """
    notes = []
    for tags in content.plan.get("settings_from") or []:
        name, digest = str(tags.get(_TAG)), str(tags.get("search_digest"))
        try:
            here = read_result(name).digest
        except ValueError:
            here = ""
        if here != digest:
            which = f"of another state ({here})" if here else "not here"
            notes.append(
                f"settings are from the search {name!r} ({digest}), and {result_file(name)} is {which}: they "
                "are not checked"
            )
    return notes


def _taken(content: Content) -> list[str]:
    """The searches that the sweep's file names."""
    if content.plan.get("external"):
        return []
    try:
        given = read_sweep_file(content.folder / "sweep.yaml")[0].get("settings_from")
    except BadInput:  # which is told where the file is compared with the plan
        return []
    return [given] if isinstance(given, str) else [str(name) for name in given or []]
