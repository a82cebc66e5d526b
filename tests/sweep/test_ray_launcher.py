"""Sweeps under a real Ray: worker processes, retries, several processes a trial."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path

import pytest
import ray

from harness.record.store import Store
from harness.sweep.__main__ import main as sweep_command
from tests import build
from tests.sweep.running import records, write

ROOT = Path(__file__).parents[2]

FAILING = [
    "tests.misbehaving:Raises",
    "tests.misbehaving:Diverges",
    "tests.misbehaving:OutOfMemory",
    "tests.misbehaving:Dies",
]
pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def place(tmp_path_factory, feature_cache):
    """A working directory with a Ray of its own; one start for all tests here."""
    folder = tmp_path_factory.mktemp("work")
    path = os.pathsep.join([str(ROOT), *sys.path])
    with contextlib.chdir(folder):
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


@pytest.fixture(scope="module")
def failed(place):
    """A sweep in which all but one trial fail, each in another way."""
    file = write(place, "clip", *FAILING, name="faults")
    return file, sweep_command([file]), dict(records("faults"))


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


def test_a_rerun_takes_up_just_what_failed(failed, place, feature_cache):
    file, _, before = failed
    (feature_cache / "mended").touch()
    assert sweep_command([file]) == 0
    after = records("faults")
    assert all(r.done for r in after.values())
    clip = next(r for r in before.values() if r.done)
    assert after[clip.trial.id].run_id == clip.run_id  # not run again
    assert all("failure" not in r.tags for r in after.values())
    # The one that died after its first epoch went on from its checkpoint, and logged that epoch once.
    dies = next(r for r in after.values() if r.trial.method.endswith("Dies"))
    steps = [step for step, _ in Store().client.history(dies.run_id, "train/loss")]
    assert steps == [0, 1, 2]
    # All four are `clip` in disguise: same seed, same numbers, however often they were interrupted.
    assert len({r.metrics["test/rsum"] for r in after.values()}) == 1
    assert not list((place / ".harness" / "trials").glob("faults*"))
    told = dies.tags[
        "history"
    ].splitlines()  # attempts that died, one after another, then the one that was mended
    assert told[0] == "attempt 1, 1 epochs on record: its process ended without a report"
    assert told[1] == "resumed from epoch 1"
    assert dies.tags["attempts"] == "4"
    assert "attempt 3, 1 epochs on record: the worker process died, 3 times" in told


def test_two_processes_through_ray_train(place):
    """The same trial through TorchTrainer with two workers: same numbers as one process, recorded once."""
    fixed = {"precision": "fp64"}
    one = build.trainer("clip", precision="fp64").fit()
    file = write(place, "clip", name="processes", fixed=fixed, resources={"processes": 2})
    assert sweep_command([file]) == 0
    (record,) = records("processes").values()
    assert record.tags["processes"] == "2"
    assert record.metrics["test/rsum"] == pytest.approx(one.metrics["test/rsum"])
    assert record.metrics["dev/best_rsum"] == pytest.approx(one.metrics["dev/best_rsum"])


def test_what_a_sweep_file_says_is_no_instruction_to_ray(place):
    """Tune by itself runs as Python what stands in a mapping under `eval`."""
    file = write(
        place,
        "clip",
        name="literal",
        grid={"dataset": ["tests.small:literally"]},
        fixed={"dataset_options": {"eval": "1 + 1"}},
    )
    assert sweep_command([file]) == 0


def test_a_failure_in_one_of_two_processes_is_told_by_its_cause(place, feature_cache):
    (feature_cache / "mended").unlink(missing_ok=True)
    file = write(place, FAILING[1], name="twofaults", resources={"processes": 2})
    assert sweep_command([file]) == 1
    (record,) = records("twofaults").values()
    assert record.status == "FAILED"
    assert "the loss is nan in epoch 0" in record.tags["failure"]


def test_a_terminal_shows_a_live_table(tmp_path, feature_cache):
    """Under a pseudo-terminal of 80 x 24: nothing is wrapped, and the last picture has the means."""
    file = write(tmp_path, "clip", "oracle", name="live", grid={"noise_ratio": [0, 0.4]})
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.environ.update(TERM="xterm", PYTHONPATH=os.pathsep.join([str(ROOT), *sys.path]))
        os.execv(sys.executable, [sys.executable, "-m", "harness.sweep", file])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    output = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while chunk := os.read(terminal, 65536):
            output += chunk
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, text[-3000:]
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", text)]
    pictures = [i for i, line in enumerate(lines) if line.startswith("mean rSum so far")]
    assert len(pictures) > 3
    assert max(len(line) for i in pictures for line in lines[i - 4 : i + 4]) <= 80
    last = lines[pictures[-1] - 2 : pictures[-1]]
    assert [line.split()[0] for line in last] == ["clip", "oracle"]
    assert all(line.count("1/1") == 2 and re.search(r"\d\d\.\d 1/1", line) for line in last)
    assert "4 done, 0 running, 0 failed of 4" in text
