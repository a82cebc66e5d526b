"""Machines that fail, with the real parts: the sweep command as a process, Ray on several nodes, an MLflow
server, a full disk.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
import yaml
from ray.cluster_utils import Cluster

from harness.config.sweep_file import load_sweep
from harness.lib.locks import acquire
from harness.record.store import Store
from harness.record.verify import errors_of
from tests import build, small

ROOT = Path(__file__).parents[2]
PACED = "tests.misbehaving:Paced"
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
# Only a broken test reaches these: a slow machine takes many times as long as a quick one.
SOON, LATER = 300.0, 600.0


class Server:
    """A real `mlflow server` on a database that outlives it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--port",
            str(self.port),
            "--workers",
            "1",
            "--backend-store-uri",
            f"sqlite:///{self.folder / 'server.db'}",
        ]
        with open(self.folder / "server.log", "a") as log:
            self.process = subprocess.Popen(
                [*command, "--artifacts-destination", str(self.folder / "served")],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={
                    **os.environ,
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                },  # runners of evaluation jobs, which nobody needs here
            )
        until(lambda: self.answers(), SOON)

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{self.uri}/health", timeout=1).status == 200
        return False

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Running:
    """A sweep of paced trials as a process, and what it says."""

    def __init__(self, folder: Path, file: Path, *arguments: str, **environment: str) -> None:
        self.paced = folder / "paced"
        self.log = folder / f"{time.time_ns()}.log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "harness.sweep", str(file), *arguments],
                cwd=folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            )

    def reaches(self, mark: str) -> int:
        """Wait until a trial is at `SEED.EPOCH.RANK`; its process."""
        until(lambda: (self.paced / mark).exists() or self.process.poll() is not None, SOON)
        assert (self.paced / mark).exists(), self.said()
        return int((self.paced / mark).read_text())

    def ends(self) -> int:
        return self.process.wait(LATER)

    def said(self) -> str:
        return self.log.read_text()


def until(holds, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def write(folder: Path, *, seeds: int = 2, name: str | None = None, **changes) -> Path:
    (folder / "paced").mkdir(parents=True, exist_ok=True)
    (folder / "paced" / "pause").write_text("0.5")
    fixed = {f"{PACED}.folder": str(folder / "paced"), **changes.pop("fixed", {})}
    file = folder / f"{name or folder.name}.yaml"
    content = small.content(
        PACED, name=name or folder.name, grid={"seed": list(range(seeds))}, fixed=fixed, **changes
    )
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("server"))
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def cluster(feature_cache):
    """Three nodes on this machine: a head that runs no trial, and two that run one each."""
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    build.trainer("clip")  # features are there before several processes ask
    quick = {
        "health_check_initial_delay_ms": 1000,
        "health_check_period_ms": 500,
        "health_check_timeout_ms": 1000,
        "health_check_failure_threshold": 3,
    }
    made = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "resources": {"trial_slot": 2},
            "include_dashboard": False,
            "_system_config": quick,
        },
    )
    made.add_node(num_cpus=1)
    made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    made.shutdown()
    os.environ.pop("PYTHONPATH") if path is None else os.environ.update(PYTHONPATH=path)


@pytest.fixture(scope="module")
def alone(feature_cache):
    """What the trials give that are left alone: `clip` in disguise."""
    return {seed: build.trainer("clip", seed=seed).fit() for seed in range(3)}


def records(folder: Path, server: Server | None = None):
    store = Store(server.uri if server else f"sqlite:///{folder / 'mlflow.db'}")
    found = store.read_sweep(folder.name).records
    return store, {r.trial.seed: r for r in found.values()}


def whole(store, found, alone) -> bool:
    """Each is done, once, whole, and gives the numbers of a trial that was left alone."""
    experiment = store.client.get_run(found[0].run_id).experiment_id
    runs = store.client.search_runs(experiment, "tags.kind = 'trial'")
    assert len(runs) == len(found)
    for seed, record in found.items():
        assert record.done, record
        assert errors_of(store, record) == []
        assert record.metrics["test/rsum"] == alone[seed].metrics["test/rsum"]
        assert record.metrics["dev/best_rsum"] == alone[seed].metrics["dev/best_rsum"]
    return True


def test_a_worker_process_that_dies_is_started_again(cluster, server, tmp_path, alone):
    running = Running(tmp_path, write(tmp_path), "--address", cluster.address, "--tracking-uri", server.uri)
    os.kill(running.reaches("0.1.0"), signal.SIGKILL)
    assert running.ends() == 0, running.said()
    store, found = records(tmp_path, server)
    assert whole(store, found, alone)
    assert found[0].tags["attempts"] == "2"
    assert found[0].tags["history"].splitlines()[1] == "resumed from epoch 1"
    assert found[1].tags["attempts"] == "1"
    assert "2 done, 0 running, 0 failed of 2" in running.said()


def test_a_node_that_goes_takes_its_trial_to_another(cluster, server, tmp_path, alone):
    running = Running(tmp_path, write(tmp_path), "--address", cluster.address, "--tracking-uri", server.uri)
    for seed in (0, 1):
        running.reaches(f"{seed}.0.0")
    (tmp_path / "paced" / "pause").write_text("20")  # or a worker may end its trial before it notices
    pids = [running.reaches(f"{seed}.1.0") for seed in (0, 1)]
    node = next(iter(cluster.worker_nodes))
    cluster.remove_node(node, allow_graceful=False)
    (tmp_path / "paced" / "pause").write_text("0.5")
    until(lambda: not all(psutil.pid_exists(p) for p in pids), SOON)
    assert running.ends() == 0, running.said()
    cluster.add_node(num_cpus=1)
    store, found = records(tmp_path, server)
    assert whole(store, found, alone)
    assert sorted(r.tags["attempts"] for r in found.values()) == ["1", "2"]


def test_one_of_two_processes_that_dies(cluster, server, tmp_path):
    """The other waits for it in a collective operation, and raises too: the cause is the death."""
    file = write(tmp_path, seeds=1, resources={"processes": 2}, fixed={"precision": "fp64"})
    running = Running(tmp_path, file, "--address", cluster.address, "--tracking-uri", server.uri)
    os.kill(running.reaches("0.1.1"), signal.SIGKILL)
    assert running.ends() == 0, running.said()
    store, found = records(tmp_path, server)
    assert found[0].done
    assert errors_of(store, found[0]) == []
    assert (found[0].tags["attempts"], found[0].tags["processes"]) == ("2", "2")
    assert "resumed from epoch 1" in found[0].tags["history"]
    assert found[0].metrics["test/rsum"] == pytest.approx(
        build.trainer("clip", precision="fp64").fit().metrics["test/rsum"]
    )


def test_a_server_that_is_away_for_half_a_minute(cluster, server, tmp_path, alone):
    running = Running(tmp_path, write(tmp_path), "--address", cluster.address, "--tracking-uri", server.uri)
    running.reaches("0.1.0")
    server.stop()
    time.sleep(30)
    server.start()
    assert running.ends() == 0, running.said()
    store, found = records(tmp_path, server)
    assert whole(store, found, alone)
    assert {r.tags["attempts"] for r in found.values()} == {"1"}


def test_a_server_that_is_away_for_good(cluster, server, tmp_path, alone):
    """What was recorded stays; what was not goes on from its checkpoint once the server is back."""
    file = write(tmp_path, seeds=3, resources={"at_once": 1})
    impatient = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    running = Running(tmp_path, file, "--address", cluster.address, "--tracking-uri", server.uri, **impatient)
    running.reaches("1.1.0")
    server.stop()
    try:
        assert running.ends() == 1, running.said()
    finally:
        server.start()
    assert "does not take results any more" in running.said()
    assert "Traceback" not in running.said()
    store, before = records(tmp_path, server)
    assert {seed for seed, r in before.items() if r.done} == {0}
    again = Running(tmp_path, file, "--address", cluster.address, "--tracking-uri", server.uri)
    assert again.ends() == 0, again.said()
    store, found = records(tmp_path, server)
    assert whole(store, found, alone)
    assert found[0].run_id == before[0].run_id
    assert "resumed from epoch 1" in found[1].tags["history"]


def test_a_disk_that_is_full(cluster, server, tmp_path, alone):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("a file system of its own cannot be mounted here (needs root)")
    try:
        arguments = ("--address", cluster.address, "--tracking-uri", server.uri, "--storage", str(disk))
        file = write(tmp_path, seeds=1)
        running = Running(tmp_path, file, *arguments)
        assert running.ends() == 1, running.said()
        (record,) = records(tmp_path, server)[1].values()
        assert record.status == "FAILED"
        assert re.search(
            r"OSError: the checkpoint of epoch \d cannot be written to .* No space left on device",
            record.tags["failure"],
        )
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        again = Running(tmp_path, file, *arguments)
        assert again.ends() == 0, again.said()
        store, found = records(tmp_path, server)
        assert whole(store, found, alone)
        assert "cannot be written" in found[0].tags["history"]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_two_sweeps_of_one_file_at_once(cluster, server, tmp_path, alone):
    file = write(tmp_path, seeds=3)
    both = [
        Running(tmp_path, file, "--address", cluster.address, "--tracking-uri", server.uri) for _ in range(2)
    ]
    assert [r.ends() for r in both] == [0, 0], both[0].said() + both[1].said()
    store, found = records(tmp_path, server)
    assert whole(store, found, alone)
    assert {r.tags["attempts"] for r in found.values()} == {"1"}


def test_a_trial_that_another_process_holds_is_waited_for(cluster, server, tmp_path, alone):
    """And run, once that process has let go of it and not done it."""
    file = write(tmp_path, seeds=2)
    sweep = load_sweep(file)
    opened = Store(server.uri).open_sweep(sweep)
    with acquire(opened.directory(tmp_path / ".harness" / "trials", sweep.trials[0])):
        running = Running(tmp_path, file, "--address", cluster.address, "--tracking-uri", server.uri)
        until(lambda: "waiting for them" in running.said(), SOON)
        assert f"1 trials are being run by another sweep (process {os.getpid()} on " in running.said()
    assert running.ends() == 0, running.said()
    assert whole(*records(tmp_path, server), alone)


def test_a_trial_that_hangs_is_ended_and_goes_on(cluster, server, tmp_path, alone):
    file = write(tmp_path, seeds=1, resources={"stall_minutes": 0.05})
    (tmp_path / "paced" / "hang").touch()
    running = Running(tmp_path, file, "--address", cluster.address, "--tracking-uri", server.uri)
    assert running.ends() == 0, running.said()
    store, found = records(tmp_path, server)
    assert whole(store, found, alone)
    assert re.search(
        r"hung: no step for \d s \(resources.stall_minutes\) at ranking dev", found[0].tags["history"]
    )
    assert "in start_epoch" in store.client.read(found[0].run_id, "termination_report.txt").decode()


def test_a_deadline(cluster, server, tmp_path, alone):
    arguments = ("--address", cluster.address, "--tracking-uri", server.uri)
    file = write(tmp_path, seeds=1, resources={"deadline_hours": 0.9, "stall_minutes": 600})
    (tmp_path / "paced" / "late").touch()
    running = Running(tmp_path, file, *arguments)
    assert running.ends() == 1, running.said()
    (record,) = records(tmp_path, server)[1].values()
    assert (record.status, record.tags["failure"][:22]) == ("FAILED", "OutOfTime: the deadlin")
    assert Running(tmp_path, write(tmp_path, seeds=1), *arguments).ends() == 0
    store, found = records(tmp_path, server)
    assert whole(store, found, alone)
    assert "at epoch 1, step 1 of" in found[0].tags["history"]
    assert "resumed from epoch 1" in found[0].tags["history"]


def test_a_machine_whose_memory_runs_out(tmp_path, alone):
    """Ray ends the worker each time, so the trial fails; the sweep ends as it should, and with memory so does
    the trial.
    """
    file = write(tmp_path, seeds=1)
    running = Running(tmp_path, file, RAY_memory_usage_threshold="0.01", RAY_memory_monitor_refresh_ms="200")
    assert running.ends() == 1, running.said()
    (record,) = records(tmp_path)[1].values()
    assert record.status == "FAILED"
    assert re.match(
        r"the worker process died.*, 3 times|Ray ended its worker: OutOfMemoryError: .* running low on "
        r"memory",
        record.tags["failure"],
    )
    again = Running(tmp_path, file)
    assert again.ends() == 0, again.said()
    assert whole(*records(tmp_path), alone)


def test_a_sweep_that_is_killed_goes_on(tmp_path, alone):
    file = write(tmp_path, seeds=3, resources={"at_once": 1})
    running = Running(tmp_path, file)
    running.reaches("1.0.0")
    (tmp_path / "paced" / "pause").write_text("60")  # or its worker may end the trial before it notices
    worker = running.reaches("1.1.0")
    status = Running(tmp_path, file, "--status")
    assert status.ends() == 1
    assert re.search(rf"running: .*seed=1 \(\w+\): [^(]* ago \(process {worker} on ", status.said()), (
        status.said()
    )
    os.kill(running.process.pid, signal.SIGKILL)
    (tmp_path / "paced" / "pause").write_text("0.5")
    store, before = records(tmp_path)
    assert {seed for seed, r in before.items() if r.done} == {0}
    until(lambda: not psutil.pid_exists(worker), SOON)
    status = Running(tmp_path, file, "--status")
    assert status.ends() == 1
    assert "1 done, 1 interrupted, 1 to run" in " ".join(status.said().split())
    assert "its process ended without a report; last heartbeat: " in status.said()
    again = Running(tmp_path, file)
    assert again.ends() == 0, again.said()
    assert "3 trials, 1 done before, 2 to run" in again.said()
    store, found = records(tmp_path)
    assert whole(store, found, alone)
    assert found[0].run_id == before[0].run_id
    assert {s: r.tags["attempts"] for s, r in found.items()} == {0: "1", 1: "2", 2: "1"}


@pytest.mark.parametrize(
    ("sign", "background"), [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True)]
)
def test_a_sweep_that_is_stopped(tmp_path, alone, sign, background):
    """Also one that a shell started in the background, which ignores Ctrl-C."""
    file = write(tmp_path, seeds=2, resources={"at_once": 1})
    # A process that a shell has started in the background ignores SIGINT, and so may this one, and its
    # children.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if background else signal.default_int_handler)
    running = Running(tmp_path, file)
    signal.signal(signal.SIGINT, before)
    running.reaches("0.1.0")
    children = psutil.Process(running.process.pid).children(recursive=True)
    os.kill(running.process.pid, sign)
    assert running.ends() == 130, running.said()
    assert "stopped: 0 of 2 trials are done; run the same command to continue" in running.said()
    assert "Traceback" not in running.said()
    until(lambda: not any(c.is_running() and c.status() != psutil.STATUS_ZOMBIE for c in children), SOON)
    store, before = records(tmp_path)
    assert before[0].status == "KILLED"
    assert before[0].tags["failure"] == "stopped by Ctrl-C or SIGTERM"
    again = Running(tmp_path, file)
    assert again.ends() == 0, again.said()
    store, found = records(tmp_path)
    assert whole(store, found, alone)
    assert "stopped by Ctrl-C" in found[0].tags["history"]


def test_storage_that_a_node_does_not_share_is_told_before_anything_starts(cluster, server, tmp_path):
    """A fourth node in a mount namespace of its own, where another disk lies at the storage's place."""
    storage = tmp_path / "storage"
    storage.mkdir()
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("a node with another file system cannot be made here (needs root)")
    join = (
        f"mount -t tmpfs none {storage} && exec {sys.executable} -m ray.scripts.scripts start "
        f"--address={cluster.address} --num-cpus=0 --block"
    )
    with open(tmp_path / "node.log", "w") as log:
        node = subprocess.Popen(
            ["unshare", "-m", "bash", "-c", join], stdout=log, stderr=log, start_new_session=True
        )
    try:
        until(lambda: "Ray runtime started" in (tmp_path / "node.log").read_text(), SOON)
        file = write(tmp_path)
        running = Running(
            tmp_path,
            file,
            "--address",
            cluster.address,
            "--tracking-uri",
            server.uri,
            "--storage",
            str(storage),
        )
        assert running.ends() == 2, running.said()
        told = " ".join(running.said().split())
        assert "1 error, nothing was started" in told
        assert (
            f"does not share the directory {storage} with this machine (No such file or directory): name one "
            f"on storage that all nodes see with --storage" in told
        )
        assert Store(server.uri).find_sweep(tmp_path.name) is None
    finally:
        os.killpg(node.pid, signal.SIGKILL)


def test_a_database_file_is_no_store_for_several_nodes(cluster, tmp_path):
    running = Running(tmp_path, write(tmp_path), "--address", cluster.address)
    assert running.ends() == 2
    assert "is a file on this machine, and the cluster has" in running.said()
    assert "--tracking-uri http://HOST:5000" in running.said()
