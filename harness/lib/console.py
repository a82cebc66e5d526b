"""What a person at the terminal sees."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")


console = Console(stderr=True, highlight=False, soft_wrap=True)


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
    """A progress bar with a count and the time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def duration(seconds: float | None) -> str:
    """Seconds as text for people: `3.2 h`; `?` where they are unknown."""
    if seconds is None:
        return "?"
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def silence_libraries() -> None:
    """Silence libraries, but not real warnings of the user's own code; holds in child processes too."""
    for name in ("httpx", "ray", "filelock", "transformers", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger().setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def fail(errors: Iterable[str], *, consequence: str = "") -> int:
    """Print all errors and return the exit code of bad input.

    Args:
        consequence: what the errors meant for the command: `nothing was started`.
    """
    listed = list(dict.fromkeys(errors))
    title = f"{len(listed)} error{'s' if len(listed) != 1 else ''}{consequence and f', {consequence}'}:"
    console.print(f"[bold red]{title}[/]")
    for error in listed:
        console.print(f"  - {error}", markup=False)
    sys.stderr.flush()
    return 2
