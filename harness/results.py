"""`python -m harness.results`: bundles, the records of a sweep as plain files (`results/SWEEP/`).

  check FOLDER ...             is it what it claims to be? Trial ids, noise indices and recalls are made anew,
                               and the plan is held against the records; --verify N runs N trials again
  export SWEEP --out FOLDER    a bundle of any sweep that the store holds
  import FILE                  a row of another program, as FILE describes it: results/SWEEP/external/METHOD

Exit code 0: done; 1: something is wrong with a bundle, or a trial that was run again gave other numbers;
2: bad input.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.lib.command import count, run
from harness.lib.files import RESULTS


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code."""
    options = _parse(arguments)
    from harness.lib.console import fail  # imports follow the parsing of arguments
    from harness.record.types import StoreError

    try:
        if options.command == "import":
            return _import(options.file)
        return _export(options) if options.command == "export" else _check(options.folders, options.verify)
    except StoreError as error:
        return fail([str(error)])
    except OSError as error:
        return fail([f"{error.filename}: {error.strerror or error}"])


def _check(folders: list[Path], verify: int) -> int:
    from harness.lib.console import console, fail
    from harness.record.check import check_bundle, summary
    from harness.record.types import StoreError

    wrong, unread = 0, []
    for folder in (bundle for given in folders for bundle in _bundles(given)):
        try:
            errors, notes = check_bundle(folder)
        except StoreError as error:
            unread.append(str(error))
            continue
        console.print(summary(folder), markup=False)
        for text in [*(f"note: {note}" for note in notes), *(f"- {error}" for error in errors)]:
            console.print(f"  {text}", markup=False)
        console.print(f"  {len(errors) or 'no'} error{'s' * (len(errors) != 1)}")
        wrong += len(errors)
        if verify:
            from harness.sweep.repeat import repeat_bundle  # torch: only where trials are run

            wrong += repeat_bundle(folder, verify)
    if unread:
        return fail(unread)
    return 1 if wrong else 0


def _bundles(folder: Path) -> list[Path]:
    """A folder; or, where it has no sweep of its own, the external rows in it, or the bundles."""
    from harness.record.external import external_bundles

    if (folder / "plan.json").exists():
        return [folder]
    rows = [bundle.folder for bundle in external_bundles(folder)]
    return rows or sorted(plan.parent for plan in folder.glob("[!.]*/plan.json")) or [folder]


def _export(options: argparse.Namespace) -> int:
    from harness.lib.console import console
    from harness.record.check import summary
    from harness.record.export import export_bundle
    from harness.record.store import Store, require

    require(options.tracking_uri)
    folder = options.out or RESULTS / options.sweep
    export_bundle(Store(options.tracking_uri, patient=False), options.sweep, folder)
    console.print(summary(folder), markup=False)
    return 0


def _import(file: Path) -> int:
    from harness.config.sweep_file import BadInput
    from harness.lib.console import console, fail
    from harness.record.check import summary
    from harness.record.external import import_row

    try:
        folder, notes = import_row(file)
    except BadInput as error:
        return fail(error.errors, consequence="nothing was written")
    for note in notes:
        console.print(f"note: {note}", markup=False)
    console.print(summary(folder), markup=False)
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m harness.results",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="check bundles")
    check.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="results/SWEEP, or a directory of bundles"
    )
    check.add_argument(
        "--verify",
        type=count,
        default=0,
        metavar="N",
        help="run N trials of each bundle again, spread over its methods, to see whether they give the "
        "numbers on record",
    )
    export = commands.add_parser("export", help="write the bundle of a sweep")
    export.add_argument("sweep", help="its name")
    export.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="default: results/SWEEP; finished trials that are there are kept as they are",
    )
    export.add_argument("--tracking-uri", help="MLflow store (default: mlflow.db here)")
    row = commands.add_parser("import", help="make the bundle of an external row")
    row.add_argument("file", type=Path, metavar="FILE", help="its description (YAML): docs/evaluation.md")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(main)
