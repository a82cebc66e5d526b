"""Notes on trials that were run again: `repeated.json` of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError

from harness.config.base import StrictModel
from harness.record.types import StoreError


class Repetition(StrictModel):
    """A trial that was run again.

    Attributes:
        trial: its id.
        record: the SHA-256 of its line in `records.jsonl`; the note holds for no other line.
        commit: of the code that it was run again with; `+changes` where that had local ones.
        environment: the tags that a record would have: versions, digest of the code, device, processes.
        when: when it ended.
        equal: whether it gave the numbers on record, to the last bit.
        moved: where the environment is another than the one on record.
        differences: what is not equal, and by how much.
    """

    trial: Annotated[str, Field(pattern="^[0-9a-f]{12}$")]
    record: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    commit: str
    environment: Annotated[dict[str, str], Field(min_length=1)]
    when: AwareDatetime
    equal: bool
    moved: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()

    def replaced_by(self, other: Repetition) -> bool:
        """Whether the other one is of the same trial in the same environment."""
        return (self.trial, self.environment) == (other.trial, other.environment)


_NOTES = TypeAdapter(list[Repetition])


def read_repetitions(file: Path) -> list[Repetition]:
    """The notes in a file; none where there is no file.

    Raises:
        StoreError: it is malformed; the text names the note and the field.
    """
    try:
        return _NOTES.validate_json(file.read_bytes()) if file.exists() else []
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        more = f" and {error.error_count() - 1} more errors" if error.error_count() > 1 else ""
        raise StoreError(f"{file}: {f'{place}: ' if place else ''}{first['msg']}{more}") from None


def repetitions_text(notes: Sequence[Repetition]) -> str:
    """The content of a file of notes, ordered by trial."""
    ordered = sorted(notes, key=lambda note: (note.trial, note.when))
    return _NOTES.dump_json(ordered, indent=1).decode()
