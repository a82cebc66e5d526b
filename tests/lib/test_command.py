"""A command as a process: how it ends, and what it leaves on the terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES = """
from harness.lib.command import run

def main() -> int:
    for number in range({lines}):
        print(number)
    return 0

run(main)
"""
TRITON = """
import triton
from harness.lib.command import run
run(lambda: 3)
"""


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("lines", [1, 200_000])
def test_a_command_ends_quietly_where_its_output_is_cut_off(lines):
    """Once while it prints, and once with what is buffered until its end."""
    command = start(LINES.format(lines=lines))
    assert command.stdout
    command.stdout.close()
    assert command.stderr
    assert command.stderr.read() == ""
    assert command.wait(60) == 1


def test_a_command_that_loaded_triton_ends_quietly():
    pytest.importorskip("triton")
    command = start(TRITON)
    assert command.communicate(timeout=120) == ("", "")
    assert command.returncode == 3


@pytest.mark.parametrize(("module", "code"), [("torch.nn", 2), ("my_own", 1)])
def test_a_module_that_an_extra_installs_is_told_by_the_extra(module, code):
    """And any other one by its traceback."""
    command = start(
        f"""
import sys
from harness.lib.command import run

def main() -> int:
    sys.modules["torch"] = None  # as if it were not installed
    import {module}

run(main)
"""
    )
    _, told = command.communicate(timeout=120)
    assert command.returncode == code
    assert ("needs the extra `train`, for torch is not installed: pip install" in told) == (code == 2)
    assert ("Traceback" in told) == (code == 1)
