"""A cluster whose parts fail, with the real ones: the sweep command as a process, Ray on several nodes, an
MLflow server. Workers and nodes that die, trials that hang and run out of time.
"""

from __future__ import annotations

import os
import re
import signal

import psutil
import pytest

from harness.record.verify import errors_of
from tests import build
from tests.sweep.paced import SOON, Running, records, until, whole, write

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]


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
