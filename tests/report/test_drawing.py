"""Figures that another process draws are the same, and what goes wrong there is raised here."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from harness.report import figures
from harness.report.drawing import finish, in_background
from harness.report.results import tidy, with_chance
from harness.report.write import with_marks
from tests import golden


@pytest.fixture(scope="module")
def frame():
    source = golden.source("golden")
    return with_marks(with_chance(tidy(source.sweep), source))


def test_figures_of_the_background_are_the_same(frame, tmp_path):
    figures.degradation(frame, "here", tmp_path / "here")
    with in_background():
        figures.degradation(frame, "here", tmp_path / "there")
        finish()
        assert (tmp_path / "there.png").read_bytes() == (tmp_path / "here.png").read_bytes()
    assert (tmp_path / "there.svg").read_text() == (tmp_path / "here.svg").read_text()


def test_what_drawing_raises_is_raised(frame, tmp_path):
    with in_background():
        figures.degradation(frame.drop(columns="rsum"), "broken", tmp_path / "broken")
        with pytest.raises(KeyError, match="rsum"):
            finish()


def test_a_mean_of_equal_values_has_whiskers_of_no_length(frame, tmp_path):
    """In floating point it can lie beyond them."""
    mean = np.full(3, 60.2).sum() / 3
    assert mean > 60.2
    points = pd.DataFrame({"x": [1.0], "y": [mean], "y_low": [60.2], "y_high": [60.2]}, index=["triplet"])
    points.attrs = {"x": "x", "y": "y"}
    figures.scatter(frame, points, "here", tmp_path / "scatter")
    assert (tmp_path / "scatter.png").is_file()


def test_the_dotted_line_of_purity_is_that_of_the_noise_as_it_was_drawn(frame, tmp_path, monkeypatch):
    """A mismatched pair may be drawn back to itself, so that the realised ratio is below the given one."""
    drawn = []
    monkeypatch.setattr(Axes, "axhline", lambda self, y, **kwargs: drawn.append((y, kwargs["linestyle"])))
    here = frame[frame["noise_ratio"] == 0.4]
    curves = here[["row", "noise_ratio", "seed"]].assign(epoch=0, share=0.5, purity=0.9)
    figures.trained_on(curves, here, "here", tmp_path / "trained_on")
    assert here["realised_ratio"].mean() < 0.397
    assert drawn == [(pytest.approx(1 - here["realised_ratio"].mean()), ":")]
