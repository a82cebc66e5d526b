"""`python -m harness.evaluate SIMILARITIES.npy --data PATH`: recalls of what another program has computed.

SIMILARITIES.npy has a row for each image and a column for each caption of the split. Or give two files of
embeddings, which are compared by their cosine:

  python -m harness.evaluate --images images.npy --texts captions.npy --data PATH

What matches what comes from the data set (PATH is its directory, or a name), from files of group ids, or from
a number of captions for each image. The result is printed, and written with --json. No PyTorch is needed.

Exit code 0: evaluated; 2: bad input.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.lib.command import run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from harness.data.base import DataSet
    from harness.evaluation.given import Evaluation


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code."""
    options = _parse(arguments)
    from harness.data.base import DataError  # what the command needs is loaded once it is known
    from harness.evaluation.given import evaluate
    from harness.lib.console import fail
    from harness.lib.registry import UnknownName

    try:
        data = _data(options)
        groups = _groups(options, data)
        coco = data if data is not None and options.split == "test" else None
        scores, notes = _scores(options, len(groups[0]))
        found = evaluate(scores, *groups, distances=options.distances, coco=coco)
        found = replace(found, notes=(*notes, *found.notes))
    except (DataError, UnknownName, ValueError) as error:  # ValueError: an image or a caption without a match
        return fail([str(error)])
    print(_table(found))
    try:
        _write(found, groups, options)
    except OSError as error:
        return fail([f"{error.filename}: {error.strerror or error}"])
    return 0


def _write(
    found: Evaluation, groups: tuple[NDArray[np.int64], NDArray[np.int64]], options: argparse.Namespace
) -> None:
    """The files that are asked for. Raises OSError."""
    if options.json:
        told = {"images": found.images, "captions": found.captions, "chance_rsum": found.chance}
        text = json.dumps({**told, "notes": found.notes, **found.metrics}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")
    if options.ranks:
        import numpy as np

        arrays: dict[str, Any] = {**found.i2t.arrays("i2t"), **found.t2i.arrays("t2i")}
        np.savez_compressed(options.ranks, i2t_group=groups[0], t2i_group=groups[1], **arrays)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m harness.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("similarities", nargs="?", type=Path, help=".npy, [images, captions]")
    parser.add_argument("--images", type=Path, help=".npy, embeddings of the images, [images, D]")
    parser.add_argument("--texts", type=Path, help=".npy, embeddings of the captions, [captions, D]")
    parser.add_argument("--distances", action="store_true", help="smaller is better")
    what = parser.add_argument_group("what matches what (one of three)")
    what.add_argument("--data", metavar="PATH", help="directory or name of a data set")
    what.add_argument("--split", help="of the data set (default: test)")
    what.add_argument("--layout", help="of the directory (default: recognised from its files)")
    what.add_argument("--options", default="{}", help="dataset_options, as in a sweep file")
    what.add_argument("--image-groups", type=Path, help=".npy of integers, one for each image, ...")
    what.add_argument("--caption-groups", type=Path, help="... and one for each caption: equal ones match")
    what.add_argument(
        "--captions-per-image", type=int, metavar="K", help="K captions of each image follow one another"
    )
    out = parser.add_argument_group("files")
    out.add_argument("--json", type=Path, help="measures as JSON")
    out.add_argument("--ranks", type=Path, help="ranks of all queries, as .npz")
    options = parser.parse_args(arguments)
    embeddings = [options.images is not None, options.texts is not None]
    if any(embeddings) if options.similarities is not None else not all(embeddings):
        parser.error("give SIMILARITIES.npy, or both --images and --texts")
    groups = options.image_groups is not None and options.caption_groups is not None
    if [options.data is not None, groups, options.captions_per_image is not None].count(True) != 1:
        parser.error("give one of --data, --image-groups with --caption-groups, and --captions-per-image")
    if options.captions_per_image is not None and options.captions_per_image < 1:
        parser.error("--captions-per-image: expected at least 1")
    if options.data is None and options.split is not None:
        parser.error("--split belongs to --data")
    options.split = options.split or "test"
    return options


def _data(options: argparse.Namespace) -> DataSet | None:
    from harness.data_tools.commands import load_given

    return None if options.data is None else load_given(options.data, options)


def _scores(options: argparse.Namespace, images: int) -> tuple[NDArray[np.floating], list[str]]:
    """The similarities, or those of the embeddings of so many images, and what was put right."""
    from harness.data.base import read_array
    from harness.evaluation.given import copies_note, cosines, one_of_each
    from harness.record.external_files import read_similarities

    if options.similarities is not None:
        return read_similarities(options.similarities), []
    of_images = read_array(options.images, "image embeddings", mapped=True)
    of_texts = read_array(options.texts, "caption embeddings", mapped=True)
    once = one_of_each(of_images, images)
    notes = [] if len(once) == len(of_images) else [copies_note(len(of_images), images)]
    return cosines(once, of_texts), notes


def _groups(options: argparse.Namespace, data: DataSet | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Groups of images and of captions."""
    import numpy as np

    from harness.data.base import DataError, read_array

    if data is not None:
        split = data[options.split]
        return split.image_group, split.caption_group
    if options.captions_per_image is not None:
        images = _images(options)
        return np.arange(images), np.arange(images * options.captions_per_image) // options.captions_per_image
    found = []
    for path in (options.image_groups, options.caption_groups):
        ids = read_array(path, "group ids")
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise DataError(f"group ids {path}: expected one integer for each image or caption")
        found.append(ids.astype(np.int64))
    return found[0], found[1]


def _images(options: argparse.Namespace) -> int:
    """The number of images, where each has K captions. Raises DataError where none can be told."""
    from harness.data.base import read_array
    from harness.evaluation.given import images_of

    if options.images is not None:
        given = [len(read_array(f, "embeddings", mapped=True)) for f in (options.images, options.texts)]
    else:
        given = sorted(read_array(options.similarities, "similarities", mapped=True).shape)
    return images_of(given, options.captions_per_image)


def _table(found: Evaluation) -> str:
    """Measures as text, a line for each protocol."""
    from tabulate import tabulate

    columns = [f"{d}_r{k}" for d in ("i2t", "t2i") for k in (1, 5, 10)]
    headings = ["", *(c.replace("_r", " R@") for c in columns), "rSum", "median rank i2t, t2i"]
    rows: list[list[Any]] = []
    for name, prefix in (("all", ""), ("1K, mean of five folds", "1k_")):
        if f"{prefix}rsum" in found.metrics:
            values = [f"{found.metrics[prefix + c]:.2f}" for c in (*columns, "rsum")]
            ranks = ", ".join(f"{found.metrics[f'{prefix}{d}_median_rank']:g}" for d in ("i2t", "t2i"))
            rows.append([name, *values, ranks])
    lines = [
        tabulate(rows, headings, disable_numparse=True, stralign="right"),
        "",
        f"{found.images:,} images, {found.captions:,} captions; by chance rSum is {found.chance:.2f}",
    ]
    eccv = {k: v for k, v in found.metrics.items() if k.startswith("eccv_")}
    if eccv:
        lines.append("ECCV Caption: " + ", ".join(f"{k[5:]} {v:.2f}" for k, v in eccv.items()))
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])


if __name__ == "__main__":
    run(main)
