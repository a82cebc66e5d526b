"""The store: a run is made once whatever fails, plans hold what a reader needs, old plans keep working."""

from __future__ import annotations

import json

import pytest
from mlflow.exceptions import MlflowException

from harness.config.trial import Trial
from harness.record.store import Store, divided, settings_of, trials_of
from harness.record.types import StoreError
from harness.report.source import from_store
from harness.report.versus import write_versus
from harness.report.write import write
from tests import recorded, small


@pytest.fixture
def opened(tmp_path):
    store = Store(f"sqlite:///{tmp_path / 'm.db'}")
    sweep = small.sweep("clip", "oracle", "clip_clean")
    return store, sweep, store.open_sweep(sweep)


def runs_of(store, handle):
    return store.client.search_runs(handle.experiment_id, "tags.kind = 'trial'")


def test_a_run_whose_creation_failed_after_it_was_made_is_made_once(opened, monkeypatch):
    """The store was busy when it answered: the second try finds the run by its creation."""
    store, sweep, handle = opened
    create, calls = store.client._mlflow.create_run, []

    def made_and_busy(*arguments, **options):
        run = create(*arguments, **options)
        calls.append(run)
        if len(calls) == 1:
            raise MlflowException("(sqlite3.OperationalError) database is locked")
        return run

    monkeypatch.setattr(store.client._mlflow, "create_run", made_and_busy)
    run_id = store.create_run(handle, sweep.trials[0], {"attempts": "1"})
    assert len(calls) == 1
    assert [r.run_id for r in runs_of(store, handle)] == [run_id] == [calls[0].info.run_id]


def test_a_sweep_that_was_deleted_in_mlflow_is_told(opened):
    store, sweep, handle = opened
    store.client._mlflow.delete_experiment("0")  # MLflow's own, which is nobody's sweep
    store = Store(store.uri)
    store.client._mlflow.delete_experiment(handle.experiment_id)
    for ask in (lambda: store.find_sweep(sweep.name), lambda: store.open_sweep(sweep)):
        with pytest.raises(StoreError, match="was deleted in MLflow: restore it"):
            ask()


def test_a_trial_that_has_just_ended_is_not_stopped(opened):
    """Ctrl-C at that moment goes on to the trials that are running."""
    store, sweep, handle = opened
    run_id = store.create_run(handle, sweep.trials[0], {"attempts": "1"})
    store.client.set_status(run_id, "FINISHED")
    store.stop(handle, sweep.trials[0], "stopped by Ctrl-C or SIGTERM")
    assert store.client.get_run(run_id).status == "FINISHED"


def test_a_run_that_a_server_made_twice_is_kept_once(opened, monkeypatch):
    """MLflow's own client repeats a request whose answer was lost."""
    store, sweep, handle = opened
    create = store.client._mlflow.create_run

    def twice(*arguments, **options):
        create(*arguments, **options)
        return create(*arguments, **options)

    monkeypatch.setattr(store.client._mlflow, "create_run", twice)
    monkeypatch.setattr(store.client, "_remote", True)
    run_id = store.create_run(handle, sweep.trials[0], {"attempts": "1"})
    assert [r.run_id for r in runs_of(store, handle)] == [run_id]


def test_a_store_that_does_not_answer_any_more_is_an_error_of_the_store(opened, monkeypatch):
    store, _, _ = opened

    def gone(run_id):
        raise MlflowException("API request to http://x failed with exception: Connection refused")

    monkeypatch.setattr(store.client._mlflow, "get_run", gone)
    with pytest.raises(StoreError, match="does not answer any more"):
        store.client.get_run("x")


def test_a_store_that_stays_busy_is_an_error_of_the_store(opened, monkeypatch):
    store, _, _ = opened

    def busy(run_id):
        raise MlflowException("(sqlite3.OperationalError) database is locked")

    monkeypatch.setattr(store.client._mlflow, "get_run", busy)
    monkeypatch.setattr(store.client, "_seconds", 0)
    with pytest.raises(StoreError, match=r"too busy to answer: .*database is locked"):
        store.client.get_run("x")


@pytest.mark.parametrize(
    ("settings", "shared"),
    [
        ([{"lr": 1.0, "seed": 0}, {"lr": 1.0, "seed": 1}], {"lr": 1.0}),
        ([{"lr": 1, "n": True}, {"lr": 1.0, "n": 1}], {}),
        ([{"hyper": {"a": 1}}, {"hyper": {}}], {}),
        ([{"a": 1}, {}], {}),
        ([{"a": 1}], {"a": 1}),
        ([], {}),
    ],
    ids=["equal", "equal but for the type", "nested", "one without", "one trial", "none"],
)
def test_a_plan_has_what_its_trials_share_once(settings, shared):
    """And gives each its own back, number for number."""
    plan = json.loads(json.dumps(divided(settings)))
    assert [repr(x) for x in map(sorted, map(dict.items, settings_of(plan)))] == [
        repr(sorted(x.items())) for x in settings
    ]
    assert plan["shared"] == shared
    assert not any(key in shared for own in plan["trials"] for key in own)


def test_a_plan_holds_ids_and_what_a_reader_must_know(opened):
    store, sweep, handle = opened
    record = store.read_sweep("small")
    assert [t.id for t in record.planned] == [t.id for t in sweep.trials]
    assert record.planned == sweep.trials
    facts = {name: (f.uses_clean_data, f.uses_ground_truth) for name, f in record.methods.items()}
    assert facts == {"clip": (False, False), "oracle": (False, True), "clip_clean": (True, False)}
    plan = json.loads(store.client.read(handle.parent_run, "plan.json"))
    older = {k: v for k, v in plan.items() if k not in ("ids", "methods")}
    older = {k: v for k, v in older.items() if k != "shared"} | {"trials": settings_of(plan)}
    assert [t.id for t in trials_of(older)] == plan["ids"]
    store.client.log_text(handle.parent_run, json.dumps(older), "plan.json")
    assert store.read_sweep("small").methods == record.methods


def test_a_plan_is_used_for_the_text_that_it_was_made_from(opened):
    store, sweep, _ = opened
    assert store.planned("small", sweep.text) == sweep.trials
    assert store.planned("small", sweep.text + "# changed") is None
    assert store.planned("never", sweep.text) is None


def test_a_copied_trial_has_an_id_of_its_own():
    trial = Trial.recorded(small.trial("clip").model_dump(mode="json"), "0" * 12)
    assert trial.id == "0" * 12
    assert trial.model_copy(update={"lr": 1.0}).id not in ("0" * 12, small.trial("clip").id)


def test_runs_superseded_by_older_versions_are_not_resumed(opened):
    store, sweep, handle = opened
    run_id = store.create_run(handle, sweep.trials[0], {"attempts": "1"})
    assert store.unfinished_run(handle, sweep.trials[0]).run_id == run_id
    store.client.set_tag(run_id, "given_up", "begun anew in another run: code a -> b")
    assert store.unfinished_run(handle, sweep.trials[0]) is None


def test_a_sweep_of_an_older_protocol_version_is_readable_and_never_compared(tmp_path):
    """As version 1 left it, without what came later."""
    store = Store(f"sqlite:///{tmp_path / 'm.db'}")
    grid = {"noise_ratio": [0, 0.4], "seed": [0, 1]}
    sweeps = [small.sweep("clip", "oracle", name=name, grid=grid) for name in ("old", "new")]
    handles = [recorded.fill(store, sweep) for sweep in sweeps]
    plan = json.loads(store.client.read(handles[0].parent_run, "plan.json"))
    later = ("search", "settings_from")
    plan = {**{k: v for k, v in plan.items() if k not in later}, "protocol_version": 1}
    store.client.log_text(handles[0].parent_run, json.dumps(plan), "plan.json")

    old, new = (from_store(store, name) for name in ("old", "new"))
    assert (old.sweep.protocol_version, new.sweep.protocol_version) == (1, 2)
    text = (write(old, tmp_path / "report") / "report.md").read_text()
    assert "**Recorded under protocol version 1: not to be compared with records of version 2.**" in text
    assert "- protocol version 1" in text
    assert "Recorded under" not in (write(new, tmp_path / "report") / "report.md").read_text()
    with pytest.raises(StoreError, match="records of different versions are not compared"):
        write_versus(old, new, tmp_path / "versus")

    plan["protocol_version"] = 99
    store.client.log_text(handles[0].parent_run, json.dumps(plan), "plan.json")
    with pytest.raises(StoreError, match="was made under protocol version 99, and this is version 2"):
        store.read_sweep("old")
