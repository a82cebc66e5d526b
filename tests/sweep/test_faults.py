"""A machine that fails under a sweep: no memory, killed, stopped."""

from __future__ import annotations

import os
import re
import signal

import psutil
import pytest

from tests.sweep.paced import SOON, Running, records, until, whole, write

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]


def test_a_machine_whose_memory_runs_out(tmp_path):
    """Ray ends the worker each time, so the trial fails, and the sweep ends as it should."""
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


@pytest.mark.parametrize(("sign", "background"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
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
    assert (tmp_path / "results" / file.stem / "environment.json").is_file()  # its bundle is complete
    store, before = records(tmp_path)
    assert before[0].status == "KILLED"
    assert before[0].tags["failure"] == "stopped by Ctrl-C or SIGTERM"
    again = Running(tmp_path, file)
    assert again.ends() == 0, again.said()
    store, found = records(tmp_path)
    assert whole(store, found, alone)
    assert "stopped by Ctrl-C" in found[0].tags["history"]
