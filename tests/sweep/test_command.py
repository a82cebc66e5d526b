"""The sweep command with a real store and report, on trials in the tests' own process."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient

from harness.config.resources import Resources
from harness.config.sweep_file import load_sweep
from harness.data import load_dataset
from harness.noise.models import Derangement, make_noise
from harness.record.store import Store
from harness.report.__main__ import main as report_command
from harness.sweep.estimate import estimate_step
from harness.sweep.plan import gpu_notes
from tests import build, layouts, small
from tests.sweep.running import records, run_sweep, write

ROOT = Path(__file__).parents[2]
FAILING = ["tests.misbehaving:Raises", "tests.misbehaving:Diverges", "tests.misbehaving:OutOfMemory"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, feature_cache):
    """A working directory for the module."""
    folder = tmp_path_factory.mktemp("work")
    with contextlib.chdir(folder):
        yield folder


@pytest.fixture(scope="module")
def failed(place):
    """A sweep in which all but one trial fail, each in another way."""
    file = write(place, "clip", *FAILING, name="faults")
    return file, run_sweep([file]), dict(records("faults"))


def test_a_failing_trial_is_recorded_and_the_sweep_goes_on(failed):
    _, code, found = failed
    assert code == 1
    by_method = {r.trial.method: r for r in found.values()}
    assert by_method["clip"].done
    reasons = {m.rpartition(":")[2]: by_method[m].tags["failure"] for m in FAILING}
    assert reasons["Raises"] == "RuntimeError: no such luck [/tmp/a]"
    assert reasons["Diverges"].startswith("Diverged: the loss is nan in epoch 0")
    assert "memory" in reasons["OutOfMemory"]
    assert all(by_method[m].status == "FAILED" and not by_method[m].done for m in FAILING)


def test_the_report_marks_what_is_missing(failed, place):
    text = (place / "reports" / "faults" / "report.md").read_text()
    assert "1 of 4 planned trials are done" in text
    assert "RuntimeError: no such luck" in text


def test_a_rerun_takes_up_just_what_failed(failed, place, feature_cache):
    file, _, before = failed
    (feature_cache / "mended").touch()
    assert run_sweep([file]) == 0
    after = records("faults")
    assert all(r.done for r in after.values())
    clip = next(r for r in before.values() if r.done)
    assert after[clip.trial.id].run_id == clip.run_id  # not run again
    assert all("failure" not in r.tags for r in after.values())
    # All are `clip` in disguise: same seed, same numbers, however often they were interrupted.
    assert len({r.metrics["test/rsum"] for r in after.values()}) == 1
    assert not list((place / ".harness" / "trials").glob("faults*"))
    assert {r.tags["attempts"] for r in after.values() if r.trial.method != "clip"} == {"2"}


def test_a_grown_grid_runs_what_is_new(failed, place):
    file, _, _ = failed
    before = {i: r.run_id for i, r in records("faults").items()}
    write(place, "clip", *FAILING, name="faults", grid={"seed": [0, 1], "method": ["clip", FAILING[0]]})
    assert run_sweep([file]) == 0
    after = records("faults")
    assert len(after) == 4
    assert sum(r.run_id in before.values() for r in after.values()) == 2
    assert run_sweep([file]) == 0  # nothing left to do
    assert {i: r.run_id for i, r in records("faults").items()} == {i: r.run_id for i, r in after.items()}


@pytest.fixture(scope="module")
def compared(place):
    """Two methods, two ratios, two seeds."""
    file = write(place, "small_loss", "mscn", name="compared", grid={"noise_ratio": [0, 0.4], "seed": [0, 1]})
    assert run_sweep([file, "--tracking-uri", "sqlite:///other.db"]) == 0
    return Store("sqlite:///other.db").read_sweep("compared")


def test_region_features_from_a_folder_beside_the_sweep(place):
    """A relative path, although workers stand elsewhere; one network and two; dev at the end only; a stepwise
    rate.
    """
    small.write_scan(place / "here" / "x_precomp")
    fixed = {
        "backbone": small.SGRAF,
        "dataset_options": {"folder": "here/x_precomp"},
        "epochs": 2,
        "evaluate_every": 2,
        "decay_epochs": [1],
        "warmup_steps": 0,
        "lr": 1e-3,
    }
    file = write(
        place,
        "triplet",
        "ncr",
        name="regions",
        fixed=fixed,
        grid={"dataset": ["scan"], "ncr.n_networks": [1, 2]},
    )
    assert run_sweep([file]) == 0
    found = {(r.trial.method, r.trial.hyper.get("n_networks", 1)): r for r in records("regions").values()}
    assert {key: r.metrics["cost/networks_at_test"] for key, r in found.items()} == {
        ("triplet", 1): 1,
        ("ncr", 1): 1,
        ("ncr", 2): 2,
    }
    client = Store().client
    for record in found.values():
        assert [step for step, _ in client.history(record.run_id, "dev/rsum")] == [1]
        rates = [rate for _, rate in client.history(record.run_id, "train/learning_rate")]
        assert rates == pytest.approx([1e-3, 1e-4])
    text = (place / "reports" / "regions" / "report.md").read_text()
    assert "rSum by noise ratio: scan x\\_precomp" in text
    assert "| ncr ×2 " in text
    assert "| ncr  " in text
    assert "n\\_networks=2" not in text


def test_every_run_carries_what_is_needed_to_repeat_it(compared):
    client = MlflowClient("sqlite:///other.db")
    for record in compared.records.values():
        run, trial = client.get_run(record.run_id), record.trial
        for key in (
            "method",
            "dataset",
            "noise_ratio",
            "noise_granularity",
            "seed",
            "backbone",
            "lr",
            "batch_size",
        ):
            assert key in run.data.params
        for key in (
            "trial_id",
            "cell",
            "noise_digest",
            "protocol_version",
            "git_commit",
            "data_fingerprint",
            "torch",
            "device",
        ):
            assert run.data.tags[key]
        for key in (
            "test/i2t_r1",
            "test/t2i_r10",
            "test/rsum",
            "last/rsum",
            "dev/best_rsum",
            "cost/seconds",
            "noise/realised_ratio",
        ):
            assert key in run.data.metrics
        noise = make_noise(
            small.load()["train"],
            ratio=trial.noise_ratio,
            granularity=trial.noise_granularity,
            seed=trial.noise_seed,
        )
        assert run.data.tags["noise_digest"] == noise.digest
        assert [d.dataset.digest for d in run.inputs.dataset_inputs] == [noise.digest]
        assert run.data.tags["mlflow.parentRunId"]
    digests = {(r.trial.noise_ratio, r.trial.seed): r.tags["noise_digest"] for r in compared.records.values()}
    assert all(
        r.tags["noise_digest"] == digests[r.trial.noise_ratio, r.trial.seed]
        for r in compared.records.values()
    )  # paired


def test_seeds_of_a_cell_share_a_tag(compared):
    cells = {}
    for record in compared.records.values():
        cells.setdefault(record.tags["cell"], set()).add(record.trial.seed)
    assert len(cells) == 4
    assert all(seeds == {0, 1} for seeds in cells.values())


def test_artifacts_hold_rankings_and_confidences(compared):
    store = Store("sqlite:///other.db")
    record = next(
        r for r in compared.records.values() if r.trial.method == "small_loss" and r.trial.noise_ratio
    )
    test = small.load()["test"]
    rankings = store.read_array(record.run_id, "test_rankings.npz")
    assert 100 * (rankings["i2t_rank"] < 1).mean() == pytest.approx(record.metrics["test/i2t_r1"])
    assert rankings["t2i_top"].shape == (len(test.captions), 5)
    confidence = store.read_array(record.run_id, "confidence/epoch_002.npz")["confidence"]
    assert confidence.shape == (len(small.load()["train"].captions),)


def test_a_trial_in_a_sweep_is_the_trial_by_hand(compared):
    record = next(
        r
        for r in compared.records.values()
        if r.trial.method == "mscn" and r.trial.noise_ratio and r.trial.seed == 0
    )
    outcome = build.trainer("mscn").fit()
    for key in ("test/rsum", "last/rsum", "dev/best_rsum"):
        assert outcome.metrics[key] == pytest.approx(record.metrics[key])


def test_the_report_is_made_from_the_store_alone(compared, place):
    assert report_command(["compared", "--tracking-uri", "sqlite:///other.db"]) == 0
    folder = place / "reports" / "compared"
    frame = pd.read_csv(folder / "results.csv")
    assert len(frame) == 8
    assert frame["run"].nunique() == 8
    text = (folder / "report.md").read_text()
    values = frame[(frame["method"] == "small_loss") & (frame["noise_ratio"] == 0.4)]["rsum"]
    assert f"{values.mean():.1f} ± {np.std(values, ddof=1):.1f}" in text
    assert "mscn ×2 †" in text
    for file in (
        "degradation-tests-small-load-caption.png",
        "degradation-tests-small-load-caption.svg",
        "tables.tex",
    ):
        assert (folder / file).stat().st_size > 500


def test_status_says_what_is_done_and_what_failed_and_why(failed, place, capfd):
    file = write(place, "clip", *FAILING[:2], "npc", name="states", grid={"seed": [0, 1]})
    content = yaml.safe_load(Path(file).read_text())
    shorter = {
        **content,
        "grid": {**content["grid"], "seed": [0], "method": ["clip", FAILING[1]]},
        "overrides": {},
    }
    Path(file).write_text(yaml.safe_dump(shorter))
    mended = Path(os.environ["HARNESS_CACHE"], "mended")
    was = mended.exists()
    mended.unlink(missing_ok=True)
    assert run_sweep([file]) == 1
    mended.touch() if was else None
    Path(file).write_text(yaml.safe_dump(content))
    capfd.readouterr()
    assert run_sweep([file, "--status"]) == 1
    told = capfd.readouterr().err
    assert "sweep states: 1 done, 1 failed, 6 to run" in told
    row = next(line.split() for line in told.splitlines() if line.startswith("clip "))
    assert row[2:] == ["1/2"], "the mean of what is done, and how much that is"
    assert float(row[1]) > 0
    assert re.search(r"failed: Diverges noise=0.4 seed=0 \(\w+\): Diverged: the loss is nan in epoch 0", told)
    assert run_sweep([write(place, "clip", name="never"), "--status"]) == 1
    assert "sweep never: 1 to run" in capfd.readouterr().err
    assert Store().client.experiment_id("never") is None


def test_trials_on_record_as_running_that_nobody_runs_are_told(place, capfd):
    """Of a sweep that was killed, and whose storage is lost or another one."""
    file = write(place, "clip", name="elsewhere")
    sweep, store = load_sweep(file), Store()
    run = store.create_run(store.open_sweep(sweep), sweep.trials[0], {"attempts": "1"})
    assert run_sweep([file]) == 0
    assert "1 trials were interrupted, and their checkpoints are not in" in " ".join(
        capfd.readouterr().err.split()
    )
    assert records("elsewhere")[sweep.trials[0].id].run_id == run


def test_verify_runs_a_sample_again_and_finds_what_is_not_whole(place, capfd):
    file = write(place, "small_loss", "mscn", name="verified", grid={"noise_ratio": [0, 0.4]})
    assert run_sweep([file]) == 0
    capfd.readouterr()
    (parent,) = Store().parents(Store().client.experiment_id("verified"))
    assert run_sweep([file, "--verify", "4"]) == 0
    assert Store().client.get_run(parent.run_id) == parent  # neither its status nor the plan
    told = capfd.readouterr().err
    assert (
        "4 of 4 trials are finished, 4 of their records are complete; 4 were run again, 4 gave the same "
        "numbers to the last bit" in told
    )
    assert told.count("\nthe same: ") == 4
    # A record that somebody has laid hands on, one that lost an artifact, and one that lost an epoch.
    store, found = Store(), list(records("verified").values())
    MlflowClient(store.uri).log_metric(found[0].run_id, "test/rsum", 599.0, step=1)
    store.client.set_tag(found[1].run_id, "weights_digest", "0" * 16)
    store.client.set_tag(found[1].run_id, "processes", "2")
    artifacts = Path(
        MlflowClient(store.uri).get_run(found[2].run_id).info.artifact_uri.removeprefix("file://")
    )
    (artifacts / "noise_index.npz").unlink()
    with sqlite3.connect("mlflow.db") as database:
        database.execute(
            "delete from metrics where run_uuid = ? and key = 'seconds/train' and step = 1", [found[3].run_id]
        )
    assert run_sweep([file, "--verify", "4"]) == 1
    told = " ".join(capfd.readouterr().err.split())
    assert "test/rsum is 599.0, and its rankings give" in told
    assert re.search(
        r"NOT THE SAME: \w+ noise=0(.4)? seed=0 \(\w+\): Differs: test/rsum is 599.0 on record", told
    )
    assert re.search(
        r"NOT THE SAME: .*the weights are 0000000000000000 on record, [0-9a-f]{16} now \(it was recorded "
        r"elsewhere: processes 2 then, 1 now. Sums may be rounded differently there, and a method",
        told,
    )
    assert f"run {found[2].run_id} has no artifact noise_index.npz" in told
    assert "epochs on record are [0, 2], and the trial has 3" in told
    assert "1 of their records are complete; 4 were run again, 2 gave the same numbers" in told


def stopped(place, code: str, *arguments: str) -> str:
    """What a command of its own process says that ends as stopped."""
    # A shell that started the tests in the background has them, and so the command, ignore SIGINT.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    run = subprocess.run(
        [sys.executable, "-c", heed + code, *arguments],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 130, run.stderr
    assert "Traceback" not in run.stderr
    assert run.stderr.endswith("stopped; run the same command again\n")
    return run.stderr


@pytest.mark.parametrize("sign", ["SIGINT", "SIGTERM"])
def test_a_sweep_is_stopped_while_features_are_computed(place, sign):
    options = {
        "grid": {"dataset": ["tests.misbehaving:interrupted"]},
        "fixed": {"dataset_options": {"sign": sign}},
    }
    file = write(place, "clip", name=f"early_{sign}", **options)
    stopped(place, "import runpy; runpy.run_module('harness.sweep', run_name='__main__')", file)
    assert Store().client.experiment_id(f"early_{sign}") is None


def test_a_verification_is_stopped(place, feature_cache):
    file = write(place, "tests.misbehaving:Interrupts", name="interrupted")
    assert run_sweep([file]) == 0
    (feature_cache / "interrupt").write_text("SIGTERM")
    try:
        code = "import sys; from tests.sweep.running import run_sweep; sys.exit(run_sweep(sys.argv[1:]))"
        assert "running 1 of 1 finished trials again" in stopped(place, code, file, "--verify")
    finally:
        (feature_cache / "interrupt").unlink()
    (parent,) = Store().parents(Store().client.experiment_id("interrupted"))
    assert parent.status == "FINISHED"


@pytest.mark.parametrize("command", ["--status", "--verify", "report"])
def test_reading_makes_no_store(tmp_path, monkeypatch, capfd, command):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path, "clip", name="nowhere")
    assert (report_command(["nowhere"]) if command == "report" else run_sweep([file, command])) == 2
    assert f"there is no tracking store sqlite:///{tmp_path}/mlflow.db" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["nowhere.yaml"]


def test_a_negative_number_of_trials_is_not_verified(capfd):
    with pytest.raises(SystemExit, match="2"):
        run_sweep(["any.yaml", "--verify", "-3"])
    assert "argument --verify: expected an integer of at least 0, found '-3'" in capfd.readouterr().err


def test_a_sweep_that_was_never_run_is_not_verified(place, capfd):
    assert run_sweep([write(place, "clip", name="unverified"), "--verify"]) == 2
    assert "sweep 'unverified' was never run in sqlite:///" in capfd.readouterr().err
    assert Store().client.experiment_id("unverified") is None


def test_an_unknown_sweep_is_told(compared, capfd):
    assert report_command(["comparred", "--tracking-uri", "sqlite:///other.db"]) == 2
    told = capfd.readouterr().err
    assert "it holds: compared" in told
    assert told.startswith("1 error:\n")  # a report starts nothing


def test_noise_models_on_a_users_own_pictures(place, capfd):
    """A table beside a folder of pictures, one of them damaged; each noise model; an index file that changes
    afterwards.
    """
    root = layouts.own_table(place / "photos")
    (root / "3.jpg").write_bytes(b"no picture")
    options = {"folder": "photos", "held_out": 6, "on_bad_image": "skip"}
    train = load_dataset("table", **options)["train"]
    published = [
        make_noise(train, ratio=0.4, granularity="image", seed=s, model=Derangement()).image for s in (5, 6)
    ]
    np.save("noise_0.4.npy", published[0])
    np.save("near.npy", np.random.default_rng(0).standard_normal((len(train.captions), 4)))
    models = [
        "derangement",
        {"model": "partial", "words": 0.4},
        {"model": "hard", "embedding": "near.npy"},
        {"model": "from_file", "path": "noise_{ratio}.npy"},
    ]
    changes = {
        "fixed": {"dataset_options": options, "epochs": 1},
        "overrides": {"small_loss": {"warmup_epochs": 0}},
    }
    file = write(place, "small_loss", name="noises", grid={"dataset": ["table"], "noise": models}, **changes)
    assert run_sweep([file]) == 0
    found = {r.trial.noise.model: r for r in records("noises").values()}
    assert {m: r.tags["noise_granularity"] for m, r in found.items()} == {
        "derangement": "caption",
        "partial": "caption",
        "hard": "caption",
        "from_file": "image",
    }
    assert all(r.metrics["noise/realised_ratio"] == pytest.approx(0.4, abs=0.05) for r in found.values())
    assert all(
        "detection/auroc" in r.metrics
        and sum(r.metrics[f"skipped/{s}_images"] for s in ("train", "dev", "test")) == 1
        for r in found.values()
    )
    assert len({r.tags["noise_digest"] for r in found.values()}) == 4
    text = (place / "reports" / "noises" / "report.md").read_text()
    for label in (
        "partial noise (0.4 of the words)",
        "hard noise",
        "caption-level noise without fixed points",
        "noise of noise_{ratio}.npy",
    ):
        assert f"rSum by noise ratio: table photos, {label}".replace("_", "\\_") in text
    np.save("noise_0.4.npy", published[1])
    capfd.readouterr()
    assert run_sweep([file]) == 2
    assert "(or its noise files) have changed since the sweep was started" in capfd.readouterr().err
    np.save("noise_0.4.npy", published[0])
    assert run_sweep([file]) == 0
    assert {m: r.run_id for m, r in found.items()} == {
        r.trial.noise.model: r.run_id for r in records("noises").values()
    }


def test_data_that_is_noisy_by_nature_has_no_detection_scores(place, capfd):
    root = layouts.npc(place / "cc", "cc")
    fixed = {"dataset_options": {"folder": str(root)}, "epochs": 1, "noise": "none", "noise_ratio": 0}
    content = small.content(
        "small_loss",
        name="natural",
        fixed=fixed,
        grid={"dataset": ["npc"]},
        overrides={"small_loss": {"warmup_epochs": 0}},
    )
    del content["grid"]["noise_ratio"]
    (place / "natural.yaml").write_text(yaml.safe_dump(content))
    assert run_sweep(["natural.yaml"]) == 0
    (record,) = records("natural").values()
    assert record.done
    assert not [k for k in record.metrics if k.startswith(("detection/", "noise/realised"))]
    assert "mismatched pairs unknown" in (place / "reports" / "natural" / "report.md").read_text()
    content["grid"]["method"] = ["oracle"]
    del content["overrides"]
    (place / "natural.yaml").write_text(yaml.safe_dump(content))
    capfd.readouterr()
    assert run_sweep(["natural.yaml"]) == 2
    assert "needs the ground truth, which is unknown for noise 'none'" in capfd.readouterr().err


@pytest.mark.parametrize("left", [0, 1])
def test_a_warmup_that_takes_all_steps_is_noted(place, capfd, left):
    """Steps of a network: ncr has two of them."""
    steps = 3 * (len(small.regions()["train"].captions) // 16)
    fixed = {"warmup_steps": steps - left, "backbone": small.SGRAF}
    grid = {"dataset": ["tests.small:regions"], "seed": [0, 1]}
    file = write(place, "triplet", "ncr", name="warmup", fixed=fixed, grid=grid)
    assert run_sweep([file, "--dry-run"]) == 0
    told = " ".join(capfd.readouterr().err.split())
    note = f"warmup_steps = {steps}, and a network has {steps} optimizer steps in a trial of triplet, ncr on"
    assert told.count("the learning rate still rises") == (not left)
    assert (note in told) == (not left)


@pytest.mark.parametrize(
    ("resources", "noted"),
    [({"gpus": 1, "processes": 8}, True), ({"gpus": 1}, False), ({"processes": 8}, False)],
)
def test_a_batch_that_is_small_for_its_gpus_is_noted(resources, noted):
    trials = [small.trial("clip", batch_size=size) for size in (1024, 512, 512)]
    notes = gpu_notes(trials, Resources(**resources))
    assert [n.partition(";")[0] for n in notes] == noted * ["each of 8 GPUs gets 64 pairs of a batch of 512"]


def test_a_dry_run_lists_every_trial_with_its_state(failed, place, capfd):
    """Also finished ones, so that `harness.train --trial` can be given any."""
    file, _, _ = failed
    capfd.readouterr()
    assert run_sweep([file, "--dry-run"]) == 0
    now = records("faults")
    listed = dict(line.split(" ", 1) for line in capfd.readouterr().out.splitlines())
    assert set(listed) == {t.id for t in load_sweep(file).trials}
    for trial_id, text in listed.items():
        assert text.endswith(": done" if now[trial_id].done else ": failed")


def test_a_dry_run_starts_nothing(place, capfd):
    file = write(place, "clip", "npc", name="dry")
    assert run_sweep([file, "--dry-run"]) == 0
    out = capfd.readouterr()
    assert all(t.id in out.out for t in load_sweep(file).trials)
    assert Store().client.experiment_id("dry") is None


def test_the_cost_of_a_step_is_counted_once_and_shown_by_later_dry_runs(place, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    file = write(place, "clip", "zero_shot", name="costs")
    assert run_sweep([file, "--dry-run"]) == 0
    assert "TFLOP" not in capfd.readouterr().err
    assert run_sweep([file, "--dry-run", "--cost"]) == 0
    first = capfd.readouterr().err
    assert "TFLOP" in first
    assert "a step of zero_shot is not counted: does not train" in first

    def fails(*arguments, **options):
        raise AssertionError("counted again")

    monkeypatch.setattr("harness.sweep.estimate.estimate_step", fails)
    assert run_sweep([file, "--dry-run", "--cost"]) == 0
    assert run_sweep([file, "--dry-run"]) == 0
    assert "counted again" not in (later := capfd.readouterr().err)
    assert later.count("TFLOP a") == 2 * first.count("TFLOP a") > 0


def test_the_flops_of_a_dry_run_are_those_that_a_trial_counts():
    trial = small.trial("npc", epochs=2)
    counted = estimate_step(trial, small.load(), gpu=False)
    trainer = build.trainer("clip", epochs=2)
    trainer.fit()
    of_clip = estimate_step(small.trial("clip", epochs=2), small.load(), gpu=False)
    assert of_clip.tflop == trainer.cost.flops[0] / 1e12
    assert counted.tflop > 2 * of_clip.tflop
    assert counted.gib > of_clip.gib > 0


@pytest.mark.parametrize("module", ["SGR", "SAF"])
def test_so_are_those_of_captions_of_different_lengths(module):
    backbone = {**small.SGRAF, "module": module}
    counted = estimate_step(small.trial("clip", backbone=backbone, epochs=2), small.regions(), gpu=False)
    trainer = build.trainer("clip", backbone=backbone, epochs=2)
    trainer.fit()
    assert counted.tflop == trainer.cost.flops[0] / 1e12


def test_a_dry_run_makes_no_store(place, tmp_path, capfd):
    uri = f"sqlite:///{tmp_path / 'new.db'}"
    assert run_sweep([write(place, "clip", name="dry"), "--dry-run", "--tracking-uri", uri]) == 0
    assert "sweep dry: 1 trials, 0 done" in capfd.readouterr().err
    assert not (tmp_path / "new.db").exists()


def test_a_dry_run_tells_the_cost_from_what_was_measured(failed, place, capfd):
    file = write(place, "clip", "npc", name="dry", fixed={"epochs": 300}, resources={"gpus": 64})
    assert run_sweep([file, "--dry-run"]) == 0
    told = capfd.readouterr().err
    assert re.search(
        r"clip +│ 0.4 +│ 1 +│ 1 +│ 11,100 │ [0-9.e+]+ +│ [0-9.]+ (s|min|h) ", told
    )  # 600 pairs, 16 a batch
    assert re.search(r"npc +│ 0.4 +│ 1 +│ 1 +│ 11,100 │ – +│ \? ", told)
    assert "as measured on cpu" in told
    assert "1 trials have no measurement" in told
    assert "note: resources.gpus = 64" in told


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"grid": {"method": ["clpi"]}}, "did you mean 'clip'"),
        ({"fixed": {"batch_size": 10_000}}, "batch_size = 10000: larger than the"),
        ({"fixed": {"batch_size": 100}}, "at most 40"),
        ({"grid": {"dataset": ["emojis"]}}, "unknown data set 'emojis'; did you mean 'emoji'"),
        (
            {"grid": {"dataset": ["emoji"]}, "fixed": {"dataset_options": {"file": "nothing.parquet"}}},
            "nothing.parquet is missing",
        ),
        ({"resources": {"gpus": 64}}, "this machine has"),
        ({"fixed": {"noise": "shufle"}}, "noise: unknown noise model 'shufle'; did you mean 'shuffle'?"),
        ({"fixed": {"noise": {"model": "hard"}}}, "noise.embedding is missing"),
        (
            {"fixed": {"noise": {"model": "hard", "embedding": "nowhere.npy"}}},
            "embedding nowhere.npy is missing",
        ),
        (
            {"fixed": {"noise": {"model": "from_file", "path": "none_{ratio}.npy"}}},
            "noise file none_0.4.npy is missing",
        ),
        (
            {"fixed": {"noise": "partial", "noise_granularity": "image"}},
            "noise_granularity must be 'caption', not 'image'",
        ),
        ({"fixed": {"noise": "none"}}, "noise_ratio must be 0, not 0.4"),
        ({"fixed": {"noise": {"model": "derangement", "word": 1}}}, "unknown key 'noise.word'"),
    ],
)
def test_bad_input_starts_nothing(place, capfd, changes, expected):
    assert run_sweep([write(place, "clip", name="bad", **changes)]) == 2
    told = capfd.readouterr().err
    assert expected in told
    assert "Traceback" not in told
    assert Store().client.experiment_id("bad") is None


def test_all_faults_at_once(place, capfd):
    file = write(place, "clip", name="bad", grid={"dataset": ["nowhere"]}, resources={"gpus": 64})
    assert run_sweep([file, "--tracking-uri", "http://127.0.0.1:9"]) == 2
    told = capfd.readouterr().err
    for part in (
        "3 errors",
        "unknown data set 'nowhere'",
        "resources.gpus",
        "http://127.0.0.1:9 does not answer",
    ):
        assert part in told


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_no_cluster_at_the_address(place, capfd, address):
    file = write(place, "clip", name="nocluster", fixed={"batch_size": 100})
    assert run_sweep([file, "--address", address]) == 2
    told = capfd.readouterr().err
    assert f"--address {address!r}: no Ray cluster answers there" in told
    assert "at most 40" in told  # with all other faults
    assert run_sweep([file, "--address", f"ray://{address}"]) == 2
    assert "a sweep is started on a node of the cluster" in capfd.readouterr().err


def test_the_plan_is_in_the_store(compared):
    store = Store("sqlite:///other.db")
    parent = store.client.search_runs(store.client.experiment_id("compared"), "tags.kind = 'sweep'")[0].run_id
    plan = json.loads(store.client.read(parent, "plan.json"))
    assert len(plan["trials"]) == 8
    assert "small_loss" in store.client.read(parent, "sweep.yaml").decode()
