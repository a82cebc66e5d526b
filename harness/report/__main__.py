"""`python -m harness.report NAME`: write the report of a sweep to `reports/NAME/`.
`python -m harness.report A B --compare`: write a comparison of two sweeps.

Writes `report.md`, `report.html` (self-contained), `tables.tex`, `results.csv` (one line for each trial) and
figures. All results are read from the MLflow store or from `results/NAME/`, whichever has more finished
trials. Exit code 0: written; 2: no such sweep.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.lib.command import run


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code."""
    options = _parse(arguments)
    from harness.report.drawing import in_background  # imports follow the parsing of arguments

    if not options.compare:
        with in_background():
            return _report(options)
    if len(options.names) != 2:
        from harness.lib.console import fail

        given = len(options.names)
        return fail([f"--compare takes two sweeps, got {given}: python -m harness.report A B --compare"])
    return _report(options)


def _report(options: argparse.Namespace) -> int:
    """Write the reports of the named sweeps, or the comparison. Returns the exit code."""
    from harness.lib.console import fail
    from harness.lib.files import RESULTS
    from harness.lib.registry import UnknownName
    from harness.record.types import StoreError
    from harness.report.external import with_external
    from harness.report.source import find_source
    from harness.report.versus import write_versus
    from harness.report.write import held, print_summary, write

    reports = Path.cwd() / "reports"
    try:
        sources = [find_source(name, options.tracking_uri) for name in options.names]
        if options.compare:
            (a, b), folder = sources, reports / "-against-".join(options.names)
            with held(folder):
                print_summary(write_versus(a, b, folder))
            return 0
        for source in sources:
            name = source.sweep.name
            with held(reports / name):
                print_summary(write(with_external(source, RESULTS / name), reports / name))
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
        "names", nargs="+", metavar="NAME", help="name of a sweep; several names write several reports"
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="compare two sweeps: results side by side, and the settings that changed",
    )
    parser.add_argument("--tracking-uri", help="MLflow store (default: mlflow.db in this directory)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(main)
