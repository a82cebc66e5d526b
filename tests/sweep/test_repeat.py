"""Trials of a bundle that are run again give the numbers on record, or are told not to."""

from __future__ import annotations

import contextlib
import json
import shutil

import pytest
import yaml

from harness.record.bundle import Bundle
from harness.record.check import check_bundle
from harness.record.types import StoreError
from harness.results import main
from harness.sweep.repeat import repeat_bundle, spread
from tests import small
from tests.recorded import lines_of, rewrite
from tests.sweep.running import run_sweep, write


@pytest.fixture(scope="module")
def swept(tmp_path_factory, feature_cache):
    """The bundles of a finished sweep of two methods, and of a search, of an epoch each."""
    folder = tmp_path_factory.mktemp("bundles")
    with contextlib.chdir(folder):
        plain = {"small_loss": {"warmup_epochs": 0}}
        file = write(folder, "clip", "small_loss", name="made", fixed={"epochs": 1}, overrides=plain)
        assert run_sweep([file]) == 0
        space = {"lr": {"log_uniform": [1e-3, 1e-2]}}
        search = {"tries": 2, "space": space, "sampler": "random"}
        content = small.content("clip", name="found", fixed={"epochs": 1}, search=search)
        del content["fixed"]["lr"]
        (folder / "found.yaml").write_text(yaml.safe_dump(content))
        assert run_sweep([str(folder / "found.yaml")]) == 0
    return folder / "results"


@pytest.fixture
def made(swept, tmp_path, monkeypatch):
    """A bundle by itself: no store and no checkpoints are near."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(swept / "made", tmp_path / "made")


def test_equal_trials_are_told_and_noted_and_leave_nothing_else(made, tmp_path, capfd):
    assert main(["check", str(made), "--verify", "5"]) == 0
    told = capfd.readouterr().err
    assert told.count("the same: ") == 2
    assert "2 run again, 2 gave the same numbers to the last bit" in told
    assert {p.name for p in tmp_path.iterdir()} == {"made", ".harness"}
    noted = Bundle("made", made).repeated()
    assert {note.trial for note in noted} == {line["trial"] for line in lines_of(made)}
    assert all(note.equal and not note.moved and note.commit and note.environment["torch"] for note in noted)
    # Once more: the note of the same environment is replaced. And who checks is told.
    assert main(["check", str(made), "--verify", "1"]) == 0
    assert (
        "note: noted as run again, with the same numbers to the last bit: 2 trials" in capfd.readouterr().err
    )
    assert len(Bundle("made", made).repeated()) == 2


def test_a_search_is_compared_without_arrays(swept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(swept / "found", tmp_path / "found")
    assert main(["check", str(folder), "--verify", "1"]) == 0
    trial = rewrite(folder, lambda line: line.update({k: line[k] + 1 for k in ("dev/rsum", "train/loss")}))
    assert trial not in {note.trial for note in Bundle("found", folder).repeated()}  # another line now
    assert repeat_bundle(folder, 2) == 1
    (noted,) = (n for n in Bundle("found", folder).repeated() if not n.equal)
    assert noted.trial == trial
    assert [text.partition(" is ")[0] for text in noted.differences] == ["dev/rsum", "train/loss"]


def test_one_tampered_number_is_found(made, capfd):
    """By the smallest amount that a number can differ, where no check of the bundle alone sees it."""

    def change(line):
        line["test/i2t_mean_rank"] += 1e-9

    trial = rewrite(made, change)
    assert check_bundle(made) == ([], [])
    assert main(["check", str(made), "--verify", "2"]) == 1
    told = capfd.readouterr().err
    assert f"({trial}): Differs: " not in told
    assert f"({trial}): test/i2t_mean_rank is " in told
    assert "(-1e-09)" in told
    assert "2 run again, 1 gave the same numbers" in told
    noted = {note.trial: note for note in Bundle("made", made).repeated()}
    assert [i for i, note in noted.items() if not note.equal] == [trial]
    assert len(noted[trial].differences) == 1
    errors, notes = check_bundle(made)
    assert not errors
    assert any(trial in note and "it gave other numbers: test/i2t_mean_rank is" in note for note in notes)


def test_equal_numbers_by_other_code_and_packages_are_told_so(made, capfd):
    def change(line):
        line["tags"].update(code="000000000000", torch="2.0.0")

    trial = rewrite(made, change)
    assert repeat_bundle(made, 2) == 0
    told = capfd.readouterr().err
    assert f"({trial}), made elsewhere (torch 2.0.0 then, " in told
    assert "code 000000000000 then, " in told
    noted = {note.trial: note for note in Bundle("made", made).repeated()}
    assert noted[trial].equal
    assert len(noted[trial].moved) == 2


def test_trials_whose_data_or_method_are_not_here_are_told_and_others_chosen(made, capfd):
    plan = json.loads((made / "plan.json").read_text())
    absent = plan["trials"][0]
    absent.update(dataset="table", dataset_options={"folder": "nowhere"})
    (made / "plan.json").write_text(json.dumps(plan))
    assert repeat_bundle(made, 1) == 0
    told = capfd.readouterr().err
    assert "note: 1 cannot be run again here: dataset 'table': " in told
    assert "nowhere" in told
    assert "1 run again, 1 gave the same numbers" in told
    plan["methods"]["mine:Mine"] = plan["methods"]["clip"]
    absent.update(method="mine:Mine", dataset="tests.small:load", dataset_options={})
    (made / "plan.json").write_text(json.dumps(plan))
    assert repeat_bundle(made, 1) == 0
    assert "note: 1 cannot be run again here: method 'mine:Mine': cannot import" in capfd.readouterr().err


def test_a_trial_that_fails_is_told(made, capfd):
    trial = rewrite(made, lambda line: line["tags"].update(threads="many"))
    assert repeat_bundle(made, 2) == 1
    assert f"({trial}): ValueError: invalid literal" in capfd.readouterr().err
    assert trial not in {note.trial for note in Bundle("made", made).repeated()}


NOTE = {
    "trial": "0" * 12,
    "record": "0" * 64,
    "commit": "c",
    "environment": {"torch": "2.0"},
    "when": "2026-01-01T00:00:00Z",
    "equal": True,
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "Invalid JSON"),
        ("{}", "Input should be a valid array"),
        (json.dumps([{k: v for k, v in NOTE.items() if k != "equal"}]), "0.equal: Field required"),
        (json.dumps([NOTE, {**NOTE, "trial": "../x"}]), "1.trial: String should match pattern"),
        (json.dumps([{**NOTE, "when": "2026-01-01T00:00:00"}]), "0.when: Input should have timezone info"),
        (
            json.dumps([{**NOTE, "more": 1, "commit": 2}]),
            "0.commit: Input should be a valid string and 1 more",
        ),
    ],
)
def test_malformed_notes_are_told(made, content, message, capfd):
    (made / "repeated.json").write_text(content)
    assert main(["check", str(made)]) == 1
    assert f"repeated.json: {message}" in " ".join(capfd.readouterr().err.split())
    with pytest.raises(StoreError):
        repeat_bundle(made, 1)  # before it runs anything


def test_noise_files_that_are_not_here_are_told(made):
    plan = json.loads((made / "plan.json").read_text())
    for trial in plan["trials"]:
        trial["noise"] = {"model": "hard", "embedding": "nowhere.npy"}
    (made / "plan.json").write_text(json.dumps(plan))
    assert check_bundle(made)[1] == [
        "noise of nowhere.npy is not here: fingerprint and noise are not checked"
    ]


def test_a_sample_is_spread_over_methods_and_does_not_depend_on_chance():
    grid = {"noise_ratio": [0, 0.4], "seed": [0, 1, 2]}
    trials = small.sweep("clip", "triplet", "small_loss", grid=grid).trials
    order = spread(trials)
    assert sorted(t.id for t in order) == sorted(t.id for t in trials)
    for n in range(0, len(order), 3):
        assert {t.method for t in order[n : n + 3]} == {"clip", "triplet", "small_loss"}
    assert len({(t.noise_ratio, t.seed) for t in order[:6]}) > 2
    assert spread(trials) == order
