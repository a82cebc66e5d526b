"""Command line of `python -m harness.data`: check, show, prepare and export data sets and noise indices.

PATH is the directory of a data set (its layout is recognised from its files), or a name: `emoji`, `icons`,
or package.module:function. `check` reads the files of a directory, and takes no name.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.data import LAYOUTS
from harness.noise import FORMS, GRANULARITIES


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0, 1 if `check` found errors, or 2 for bad input.
    """
    options = _parser().parse_args(arguments)
    from harness.data_tools.commands import run  # after parsing: --help must not wait for NumPy and PyArrow

    return run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m harness.data",
        description="\n".join((__doc__ or "").splitlines()[2:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_check(commands)
    _add_show(commands)
    _add_prepare(commands)
    _add_export(commands)
    _add_embed(commands)
    _add_vocabulary(commands)
    _add_build(commands)
    _add_unpickle(commands)
    _add_noise(commands)
    return parser


def _add_check(commands: argparse._SubParsersAction) -> None:
    check = commands.add_parser(
        "check", help="read every caption and picture before a long run; exit code 1 if there is an error"
    )
    check.add_argument("path", type=Path, help="the directory")
    _add_reading(check)
    check.set_defaults(run="check")


def _add_show(commands: argparse._SubParsersAction) -> None:
    show = commands.add_parser("show", help="splits, sizes and fingerprint")
    _add_dataset(show)
    show.set_defaults(run="show")


def _add_prepare(commands: argparse._SubParsersAction) -> None:
    prepare = commands.add_parser("prepare", help="write resized pictures once, for trials to read")
    prepare.add_argument(
        "--out",
        type=Path,
        required=True,
        help="directory to create; read it with `dataset: [webdataset]` and this directory",
    )
    prepare.add_argument(
        "--size",
        type=int,
        default=224,
        help="shorter side in pixels: the model's input size (default: %(default)s)",
    )
    prepare.add_argument(
        "--format",
        choices=["jpeg", "webp", "png"],
        default="jpeg",
        help="png is lossless (default: %(default)s)",
    )
    _add_dataset(prepare)
    prepare.set_defaults(run="prepare")


def _add_export(commands: argparse._SubParsersAction) -> None:
    export = commands.add_parser(
        "export", help="region features, captions and noise indices for the field's repositories"
    )
    export.add_argument(
        "--format",
        choices=["scan"],
        required=True,
        help="scan: 36 region features per image, captions, vocabulary",
    )
    export.add_argument("--out", type=Path, help="directory to create (default: data/NAME_precomp)")
    export.add_argument(
        "--noise-ratio", type=float, nargs="*", default=[0.2, 0.4, 0.6], help="noise indices to write"
    )
    export.add_argument(
        "--noise-seed", type=int, nargs="*", default=[0], help="their seeds: those of trials (noise_seed)"
    )
    export.add_argument("--granularity", choices=GRANULARITIES, default="caption")
    _add_dataset(export)
    export.set_defaults(run="export")


def _add_embed(commands: argparse._SubParsersAction) -> None:
    embed = commands.add_parser(
        "embed",
        help="an embedding of the training images or captions, for noise: {model: hard, embedding: FILE}",
    )
    embed.add_argument("--out", type=Path, required=True, help="the .npy file to create")
    embed.add_argument("--of", choices=["images", "captions"], default="captions")
    embed.add_argument(
        "--backbone",
        default="{}",
        help="backbone of kind clip, as in a sweep file (default: the packaged towers)",
    )
    _add_dataset(embed)
    embed.set_defaults(run="embed")


def _add_vocabulary(commands: argparse._SubParsersAction) -> None:
    vocabulary = commands.add_parser(
        "vocabulary",
        help="build FOLDER/NAME_vocab.json from the training captions of a directory in the SCAN layout",
    )
    vocabulary.add_argument("folder", type=Path)
    vocabulary.add_argument("--min-count", type=int, help="minimum number of occurrences of a word")
    vocabulary.set_defaults(run="vocabulary")


def _add_build(commands: argparse._SubParsersAction) -> None:
    build = commands.add_parser(
        "build",
        help="build `emoji` or `icons` from its npm packages (needs npm, and pip install '.[build]')",
    )
    build.add_argument("name", choices=["emoji", "icons"])
    build.add_argument("--work", type=Path, help="directory for the packages (default: a temporary one)")
    build.set_defaults(run="build")


def _add_unpickle(commands: argparse._SubParsersAction) -> None:
    unpickle = commands.add_parser(
        "unpickle",
        help="convert a pickled .npy (NPC's memory banks) to plain arrays; no other command opens a pickle",
    )
    unpickle.add_argument("file", type=Path)
    unpickle.add_argument("--out", type=Path, required=True, help="the .npz file to create")
    unpickle.set_defaults(run="unpickle")


def _add_noise(commands: argparse._SubParsersAction) -> None:
    noise = commands.add_parser("noise", help="show a published noise-index file, or write one")
    actions = noise.add_subparsers(dest="action", required=True)
    show = actions.add_parser("show", help="granularity, ratio, wrong captions per image, digest")
    show.add_argument(
        "file", type=Path, help=".npy of the NCR line or of DECL and RCL, or NPC's RATIO_noise_train_caps.txt"
    )
    show.add_argument(
        "--data",
        help="the data set that the file belongs to (default: five captions per image are assumed, or one)",
    )
    _add_reading(show)
    show.set_defaults(run="noise show")
    write = actions.add_parser("write", help="write the noise index of a trial for the field's repositories")
    write.add_argument("--out", type=Path, required=True)
    write.add_argument(
        "--form",
        choices=FORMS,
        required=True,
        help="caption: NCR's .npy; image: DECL's and RCL's .npy; text: NPC's .txt",
    )
    write.add_argument("--ratio", type=float, required=True)
    write.add_argument("--seed", type=int, default=0, help="noise_seed of a trial")
    write.add_argument("--granularity", choices=GRANULARITIES, default="caption")
    write.add_argument(
        "--noise",
        default="shuffle",
        help="the noise model, as `noise:` of a sweep file (default: %(default)s)",
    )
    _add_dataset(write)
    write.set_defaults(run="noise write")


def _add_dataset(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", metavar="PATH", help="directory or name of a data set")
    _add_reading(command)


def _add_reading(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--layout", choices=LAYOUTS, help="of the directory (default: recognised from its files)"
    )
    command.add_argument(
        "--options", default="{}", help="further dataset_options, as in a sweep file: '{held_out: 500}'"
    )
