"""What every registered method must do. No list of names: a new method is tested by being registered."""

from __future__ import annotations

import ast
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.config.trial import method_class
from methods import FAMILIES, METHODS
from methods.base import Method
from tests import build, small
from tests.forked import Group
from tests.processes import few_embeddings, train_cases

ROOT = Path(__file__).parents[1]
ALL = sorted(METHODS)
TRAINED = [name for name in ALL if method_class(name).trains]
OTHERS = [name for name in TRAINED if name not in small.REPRESENTATIVES]
# In every run: dropout on every method, and the plainest one on the other backbone.
ON_TWO_PROCESSES = [
    *((name, "clip, dropout") for name in TRAINED),
    *(("clip", setting) for setting in ("SGR, dropout", "SAF")),
]
# Towers without dropout are a part of those with it, and SAF is SGR's other half: once, with second
# derivatives.
MORE_ON_TWO_PROCESSES = [
    *((name, "SGR, dropout") for name in (*sorted(small.REPRESENTATIVES - {"clip"}), OTHERS[0])),
    *((name, "SAF") for name in sorted(small.REPRESENTATIVES) if method_class(name).uses_clean_data),
]


def run(name, folder=None, **changes):
    """Train three epochs; the records of each, the outcome, and the trainer."""
    trainer = build.trainer(name, folder=folder, **changes)
    trainer.resume()
    records = []
    outcome = trainer.fit(records.append)
    return records, outcome, trainer


@pytest.fixture(scope="module")
def finished():
    return {name: run(name) for name in ALL}


@pytest.fixture(scope="module")
def scrambled():
    """The same trials again, where the ground truth is turned around."""
    return {name: run(name, scramble_truth=True) for name in ALL}


@cache
def uninterrupted(name, setting):
    """In float64, as on two processes; what `run` returns. Read only."""
    return run(name, precision="fp64", **small.SETTINGS[setting])


def weights(trainer):
    return {k: v for k, v in trainer.method.state_dict().items() if v.is_floating_point()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", ALL)
def test_losses_are_finite_and_every_recall_is_recorded(finished, name):
    records, outcome, trainer = finished[name]
    assert len(records) == (3 if trainer.method.trains else 0)
    for record in records:
        assert np.isfinite(list(record.metrics.values())).all()
        assert "train/loss" in record.metrics  # negative with some methods
    assert 0 < outcome.metrics["test/rsum"] <= 600
    assert outcome.metrics["cost/networks_at_test"] == trainer.method.n_networks


@pytest.mark.parametrize("name", TRAINED)
def test_training_changes_every_network(finished, name):
    fresh = dict(build.method(name).named_parameters())
    for key, value in finished[name][2].method.named_parameters():
        if value.requires_grad and value.ndim > 1:
            assert not torch.equal(value, fresh[key]), f"{key} never moved"


@pytest.mark.parametrize("name", TRAINED)
def test_every_method_takes_the_same_number_of_steps(finished, name):
    """The pool that a method selects changes nothing about it; auxiliary batches come on top."""
    trainer = finished[name][2]
    beside = trainer.cost.pairs["train"] - 3 * trainer.steps * 16 * len(trainer.method.passes())
    assert (beside > 0) == (type(trainer.method).auxiliary_pools is not Method.auxiliary_pools)
    assert beside >= 0


@pytest.mark.parametrize("name", ALL)
def test_same_seed_same_numbers_other_seed_others(finished, scrambled, name):
    """What does not know the ground truth was run a second time with another one; it must not notice."""
    _, outcome, trainer = finished[name]
    _, again, other = run(name) if method_class(name).uses_ground_truth else scrambled[name]
    assert same(weights(trainer), weights(other))
    volatile = ("cost/",)
    assert {k: v for k, v in outcome.metrics.items() if not k.startswith(volatile)} == {
        k: v for k, v in again.metrics.items() if not k.startswith(volatile)
    }
    assert not same(*(weights(build.trainer(name, seed=seed)) for seed in (0, 1)))


@pytest.mark.parametrize("name", OTHERS)
def test_a_method_trains_on_region_features(name):
    """Those in `small.REPRESENTATIVES` do so in the tests below."""
    sgr = {**small.SGRAF, "module": "SGR"}
    data = small.regions(10)
    records, outcome, _ = run(name, backbone=sgr, epochs=2, batch_size=8, lr=2e-4, data=data)
    assert np.isfinite([record.metrics["train/loss"] for record in records]).all()
    assert 0 < outcome.metrics["last/rsum"] <= 600


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        *((name, "clip, dropout") for name in TRAINED),
        *((name, "SGR, dropout") for name in TRAINED if name in small.REPRESENTATIVES),
    ],
)
def test_a_resumed_trial_continues_bit_for_bit(name, setting, tmp_path):
    """With dropout, so that random streams are part of it."""
    changes = {**small.SETTINGS[setting], "precision": "fp64"}
    whole, _, trained = uninterrupted(name, setting)

    class Stop(Exception):
        pass

    last = trained.config.epochs - 1

    def stop_in_the_last(record):
        if record.epoch == last:  # trained and recorded, not saved
            raise Stop

    first = build.trainer(name, folder=tmp_path, **changes)
    with pytest.raises(Stop):
        first.fit(stop_in_the_last)
    records, _, resumed = run(name, folder=tmp_path, **changes)
    assert [r.epoch for r in records] == [last]
    assert same(weights(trained), weights(resumed))
    losses = [
        {k: v for k, v in r.metrics.items() if not k.startswith("seconds")} for r in (whole[last], records[0])
    ]
    assert losses[0] == losses[1]
    if whole[last].confidence is not None:
        assert (whole[last].confidence == records[0].confidence).all()


@pytest.mark.parametrize("name", ALL)
def test_confidence_is_a_share_for_each_pair_in_data_set_order(finished, name):
    records, _, trainer = finished[name]
    if type(trainer.method).confidence is Method.confidence:
        pytest.skip("has no confidence")  # `tests/methods/test_baselines.py` says which may have none
    assert records[-1].confidence is not None
    confidence = records[-1].confidence
    assert confidence.shape == (len(trainer.noise.image),)
    assert ((confidence >= 0) & (confidence <= 1)).all()
    assert confidence.std() > 0


@pytest.mark.parametrize("name", ALL)
def test_the_truth_does_not_reach_a_method(finished, scrambled, name):
    """Turn the truth around: only a method that declares that it knows it may notice."""
    knows = method_class(name).uses_ground_truth
    assert same(weights(finished[name][2]), weights(scrambled[name][2])) != knows


@pytest.mark.parametrize("name", TRAINED)
def test_the_clean_set_is_out_of_reach_unless_declared(finished, name):
    reachable = set(finished[name][2]._fetch().inputs)
    assert reachable == ({"train", "meta"} if method_class(name).uses_clean_data else {"train"})


@pytest.fixture(scope="module")
def two_processes(request, tmp_path_factory, feature_cache):
    """All cases of this run on two gloo processes, in one launch, in float64."""
    run("clip")  # the features are there before both ask
    tests = (item for item in request.session.items if "two_processes" in item.fixturenames)
    cases = [(test.callspec.params["name"], test.callspec.params["setting"]) for test in tests]
    return launch(2, cases, tmp_path_factory.mktemp("two"))


def launch(processes: int, cases: list[tuple[str, str]], out: Path) -> Path:
    """Train the cases on gloo processes, in one launch; the directory of what came out."""
    assert Group(processes, train_cases, out, cases).join() == [0] * processes
    return out


@pytest.mark.timeout(1800)  # one launch for all, on a machine that may be busy
@pytest.mark.parametrize(
    ("name", "setting"),
    [
        *ON_TWO_PROCESSES,
        *(pytest.param(*case, marks=pytest.mark.cluster) for case in MORE_ON_TWO_PROCESSES),
    ],
)
def test_two_processes_train_as_one(two_processes, name, setting):
    records, outcome, one = uninterrupted(name, setting)
    two = torch.load(two_processes / f"{name}-{setting}.pt", weights_only=True)
    assert two["processes"] == 2
    for key, value in weights(one).items():
        assert torch.allclose(value, two["weights"][key], atol=1e-4), key
    told = json.loads(two["metrics"])
    for record, metrics in zip(records, told["epochs"], strict=True):
        assert record.metrics["train/loss"] == pytest.approx(metrics["train/loss"], abs=1e-4)
        assert record.metrics["dev/rsum"] == pytest.approx(metrics["dev/rsum"])
    assert outcome.metrics["test/rsum"] == pytest.approx(told["test/rsum"])
    assert torch.allclose(few_embeddings(one), two["few"], atol=1e-6)


@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_eight_processes_train_batches_of_fewer_pairs(tmp_path, feature_cache):
    """Some processes have no rows: of a batch, of NCR's uneven pools, of a clean set of two pairs."""
    cases = [(name, "few pairs") for name in small.FEW_PAIRS]
    for name, _ in cases:  # pictures are stored before eight ask
        build.few_pairs(name)
    launch(8, cases, tmp_path)
    for name, setting in cases:
        one, records = build.few_pairs(name), []
        one.fit(records.append)
        eight = torch.load(tmp_path / f"{name}-{setting}.pt", weights_only=True)
        assert eight["processes"] == 8
        for key, value in weights(one).items():
            assert torch.allclose(value, eight["weights"][key], atol=1e-6), (name, key)
        for record, metrics in zip(records, json.loads(eight["metrics"])["epochs"], strict=True):
            assert record.metrics["train/loss"] == pytest.approx(metrics["train/loss"], abs=1e-4)
            assert record.metrics["dev/rsum"] == pytest.approx(metrics["dev/rsum"])


@pytest.mark.parametrize(
    "file",
    [
        "harness/training/trainer.py",
        *sorted(str(f.relative_to(ROOT)) for f in (ROOT / "harness" / "report").glob("*.py")),
        "harness/training/optimizers.py",
        "tests/test_conformance.py",
    ],
)
def test_shared_code_names_no_method(file):
    strings = [
        n.value
        for n in ast.walk(ast.parse((ROOT / file).read_text()))
        if isinstance(n, ast.Constant) and isinstance(n.value, str)
    ]
    assert not set(strings) & (
        set(METHODS) - {"clip"}
    )  # `clip` is a backbone too, and the simplest method to warm a cache with


@pytest.mark.parametrize("name", ALL)
def test_a_method_says_which_family_it_is_of(name):
    assert method_class(name).family in FAMILIES
    assert method_class(name).family != "other"
