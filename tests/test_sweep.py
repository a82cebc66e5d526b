"""The whole way, with the real parts: Ray, an MLflow store, worker processes."""

from __future__ import annotations

import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ray
import yaml

from harness import train as train_command
from harness.config.sweep_file import load_sweep
from harness.data import load_dataset
from harness.noise.models import Derangement, make_noise
from harness.record.store import MlflowRecorder, Store
from harness.report.__main__ import main as report_command
from harness.sweep import __main__ as sweep_command
from harness.training.run_trial import _describe as describe
from harness.training.trainer import DataChanged, EpochRecord
from tests import build, layouts, small

ROOT = Path(__file__).parents[1]
FAILING = [
    "tests.misbehaving:Raises",
    "tests.misbehaving:Diverges",
    "tests.misbehaving:OutOfMemory",
    "tests.misbehaving:Dies",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, feature_cache):
    """A working folder with a Ray of its own; one start for all tests here."""
    folder = tmp_path_factory.mktemp("work")
    before = Path.cwd()
    os.chdir(folder)
    path = os.pathsep.join([str(ROOT), *sys.path])
    ray.init(
        address="local",
        num_cpus=2,
        resources={"trial_slot": 4},
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    yield folder
    ray.shutdown()
    os.chdir(before)


def write(folder: Path, *methods: str, name: str, **changes) -> str:
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(small.content(*methods, name=name, **changes)))
    return str(file)


def records(name: str):
    return Store().read_sweep(name).records


@pytest.fixture(scope="module")
def failed(place):
    """A sweep in which all but one trial fail, each in another way."""
    file = write(place, "clip", *FAILING, name="faults")
    return file, sweep_command.main([file]), dict(records("faults"))


def test_a_failing_trial_is_recorded_and_the_sweep_goes_on(failed):
    _, code, found = failed
    assert code == 1
    by_method = {r.trial.method: r for r in found.values()}
    assert by_method["clip"].done
    reasons = {m.rpartition(":")[2]: by_method[m].tags["failure"] for m in FAILING}
    assert reasons["Raises"] == "RuntimeError: no such luck [/tmp/a]"
    assert reasons["Diverges"].startswith("Diverged: the loss is nan in epoch 0")
    assert "memory" in reasons["OutOfMemory"]
    assert "worker process died" in reasons["Dies"]
    assert all(by_method[m].status == "FAILED" and not by_method[m].done for m in FAILING)


def test_the_report_marks_what_is_missing(failed, place):
    text = (place / "reports" / "faults" / "report.md").read_text()
    assert "1 of 5 planned trials are done" in text
    assert "RuntimeError: no such luck" in text


def test_a_rerun_takes_up_just_what_failed(failed, place, feature_cache):
    file, _, before = failed
    (feature_cache / "mended").touch()
    assert sweep_command.main([file]) == 0
    after = records("faults")
    assert all(r.done for r in after.values())
    clip = next(r for r in before.values() if r.done)
    assert after[clip.trial.id].run_id == clip.run_id  # not run again
    assert all("failure" not in r.tags for r in after.values())
    # The one that died after its first epoch went on from its checkpoint, and logged that epoch once.
    dies = next(r for r in after.values() if r.trial.method.endswith("Dies"))
    steps = [m.step for m in Store().client.get_metric_history(dies.run_id, "train/loss")]
    assert steps == [0, 1, 2]
    # All four are `clip` in disguise: same seed, same numbers, however often they were interrupted.
    assert len({r.metrics["test/rsum"] for r in after.values()}) == 1
    assert not list((place / ".harness" / "trials").glob("faults*"))
    told = dies.tags[
        "history"
    ].splitlines()  # attempts that died, one after another, then the one that was mended
    assert told[0] == "attempt 1, 1 epochs on record: its process ended without a word"
    assert told[1] == "goes on after 1 epochs"
    assert dies.tags["attempts"] == "4"
    assert "attempt 3, 1 epochs on record: the worker process died, 3 times" in told


def test_a_grown_grid_runs_what_is_new(failed, place):
    file, _, _ = failed
    before = {i: r.run_id for i, r in records("faults").items()}
    write(place, "clip", *FAILING, name="faults", grid={"seed": [0, 1], "method": ["clip", FAILING[0]]})
    assert sweep_command.main([file]) == 0
    after = records("faults")
    assert len(after) == 4
    assert sum(r.run_id in before.values() for r in after.values()) == 2
    assert sweep_command.main([file]) == 0  # nothing left to do
    assert {i: r.run_id for i, r in records("faults").items()} == {i: r.run_id for i, r in after.items()}


@pytest.fixture(scope="module")
def compared(place):
    """Two methods, two ratios, two seeds."""
    file = write(place, "small_loss", "mscn", name="compared", grid={"noise_ratio": [0, 0.4], "seed": [0, 1]})
    assert sweep_command.main([file, "--tracking-uri", "sqlite:///other.db"]) == 0
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
    assert sweep_command.main([file]) == 0
    found = {(r.trial.method, r.trial.hyper.get("n_networks", 1)): r for r in records("regions").values()}
    assert {key: r.metrics["cost/networks_at_test"] for key, r in found.items()} == {
        ("triplet", 1): 1,
        ("ncr", 1): 1,
        ("ncr", 2): 2,
    }
    client = Store().client
    for record in found.values():
        assert [m.step for m in client.get_metric_history(record.run_id, "dev/rsum")] == [1]
        rates = [m.value for m in client.get_metric_history(record.run_id, "train/learning_rate")]
        assert rates == pytest.approx([1e-3, 1e-4])
    text = (place / "reports" / "regions" / "report.md").read_text()
    assert "rSum by noise ratio: scan x\\_precomp" in text
    assert "| ncr (n\\_networks=2) ×2 |" in text
    assert "ncr (n\\_networks=1) ×" not in text


def test_every_run_carries_what_is_needed_to_repeat_it(compared):
    client = Store("sqlite:///other.db").client
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
    assert sweep_command.main([file]) == 1
    mended.touch() if was else None
    Path(file).write_text(yaml.safe_dump(content))
    capfd.readouterr()
    assert sweep_command.main([file, "--status"]) == 1
    told = capfd.readouterr().err
    assert "sweep states: 1 done, 1 failed, 6 to run" in told
    assert re.search(r"failed: tests.misbehaving:Diverges .*: Diverged: the loss is nan in epoch 0", told)
    assert sweep_command.main([write(place, "clip", name="never"), "--status"]) == 1
    assert "sweep never: 1 to run" in capfd.readouterr().err
    assert Store().client.get_experiment_by_name("never") is None


def test_trials_that_seem_to_run_where_nobody_sees_are_told(place, capfd):
    """Another sweep with a storage of its own, or one whose storage is lost."""
    file = write(place, "clip", name="elsewhere")
    sweep, store = load_sweep(file), Store()
    run = store.create_run(store.open_sweep(sweep), sweep.trials[0], {"attempts": "1"})
    assert sweep_command.main([file]) == 0
    assert "1 trials are on record as running, and their checkpoints are not in" in " ".join(
        capfd.readouterr().err.split()
    )
    assert records("elsewhere")[sweep.trials[0].id].run_id == run


def test_verify_runs_a_sample_again_and_finds_what_is_not_whole(place, capfd):
    file = write(place, "small_loss", "mscn", name="verified", grid={"noise_ratio": [0, 0.4]})
    assert sweep_command.main([file]) == 0
    capfd.readouterr()
    assert sweep_command.main([file, "--verify", "4"]) == 0
    told = capfd.readouterr().err
    assert (
        "4 of 4 trials are finished, 4 of their records are whole; 4 were run again, 4 gave the same "
        "numbers to the last bit" in told
    )
    assert told.count("\nthe same: ") == 4
    # A record that somebody has laid hands on, one that lost an artifact, and one that lost an epoch.
    store, found = Store(), list(records("verified").values())
    store.client.log_metric(found[0].run_id, "test/rsum", 599.0, step=1)
    store.client.set_tag(found[1].run_id, "weights_digest", "0" * 16)
    artifacts = Path(store.client.get_run(found[2].run_id).info.artifact_uri.removeprefix("file://"))
    (artifacts / "noise_index.npz").unlink()
    with sqlite3.connect("mlflow.db") as database:
        database.execute(
            "delete from metrics where run_uuid = ? and key = 'seconds/train' and step = 1", [found[3].run_id]
        )
    assert sweep_command.main([file, "--verify", "4"]) == 1
    told = " ".join(capfd.readouterr().err.split())
    assert "test/rsum is 599.0, and its rankings give" in told
    assert re.search(r"NOT THE SAME: \S+ tests.small:load .*?: Differs: test/rsum is 599.0 on record", told)
    assert re.search(r"NOT THE SAME: .*the weights are 0000000000000000 on record, [0-9a-f]{16} now", told)
    assert f"run {found[2].run_id} has no artifact noise_index.npz" in told
    assert "epochs on record are [0, 2], and the trial has 3" in told
    assert "1 of their records are whole; 4 were run again, 2 gave the same numbers" in told


def test_an_unknown_sweep_is_told(compared, capfd):
    assert report_command(["comparred", "--tracking-uri", "sqlite:///other.db"]) == 2
    assert "it holds: compared" in capfd.readouterr().err


def test_two_processes_through_ray_train(place):
    """The same trial through TorchTrainer with two workers: same numbers as one process, recorded once."""
    fixed = {"precision": "fp64"}
    one = build.trainer("clip", precision="fp64").fit()
    file = write(place, "clip", name="processes", fixed=fixed, resources={"processes": 2})
    assert sweep_command.main([file]) == 0
    (record,) = records("processes").values()
    assert record.tags["processes"] == "2"
    assert record.metrics["test/rsum"] == pytest.approx(one.metrics["test/rsum"])
    assert record.metrics["dev/best_rsum"] == pytest.approx(one.metrics["dev/best_rsum"])


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
    assert sweep_command.main([file]) == 0
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
    assert sweep_command.main([file]) == 2
    assert "(or its noise files) have changed since the sweep was begun" in capfd.readouterr().err
    np.save("noise_0.4.npy", published[0])
    assert sweep_command.main([file]) == 0
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
    assert sweep_command.main(["natural.yaml"]) == 0
    (record,) = records("natural").values()
    assert record.done
    assert not [k for k in record.metrics if k.startswith(("detection/", "noise/realised"))]
    assert "which pairs mismatch is not known" in (place / "reports" / "natural" / "report.md").read_text()
    content["grid"]["method"] = ["oracle"]
    del content["overrides"]
    (place / "natural.yaml").write_text(yaml.safe_dump(content))
    capfd.readouterr()
    assert sweep_command.main(["natural.yaml"]) == 2
    assert "of noise 'none' (data that is noisy by nature) nobody does" in capfd.readouterr().err


def test_what_a_sweep_file_says_is_no_instruction_to_ray(place):
    """Tune by itself runs as Python what stands in a mapping under `eval`."""
    file = write(
        place,
        "clip",
        name="literal",
        grid={"dataset": ["tests.small:literally"]},
        fixed={"dataset_options": {"eval": "1 + 1"}},
    )
    assert sweep_command.main([file]) == 0


def test_a_failure_in_one_of_two_processes_is_told_by_its_cause(place, feature_cache):
    (feature_cache / "mended").unlink(missing_ok=True)
    file = write(place, FAILING[1], name="twofaults", resources={"processes": 2})
    assert sweep_command.main([file]) == 1
    (record,) = records("twofaults").values()
    assert record.status == "FAILED"
    assert "the loss is nan in epoch 0" in record.tags["failure"]


def test_a_dry_run_starts_nothing(place, capfd):
    file = write(place, "clip", "npc", name="dry")
    assert sweep_command.main([file, "--dry-run"]) == 0
    out = capfd.readouterr()
    assert all(t.id in out.out for t in load_sweep(file).trials)
    assert Store().client.get_experiment_by_name("dry") is None


def test_a_dry_run_tells_the_cost_from_what_was_measured(failed, place, capfd):
    file = write(place, "clip", "npc", name="dry", fixed={"epochs": 300}, resources={"gpus": 64})
    assert sweep_command.main([file, "--dry-run"]) == 0
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
        ({"fixed": {"noise": {"model": "hard"}}}, "noise.hard.embedding is missing"),
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
        ({"fixed": {"noise": {"model": "derangement", "word": 1}}}, "unknown key 'noise.derangement.word'"),
    ],
)
def test_bad_input_starts_nothing(place, capfd, changes, expected):
    assert sweep_command.main([write(place, "clip", name="bad", **changes)]) == 2
    told = capfd.readouterr().err
    assert expected in told
    assert "Traceback" not in told
    assert Store().client.get_experiment_by_name("bad") is None


def test_all_faults_at_once(place, capfd):
    file = write(place, "clip", name="bad", grid={"dataset": ["nowhere"]}, resources={"gpus": 64})
    assert sweep_command.main([file, "--tracking-uri", "http://127.0.0.1:9"]) == 2
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
    assert sweep_command.main([file, "--address", address]) == 2
    told = capfd.readouterr().err
    assert f"--address {address!r}: no Ray cluster answers there" in told
    assert "at most 40" in told  # with all other faults
    assert sweep_command.main([file, "--address", f"ray://{address}"]) == 2
    assert "a sweep is started on a node of the cluster" in capfd.readouterr().err


def test_a_tracking_server_by_uri(place):
    """A real `mlflow server`, one tracked trial by hand, and the same command again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--port",
        str(port),
        "--workers",
        "1",
        "--backend-store-uri",
        "sqlite:///server.db",
        "--artifacts-destination",
        str(place / "served"),
    ]
    with open(place / "server.log", "w") as log:
        server = subprocess.Popen(command, cwd=place, stdout=log, stderr=log, start_new_session=True)
    try:
        uri = f"http://127.0.0.1:{port}"
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.5)
        file = write(place, "small_loss", name="served")
        (trial,) = load_sweep(file).trials
        for _ in range(2):
            assert train_command.main([file, "--trial", trial.id[:6], "--tracking-uri", uri]) == 0
        (record,) = Store(uri).read_sweep("served").records.values()
        assert record.done
        assert Store(uri).read_array(record.run_id, "test_rankings.npz")["i2t_rank"].size
    finally:
        os.killpg(server.pid, 15)
        server.wait(20)


def test_a_trial_by_hand_needs_neither_ray_nor_mlflow(place):
    file = write(place, "npc", name="byhand")
    trial = load_sweep(file).trials[0].id
    code = (
        "import sys; from harness.train import main;"
        f"code = main([{file!r}, '--trial', {trial!r}, '--no-tracking']);"
        "assert not {'ray', 'mlflow'} & set(sys.modules), 'imported'; sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    by_hand = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines() if line.startswith("test/"))
    assert float(by_hand["test/rsum"]) == pytest.approx(
        build.trainer("npc").fit().metrics["test/rsum"], abs=1e-3
    )


def test_a_trial_under_torchrun(place):
    file = write(place, "clip", name="torchrun", fixed={"precision": "fp64"})
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
    ]
    done = subprocess.run(
        [*command, "-m", "harness.train", file, "--trial", load_sweep(file).trials[0].id, "--no-tracking"],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("test/rsum ") == 1  # the main process alone speaks
    value = float(next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("test/rsum ")))
    assert value == pytest.approx(
        build.trainer("clip", precision="fp64").fit().metrics["test/rsum"], abs=1e-3
    )


def test_an_unknown_trial_is_told(place, capfd):
    assert train_command.main([write(place, "clip", name="byhand2"), "--trial", "zzz"]) == 2
    assert "0 trials of byhand2 begin so; there are" in capfd.readouterr().err


def test_runs_that_name_one_noise_index_at_once(place, tmp_path):
    """MLflow alone fails here: each of two runs finds the index absent, and one of the two inserts is
    refused.
    """
    from concurrent.futures import ThreadPoolExecutor

    sweep = small.sweep(*(m for m in ("clip", "triplet", "npc", "oracle", "small_loss", "mscn")), name="race")
    store = Store(f"sqlite:///{tmp_path / 'race.db'}")
    opened = store.open_sweep(sweep)
    trainers = [build.trainer(t.method) for t in sweep.trials]
    setups = [
        describe(t, small.load(), made.noise, made) for t, made in zip(sweep.trials, trainers, strict=True)
    ]
    recorders = [MlflowRecorder(opened, t) for t in sweep.trials]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda pair: pair[0].start(pair[1]), zip(recorders, setups, strict=True)))
    inputs = [store.client.get_run(r.run_id).inputs.dataset_inputs for r in recorders]
    assert {i.dataset.digest for found in inputs for i in found} == {trainers[0].noise.digest}
    assert all(len(found) == 1 for found in inputs)


def test_what_an_attempt_may_go_on_with(tmp_path):
    """The same code and packages: in its run, wherever it runs. Other code: anew, in a run of its own. Other
    data: not at all.
    """
    sweep = small.sweep("clip", name="attempts")
    store = Store(f"sqlite:///{tmp_path / 'attempts.db'}")
    opened, made = store.open_sweep(sweep), build.trainer("clip")
    setup = describe(sweep.trials[0], small.load(), made.noise, made)

    def begin(**changes):
        recorder = MlflowRecorder(opened, sweep.trials[0])
        return recorder, recorder.start(replace(setup, **changes))

    first, recorded = begin()
    assert recorded == 0
    first.epoch(EpochRecord(0, {"seconds/train": 1.0}, None))
    second, recorded = begin(environment={**setup.environment, "device": "another machine"})
    assert (second.run_id, recorded) == (first.run_id, 1)
    tags = store.client.get_run(first.run_id).data.tags
    assert tags["attempts"] == "2"
    assert (
        tags["history"] == f"attempt 1, 1 epochs on record: its process ended without a word; device "
        f"{setup.environment['device']} -> another machine"
    )
    third, recorded = begin(environment={**setup.environment, "code": "other"})
    assert third.run_id != first.run_id
    assert recorded == 0
    given_up = store.client.get_run(first.run_id)
    assert given_up.info.status == "KILLED"
    assert (
        given_up.data.tags["given_up"]
        == f"begun anew in another run: code {setup.environment['code']} -> other"
    )
    assert store.records(opened, sweep.trials)[sweep.trials[0].id].run_id == third.run_id
    with pytest.raises(DataChanged, match="the data of this trial changed since it was begun"):
        begin(fingerprint="others", environment={**setup.environment, "code": "other"})


def test_the_plan_is_in_the_store(compared):
    store = Store("sqlite:///other.db")
    parent = store._search(
        store.client.get_experiment_by_name("compared").experiment_id, "tags.kind = 'sweep'"
    )[0].info.run_id
    plan = json.loads(store._read_artifact(parent, "plan.json"))
    assert len(plan["trials"]) == 8
    assert "small_loss" in store._read_artifact(parent, "sweep.yaml").decode()
