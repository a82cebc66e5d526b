"""`python -m harness.results check FOLDER ...`: whether bundles are what they claim to be.

A bundle (`results/SWEEP/`) is checked without trusting it: trial ids, noise indices and recalls are made
anew, and the plan is held against the records.

Exit code 0: nothing is wrong; 1: something is; 2: there is no bundle.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.lib.command import run


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code."""
    options = _parse(arguments)
    from harness.lib.console import console, fail  # imports follow the parsing of arguments
    from harness.record.check import check_bundle, summary
    from harness.record.types import StoreError

    wrong = 0
    for folder in options.folders:
        try:
            errors, notes = check_bundle(folder)
            console.print(summary(folder), markup=False)
        except StoreError as error:
            return fail([str(error)])
        for note in notes:
            console.print(f"  note: {note}", markup=False)
        for text in errors:
            console.print(f"  - {text}", markup=False)
        console.print(f"  {len(errors) or 'no'} error{'s' * (len(errors) != 1)}")
        wrong += len(errors)
    return 1 if wrong else 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m harness.results",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="check bundles")
    check.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="results/SWEEP")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(main)
