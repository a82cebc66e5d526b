"""Figures that another process draws are the same, and what goes wrong there is raised here."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

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
