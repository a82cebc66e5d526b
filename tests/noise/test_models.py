from __future__ import annotations

import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest

import methods.seeding
from harness.data import load_dataset
from harness.data.base import DataError, Split
from harness.noise import GRANULARITIES
from harness.noise.files import write_index
from harness.noise.models import (
    MODELS,
    Derangement,
    FromFile,
    Hard,
    Natural,
    NoiseModel,
    Partial,
    Shuffle,
    make_noise,
)

ROOT = Path(__file__).parents[2]
EXAMPLES = {
    "shuffle": Shuffle(),
    "derangement": Derangement(),
    "hard": Hard(embedding="a/clip.npy"),
    "partial": Partial(words=0.3),
    "from_file": FromFile(path="a/{ratio}_{seed}.npy"),
    "none": Natural(),
}


@pytest.fixture(scope="module")
def train():
    return load_dataset("emoji")["train"]


@pytest.mark.parametrize("granularity", ["caption", "image"])
@pytest.mark.parametrize("ratio", [0.2, 0.6])
def test_every_image_keeps_its_number_of_captions(train, ratio, granularity):
    noise = make_noise(train, ratio=ratio, granularity=granularity, seed=1)
    assert (np.bincount(noise.image) == np.bincount(train.owner)).all()
    # A shuffle has fixed points, and moves within a concept still match: below nominal, by little.
    assert ratio - 0.02 < noise.realised <= ratio
    assert noise.realised == pytest.approx(np.mean(train.image_group[noise.image] != train.caption_group))


def test_caption_granularity_moves_exactly_the_chosen_captions(train):
    moved = make_noise(train, ratio=0.4, granularity="caption", seed=0).image != train.owner
    assert 0.39 < moved.mean() <= 0.4
    per_image = np.bincount(train.owner, weights=moved)
    assert (
        per_image[np.bincount(train.owner) == 5] == [0]
    ).mean() < 0.2  # single captions: few images are spared


def test_image_granularity_moves_whole_images(train):
    noise = make_noise(train, ratio=0.4, granularity="image", seed=0)
    for image in range(0, len(train.images), 97):
        assert len(set(noise.image[train.owner == image])) == 1
    spared = np.array([(noise.image[train.owner == i] == i).all() for i in range(len(train.images))])
    assert spared.mean() == pytest.approx(0.6, abs=0.01)


def test_no_noise_is_the_ground_truth(train):
    noise = make_noise(train, ratio=0, granularity="image", seed=5)
    assert (noise.image == train.owner).all()
    assert noise.matched.all()
    assert noise.granularity == "none"


def test_one_seed_one_index(train):
    first, again, other = (make_noise(train, ratio=0.4, granularity="caption", seed=s) for s in (3, 3, 4))
    assert first.digest == again.digest != other.digest
    # A golden number: if it changes, published records cannot be repeated, and the protocol version must
    # rise.
    assert make_noise(train, ratio=0.4, granularity="caption", seed=0).digest == "02348c190cf409e4"


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_bad_ratio_is_refused(train, ratio):
    with pytest.raises(ValueError, match="outside"):
        make_noise(train, ratio=ratio, granularity="caption", seed=0)


def test_bad_granularity_is_refused(train):
    with pytest.raises(ValueError, match="expected one of caption, image, text"):
        make_noise(train, ratio=0.1, granularity="word", seed=0)


@pytest.mark.parametrize("granularity", ["caption", "image"])
@pytest.mark.parametrize("ratio", [0.2, 0.6, 0.99])
def test_a_derangement_has_no_fixed_points(train, ratio, granularity):
    noise = make_noise(train, ratio=ratio, granularity=granularity, seed=1, model=Derangement())
    assert (np.bincount(noise.image) == np.bincount(train.owner)).all()
    drawn = (
        int(ratio * len(train.captions)) if granularity == "caption" else 5 * int(ratio * len(train.images))
    )
    assert (~noise.matched).sum() == (noise.image != train.owner).sum() == drawn
    others = [
        make_noise(train, ratio=ratio, granularity=granularity, seed=s, model=Derangement()).digest
        for s in (1, 2)
    ]
    assert others[0] == noise.digest != others[1]


def test_a_derangement_goes_everywhere():
    """Of four captions three are drawn (four ways), and three have two derangements: each comes about as
    often as any.
    """
    split = Split(range(4), ["a", "b", "c", "d"], np.arange(4), np.arange(4))
    found = [
        tuple(make_noise(split, ratio=0.99, granularity="caption", seed=s, model=Derangement()).image)
        for s in range(400)
    ]
    counts = [found.count(f) for f in set(found)]
    assert len(counts) == 8
    assert min(counts) > 25


def test_a_derangement_that_cannot_exist_is_reported():
    split = Split(range(4), ["a", "b", "c", "d"], np.arange(4), np.array([0, 0, 0, 1]))
    with pytest.raises(
        ValueError, match=r"no derangement exists: [23] of the 3 captions or images that were drawn"
    ):
        make_noise(split, ratio=0.99, granularity="caption", seed=0, model=Derangement())


def unit(rows, width=8, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


@pytest.mark.parametrize("rows", ["captions", "images"])
def test_hard_noise_swaps_with_near_neighbours_of_another_group(train, rows, tmp_path):
    part = train.only(train.image_group < 200)
    embedding = unit(len(getattr(part, rows)))
    np.save(tmp_path / "e.npy", embedding)
    noise = make_noise(
        part, ratio=0.3, granularity="caption", seed=0, model=Hard(embedding=str(tmp_path / "e.npy"))
    )
    wanted = 2 * (int(0.3 * len(part.captions)) // 2)
    moved = np.flatnonzero(noise.image != part.owner)
    assert noise.realised == wanted / len(part.captions)
    assert len(moved) == wanted
    assert (np.bincount(noise.image) == np.bincount(part.owner)).all()
    # Near: the images that captions went to are far nearer than random ones.
    unit_rows = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    if rows == "images":
        near = (unit_rows[noise.image[moved]] * unit_rows[part.owner[moved]]).sum(1)
        assert near.mean() > 0.6
    again = make_noise(
        part, ratio=0.3, granularity="caption", seed=0, model=Hard(embedding=str(tmp_path / "e.npy"))
    )
    assert (
        again.digest
        == noise.digest
        != make_noise(
            part, ratio=0.3, granularity="caption", seed=1, model=Hard(embedding=str(tmp_path / "e.npy"))
        ).digest
    )


def test_hard_noise_never_swaps_captions_of_one_text(tmp_path):
    """Each text has a copy in another group, which is nearest to it: that swap would change nothing."""
    group, text = np.arange(60), np.arange(60) % 30
    split = Split(range(60), [str(t) for t in text], group, group)
    np.save(tmp_path / "e.npy", unit(30)[text])
    model = Hard(embedding=str(tmp_path / "e.npy"))
    noise = make_noise(split, ratio=0.8, granularity="caption", seed=0, model=model)
    assert noise.realised == 0.8
    assert (text[noise.image] != text).sum() == 48


def test_hard_noise_widens_its_search_until_the_ratio_is_reached(tmp_path):
    """Two tight clusters of one group each: the nearest sixteen are all of the own group."""
    group = np.repeat([0, 1], 30)
    split = Split(range(60), [str(i) for i in range(60)], np.arange(60), group)
    np.save(tmp_path / "e.npy", np.eye(2, dtype=np.float32)[group] + 0.01 * unit(60, 2))
    noise = make_noise(
        split, ratio=0.8, granularity="caption", seed=0, model=Hard(embedding=str(tmp_path / "e.npy"))
    )
    assert noise.realised == 0.8
    alone = Split(split.images, split.captions, split.owner, np.zeros(60, np.int64))
    with pytest.raises(ValueError, match="no partners of another group and text are left after 0 of 48"):
        make_noise(
            alone, ratio=0.8, granularity="caption", seed=0, model=Hard(embedding=str(tmp_path / "e.npy"))
        )


def test_an_embedding_that_does_not_fit_is_refused(train, tmp_path):
    np.save(tmp_path / "e.npy", unit(7))
    for file, message in (
        ("e.npy", r"rows for the 15005 captions or the 3001 images of train, found float32 \(7, 8\)"),
        ("none.npy", "is missing"),
    ):
        with pytest.raises(DataError, match=message):
            make_noise(
                train, ratio=0.3, granularity="caption", seed=0, model=Hard(embedding=str(tmp_path / file))
            )


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_an_embedding_without_directions_is_refused(train, value, tmp_path):
    embedding = unit(len(train.images))
    embedding[7] = value
    np.save(tmp_path / "e.npy", embedding)
    with pytest.raises(DataError, match="row 7 is zero or not finite"):
        make_noise(
            train, ratio=0.3, granularity="caption", seed=0, model=Hard(embedding=str(tmp_path / "e.npy"))
        )


def test_partial_noise_replaces_a_share_of_the_words(train):
    noise = make_noise(train, ratio=0.4, granularity="caption", seed=0, model=Partial(words=0.5))
    assert (noise.image == train.owner).all()
    changed = np.flatnonzero(~noise.matched)
    assert noise.realised == pytest.approx(0.4, abs=0.002)
    for c in changed[:300]:
        old, new = train.captions[c].split(), noise.captions[c].split()
        assert len(new) == len(old)
        assert 1 <= sum(a != b for a, b in zip(old, new, strict=True)) <= max(1, round(0.5 * len(old)))
    kept = np.flatnonzero(noise.matched)
    assert all(noise.captions[c] == train.captions[c] for c in kept)
    split = noise.words_of(train)
    assert split.captions[changed[0]] == noise.captions[changed[0]]
    assert (
        split.altered
        == noise.digest
        != make_noise(train, ratio=0.4, granularity="caption", seed=1, model=Partial()).digest
    )


def test_the_ground_truth_of_natural_noise_is_unknown(train):
    noise = make_noise(train, ratio=0, granularity="caption", seed=0, model=Natural())
    assert (noise.image == train.owner).all()
    assert noise.matched is None
    assert np.isnan(noise.realised)
    with pytest.raises(ValueError, match=r"noise_ratio must be 0, not 0\.2"):
        make_noise(train, ratio=0.2, granularity="caption", seed=0, model=Natural())


def test_a_file_is_the_noise_that_it_was_written_from(train, tmp_path):
    ours = make_noise(train, ratio=0.4, granularity="caption", seed=3)
    write_index(ours.image, train, tmp_path / "caption_0.4_seed3.npy", "caption")
    model = FromFile(path=str(tmp_path / "caption_{ratio}_seed{seed}.npy"))
    noise = make_noise(train, ratio=0.4, granularity="caption", seed=3, model=model)
    assert (noise.digest, noise.realised, noise.granularity) == (ours.digest, ours.realised, "caption")
    assert make_noise(train, ratio=0, granularity="caption", seed=3, model=model).granularity == "none"
    with pytest.raises(DataError, match=r"caption_0.2_seed3.npy is missing"):
        make_noise(train, ratio=0.2, granularity="caption", seed=3, model=model)
    write_index(ours.image, train, tmp_path / "caption_0.2_seed3.npy", "caption")
    with pytest.raises(
        DataError, match=r"0.39\d+ of its pairs mismatch in this data set, and the trial's noise_ratio is 0.2"
    ):
        make_noise(train, ratio=0.2, granularity="caption", seed=3, model=model)


def test_every_model_has_a_name():
    union = typing.get_args(typing.get_args(NoiseModel)[0])
    assert tuple(model.model_fields["model"].default for model in union) == MODELS == tuple(EXAMPLES)


@pytest.mark.parametrize(
    ("model", "labels"),
    [
        ("shuffle", ["caption-level noise", "image-level noise", "text-level noise"]),
        (
            "derangement",
            [f"{g}-level noise without fixed points" for g in GRANULARITIES],
        ),
        ("hard", ["hard noise by clip"]),
        ("partial", ["partial noise (0.3 of the words)"]),
        ("from_file", ["noise of {ratio}_{seed}.npy", "noise of {ratio}_{seed}.npy"]),
        ("none", ["its own noise", "its own noise", "its own noise"]),
    ],
)
def test_labels(model, labels):
    """Reports of different versions must name a noise alike."""
    allowed = [g for g in GRANULARITIES if not EXAMPLES[model].incompatibility(0, g)]
    assert [EXAMPLES[model].label(g) for g in allowed] == labels


@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.8])
def test_all_copies_of_a_text_train_with_the_images_of_one_other_group(train, ratio):
    """So no copy of a moved string still matches its image, which caption-level noise leaves."""
    noise = make_noise(train, ratio=ratio, granularity="text", seed=3)
    groups: dict[str, set[int]] = {}
    for caption, text in enumerate(train.captions):
        groups.setdefault(text, set())
        if not noise.matched[caption]:
            groups[text].add(int(train.image_group[noise.image[caption]]))
    moved = {text for text, found in groups.items() if found}
    assert all(len(groups[text]) == 1 for text in moved)
    assert all(noise.matched[c] == (t not in moved) for c, t in enumerate(train.captions))
    most_copies = max(np.unique(train.captions, return_counts=True)[1])
    assert abs(noise.realised * len(train.captions) - ratio * len(train.captions)) <= most_copies
    assert noise.image.max() < len(train.images)
    by_caption = make_noise(train, ratio=ratio, granularity="caption", seed=3)
    stay = {t for c, t in enumerate(train.captions) if by_caption.matched[c]}
    assert {t for c, t in enumerate(train.captions) if not by_caption.matched[c]} & stay


@pytest.mark.parametrize("model", MODELS)
def test_files_are_those_that_the_index_is_made_from(model):
    files = {"hard": [Path("a/clip.npy")], "from_file": [Path("a/0.4_3.npy")]}
    assert EXAMPLES[model].files(0.4, 3) == files.get(model, [])
    assert EXAMPLES[model].files(0, 3) == []


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("ratio", [0, 0.4])
def test_what_a_model_is_incompatible_with_is_refused(train, model, granularity, ratio):
    incompatible = (
        (model in ("hard", "partial") and granularity != "caption")
        or (model == "from_file" and granularity == "text")
        or (model == "none" and ratio > 0)
    )
    message = EXAMPLES[model].incompatibility(ratio, granularity)
    assert bool(message) == incompatible
    if incompatible:
        with pytest.raises(ValueError, match=f"^noise '{model}' ") as error:
            make_noise(train, ratio=ratio, granularity=granularity, seed=0, model=EXAMPLES[model])
        assert str(error.value) == message


def test_attributes_hold_of_the_index(train):
    """A model that declares that it keeps the words, or knows the ground truth, does."""
    part = train.only(train.image_group < 100)
    for model in (Shuffle(), Derangement(), Partial(), Natural()):
        ratio = 0.4 if model.ground_truth_known else 0
        noise = make_noise(part, ratio=ratio, granularity="caption", seed=0, model=model)
        assert (noise.matched is not None) == model.ground_truth_known
        assert (noise.captions is not None) == model.changes_words
        assert noise.model == model.model


@pytest.mark.xfail(hasattr(methods.seeding, "torch"), reason="methods.seeding loads torch", strict=True)
def test_noise_loads_neither_torch_nor_scipy():
    """A sweep file is read, and an index file shown, without waiting for them."""
    modules = ", ".join(f"harness.noise.{m}" for m in ("models", "index", "inject", "files"))
    code = f"import sys, {modules}; print(*{{'torch', 'scipy'}} & set(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.split() == []
