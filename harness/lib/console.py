"""What a person at the terminal sees."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
console = Console(stderr=True, highlight=False, soft_wrap=True)
for _stream in (sys.stdout, sys.stderr):  # a file's name may hold bytes that no terminal can show
    if isinstance(_stream, io.TextIOWrapper):
        _stream.reconfigure(errors="backslashreplace")


def progress(items: Sequence[T], label: str | None) -> Iterator[T]:
    """The items, with a progress bar on a terminal, a line elsewhere, or nothing without a label."""
    if label is None:
        yield from items
    elif console.is_terminal:
        with bar() as shown:
            task = shown.add_task(label, total=len(items))
            for item in items:
                yield item
                shown.advance(task)
    else:
        console.print(f"{label} ...")
        yield from items


def bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def fail(errors: Iterable[str]) -> int:
    """Print every error and return the exit code of bad input."""
    listed = list(dict.fromkeys(errors))
    console.print(f"[bold red]{len(listed)} error{'s' if len(listed) != 1 else ''}, nothing was started:[/]")
    for error in listed:
        console.print(f"  - {error}", markup=False)
    sys.stderr.flush()
    return 2
