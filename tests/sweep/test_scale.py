"""Many trials: 64 at once against one server with PostgreSQL, and thousands without growth or a
wrong count.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.evaluation.metrics import RECALLS, Ranking
from harness.record.recorder import MlflowRecorder
from harness.record.store import Store
from harness.record.types import EpochRecord, Outcome
from harness.training.run_trial import describe
from tests import build, small
from tests.sweep.paced import Server, free_port

pytestmark = pytest.mark.cluster
POSTGRES = next(
    iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)),
    Path(shutil.which("initdb") or "/nowhere/initdb").parent,
)
AT_ONCE, EPOCHS, METRICS = 64, 5, 20


@pytest.fixture
def postgres(tmp_path):
    """A PostgreSQL of its own, as Debian's package brings it. (It does not run as root.)"""
    if not (POSTGRES / "initdb").exists():
        pytest.skip("PostgreSQL is not installed (apt install postgresql)")
    user = {"user": "postgres"} if os.getuid() == 0 else {}
    folder, port = Path(tmp_path) / "postgres", free_port()
    folder.mkdir()
    if user:
        shutil.chown(folder, "postgres")
        for parent in folder.parents:  # pytest's folders are for their owner only
            if parent.owner() == "root" and len(parent.parts) > 2:
                parent.chmod(parent.stat().st_mode | 0o055)
    run = {"check": True, "capture_output": True, "cwd": folder, **user}
    subprocess.run(
        [POSTGRES / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "--no-sync"], **run
    )
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    subprocess.run(
        [POSTGRES / "pg_ctl", "-D", folder / "data", "-o", options, "-l", folder / "log", "-w", "start"],
        **{**run, "capture_output": False, "stdout": subprocess.DEVNULL},
    )
    yield f"postgresql+psycopg2://postgres@127.0.0.1:{port}/postgres"
    subprocess.run([POSTGRES / "pg_ctl", "-D", folder / "data", "-m", "immediate", "stop"], **run)


@pytest.fixture
def server(postgres, tmp_path):
    """With the connections that docs/clusters.md gives it."""
    made = Server(tmp_path, postgres, workers=2, MLFLOW_SQLALCHEMYSTORE_POOL_SIZE="30")
    made.start()
    yield made
    made.stop()


def test_64_trials_at_once_lose_nothing(server, feature_cache):
    """Each makes its run, tells its epochs with confidences, and finishes, all at the same time."""
    uri, log = server.uri, server.log
    made = build.trainer("clip")
    sweep = small.sweep("clip", name="many", grid={"seed": list(range(AT_ONCE))})
    opened = Store(uri).open_sweep(sweep)
    setup = describe(
        sweep.trials[0], small.load(), made.noise, made, fingerprint="f", environment={"code": "c"}
    )
    draw = np.random.default_rng(0)
    values = draw.random((AT_ONCE, EPOCHS, METRICS))
    test = small.load()["test"]
    i2t, t2i = (
        Ranking(*np.zeros((3, len(queries)), np.int64), np.zeros((len(queries), 5), np.int64))
        for queries in (test.images, test.captions)
    )

    def run(k: int) -> None:
        recorder = MlflowRecorder(opened, sweep.trials[k])
        recorder.start(replace(setup, trial=sweep.trials[k]))
        for epoch in range(EPOCHS):
            metrics = {"seconds/train": 1.0, **{f"train/m{j}": values[k, epoch, j] for j in range(METRICS)}}
            recorder.epoch(EpochRecord(epoch, metrics, values[k, epoch]))
        metrics = {f"test/{m}": values[k, 0, j] for j, m in enumerate((*RECALLS, "rsum"))}
        recorder.finish(Outcome(metrics, {"test": (i2t, t2i), "last": (i2t, t2i)}, "digest"))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(run, range(AT_ONCE)))
    store = Store(uri)
    found = store.records(opened, sweep.trials)
    assert len(found) == AT_ONCE
    assert all(r.done for r in found.values())
    assert len(store.client.search_runs(opened.experiment_id, "tags.kind = 'trial'")) == AT_ONCE
    for k, trial in enumerate(sweep.trials):
        record = found[trial.id]
        assert record.metrics["test/i2t_r1"] == values[k, 0, 0]
        for j in range(0, METRICS, 5):
            assert [v for _, v in sorted(store.client.history(record.run_id, f"train/m{j}"))] == values[
                k, :, j
            ].tolist()
    for trial in sweep.trials[::16]:
        assert len(store.client.artifacts(found[trial.id].run_id, "confidence")) == EPOCHS
    assert "deadlock" not in log.read_text().lower()
    assert " 500 " not in log.read_text()
