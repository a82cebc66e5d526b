"""What a recorder writes when several start at once, and when an attempt resumes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from harness.record.recorder import MlflowRecorder
from harness.record.store import Store
from harness.record.types import DataChanged, EpochRecord
from harness.training.run_trial import describe
from tests import build, small

ROOT = Path(__file__).parents[2]


def test_runs_that_name_one_noise_index_at_once(place, tmp_path):
    """MLflow alone fails here: each of two runs finds the index absent, and one of the two inserts is
    refused.
    """

    sweep = small.sweep(*(m for m in ("clip", "triplet", "npc", "oracle", "small_loss", "mscn")), name="race")
    store = Store(f"sqlite:///{tmp_path / 'race.db'}")
    opened = store.open_sweep(sweep)
    trainers = [build.trainer(t.method) for t in sweep.trials]
    setups = [
        describe(t, small.load(), made.noise, made) for t, made in zip(sweep.trials, trainers, strict=True)
    ]
    recorders = [MlflowRecorder(opened, t) for t in sweep.trials]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda pair: pair[0].start(pair[1]), zip(recorders, setups, strict=True)))
    inputs = [store.client.get_run(r.run_id).inputs.dataset_inputs for r in recorders]
    assert {i.dataset.digest for found in inputs for i in found} == {trainers[0].noise.digest}
    assert all(len(found) == 1 for found in inputs)


def test_what_an_attempt_may_go_on_with(tmp_path):
    """The same code and packages: in its run, wherever it runs. Other code: anew, in a run of its own. Other
    data: not at all.
    """
    sweep = small.sweep("clip", name="attempts")
    store = Store(f"sqlite:///{tmp_path / 'attempts.db'}")
    opened, made = store.open_sweep(sweep), build.trainer("clip")
    setup = describe(sweep.trials[0], small.load(), made.noise, made)

    def begin(**changes):
        recorder = MlflowRecorder(opened, sweep.trials[0])
        return recorder, recorder.start(replace(setup, **changes))

    first, recorded = begin()
    assert recorded == 0
    first.epoch(EpochRecord(0, {"seconds/train": 1.0}, None))
    second, recorded = begin(environment={**setup.environment, "device": "another machine"})
    assert (second.run_id, recorded) == (first.run_id, 1)
    tags = store.client.get_run(first.run_id).data.tags
    assert tags["attempts"] == "2"
    assert (
        tags["history"] == f"attempt 1, 1 epochs on record: its process ended without a report; device "
        f"{setup.environment['device']} -> another machine"
    )
    third, recorded = begin(environment={**setup.environment, "code": "other"})
    assert third.run_id != first.run_id
    assert recorded == 0
    given_up = store.client.get_run(first.run_id)
    assert given_up.info.status == "KILLED"
    assert (
        given_up.data.tags["given_up"]
        == f"begun anew in another run: code {setup.environment['code']} -> other"
    )
    assert store.records(opened, sweep.trials)[sweep.trials[0].id].run_id == third.run_id
    with pytest.raises(DataChanged, match="the data of this trial changed since it was begun"):
        begin(fingerprint="others", environment={**setup.environment, "code": "other"})
