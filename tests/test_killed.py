"""Every registered method, killed at a random point and started again: the same record to the last bit."""

from __future__ import annotations

import random

import numpy as np
import pytest

from harness.config.trial import method_class
from harness.record.store import Store
from methods import METHODS
from tests import build, killing, small

ALL = sorted(METHODS)
TRAINED = [name for name in ALL if method_class(name).trains]


@pytest.fixture(scope="module")
def places(tmp_path_factory, feature_cache):
    """A store with a sweep for the trials that are left alone, and one for those that are killed."""
    folder = tmp_path_factory.mktemp("killed")
    build.trainer("clip")  # the features are there before several processes ask
    fixed = {**small.SETTINGS["clip, dropout"], "epochs": 2, "batch_size": 32}
    store = Store(f"sqlite:///{folder / 'mlflow.db'}")
    sweeps = {
        name: small.sweep(*ALL, name=name, fixed=fixed)
        for name in ("alone-1", "alone-2", "killed-1", "killed-2")
    }
    return (
        folder,
        store,
        {
            name: (store.open_sweep(sweep), {t.method: t for t in sweep.trials})
            for name, sweep in sweeps.items()
        },
    )


def done(store, place, trial):
    record = store.records(place, [trial]).get(trial.id)
    return record is not None and record.done


def content(store, place, trial):
    """What must be the same: metrics but costs, weights, every epoch's scalars and confidences."""
    record = store.records(place, [trial])[trial.id]
    assert record.done
    metrics = {k: v for k, v in record.metrics.items() if not k.startswith(("cost/", "seconds/"))}
    confidences = {
        path: store.read_array(record.run_id, path)["confidence"]
        for path in store.client.artifacts(record.run_id, "confidence")
    }
    epochs = {
        k: store.client.history(record.run_id, k)
        for k in metrics
        if k.startswith(("train/", "dev/rsum", "detection/"))
    }
    return record, metrics, epochs, confidences


@pytest.mark.parametrize(
    ("name", "processes"), [*((name, 1) for name in ALL), *((name, 2) for name in TRAINED)]
)
def test_a_killed_trial_ends_as_if_nothing_had_happened(places, name, processes):
    folder, store, sweeps = places
    beats = killing.Beats()
    place, trials = sweeps[f"alone-{processes}"]
    assert beats.launch(trials[name], place, folder, processes=processes) == [0] * processes
    alone, *expected = content(store, place, trials[name])

    place, trials = sweeps[f"killed-{processes}"]
    draw = random.Random(f"{name} {processes}")
    kills = 0
    while kills < 3 - processes and not done(store, place, trials[name]):
        kills += any(beats.launch(trials[name], place, folder, processes=processes, kill=draw))
    if not done(store, place, trials[name]):
        assert beats.launch(trials[name], place, folder, processes=processes) == [0] * processes
    killed, *found = content(store, place, trials[name])
    assert kills, "it ended before it was killed"
    assert alone.tags["weights_digest"] == killed.tags["weights_digest"]
    assert found[:2] == expected[:2]
    assert found[2].keys() == expected[2].keys()
    assert all(np.array_equal(found[2][path], expected[2][path]) for path in expected[2])
    assert int(killed.tags["attempts"]) <= 1 + kills
    assert not place.directory(folder, trials[name]).exists()
