from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from harness.data import LAYOUTS, load_dataset
from harness.data.base import DataError, DataSet, Split
from harness.data.emoji import FILE
from harness.data_tools.build_emoji import _captions, _key, _links
from harness.data_tools.building import Concept, families


@pytest.fixture(scope="module")
def emoji() -> DataSet:
    return load_dataset("emoji")


def test_sizes(emoji):
    found = {k: (len(s.images), len(s.captions), len(set(s.image_group))) for k, s in emoji.splits.items()}
    assert found == {
        "train": (3001, 15005, 1009),
        "dev": (896, 1373, 300),
        "test": (887, 1329, 300),
        "meta": (72, 360, 24),
    }


def test_pictures_decode(emoji):
    picture = emoji["test"].images[0]
    assert (picture.mode, picture.size) == ("RGB", (128, 128))
    assert np.asarray(picture).std() > 10


def test_five_distinct_captions_for_every_training_image(emoji):
    train = emoji["train"]
    assert (np.bincount(train.owner) == 5).all()
    for image in range(0, len(train.images), 61):
        assert len({train.captions[c] for c in np.flatnonzero(train.owner == image)}) == 5


def test_a_concepts_captions_stand_once_at_test_and_belong_to_it_alone(emoji):
    """A string of several concepts would count as wrong where it is right, so dev and test have none."""
    concepts_of: dict[str, set[tuple[str, int]]] = {}
    for name, split in emoji.splits.items():
        for caption, group in zip(split.captions, split.caption_group, strict=True):
            concepts_of.setdefault(caption, set()).add((name, int(group)))
    for name in ("dev", "test"):
        split = emoji[name]
        assert set(np.bincount(split.caption_group)) <= {2, 3, 4, 5}
        assert len(set(split.captions)) == len(split.captions)
        assert all(len(concepts_of[c]) == 1 for c in split.captions)


def test_no_family_is_in_two_splits():
    """Told by names, independently of how the split was made: man / woman / person doing the same stand
    together.
    """
    table = pq.read_table(FILE, columns=["split", "name"]).to_pylist()
    splits: dict[str, set[str]] = {}
    for row in table:
        name = re.sub(r"\b(man|woman|person|men|women|people)\b|:|facing right", "", row["name"])
        name = re.sub(r"^.*(o’clock|-thirty)$", "clock", " ".join(name.split()))
        splits.setdefault(name, set()).add(row["split"])
    assert not {name: found for name, found in splits.items() if len(found) > 1}


def test_no_concept_is_in_two_splits():
    table = pq.read_table(FILE, columns=["split", "concept"]).to_pandas()
    assert (table.groupby("concept")["split"].nunique() == 1).all()


def test_families_join_what_is_drawn_alike():
    names = {
        (0x1F3C3,): "person running",
        (0x1F3C3, 0x200D, 0x2640): "woman running",
        (0x1F468, 0x200D, 0x1F4BB): "man technologist",
        (0x1F4BB,): "laptop",
        (0x1F550,): "one o’clock",
        (0x1F55C,): "one-thirty",
        (0x1F355,): "pizza",
    }
    a, b, c, d, e, f, g = families([Concept(_key(code), name) for code, name in names.items()], _links)
    assert a == b
    assert c == d
    assert e == f
    assert len({a, c, e, g}) == 4


def test_captions_are_distinct_and_begin_with_the_name():
    found = _captions(
        "grinning face", ["grinning"], ["face", "smile", "happy", "joy", "8"], ["cheerful", "teeth"]
    )
    assert found[0] == "grinning face"
    assert found[1] == "grinning"
    assert len(set(found)) == 5
    assert not any(c.strip("0123456789 #*") == "" for c in found)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(DataError, match=r"nothing.parquet is missing"):
        load_dataset("emoji", file=str(tmp_path / "nothing.parquet"))


@pytest.mark.parametrize("content", [b"", b"PAR1 not really", FILE.read_bytes()[:5000]])
def test_a_corrupt_file_is_told(tmp_path, content):
    (tmp_path / "torn.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"torn.parquet cannot be read"):
        load_dataset("emoji", file=str(tmp_path / "torn.parquet"))


def test_the_fingerprint_is_of_the_content(emoji, tmp_path):
    other = tmp_path / "other.parquet"
    table = pq.read_table(FILE)
    pq.write_table(table.take(list(range(table.num_rows - 1))), other)
    assert load_dataset("emoji", file=str(FILE)).fingerprint == emoji.fingerprint
    assert load_dataset("emoji", file=str(other)).fingerprint != emoji.fingerprint


def test_the_interface_carries_one_caption_sets_and_regions():
    regions = np.zeros((4, 36, 8), np.float32)
    split = Split(regions, ["a", "b", "c", "d"], np.arange(4), np.arange(4), kind="regions")
    assert (split.caption_group == np.arange(4)).all()
    assert split.images[0].shape == (36, 8)
    assert split.only(np.array([True, False, True, True])).kind == "regions"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"owner": np.array([0, 9])}, "outside"),
        ({"owner": np.array([0])}, "2 captions with 1 owners"),
        ({"image_group": np.array([0, 1, 2])}, "3 groups"),
        ({"captions": []}, "at least one"),
    ],
)
def test_splits_that_do_not_fit_together_are_refused(change, message):
    fields = {
        "images": [0, 1],
        "captions": ["a", "b"],
        "owner": np.array([0, 1]),
        "image_group": np.array([0, 1]),
        **change,
    }
    with pytest.raises(DataError, match=message):
        Split(**fields)


def loaded_modules(code: str) -> set[str]:
    """Modules that a new process has loaded after running `code`."""
    command = [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_reading_data_sets_does_not_load_pytorch():
    modules = [f"harness.data.{name}" for name in ("base", "emoji", "icons", "vocabulary", *LAYOUTS)]
    assert "torch" not in loaded_modules(f"import {', '.join(modules)}, harness.data_tools.check")


def test_the_help_text_loads_neither_numpy_nor_pyarrow():
    call = "try: main(['noise', 'write', '--help'])\nexcept SystemExit: pass"
    code = f"from harness.data_tools.cli import main\n{call}"
    assert not {"numpy", "pyarrow", "PIL", "yaml"} & loaded_modules(code)


def test_a_clean_set_of_seen_concepts_is_a_part_of_train(emoji):
    seen = load_dataset("emoji", meta="seen")
    assert len(set(seen["meta"].image_group)) == 24
    assert set(seen["meta"].captions) <= set(emoji["train"].captions)
    assert len(seen["train"].captions) == len(emoji["train"].captions)
    assert seen.fingerprint != emoji.fingerprint
    with pytest.raises(DataError, match="expected unseen or seen"):
        load_dataset("emoji", meta="all")
