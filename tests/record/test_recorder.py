"""What a recorder writes when several start at once, and when an attempt resumes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from mlflow import MlflowClient

from harness.record.recorder import MlflowRecorder
from harness.record.store import Store
from harness.record.types import STOPPED_EARLY, AlreadyStopped, DataChanged, EpochRecord
from harness.training.run_trial import describe
from tests import build, small


def setup_of(trial, trainer):
    return describe(trial, small.load(), trainer.noise, trainer, fingerprint="f", environment={"code": "c"})


def test_runs_that_name_one_noise_index_at_once(tmp_path):
    """MLflow alone fails here: each of two runs finds the index absent, and one of the two inserts is
    refused.
    """

    sweep = small.sweep(*(m for m in ("clip", "triplet", "npc", "oracle", "small_loss", "mscn")), name="race")
    store = Store(f"sqlite:///{tmp_path / 'race.db'}")
    opened = store.open_sweep(sweep)
    trainers = [build.trainer(t.method) for t in sweep.trials]
    setups = [setup_of(t, made) for t, made in zip(sweep.trials, trainers, strict=True)]
    recorders = [MlflowRecorder(opened, t) for t in sweep.trials]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda pair: pair[0].start(pair[1]), zip(recorders, setups, strict=True)))
    inputs = [MlflowClient(store.uri).get_run(r.run_id).inputs.dataset_inputs for r in recorders]
    assert {i.dataset.digest for found in inputs for i in found} == {trainers[0].noise.digest}
    assert all(len(found) == 1 for found in inputs)


def test_what_an_attempt_may_go_on_with(tmp_path):
    """The same code and packages: in its run, wherever it runs. Other code: anew, in a run of its own. Other
    data: not at all.
    """
    sweep = small.sweep("clip", name="attempts")
    store = Store(f"sqlite:///{tmp_path / 'attempts.db'}")
    opened, made = store.open_sweep(sweep), build.trainer("clip")
    setup = setup_of(sweep.trials[0], made)

    def begin(**changes):
        recorder = MlflowRecorder(opened, sweep.trials[0])
        return recorder, recorder.start(replace(setup, **changes))

    first, recorded = begin()
    assert recorded == 0
    first.epoch(EpochRecord(0, {"seconds/train": 1.0}, None))
    second, recorded = begin(environment={**setup.environment, "device": "another machine"})
    assert (second.run_id, recorded) == (first.run_id, 1)
    tags = store.client.get_run(first.run_id).tags
    assert tags["attempts"] == "2"
    assert (
        tags["history"] == f"attempt 1, 1 epochs on record: its process ended without a report; device "
        f"{setup.environment['device']} -> another machine"
    )
    third, recorded = begin(environment={**setup.environment, "code": "other"})
    assert third.run_id != first.run_id
    assert recorded == 0
    superseded = store.client.get_run(first.run_id)
    assert superseded.status == "KILLED"
    assert (
        superseded.tags["superseded"]
        == f"restarted in another run: code {setup.environment['code']} -> other"
    )
    assert store.records(opened, sweep.trials)[sweep.trials[0].id].run_id == third.run_id
    with pytest.raises(DataChanged, match="the data of this trial changed since it was started"):
        begin(fingerprint="others", environment={**setup.environment, "code": "other"})


def test_a_trial_that_another_sweep_has_stopped_early_stays_so(tmp_path):
    """Unless the search stops no trials any more: then it goes on, and is not one that was stopped."""
    sweep = small.sweep("clip", name="stopped")
    store = Store(f"sqlite:///{tmp_path / 'stopped.db'}")
    opened, setup = store.open_sweep(sweep), setup_of(sweep.trials[0], build.trainer("clip"))
    MlflowRecorder(opened, sweep.trials[0], stops_early=True).start(setup)
    store.stop(opened, sweep.trials[0], "stopped after 1 epochs", tags={STOPPED_EARLY: "1"})
    with pytest.raises(AlreadyStopped, match="stopped after 1 epochs"):
        MlflowRecorder(opened, sweep.trials[0], stops_early=True).start(setup)
    assert store.record(opened, sweep.trials[0]).stopped_early
    MlflowRecorder(opened, sweep.trials[0]).start(setup)
    record = store.record(opened, sweep.trials[0])
    assert (record.status, record.stopped_early) == ("RUNNING", False)
