"""Layouts of the field: each read in place, with the same pictures and captions, and refused where it does not fit."""

from __future__ import annotations

import numpy as np
import pytest

from harness.data import DataError, load_dataset, recognise
from tests import layouts

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
            assert np.asarray(found.images[i]).tobytes() == np.asarray(layouts_picture(expected[i])).tobytes()
            texts = [found.captions[c].removesuffix(' "quoted') for c in np.flatnonzero(found.owner == i)]
            assert texts == list(expected[i].captions[:each])
    assert not data.distinct_groups
    assert load_dataset(name, folder=str(root)).fingerprint == data.fingerprint


def layouts_picture(entry):
    from harness.data.pictures import decode

    return decode(entry.picture, "")


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
        assert [split.captions[c] for c in np.flatnonzero(split.owner == 2)] == list(layouts.entries()[number].captions)
    assert load_dataset("table", folder=str(root), held_out=5).fingerprint != data.fingerprint
    with pytest.raises(DataError, match="no dev and no test split was found: name its file, or draw it from train with held_out"):
        load_dataset("table", folder=str(root))
    with pytest.raises(DataError, match=r"held_out = 19 .*38 images"):
        load_dataset("table", folder=str(root), held_out=19)
