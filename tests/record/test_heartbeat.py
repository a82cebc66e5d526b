"""Attempts with storage folders of their own see each other in the store."""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from harness import train as train_command
from harness.config.sweep_file import load_sweep
from harness.lib.locks import Busy, acquire
from harness.record import heartbeat
from harness.record.heartbeat import Hold, Watch, hold, place_of, read_claims, remove_void
from harness.record.provenance import Provenance, code_key
from harness.record.store import Store
from harness.sweep.attempt import Task, attempt, record_interrupted
from harness.sweep.status import show_status
from tests import small
from tests.sweep.paced import ROOT, SOON, until
from tests.sweep.running import records, run_sweep, write

HERE, THERE = "one folder", "another folder"


@pytest.fixture
def opened(tmp_path):
    """A store with a sweep: its client and handle."""
    store = Store(f"sqlite:///{tmp_path / 'claims.db'}")
    return store.client, store.open_sweep(small.sweep("clip", name="claims"))


@pytest.fixture
def clock(monkeypatch):
    """The clock of the module, which tests set."""
    fake = SimpleNamespace(now=1000.0, off=0.0)
    fake.monotonic = lambda: fake.now
    fake.time = lambda: fake.now + fake.off
    fake.sleep = lambda seconds: setattr(fake, "now", fake.now + seconds)
    monkeypatch.setattr(heartbeat, "time", fake)
    return fake


def killed(claimed: Hold) -> Hold:
    """As a process leaves it that is killed: the claim stays, and nobody renews it."""
    claimed._ended.set()
    return claimed


def claim(client, handle, place) -> Hold:
    made = Hold(client, handle.experiment_id, "trial", place)
    made.acquire()
    return made


def test_a_trial_is_claimed_once(opened):
    client, handle = opened
    first = claim(client, handle, HERE)
    told = re.escape(f"it is being run by process {os.getpid()} on {socket.gethostname()}")
    with pytest.raises(Busy, match=told):
        claim(client, handle, THERE)
    (kept,) = read_claims(client, handle.experiment_id)
    assert kept.place == HERE
    first.release()
    claim(client, handle, THERE).release()
    assert read_claims(client, handle.experiment_id) == []


def test_a_claim_of_the_same_storage_is_void_once_the_lock_is_free(opened, tmp_path):
    """Whoever claims has the lock: a sweep that was killed is continued at once."""
    client, handle = opened
    killed(claim(client, handle, HERE))
    claim(client, handle, HERE).release()
    place, directory = place_of(handle, tmp_path), tmp_path / "trial"
    assert place == place_of(handle, tmp_path) != place_of(handle, tmp_path / "other")
    killed(claim(client, handle, place))
    with acquire(directory):
        remove_void(client, handle, "trial", tmp_path, directory)
        assert read_claims(client, handle.experiment_id)
    remove_void(client, handle, "trial", tmp_path, directory)
    assert read_claims(client, handle.experiment_id) == []


def test_a_claim_is_stale_once_somebody_saw_no_change_for_long(opened, clock):
    """Whatever its own clock says; and a store that was away shows nothing."""
    client, handle = opened
    clock.off = -1e6
    owner = killed(claim(client, handle, HERE))
    watch = Watch(client, handle.experiment_id, {"trial"}, THERE)
    assert Watch(client, handle.experiment_id, {"trial"}, HERE).live() == []  # locks decide there
    assert Watch(client, handle.experiment_id, {"other"}, THERE).live() == []

    def looked(seconds: float) -> bool:
        for _ in range(int(seconds / 20)):
            clock.now += 20
            watch.live()
        return bool(watch.live())

    assert looked(heartbeat.STALE - 20)
    owner._ended.clear()
    owner._beat()
    assert looked(heartbeat.STALE - 20)
    clock.now += 1000
    assert looked(heartbeat.STALE - 20)
    assert not looked(60)
    assert read_claims(client, handle.experiment_id) == []
    # The owner wakes up: it must not record beside the one who took over.
    with pytest.raises(Busy, match="its claim was given up"):
        owner.confirm()


def test_a_store_that_is_away_ends_no_trial(opened, clock):
    client, handle = opened
    owner = killed(claim(client, handle, HERE))
    owner._ended.clear()
    client._mlflow.delete_experiment(handle.experiment_id)  # every call fails now
    owner._beat()
    clock.now += 2 * heartbeat.STALE
    owner.confirm()
    owner.release()


IN_TURN = """
import os, sys
from harness.lib.locks import Busy
from harness.record.client import Client
from harness.record.heartbeat import Hold
uri, experiment, place, folder = sys.argv[1:]
client = Client(uri, seconds=60)
for n in range(5):
    claimed = Hold(client, experiment, "trial", place)
    try:
        claimed.acquire()
    except Busy:
        continue
    os.close(os.open(f"{folder}/inside", os.O_CREAT | os.O_EXCL))  # raises where another is inside
    open(f"{folder}/{place}.{n}", "x").close()
    claimed._beat()
    os.unlink(f"{folder}/inside")
    claimed.release()
"""


def test_of_processes_that_start_at_once_one_runs(opened, tmp_path):
    """Real ones, on a real database, over and over."""
    client, handle = opened
    uri, folder = f"sqlite:///{tmp_path / 'claims.db'}", tmp_path / "turns"
    folder.mkdir()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", IN_TURN, uri, handle.experiment_id, str(place), str(folder)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for place in range(3)
    ]
    assert [process.wait() for process in started] == [0, 0, 0]
    assert list(folder.iterdir())
    assert read_claims(client, handle.experiment_id) == []


def test_what_one_does_at_a_time_waits_for_its_turn(opened, tmp_path, monkeypatch):
    client, handle = opened
    monkeypatch.setattr(heartbeat, "POLL", 0.1)
    first = Hold(client, handle.experiment_id, "opening", THERE)
    first.acquire()
    order = []

    def second():
        with hold(client, handle, "opening", tmp_path):
            order.append("second")

    waiting = threading.Thread(target=second)
    waiting.start()
    until(lambda: len(read_claims(client, handle.experiment_id)) == 2, SOON)  # it has tried
    order.append("first")
    first.release()
    waiting.join()
    assert order == ["first", "second"]


@pytest.fixture
def place(tmp_path, monkeypatch, feature_cache):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_sweep_runs_what_others_do_not_and_waits_for_the_rest(place, monkeypatch, capfd):
    monkeypatch.setattr("harness.sweep.elsewhere.POLL", 0.2)
    file = write(place, "zero_shot", "clip", name="shared", fixed={"epochs": 1})
    trials, store = load_sweep(file).trials, Store()
    handle = store.open_sweep(load_sweep(file))
    theirs = Hold(store.client, handle.experiment_id, trials[0].id, THERE)
    theirs.acquire()
    host = socket.gethostname()

    def other():
        until(lambda: store.records(handle, [trials[1]]).get(trials[1].id, theirs) is not theirs, SOON)
        until(lambda: store.records(handle, [trials[1]])[trials[1].id].done, SOON)
        show_status("shared", trials, store, place / ".harness" / "trials", select=False)
        theirs.release()

    helper = threading.Thread(target=other)
    helper.start()
    assert run_sweep([file]) == 0
    helper.join()
    said = " ".join(capfd.readouterr().err.split())
    owner = f"process {os.getpid()} on {host}"
    assert f"note: 1 trials are being run by {owner}, with another storage folder" in said
    assert f"1 trials are being run by another sweep ({owner}); waiting for them" in said
    assert all(r.done for r in records("shared").values())
    assert re.search(
        rf"running: zero_shot .*: on {re.escape(host)} \(process {os.getpid()}\), heartbeat \d+ s ago",
        said,
    )
    assert read_claims(store.client, handle.experiment_id) == []


def test_what_ends_here_before_it_is_claimed_is_not_written_into_the_run_of_another(place):
    """It fails (other code than the sweep was started with), or the user stops it."""
    file = write(place, "clip", name="theirs")
    sweep, store = load_sweep(file), Store()
    (trial,), handle = sweep.trials, store.open_sweep(sweep)
    run = store.create_run(handle, trial, {})
    theirs = Hold(store.client, handle.experiment_id, trial.id, THERE)
    theirs.acquire()
    code = dataclasses.replace(Provenance.of([trial]), code={code_key(trial): "another"})
    task = Task(handle, sweep.file.resources, code, place / "storage", str(place))
    ended = attempt(trial, task)
    assert (ended.outcome, "is not the one that the sweep was started with" in ended.reason) == ("busy", True)
    record_interrupted([trial], task, "stopped by Ctrl-C")
    untouched = store.client.get_run(run)
    assert (untouched.status, "failure" in untouched.tags) == ("RUNNING", False)
    theirs.release()
    assert attempt(trial, task).outcome == "failed"
    assert store.client.get_run(run).status == "FAILED"


def test_a_trial_by_hand_waits_for_a_sign_of_life(place, monkeypatch, capfd):
    """Then it leaves the trial to the other; without one, it takes it over."""
    file = write(place, "zero_shot", name="by_hand")
    (trial,), store = load_sweep(file).trials, Store()
    handle = store.open_sweep(load_sweep(file))
    theirs = Hold(store.client, handle.experiment_id, trial.id, THERE)
    theirs.acquire()
    monkeypatch.setattr(heartbeat, "POLL", 0.1)
    assert train_command.main([file, "--trial", trial.id]) == 1
    assert f"busy: it is being run by process {os.getpid()} on" in capfd.readouterr().err
    killed(theirs)
    monkeypatch.setattr(heartbeat, "STALE", 0.5)
    assert train_command.main([file, "--trial", trial.id]) == 0
    assert records("by_hand")[trial.id].done
    assert read_claims(store.client, handle.experiment_id) == []
