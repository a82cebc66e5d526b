"""Searches and bundles through the real command, store and report."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from harness.config.search import SearchResult
from harness.config.sweep_file import load_sweep
from harness.record.bundle import Bundle
from harness.record.lines import records_text
from harness.record.store import Store
from harness.record.trial_arrays import TrialArrays
from harness.record.tries import OBJECTIVE, tries_of
from harness.record.types import StoreError
from harness.report.__main__ import main as report
from harness.sweep.__main__ import parse
from harness.sweep.command import execute
from harness.sweep.keeping import Keeper
from harness.sweep.ray_launcher import RayLauncher
from harness.train import main as train
from tests import small
from tests.recorded import lines_of
from tests.sweep.running import records, run_sweep, write

SEARCH = {
    "tries": 3,
    "space": {"lr": {"log_uniform": [1e-4, 1e-1]}, "small_loss.warmup_epochs": {"integers": [0, 2]}},
}
FAST = {"grid": {"noise_ratio": [0.2, 0.6], "seed": [100]}}


@pytest.fixture
def here(tmp_path, monkeypatch, feature_cache):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def search_file(folder, *methods, name="search", **search):
    content = small.content(*methods, name=name, grid=FAST["grid"], overrides={m: {} for m in methods})
    del content["fixed"]["lr"]
    space = {k: v for k, v in SEARCH["space"].items() if "." not in k or k.partition(".")[0] in methods}
    space = search.pop("space", space)
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps({**content, "search": {**SEARCH, "space": space, **search}}))
    return str(file)


def found(name="search"):
    return SearchResult.model_validate_json((Bundle(name).folder / "search.json").read_text())


def test_a_search_is_run_reported_and_taken(here, capfd):
    assert run_sweep([search_file(here, "clip", "small_loss")]) == 0
    sweep = Store().read_sweep("search")
    for method, tries in tries_of(sweep).items():
        assert len(tries) == 3
        for tried in tries:
            last = [sweep.records[t.id].metrics[OBJECTIVE] for t in tried.trials]
            assert tried.objective == pytest.approx(np.mean(last))
        best = max(tries, key=lambda t: t.objective)
        assert found().winners[method].settings == best.settings
    text = (here / "reports" / "search" / "report.md").read_text()
    for heading in ("Best settings", "Where the best settings lie", "What was spent", "Best tries: clip"):
        assert f"### {heading}" in text
    assert "test" not in (here / "reports" / "search" / "results.csv").read_text().splitlines()[0]

    taken = small.content("clip", name="taken", settings_from="search", overrides={})
    del taken["fixed"]["lr"]
    (here / "taken.yaml").write_text(json.dumps(taken))
    assert found().winners["clip"].at_edge == []
    assert run_sweep(["taken.yaml"]) == 0
    (record,) = records("taken").values()
    assert record.trial.lr == found().winners["clip"].settings["lr"]
    assert record.tags["search_digest"] == found().digest
    assert "settings from the search search" in (here / "reports" / "taken" / "report.md").read_text()
    (here / "by_hand.yaml").write_text(json.dumps({**taken, "name": "by_hand"}))
    assert train(["by_hand.yaml", "--trial", record.trial.id]) == 0
    (by_hand,) = records("by_hand").values()
    assert by_hand.tags["search_digest"] == found().digest
    # Where it has found others since, the state is that of the trials that a run would have now.
    kept = (Bundle("search").folder / "search.json").read_text()
    other = found().model_copy(deep=True)
    other.winners["clip"].settings["lr"] *= 2
    (Bundle("search").folder / "search.json").write_text(other.model_dump_json())
    capfd.readouterr()
    assert run_sweep(["taken.yaml", "--status"]) == 1
    assert "sweep taken: 1 to run" in capfd.readouterr().err
    (Bundle("search").folder / "search.json").write_text(kept)
    # Once the search has grown, its winners are those of an incomplete one, from the start.
    sweep = load_sweep(search_file(here, "clip", "small_loss", tries=5))
    store = Store()
    Keeper(sweep, store, store.open_sweep(sweep, "search.yaml")).begin()
    assert found().missing == {"clip": 2, "small_loss": 2}
    assert run_sweep(["taken.yaml", "--status"]) == 0
    assert "as planned before; now it would be refused: settings_from" in capfd.readouterr().err


@pytest.mark.parametrize("sampler", ["sobol", "optuna"])
def test_a_failed_trial_fails_its_try_which_counts(sampler, here, monkeypatch):
    from harness.sweep import attempt

    real, calls = attempt.work, []

    def fails_once(trial, task, epoch_ended=None):
        calls.append(trial)
        if len(calls) == 1:
            raise RuntimeError("out of luck")
        return real(trial, task, epoch_ended)

    monkeypatch.setattr(attempt, "work", fails_once)
    if sampler == "optuna":  # whose rounds do not repeat it either
        pytest.importorskip("optuna")
    assert run_sweep([search_file(here, "clip", sampler=sampler)]) == 1
    assert len(calls) == 3 * 2
    tries = tries_of(Store().read_sweep("search"))["clip"]
    assert [(t.failed, t.objective is None) for t in tries] == [(True, True), (False, False), (False, False)]
    assert found().missing == {"clip": 0}
    assert found().winners["clip"].settings == max(tries[1:], key=lambda t: t.objective).settings


def test_optuna_goes_on_where_it_stopped_with_the_same_tries(here, monkeypatch):
    pytest.importorskip("optuna")
    assert run_sweep([search_file(here, "clip", sampler="optuna", tries=4)]) == 0
    whole = [t.settings for t in tries_of(Store().read_sweep("search"))["clip"]]
    assert len(whole) == len({repr(s) for s in whole}) == 4
    planned = Store().read_sweep("search").planned
    assert train(["search.yaml", "--trial", planned[-1].id]) == 0  # of the last try; done already
    assert Store().read_sweep("search").planned == planned
    # Another place has the first two tries only, and finds the same next ones.
    lines = records_text(here / "results" / "search").decode().splitlines()
    (here / "elsewhere" / "results" / "search").mkdir(parents=True)
    for name in ("plan.json", "sweep.yaml"):
        shutil.copy(here / "results" / "search" / name, here / "elsewhere" / "results" / "search" / name)
    (here / "elsewhere" / "results" / "search" / "records.jsonl").write_text("\n".join(lines[:4]) + "\n")
    monkeypatch.chdir(here / "elsewhere")
    assert run_sweep([search_file(here / "elsewhere", "clip", sampler="optuna", tries=4)]) == 0
    assert [t.settings for t in tries_of(Store().read_sweep("search"))["clip"]] == whole


def test_a_draw_of_optuna_that_cannot_be_run_is_told_and_nothing_is_lost(here, monkeypatch, capfd):
    """A value that the method refuses, which the first try has not."""
    pytest.importorskip("optuna")
    space = {"lr": {"log_uniform": [1e-4, 1e-1]}, "small_loss.warmup_epochs": {"choices": [1, -1]}}
    asked = iter([1, -1])
    monkeypatch.setattr(
        "harness.config.search.Search._asked",
        lambda self, method, told, admits: {"lr": 1e-3, "warmup_epochs": next(asked)},
    )
    assert run_sweep([search_file(here, "small_loss", sampler="optuna", space=space)]) == 2
    said = " ".join(capfd.readouterr().err.split())
    assert "Traceback" not in said
    assert "warmup_epochs" in said
    assert "what is recorded stays" in said
    assert all(r.done for r in records("search").values())


# Bundles -------------------------------------------------------------------------------------------


def test_a_bundle_gives_the_report_of_its_store_and_its_trials_are_done_elsewhere(here, monkeypatch):
    file = write(here, "clip", "npc", name="bundled", grid={"noise_ratio": [0, 0.4], "seed": [0, 1]})
    assert run_sweep([file]) == 0
    folder = here / "results" / "bundled"
    lines = lines_of(folder)
    known = records("bundled")
    assert {line["trial"] for line in lines} == set(known)
    for line in lines:
        metrics = known[line["trial"]].metrics
        assert (line["test/rsum"], line["last/rsum"]) == (metrics["test/rsum"], metrics["last/rsum"])
        arrays = TrialArrays(folder / "arrays").read(line["trial"])
        assert arrays["last/i2t_rank"].dtype.itemsize <= 2
        assert not [name for name in arrays if name.endswith("_group")]  # once for all trials
        selected = any(name.startswith("test/") for name in arrays)
        assert selected or line["dev/best_epoch"] == 2 or line["test/rsum"] == line["last/rsum"]
        assert not (selected and line["dev/best_epoch"] == 2)
        if line["method"] == "npc":
            assert arrays["epoch_002/confidence"].dtype == np.float16
            assert ("epoch_002/ratio" in arrays) == (line["seed"] == 0)
    before = (here / "reports" / "bundled" / "report.md").read_text()

    elsewhere = here / "elsewhere"
    shutil.copytree(here / "results", elsewhere / "results")
    shutil.copy(file, elsewhere / "bundled.yaml")
    monkeypatch.chdir(elsewhere)
    assert report(["bundled"]) == 0  # without any store
    assert _numbers(elsewhere / "reports" / "bundled" / "report.md") == _numbers(before)
    assert not (elsewhere / "mlflow.db").exists()

    ran = []
    monkeypatch.setattr("harness.sweep.attempt.work", lambda trial, *_: ran.append(trial))
    assert run_sweep(["bundled.yaml"]) == 0
    assert ran == []
    restored = records("bundled")
    for trial, record in restored.items():
        assert record.tags["restored_from"] == "results/bundled"
        same = {k for k in known[trial].metrics if k.startswith(("test/", "last/", "cost/", "detection/"))}
        assert {k: record.metrics[k] for k in same} == {k: known[trial].metrics[k] for k in same}
    assert _numbers(elsewhere / "reports" / "bundled" / "report.md") == _numbers(before)
    monkeypatch.undo()
    monkeypatch.chdir(elsewhere)
    assert run_sweep(["bundled.yaml", "--verify", "1"]) == 0  # complete, and repeated to the last bit


@pytest.mark.parametrize("lost", ["noise", "arrays"])
def test_a_bundle_that_lacks_a_file_is_not_restored_in_part(here, capfd, lost):
    """Nor are its trials run again beside it, and no run is left that seems to be running."""
    file = write(here, "zero_shot", name="lacks")
    assert run_sweep([file]) == 0
    shutil.rmtree(here / "results" / "lacks" / lost)
    capfd.readouterr()
    for _ in range(2):
        assert run_sweep([file, "--tracking-uri", "sqlite:///fresh.db"]) == 2
        said = " ".join(capfd.readouterr().err.split())
        assert "cannot be restored from results/lacks: results/lacks/" in said
        assert "is missing (get the file back, or move the folder away" in said
    assert records("lacks", "sqlite:///fresh.db") == {}


def _numbers(text):
    """A report without what a half-precision confidence rounds, and without ids of runs."""
    text = text if isinstance(text, str) else text.read_text()
    return text.split("### Settings")[0]


def test_failed_trials_are_in_the_bundle_until_they_are_repeated(here, monkeypatch):
    from harness.sweep import attempt

    real = attempt.work

    def fails(trial, task, epoch_ended=None):
        if trial.seed:
            raise RuntimeError("out of luck")
        return real(trial, task, epoch_ended)

    file = write(here, "clip", name="half", grid={"seed": [0, 1]})
    monkeypatch.setattr(attempt, "work", fails)
    assert run_sweep([file]) == 1
    found = Bundle("half").sweep().records.values()
    expected = [(0, "FINISHED", True), (1, "FAILED", False)]
    assert sorted((r.trial.seed, r.status, r.done) for r in found) == expected
    monkeypatch.setattr(attempt, "work", real)
    assert run_sweep([file]) == 0
    assert all(r.done for r in Bundle("half").sweep().records.values())
    assert len((Bundle("half").folder / "records.jsonl").read_text().splitlines()) == 2


def test_results_of_a_bundle_win_over_a_failure_in_the_store(here, monkeypatch):
    """Another machine has done what failed here: it is not trained again."""
    from harness.sweep import attempt

    file = write(here, "clip", name="both")
    assert run_sweep([file]) == 0
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")

    def fails(*_):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(attempt, "work", fails)
    assert run_sweep([file]) == 1
    shutil.rmtree("results")
    shutil.copytree(here / "results", "results")
    assert run_sweep([file]) == 0  # work still fails
    (record,) = records("both").values()
    assert record.done
    assert record.tags["restored_from"] == "results/both"


def test_a_bundle_that_another_process_wrote_anew_is_read_from_its_beginning(here):
    assert run_sweep([write(here, "clip", name="shared", grid={"seed": [0, 1]})]) == 0
    file = here / "results" / "shared" / "records.jsonl"
    first, second = file.read_text().splitlines(keepends=True)
    failed = json.dumps({**json.loads(first), "status": "FAILED"}) + "\n"
    file.write_text(failed * 3)
    ours, theirs = Bundle("shared"), Bundle("shared")
    trials = tuple(r.trial for r in records("shared").values())
    assert len(ours.records(trials)) == 1
    theirs.close()  # one line of the three is left: what `ours` has read is longer than the file
    with open(file, "a") as stream:
        stream.write(second)
    assert len(ours.records(trials)) == 2
    ours.close()
    assert len(Bundle("shared").records(trials)) == 2


def test_a_restored_search_is_verified_without_arrays(here, monkeypatch):
    file = search_file(here, "clip", tries=2)
    assert run_sweep([file]) == 0
    shutil.copytree(here / "results", here / "elsewhere" / "results")
    monkeypatch.chdir(here / "elsewhere")
    assert run_sweep([file]) == 0
    assert {r.tags["restored_from"] for r in records("search").values()} == {"results/search"}
    assert run_sweep([file, "--verify", "1"]) == 0


def test_curves_keep_their_epochs(here):
    """Dev is evaluated every other epoch only."""
    fixed = {"epochs": 4, "evaluate_every": 2}
    assert run_sweep([write(here, "small_loss", name="every", fixed=fixed)]) == 0
    (record,) = Bundle("every").sweep().records.values()
    bundle = Bundle("every")
    assert list(bundle.curve(record.run_id, "dev/rsum")) == [1, 3]
    assert list(bundle.curve(record.run_id, "trained_on/share")) == [0, 1, 2, 3]
    assert list(bundle.curve(record.run_id, "detection/auroc")) == [1, 2, 3]


def test_a_bundle_of_a_killed_process_is_read_up_to_its_last_line(here):
    assert run_sweep([write(here, "clip", name="torn", grid={"seed": [0, 1]})]) == 0
    file = here / "results" / "torn" / "records.jsonl"
    first, second = file.read_text().splitlines()
    file.write_text(first + "\n" + second[:100])
    bundle = Bundle("torn")
    assert len(bundle.sweep().records) == 1
    bundle.add(Store(), records("torn").values())
    assert len(Bundle("torn").sweep().records) == 2


def test_a_store_that_does_not_answer_for_a_moment_costs_no_trial(here, monkeypatch, capfd):
    """What could not be copied when a trial ended is copied at the end of the sweep."""
    real, calls = Bundle._curves, []

    def away_once(self, store, record):
        calls.append(record.trial.seed)
        if len(calls) == 1:
            raise StoreError("the tracking store does not answer any more")
        return real(self, store, record)

    monkeypatch.setattr(Bundle, "_curves", away_once)
    assert run_sweep([write(here, "clip", name="away", grid={"seed": [0, 1]})]) == 0
    assert "cannot be written now: the tracking store does not answer" in capfd.readouterr().err
    assert calls == [0, 1, 0]
    assert all(r.done for r in Bundle("away").sweep().records.values())
    assert len(Bundle("away").sweep().records) == 2


def test_a_sweep_of_an_older_protocol_version_is_not_written_over(here, capfd):
    file = write(here, "clip", name="older")
    assert run_sweep([file]) == 0
    store = Store()
    (parent,) = store.parents(store.client.experiment_id("older"))
    plan = json.loads(store.client.read(parent.run_id, "plan.json"))
    store.client.log_text(parent.run_id, json.dumps({**plan, "protocol_version": 1}), "plan.json")
    capfd.readouterr()
    assert run_sweep([file]) == 2
    told = "sweep 'older' is on record under protocol version 1, and this is 2"
    assert told in capfd.readouterr().err
    assert store.read_sweep("older").protocol_version == 1
    # Nor is the bundle of one, where the store is another.
    bundle = here / "results" / "older" / "plan.json"
    bundle.write_text(json.dumps({**json.loads(bundle.read_text()), "protocol_version": 1}))
    before = bundle.read_bytes()
    assert run_sweep([file, "--tracking-uri", "sqlite:///fresh.db"]) == 2
    assert told in capfd.readouterr().err
    assert bundle.read_bytes() == before


# With Ray ------------------------------------------------------------------------------------------


@pytest.mark.cluster
def test_asha_stops_tries_that_fall_behind_and_says_so(here, capfd):
    """Six tries over rates of which most learn nothing: after an epoch, the better half goes on."""
    search = {
        "space": {"lr": {"log_uniform": [1e-6, 1e-1]}},
        "tries": 6,
        "asha": {"grace_epochs": 1, "reduction": 2},
    }
    content = small.content("clip", name="halved", grid={"seed": [100]}, fixed={"epochs": 4})
    del content["fixed"]["lr"]
    (here / "halved.yaml").write_text(json.dumps({**content, "search": search}))
    launcher = RayLauncher()
    try:
        assert execute(parse(["halved.yaml"]), launcher) == 0
        known = records("halved")
        stopped = [r for r in known.values() if r.stopped_early]
        assert 0 < len(stopped) < len(known) == 6
        assert not any(r.done for r in stopped)
        assert "Early stopping by ASHA" in (here / "reports" / "halved" / "report.md").read_text()
        assert found("halved").missing == {"clip": 0}
        capfd.readouterr()
        assert run_sweep(["halved.yaml", "--dry-run"]) == 0
        told = capfd.readouterr()
        assert told.out.count("stopped early by its search") == len(stopped)
        assert "to run" not in told.out
        assert run_sweep(["halved.yaml"]) == 0  # what was stopped is not run again
        assert len([r for r in records("halved").values() if r.stopped_early]) == len(stopped)
        del search["asha"]
        (here / "halved.yaml").write_text(json.dumps({**content, "search": search}))
        assert run_sweep(["halved.yaml"]) == 0  # now it is: no other try was cut short
        assert all(r.done and not r.stopped_early for r in records("halved").values())
        assert {line["status"] for line in lines_of(here / "results" / "halved")} == {"FINISHED"}
    finally:
        launcher.stop()
