"""`python -m harness.site --out FOLDER`: the leaderboard as static pages.

Reads the bundles in `results/` (with the external rows beside them) and the published results, and writes
`index.html`, a page for each method, the rows as `rows.csv`, and each bundle as one file. The pages need no
server and ask no other host for anything. Exit code 0: written; 1: written, without bundles that have errors;
2: bad input.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.lib.command import run
from harness.lib.files import RESULTS


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code."""
    options = _parse(arguments)
    from harness.lib.console import console, fail  # imports follow the parsing of arguments
    from harness.site.build import Inputs, NoSite, build

    if options.results and not options.results.is_dir():
        return fail([f"--results {options.results}: no such directory"])
    results = options.results or RESULTS
    try:
        rows, left_out = build(Inputs(results, results.parent / "reports"), options.out)
    except NoSite as error:
        return fail([f"--out: {error}"])
    except OSError as error:
        return fail([f"{error.filename}: {error.strerror or error}"])
    console.print(f"{len(rows)} rows: {options.out / 'index.html'}", soft_wrap=True, markup=False)
    if not any(results.glob("*/plan.json")):
        console.print(f"note: there is no bundle in {results}: all rows are published ones", markup=False)
    if not (options.out / "katex").is_dir():  # an installed wheel has no documentation
        console.print("pages of methods have no equations: they come from docs/ of a checkout", markup=False)
    for found in left_out:
        console.print(f"left out: {found.folder}", markup=False)
        for text in found.errors:
            console.print(f"  - {text}", markup=False)
    return 1 if left_out else 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m harness.site",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the site goes")
    parser.add_argument(
        "--results", type=Path, metavar="FOLDER", help="directory of bundles (default: results)"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(main)
