"""`python -m harness.data`: build the embedded data set, or show what a data set holds."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from harness.console import console, fail
from harness.data import DATASETS, DataError, load_dataset
from harness.registry import UnknownName


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m harness.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build `emoji` from its npm packages (needs npm, and pip install '.[build]')")
    build.add_argument("name", choices=["emoji"])
    build.add_argument("--work", type=Path, help="folder for the packages (default: a temporary one)")
    show = commands.add_parser("show", help="splits, sizes and fingerprint of a data set")
    show.add_argument("name", help=f"{', '.join(DATASETS)}, or package.module:function")
    options = parser.parse_args(arguments)
    return _build(options.work) if options.command == "build" else _show(options.name)


def _build(work: Path | None) -> int:
    from harness.data import build_emoji, emoji

    with tempfile.TemporaryDirectory() as temporary:
        folder = work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        counts = build_emoji.build(emoji.FILE, folder)
    console.print(f"concepts: {', '.join(f'{k} {v}' for k, v in sorted(counts.items()))}")
    return 0


def _show(name: str) -> int:
    from rich.table import Table

    try:
        data = load_dataset(name)
    except (UnknownName, DataError) as error:
        return fail([str(error)])
    table = Table("split", "images", "captions", "groups", title=f"{data.name} ({data.fingerprint})", caption=data.note)
    for split, content in data.splits.items():
        groups = len(set(content.image_group.tolist()))
        table.add_row(split, f"{len(content.images):,}", f"{len(content.captions):,}", f"{groups:,}")
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
