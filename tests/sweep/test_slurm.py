"""The jobs of `examples/slurm/` under a real SLURM: two nodes on this machine, and an MLflow server."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.sweep.paced import LATER, ROOT, SOON, free_port, records, until, whole, write

EXAMPLES = ROOT / "examples" / "slurm"
PARTS = ("munged", "slurmctld", "slurmd", "sbatch")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not all(map(shutil.which, PARTS)), reason="SLURM is not installed (apt install slurm-wlm munge)"
    ),
    pytest.mark.skipif(os.getuid() != 0, reason="nodes of SLURM are started by root"),
]


class Slurm:
    """A SLURM of its own, on ports of the loopback interface. What it starts can be told by `SLURM_CONF`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: list[subprocess.Popen] = []
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
        self.environment["SLURM_CONF"] = str(folder / "slurm.conf")

    def start(self) -> None:
        ports = [free_port() for _ in range(3)]
        (self.folder / "slurm.conf").write_text(self._configuration(*ports))
        # No part of it uses control groups, but slurmd loads a plugin for them.
        (self.folder / "cgroup.conf").write_text(
            f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={self.folder}\nCgroupAutomount=no\n"
        )
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed"}
        options = [f"--{option}={self.folder}/munge.{ending}" for option, ending in files.items()]
        # --force: folders of tests are for their owner only.
        self._daemon("munged", "--foreground", "--force", f"--log-file={self.folder}/munge.log", *options)
        until((self.folder / "munge.socket").exists, SOON)
        self._daemon("slurmctld", "-D")
        for node in ("n1", "n2"):
            (self.folder / "spool" / node).mkdir(parents=True)
            self._daemon("slurmd", "-D", "-N", node)
        until(lambda: self._idle() == 2, SOON)

    def _configuration(self, controller: int, *nodes: int) -> str:
        place, host = self.folder, socket.gethostname()
        return "\n".join(
            [
                "ClusterName=test",
                f"SlurmctldHost={host}(127.0.0.1)",
                f"SlurmctldPort={controller}",
                "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny",
                "SlurmUser=root",
                # What is requeued waits until the credentials of its former start have expired.
                f"AuthInfo=socket={place}/munge.socket,cred_expire=5",
                f"StateSaveLocation={place}/state",
                f"SlurmdSpoolDir={place}/spool/%n",
                f"SlurmctldPidFile={place}/slurmctld.pid",
                f"SlurmdPidFile={place}/%n.pid",
                f"PlugStackConfig={place}/plugstack.conf",
                "ProctrackType=proctrack/linuxproc",
                "TaskPlugin=task/none",
                "MpiDefault=none",
                "SelectType=select/cons_tres",
                "SelectTypeParameters=CR_CPU",
                "SchedulerParameters=sched_interval=2,batch_sched_delay=0",
                "SlurmdParameters=config_overrides",  # as many CPUs as it says here
                *(
                    f"NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2"
                    for i, port in enumerate(nodes, 1)
                ),
                "PartitionName=test Nodes=ALL Default=YES State=UP",
                "",
            ]
        )

    def _daemon(self, *command: str) -> None:
        with open(self.folder / f"{len(self.daemons)}-{command[0]}.out", "w") as log:
            self.daemons.append(
                subprocess.Popen(
                    command, env=self.environment, stdout=log, stderr=log, start_new_session=True
                )
            )

    def _idle(self) -> int:
        assert all(d.poll() is None for d in self.daemons), self.said(self.folder)
        asked = subprocess.run(
            ["sinfo", "-h", "-N", "-o", "%t"], env=self.environment, capture_output=True, text=True
        )
        return asked.stdout.split().count("idle")

    def stop(self) -> None:
        for process in self.processes():
            process.kill()
        for daemon in self.daemons:
            daemon.kill()
            daemon.wait()

    def processes(self, job: str | None = None) -> list[psutil.Process]:
        """Everything that belongs to it, or to one of its jobs."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
            except psutil.Error:
                continue
            mine = environment.get("SLURM_CONF") == self.environment["SLURM_CONF"]
            if mine and job in (None, environment.get("SLURM_JOB_ID")):
                found.append(process)
        return found

    def run(self, folder: Path, *command: str) -> str:
        """What a command of its prints, run in a folder."""
        done = subprocess.run(command, cwd=folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def jobs(self, job: str) -> list[dict[str, str]]:
        """A job, or those of an array, each as its fields."""
        lines = self.run(self.folder, "scontrol", "-o", "show", "job", job).splitlines()
        return [dict(field.split("=", 1) for field in line.split() if "=" in field) for line in lines]

    def ends(self, job: str) -> list[dict[str, str]]:
        """The same, once it has ended."""
        until(lambda: all(j["JobState"] in ENDED for j in self.jobs(job)), LATER)
        return self.jobs(job)

    def said(self, folder: Path) -> str:
        return "\n".join(file.read_text() for file in sorted([*folder.glob("*.log"), *folder.glob("*.out")]))


@pytest.fixture(scope="module")
def slurm(tmp_path_factory, feature_cache):
    made = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


def reaches(slurm: Slurm, folder: Path, mark: str) -> None:
    """Wait until a trial is at `SEED.EPOCH.RANK`."""
    mark_file = folder / "paced" / mark
    try:
        until(mark_file.exists, LATER)
    except AssertionError:
        pytest.fail(f"no trial came to {mark}:\n{slurm.said(folder)}")


def test_a_sweep_on_two_nodes_whose_time_is_up(slurm, server, tmp_path, alone):
    """It is stopped, queued again, and continues on a new Ray; nothing of either is left."""
    file = write(tmp_path)
    arguments = (str(file), "--tracking-uri", server.uri)
    job = slurm.run(
        tmp_path, "sbatch", "--parsable", "--cpus-per-task=1", str(EXAMPLES / "sweep.sbatch"), *arguments
    ).strip()
    reaches(slurm, tmp_path, "0.1.0")
    # As SLURM does some time before the limit, whose least unit is a minute (`--signal` in the job).
    slurm.run(tmp_path, "scancel", "--batch", "--signal=USR1", job)
    (ended,) = slurm.ends(job)
    said = slurm.said(tmp_path)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1"), said
    assert "run the same command to continue" in said
    store, found = records(tmp_path, server)
    assert whole(store, found, alone)
    assert "stopped by Ctrl-C or SIGTERM" in found[0].tags["history"]
    assert "resumed from epoch 1" in found[0].tags["history"]
    assert slurm.processes(job) == []


def test_an_array_of_trials_without_ray(slurm, server, tmp_path, alone):
    """From the plan to the record as the example says; one of them is at its time limit."""
    file = write(tmp_path)
    arguments = (str(file), "--tracking-uri", server.uri)
    plan = slurm.run(tmp_path, sys.executable, "-m", "harness.sweep", *arguments, "--dry-run")
    (tmp_path / "trials.txt").write_text(plan)
    job = slurm.run(
        tmp_path,
        *("sbatch", "--parsable", "--array=1-2", "--cpus-per-task=1"),
        *(str(EXAMPLES / "trials.sbatch"), "trials.txt", *arguments),
    ).strip()
    reaches(slurm, tmp_path, "1.1.0")
    slurm.run(tmp_path, "scancel", "--signal=INT", f"{job}_2")  # as SLURM does before the limit
    ended = slurm.ends(job)
    said = slurm.said(tmp_path)
    assert [(j["JobState"], j["ExitCode"]) for j in ended] == [("COMPLETED", "0:0")] * 2, said
    assert sorted(j["Restarts"] for j in ended) == ["0", "1"]
    store, found = records(tmp_path, server)
    assert whole(store, found, alone)
    assert "resumed from epoch 1" in found[1].tags["history"]
    plan = slurm.run(tmp_path, sys.executable, "-m", "harness.sweep", *arguments, "--dry-run")
    assert all(line.endswith(": done") for line in plan.splitlines())  # which the example leaves out
