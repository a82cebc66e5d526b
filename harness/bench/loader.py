"""Whether decoding is the bottleneck: loader images a second, raw, prepared and stored as pixels, beside what
the trainer of a model takes.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.table import Table

from harness.backbones.features import LiveInputs
from harness.backbones.pixels import PixelInputs, read_pixels, write_pixels
from harness.backbones.towers import Towers, build_towers
from harness.config.sweep_file import parse_sweep
from harness.data import load_dataset
from harness.data.base import DataSet, Split, Strings
from harness.data.pictures import Files, Pictures
from harness.data_tools.prepare import FORMATS, prepare
from harness.lib.console import console
from harness.noise.models import make_noise
from harness.training.accelerator import make_accelerator
from harness.training.cost import synchronize
from harness.training.loading import Fetch, Plan, Pool, load
from harness.training.run_trial import build_trainer
from harness.training.sampling import epoch_batches
from methods.base import Pairs

MADE = 512  # pictures where no data set is named


def bench_loader(named: DataSet | None, *, model: str, batch_size: int, workers: int, steps: int) -> None:
    """Print images a second of a data set's pictures as they are, prepared in each format and stored as
    pixels, and of the trainer.

    `named`: a data set of pictures; without one, 500 x 375 JPEGs (Flickr30K's size) are made from the
        pictures of `emoji`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        data = _first(named, MADE) if named else _made(Path(temporary) / "raw")
        towers = build_towers(model=model, pretrained="none", image_size=None)
        size = _input_size(towers)
        table = Table(
            "pictures",
            "MB",
            "images/s",
            "ratio",
            title=f"{len(data['train'].images)} pictures, {size} pixels, {workers or 'no'} workers",
        )
        rates: dict[str, float] = {}
        live = LiveInputs(data["train"], towers.transform, towers.tokenize)
        rates["raw"] = _rate(live, data["train"], batch_size, workers)
        table.add_row("as they are", f"{_bytes(data['train']) / 2**20:.1f}", f"{rates['raw']:.0f}", "1.00")
        for form in FORMATS:
            out = Path(temporary) / form
            prepare(data, out, size=size, form=form)
            prepared = load_dataset("webdataset", folder=str(out))
            live = LiveInputs(prepared["train"], towers.transform, towers.tokenize)
            rates[form] = _rate(live, prepared["train"], batch_size, workers)
            table.add_row(
                f"prepared, {form}",
                f"{_bytes(prepared['train']) / 2**20:.1f}",
                f"{rates[form]:.0f}",
                f"{rates[form] / rates['raw']:.2f}",
            )
        if towers.spatial:
            stored = _stored(Path(temporary) / "pixels.npy", data["train"], towers)
            rates["pixel_cache"] = _rate(stored, data["train"], batch_size, workers)
            table.add_row(
                "pixel_cache",
                f"{stored.pixels.nbytes / 2**20:.1f}",
                f"{rates['pixel_cache']:.0f}",
                f"{rates['pixel_cache'] / rates['raw']:.2f}",
            )
        need, device = _trainer_rate(data, model, batch_size, steps)
        table.add_row(f"the trainer of {model} takes", "", f"{need:.0f}", f"{need / rates['raw']:.2f}")
        console.print(table)
        console.print(
            f"trainer: one process on {device}, batch {batch_size}, inputs in memory. "
            f"{_verdict(rates, need)}",
            markup=False,
        )


def _verdict(rates: dict[str, float], need: float) -> str:
    best = max((f for f in rates if f != "raw"), key=rates.__getitem__)
    if rates["raw"] >= need:
        return "The pictures as they are keep it busy."
    if rates[best] >= need:
        return f"The pictures as they are do not keep it busy, others ({best}) do."
    return f"Nothing keeps it busy: the fastest ({best}) need {need / rates[best]:.1f} times the workers."


def _made(folder: Path) -> DataSet:
    """500 x 375 JPEGs with the detail of photographs: emoji, enlarged, with grain."""
    folder.mkdir(parents=True)
    source = load_dataset("emoji")["train"]
    draw = np.random.default_rng(0)
    for i in range(MADE):
        picture = np.asarray(
            source.images[i * len(source.images) // MADE].resize((500, 375), Image.Resampling.BICUBIC),
            np.int16,
        )
        grain = picture + draw.integers(-12, 13, picture.shape)
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=90)
    one = np.arange(MADE)
    split = Split(Files(folder, Strings(f"{i}.jpg" for i in one)), [f"picture {i}" for i in one], one, one)
    return _first(DataSet("made", {"train": split}, "made"), MADE)


def _first(data: DataSet, count: int) -> DataSet:
    number = np.arange(len(data["train"].images))
    train, few = (data["train"].only(np.asarray(number < n, bool)) for n in (count, 8))
    return DataSet(data.name, {"train": train, "dev": few, "test": few}, data.fingerprint)


def _input_size(towers: object) -> int:
    size = towers.model.visual.image_size  # type: ignore[attr-defined]
    return int(size[0] if isinstance(size, tuple) else size)


def _bytes(split: Split) -> int:
    pictures: Pictures = split.images  # type: ignore[assignment]
    return sum(len(pictures.read(i)) for i in range(len(pictures)))


def _stored(file: Path, train: Split, towers: Towers) -> PixelInputs:
    assert towers.spatial is not None
    write_pixels(file, train.images, towers.spatial)
    pixels = read_pixels(file, (len(train.images), *towers.spatial(train.images[0]).shape))
    assert pixels is not None
    return PixelInputs(pixels, train, towers.transform, towers.tokenize)


def _rate(source: LiveInputs, train: Split, batch_size: int, workers: int) -> float:
    """Images a second of the trainer's own loader over one epoch, after a batch that starts the workers."""
    size = min(batch_size, len(train.captions))
    steps = len(train.captions) // size
    order = epoch_batches(np.arange(len(train.captions)), None, size=size, steps=steps, seed=(0,))
    plans = [
        Plan(torch.from_numpy(b), Pairs(torch.from_numpy(train.owner[b]), torch.from_numpy(b))) for b in order
    ]
    fetch = Fetch({"train": source})
    with contextlib.closing(Pool(fetch.inputs, workers)) as pool:
        list(load(plans[:1], fetch, pool))
        began = time.perf_counter()
        seen = sum(len(batch.images) for batch in load(plans, fetch, pool))
        return seen / (time.perf_counter() - began)


def _trainer_rate(data: DataSet, model: str, batch_size: int, steps: int) -> tuple[float, str]:
    """Images a second of CLIP training of the whole model, with the inputs at hand."""
    size = min(batch_size, len(data["train"].captions))
    backbone = {"model": model, "pretrained": "none", "locked": False, "head": None, "temperature": None}
    fixed = {"backbone": backbone, "batch_size": size, "dataset": "emoji", "noise_ratio": 0, "seed": 0}
    trial = parse_sweep({"name": "bench", "grid": {"method": ["clip"]}, "fixed": fixed}).trials[0]
    noise = make_noise(data["train"], ratio=0, granularity="caption", seed=0)
    trainer = build_trainer(trial, data, noise, make_accelerator("auto"))
    batch = next(trainer.batches(0))
    trainer.method.train()
    for step in range(steps + 1):
        if step == 1:
            synchronize()
            began = time.perf_counter()
        trainer.optimizers.at_step(step)
        with trainer.accelerator.autocast():
            trainer.method.step(batch, trainer.optimizers, 0)
    synchronize()
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"a CPU with {torch.get_num_threads()} threads"
    )
    return steps * size / (time.perf_counter() - began), device
