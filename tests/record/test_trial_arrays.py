"""Arrays of trials, each in a file of its own or packed."""

from __future__ import annotations

import numpy as np
import pytest

from harness.record.arrays import read_arrays, save_arrays
from harness.record.trial_arrays import TrialArrays
from harness.record.types import StoreError


def content(seed, size=300, **more):
    draw = np.random.default_rng(seed)
    ranks = {
        f"last/{way}_rank": draw.integers(0, 200 + seed, size).astype(np.uint16) for way in ("i2t", "t2i")
    }
    return {**ranks, "epoch_007/confidence": draw.random(size).astype(np.float16), **more}


@pytest.fixture
def kept(tmp_path):
    """Trials of three forms: other names, other shapes; in one an integer type is smaller."""
    made = {f"{i:012d}": content(i) for i in range(4)}
    made["4" * 12] = content(4, **{"test/i2t_rank": np.arange(300, dtype=np.uint16)})
    made["5" * 12] = content(5, size=20)
    made["6" * 12] = {k: v.astype(np.uint8) if "rank" in k else v for k, v in content(6).items()}
    arrays = TrialArrays(tmp_path)
    for trial, own in made.items():
        arrays.save(trial, own)
    return made


def same(arrays, made):
    for trial, own in made.items():
        assert arrays.names(trial) == list(own)
        for name, array in arrays.read(trial).items():
            assert np.array_equal(array, own[name])
            assert array.dtype.kind == own[name].dtype.kind
    assert list(arrays.read(next(iter(made)), "last/")) == ["i2t_rank", "t2i_rank"]


def test_packed_arrays_are_those_that_were_saved_in_fewer_bytes(kept, tmp_path):
    before = sum(file.stat().st_size for file in tmp_path.iterdir())
    reader = TrialArrays(tmp_path)
    same(reader, kept)
    TrialArrays(tmp_path).pack(list(kept))
    assert sorted(file.name.partition("_")[0] for file in tmp_path.iterdir()) == ["1", "1", "5"]
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < before
    same(reader, kept)  # another process has packed them meanwhile
    same(TrialArrays(tmp_path), kept)


def test_trials_that_come_later_are_packed_with_the_others(kept, tmp_path):
    arrays = TrialArrays(tmp_path)
    arrays.pack(list(kept))
    names = {file.name for file in tmp_path.iterdir()}
    arrays.pack(list(kept))  # nothing came
    assert {file.name for file in tmp_path.iterdir()} == names
    kept["7" * 12] = content(7)
    arrays.save("7" * 12, kept["7" * 12])
    same(arrays, kept)
    arrays.pack(list(kept))
    assert sorted(file.name.partition("_")[0] for file in tmp_path.iterdir()) == ["1", "1", "6"]
    same(TrialArrays(tmp_path), kept)


def test_what_is_killed_between_writing_and_removing_is_mended_by_the_next(kept, tmp_path, monkeypatch):
    own = sorted(tmp_path.iterdir())[0]

    def killed(path, missing_ok=False):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("pathlib.Path.unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            TrialArrays(tmp_path).pack(list(kept))
    assert own.exists()
    same(TrialArrays(tmp_path), kept)
    TrialArrays(tmp_path).pack(list(kept))
    assert len(list(tmp_path.iterdir())) == 3
    same(TrialArrays(tmp_path), kept)


def test_a_trial_without_arrays_keeps_the_others_as_they_are(kept, tmp_path):
    with pytest.raises(StoreError, match=r"f{12}\.npz is missing"):
        TrialArrays(tmp_path).pack([*kept, "f" * 12])
    assert len(list(tmp_path.iterdir())) == len(kept)
    assert TrialArrays(tmp_path).names("f" * 12) == []


@pytest.mark.parametrize("trial", [None, np.array([["0" * 12]]), np.array(["0" * 12])])
def test_a_packed_file_without_its_trials_is_refused(kept, tmp_path, trial):
    TrialArrays(tmp_path).pack(list(kept))
    file = next(tmp_path.glob("5_*"))
    arrays = {k: v for k, v in read_arrays(file).items() if k != "trial"}
    save_arrays(file, arrays | ({} if trial is None else {"trial": trial}))
    with pytest.raises(StoreError, match="no common first axis of trials"):
        TrialArrays(tmp_path).read(next(iter(kept)))
