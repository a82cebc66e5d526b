"""Checkpoints are whole or not used; one process at a time; a trial that hangs is ended."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from harness.lib.locks import Busy, acquire, is_locked, owner
from harness.lib.watchdog import OutOfTime, Watchdog, last_heartbeat, take_termination_report
from harness.record.recorder import PrintRecorder
from harness.record.types import DataChanged
from harness.training.checkpoint import Checkpoints
from harness.training.run_trial import run_trial
from tests import build, small

ROOT = Path(__file__).parents[2]


class Stop(Exception):
    pass


def stopped_in_the_last_epoch(folder: Path, name: str = "npc", **changes):
    """A trial with checkpoints of one and two epochs."""
    trainer = build.trainer(name, folder=folder, **changes)

    def stop(record):
        if record.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        trainer.fit(stop)
    return sorted(folder.glob("epoch_*"))


def test_a_name_has_the_digest_of_the_content(tmp_path):
    for file in stopped_in_the_last_epoch(tmp_path):
        assert file.name.split(".")[1] == hashlib.sha256(file.read_bytes()).hexdigest()[:32]


def test_checkpoints_are_some_minutes_apart(tmp_path, monkeypatch):
    clock = iter(range(0, 6000, 60))  # a minute passes at each look
    monkeypatch.setattr("harness.training.checkpoint.time", SimpleNamespace(monotonic=lambda: next(clock)))
    patient = Checkpoints(tmp_path, minutes=2.5)
    assert [patient.due, patient.due, patient.due] == [False, False, True]
    patient.save(1, {})
    assert not patient.due
    assert Checkpoints(tmp_path).due


def test_an_interrupted_trial_repeats_the_epochs_since_its_checkpoint(tmp_path):
    trainer = build.trainer("npc", folder=tmp_path)

    def stop(record):
        trainer.checkpoints.minutes = 60 * (record.epoch > 0)
        if record.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        trainer.fit(stop)
    again = build.trainer("npc", folder=tmp_path)
    assert again.resume() == ["resumed from epoch 1"]
    assert again.fit().weights == build.trainer("npc").fit().weights


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(tmp_path, damage):
    whole = build.trainer("npc").fit()
    first, second = stopped_in_the_last_epoch(tmp_path)
    assert (first.name[:10], second.name[:10]) == ("epoch_0001", "epoch_0002")
    damage(second)
    trainer = build.trainer("npc", folder=tmp_path)
    assert trainer.resume() == [
        "the checkpoint of 2 epochs is damaged (its content is not what was written)",
        "resumed from epoch 1",
    ]
    records = []
    outcome = trainer.fit(records.append)
    assert [r.epoch for r in records] == [1, 2]
    assert outcome.weights == whole.weights
    assert {k: v for k, v in outcome.metrics.items() if not k.startswith("cost")} == {
        k: v for k, v in whole.metrics.items() if not k.startswith("cost")
    }
    assert [f.name[:10] for f in sorted(tmp_path.glob("epoch_*"))] == ["epoch_0002", "epoch_0003"]


def test_both_damaged_begins_anew(tmp_path):
    for file in stopped_in_the_last_epoch(tmp_path):
        truncate(file)
    trainer = build.trainer("npc", folder=tmp_path)
    assert len(trainer.resume()) == 2
    assert trainer.state.epoch == 0


def test_a_checkpoint_beyond_the_record_would_leave_a_hole(tmp_path):
    stopped_in_the_last_epoch(tmp_path)
    trainer = build.trainer("npc", folder=tmp_path)
    assert trainer.resume(at_most=1)[0] == "the checkpoint of 2 epochs is not used: only 1 are on record"
    assert trainer.state.epoch == 1


def test_other_data_are_refused(tmp_path):
    stopped_in_the_last_epoch(tmp_path)
    with pytest.raises(DataChanged, match="was made on other data"):
        build.trainer("npc", folder=tmp_path, noise_seed=5).resume()


def test_another_network_begins_anew(tmp_path):
    stopped_in_the_last_epoch(tmp_path)
    trainer = build.trainer("npc", folder=tmp_path, backbone=small.backbone(head={"hidden": 32}))
    assert trainer.resume() == ["the checkpoint of 2 epochs is not used: it was made by another method"]
    assert trainer.state.epoch == 0


def test_what_is_kept_is_plain_data(tmp_path):
    """A checkpoint that would run code when it is opened is not opened."""

    class Evil:
        def __reduce__(self):
            return os.system, ("touch evil",)

    Checkpoints(tmp_path).save(1, {"identity": Evil()})
    trainer = build.trainer("npc", folder=tmp_path)
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        trainer.resume()
    assert not Path("evil").exists()


def test_a_full_disk_is_told_and_what_was_kept_stays(tmp_path):
    """A real one, of half a megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("a file system of its own cannot be mounted here (needs root)")
    try:
        checkpoints = Checkpoints(disk / "trial")
        checkpoints.save(1, {"a": torch.zeros(50_000)})
        with pytest.raises(OSError, match="the checkpoint of epoch 2 cannot be written"):
            checkpoints.save(2, {"a": torch.zeros(500_000)})
        assert checkpoints.newest(at_most=9)[0].name.startswith("epoch_0001")
        assert [f.name[:10] for f in (disk / "trial").iterdir()] == ["epoch_0001"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_one_process_at_a_time(tmp_path):
    folder = tmp_path / "trial"
    code = (
        f"import time; from pathlib import Path; from harness.lib.locks import acquire\nwith "
        f"acquire(Path({str(folder)!r})):\n print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            assert is_locked(folder)
            assert owner(folder).startswith(f"process {other.pid} on ")
            with pytest.raises(Busy, match=f"it is being run by process {other.pid}"), acquire(folder):
                pass
            with pytest.raises(Busy):
                run_trial(small.trial("clip"), PrintRecorder(), directory=folder)
            other.send_signal(signal.SIGKILL)  # what it holds goes with it
            other.wait()
            assert not is_locked(folder)
            with acquire(folder):
                assert is_locked(folder)
                shutil.rmtree(folder)
        finally:
            other.kill()
    with acquire(folder):
        pass


def test_a_trial_that_hangs_is_ended_and_says_where(tmp_path):
    code = (
        "import time; from pathlib import Path; from harness.lib.watchdog import Watchdog\n"
        f"with Watchdog(Path({str(tmp_path)!r}), stall=2, deadline=None) as watch:\n"
        " time.sleep(1)\n"  # before the first step nothing counts
        " for step in range(12): watch.heartbeat(f'step {step}'); time.sleep(0.1)\n"
        " stuck = lambda: time.sleep(3600)\n stuck()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=500)
    assert done.returncode == -signal.SIGKILL
    beat = last_heartbeat(tmp_path)
    assert beat.where == "step 11"
    assert beat.seconds_ago > 2
    words, details = take_termination_report(tmp_path)
    assert re.match(r"hung: no step for \d+ s \(resources.stall_minutes\) at step 11", words)
    assert "<lambda>" in details  # where it stood
    assert take_termination_report(tmp_path) == ("", "")


def test_a_deadline_ends_a_trial_and_keeps_what_is_done(tmp_path):
    clock = Watchdog(tmp_path, stall=60, deadline=1)
    with clock:
        clock.heartbeat("epoch 0, step 1")
        time.sleep(1.1)
        with pytest.raises(OutOfTime, match=r"resources.deadline_hours\) passed at epoch 0, step 2"):
            clock.heartbeat("epoch 0, step 2")


def test_every_part_of_a_trial_has_a_heartbeat():
    """Steps, passes over the training pairs, and rankings: a part without one would count as hung where it
    takes long.
    """
    trainer = build.trainer("npc")
    heard = []
    trainer.heartbeat = heard.append
    trainer.fit()
    assert {
        "pass over the training pairs",
        "ranking dev",
        "ranking test",
        "epoch 0, step 1 of 37",
        "epoch 2, step 37 of 37",
    } <= set(heard)
    assert np.unique([h for h in heard if h.startswith("epoch")]).size == 3 * 37
