from __future__ import annotations

import hashlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from harness.data import load_dataset
from harness.data.base import DataSet
from harness.data.icons import FILE
from harness.data_tools.build_icons import Glyph, _captions, _concepts, _first_words, _key
from harness.data_tools.building import Concept, ambiguous, families, leave_out_ambiguous, split_by_family


@pytest.fixture(scope="module")
def icons() -> DataSet:
    return load_dataset("icons")


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return pq.read_table(FILE).to_pylist()


def glyph(name: str, *, aliases: tuple = (), tags: tuple = (), categories: tuple = (), vendor="mdi") -> Glyph:
    return Glyph(vendor, name, list(aliases), list(tags), list(categories), Path(f"{vendor}/{name}.svg"))


def test_sizes(icons):
    found = {k: (len(s.images), len(s.captions), len(set(s.image_group))) for k, s in icons.splits.items()}
    assert found == {
        "train": (8452, 42260, 6643),
        "dev": (562, 1819, 400),
        "test": (704, 2279, 500),
        "meta": (84, 420, 60),
    }
    assert FILE.stat().st_size < 15e6
    assert icons.name == "icons"
    assert icons.fingerprint == hashlib.sha256(FILE.read_bytes()).hexdigest()[:16]


def test_pictures_are_black_on_white_and_touch_no_border(rows):
    for row in rows[::7]:
        picture = Image.open(io.BytesIO(row["image"]))
        assert picture.size == (128, 128)
        pixels = np.asarray(picture.convert("L"))
        assert pixels.min() < 64, row["name"]
        assert pixels.std() > 10, row["name"]
        edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (edge == 255).all(), row["name"]


def test_five_distinct_captions_in_train_and_meta(rows):
    for row in rows:
        if row["split"] in ("train", "meta"):
            assert len(set(row["captions"])) == 5
            assert row["captions"][0] == row["name"]
        assert all(c == " ".join(c.split()) and c for c in row["captions"])


def test_captions_of_dev_and_test_belong_to_one_concept(icons, rows):
    concepts_of: dict[str, set[str]] = {}
    for row in rows:
        for caption in row["captions"]:
            concepts_of.setdefault(caption, set()).add(row["concept"])
    for name in ("dev", "test"):
        assert all(len(concepts_of[c]) == 1 for c in icons[name].captions)
        assert set(np.bincount(icons[name].caption_group)) <= {2, 3, 4, 5}


def test_no_caption_says_nothing(rows):
    assert not {"ui", "text", "interface", "shape", "icon", "symbol"} & {
        caption for row in rows for caption in row["captions"] if caption != row["name"]
    }
    assert not [r["name"] for r in rows if re.search(r"\b(brand|logo)$|^brand ", r["name"])]


def test_no_concept_and_no_first_word_is_in_two_splits(rows):
    """Told by names, independently of how the split was made."""
    splits: dict[str, set[str]] = {}
    for row in rows:
        word = re.sub(r"^(circle|square|hexagon|octagon|rounded)-(?=\w)", "", row["concept"])
        word = word.partition("-")[0]
        splits.setdefault(word, set()).add(row["split"])
        splits.setdefault(f"concept {row['concept']}", set()).add(row["split"])
    assert not {word: found for word, found in splits.items() if len(found) > 1}


def test_no_picture_is_in_two_splits(rows):
    """Neither as it is nor nearly: sets draw the same thing under different names."""
    small = np.stack(
        [
            np.asarray(Image.open(io.BytesIO(r["image"])).convert("L").reduce(8), np.float32).ravel()
            for r in rows
        ]
    )
    small -= small.mean(1, keepdims=True)
    small /= np.linalg.norm(small, axis=1, keepdims=True)
    split = np.array([r["split"] for r in rows])
    for name in ("dev", "test", "meta"):
        likeness = small[split == name] @ small[split != name].T
        assert (likeness < 0.97).all(), name


def test_sources_and_licences_are_shipped():
    folder = FILE.parent
    notice = (folder / "NOTICE.md").read_text(encoding="utf-8")
    for file in re.findall(r"licences/[\w.-]+txt", notice):
        assert len((folder / file).read_text(encoding="utf-8")) > 500
    for package in json.loads(pq.read_schema(FILE).metadata[b"sources"]).values():
        name, _, version = package.rpartition("@")
        assert f"npm `{name}` | {version} |" in notice


def test_a_name_is_one_concept_in_all_sets():
    assert _key("circle-alert") == _key("alert-circle") == _key("alert-circle-outline") == "alert-circle"
    assert _key("square") == "square"
    assert _key("outline") == "outline"
    found, drawings = _concepts(
        [
            glyph("star", aliases=("favourite", "favorite"), categories=("shape",)),
            glyph("star-outline", aliases=("rating outline",)),
            glyph("star", tags=("like", "night", "sky", "rank"), vendor="lucide"),
            glyph("star-2", tags=("like", "night", "sky", "rank"), vendor="lucide"),
            glyph("lonely"),
        ]
    )
    assert [c.key for c in found] == ["star"]
    assert found[0].captions == ["star", "favourite", "like night", "sky rank", "favorite"]
    assert drawings == {"star": {"mdi": Path("mdi/star.svg"), "lucide": Path("lucide/star.svg")}}


def test_no_lone_keyword_is_a_caption():
    found = _captions([glyph("axe", tags=("tool",), categories=("hardware",))])
    assert found == ["axe", "axe tool", "axe hardware"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("account-circle", {"account"}),
        ("circle-account", {"account"}),
        ("accounts", {"account"}),
        ("off", {"off"}),
        ("hexagonal-pyramid", {"hexagonal", "pyramid"}),
    ],
)
def test_families_are_named_by_what_is_drawn(name, words):
    assert _first_words(_key(name)) == words


def test_split_and_ambiguous_captions():
    concepts = [Concept(f"k{i}", f"n{i}", ["same", f"own {i}"]) for i in range(12)]
    family_of = families(concepts, lambda c: [str(int(c.key[1:]) // 2)])
    assert len(set(family_of)) == 6
    split = split_by_family(
        concepts, family_of, {"test": 4, "dev": 2}, seed=0, to_train=lambda members: members[0].key == "k0"
    )
    assert sorted(split.values()) == ["dev"] * 2 + ["test"] * 4 + ["train"] * 6
    assert split["k0"] == split["k1"] == "train"
    assert all(split[f"k{i}"] == split[f"k{i + 1}"] for i in range(0, 12, 2))
    assert ambiguous(concepts) == {"same"}
    leave_out_ambiguous(concepts, split)
    assert all(("same" in c.captions) == (split[c.key] == "train") for c in concepts)
