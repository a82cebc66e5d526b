from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import nn

from harness.backbones.clip import ClipConfig, ClipSetup
from harness.backbones.features import LiveInputs
from harness.backbones.pixels import SHARE_OF_DISK, PixelInputs, spatial_transform, stored_pixels
from harness.backbones.towers import Towers
from harness.data.base import DataError, DataSet, Split, Strings
from harness.data.pictures import BadPicture, Files
from harness.lib.console import console
from harness.sweep.preflight import prepare_features
from tests import build, small

WHOLE = {"locked": False, "cache": False}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pixels"


def open_clips(**changes):
    return image_transform_v2(PreprocessCfg(**{"size": 24, **changes}), is_train=False)


def photographs(count=6):
    draw = np.random.default_rng(0)
    sizes = draw.integers(17, 80, (count, 2))
    return [Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def inputs_of(pixel_cache="auto", data=None, split="dev", **changes):
    config = ClipConfig.model_validate(small.backbone(**WHOLE, pixel_cache=pixel_cache, **changes))
    return ClipSetup(config).inputs(data or small.load(), split)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear"},
        {"resize_mode": "squash"},
        {"resize_mode": "longest", "fill_color": 7},
        {"size": (24, 16)},
    ],
)
def test_networks_see_the_pixels_of_open_clip_bit_for_bit(changes, dtype):
    transform = open_clips(**changes)
    towers = Towers(nn.Module(), transform, list).to(dtype)
    pixels = torch.stack([towers.transform(picture) for picture in photographs()])
    assert pixels.dtype == torch.uint8
    expected = torch.stack([transform(picture) for picture in photographs()]).to(dtype)
    assert torch.equal(towers.normalized(pixels), expected)
    assert not towers.state_dict()


def test_other_transforms_stay_whole():
    steps = open_clips().transforms
    compose = type(open_clips())
    assert spatial_transform(open_clips()) is not None
    for other in (
        lambda picture: picture,
        compose(steps[:-1]),  # not normalised
        compose([*steps[:-2], nn.Identity(), *steps[-2:]]),  # a step of unknown effect
        image_transform_v2(PreprocessCfg(size=24), is_train=True),  # draws
    ):
        assert spatial_transform(other) is None
    towers = Towers(nn.Module(), compose([*steps[:-2], nn.Identity(), *steps[-2:]]), list)
    pixels = torch.stack([towers.transform(picture) for picture in photographs()])
    assert pixels.dtype == torch.float32
    assert towers.normalized(pixels) is pixels


def test_stored_pictures_are_those_that_are_decoded(cache):
    stored, live = inputs_of("auto"), inputs_of(False)
    assert isinstance(stored, PixelInputs)
    assert type(live) is LiveInputs
    index = torch.tensor([3, 0, 3, 7])
    assert torch.equal(stored.images(index), live.images(index))
    assert torch.equal(stored.texts(index), live.texts(index))
    file, *others = cache.glob("*.npy")
    assert not others
    assert np.load(file).shape == (len(small.load()["dev"].images), 3, 32, 32)
    # A model with other weights of the same input size shares the file, one of another size does not.
    inputs_of("auto", head={"dim": 4})
    assert len(list(cache.glob("*.npy"))) == 1
    inputs_of("auto", image_size=16)
    assert len(list(cache.glob("*.npy"))) == 2


def test_a_trial_on_stored_pictures_gives_the_same_numbers(cache):
    losses = []
    for value in ("auto", False):
        records = []
        backbone = small.backbone(**WHOLE, pixel_cache=value)
        build.trainer("clip", backbone=backbone, epochs=1).fit(records.append)
        losses.append([{k: v for k, v in r.metrics.items() if "seconds" not in k} for r in records])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("kept", [100, -100])
def test_a_torn_file_is_written_again(cache, kept):
    expected = inputs_of().images(torch.arange(3))
    file = next(cache.glob("*.npy"))
    file.write_bytes(file.read_bytes()[:kept])
    assert torch.equal(inputs_of().images(torch.arange(3)), expected)
    assert not list(cache.glob(".*.tmp"))


def test_auto_leaves_shards_and_small_disks_alone(cache, monkeypatch):
    data = small.load()
    shards = dataclasses.replace(data, shard=np.zeros(len(data["train"].images), np.int64))
    assert not isinstance(inputs_of("auto", shards), PixelInputs)
    needed = sum(len(split.images) for split in data.splits.values()) * 3 * 32 * 32
    usage = shutil.disk_usage(cache.parent.parent)

    def disk_with(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=int(free)))

    disk_with(needed / SHARE_OF_DISK - 4)
    assert not isinstance(inputs_of("auto"), PixelInputs)
    assert isinstance(inputs_of(True), PixelInputs)
    disk_with(needed / SHARE_OF_DISK + 4)
    assert isinstance(inputs_of("auto", split="meta"), PixelInputs)
    disk_with(1e5)
    count = len(data["train"].images)
    with pytest.raises(DataError, match=rf"{count} pictures take {count * 3072 / 1e6:.0f} MB, and .* 0 MB"):
        inputs_of(True, split="train")
    assert isinstance(inputs_of(True, shards, split="dev"), PixelInputs)


def test_a_cache_that_cannot_be_written_is_done_without(cache, monkeypatch):
    cache.parent.mkdir()
    cache.write_text("in the way")
    assert not isinstance(inputs_of("auto"), PixelInputs)
    with pytest.raises(OSError, match="pixels"):
        inputs_of(True)


def test_an_undecodable_picture_is_named_and_nothing_is_left(cache, tmp_path):
    for i in range(5):
        small.load()["dev"].images[i].save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"no picture")
    one = np.arange(5)
    images = Files(tmp_path, Strings(f"{i}.png" for i in one))
    data = DataSet("files", {"train": Split(images, ["a"] * 5, one, one)}, "files")
    transform = spatial_transform(open_clips())
    with pytest.raises(BadPicture, match=r"picture \S*/3.png cannot be decoded"):
        stored_pixels(data, "train", transform, required=False, quiet=True)
    assert not list(cache.glob("*.npy")) + list(cache.glob(".*.tmp"))
    small.load()["dev"].images[3].save(tmp_path / "3.png")
    pixels = stored_pixels(data, "train", transform, required=False, quiet=True)
    assert torch.equal(pixels, torch.stack([transform(images[i]) for i in range(5)]))


def test_a_sweep_stores_pictures_before_it_starts_and_tells_their_size(cache):
    trial = small.trial("clip", backbone=small.backbone(**WHOLE))
    with console.capture() as told:
        prepare_features([trial], {f"{trial.dataset} []": small.load()})
    assert len(list(cache.glob("*.npy"))) == len(small.load().splits)
    count = len(small.load()["train"].images)
    assert f"storing {count} pictures (train) in 32 x 32 pixels, {count * 3072 / 1e6:.0f} MB" in told.get()
    with console.capture() as told:
        prepare_features([trial], {f"{trial.dataset} []": small.load()})
    assert "storing" not in told.get()


def test_the_cache_is_no_part_of_a_trial():
    trials = [
        small.trial("clip", backbone=small.backbone(**WHOLE, pixel_cache=v)) for v in ("auto", True, False)
    ]
    plain = small.trial("clip", backbone=small.backbone(**WHOLE))
    assert {t.id for t in trials} == {plain.id}
    assert {t.cell_id for t in trials} == {plain.cell_id}
    assert all(t.parameters() == plain.parameters() for t in trials)
    assert "pixel_cache" not in plain.backbone
    assert [t.backbone.get("pixel_cache") for t in trials] == [None, True, False]


def test_a_process_without_rows_gets_the_shape():
    for value in ("auto", False):
        inputs = inputs_of(value)
        nothing = torch.arange(0)
        assert inputs.images(nothing).shape == (0, 3, 32, 32)
        assert inputs.texts(nothing).shape == (0, inputs.texts(torch.arange(1)).shape[1])
