import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from harness.lib.processes import in_own_process


def write_pid(file: Path) -> None:
    file.write_text(str(os.getpid()))


def refuse(reason: str) -> None:
    raise ValueError(reason)


def die() -> None:
    os._exit(7)


def sleep(file: Path) -> None:
    write_pid(file.with_suffix(".tmp"))
    file.with_suffix(".tmp").rename(file)
    time.sleep(600)


def test_it_runs_in_another_process_that_is_gone_afterwards(tmp_path):
    in_own_process(write_pid, tmp_path / "pid")
    pid = int((tmp_path / "pid").read_text())
    assert pid != os.getpid()
    assert not psutil.pid_exists(pid)


def test_its_exception_is_raised_here():
    with pytest.raises(ValueError, match="no room"):
        in_own_process(refuse, "no room")


def test_its_death_is_told():
    with pytest.raises(RuntimeError, match=r"the process of die died \(exit code 7\)"):
        in_own_process(die)


def test_an_interruption_ends_it(tmp_path):
    # A shell that started the tests in the background has them, and so this script, ignore SIGINT.
    code = (
        "import pathlib, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from harness.lib.processes import in_own_process; from tests.lib.test_processes import sleep\n"
        "if __name__ == '__main__': in_own_process(sleep, pathlib.Path(sys.argv[1]))"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "pid")], env=environment, stderr=subprocess.DEVNULL
    )
    while not (tmp_path / "pid").exists():
        assert parent.poll() is None
        time.sleep(0.05)
    child = int((tmp_path / "pid").read_text())
    parent.send_signal(signal.SIGINT)
    parent.wait(timeout=60)
    assert not psutil.pid_exists(child)
