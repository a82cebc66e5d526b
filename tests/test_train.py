"""One trial by hand: tracked, untracked, and under torchrun."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import train as train_command
from harness.config.sweep_file import load_sweep
from harness.lib.locks import acquire
from harness.record.store import Store
from harness.record.types import StoreError
from tests import build
from tests.sweep.paced import Server
from tests.sweep.running import write

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory, feature_cache):
    """A working directory for the module."""
    folder = tmp_path_factory.mktemp("work")
    with contextlib.chdir(folder):
        yield folder


def test_a_tracking_server_by_uri(place):
    """A real `mlflow server`, one tracked trial by hand, and the same command again."""
    server = Server(place, allowed="localhost")  # as docs/clusters.md says
    try:
        server.start()
        uri = f"http://localhost:{server.port}"
        with pytest.raises(StoreError, match="Invalid Host header"):
            Store(server.uri, patient=False)
        file = write(place, "small_loss", name="served")
        (trial,) = load_sweep(file).trials
        for _ in range(2):
            assert train_command.main([file, "--trial", trial.id[:6], "--tracking-uri", uri]) == 0
        (record,) = Store(uri).read_sweep("served").records.values()
        assert record.done
        assert _status_of_parent("served", uri) == "SCHEDULED"  # the sweep itself has not run
        assert Store(uri).read_array(record.run_id, "test_rankings.npz")["i2t_rank"].size
    finally:
        server.stop()


def _status_of_parent(name: str, uri: str | None = None) -> str:
    (parent,) = Store(uri).parents(Store(uri).client.experiment_id(name))
    return parent.status


@pytest.mark.parametrize("status", ["FAILED", "RUNNING"])
def test_a_trial_by_hand_leaves_the_status_of_its_sweep(place, status):
    """Of a sweep that ended with failures, and of one that is running elsewhere."""
    file = write(place, "zero_shot", name=f"left_{status}")
    sweep, store = load_sweep(file), Store()
    handle = store.open_sweep(sweep)
    store.client.set_status(handle.parent_run, status)
    assert train_command.main([file, "--trial", sweep.trials[0].id]) == 0
    assert store.records(handle, sweep.trials)[sweep.trials[0].id].done
    assert _status_of_parent(sweep.name) == status


def test_a_trial_by_hand_finds_the_storage_of_its_sweep(place, tmp_path, capfd):
    """Where the sweep is running the trial at the moment, it holds the lock there."""
    file = write(place, "zero_shot", name="stored")
    (trial,) = load_sweep(file).trials
    directory = Store().open_sweep(load_sweep(file)).directory(tmp_path, trial)
    with acquire(directory):
        assert train_command.main([file, "--trial", trial.id, "--storage", str(tmp_path)]) == 1
    assert "busy: it is being run by process" in capfd.readouterr().err
    assert train_command.main([file, "--trial", trial.id, "--storage", str(tmp_path)]) == 0
    assert not directory.exists()


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
    assert "WARNING" not in done.stderr  # open_clip warns of random weights, which are meant here
    by_hand = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines() if line.startswith("test/"))
    assert float(by_hand["test/rsum"]) == pytest.approx(
        build.trainer("npc").fit().metrics["test/rsum"], abs=1e-3
    )


def test_a_trial_by_hand_ends_quietly_where_its_output_is_cut_off(place):
    """As by `| head -1`; and torch and triton, which it loads, say nothing at exit."""
    file = write(place, "zero_shot", name="cutoff")
    command = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "harness.train",
            file,
            "--trial",
            load_sweep(file).trials[0].id,
            "--no-tracking",
        ],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert command.stdout
    assert command.stderr
    command.stdout.close()
    said = [line for line in command.stderr.read().splitlines() if not line.endswith(" ...")]  # progress
    assert command.wait(120) == 1
    assert said == []


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
    told = " ".join(capfd.readouterr().err.split())
    assert "0 trials of byhand2 begin so; there are" in told
    assert told.endswith("(clip noise=0.4 seed=0)")
    many = write(place, "clip", name="byhand3", grid={"seed": list(range(15))})
    assert train_command.main([many, "--trial", "zzz"]) == 2
    assert " ".join(capfd.readouterr().err.split()).endswith("seed=11) and 3 more")
