"""Arrays of a bundle."""

from __future__ import annotations

import numpy as np
import pytest

from harness.record import arrays
from harness.record.arrays import array_names, coarse, read_arrays, save_arrays, smallest


def test_arrays_come_back_and_are_the_same_bytes_whenever_they_are_written(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    made = {
        "last/i2t_rank": smallest(draw.integers(0, 300, 500)),
        "epoch_007/confidence": coarse(draw.random(500)),
        "epoch_007/ratio": np.array([np.nan, -0.0, np.inf, 1e-300]),
        "none": np.zeros((0, 5), np.uint8),
        "flag": draw.random((3, 4)) < 0.5,
    }
    save_arrays(tmp_path / "one.npz", made)
    monkeypatch.setattr(arrays.zipfile.time, "localtime", lambda *_: (2031, 5, 6, 7, 8, 9, 0, 0, 0))
    save_arrays(tmp_path / "two.npz", made)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    assert array_names(tmp_path / "one.npz") == list(made)
    for name, array in read_arrays(tmp_path / "one.npz").items():
        assert (array.dtype, array.shape) == (made[name].dtype, made[name].shape)
        assert array.tobytes() == made[name].tobytes()
    assert list(read_arrays(tmp_path / "one.npz", "epoch_007/")) == ["confidence", "ratio"]


@pytest.mark.parametrize(("largest", "size"), [(0, 1), (255, 1), (256, 2), (65_536, 4)])
def test_integers_take_the_smallest_type(largest, size):
    assert smallest(np.array([0, largest])).dtype == np.dtype(f"u{size}")
