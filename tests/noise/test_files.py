"""Published noise-index files: what NCR's, RCL's and NPC's own code writes is read, described, and written
the same.
"""

# ruff: noqa: NPY002  (published code draws from the global generator)

from __future__ import annotations

import time

import numpy as np
import pytest

from harness.data import load_dataset
from harness.data.base import DataError, Split
from harness.data_tools.cli import main
from harness.noise.files import read_index, write_index
from harness.noise.models import make_noise
from tests import layouts

IMAGES, EACH = 200, 5


@pytest.fixture
def split():
    """Two hundred images with five captions each; captions 0 and 500 are the same text, as are 1 and 2 of one
    image.
    """
    captions = [f"caption {c}" for c in range(IMAGES * EACH)]
    captions[500], captions[2] = captions[0], captions[1]
    return Split(range(IMAGES), captions, np.arange(IMAGES * EACH) // EACH, np.arange(IMAGES))


def as_ncr_does(ratio, seed):
    """`t2i_index` of NCR's loader, statement by statement."""
    np.random.seed(seed)
    t2i = np.arange(IMAGES * EACH) // EACH
    idx = np.arange(IMAGES * EACH)
    np.random.shuffle(idx)
    length = int(ratio * IMAGES * EACH)
    shuffled = t2i[idx[:length]]
    np.random.shuffle(shuffled)
    t2i[idx[:length]] = shuffled
    return t2i


def as_rcl_does(ratio, seed):
    """`noisy_inx` of RCL's and DECL's loader."""
    np.random.seed(seed)
    noisy = np.arange(IMAGES)
    inx = np.arange(IMAGES)
    np.random.shuffle(inx)
    chosen = inx[: int(ratio * IMAGES)]
    moved = np.array(chosen)
    np.random.shuffle(moved)
    noisy[chosen] = moved
    return noisy


def as_npc_does(captions, ratio, seed):
    """The lines of NPC's `construct_noise.py`, and the truth that it does not keep: where each
    caption went.
    """
    np.random.seed(seed)
    idx = np.arange(len(captions))
    np.random.shuffle(idx)
    length = int(ratio * len(captions))
    order = np.arange(length)
    np.random.shuffle(order)
    noisy = np.array(captions)
    noisy[idx[:length]] = np.array(captions)[idx[:length]][order]
    line_of = np.arange(len(captions))
    line_of[idx[:length][order]] = idx[:length]
    return list(noisy), line_of


def test_an_index_of_the_ncr_line(split, tmp_path):
    index = as_ncr_does(0.4, 7)
    np.save(tmp_path / "f30k_precomp_0.4.npy", index)
    found = read_index(tmp_path / "f30k_precomp_0.4.npy", split)
    assert (found.form, found.granularity) == ("caption", "caption")
    assert (found.image == index).all()
    assert (found.matched == (index == split.owner)).all()
    assert found.wrong_captions.sum() == IMAGES
    assert (found.wrong_captions * np.arange(6)).sum() == (index != split.owner).sum()


def test_a_permutation_of_images_is_image_level(split, tmp_path):
    index = as_rcl_does(0.6, 7)
    np.save(tmp_path / "noise_inx_0.6.npy", index)
    found = read_index(tmp_path / "noise_inx_0.6.npy", split)
    assert (found.form, found.granularity) == ("image", "image")
    assert (found.image == index[np.arange(IMAGES * EACH) // EACH]).all()  # images[noisy_inx[i // 5]]
    assert found.wrong_captions[1:5].sum() == 0
    # Five times expanded, as L2RM ships it, it is the same noise in the other form.
    np.save(tmp_path / "expanded.npy", index.repeat(EACH))
    other = read_index(tmp_path / "expanded.npy", split)
    assert (other.form, other.granularity) == ("caption", "image")
    assert (other.image == found.image).all()


def test_captions_of_npc_are_found_by_their_text(split, tmp_path):
    lines, line_of = as_npc_does(split.captions, 0.4, 7)
    (tmp_path / "0.4_noise_train_caps.txt").write_text("".join(f"{line}\n" for line in lines))
    found = read_index(tmp_path / "0.4_noise_train_caps.txt", split)
    assert (found.form, found.granularity, found.ambiguous) == ("text", "caption", 4)
    alone = ~np.isin(np.arange(len(lines)), [0, 1, 2, 500])
    assert (found.image == split.owner[line_of])[alone].all()
    # Whichever of two equal captions it is: image and text are trained together just as the file says.
    trained = sorted(zip(found.image.tolist(), split.captions, strict=True))
    assert trained == sorted(zip(split.owner.tolist(), lines, strict=True))
    assert (found.matched == (found.image == split.owner)).all()  # the rule of every other form
    (tmp_path / "spaced.txt").write_text("".join(f"  {line.replace(' ', '  ')}\r\n" for line in lines))
    assert (read_index(tmp_path / "spaced.txt", split).image == found.image).all()


@pytest.mark.parametrize("form", ["caption", "image", "text"])
def test_what_we_write_is_read_back(form, tmp_path):
    split = load_dataset("npc", folder=str(layouts.npc(tmp_path / "npc")))["train"]
    noise = make_noise(split, ratio=0.5, granularity="image" if form == "image" else "caption", seed=0)
    file = tmp_path / "out" / ("index.txt" if form == "text" else "index.npy")
    write_index(noise.image, split, file, form)
    found = read_index(file, split)
    assert found.form == form
    assert found.granularity == noise.granularity
    assert (found.matched == noise.matched).all()
    if not found.ambiguous:
        assert (found.image == noise.image).all()
    with pytest.raises(DataError, match="exists already"):
        write_index(noise.image, split, file, form)


def test_many_equal_texts_take_no_time(tmp_path):
    captions = [f"caption {c}" if c % 2 else "the same" for c in range(20_000)]
    many = Split(range(4000), captions, np.arange(20_000) // 5, np.arange(4000))
    lines, _ = as_npc_does(captions, 0.5, 0)
    (tmp_path / "noise.txt").write_text("".join(f"{line}\n" for line in lines))
    began = time.perf_counter()
    found = read_index(tmp_path / "noise.txt", many)
    assert time.perf_counter() - began < 2
    assert found.ambiguous == 10_000


def test_forms_that_cannot_hold_an_index_refuse_it(split, tmp_path):
    with pytest.raises(DataError, match="moves single captions"):
        write_index(as_ncr_does(0.4, 0), split, tmp_path / "a.npy", "image")
    crowd = split.owner.copy()
    crowd[:50] = 3
    with pytest.raises(DataError, match=r"a: form 'caption' is a \.npy file"):
        write_index(split.owner, split, tmp_path / "a", "caption")
    with pytest.raises(DataError, match="some image more"):
        write_index(crowd, split, tmp_path / "a.txt", "text")


WRONG = {
    "too long": (lambda: np.arange(1001), r"has 1,001 entries, and train has 1,000 captions of 200 images"),
    "no such image": (lambda: np.full(1000, 200), r"200 is no image of train \(0 to 199\)"),
    "negative": (lambda: np.full(1000, -1), "-1 is no image"),
    "no permutation": (lambda: np.zeros(200, int), "is not a permutation of the images"),
    "floats": (lambda: np.zeros(1000), r"expected a list of whole numbers, found float64 \(1000,\)"),
    "matrix": (lambda: np.zeros((200, 5), int), r"found int64 \(200, 5\)"),
    "pickle": (lambda: np.array({"a": 1}, object), "cannot be read as an array of numbers"),
    "nothing": (lambda: np.zeros(0, int), "expected a list of whole numbers"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_arrays_that_do_not_fit_are_refused_with_the_reason(split, tmp_path, kind):
    make, message = WRONG[kind]
    np.save(tmp_path / "index.npy", make(), allow_pickle=True)
    with pytest.raises(DataError, match=message):
        read_index(tmp_path / "index.npy", split)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda lines: lines + lines,
            r"has 2,000 lines, and train has 1,000 captions \(NPC's code adds to a file",
        ),
        (lambda lines: lines[:-3], "has 997 lines"),
        (
            lambda lines: ["who knows", *lines[1:]],
            "1 lines are no caption of train, the first is line 1: 'who knows'",
        ),
        (lambda lines: [lines[7]] * 3 + lines[3:], "some stand there too often"),
    ],
)
def test_texts_that_do_not_fit_are_refused_with_the_reason(split, tmp_path, change, message):
    lines, _ = as_npc_does(split.captions, 0.4, 7)
    (tmp_path / "noise.txt").write_text("".join(f"{line}\n" for line in change(lines)))
    with pytest.raises(DataError, match=message):
        read_index(tmp_path / "noise.txt", split)


def test_show_prints_what_one_asks(tmp_path, capsys):
    root = layouts.npc(tmp_path / "npc")
    split = load_dataset("npc", folder=str(root))["train"]
    noise = make_noise(split, ratio=0.5, granularity="image", seed=0)
    write_index(noise.image, split, tmp_path / "noise_inx_0.5.npy", "image")
    for arguments in ([], ["--data", str(root)]):
        assert main(["noise", "show", str(tmp_path / "noise_inx_0.5.npy"), *arguments]) == 0
        out = capsys.readouterr().out
        assert "granularity: image" in out
        assert f"realised ratio: {noise.realised:.5f}" in out
        assert f"digest: {noise.digest}" in out
        assert f"  5: {int(noise.realised * 24):>9}" in out
    file = root / "annotations" / "scan_split" / "0.5_noise_train_caps.txt"
    assert main(["noise", "write", str(root), "--form", "text", "--ratio", "0.5", "--out", str(file)]) == 0
    capsys.readouterr()
    assert main(["noise", "show", str(file)]) == 0  # told by train_caps.txt beside it
    assert "granularity: caption" in capsys.readouterr().out
    assert (
        main(
            [
                "noise",
                "write",
                str(root),
                "--form",
                "image",
                "--ratio",
                "0.5",
                "--out",
                str(tmp_path / "x.npy"),
            ]
        )
        == 2
    )
    assert (
        main(
            [
                "noise",
                "write",
                str(root),
                "--form",
                "text",
                "--ratio",
                "0.5",
                "--noise",
                "partial",
                "--out",
                str(tmp_path / "x.txt"),
            ]
        )
        == 2
    )
    assert not list(tmp_path.glob("x.*"))
