"""Files and directories that are complete or absent."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from harness.lib.files import atomic_write, cache_directory, complete_directory, file_digest
from harness.lib.watchdog import Watchdog
from harness.training.checkpoint import Checkpoints

ROOT = Path(__file__).parents[2]


def test_a_file_appears_at_the_end_of_the_block(tmp_path):
    file = tmp_path / "new" / "directory" / "a.txt"
    with atomic_write(file, "w", sync=True) as stream:
        stream.write("café\n")
        stream.flush()
        assert Path(stream.name).parent == file.parent
        assert not file.exists()
    assert file.read_bytes() == "café\n".encode()
    assert list(file.parent.iterdir()) == [file]


def test_bytes_are_the_default_and_numpy_adds_no_suffix(tmp_path):
    with atomic_write(tmp_path / "a") as stream:
        np.save(stream, np.arange(3))
    assert np.load(tmp_path / "a").tolist() == [0, 1, 2]
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_no_temporary(tmp_path, error):
    file = tmp_path / "a.txt"
    for before in ([], ["a.txt"]):
        assert os.listdir(tmp_path) == before
        with pytest.raises(error), atomic_write(file, "w") as stream:  # noqa: PT012
            stream.write("half of it")
            stream.flush()
            raise error
        assert os.listdir(tmp_path) == before
        file.write_text("old")
    assert file.read_text() == "old"


def test_a_file_that_cannot_be_renamed_leaves_no_temporary(tmp_path):
    (tmp_path / "a" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="a"), atomic_write(tmp_path / "a", "w") as stream:
        stream.write("a directory is in the way")
    assert os.listdir(tmp_path) == ["a"]


WRITER = """
import sys
from pathlib import Path
from harness.lib.files import atomic_write
for _ in range(200):
    with atomic_write(Path(sys.argv[1]), "w") as stream:
        for _ in range(20):
            stream.write(sys.argv[2] * 500)
            stream.flush()
"""


def test_two_writers_at_once_leave_one_complete_file(tmp_path):
    """Two processes and two threads of this one; a reader sees one writer's content at every moment."""
    file = tmp_path / "a.txt"
    command = [sys.executable, "-c", WRITER, str(file)]
    writers = [subprocess.Popen([*command, letter], cwd=ROOT) for letter in "ab"]

    def write(letter):
        for _ in range(200):
            with atomic_write(file, "w") as stream:
                stream.write(letter * 10_000)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "cd"]
    for thread in threads:
        thread.start()
    contents = set()
    while any(w.poll() is None for w in writers) or any(t.is_alive() for t in threads):
        if file.exists():
            contents.add(file.read_text())
    assert [w.returncode for w in writers] == [0, 0]
    assert contents <= {letter * 10_000 for letter in "abcd"}
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_an_ordinary_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        (tmp_path / "plain").write_text("")
        with atomic_write(tmp_path / "atomic"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_name_may_depend_on_the_content(tmp_path):
    with atomic_write(tmp_path / "a", "w", final_name=lambda file: f"{len(file.read_text())}.txt") as stream:
        stream.write("four")
    assert os.listdir(tmp_path) == ["4.txt"]


def test_no_descriptor_is_leaked(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for i in range(10):
        with atomic_write(tmp_path / str(i), "w") as stream:
            stream.write("a")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_directory_is_complete_or_absent(tmp_path):
    with complete_directory(tmp_path / "a") as part:
        (part / "file").write_text("content")
        assert not (tmp_path / "a").exists()
    assert os.listdir(tmp_path / "a") == ["file"]
    with pytest.raises(ValueError, match="half"), complete_directory(tmp_path / "b") as part:  # noqa: PT012
        (part / "file").write_text("half")
        raise ValueError("half")
    assert os.listdir(tmp_path) == ["a"]


def test_a_cached_digest_follows_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "a"
    file.write_bytes(b"one")
    assert file_digest(file) == file_digest(file)
    (memo,) = (cache_directory() / "digests").iterdir()
    first = file_digest(file)
    file.write_bytes(b"three")
    assert file_digest(file) != first
    memo.write_text("[[1")
    assert file_digest(file) != first


def test_what_a_killed_process_left_of_a_checkpoint_is_removed(tmp_path):
    leftover = tmp_path / ".epoch_0001.0123.tmp"
    leftover.write_bytes(b"half")
    Checkpoints(tmp_path).save(1, {"a": 1})
    assert [f.name[:11] for f in tmp_path.iterdir()] == ["epoch_0001."]


def test_a_heartbeat_does_not_bring_back_the_directory_of_a_finished_trial(tmp_path):
    Watchdog(None, stall=1, deadline=None)._write_heartbeat(tmp_path / "finished", 0)
    assert not (tmp_path / "finished").exists()
