"""`python -m harness`: the commands, with a line each."""

from __future__ import annotations

import sys

from harness.lib.command import run

DOORS = {
    "harness.sweep FILE": "run or continue a sweep; --dry-run checks, --status watches, --verify repeats",
    "harness.report NAME": "write the report of a sweep, or compare two (--compare)",
    "harness.train FILE --trial ID": "one trial by hand, also under torchrun, with or without a record",
    "harness.evaluate FILE.npy --data PATH": "recalls of similarities or embeddings from any program",
    "harness.results COMMAND": "check bundles (results/SWEEP), export one of a sweep, import an external row",
    "harness.site --out FOLDER": "the leaderboard as static pages: bundles, external and published rows",
    "harness.data COMMAND": "check, show, prepare and export data sets; show and write noise indices",
    "harness.bench NAME": "what things cost: steps, scans, ranking, overhead, memory, start",
}
"""The commands and what they are for."""


def main(arguments: list[str] | None = None) -> int:
    """Print the commands; 2 where more is asked for."""
    given = sys.argv[1:] if arguments is None else arguments
    if given and given != ["--help"]:
        print(f"python -m harness lists the commands: python -m harness.{' '.join(given)}?", file=sys.stderr)
        return 2
    width = max(map(len, DOORS))
    print("Commands (python -m COMMAND --help says more):\n")
    for command, what in DOORS.items():
        print(f"  {command:<{width}}  {what}")
    print("\nA first sweep: python -m harness.sweep quickstart")
    return 0


if __name__ == "__main__":
    run(main)
