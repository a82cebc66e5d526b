"""Sweeps of paced trials as processes of their own, and a server, for tests in which something fails."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import yaml

from harness.record.store import Store
from harness.record.verify import errors_of
from tests import small

ROOT = Path(__file__).parents[2]
PACED = "tests.misbehaving:Paced"
# Only a broken test reaches these: a slow machine takes many times as long as a quick one.
SOON, LATER = 300.0, 600.0


def free_port() -> int:
    """A port below those that the kernel gives to connections and above Ray's: nobody gets it by chance."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            port = random.SystemRandom().randrange(20_000, 32_000)
            probe.bind(("127.0.0.1", port))
            return port


class Server:
    """A real `mlflow server` on a database that outlives it.

    Args:
        store: the database; an SQLite file in the folder where it is not named.
        allowed: hosts under which it may be called besides its own default.
    """

    def __init__(
        self, folder: Path, store: str = "", *, workers: int = 1, allowed: str = "", **environment: str
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        self.options = {
            "port": self.port,
            "workers": workers,
            "backend-store-uri": store or f"sqlite:///{folder / 'server.db'}",
            "artifacts-destination": folder / "served",
            **({"allowed-hosts": f"{allowed}:{self.port}"} if allowed else {}),
        }
        # Without the runners of evaluation jobs: ten processes that nothing here needs.
        self.environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **environment}

    def start(self) -> None:
        options = [str(x) for key, value in self.options.items() for x in (f"--{key}", value)]
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *options],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **self.environment},
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
    """A sweep of paced trials as a process, and what it says.

    Args:
        code: a program to run in place of the command.
    """

    def __init__(self, folder: Path, file: Path, *arguments: str, code: str = "", **environment: str) -> None:
        self.paced = folder / "paced"
        self.log = folder / f"{time.time_ns()}.log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *(["-c", code] if code else ["-m", "harness.sweep"]), str(file), *arguments],
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
