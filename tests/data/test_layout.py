"""Layouts of the field: each read in place, with the same pictures and captions, and refused where it does
not fit.
"""

from __future__ import annotations

import gzip
import json
import re
import tarfile

import numpy as np
import pytest

from harness.config.resources import Resources
from harness.config.sweep_file import parse_sweep
from harness.data import load_dataset, recognise
from harness.data.base import DataError
from harness.data.pictures import decode
from harness.data_tools.check import check, show
from harness.data_tools.cli import main
from harness.training.run_trial import run_trial
from tests import layouts, small

FIVE = {
    "karpathy flickr30k": ("karpathy", layouts.karpathy_flickr30k),
    "karpathy coco": ("karpathy", layouts.karpathy_coco),
    "npc f30k": ("npc", layouts.npc),
    "npc coco": ("npc", lambda root: layouts.npc(root, "coco")),
}
ONE = {
    "npc cc": ("npc", lambda root: layouts.npc(root, "cc")),
    "conceptual captions": ("table", layouts.conceptual),
    "webdataset": ("webdataset", layouts.shards),
}


@pytest.mark.parametrize("form", [*FIVE, *ONE])
def test_a_layout_is_recognised_and_read_in_place(form, tmp_path):
    name, make = (FIVE | ONE)[form]
    root = make(tmp_path / "data")
    assert recognise(root) == name
    data = load_dataset(name, folder=str(root))
    each = 5 if form in FIVE else 1
    for split, count in layouts.SIZES.items():
        found, expected = data[split], layouts.of_split(split)
        assert (len(found.images), len(found.captions)) == (count, each * count)
        assert found.owner.tolist() == [i // each for i in range(each * count)]
        for i in (0, count - 1):
            assert (
                np.asarray(found.images[i]).tobytes() == np.asarray(decode(expected[i].picture, "")).tobytes()
            )
            texts = [found.captions[c].removesuffix(' "quoted') for c in np.flatnonzero(found.owner == i)]
            assert texts == list(expected[i].captions[:each])
    assert not data.distinct_groups
    assert load_dataset(name, folder=str(root)).fingerprint == data.fingerprint


def test_coco_numbers_and_the_fifth_caption(tmp_path):
    data = load_dataset("karpathy", folder=str(layouts.karpathy_coco(tmp_path / "coco")))
    images, captions = data.coco_ids
    assert images.tolist() == [391895 + e.number for e in layouts.of_split("test")]
    assert len(captions) == 40
    assert "a caption too many" not in list(data["train"].captions)


def test_a_table_without_splits_is_divided_by_image(tmp_path):
    root = layouts.own_table(tmp_path / "photos")
    assert recognise(root) == "table"
    data = load_dataset("table", folder=str(root), held_out=6)
    assert {n: len(s.images) for n, s in data.splits.items()} == {"train": 26, "dev": 6, "test": 6}
    names = [set(s.images.paths) for s in data.splits.values()]
    assert len(set.union(*names)) == 38
    for split in data.splits.values():
        assert (np.bincount(split.owner) == 5).all()
        number = int(split.images.paths[2].removesuffix(".jpg"))
        assert [split.captions[c] for c in np.flatnonzero(split.owner == 2)] == list(
            layouts.entries()[number].captions
        )
    assert load_dataset("table", folder=str(root), held_out=5).fingerprint != data.fingerprint
    with pytest.raises(
        DataError,
        match="no dev and no test split was found: name its file, or draw it from train with held_out",
    ):
        load_dataset("table", folder=str(root))
    with pytest.raises(DataError, match=r"held_out = 19 .*38 images"):
        load_dataset("table", folder=str(root), held_out=19)


def test_one_table_may_name_the_split_of_each_line(tmp_path):
    root = layouts.own_table(tmp_path / "photos")
    lines = ["file_name,split,comment"]
    lines += [
        f'{e.number}.jpg,{"validation" if e.split == "dev" else e.split},"{c}"'
        for e in layouts.entries()
        for c in e.captions
    ]
    (root / "captions.csv").write_text("\n".join(lines))
    data = load_dataset("table", folder=str(root))
    assert {n: len(s.images) for n, s in data.splits.items()} == layouts.SIZES
    (root / "captions.csv").write_text("\n".join(lines).replace("validation", "third"))
    with pytest.raises(DataError, match=r"unknown split 'third' \(allowed: train, dev, test, meta\)"):
        load_dataset("table", folder=str(root))


def test_columns_and_places_can_be_named(tmp_path):
    root = layouts.own_table(tmp_path / "photos")
    text = (root / "captions.csv").read_text().replace("image,caption", "bild,satz", 1)
    (root / "captions.csv").write_text(text)
    with pytest.raises(
        DataError, match="expected columns for image and caption, found bild, satz; name them"
    ):
        load_dataset("table", folder=str(root), held_out=6)
    named = load_dataset(
        "table",
        folder=str(root),
        held_out=6,
        captions="captions.csv",
        columns={"image": "bild", "caption": "satz"},
    )
    assert len(named["train"].images) == 26
    with pytest.raises(DataError, match=r"unknown 'bidl' \(allowed: image, caption, split\)"):
        load_dataset("table", folder=str(root), held_out=6, columns={"bidl": "a"})


def test_flickrs_own_table_with_bars(tmp_path):
    """`results.csv` of Flickr30K: `image_name| comment_number| comment`."""
    root = layouts.own_table(tmp_path / "photos")
    lines = ["image_name| comment_number| comment"]
    lines += [
        f"{e.number}.jpg| {k}| {c}, and more" for e in layouts.entries() for k, c in enumerate(e.captions)
    ]
    (root / "captions.csv").write_text("\n".join(lines))
    data = load_dataset("table", folder=str(root), held_out=6)
    assert all(c.endswith(", and more") for c in data["dev"].captions)


def test_a_clean_set_and_the_first_images_work_on_every_layout(tmp_path):
    root = layouts.karpathy_coco(tmp_path / "coco")
    data = load_dataset("karpathy", folder=str(root), meta_share=0.1, train_groups=10)
    assert {n: len(s.images) for n, s in data.splits.items()} == {"train": 10, "dev": 5, "test": 8, "meta": 1}
    assert set(data["meta"].captions).isdisjoint(set(data["dev"].captions))
    shards = load_dataset("webdataset", folder=str(layouts.shards(tmp_path / "shards")), train_groups=7)
    assert shards.shard.tolist() == [0, 0, 0, 0, 0, 1, 1]


# Damage ---------------------------------------------------------------------------------------------


def cut(root, name, keep=-300):
    file = next(root.rglob(name))
    file.write_bytes(file.read_bytes()[:keep])


def edit_json(root, change):
    file = next(root.glob("dataset_*.json"))
    content = json.loads(file.read_text())
    change(content["images"])
    file.write_text(json.dumps(content))


def edit_text(root, name, change):
    file = next(root.rglob(name))
    file.write_bytes(change(file.read_bytes()))


DAMAGE = {
    "missing picture": (
        FIVE["karpathy flickr30k"][1],
        lambda r: next(r.rglob("1003.jpg")).unlink(),
        "1003.jpg cannot be read: No such file",
    ),
    "truncated picture": (
        FIVE["npc f30k"][1],
        lambda r: cut(r, "1030.jpg"),
        "1030.jpg cannot be decoded: .*truncated",
    ),
    "no picture at all": (
        FIVE["npc f30k"][1],
        lambda r: (r / "images" / "1002.jpg").write_text("<html>404"),
        "1002.jpg cannot be decoded: not a picture",
    ),
    "four captions": (
        FIVE["karpathy coco"][1],
        lambda r: edit_json(r, lambda i: i[2]["sentences"].pop()),
        "image 2 .* has 4 captions, expected at least 5",
    ),
    "unknown split": (
        FIVE["karpathy coco"][1],
        lambda r: edit_json(r, lambda i: i[0].update(split="tset")),
        "image 0 .*: unknown split 'tset'",
    ),
    "no sentences": (
        FIVE["karpathy coco"][1],
        lambda r: edit_json(r, lambda i: i[4].pop("sentences")),
        "image 4: expected filename, split, and sentences",
    ),
    "not json": (
        FIVE["karpathy coco"][1],
        lambda r: cut(r, "dataset_coco.json", 5000),
        "dataset_coco.json is not JSON",
    ),
    "splits overlap": (
        FIVE["npc f30k"][1],
        lambda r: edit_text(r, "dev_ids.txt", lambda t: t.replace(b"24\n", b"3\n")),
        "1003.jpg is in two splits: train and dev",
    ),
    "captions without image": (
        FIVE["npc coco"][1],
        lambda r: edit_text(r, "train_caps.txt", lambda t: t + b"one more\n"),
        "24 ids do not fit 121 captions",
    ),
    "id of no image": (
        FIVE["npc f30k"][1],
        lambda r: edit_text(r, "test_ids.txt", lambda t: t.replace(b"31\n", b"99\n")),
        "the id '99' names no image",
    ),
    "id twice": (
        FIVE["npc coco"][1],
        lambda r: edit_text(r, "train_ids.txt", lambda t: t.replace(b"391896\n", b"391895\n")),
        "the id '391895' occurs 2 times",
    ),
    "empty caption": (
        FIVE["npc f30k"][1],
        lambda r: edit_text(r, "test_caps.txt", lambda t: b"\n" + t.split(b"\n", 1)[1]),
        "test: caption 0 .* is empty",
    ),
    "encoding": (
        FIVE["npc f30k"][1],
        lambda r: edit_text(r, "dev_caps.txt", lambda t: t + "café\n".encode("latin-1")),
        "dev_caps.txt, line 31: expected UTF-8, found the byte 0xe9",
    ),
    "no caption file": (
        FIVE["npc f30k"][1],
        lambda r: next(r.rglob("dev_caps.txt")).unlink(),
        "dev_caps.txt cannot be read",
    ),
    "same picture": (
        FIVE["npc f30k"][1],
        lambda r: (r / "images" / "1026.jpg").write_bytes((r / "images" / "1004.jpg").read_bytes()),
        "same picture in several splits: train .*1004.jpg, dev .*1026.jpg",
    ),
    "table encoding": (
        ONE["conceptual captions"][1],
        lambda r: edit_text(r, "test.tsv", lambda t: t + b"\xff\xfe"),
        "test.tsv: expected UTF-8, found the byte 0xff",
    ),
    "table columns": (
        ONE["conceptual captions"][1],
        lambda r: edit_text(r, "train.tsv", lambda t: t + b"alone.jpg\n"),
        "train.tsv, line 25: 1 columns",
    ),
    "out of the folder": (
        ONE["conceptual captions"][1],
        lambda r: edit_text(r, "train.tsv", lambda t: t + b"../../secret.jpg\ta secret\n"),
        "leads out of",
    ),
    "no image in the line": (
        ONE["conceptual captions"][1],
        lambda r: edit_text(r, "dev.tsv", lambda t: t + b"\tno image\n"),
        "dev.tsv, line 7: a caption without an image",
    ),
    "shard cut off": (
        ONE["webdataset"][1],
        lambda r: cut(r, "train-000001.tar", 9000),
        "train-000001.tar is damaged or truncated",
    ),
    "no shard": (
        ONE["webdataset"][1],
        lambda r: (r / "test-000000.tar").write_text("nothing"),
        "test-000000.tar is damaged or truncated after 0 samples",
    ),
    "sample without caption": (
        ONE["webdataset"][1],
        lambda r: remake(r, lambda n: n.endswith((".txt", ".json")) and "000000003" in n),
        "000000003 has no caption",
    ),
    "directory for a picture": (
        FIVE["npc f30k"][1],
        lambda r: ((r / "images" / "1002.jpg").unlink(), (r / "images" / "1002.jpg").mkdir()),
        "1002.jpg (cannot be read|is missing)",
    ),
    "entry twice": (
        FIVE["karpathy coco"][1],
        lambda r: edit_json(r, lambda i: i.append(i[0])),
        "train2014/COCO_train2014_000000391895.jpg occurs 2 times",
    ),
    "surrogate": (
        FIVE["karpathy coco"][1],
        lambda r: edit_json(r, lambda i: i[0]["sentences"][0].update(raw="\ud83d")),
        "image 0: expected filename",
    ),
    "endless name": (
        FIVE["karpathy coco"][1],
        lambda r: edit_json(r, lambda i: i[0].update(filename="x" * 5000)),
        "x is in none of",
    ),
    "null in a name": (
        FIVE["karpathy coco"][1],
        lambda r: edit_json(r, lambda i: i[2].update(filename="a\0b")),
        "is missing|cannot be read",
    ),
    "no dev": (
        FIVE["karpathy coco"][1],
        lambda r: edit_json(r, lambda i: [e.update(split="train") for e in i if e["split"] == "val"]),
        "no dev split was found",
    ),
    "unquoted commas": (
        lambda r: with_splits(layouts.own_table(r)),
        lambda r: edit_text(r, "captions.csv", lambda t: t + b"0.jpg,train,a dog, and more\n"),
        r"line \d+: 4 columns, expected 3 as in the first line \(put a caption with commas",
    ),
    "empty table": (
        ONE["conceptual captions"][1],
        lambda r: (r / "dev.tsv").write_text("image\tcaption\n"),
        "dev has no images",
    ),
    "same picture by another spelling": (
        ONE["conceptual captions"][1],
        lambda r: edit_text(r, "dev.tsv", lambda t: t + b"./000000000.jpg\ta caption\n"),
        "000000000.jpg is in two splits: train and dev",
    ),
    "table for a directory": (
        ONE["conceptual captions"][1],
        lambda r: ((r / "dev.tsv").unlink(), (r / "dev.tsv").mkdir()),
        "no dev split was found",
    ),
    "shard cut at a member": (
        ONE["webdataset"][1],
        lambda r: cut(r, "train-000001.tar", 6 * 512 * 4),
        "train-000001.tar is damaged or truncated",
    ),
    "compressed shard": (
        ONE["webdataset"][1],
        lambda r: (r / "test-000000.tar").write_bytes(gzip.compress((r / "test-000000.tar").read_bytes())),
        "test-000000.tar is compressed",
    ),
    "dots in names": (
        ONE["webdataset"][1],
        lambda r: remake(r, lambda n: False, lambda n: n.replace(".", ".v2.", 1)),
        r"has no picture \(found 000000000.v2.jpg",
    ),
    "caption of numbers": (
        ONE["webdataset"][1],
        lambda r: rewrite_json(r, {"caption": [1, None]}),
        "expected text in 'caption'",
    ),
    "sample without picture": (
        ONE["webdataset"][1],
        lambda r: remake(r, lambda n: n == "000000002.jpg"),
        "000000002 has no picture",
    ),
}


def with_splits(root):
    lines = [
        "image,split,caption",
        *(f'{e.number}.jpg,{e.split},"{c}"' for e in layouts.entries() for c in e.captions),
    ]
    (root / "captions.csv").write_text("\n".join(lines) + "\n")
    return root


def rewrite_json(root, content):
    """The first shard with other JSON, and without the texts that would win over it."""
    file = root / "train-000000.tar"
    with tarfile.open(file) as old:
        members = [
            (m.name, old.extractfile(m).read()) for m in old.getmembers() if not m.name.endswith(".txt")
        ]
    with tarfile.open(file, "w") as new:
        for name, given in members:
            layouts.add(new, name, json.dumps(content).encode() if name.endswith(".json") else given)


def remake(root, leave_out, rename=lambda name: name):
    """The first shard without some of its members, or with other names."""
    file = root / "train-000000.tar"
    with tarfile.open(file) as old:
        members = [(m.name, old.extractfile(m).read()) for m in old.getmembers()]
    with tarfile.open(file, "w") as new:
        for name, content in members:
            if not leave_out(name):
                layouts.add(new, rename(name), content)


@pytest.mark.parametrize("kind", DAMAGE)
def test_check_finds_the_damage_and_names_it(kind, tmp_path, capsys):
    make, damage, message = DAMAGE[kind]
    root = make(tmp_path / "data")
    layout = recognise(root)
    before = check(root)
    assert not before.errors
    assert show(before) == 0
    damage(root)
    found = check(root, layout=layout)
    assert [f for f in found.errors if re.search(message, f)], found.errors
    capsys.readouterr()
    assert main(["check", str(root), "--layout", layout]) == 1
    printed = capsys.readouterr().out
    assert all(f"error: {fault}" in printed for fault in found.errors)


UNSEEN = ("truncated picture", "no picture at all", "empty caption", "same picture")


@pytest.mark.parametrize("kind", [k for k in DAMAGE if k not in UNSEEN])
def test_what_can_be_told_without_decoding_is_refused_when_loading(kind, tmp_path):
    make, damage, message = DAMAGE[kind]
    root = make(tmp_path / "data")
    layout = recognise(root)
    damage(root)
    with pytest.raises(DataError, match=message.replace("cannot be read: No such file", "is missing")):
        load_dataset(layout, folder=str(root))


def test_a_check_reads_a_directory(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["check", "emoji"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert told.startswith(
        "1 error: - the directory emoji does not exist (`check` reads the files of a directory"
    )


def test_notes_do_not_fail_the_check(tmp_path):
    root = layouts.npc(tmp_path / "flickr")
    edit_text(
        root,
        "train_caps.txt",
        lambda t: t.replace(t.split(b"\n")[0], b"word " * 100).replace(t.split(b"\n")[1], "a cafÃ©".encode()),
    )
    (root / "images" / "unused.jpg").write_bytes(layouts.entries()[0].picture)
    found = check(root)
    assert not found.errors
    text = "\n".join(found.notes)
    assert "train: caption 0 (of " in text
    assert "has 100 tokens: CLIP reads 75 of them" in text
    assert "caption 1" in text
    assert "looks wrongly decoded: 'a cafÃ©'" in text
    assert "1 pictures in" in text
    assert "unused.jpg" in text
    assert "train has 24 images, flickr30k as published 29,000" in text


def test_options_that_do_not_go_with_the_data_fail_the_check(tmp_path, capsys):
    root = layouts.npc(tmp_path / "flickr")
    assert main(["check", str(root), "--options", "{train_groups: 999}"]) == 1
    assert "train has 24 groups of images" in capsys.readouterr().out
    for options in ("{folder: x}", "{1: 2}", "[", "{trian_groups: 3}"):
        assert main(["check", str(root), "--options", options]) == 2
    assert main(["show", "emoji", "--options", "{foo: 1}"]) == 2
    assert main(["show", "emoji", "--layout", "npc"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_fingerprint_follows_owners_and_bytes(tmp_path):
    """Which image owns a caption, and the pictures themselves, also where no size changes."""
    root = with_splits(layouts.own_table(tmp_path / "photos"))
    prints = [load_dataset("table", folder=str(root)).fingerprint]
    edit_text(root, "captions.csv", lambda t: t.replace(b"0.jpg,train", b"1.jpg,train", 1))
    prints.append(load_dataset("table", folder=str(root)).fingerprint)
    content = bytearray((root / "5.jpg").read_bytes())
    content[-20] ^= 1
    (root / "5.jpg").write_bytes(content)
    prints.append(load_dataset("table", folder=str(root)).fingerprint)
    assert len(set(prints)) == 3
    assert load_dataset("table", folder=str(root)).fingerprint == prints[2]


def test_a_byte_order_mark_is_no_text(tmp_path):
    root = layouts.npc(tmp_path / "flickr")
    edit_text(root, "train_caps.txt", lambda t: b"\xef\xbb\xbf" + t)
    assert load_dataset("npc", folder=str(root))["train"].captions[0] == layouts.entries()[0].captions[0]


def test_an_unknown_folder_says_what_it_holds(tmp_path, capsys):
    (tmp_path / "notes.md").write_text("nothing")
    assert main(["check", str(tmp_path)]) == 2
    assert (
        "has no known layout (allowed: scan, npc, karpathy, table, webdataset); it contains notes.md"
        in " ".join(capsys.readouterr().err.split())
    )


def test_many_faults_are_counted_where_they_are_not_listed(tmp_path):
    root = layouts.karpathy_flickr30k(tmp_path / "flickr")
    for file in (root / "flickr30k-images").glob("*.jpg"):
        if file.name != "1000.jpg":
            file.unlink()
    with pytest.raises(
        DataError, match=r"1001.jpg is missing .*; and 29 more \(`python -m harness.data check` lists all\)"
    ):
        load_dataset("karpathy", folder=str(root))


# Bad pictures in a trial ----------------------------------------------------------------------------


def trial(layout, root, **options):
    fixed = {
        "backbone": {"model": small.TINY_MODEL, "pretrained": "none", "locked": False, "head": None},
        "epochs": 1,
    }
    content = small.content(
        "clip",
        fixed={**fixed, "dataset_options": {"folder": str(root), **options}},
        grid={"dataset": [layout]},
    )
    return parse_sweep(content).trials[0]


class Kept:
    """A recorder that keeps what it is told."""

    def start(self, setup):
        self.setup = setup
        return 0

    def note(self, text): ...

    def epoch(self, record): ...

    def finish(self, outcome): ...


@pytest.mark.parametrize("workers", [0, 2])
def test_an_undecodable_picture_stops_the_trial_and_is_named(tmp_path, workers):
    root = layouts.npc(tmp_path / "flickr")
    cut(root, "1003.jpg")
    with pytest.raises(DataError, match=r"^picture \S*1003.jpg cannot be decoded: image file is truncated"):
        run_trial(trial("npc", root), Kept(), resources=Resources(workers=workers))


def test_skipping_leaves_out_pictures_and_captions_and_counts_them(tmp_path):
    root = layouts.npc(tmp_path / "flickr")
    whole = load_dataset("npc", folder=str(root))
    cut(root, "1003.jpg")
    cut(root, "1030.jpg")
    (root / "images" / "1005.jpg").unlink()
    kept = Kept()
    outcome = run_trial(trial("npc", root, on_bad_image="skip"), kept)
    assert 0 < outcome.metrics["test/rsum"] <= 600
    data = kept.setup.data
    assert data.skipped == {"train": 2, "dev": 0, "test": 1}
    assert [len(s.captions) for s in data.splits.values()] == [110, 30, 35]
    for split, found in data.splits.items():
        assert list(found.captions) == [
            c for e in layouts.of_split(split) if e.number not in (3, 5, 30) for c in e.captions
        ]
    assert data.fingerprint != whole.fingerprint


def test_a_picture_that_was_mended_is_not_skipped_any_more(tmp_path):
    root = layouts.npc(tmp_path / "flickr")
    good = (root / "images" / "1003.jpg").read_bytes()
    (root / "images" / "1003.jpg").write_bytes(bytes(len(good)))
    assert load_dataset("npc", folder=str(root), on_bad_image="skip").skipped["train"] == 1
    (root / "images" / "1003.jpg").write_bytes(good)
    assert load_dataset("npc", folder=str(root), on_bad_image="skip").skipped["train"] == 0


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.data.pictures.MAX_PIXELS", 100)
    with pytest.raises(DataError, match=r"is 128 x 128: more than 100 pixels"):
        decode(layouts.entries()[0].picture, "bomb.jpg")
