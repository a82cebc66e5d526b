"""`python -m harness.report NAME`: from the store to `reports/NAME/`; `python -m harness.report A B
--compare`: two sweeps side by side.

Writes `report.md`, `report.html` (one file, opens from disk), `tables.tex`, `results.csv` (one line a trial)
and figures. Results come from MLflow and from nowhere else.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.lib.console import fail
from harness.lib.registry import UnknownName
from harness.record.store import Store
from harness.record.types import StoreError
from harness.report.source import from_store
from harness.report.versus import write_versus
from harness.report.write import print_summary, write_report


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m harness.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help="the sweep's name; several make several reports"
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="of two sweeps: side by side, and what changed from the first to the second",
    )
    parser.add_argument("--tracking-uri", help="MLflow store (default: mlflow.db here)")
    options = parser.parse_args(arguments)
    if options.compare and len(options.names) != 2:
        return fail(
            [
                f"--compare takes two sweeps, {len(options.names)} given: python -m harness.report A B "
                f"--compare"
            ]
        )
    reports = Path.cwd() / "reports"
    try:
        store = Store(options.tracking_uri, patient=False)
        if options.compare:
            a, b = options.names
            print_summary(
                write_versus(from_store(store, a), from_store(store, b), reports / f"{a}-against-{b}")
            )
            return 0
        for name in options.names:
            print_summary(write_report(store, name, reports / name))
    except (StoreError, UnknownName) as error:
        return fail([str(error)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
