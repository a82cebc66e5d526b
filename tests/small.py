"""Small real inputs: a few concepts of `emoji`, and sweeps over them with a model of one layer."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from harness.config.sweep_file import Sweep, parse_sweep
from harness.config.trial import Trial
from harness.data import load_dataset
from harness.data.base import DataSet, Split
from harness.data.scan import Regions

TINY_MODEL = str(Path(__file__).parent / "fixtures" / "tiny_clip.json")
NARROW_MODEL = TINY_MODEL.replace("tiny", "narrow")
CONCEPTS = {"train": 40, "dev": 12, "test": 12, "meta": 6}
HEAD = {"hidden": 16, "dim": 8, "dropout": 0.0}
# All words of the captions: with unknown ones, different captions would be equal, and their ties a matter of
# rounding.
WORDS = str(Path(__file__).parent / "fixtures" / "small_vocab.json")
SGRAF = {"kind": "sgraf", "embed": 12, "similarity": 6, "word": 5, "steps": 2, "vocabulary": WORDS}
WARMED_UP = {
    "small_loss": {"warmup_epochs": 1},
    "npc": {"warmup_epochs": 1, "least_bank": 0.2},
    "ncr": {"warmup_epochs": 1, "noisy_after": 0},
    "mscn": {"warmup_epochs": 1, "meta_lr": 1e-3},
    "crcl": {"warmup_epochs": 1, "restarts": 1, "round_epochs": 2},
    "decl": {"warmup_epochs": 1},
    "bicro": {"warmup_epochs": 1, "noisy_after": 0},
    "cream": {"warmup_epochs": 1, "hard_after": 0, "noisy_after": 0},
    "score_filter": {"estimator": "warmup", "warmup_epochs": 1},
    "lemon": {"estimator": "warmup", "warmup_epochs": 1, "neighbours": 5},
    "osa": {"estimator": "warmup", "warmup_epochs": 1},
    "l2rm": {"warmup_epochs": 1},
}


@lru_cache
def load() -> DataSet:
    """A part of `emoji`, as a user's own data set would be given: `dataset: tests.small:load`."""
    whole = load_dataset("emoji")
    splits = {name: first_concepts(_with_five(whole[name]), n) for name, n in CONCEPTS.items()}
    return DataSet("small", splits, whole.fingerprint[:8] + "-small", distinct_groups=True)


@lru_cache
def few() -> DataSet:
    """The same with eight training concepts."""
    data = load()
    splits = {**data.splits, "train": first_concepts(data["train"], 8)}
    return replace(data, name="few", splits=splits, fingerprint=f"{data.fingerprint}-few")


def literally(*, eval: str) -> DataSet:
    """The same, where its option arrives as it was written."""
    if eval != "1 + 1":
        raise ValueError(f"eval was '1 + 1' in the sweep file, and is {eval!r} here")
    return load()


@lru_cache
def regions(concepts: int = 20) -> DataSet:
    """The same with region features: a picture is 9 patches of 8 x 8 coarse pixels."""
    data = load()
    fewer = {name: first_concepts(split, concepts) for name, split in data.splits.items()}
    splits = {
        name: replace(split, images=Regions(_patches(split), np.arange(len(split.images))), kind="regions")
        for name, split in fewer.items()
    }
    return replace(data, name="regions", splits=splits, fingerprint=f"{data.fingerprint}-regions")


def write_scan(folder: Path) -> None:
    """`regions` as files in the SCAN layout; images without captions are left out."""
    folder.mkdir(parents=True)
    for name, split in regions().splits.items():
        owners = np.unique(split.owner)
        np.save(folder / f"{name}_ims.npy", split.images[owners])
        (folder / f"{name}_caps.txt").write_text("".join(f"{c}\n" for c in split.captions))
        np.save(folder / f"{name}_groups.npy", split.image_group[owners])


def _patches(split: Split) -> np.ndarray:
    pictures = np.stack(
        [np.asarray(image.resize((24, 24)), np.float32) / 255 - 0.5 for image in split.images]
    )
    grid = pictures.reshape(len(pictures), 3, 8, 3, 8, 3).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(len(pictures), 9, -1)


def _with_five(split: Split) -> Split:
    """The concepts of dev and test that have kept all five captions, as the field's layouts need them."""
    counts = np.bincount(split.caption_group)
    five = np.flatnonzero((counts == 5) | (counts == 5 * np.bincount(split.image_group)))
    return split.only(np.isin(split.image_group, five))


def first_concepts(split: Split, count: int) -> Split:
    images = np.flatnonzero(split.image_group < count)
    captions = np.flatnonzero(split.caption_group < count)
    place = {old: new for new, old in enumerate(images)}
    owner = np.array([place[i] for i in split.owner[captions]], np.int64)
    return Split(
        [split.images[i] for i in images],
        [split.captions[i] for i in captions],
        owner,
        split.image_group[images],
    )


def backbone(**changes: Any) -> dict[str, Any]:
    head = {**HEAD, **changes.pop("head", {})}
    return {"model": TINY_MODEL, "pretrained": "none", "head": head, **changes}


SETTINGS = {
    "clip": {"backbone": backbone()},
    "clip, dropout": {"backbone": backbone(head={"dropout": 0.3}), "epochs": 2},
    # At a rate at which rounding stays rounding: at ten times this one, a change of 1e-14 in the weights
    # grows to 1e-3 in two epochs.
    "SGR, dropout": {"backbone": {**SGRAF, "module": "SGR", "dropout": 0.3}, "epochs": 2, "lr": 2e-4},
    "SAF": {"backbone": {**SGRAF, "module": "SAF", "dropout": 0.0}, "epochs": 2, "lr": 2e-4},
}
"""What every method is held to, beside the default: backbones with and without draws of their own."""


_FEW = {
    "backbone": backbone(model=NARROW_MODEL, locked=False, head={"dropout": 0.3}),
    "epochs": 1,
    "batch_size": 6,
    "lr": 2e-4,
}
FEW_PAIRS = {
    "ncr": {**_FEW, "hyper": {"warmup_epochs": 0}},
    "mscn": {**_FEW, "hyper": {"warmup_epochs": 0, "clean_pairs": 2}},
}
"""Batches of fewer pairs than eight processes, on whole towers that read pictures: uneven pools, and a clean
set of two pairs. Their text tower is narrow, since eight processes exchange all gradients at each step.
"""


REPRESENTATIVES = frozenset({"clip", "npc", "ncr", "mscn"})
"""Methods that two processes train on both backbones, and that are killed alone: the plainest one, one with
an auxiliary model, one with two networks, and one with gradients of gradients. Others are like one of these.
"""


def sweep(*methods: str, name: str = "small", **changes: Any) -> Sweep:
    """A sweep of three quick epochs; keyword arguments replace top-level keys, `fixed` is merged."""
    return parse_sweep(content(*methods, name=name, **changes))


def content(*methods: str, name: str = "small", **changes: Any) -> dict[str, Any]:
    fixed = {
        "backbone": backbone(),
        "epochs": 3,
        "batch_size": 16,
        "lr": 3e-3,
        "warmup_steps": 3,
        **changes.pop("fixed", {}),
    }
    grid = {
        "method": list(methods),
        "dataset": ["tests.small:load"],
        "noise_ratio": [0.4],
        "seed": [0],
        **changes.pop("grid", {}),
    }
    overrides = {m: WARMED_UP[m] for m in grid["method"] if m in WARMED_UP}
    return {
        "name": name,
        "grid": grid,
        "fixed": fixed,
        "overrides": {**overrides, **changes.pop("overrides", {})},
        **changes,
    }


def trial(method: str, *, seed: int = 0, **fixed: Any) -> Trial:
    return sweep(method, fixed=fixed, grid={"seed": [seed]}).trials[0]
