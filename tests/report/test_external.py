"""External rows in reports: beside the sweep's own, marked and paired; left out where they do not fit."""

from __future__ import annotations

import json
from pathlib import Path

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
    """A directory with the bundle of a sweep, and two external rows beside it: of the last epoch, with a cost
    and clean data; and of a selected epoch.
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
    for changes in (
        {"uses_clean_data": True, "cost": {"seconds": 33.0}, "tuning": {"by": "search", "tries": 12}},
        {"method": "selecting", "epoch": "selected", "networks": 2},
    ):
        content = row_with(grid=None, files=files, **changes)
        (folder / "row.yaml").write_text(yaml.safe_dump(content))
        import_row(folder / "row.yaml", folder / "results")
    return folder


@pytest.fixture
def made(place, tmp_path, monkeypatch):
    """The report that the command makes of it."""
    monkeypatch.chdir(place)
    assert main(["made", "--tracking-uri", f"sqlite:///{tmp_path}/none.db"]) == 0
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
    assert "?" not in table_of(text, "Provenance").partition("git\\_commit")[0]


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


def test_a_row_that_does_not_fit_is_left_out_with_the_reason(place, made, tmp_path):
    folder = place / "results" / "made"
    plan = json.loads((folder / "external" / "their_method" / "plan.json").read_text())
    kept = json.dumps(plan)
    file = folder / "external" / "their_method" / "plan.json"
    try:
        for change, reason in (
            ({"protocol_version": 1}, "it is of protocol version 1, and the sweep of 2"),
            (
                {"trials": [{**t, "dataset": "emoji"} for t in plan["trials"]]},
                "it is of emoji, caption-level",
            ),
            (
                {"trials": [{**t, "noise_granularity": "image"} for t in plan["trials"]]},
                "it is of tests.small:load, image-level noise, and the sweep of tests.small:load, caption-lev",
            ),
        ):
            file.write_text(json.dumps({**plan, **change}))
            assert main(["made", "--tracking-uri", f"sqlite:///{tmp_path}/none.db"]) == 0
            text = (Path("reports") / "made" / "report.md").read_text()
            assert f"- external row left out: their_method: {reason}" in text
            assert "their" not in table_of(text, "rSum by noise ratio")
            assert "selecting" in table_of(text, "rSum by noise ratio")
    finally:
        file.write_text(kept)
