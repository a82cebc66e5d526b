"""The SCAN layout: read in every published form, refused where it does not fit, and written from data sets of
ours.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from harness.backbones.sgraf import SgrafConfig, SgrafSetup
from harness.data import load_dataset
from harness.data.base import DataError, DataSet, Split
from harness.data.vocabulary import SPECIAL, Vocabulary, tokenize
from harness.data_tools.check import check
from harness.data_tools.cli import main
from harness.data_tools.export import export_scan
from harness.noise.models import make_noise
from harness.sweep.preflight import check_trial
from tests import small

SIZES = {"train": 8, "dev": 6, "test": 4}


@pytest.fixture
def folder(tmp_path):
    """Five captions an image, as Flickr30K and MS-COCO have them."""
    root = tmp_path / "f30k_precomp"
    root.mkdir()
    for name, count in SIZES.items():
        write(root, name, features(count, seed=len(name)), [f"{name} dog {i}" for i in range(5 * count)])
    return root


def features(count, *, regions=3, width=4, seed=0):
    return np.random.default_rng(seed).random((count, regions, width), np.float32)


def write(root, name, array, captions):
    np.save(root / f"{name}_ims.npy", array)
    (root / f"{name}_caps.txt").write_text("".join(f"{c}\n" for c in captions), encoding="utf-8")


def load(folder, **options):
    return load_dataset("scan", folder=str(folder), **options)


def test_five_lines_an_image(folder):
    data = load(folder)
    assert {name: (len(s.images), len(s.captions)) for name, s in data.splits.items()} == {
        n: (c, 5 * c) for n, c in SIZES.items()
    }
    assert data["train"].owner.tolist() == [i // 5 for i in range(40)]
    assert data["train"].captions[7] == "train dog 7"
    assert (data["train"].images[3] == np.load(folder / "train_ims.npy")[3]).all()
    assert not data.distinct_groups


def test_rows_that_repeat_each_image_five_times_are_one_image(folder):
    """As some published dev files are: otherwise validation would be on a fifth of the images, five times."""
    array = features(6)
    write(folder, "dev", array.repeat(5, 0), [f"dev {i}" for i in range(30)])
    dev = load(folder)["dev"]
    assert len(dev.images) == 6
    assert dev.owner.tolist() == [i // 5 for i in range(30)]
    assert (dev.images[np.arange(6)] == array).all()


def test_one_caption_an_image(folder):
    for name, count in SIZES.items():
        (folder / f"{name}_caps.txt").unlink()
        (folder / f"{name}_caps.tsv").write_text(
            "".join(f"{i}.jpg\ta {name}, no. {i}\n" for i in range(count))
        )
    data = load(folder)
    assert data["train"].owner.tolist() == list(range(8))
    assert data["dev"].captions[2] == "a dev, no. 2"


def test_as_many_rows_as_captions_without_repetition_is_one_caption_an_image(folder):
    write(folder, "test", features(10), [f"test {i}" for i in range(10)])
    assert load(folder)["test"].owner.tolist() == list(range(10))


def test_features_are_a_memory_map_of_which_only_the_asked_rows_are_read(folder):
    images = load(folder)["train"].images
    assert isinstance(images.features, np.memmap)
    inputs = SgrafSetup(SgrafConfig()).inputs(load(folder), "train")
    assert torch.equal(
        inputs.images(torch.tensor([5, 2, 5])), torch.from_numpy(np.load(folder / "train_ims.npy")[[5, 2, 5]])
    )


def test_check_names_the_images_whose_features_are_not_finite(folder):
    assert check(folder).errors == []
    array = np.load(folder / "train_ims.npy")
    array[2, 1, 0], array[7, 0, 3] = np.nan, np.inf
    np.save(folder / "train_ims.npy", array)
    assert check(folder).errors == [f"train: the region features of image {i} are not finite" for i in (2, 7)]


def test_the_fingerprint_follows_the_content(folder):
    before = load(folder).fingerprint
    assert load(folder).fingerprint == before
    assert load(folder, train_groups=4).fingerprint != before
    array = np.load(folder / "test_ims.npy")
    array[0, 0, 0] += 1
    np.save(folder / "test_ims.npy", array)
    assert load(folder).fingerprint != before


def test_the_first_groups_of_train(folder):
    np.save(folder / "train_groups.npy", np.array([7, 7, 9, 9, 9, 2, 2, 2]))
    data = load(folder, train_groups=2)  # by number: 2, 7
    assert data.distinct_groups
    train = data["train"]
    assert (len(train.images), len(train.captions)) == (5, 25)
    assert train.captions[10] == "train dog 25"
    assert (train.images[2] == np.load(folder / "train_ims.npy")[5]).all()
    assert train.image_group.tolist() == [1, 1, 0, 0, 0]


def test_a_clean_set_leaves_dev_unless_the_leak_is_asked_for(folder):
    closed, leaky = load(folder, meta_share=0.25), load(folder, meta_share=0.25, meta_leak=True)
    for data in (closed, leaky):
        assert len(data["meta"].captions) == 10  # a quarter of the 40 training pairs
        assert all(c.startswith("dev") for c in data["meta"].captions)
        assert len(data["train"].captions) == 40
    assert len(leaky["dev"].captions) == 30
    assert set(closed["dev"].captions) == set(leaky["dev"].captions) - set(closed["meta"].captions)
    assert closed.fingerprint != leaky.fingerprint
    with pytest.raises(DataError, match="dev has 6"):
        load(folder, meta_share=0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_groups": 0}, r"dataset_options\.train_groups = 0: .*greater than or equal to 1"),
        ({"train_groups": 99}, r"dataset_options\.train_groups = 99: train has 8 groups"),
        ({"train_groups": True}, r"dataset_options\.train_groups = True: "),
        (
            {"meta_share": "a", "meta_leak": "no"},
            r"meta_share = 'a': .*; dataset_options\.meta_leak = 'no': ",
        ),
        ({"meta_leak": True}, "nothing to leak without meta_share"),
        (
            {"train_group": 3},
            r"unknown option dataset_options\.train_group; did you mean 'train_groups'\? \(allowed: folder, ",
        ),
    ],
)
def test_options_are_checked(folder, options, message):
    with pytest.raises(DataError, match=message):
        load(folder, **options)


def test_a_sweep_that_names_no_folder_is_told():
    sweep = small.sweep("triplet", grid={"dataset": ["scan"]}, fixed={"backbone": small.SGRAF})
    assert "dataset_options.folder is missing" in check_trial(sweep.trials[0])[0]


def test_all_that_does_not_fit_is_told_at_once(folder):
    np.save(folder / "train_ims.npy", features(7))
    (folder / "dev_caps.txt").unlink()
    np.save(folder / "test_ims.npy", np.ones((4, 12), np.float32))
    with pytest.raises(DataError) as found:
        load(folder)
    text = str(found.value)
    assert (
        "train_ims.npy: expected 8 or 40 rows for the 40 captions of the split, found shape (7, 3, 4)" in text
    )
    assert "dev_caps.txt (or dev_caps.tsv) is missing" in text
    assert (
        "test_ims.npy: expected floating-point numbers of shape (images, regions, width), found float32 "
        "(4, 12)" in text
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / "dev_ims.npy").write_bytes((f / "dev_ims.npy").read_bytes()[:150]),
            "dev_ims.npy cannot be read",
        ),
        (lambda f: np.save(f / "dev_ims.npy", np.array([{"a": 1}], object)), "dev_ims.npy cannot be read"),
        (
            lambda f: np.save(f / "dev_ims.npy", features(6, regions=2)),
            r"dev_ims.npy: expected regions of shape \(3, 4\) as in train, found \(2, 4\)",
        ),
        (
            lambda f: (f / "dev_caps.txt").write_bytes(b"a dog\n\xff\xfe\n"),
            "dev_caps.txt: expected UTF-8, found the byte 0xff at 6",
        ),
        (
            lambda f: np.save(f / "train_groups.npy", np.zeros(3, int)),
            r"train_groups.npy: expected 8 integers, found int64 \(3,\)",
        ),
    ],
)
def test_damage_is_told_with_file_expectation_and_finding(folder, damage, message):
    damage(folder)
    with pytest.raises(DataError, match=message):
        load(folder)


# Words ---------------------------------------------------------------------------------------------


def test_words_are_those_of_word_tokenize():
    assert tokenize("A man's dog -- it isn't big.") == (
        "a",
        "man",
        "'s",
        "dog",
        "--",
        "it",
        "is",
        "n't",
        "big",
        ".",
    )
    assert tokenize("Two dogs. They run!  Fast") == ("two", "dogs", ".", "they", "run", "!", "fast")


def test_a_vocabulary_keeps_words_that_stand_four_times(tmp_path):
    captions = ["red dog"] * 4 + ["blue dog"] * 3
    made = Vocabulary.build(captions)
    assert list(made.ids) == [*SPECIAL, "red", "dog"]
    made.write(tmp_path / "x_vocab.json")
    again = Vocabulary.read(tmp_path / "x_vocab.json")
    assert again.ids == made.ids
    assert again.encode(["Red blue dog", "dog"]).tolist() == [[1, 4, 3, 5, 2], [1, 5, 2, 0, 0]]


@pytest.mark.parametrize("token", SPECIAL)
def test_a_vocabulary_without_a_special_token_is_refused(tmp_path, folder, token):
    ids = {word: i for i, word in enumerate((*SPECIAL, "dog"))}
    del ids[token]
    (folder / "f30k_vocab.json").write_text(json.dumps({"word2idx": ids}))
    fault = SgrafSetup(SgrafConfig()).check_data(load(folder), 1)
    assert f"f30k_vocab.json: expected the special tokens {', '.join(SPECIAL)}, found no {token}" in fault


def test_padding_must_be_zero(folder):
    (folder / "f30k_vocab.json").write_text(
        json.dumps({"word2idx": {"<start>": 0, "<pad>": 1, "<end>": 2, "<unk>": 3}})
    )
    assert "expected <pad> alone at 0, found it at 1" in SgrafSetup(SgrafConfig()).check_data(load(folder), 1)
    (folder / "f30k_vocab.json").write_text('{"idx2word": {}}')
    assert "f30k_vocab.json: expected JSON with word2idx" in SgrafSetup(SgrafConfig()).check_data(
        load(folder), 1
    )


def test_of_several_vocabularies_one_is_named(folder):
    for name in "ab":
        Vocabulary.build([f"{name} cat"] * 4).write(folder / f"{name}_vocab.json")
    assert "several vocabularies (a_vocab.json, b_vocab.json): name one" in SgrafSetup(
        SgrafConfig()
    ).check_data(load(folder), 1)
    named = SgrafSetup(SgrafConfig(vocabulary=str(folder / "b_vocab.json")))
    assert named.check_data(load(folder), 1) is None
    assert "b" in named.vocabulary(load(folder)).ids
    assert main(["vocabulary", str(folder)]) == 2  # there is one already


def test_other_word_ids_are_another_fingerprint_and_another_backbone(folder):
    setup = SgrafSetup(SgrafConfig())
    before = load(folder)
    Vocabulary.build(["cat"] * 4).write(folder / "x_vocab.json")
    assert load(folder).fingerprint != before.fingerprint
    assert setup.identity(load(folder)) != setup.identity(before)


def test_the_vocabulary_comes_with_the_data_or_from_its_training_captions(folder):
    assert "dog" in SgrafSetup(SgrafConfig()).vocabulary(load(folder)).ids
    assert main(["vocabulary", str(folder), "--min-count", "100"]) == 0
    assert set(SgrafSetup(SgrafConfig()).vocabulary(load(folder)).ids) == set(SPECIAL)


# Export --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Four concepts a split of `emoji`, through the real trunk."""
    data = few_concepts()
    folder = tmp_path_factory.mktemp("export") / "emoji_precomp"
    export_scan(data, folder, ratios=[0.4], seeds=[3])
    return data, folder


def few_concepts():
    whole = small.load()
    return replace(
        whole, splits={name: small.first_concepts(split, 4) for name, split in whole.splits.items()}
    )


def test_an_export_is_read_back_with_captions_groups_and_noise(exported):
    data, folder = exported
    back = load(folder)
    for name in ("train", "meta"):
        assert list(back[name].captions) == list(data[name].captions)
        assert (back[name].owner == data[name].owner).all()
        assert (back[name].image_group == data[name].image_group).all()
        assert back[name].images.shape == (len(data[name].images), 36, 1280)
    assert back.distinct_groups
    # one picture of a concept owns its captions; the others have no place in the layout
    for name in (
        "dev",
        "test",
    ):
        assert len(back[name].images) == 4
        assert list(back[name].captions) == list(data[name].captions)
    index = np.load(folder / "noise" / "caption_0.4_seed3.npy")
    for split in (data["train"], back["train"]):
        assert (make_noise(split, ratio=0.4, granularity="caption", seed=3).image == index).all()
    assert not (index == data["train"].owner).all()


def test_exported_regions_show_the_picture(exported):
    """Pooled regions of one concept's pictures are closer than those of others."""
    data, folder = exported
    pooled = torch.from_numpy(np.load(folder / "train_ims.npy")).mean(1)
    pooled = torch.nn.functional.normalize(pooled - pooled.mean(0), dim=1)
    group = torch.from_numpy(data["train"].image_group)
    same = (group[:, None] == group) & ~torch.eye(len(group), dtype=bool)
    cosine = pooled @ pooled.T
    assert cosine[same].mean() > cosine[group[:, None] != group].mean() + 0.2
    assert np.load(folder / "train_ims.npy").std((0, 2)).min() > 0


def test_what_the_published_loaders_expect(exported):
    """N x 36 x F float32, five lines an image, ids of the four special tokens, an index of images for each
    caption.
    """
    _, folder = exported
    images = np.load(folder / "train_ims.npy")
    assert images.dtype == np.float32
    assert len((folder / "train_caps.txt").read_text().splitlines()) == 5 * len(images)
    ids = json.loads((folder / "emoji_precomp_vocab.json").read_text())["word2idx"]
    assert [ids[t] for t in SPECIAL] == [0, 1, 2, 3]
    index = np.load(folder / "noise" / "caption_0.4_seed3.npy")
    assert index.shape == (5 * len(images),)
    assert index.dtype == np.int64
    assert index.max() < len(images)


def test_an_export_never_overwrites_and_needs_pictures_with_captions(exported, tmp_path):
    data, folder = exported
    with pytest.raises(DataError, match="exists already"):
        export_scan(data, folder)
    with pytest.raises(DataError, match="has region features already"):
        export_scan(load(folder), tmp_path / "x")
    two = Split(data["dev"].images[:1], ["a", "b"], np.array([0, 0]), np.array([0]))
    with pytest.raises(DataError, match="a training image owns 2"):
        export_scan(DataSet("two", {"train": two}, "x"), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_one_caption_an_image_is_exported_as_a_table(tmp_path):
    data = few_concepts()
    first = {
        n: replace(s, captions=[f'"{n}" {i}' for i in range(len(s.images))], owner=np.arange(len(s.images)))
        for n, s in data.splits.items()
    }
    one = DataSet("one", {n: first[n] for n in ("train", "dev", "test")}, "x")
    export_scan(one, tmp_path / "one_precomp")
    back = load(tmp_path / "one_precomp")
    assert list(back["dev"].captions) == list(one["dev"].captions)
    assert (back["dev"].owner == np.arange(len(one["dev"].images))).all()


def test_pictures_and_regions_are_kept_apart(exported):
    assert "harness.data export" in check_trial(small.trial("clip", backbone={"kind": "sgraf"}))[0]
    regions = small.sweep(
        "clip",
        grid={"dataset": ["scan"]},
        fixed={"dataset_options": {"folder": str(exported[1])}, "batch_size": 4},
    ).trials[0]
    assert "use the backbone sgraf" in check_trial(regions)[0]
