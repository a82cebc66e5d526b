"""What a bundle says of searches: what its own has found, and whose settings its trials claim to have."""

from __future__ import annotations

import json
from collections.abc import Iterator

from harness.record.bundle import Bundle
from harness.record.check_content import SEARCH, Content
from harness.record.tries import result_of


def found_errors(content: Content) -> Iterator[str]:
    """What a search found, from its records."""
    if not content.plan.get("search") or content.unknown or not content.methods:
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
    told = {str(tags.get(SEARCH)) for tags in content.plan.get("settings_from") or []}
    if told != set(content.taken):
        yield (
            f"plan.json says that settings are from {', '.join(sorted(told)) or 'no search'}, and sweep.yaml "
            f"from {', '.join(sorted(content.taken)) or 'none'}"
        )
    names = [str(line["tags"][SEARCH]) for line in content.lines.values() if SEARCH in line["tags"]]
    for name in dict.fromkeys(names):
        if name not in content.taken:
            count = names.count(name)
            yield f"{count} records name the search {name!r}, from which sweep.yaml takes no settings"
