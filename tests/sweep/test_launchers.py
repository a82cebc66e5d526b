"""Launchers: trials in this process, and what the Ray launcher does where Tune gives up."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from harness.config.resources import Resources
from harness.lib.locks import acquire
from harness.record.provenance import Provenance, harness_digest
from harness.record.store import Store
from harness.record.types import StoreError, SweepHandle
from harness.sweep import attempt, preflight, ray_launcher
from harness.sweep.attempt import BUSY, DONE, FAILED, Ending, StoreGone, Task
from harness.sweep.launcher import InProcessLauncher, LaunchError
from harness.sweep.probe import probe
from tests import small


def task_of(sweep, handle, storage, **changes):
    return Task(handle, Resources(), Provenance.of(sweep.trials), storage, str(storage), **changes)


def test_a_node_that_does_not_reach_the_server_says_how_to_start_one(tmp_path):
    (tmp_path / "ours").write_text(tmp_path.name)
    with acquire(tmp_path):
        errors = probe("node", tmp_path, str(tmp_path), "http://127.0.0.1:1", harness_digest())
    (error,) = [e for e in errors if "tracking server" in e]
    assert "start `mlflow server --host 0.0.0.0 --allowed-hosts 'HOST:5000'`" in error


def test_a_trial_has_the_threads_of_its_cpus_in_every_library(monkeypatch):
    """NumPy's BLAS too: a sum on two threads is rounded otherwise, and not the one on record."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # the tests have one
    threadpool_limits(2)
    attempt.limit_threads(1)
    pools = threadpool_info()
    assert {"openblas", "openmp"} <= {pool["internal_api"] for pool in pools}
    assert {pool["num_threads"] for pool in pools} == {1}
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_tune_is_started_again_where_it_gives_up(tmp_path, monkeypatch):
    """Which it does at some of Ray's kills for memory: a trial that ran each time has failed, the others are
    run.
    """
    sweep = small.sweep("clip", grid={"seed": [0, 1, 2]})
    trials = list(sweep.trials)
    handle = SweepHandle(f"sqlite:///{tmp_path / 'm.db'}", "x", "0", "")
    task = task_of(sweep, handle, tmp_path, repeat=True)
    calls, ended = [], []

    def gives_up(left, task, watcher):
        calls.append([t.seed for t in left])
        if trials[0] in left:
            watcher.begin(trials[0])
            raise RuntimeError("Caught unexpected exception") from MemoryError("low on memory\nand much more")
        for trial in left:
            watcher.begin(trial)
            watcher.end(Ending(trial, DONE))

    launcher = ray_launcher.RayLauncher()
    monkeypatch.setattr(ray_launcher, "_tune", gives_up)
    monkeypatch.setattr(launcher, "stop", lambda: None)
    monkeypatch.setattr(launcher, "start", lambda resources: None)
    launcher.run(trials, task, on_start=lambda trial: None, on_end=ended.append)
    assert calls == [[0, 1, 2]] * 3 + [[1, 2]]
    assert [(e.trial.seed, e.outcome) for e in ended] == [(0, FAILED), (1, DONE), (2, DONE)]
    assert ended[0].reason == "Ray ended its worker: MemoryError: low on memory"


def test_what_runs_elsewhere_is_busy_and_what_is_done_is_done(tmp_path, feature_cache):
    sweep = small.sweep("clip", grid={"seed": [0, 1]})
    handle = Store(f"sqlite:///{tmp_path / 'm.db'}").open_sweep(sweep)
    task = task_of(sweep, handle, tmp_path / "storage")
    ended = []
    with acquire(task.checkpoints(sweep.trials[0])):
        InProcessLauncher().run(sweep.trials, task, on_start=lambda trial: None, on_end=ended.append)
    assert [e.outcome for e in ended] == [BUSY, DONE]
    assert "it is being run by process" in ended[0].reason
    InProcessLauncher().run(sweep.trials, task, on_start=lambda trial: None, on_end=ended.append)
    assert [e.outcome for e in ended[2:]] == [DONE, DONE]
    assert ended[2].seconds > ended[3].seconds  # the second was on record


def test_other_code_than_the_drivers_is_refused(tmp_path):
    """A worker that has loaded a later state of the checkout must not write under the digest of an earlier
    one.
    """
    sweep = small.sweep("clip")
    store = Store(f"sqlite:///{tmp_path / 'm.db'}")
    task = task_of(sweep, store.open_sweep(sweep), tmp_path)
    other = Provenance("x", dict.fromkeys(task.provenance.code, "0" * 12))
    ended = attempt.attempt(sweep.trials[0], Task(task.handle, Resources(), other, tmp_path, str(tmp_path)))
    assert ended.outcome == FAILED
    assert "is not the one that the sweep was started with" in ended.reason
    (record,) = store.read_sweep("small").records.values()
    assert record.tags["failure"].startswith("CodeChanged")


def test_a_store_that_is_gone_ends_the_run(tmp_path, monkeypatch):
    sweep = small.sweep("clip", grid={"seed": [0, 1]})
    task = task_of(sweep, SweepHandle("http://127.0.0.1:9", "x", "0", ""), tmp_path)

    def gone(trial, task):
        raise StoreError("the tracking store does not answer any more")

    monkeypatch.setattr(attempt, "work", gone)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    ended = []
    with pytest.raises(StoreGone, match="does not take results any more"):
        InProcessLauncher().run(sweep.trials, task, on_start=lambda trial: None, on_end=ended.append)
    assert [e.outcome for e in ended] == ["unrecorded"]


def test_several_processes_need_another_launcher():
    with pytest.raises(LaunchError, match=r"resources\.processes = 2"):
        InProcessLauncher().start(Resources(processes=2))


def test_loader_processes_are_asked_of_the_cluster():
    """Or eight trials with eight loader processes each would start 64 decoders on eight cores."""
    resources = Resources(cpus=1, workers=8)
    ray_launcher._check_resources([{"CPU": 9}], resources)
    with pytest.raises(LaunchError, match=r"CPU 9 \(there: 8\): 1 and 8 loader workers for each process"):
        ray_launcher._check_resources([{"CPU": 8}], resources)
    with pytest.raises(
        LaunchError, match="a process needs CPU 9, GPU 0 on one node, and the nodes have: CPU 8"
    ):
        ray_launcher._check_resources([{"CPU": 8}, {"CPU": 8}, {"CPU": 0, "GPU": 8}], resources)


def test_processes_under_ray_wait_longer_for_each_other_than_a_trial_may_hang():
    assert ray_launcher._torch_config(Resources(stall_minutes=90)).timeout_s > 90 * 60
    assert ray_launcher._torch_config(Resources(gpus=1, processes=2)).backend == "nccl"


def test_with_a_gpu_features_are_computed_in_a_process_of_their_own(monkeypatch, feature_cache):
    """The process of the sweep would keep memory on the GPU all the time."""
    called = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(preflight, "in_own_process", lambda function, trials: called.append(trials))
    trial = small.trial("clip")
    preflight.prepare_features(
        [trial, small.trial("clip", seed=1)], {preflight.data_key(trial): small.load()}
    )
    assert [len(trials) for trials in called] == [1]  # they share a backbone
    monkeypatch.undo()
    preflight._compute_features([trial])  # what that process does: it loads the data itself


def test_with_a_gpu_features_are_in_the_precision_that_trials_compute_them_in():
    """In a process of its own: what it sets holds for the whole process."""
    code = (
        "import torch; torch.cuda.is_available = lambda: True; from harness.sweep import preflight; "
        "assert torch.backends.cudnn.allow_tf32; preflight._compute_features([]); "
        "assert not torch.backends.cudnn.allow_tf32; assert torch.are_deterministic_algorithms_enabled()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
