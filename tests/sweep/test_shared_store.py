"""What sweeps and nodes share, with the real parts: a server that is away, a disk that is full or not shared,
sweeps that run the same trials at once.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from harness.config.sweep_file import load_sweep
from harness.lib.locks import acquire
from harness.record.heartbeat import read_claims
from harness.record.store import Store
from tests.sweep.paced import SOON, Running, records, until, whole, write

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]


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
    file = write(tmp_path, resources={"at_once": 1})
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
    file = write(tmp_path)
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


ALONE = """
import sys
from harness.record import heartbeat
heartbeat.STALE = 10.0
from tests.sweep.running import run_sweep
sys.exit(run_sweep(sys.argv[1:]))
"""


def test_two_machines_that_share_a_server_alone(server, tmp_path, alone):
    """Started at once, each with a storage of its own and without Ray: no trial runs twice. Then one machine
    goes, and the other takes over what it was running.
    """
    file = write(tmp_path, seeds=3)
    (tmp_path / "paced" / "pause").write_text("20")
    machines = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        machines.append(Running(tmp_path / name, file, "--tracking-uri", server.uri, code=ALONE))
    first, second = machines
    store = Store(server.uri)
    until(lambda: store.client.experiment_id(tmp_path.name) is not None, SOON)
    experiment = store.client.experiment_id(tmp_path.name)

    def claims():
        """What each process is running, once it may not withdraw any more."""
        return {c.process: c for c in read_claims(store.client, experiment) if c.beat}

    until(lambda: {first.process.pid, second.process.pid} <= claims().keys(), SOON)
    first.process.kill()
    first.process.wait()
    claimed = claims()[first.process.pid]
    (tmp_path / "paced" / "pause").write_text("0.1")
    assert second.ends() == 0, second.said()
    assert claimed.owner in second.said()
    store, found = records(tmp_path, server)
    assert whole(store, found, alone)
    assert all(r.tags["attempts"] == "1" for r in found.values() if r.trial.id != claimed.name)
