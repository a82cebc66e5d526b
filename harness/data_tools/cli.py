"""`python -m harness.data`: check a data set and show what it holds, prepare its pictures, write it for
others, look at noise indices.

PATH is a data set's folder (its layout is told from what lies in it), or a name: `emoji`, or
package.module:function.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from harness.config.plain_yaml import read_yaml
from harness.data import LAYOUTS, DataError, DataSet, load_dataset, recognise
from harness.lib.console import console, fail
from harness.lib.registry import UnknownName
from harness.noise import FORMS, GRANULARITIES


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        return code
    except (UnknownName, DataError) as error:
        return fail([str(error)])
    except OSError as error:
        return fail([f"{error.filename or options.command}: {error.strerror or error}"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m harness.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser(
        "check", help="look at every caption and picture before a long run; exit code 1 if something is wrong"
    )
    check.add_argument("path", type=Path, help="the folder")
    _how_to_read(check)
    check.set_defaults(run=_check)
    show = commands.add_parser("show", help="splits, sizes and fingerprint")
    prepare = commands.add_parser("prepare", help="write resized pictures once, for trials to read")
    prepare.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder to make; then `dataset: [webdataset]` with this folder",
    )
    prepare.add_argument(
        "--size",
        type=int,
        default=224,
        help="pixels of the shorter side: the model's input (default: %(default)s)",
    )
    prepare.add_argument(
        "--format",
        choices=["jpeg", "webp", "png"],
        default="jpeg",
        help="png keeps the very pixels (default: %(default)s)",
    )
    export = commands.add_parser(
        "export", help="region features, captions and noise indices for the field's repositories"
    )
    export.add_argument(
        "--format",
        choices=["scan"],
        required=True,
        help="scan: 36 region features an image, captions, vocabulary",
    )
    export.add_argument("--out", type=Path, help="folder to make (default: data/NAME_precomp)")
    export.add_argument(
        "--noise-ratio", type=float, nargs="*", default=[0.2, 0.4, 0.6], help="noise indices to write"
    )
    export.add_argument(
        "--noise-seed", type=int, nargs="*", default=[0], help="their seeds: those of trials (noise_seed)"
    )
    export.add_argument("--granularity", choices=GRANULARITIES, default="caption")
    embed = commands.add_parser(
        "embed",
        help="an embedding of the training images or captions, for noise: {model: hard, embedding: FILE}",
    )
    embed.add_argument("--out", type=Path, required=True, help="the .npy file to make")
    embed.add_argument("--of", choices=["images", "captions"], default="captions")
    embed.add_argument(
        "--backbone",
        default="{}",
        help="backbone of kind clip, as in a sweep file (default: the packaged towers)",
    )
    for command, run in ((show, _show), (prepare, _prepare), (export, _export), (embed, _embed)):
        command.add_argument("name", metavar="PATH", help="folder or name of a data set")
        _how_to_read(command)
        command.set_defaults(run=run)
    words = commands.add_parser(
        "vocabulary",
        help="build FOLDER/NAME_vocab.json from the training captions of a folder in the SCAN layout",
    )
    words.add_argument("folder", type=Path)
    words.add_argument("--min-count", type=int, help="how often a word must stand")
    words.set_defaults(run=_vocabulary)
    build = commands.add_parser(
        "build", help="build `emoji` from its npm packages (needs npm, and pip install '.[build]')"
    )
    build.add_argument("name", choices=["emoji"])
    build.add_argument("--work", type=Path, help="folder for the packages (default: a temporary one)")
    build.set_defaults(run=_build)
    plain = commands.add_parser(
        "unpickle",
        help="a pickled .npy (NPC's memory banks) to plain arrays; nothing else here opens a pickle",
    )
    plain.add_argument("file", type=Path)
    plain.add_argument("--out", type=Path, required=True, help="the .npz file to make")
    plain.set_defaults(run=_unpickle)
    _noise_parser(commands.add_parser("noise", help="show a noise-index file of the field, or write one"))
    return parser


def _unpickle(options: argparse.Namespace) -> int:
    from harness.data_tools.unpickle import unpickle

    console.print(
        f"warning: {options.file} is opened as a pickle, a format that can run code. It is read with "
        f"nothing allowed but data; "
        f"open it elsewhere (numpy.load with allow_pickle) only if you trust whoever made it.",
        markup=False,
    )
    for name, array in unpickle(options.file, options.out).items():
        console.print(f"{options.out}: {name} {array.dtype} {array.shape}", markup=False)
    return 0


def _noise_parser(noise: argparse.ArgumentParser) -> None:
    actions = noise.add_subparsers(dest="action", required=True)
    show = actions.add_parser("show", help="granularity, ratio, wrong captions an image, digest")
    show.add_argument(
        "file", type=Path, help=".npy of the NCR line or of DECL and RCL, or NPC's RATIO_noise_train_caps.txt"
    )
    show.add_argument(
        "--data",
        help="the data set that it belongs to; without, five captions an image (or one each) are taken for "
        "granted",
    )
    _how_to_read(show)
    show.set_defaults(run=_noise_show)
    write = actions.add_parser("write", help="write the index of a trial for the field's repositories")
    write.add_argument("name", metavar="PATH", help="folder or name of a data set")
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
    _how_to_read(write)
    write.set_defaults(run=_noise_write)


def _how_to_read(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--layout", choices=LAYOUTS, help="of the folder (default: told from what lies in it)"
    )
    command.add_argument(
        "--options", default="{}", help="further dataset_options, as in a sweep file: '{held_out: 500}'"
    )


def _mapping(text: str, flag: str) -> dict[str, Any]:
    try:
        found = read_yaml(text)
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(f"{flag} {text!r} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise DataError(f"{flag} {text!r}: expected a mapping, as in a sweep file")
    if "folder" in found or not all(isinstance(k, str) for k in found):
        raise DataError(f"{flag} {text!r}: expected names of options other than folder, which is PATH")
    return found


def _load(name: str, options: argparse.Namespace) -> DataSet:
    given = _mapping(options.options, "--options")
    if Path(name).is_dir():
        return load_dataset(options.layout or recognise(Path(name)), folder=name, **given)
    if options.layout:
        raise DataError(f"--layout {options.layout}: {name!r} is no folder")
    try:
        data = load_dataset(name, **given)
    except TypeError as error:
        raise DataError(f"data set {name!r} with --options {given}: {error}") from None
    return data


def _check(options: argparse.Namespace) -> int:
    from harness.data_tools.check import check, show

    return show(check(options.path, layout=options.layout, options=_mapping(options.options, "--options")))


def _show(options: argparse.Namespace) -> int:
    from rich.markup import escape
    from rich.table import Table

    data = _load(options.name, options)
    table = Table(
        "split",
        "images",
        "captions",
        "groups",
        title=escape(f"{data.name} ({data.fingerprint})"),
        caption=escape(data.note),
    )
    for split, content in data.splits.items():
        groups = len(set(content.image_group.tolist()))
        table.add_row(split, f"{len(content.images):,}", f"{len(content.captions):,}", f"{groups:,}")
    console.print(table)
    return 0


def _prepare(options: argparse.Namespace) -> int:
    from harness.data_tools.prepare import prepare

    if options.size < 1:
        raise DataError(f"--size {options.size}: expected a number of pixels")
    prepare(_load(options.name, options), options.out, size=options.size, form=options.format)
    size = sum(f.stat().st_size for f in options.out.iterdir())
    console.print(
        f"written: {options.out}, {size / 2**20:,.0f} MB; read it with `dataset: [webdataset]`, "
        f"`dataset_options: {{folder: {options.out}}}`",
        markup=False,
    )
    return 0


def _export(options: argparse.Namespace) -> int:
    from harness.data_tools.export import export_scan

    folder = options.out or Path("data") / f"{Path(options.name).name.rpartition(':')[2]}_precomp"
    bad = [r for r in options.noise_ratio if not 0 <= r < 1]
    if bad:
        raise DataError(f"--noise-ratio {bad[0]}: expected a number from 0 to below 1")
    export_scan(
        _load(options.name, options),
        folder,
        ratios=options.noise_ratio,
        seeds=options.noise_seed,
        granularity=options.granularity,
    )
    console.print(f"written: {folder}")
    return 0


def _embed(options: argparse.Namespace) -> int:
    import numpy as np
    from pydantic import ValidationError

    from harness.backbones import backbone_setup
    from harness.backbones.features import CachedInputs

    if options.out.exists() or options.out.suffix != ".npy":
        raise DataError(
            f"{options.out} exists already"
            if options.out.exists()
            else f"--out {options.out}: expected the name of an .npy file"
        )
    try:
        setup = backbone_setup({**_mapping(options.backbone, "--backbone"), "locked": True, "cache": True})
    except ValidationError as error:
        raise DataError(
            f"--backbone: {'; '.join(str(e['loc'][0]) + ': ' + e['msg'] for e in error.errors())}"
        ) from None
    except ValueError as error:  # an unknown kind
        raise DataError(f"--backbone: {error}") from None
    fault = setup.check(setup.config)
    if fault:
        raise DataError(f"--backbone: {fault}")
    data = _load(options.name, options)
    fault = setup.check_data(data, 1)
    if fault:
        raise DataError(fault)
    try:
        inputs = setup.inputs(data, "train", quiet=False)
    except DataError:
        raise
    except Exception as error:  # a checkpoint or a model's configuration that cannot be read
        raise DataError(f"--backbone: {type(error).__name__}: {error}") from error
    assert isinstance(inputs, CachedInputs)
    rows = inputs.image_features if options.of == "images" else inputs.text_features[inputs.rows]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    np.save(options.out, rows.numpy())
    console.print(f"written: {options.out}, {len(rows):,} {options.of} x {rows.shape[1]}")
    return 0


def _vocabulary(options: argparse.Namespace) -> int:
    from harness.data.vocabulary import MIN_COUNT, Vocabulary

    folder = options.folder
    data = load_dataset("scan", folder=str(folder))
    if data.vocabularies:
        raise DataError(f"{folder} has a vocabulary already: {data.vocabularies[0].name}")
    made = Vocabulary.build(
        data["train"].captions, min_count=MIN_COUNT if options.min_count is None else options.min_count
    )
    path = folder / f"{folder.resolve().name}_vocab.json"
    made.write(path)
    console.print(f"written: {path}, {len(made):,} words")
    return 0


def _build(options: argparse.Namespace) -> int:
    from harness.data import emoji
    from harness.data_tools import build_emoji

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        counts = build_emoji.build(emoji.FILE, folder)
    console.print(f"concepts: {', '.join(f'{k} {v}' for k, v in sorted(counts.items()))}")
    return 0


def _noise_show(options: argparse.Namespace) -> int:
    from harness.noise.files import describe, guessed_split, read_index
    from harness.noise.index import index_digest

    split = _load(options.data, options)["train"] if options.data else guessed_split(options.file)
    found = read_index(options.file, split)
    for key, value in describe(found, split).items():
        print(f"{key}: {_shown(value)}")
    print("images by their number of wrong captions:")
    for wrong, count in enumerate(found.wrong_captions.tolist()):
        print(f"  {wrong}: {count:>9,} ({100 * count / len(split.images):5.1f} %)")
    print(f"digest: {index_digest(found.image)}")
    if not options.data:
        console.print(
            f"(taken to be of {len(split.images):,} images with {len(split.captions) // len(split.images)} "
            f"captions each: --data tells for certain)"
        )
    return 0


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _noise_write(options: argparse.Namespace) -> int:
    from pydantic import TypeAdapter, ValidationError

    from harness.noise.files import write_index
    from harness.noise.models import NoiseModel, make_noise

    split = _load(options.name, options)["train"]
    given = _mapping(options.noise, "--noise") if "{" in options.noise else options.noise
    try:
        model: Any = TypeAdapter(NoiseModel).validate_python(
            {"model": given} if isinstance(given, str) else given
        )
        noise = make_noise(
            split, ratio=options.ratio, granularity=options.granularity, seed=options.seed, model=model
        )
    except ValidationError as error:
        raise DataError(f"--noise {options.noise!r}: {'; '.join(e['msg'] for e in error.errors())}") from None
    except ValueError as error:
        raise DataError(str(error)) from None
    if noise.captions is not None:
        raise DataError("noise 'partial' changes words: no published form of an index holds it")
    write_index(noise.image, split, options.out, options.form)
    console.print(
        f"written: {options.out}, {noise.granularity}-level, realised {noise.realised:.5f}, digest "
        f"{noise.digest}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
