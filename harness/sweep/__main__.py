"""`python -m harness.sweep FILE`: run a sweep, continue it, or grow it; then write its report.

Exit code 0: all trials done; 1: some failed, or the tracking store was lost; 2: bad input, nothing was
started; 130: stopped by Ctrl-C (or SIGTERM). With --status, 1: not all trials are done. With --verify, 1: a
record is not complete, or a trial that was run again gave other numbers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.lib.command import count, run
from harness.lib.files import STORAGE

_SAMPLE = 3


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code."""
    options = parse(arguments)
    from harness.sweep.command import execute  # what a command needs is loaded once it is known

    return execute(options)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of a command line. Exits with 2 where it cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "file", help="the sweep file (YAML), or the name of one in sweeps/ or of one that ships"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--dry-run", action="store_true", help="check everything, show the plan, run nothing")
    mode.add_argument(
        "--status",
        action="store_true",
        help="show what is done, running, interrupted and failed, and why; run nothing",
    )
    mode.add_argument(
        "--verify",
        nargs="?",
        type=count,
        const=_SAMPLE,
        metavar="N",
        help="check that each finished record is complete, and run N of the trials again (default: "
        f"{_SAMPLE}) to see whether they give the same numbers",
    )
    parser.add_argument(
        "--cost",
        action="store_true",
        help="with --dry-run: count FLOPs and memory of a step of each cell, without a GPU and without "
        "computing it; they are kept, and a plain --dry-run shows them",
    )
    parser.add_argument(
        "--tracking-uri", help="MLflow store: sqlite:///FILE or http(s)://... (default: mlflow.db here)"
    )
    parser.add_argument(
        "--address", help="address of a running Ray cluster, or 'auto' (default: start Ray here)"
    )
    parser.add_argument(
        "--storage",
        type=Path,
        default=STORAGE,
        help="directory for checkpoints of running trials, which all nodes must see (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    if options.cost and not options.dry_run:
        parser.error("--cost goes with --dry-run")
    options.storage = options.storage.absolute()
    return options


if __name__ == "__main__":
    run(main)
