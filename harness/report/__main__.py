"""`python -m harness.report NAME`: from the store to `reports/NAME/`. `python -m harness.report A B
--compare`: two sweeps side by side.

Writes `report.md`, `report.html` (one file, opens from disk), `tables.tex`, `results.csv` (one line for each
trial)
and figures. Results come from MLflow and from nowhere else. Exit code 0: written; 2: no such sweep or store.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code."""
    options = _parse(arguments)
    from harness.lib.console import (  # what the command needs is loaded once it is known
        escape_undecodable,
        fail,
    )
    from harness.report.drawing import in_background

    escape_undecodable()
    if not options.compare:
        with in_background():
            return _report(options)
    if len(options.names) != 2:
        given = len(options.names)
        return fail([f"--compare takes two sweeps, {given} given: python -m harness.report A B --compare"])
    return _report(options)


def _report(options: argparse.Namespace) -> int:
    """Write the reports that are asked for; the exit code."""
    from harness.lib.console import fail
    from harness.lib.registry import UnknownName
    from harness.record.store import Store
    from harness.record.types import StoreError
    from harness.report.source import from_store
    from harness.report.versus import write_versus
    from harness.report.write import print_summary, write_report

    reports = Path.cwd() / "reports"
    try:
        store = Store(options.tracking_uri, patient=False)
        if options.compare:
            a, b = options.names
            sources = from_store(store, a), from_store(store, b)
            print_summary(write_versus(*sources, reports / f"{a}-against-{b}"))
            return 0
        for name in options.names:
            print_summary(write_report(store, name, reports / name))
    except (StoreError, UnknownName) as error:
        return fail([str(error)])
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m harness.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help="the sweep's name; several names write several reports"
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="of two sweeps: side by side, and what changed from the first to the second",
    )
    parser.add_argument("--tracking-uri", help="MLflow store (default: mlflow.db here)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
