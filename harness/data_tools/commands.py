"""The commands of `python -m harness.data`: each takes the parsed options and returns the exit code.

Modules that need PyTorch or Rich tables are imported by the commands that use them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from harness.config.plain_yaml import read_yaml
from harness.data import load_dataset, recognise
from harness.data.base import DataError, DataSet
from harness.lib.console import console, fail
from harness.lib.registry import UnknownName


def run(options: argparse.Namespace) -> int:
    """Run the command `options.run` of `COMMANDS`; errors in the user's input are printed."""
    try:
        return COMMANDS[options.run](options)
    except (UnknownName, DataError) as error:
        return fail([str(error)])
    except OSError as error:
        return fail([f"{error.filename or options.command}: {error.strerror or error}"])


def _mapping(text: str, flag: str) -> dict[str, Any]:
    """Options given as YAML on the command line. Raises DataError if they are not a mapping of names."""
    try:
        content = read_yaml(text)
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(f"{flag} {text!r} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise DataError(f"{flag} {text!r}: expected a mapping, as in a sweep file")
    if "folder" in content or not all(isinstance(k, str) for k in content):
        raise DataError(f"{flag} {text!r}: expected names of options other than folder, which is PATH")
    return content


def load_given(name: str, options: argparse.Namespace) -> DataSet:
    """The data set of a command line: a directory or a name, with its `layout` and `options`.

    Raises:
        DataError, UnknownName: there is no such data set, or it cannot be read.
    """
    given = _mapping(options.options, "--options")
    if Path(name).is_dir():
        return load_dataset(options.layout or recognise(Path(name)), folder=name, **given)
    if options.layout:
        raise DataError(f"--layout {options.layout}: {name!r} is not a directory")
    if Path(name).name != name:
        raise DataError(f"data set {name}: there is no such directory")
    try:
        return load_dataset(name, **given)
    except TypeError as error:
        raise DataError(f"data set {name!r} with --options {given}: {error}") from None


def _check(options: argparse.Namespace) -> int:
    from harness.data_tools.check import check, show

    return show(check(options.path, layout=options.layout, options=_mapping(options.options, "--options")))


def _show(options: argparse.Namespace) -> int:
    from rich.markup import escape
    from rich.table import Table

    data = load_given(options.name, options)
    table = Table(
        "split",
        "images",
        "captions",
        "groups",
        title=escape(f"{data.name} ({data.fingerprint})"),
        caption=escape(data.note),
    )
    for name, split in data.splits.items():
        groups = len(set(split.image_group.tolist()))
        table.add_row(name, f"{len(split.images):,}", f"{len(split.captions):,}", f"{groups:,}")
    console.print(table)
    return 0


def _prepare(options: argparse.Namespace) -> int:
    from harness.data_tools.prepare import prepare

    if options.size < 1:
        raise DataError(f"--size {options.size}: expected a positive number of pixels")
    prepare(load_given(options.name, options), options.out, size=options.size, form=options.format)
    size = sum(f.stat().st_size for f in options.out.iterdir())
    console.print(
        f"written: {options.out}, {size / 2**20:,.0f} MB; read it with `dataset: [webdataset]`, "
        f"`dataset_options: {{folder: {options.out}}}`",
        markup=False,
    )
    return 0


def _export(options: argparse.Namespace) -> int:
    from harness.data_tools.export import export_scan

    directory = options.out or Path("data") / f"{Path(options.name).name.rpartition(':')[2]}_precomp"
    outside = [r for r in options.noise_ratio if not 0 <= r < 1]
    if outside:
        raise DataError(f"--noise-ratio {outside[0]}: expected a number from 0 to below 1")
    export_scan(
        load_given(options.name, options),
        directory,
        ratios=options.noise_ratio,
        seeds=options.noise_seed,
        granularity=options.granularity,
    )
    console.print(f"written: {directory}")
    return 0


def _embed(options: argparse.Namespace) -> int:
    import numpy as np

    from harness.backbones.features import CachedInputs

    if options.out.exists() or options.out.suffix != ".npy":
        raise DataError(
            f"{options.out} exists already"
            if options.out.exists()
            else f"--out {options.out}: expected the name of an .npy file"
        )
    setup = _locked_clip(_mapping(options.backbone, "--backbone"))
    data = load_given(options.name, options)
    incompatibility = setup.check_data(data, 1)
    if incompatibility:
        raise DataError(incompatibility)
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


def _locked_clip(backbone: dict[str, Any]) -> Any:
    """The setup of a locked CLIP backbone. Raises DataError if the options of `--backbone` are wrong."""
    from pydantic import ValidationError

    from harness.backbones import backbone_setup

    try:
        setup = backbone_setup({**backbone, "kind": "clip", "locked": True, "cache": True})
    except ValidationError as error:
        raise DataError(
            f"--backbone: {'; '.join(str(e['loc'][0]) + ': ' + e['msg'] for e in error.errors())}"
        ) from None
    problem = setup.check(setup.config)
    if problem:
        raise DataError(f"--backbone: {problem}")
    return setup


def _vocabulary(options: argparse.Namespace) -> int:
    from harness.data.vocabulary import MIN_COUNT, Vocabulary

    directory = options.folder
    data = load_dataset("scan", folder=str(directory))
    if data.vocabularies:
        raise DataError(f"{directory} has a vocabulary already: {data.vocabularies[0].name}")
    vocabulary = Vocabulary.build(
        data["train"].captions, min_count=MIN_COUNT if options.min_count is None else options.min_count
    )
    path = directory / f"{directory.resolve().name}_vocab.json"
    vocabulary.write(path)
    console.print(f"written: {path}, {len(vocabulary):,} words")
    return 0


def _build(options: argparse.Namespace) -> int:
    from harness.data import emoji, icons
    from harness.data_tools import build_emoji, build_icons

    target, build = {
        "emoji": (emoji.FILE, build_emoji.build),
        "icons": (icons.FILE, build_icons.build),
    }[options.name]
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.work or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        counts = build(target, directory)
    console.print(f"concepts: {', '.join(f'{k} {v}' for k, v in sorted(counts.items()))}")
    return 0


def _unpickle(options: argparse.Namespace) -> int:
    from harness.data_tools.unpickle import unpickle

    console.print(
        f"warning: {options.file} is opened as a pickle, a format that can run code. Only arrays, numbers, "
        f"text, lists and dictionaries are loaded from it. Open it elsewhere (numpy.load with allow_pickle) "
        f"only if you trust its author.",
        markup=False,
    )
    for name, array in unpickle(options.file, options.out).items():
        console.print(f"{options.out}: {name} {array.dtype} {array.shape}", markup=False)
    return 0


def _noise_show(options: argparse.Namespace) -> int:
    from harness.noise.files import describe, guessed_split, read_index
    from harness.noise.index import index_digest

    split = load_given(options.data, options)["train"] if options.data else guessed_split(options.file)
    index = read_index(options.file, split)
    for key, value in describe(index, split).items():
        print(f"{key}: {_formatted(value)}")
    print("images by their number of wrong captions:")
    for wrong, count in enumerate(index.wrong_captions.tolist()):
        print(f"  {wrong}: {count:>9,} ({100 * count / len(split.images):5.1f} %)")
    print(f"digest: {index_digest(index.image)}")
    if not options.data:
        console.print(
            f"(assumed: {len(split.images):,} images with {len(split.captions) // len(split.images)} "
            f"captions each; name the data set with --data to be certain)"
        )
    return 0


def _formatted(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _noise_write(options: argparse.Namespace) -> int:
    from pydantic import TypeAdapter, ValidationError

    from harness.noise.files import write_index
    from harness.noise.models import NoiseModel, make_noise

    split = load_given(options.name, options)["train"]
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
        raise DataError("noise 'partial' changes words: no published form of an index can represent it")
    write_index(noise.image, split, options.out, options.form)
    console.print(
        f"written: {options.out}, {noise.granularity}-level, realised {noise.realised:.5f}, digest "
        f"{noise.digest}"
    )
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "check": _check,
    "show": _show,
    "prepare": _prepare,
    "export": _export,
    "embed": _embed,
    "vocabulary": _vocabulary,
    "build": _build,
    "unpickle": _unpickle,
    "noise show": _noise_show,
    "noise write": _noise_write,
}
