"""What a dry run tells of the seeds of a sweep, from bundles of the past."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.sweep.foresight import design_notes
from tests import recorded, small

GRID = {"noise_ratio": [0.2, 0.4], "seed": [0, 1, 2]}


def test_the_oracle_counts_among_the_comparisons_as_in_the_table_of_differences(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = small.sweep("clip", "triplet", "oracle", grid=GRID)
    recorded.bundle(sweep, Path("results/small"))
    (note,) = design_notes(sweep)
    assert note.startswith("tests.small:load, from results/small. Design: ")
    assert "points among rows of one network (sd " in note
    assert "3 seeds, 2 comparisons; 5 points take" in note
    assert list(design_notes(small.sweep("clip", "oracle", grid=GRID))) == []  # nothing competes


def test_a_variant_of_a_data_set_tells_nothing_of_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [{}, {"meta": "seen"}]
    both = small.sweep("clip", "triplet", grid={**GRID, "dataset": ["emoji"], "dataset_options": options})
    assert len({trial.id for trial in both.trials}) == 2 * 2 * 2 * 3
    recorded.bundle(both, Path("results/both"))
    assert list(design_notes(small.sweep("clip", "triplet", grid={**GRID, "dataset": ["emoji"]}))) == []


@pytest.mark.parametrize(
    ("axes", "seeds"),
    [
        ({"seed": [0, 1, 2]}, 3),
        ({"seed": [0], "noise_seed": [0, 1, 2, 3]}, 4),
        ({"seed": [0, 1, 2], "noise_seed": [0, 1, 2, 3]}, 3),
    ],
    ids=["both as one", "of the noise", "crossed: each has the mean over its noise seeds"],
)
def test_seeds_are_counted_as_in_the_report(tmp_path, monkeypatch, axes, seeds):
    monkeypatch.chdir(tmp_path)
    recorded.bundle(small.sweep("clip", "triplet", grid=GRID), Path("results/small"))
    (note,) = design_notes(small.sweep("clip", "triplet", grid={**GRID, **axes}))
    assert f"{seeds} seeds, 1 comparison" in note
