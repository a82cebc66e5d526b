"""`python -m harness.data`: show what a data set holds, write it in the field's layout, build the embedded one."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from harness.console import console, fail
from harness.data import DATASETS, DataError, DataSet, load_dataset
from harness.data.vocabulary import MIN_COUNT, Vocabulary
from harness.noise import GRANULARITIES
from harness.registry import UnknownName


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m harness.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build `emoji` from its npm packages (needs npm, and pip install '.[build]')")
    build.add_argument("name", choices=["emoji"])
    build.add_argument("--work", type=Path, help="folder for the packages (default: a temporary one)")
    show = commands.add_parser("show", help="splits, sizes and fingerprint of a data set")
    show.add_argument("name", help=f"{', '.join(DATASETS)}, package.module:function, or a folder in the SCAN layout")
    export = commands.add_parser("export", help="write a data set of pictures for the field's repositories")
    export.add_argument("name", help="a data set with pictures")
    export.add_argument("--format", choices=["scan"], required=True, help="scan: 36 region features an image, captions, vocabulary")
    export.add_argument("--out", type=Path, help="folder to make (default: data/NAME_precomp)")
    export.add_argument("--noise-ratio", type=float, nargs="*", default=[0.2, 0.4, 0.6], help="noise indices to write")
    export.add_argument("--noise-seed", type=int, nargs="*", default=[0], help="their seeds: those of trials (noise_seed)")
    export.add_argument("--granularity", choices=GRANULARITIES, default="caption")
    words = commands.add_parser("vocabulary", help="build FOLDER/NAME_vocab.json from the training captions of a folder in the SCAN layout")
    words.add_argument("folder", type=Path)
    words.add_argument("--min-count", type=int, default=MIN_COUNT, help="how often a word must stand (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        if options.command == "build":
            return _build(options.work)
        if options.command == "export":
            return _export(options)
        if options.command == "vocabulary":
            return _vocabulary(options.folder, options.min_count)
        return _show(_load(options.name))
    except (UnknownName, DataError) as error:
        return fail([str(error)])


def _load(name: str) -> DataSet:
    return load_dataset("scan", folder=name) if Path(name).is_dir() else load_dataset(name)


def _export(options: argparse.Namespace) -> int:
    from harness.data.export import export_scan

    folder = options.out or Path("data") / f"{options.name.rpartition(':')[2]}_precomp"
    bad = [r for r in options.noise_ratio if not 0 <= r < 1]
    if bad:
        raise DataError(f"--noise-ratio {bad[0]}: expected a number from 0 to below 1")
    export_scan(_load(options.name), folder, ratios=options.noise_ratio, seeds=options.noise_seed, granularity=options.granularity)
    console.print(f"written: {folder}")
    return 0


def _vocabulary(folder: Path, min_count: int) -> int:
    data = load_dataset("scan", folder=str(folder))
    if data.vocabularies:
        raise DataError(f"{folder} has a vocabulary already: {data.vocabularies[0].name}")
    made = Vocabulary.build(data["train"].captions, min_count=min_count)
    path = folder / f"{folder.resolve().name}_vocab.json"
    made.write(path)
    console.print(f"written: {path}, {len(made):,} words")
    return 0


def _build(work: Path | None) -> int:
    from harness.data import build_emoji, emoji

    with tempfile.TemporaryDirectory() as temporary:
        folder = work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        counts = build_emoji.build(emoji.FILE, folder)
    console.print(f"concepts: {', '.join(f'{k} {v}' for k, v in sorted(counts.items()))}")
    return 0


def _show(data: DataSet) -> int:
    from rich.table import Table

    table = Table("split", "images", "captions", "groups", title=f"{data.name} ({data.fingerprint})", caption=data.note)
    for split, content in data.splits.items():
        groups = len(set(content.image_group.tolist()))
        table.add_row(split, f"{len(content.images):,}", f"{len(content.captions):,}", f"{groups:,}")
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
