"""Time and memory of each command, as a process of its own, on what the working directory holds."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rich.table import Table

from harness.lib.console import console

DOORS = ("sweep", "train", "report", "data", "bench")
_SWEEP = Path("sweeps") / "quickstart.yaml"


def bench_startup(repeats: int) -> None:
    """Print the median seconds and the peak memory of the commands.

    `--help` of each, and, where there is a quickstart sweep with a record here, its `--status`, its
    `--dry-run` and its report.
    """
    commands = {f"{door} --help": ["-m", f"harness.{door}", "--help"] for door in DOORS}
    if _SWEEP.is_file() and Path("mlflow.db").is_file():
        commands |= {
            f"sweep {flag}": ["-m", "harness.sweep", str(_SWEEP), flag] for flag in ("--status", "--dry-run")
        }
        commands["report quickstart"] = ["-m", "harness.report", "quickstart"]
    table = Table("command", "s", "peak MB", title=f"median of {repeats} runs, {os.cpu_count()} CPUs")
    for name, command in commands.items():
        runs = [_measure(command) for _ in range(repeats)]
        seconds, megabytes = (statistics.median(values) for values in zip(*runs, strict=True))
        table.add_row(name, f"{seconds:.2f}", f"{megabytes:.0f}")
    console.print(table)


def _measure(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak MB of a Python process."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    usage = os.wait4(process.pid, 0)[2]
    process.returncode = 0  # it has been waited for
    return time.perf_counter() - began, usage.ru_maxrss / 1024
