"""Similarities of another program: their measures, and the mistakes that are known by their shape."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from harness.data import load_dataset
from harness.data.base import DataError
from harness.evaluate import main
from harness.evaluation.given import cosines, evaluate, fitted
from harness.evaluation.metrics import Ranking
from tests.test_doors import loaded

IMAGES, PER_IMAGE = 40, 5
GROUPS = np.arange(IMAGES), np.arange(IMAGES * PER_IMAGE) // PER_IMAGE


@pytest.fixture
def scores():
    """Cosines of noisy captions with their images."""
    draw = np.random.default_rng(0)
    images = draw.normal(size=(IMAGES, 16)).astype(np.float32)
    texts = images[GROUPS[1]] + draw.normal(size=(len(GROUPS[1]), 16)).astype(np.float32)
    return images, texts, cosines(images, texts)


def by_loop(similarity):
    """R@1 of both directions, as it is defined."""
    i2t = np.mean([GROUPS[1][similarity[i].argmax()] == i for i in range(IMAGES)])
    t2i = np.mean([similarity[:, j].argmax() == GROUPS[1][j] for j in range(len(GROUPS[1]))])
    return [100 * i2t, 100 * t2i]


def test_measures_of_given_similarities(scores):
    *_, similarity = scores
    found = evaluate(similarity, *GROUPS)
    assert [found.metrics["i2t_r1"], found.metrics["t2i_r1"]] == pytest.approx(by_loop(similarity))
    assert (found.images, found.captions, found.notes) == (IMAGES, IMAGES * PER_IMAGE, ())
    assert evaluate(np.zeros_like(similarity), *GROUPS).metrics["rsum"] == pytest.approx(found.chance)


def test_distances_are_told_from_similarities(scores):
    *_, similarity = scores
    right = evaluate(similarity, *GROUPS)
    assert evaluate(1 - similarity, *GROUPS, distances=True).metrics == right.metrics
    (note,) = evaluate(1 - similarity, *GROUPS).notes
    assert "are these distances (--distances)?" in note


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda s: s.T, "rows were captions"),
        (lambda s: s.repeat(PER_IMAGE, 0), "each image stood there 5 times"),
        (lambda s: s.repeat(PER_IMAGE, 0).T, "rows were captions: .* each image stood there 5 times"),
    ],
)
def test_known_shapes_are_put_right(scores, change, note):
    *_, similarity = scores
    found, told = fitted(change(similarity), *GROUPS)
    assert re.search(note, " ".join(told))
    assert (found == similarity).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s[:, 3:], "3 captions are missing. A caption that a model drops counts as missed"),
        (lambda s: s[2:], "2 images are missing"),
        (lambda s: s[:8, :40], "one fold of 5: results on 8 images are the mean over all folds"),
        (lambda s: s[:8], "one fold of 5"),
        (lambda s: s[:8, :40].T, "one fold of 5, with captions as rows"),
        (lambda s: s[:8, :40].repeat(PER_IMAGE, 0), "one fold of 5, with a row for each caption"),
        (lambda s: s[:, 3:].T, "3 captions are missing, with captions as rows"),
        (lambda s: s[:, 3:].repeat(PER_IMAGE, 0), "3 captions are missing, and 5 rows for each image"),
        (lambda s: np.tile(s, (PER_IMAGE, 1)), "5 rows for each image, but they differ"),
        (lambda s: s[:7, :9], r"shape \(7, 9\), and the split has 40 images and 200 captions$"),
        (lambda s: s[0], "expected numbers"),
        (lambda s: np.where(s == s[3, 7], np.nan, s), "similarity of image 3 and caption 7 is nan"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(scores, change, message):
    *_, similarity = scores
    with pytest.raises(DataError, match=message):
        evaluate(change(similarity), *GROUPS)


def test_embeddings_that_cannot_be_compared(scores):
    images, texts, _ = scores
    with pytest.raises(DataError, match=r"shapes \(40, 16\) and \(200, 15\)"):
        cosines(images, texts[:, :15])
    with pytest.raises(DataError, match="the embedding of caption 2 is zero"):
        cosines(images, np.where(np.arange(200)[:, None] == 2, 0, texts))


def written(folder, **arrays):
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return {name: str(folder / f"{name}.npy") for name in arrays}


def test_the_command_with_files_of_all_kinds(scores, tmp_path, capsys):
    images, texts, similarity = scores
    files = written(
        tmp_path, s=similarity, i=images.repeat(PER_IMAGE, 0), t=texts, ig=GROUPS[0], cg=GROUPS[1]
    )
    told = []
    for arguments in (
        [files["s"], "--captions-per-image", "5"],
        [files["s"], "--image-groups", files["ig"], "--caption-groups", files["cg"]],
        ["--images", files["i"], "--texts", files["t"], "--captions-per-image", "5"],
    ):
        out = tmp_path / "out.json"
        assert main([*arguments, "--json", str(out), "--ranks", str(tmp_path / "ranks.npz")]) == 0
        told.append(json.loads(out.read_text()))
    assert [each.pop("notes") for each in told][:2] == [[], []]  # the copies are said
    assert told[0] == told[1] == told[2]
    assert f"{told[0]['rsum']:.2f}" in capsys.readouterr().out
    with np.load(tmp_path / "ranks.npz") as arrays:
        ranking = Ranking.of(dict(arrays), "t2i")
    assert 100 * ranking.hits(1).mean() == pytest.approx(told[0]["t2i_r1"])


@pytest.mark.parametrize("dropped", [3, PER_IMAGE])
def test_captions_that_are_dropped_of_so_many_for_each_image(scores, tmp_path, capsys, dropped):
    images, texts, similarity = scores
    files = written(tmp_path, s=similarity[:, dropped:], i=images, t=texts[dropped:])
    for given in ([files["s"]], ["--images", files["i"], "--texts", files["t"]]):
        assert main([*given, "--captions-per-image", str(PER_IMAGE)]) == 2
        assert f"{dropped} captions are missing" in " ".join(capsys.readouterr().err.split())


def test_the_command_on_a_data_set(tmp_path):
    """The packaged data: a model that knows the groups is perfect, and 1K needs MS-COCO."""
    split = load_dataset("emoji")["test"]
    perfect = (split.image_group[:, None] == split.caption_group).astype(np.float16)
    file = written(tmp_path, perfect=perfect)["perfect"]
    assert main([file, "--data", "emoji", "--json", str(tmp_path / "out.json")]) == 0
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["rsum"] == pytest.approx(600)
    assert not [k for k in told if k.startswith("1k_")]


def test_copies_that_differ_by_rounding_are_copies_and_said(scores, tmp_path):
    """As a GPU gives them, where they were in other batches."""
    images, texts, similarity = scores
    noise = np.random.default_rng(0).normal(0, 1e-7, (len(images) * PER_IMAGE, 1))
    rows, embeddings = similarity.repeat(PER_IMAGE, 0) + noise, images.repeat(PER_IMAGE, 0) * (1 + noise)
    files = written(tmp_path, s=rows, i=embeddings, t=texts)
    for given in ([files["s"]], ["--images", files["i"], "--texts", files["t"]]):
        out = tmp_path / "out.json"
        assert main([*given, "--captions-per-image", str(PER_IMAGE), "--json", str(out)]) == 0
        (note,) = json.loads(out.read_text())["notes"]
        assert note == "each image stood there 5 times: one row of each was taken"


def test_numbers_of_images_and_captions_that_say_what_is_wrong(scores, tmp_path, capsys):
    images, texts, similarity = scores
    files = written(tmp_path, s=similarity, i=images, t=texts, line=np.arange(5), text=np.eye(2))
    Path(files["text"]).write_text("0.5,0.4\n")
    swapped = ["--images", files["t"], "--texts", files["i"], "--captions-per-image", "5"]
    for arguments, message in (
        ([files["s"], "--captions-per-image", "2"], "are 5 captions an image: --captions-per-image 5"),
        (swapped, "are --images and --texts exchanged?"),
        ([files["line"], "--captions-per-image", "5"], "similarities of shape (5,): expected"),
        ([files["text"], "--captions-per-image", "5"], "it is no .npy file, which numpy.save writes"),
        ([files["s"], "--data", "data/nowhere"], "data set data/nowhere: there is no such directory"),
    ):
        assert main(arguments) == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_folds_of_ms_coco_by_its_numbers_alone(monkeypatch):
    """Where no data set says that it is; here of 8 images each."""
    monkeypatch.setattr("harness.evaluation.given.FOLD_IMAGES", 8)
    scores = np.random.default_rng(1).normal(size=(40, 200)) + 2 * (GROUPS[0][:, None] == GROUPS[1])
    found = evaluate(scores, *GROUPS)
    parts = [evaluate(scores[i : i + 8, 5 * i : 5 * i + 40], *_first(8)) for i in range(0, 40, 8)]
    assert found.metrics["1k_rsum"] == pytest.approx(np.mean([p.metrics["rsum"] for p in parts]))
    assert found.metrics["1k_rsum"] > found.metrics["rsum"]
    assert [note[:10] for note in found.notes] == ["1K: taken "]
    assert all("one fold of MS-COCO" in part.notes[0] for part in parts)


def _first(images):
    return GROUPS[0][:images], GROUPS[1][: images * PER_IMAGE]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.npy", "--captions-per-image", "5"], "similarities nowhere.npy is missing"),
        (["nowhere.npy", "--data", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_of_the_command(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_integers_are_no_closer_than_they_are(tmp_path, capsys):
    """Scores that differ by one are not tied, whatever the tolerance is rounded to."""
    files = written(tmp_path, s=np.array([[5, 4], [3, 5]]), d=np.array([[0, 1], [1, 0]], np.uint8))
    for arguments in ([files["s"]], [files["d"], "--distances"]):
        out = tmp_path / "out.json"
        assert main([*arguments, "--captions-per-image", "1", "--json", str(out)]) == 0
        told = json.loads(out.read_text())
        assert (told["i2t_r1"], told["t2i_r1"]) == (100, 100)
    files = written(tmp_path, c=np.eye(2, dtype=complex))
    assert main([files["c"], "--captions-per-image", "1"]) == 2
    assert "are complex numbers" in " ".join(capsys.readouterr().err.split())


def test_an_image_without_a_caption_and_a_folder_that_is_not_there(tmp_path, capsys):
    files = written(tmp_path, s=np.eye(2), ig=np.array([0, 1]), cg=np.array([0, 2]))
    groups = ["--image-groups", files["ig"], "--caption-groups", files["cg"]]
    assert main([files["s"], *groups]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "1 images have no caption of their group; the first is image 1, of group 1" in told
    files = written(tmp_path, s=np.eye(2), ig=np.array([0, 1, 2]), cg=np.array([1, 0]))
    assert main([files["s"], "--image-groups", files["cg"], "--caption-groups", files["ig"]]) == 2
    assert "shape (2, 2)" in " ".join(capsys.readouterr().err.split())
    out = tmp_path / "nowhere" / "out.json"
    assert main([files["s"], "--captions-per-image", "1", "--json", str(out)]) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["a.npy"],
        ["--images", "a.npy", "--data", "emoji"],
        ["a.npy", "--images", "b.npy", "--data", "emoji"],
        ["a.npy", "--captions-per-image", "5", "--split", "dev"],
        [],
    ],
)
def test_arguments_that_say_too_little(arguments):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)


def test_no_torch_is_needed(tmp_path):
    file = written(tmp_path, s=np.eye(4, 8))["s"]
    code, modules = loaded("harness.evaluate", file, "--captions-per-image", "2")
    assert code == 0
    assert not {"torch", "ray", "mlflow", "pandas"} & modules
