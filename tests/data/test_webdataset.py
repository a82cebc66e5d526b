"""Tar shards and prepared pictures: an epoch goes through every pair once, shard by shard; what is prepared
trains as the original does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.data import load_dataset
from harness.data.base import DataError
from harness.data_tools.cli import main
from harness.data_tools.prepare import FORMATS, prepare
from harness.training.accelerator import make_accelerator
from harness.training.loading import Fetch, load
from harness.training.run_trial import build_trainer, run_trial
from harness.training.sampling import SHARDS_AT_ONCE, epoch_batches, scan_batches
from tests import layouts, small
from tests.data.test_layout import Kept, trial

ROOT = Path(__file__).parents[2]
SIZE = json.loads(Path(small.TINY_MODEL).read_text())["vision_cfg"]["image_size"]


def test_an_epoch_sees_every_pair_once_and_few_shards_at_a_time():
    shards = np.arange(6400) // 100  # 64 shards
    orders = []
    for epoch in (0, 1):
        batches = epoch_batches(
            np.arange(6400), None, size=32, steps=200, seed=(3, "order", epoch), shards=shards
        )
        order = np.concatenate(batches)
        assert sorted(order) == list(range(6400))
        orders.append(order)
        for window in order.reshape(64 // SHARDS_AT_ONCE, -1):
            assert len(np.unique(shards[window])) == SHARDS_AT_ONCE
        inside = np.diff(order[: SHARDS_AT_ONCE * 100])
        assert (inside == 1).mean() < 0.05  # shuffled among them, not read in order
    assert (orders[0] != orders[1]).mean() > 0.9
    again = epoch_batches(np.arange(6400), None, size=32, steps=200, seed=(3, "order", 0), shards=shards)
    assert (np.concatenate(again) == orders[0]).all()


def test_noise_and_batches_follow_the_shards_of_the_pictures(tmp_path):
    root = layouts.shards(tmp_path / "shards")
    setting = trial("webdataset", root).model_copy(update={"batch_size": 4})
    data = load_dataset("webdataset", folder=str(root))
    noise = setting.noise_index(data)
    trainer = build_trainer(setting, data, noise, make_accelerator("fp32"))
    assert (trainer.shards == data.shard[noise.image]).all()
    plan = trainer.plan_pass(0)
    batches = plan.batches
    assert sorted(np.concatenate(batches)) == list(range(24))


def test_processes_share_out_every_batch(tmp_path):
    root = layouts.shards(tmp_path / "shards")
    setting = trial("webdataset", root).model_copy(update={"batch_size": 7})
    data = load_dataset("webdataset", folder=str(root))
    trainer = build_trainer(setting, data, setting.noise_index(data), make_accelerator("fp32"))
    plan = trainer.plan_pass(0)
    for whole, *parts in zip(
        *(
            load(trainer._plans(plan), Fetch(trainer.inputs, process=p, processes=n))
            for p, n in ((0, 1), (0, 2), (1, 2))
        ),
        strict=True,
    ):
        assert torch.equal(torch.cat([p.images for p in parts]), whole.images)
        assert torch.equal(torch.cat([p.texts for p in parts]), whole.texts)


def test_a_scan_looks_at_every_pair_once_shard_by_shard():
    shards = np.arange(6400) // 100
    batches = scan_batches(6400, None, size=60, seed=3, shards=shards)
    assert sorted(np.concatenate(batches)) == list(range(6400))
    assert {len(b) for b in batches} <= {59, 60}
    assert len(np.unique(shards[np.concatenate(batches[:20])])) == SHARDS_AT_ONCE


def test_a_trial_on_shards_resumes_bit_for_bit(tmp_path):
    root = layouts.shards(tmp_path / "shards")
    setting = trial("webdataset", root).model_copy(update={"epochs": 3, "batch_size": 8})
    whole = run_trial(setting, Kept())

    class Stops(Kept):
        def epoch(self, record):
            if record.epoch == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial(setting, Stops(), directory=tmp_path / "state")
    resumed = run_trial(setting, Kept(), directory=tmp_path / "state")
    kept = {k: v for k, v in whole.metrics.items() if not k.startswith("cost/")}
    assert kept == {k: v for k, v in resumed.metrics.items() if not k.startswith("cost/")}


def test_captions_of_the_text_win_over_the_json_and_json_alone_serves(tmp_path):
    root = layouts.shards(tmp_path / "shards")
    data = load_dataset("webdataset", folder=str(root))
    assert "of the json" not in list(data["train"].captions)
    for file in root.glob("*.tar"):
        with tarfile.open(file) as old:
            members = [(m.name, old.extractfile(m).read()) for m in old.getmembers()]
        with tarfile.open(file, "w") as new:
            for name, content in members:
                if not name.endswith(".txt"):
                    layouts.add(new, name, content)
    assert set(load_dataset("webdataset", folder=str(root))["train"].captions) == {"of the json"}


def test_shards_named_by_pattern_and_held_out(tmp_path):
    root = layouts.shards(tmp_path / "shards")
    for file in sorted(root.glob("*.tar")):
        file.rename(
            root / file.name.replace("train", "part").replace("dev", "part9").replace("test", "part8")
        )
    data = load_dataset("webdataset", folder=str(root), held_out=4)
    assert {n: len(s.images) for n, s in data.splits.items()} == {"train": 30, "dev": 4, "test": 4}
    assert len({s.images.keys[i] for s in data.splits.values() for i in range(len(s.images))}) == 38
    named = load_dataset(
        "webdataset",
        folder=str(root),
        shards={"train": "part-*.tar", "val": "part9-*.tar", "test": "part8-*.tar"},
    )
    assert {n: len(s.images) for n, s in named.splits.items()} == layouts.SIZES
    with pytest.raises(
        DataError, match=r"no shard in \S+ matches 'x\*'; dataset_options.shards: unknown split 'tst'"
    ):
        load_dataset("webdataset", folder=str(root), shards={"train": "x*", "tst": "part*"})


MEASURE = """
import sys
from harness.data import load_dataset
def used(): return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) / 1024
layout, small, large = sys.argv[1:]
load_dataset(layout, folder=small)
before = used()
print(len(load_dataset(layout, folder=large)["train"].captions), used() - before)
"""
CAPTION = "a caption of about the length that captions from the web have, number"


def many_files(root, count):
    """Pictures by hard link (ext4 allows 65,000 to a file) and their table."""
    (root / "images").mkdir(parents=True)
    lines = []
    for i in range(count):
        folder, source = root / "images" / f"{i // 5000:05}", root / f"{i // 50_000}.jpg"
        if not i % 5000:
            folder.mkdir()
        if not i % 50_000:
            source.write_bytes(b"picture")
        (folder / f"{i:09}.jpg").hardlink_to(source)
        lines.append(f"{folder.name}/{i:09}.jpg\t{CAPTION} {i}\n")
    (root / "train.tsv").write_text("".join(lines))
    for split in ("dev", "test"):
        (root / "images" / f"{split}.jpg").write_bytes(b"picture")
        (root / f"{split}.tsv").write_text(f"{split}.jpg\t{CAPTION}\n")


def many_samples(root, count):
    root.mkdir()
    shards = [(f"train-{s:06}", range(s, min(s + 5000, count))) for s in range(0, count, 5000)]
    for name, numbers in (*shards, ("dev", range(1)), ("test", range(1))):
        with tarfile.open(root / f"{name}.tar", "w") as tar:
            for i in numbers:
                layouts.add(tar, f"{i:09}.jpg", b"picture")
                layouts.add(tar, f"{i:09}.txt", f"{CAPTION} {i}".encode())


@pytest.mark.parametrize(
    ("layout", "make", "count"),
    [
        ("table", many_files, 50_000),
        ("webdataset", many_samples, 20_000),
        pytest.param("table", many_files, 100_000, marks=pytest.mark.cluster),
    ],
)
def test_the_index_of_a_million_pairs_stays_under_a_gigabyte(tmp_path, layout, make, count):
    """Peak memory of a process that loads a part of that, beyond what loading a few pairs takes, times what
    is missing to a million.
    """
    make(tmp_path / "small", 10)
    make(tmp_path / "large", count)
    command = [sys.executable, "-c", MEASURE, layout, str(tmp_path / "small"), str(tmp_path / "large")]
    pairs, megabytes = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout.split()
    assert int(pairs) == count
    assert float(megabytes) * 1_000_000 / count < 1000


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = layouts.karpathy_coco(tmp_path_factory.mktemp("raw") / "coco")
    data = load_dataset("karpathy", folder=str(root))
    folders = {}
    for form in FORMATS:
        folders[form] = tmp_path_factory.mktemp("prepared") / form
        prepare(data, folders[form], size=SIZE, form=form)
    return root, folders


def test_what_is_prepared_holds_the_same_captions_and_numbers(prepared):
    root, folders = prepared
    raw = load_dataset("karpathy", folder=str(root))
    for form, folder in folders.items():
        data = load_dataset("webdataset", folder=str(folder))
        assert data.name == "coco"
        assert [ids.tolist() for ids in data.coco_ids] == [ids.tolist() for ids in raw.coco_ids]
        for split, found in data.splits.items():
            assert list(found.captions) == list(raw[split].captions)
            assert found.owner.tolist() == raw[split].owner.tolist()
            assert {found.images[i].size for i in range(len(found.images))} == {(SIZE, SIZE)}
        assert data.fingerprint != raw.fingerprint, form


def test_png_gives_a_trial_the_same_numbers_bit_for_bit(prepared):
    root, folders = prepared
    given = (("karpathy", root), ("webdataset", folders["png"]), ("webdataset", folders["jpeg"]))
    weights = []
    for layout, folder in given:
        setting = trial(layout, folder)
        data = load_dataset(layout, folder=str(folder))
        trainer = build_trainer(setting, data, setting.noise_index(data), make_accelerator("fp32"))
        trainer.fit()
        weights.append(torch.cat([p.flatten() for p in trainer.method.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_captions_keep_their_order_and_their_spaces(tmp_path):
    """Noise goes by position: an image's captions need not stand together, and NPC's text files hold them as
    they are.
    """
    root = layouts.own_table(tmp_path / "photos")
    entries = layouts.entries()
    lines = [f'{e.number}.jpg,{e.split},"{e.captions[k]}"' for k in range(5) for e in entries]
    (root / "captions.csv").write_text("\n".join(["image,split,caption", *lines]))
    npc = layouts.npc(tmp_path / "npc")
    caps = npc / "annotations" / "scan_split" / "train_caps.txt"
    caps.write_text(caps.read_text().replace(" ", "  "))
    for layout, folder in (("table", root), ("npc", npc)):
        raw = load_dataset(layout, folder=str(folder))
        prepare(raw, tmp_path / f"small_{layout}", size=16, form="png")
        found = load_dataset("webdataset", folder=str(tmp_path / f"small_{layout}"))
        for split in layouts.SIZES:
            assert list(found[split].captions) == list(raw[split].captions)
            assert found[split].owner.tolist() == raw[split].owner.tolist()


def test_groups_stay_together_where_images_are_drawn(tmp_path):
    root = tmp_path / "shards"
    root.mkdir()
    with tarfile.open(root / "all.tar", "w") as tar:
        for e in layouts.entries():
            layouts.add(tar, f"{e.number:09}.jpg", e.picture)
            layouts.add(
                tar,
                f"{e.number:09}.json",
                json.dumps({"caption": e.captions[0], "group": e.number // 4}).encode(),
            )
    data = load_dataset("webdataset", folder=str(root), held_out=8, meta_share=0.2, train_groups=3)
    number = {n: {int(s.images.keys[i]) // 4 for i in range(len(s.images))} for n, s in data.splits.items()}
    assert not any(a & b for i, a in enumerate(number.values()) for b in list(number.values())[i + 1 :])
    assert len(number["train"]) == 3
    other = load_dataset("webdataset", folder=str(layouts.shards(tmp_path / "others")))
    assert data.fingerprint != other.fingerprint


def test_groups_and_images_without_captions_survive(tmp_path):
    data = small.load()
    prepare(data, tmp_path / "small", size=32, form="png")
    found = load_dataset("webdataset", folder=str(tmp_path / "small"))
    assert found.distinct_groups
    for split in ("train", "dev", "test"):
        assert found[split].image_group.tolist() == data[split].image_group.tolist()
        assert found[split].owner.tolist() == data[split].owner.tolist()


def test_preparing_is_all_or_nothing(tmp_path, capsys):
    root = layouts.npc(tmp_path / "flickr")
    assert (
        main(["prepare", str(root), "--out", str(tmp_path / "small"), "--size", "16", "--format", "webp"])
        == 0
    )
    assert "read it with `dataset: [webdataset]`" in " ".join(capsys.readouterr().err.split())
    assert main(["prepare", str(root), "--out", str(tmp_path / "small")]) == 2
    (root / "images" / "1003.jpg").write_bytes(b"no picture")
    assert main(["prepare", str(root), "--out", str(tmp_path / "other")]) == 2
    assert "1003.jpg cannot be decoded" in capsys.readouterr().err.replace("\n", "")
    assert not [f for f in tmp_path.iterdir() if "other" in f.name]
    data = load_dataset("npc", folder=str(root), on_bad_image="skip")
    prepare(data, tmp_path / "fewer", size=16)
    assert load_dataset("webdataset", folder=str(tmp_path / "fewer")).skipped == {
        "train": 1,
        "dev": 0,
        "test": 0,
    }


def test_one_shard_in_two_splits_is_refused(tmp_path):
    root = layouts.shards(tmp_path / "shards")
    with pytest.raises(DataError, match=r"dev-000000.tar would be in two splits"):
        load_dataset(
            "webdataset", folder=str(root), shards={"train": "*.tar", "dev": "dev*.tar", "test": "test*.tar"}
        )
    with pytest.raises(DataError, match=r"'/abs/\*.tar' is not a pattern"):
        load_dataset("webdataset", folder=str(root), shards={"train": "/abs/*.tar"})
