"""External rows in reports: beside the sweep's own, marked and paired; left out where they do not fit."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from harness.noise.files import write_index
from harness.record.bundle import Bundle
from harness.record.external import import_row
from harness.report.__main__ import main
from harness.report.comparison import compare
from harness.report.external import with_external
from harness.report.results import primary, tidy
from harness.report.source import from_bundle
from tests import recorded, small
from tests.config.test_external import row_with

RATIOS, SEEDS = (0.2, 0.4), (0, 1, 2)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with the bundle of a sweep, and three external rows beside it: of the last epoch, with a
    cost and clean data; of a selected epoch; and of an earlier protocol version.
    """
    folder = tmp_path_factory.mktemp("rows")
    grid = {"noise_ratio": list(RATIOS), "seed": list(SEEDS)}
    sweep = small.sweep("clip", "small_loss", name="made", grid=grid)
    recorded.bundle(sweep, folder / "results" / "made")
    data = small.load()
    for trial in sweep.trials[: len(RATIOS) * len(SEEDS)]:
        name = f"{trial.noise_ratio:g}_{trial.seed}"
        write_index(trial.noise_index(data).image, data["train"], folder / f"{name}.npy", "caption")
        for split in ("dev", "test"):
            scores = recorded.similarities(data[split], seed=trial.seed + 1000, ratio=trial.noise_ratio)
            np.save(folder / f"{name}_{split}.npy", scores)
    files = {
        "similarities": f"{folder}/{{ratio}}_{{seed}}_{{split}}.npy",
        "noise_index": f"{folder}/{{ratio}}_{{seed}}.npy",
    }
    rows: list[dict[str, Any]] = [
        {"uses_clean_data": True, "cost": {"seconds": 33.0}, "tuning": {"by": "search", "tries": 12}},
        {"method": "selecting", "epoch": "selected", "networks": 2},
        {"method": "earlier"},
    ]
    for changes in rows:
        content = row_with(grid=None, files=files, **changes)
        (folder / "row.yaml").write_text(yaml.safe_dump(content))
        imported, _ = import_row(folder / "row.yaml", folder / "results")
    rewrite(imported, protocol_version=1)
    return folder


@pytest.fixture(scope="module")
def made(place):
    """The report that the command makes of it."""
    with contextlib.chdir(place):
        assert main(["made", "--tracking-uri", f"sqlite:///{place}/none.db"]) == 0
    return place / "reports" / "made"


def table_of(text: str, title: str) -> str:
    return next(part for part in text.split("### ") if part.startswith(title))


def test_a_row_stands_in_the_tables_with_a_mark_that_is_explained(made):
    text = (made / "report.md").read_text()
    accuracy = table_of(text, "rSum by noise ratio")
    assert "| their\\_method † § " in accuracy
    assert "§ external: of another program" in accuracy
    assert "12 of 12 planned trials are done." in text
    section = table_of(text, "External rows")
    assert "https://example.org/theirs at 0a1b2c3, `python train.py`; best of 12 tries on dev" in section
    assert "tuned by its authors; of the epoch selected on dev; 2 networks" in section
    assert "\\S" in (made / "tables.tex").read_text()
    assert "their_method † §" in (made / "report.html").read_text()
    rows = pd.read_csv(made / "results.csv")
    assert rows.groupby("external").size().to_dict() == {False: 12, True: 12}
    settings = table_of(text, "Settings")
    assert "lr = 0.003" in settings
    assert "their" not in settings


def test_a_selected_epoch_has_no_number_of_the_last(made):
    text = (made / "report.md").read_text()
    (line,) = [x for x in table_of(text, "rSum by noise ratio").splitlines() if "selecting" in x]
    assert "±" not in line
    (line,) = [x for x in table_of(text, "rSum of the epoch selected").splitlines() if "selecting" in x]
    assert line.count("±") == 3


def test_a_row_is_paired_by_seed(place):
    bundle = Bundle("made", place / "results" / "made")
    frame = primary(tidy(with_external(from_bundle(bundle), bundle.folder).sweep))
    found = compare(frame, "clip", "rsum")["their_method", 0.4]
    assert found.n == 3
    at = frame[frame["noise_ratio"] == 0.4].pivot(index="seed", columns="row", values="rsum")
    assert found.value == pytest.approx((at["their_method"] - at["clip"]).mean())


def rewrite(bundle: Path, **changes: Any) -> None:
    """The plan of a bundle with other values."""
    plan = json.loads((bundle / "plan.json").read_text())
    (bundle / "plan.json").write_text(json.dumps({**plan, **changes}))


def test_a_row_that_does_not_fit_is_left_out_with_the_reason(made):
    text = (made / "report.md").read_text()
    assert "- external row left out: earlier: it is of protocol version 1, and the sweep of 2" in text
    assert "earlier" not in table_of(text, "rSum by noise ratio")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dataset": "emoji"}, "it is of emoji, caption-level noise, and the sweep of tests.small:load, "),
        ({"noise_granularity": "image"}, "it is of tests.small:load, image-level noise, and the sweep of "),
        ({"noise_ratio": 0.6}, "the sweep has no trial of noise 0.6 seed 0, noise 0.6 seed 1"),
    ],
)
def test_a_row_of_other_data_or_noise_is_left_out(place, tmp_path, change, reason):
    folder = shutil.copytree(place / "results" / "made", tmp_path / "made")
    row = folder / "external" / "their_method"
    trials = json.loads((row / "plan.json").read_text())["trials"]
    rewrite(row, trials=[{**t, **change} for t in trials])
    source = with_external(from_bundle(Bundle("made", folder)), folder)
    assert set(source.sweep.methods) == {"clip", "small_loss", "selecting"}
    earlier, theirs = source.left_out
    assert earlier.startswith("earlier: ")
    assert theirs.startswith(f"their_method: {reason}")
