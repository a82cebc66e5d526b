"""Trials that are killed at a random point and started again: the same record to the last bit."""

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
OTHERS = [name for name in TRAINED if name not in small.REPRESENTATIVES]
# A process is killed in a trial of each representative method, and once in a random one of the other
# methods' trials (on two processes: of some). That these resume, and do on two processes what they
# do on one, the conformance suite compares for each of them.
CASES = [
    *([[name], n] for name in TRAINED if name in small.REPRESENTATIVES for n in (1, 2)),
    [[name for name in ALL if name not in small.REPRESENTATIVES], 1],
    [OTHERS[::5], 2],
]
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]


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
    ("names", "processes"), CASES, ids=["-".join([*names, str(processes)]) for names, processes in CASES]
)
def test_a_killed_trial_ends_as_if_nothing_had_happened(places, names, processes):
    folder, store, sweeps = places
    launcher = killing.Launcher()
    untouched, trials = sweeps[f"alone-{processes}"]
    expected = [trials[name] for name in names]
    assert launcher.launch(expected, untouched, folder, processes=processes) == [0] * processes

    place, trials = sweeps[f"killed-{processes}"]

    def left():
        records = store.records(place, [trials[name] for name in names])
        return [trials[name] for name in names if not (t := records.get(trials[name].id)) or not t.done]

    draw = random.Random(f"{' '.join(names)} {processes}")
    kills = 0
    # Twice where one process trains a representative: the second attempt resumes what was resumed.
    most = 2 if processes == 1 and set(names) <= small.REPRESENTATIVES else 1
    while kills < most and left():
        kills += any(launcher.launch(left(), place, folder, processes=processes, kill=draw))
    if left():
        assert launcher.launch(left(), place, folder, processes=processes) == [0] * processes
    assert kills, "it ended before it was killed"
    for name, trial in zip(names, expected, strict=True):
        alone, *wanted = content(store, untouched, trial)
        killed, *found = content(store, place, trials[name])
        assert alone.tags["weights_digest"] == killed.tags["weights_digest"], name
        assert found[:2] == wanted[:2], name
        assert found[2].keys() == wanted[2].keys(), name
        assert all(np.array_equal(found[2][path], wanted[2][path]) for path in wanted[2]), name
        assert alone.tags["processes"] == killed.tags["processes"] == str(processes)
        assert int(killed.tags["attempts"]) <= 1 + kills
        assert not place.directory(folder, trials[name]).exists()
