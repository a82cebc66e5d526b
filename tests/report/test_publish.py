"""What a sweep shows of its result in the store: one point a ratio, runs of rows, labels, prepared views."""

from __future__ import annotations

import json

import pytest

from harness.record import summary
from harness.record.client import Client
from harness.record.store import NOTE, PARENT, Store
from harness.report.publish import publish_curves, publish_report
from harness.report.views import curve as curve_name
from harness.report.write import write_report
from tests import recorded, small
from tests.sweep.running import run_sweep, write

GRID = {"seed": [0, 1], "noise_ratio": [0, 0.4]}
PLACE = "tests.small:load/caption-level noise"


@pytest.fixture
def store(tmp_path):
    return Store(f"sqlite:///{tmp_path / 'm.db'}")


def publish(store, folder, *methods, grid=GRID, **changes):
    sweep = small.sweep(*methods, name="shown", grid=grid, **changes)
    handle = publish_curves(store, recorded.fill(store, sweep))
    publish_report(store, handle, write_report(store, "shown", folder / "report"))
    return sweep, handle


def curve(store, run_id, metric):
    history = store.client.history(run_id, metric)
    assert len(history) == len(dict(history)), "a step has one point"
    return dict(history)


def runs(store, handle, kind):
    return store.client.search_runs(handle.experiment_id, f"tags.kind = '{kind}'")


def rsum(store, handle, sweep, method, ratio):
    """The test rSum of each seed of a cell after the last epoch."""
    found = store.records(handle, sweep.trials).values()
    return [r.metrics["last/rsum"] for r in found if (r.trial.method, r.trial.noise_ratio) == (method, ratio)]


def test_the_parent_run_holds_the_curve_of_each_row(store, tmp_path):
    sweep, handle = publish(store, tmp_path, "clip", "oracle")
    (parent,) = runs(store, handle, "sweep")
    assert parent.run_id == handle.parent_run
    for method in ("clip", "oracle"):
        seeds = {100 * ratio: rsum(store, handle, sweep, method, ratio) for ratio in (0, 0.4)}
        for kind, of in (("rsum", lambda v: sum(v) / 2), ("rsum_lowest", min), ("rsum_highest", max)):
            found = curve(store, parent.run_id, f"{kind}/{PLACE}/{method}")
            assert found == pytest.approx({step: of(values) for step, values in seeds.items()})


def test_a_row_has_a_run_with_the_same_curve_and_its_colour_in_the_figures(store, tmp_path):
    _, handle = publish(store, tmp_path, "clip", "oracle")
    rows = {r.tags["row"]: r for r in runs(store, handle, "row")}
    assert set(rows) == {"clip", "oracle"}
    assert all(PARENT not in r.tags for r in rows.values()), "they stand beside the parent run"
    for row, run in rows.items():
        theirs = curve(store, handle.parent_run, f"rsum/{PLACE}/{row}")
        assert curve(store, run.run_id, f"rsum/{PLACE}") == theirs
    assert len({r.tags[summary.COLOUR] for r in rows.values()}) == 2


def test_a_sweep_that_is_continued_has_one_point_a_ratio(store, tmp_path):
    _, first = publish(store, tmp_path, "clip", "oracle")
    _, again = publish(store, tmp_path, "clip", "oracle")
    assert again.parent_run == first.parent_run
    assert len(runs(store, again, "row")) == 2

    grown, handle = publish(store, tmp_path, "clip", "oracle", grid={**GRID, "seed": [0, 1, 2]})
    (parent,) = runs(store, handle, "sweep")
    found = curve(store, parent.run_id, f"rsum/{PLACE}/clip")
    assert found[40] == pytest.approx(sum(rsum(store, handle, grown, "clip", 0.4)) / 3)
    assert {r.tags[PARENT] for r in runs(store, handle, "trial")} == {parent.run_id}
    assert len(runs(store, handle, "row")) == 2
    assert [t.id for t in store.read_sweep("shown").planned] == [t.id for t in grown.trials]

    _, wider = publish(
        store, tmp_path, "clip", "oracle", grid={"seed": [0, 1, 2], "noise_ratio": [0, 0.2, 0.4]}
    )
    assert wider.parent_run == parent.run_id, "a further ratio changes no point"
    assert sorted(curve(store, parent.run_id, f"rsum/{PLACE}/clip")) == [0, 20, 40]


def test_a_parent_run_that_was_left_half_renewed_is_repaired(store, tmp_path, monkeypatch):
    """The process dies once the new parent run counts, before the old one is gone."""
    _, handle = publish(store, tmp_path, "clip")
    monkeypatch.setattr(Client, "delete_run", lambda self, run_id: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        publish(store, tmp_path, "clip", grid={**GRID, "seed": [0, 1, 2]})
    monkeypatch.undo()
    assert len(runs(store, handle, "sweep")) == 2
    sweep, handle = publish(store, tmp_path, "clip", grid={**GRID, "seed": [0, 1, 2]})
    (parent,) = runs(store, handle, "sweep")
    assert {r.tags[PARENT] for r in runs(store, handle, "trial")} == {parent.run_id}
    assert len(store.read_sweep("shown").records) == len(sweep.trials)


def test_long_rows_keep_curves_of_their_own():
    """The rows of a search name all that varies, and MLflow's names of metrics have an end."""
    rows = [f"npc ({', '.join(f'setting_{i}=0.5' for i in range(9))}, last={k})" for k in (1, 2)]
    names = {curve_name("rsum", "emoji", "caption-level noise", row) for row in rows}
    assert len(names) == 2
    assert max(map(len, names)) <= 250


def test_runs_are_told_apart_by_name_and_say_what_they_are(store, tmp_path):
    grid = {**GRID, "noise_granularity": ["caption", "image"], "weight_decay": [0.1, 0.2]}
    _, handle = publish(store, tmp_path, "clip", grid=grid)
    trials = runs(store, handle, "trial")
    names = [r.tags["mlflow.runName"] for r in trials]
    assert len(set(names)) == len(names) == 16
    for run in trials:
        assert run.tags["row"] in ("clip (weight_decay=0.1)", "clip (weight_decay=0.2)")
        assert run.tags["mlflow.source.name"] == "sweeps/many.yaml"
        assert f"--trial {run.tags['trial_id']}" in run.tags[NOTE]


def test_an_older_store_gets_labels_and_views(store, tmp_path):
    """Runs without labels, an experiment without views."""
    sweep, handle = publish(store, tmp_path, "clip", "oracle")
    for run in runs(store, handle, "trial"):
        store.client.delete_tag(run.run_id, "row")
        store.client.set_tag(run.run_id, "mlflow.runName", "clip")
    summary.write_views(store, handle.experiment_id, {})
    publish(store, tmp_path, "clip", "oracle")
    labels = {r.tags["trial_id"]: r.tags["mlflow.runName"] for r in runs(store, handle, "trial")}
    assert labels[sweep.trials[0].id] == "clip noise=0 seed=0"
    assert summary.views(store, handle.experiment_id)


def test_views_that_people_saved_stay_and_ours_follow_the_sweep(store, tmp_path):
    _, handle = publish(store, tmp_path, "clip", "oracle")
    store.client.set_experiment_tag(handle.experiment_id, f"{summary.VIEW}mine", '{"name": "mine"}')
    assert "Epochs: noise 0.4" in dict(summary.views(store, handle.experiment_id))
    publish(store, tmp_path, "clip", "oracle", grid={"seed": [0, 1], "noise_ratio": [0, 0.2]})
    names = list(dict(summary.views(store, handle.experiment_id)))
    assert names[0] == "Result: rSum over the noise ratio"
    assert "Epochs: noise 0.2" in names
    assert "Epochs: noise 0.4" not in names
    assert f"{summary.VIEW}mine" in store.client.experiment_tags(handle.experiment_id)


@pytest.mark.parametrize("version", ["2.20.0", "3.18.1", ""])
def test_another_mlflow_gets_no_views_and_everything_else(store, tmp_path, monkeypatch, version):
    monkeypatch.setattr(Client, "ui_version", lambda self: version)
    _, handle = publish(store, tmp_path, "clip")
    assert summary.views(store, handle.experiment_id) == []
    assert curve(store, handle.parent_run, f"rsum/{PLACE}/clip")


def test_a_search_shows_dev_and_never_test(store, tmp_path):
    grid = {"seed": [0], "noise_ratio": [0.4], "weight_decay": [0.1, 0.2, 0.3]}
    _, handle = publish(store, tmp_path, "clip", grid=grid, select=True)
    tags = store.client.experiment_tags(handle.experiment_id)
    states = [json.loads(v)["state"] for k, v in tags.items() if k.startswith(summary.VIEW)]
    assert states
    assert not any("test/" in s or "last/" in s for s in states)
    records = store.records(handle, store.read_sweep("shown").planned).values()
    row = next(r for r in runs(store, handle, "row") if r.tags["row"].endswith("0.2)"))
    last = [r.metrics["dev/rsum"] for r in records if r.trial.weight_decay == 0.2]
    assert row.metrics[f"dev_rsum/{PLACE}"] == last[0]


def test_a_real_sweep_ends_with_its_links_its_report_and_its_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_sweep([write(tmp_path, "clip", "oracle", name="real")]) == 0
    store = Store()
    handle = store.find_sweep("real")
    assert handle
    links = summary.views(store, handle.experiment_id)
    said = capsys.readouterr().err.replace("\n", "")
    assert links
    assert all(address in said for _, address in links)
    page = (tmp_path / "reports" / "real" / "report.html").read_text()
    assert all(address.replace("&", "&amp;") in page for _, address in links)
    (parent,) = runs(store, handle, "sweep")
    assert store.client.read(parent.run_id, "report.html").decode() == page
    assert any(name.endswith(".png") for name in store.client.artifacts(parent.run_id, "figures"))
    for note in (parent.tags[NOTE], store.client.experiment_tags(handle.experiment_id)[NOTE]):
        assert all(address in note for _, address in links)
        assert "| clip" in note
    tags = store.client.experiment_tags(handle.experiment_id)
    assert tags["mlflow.experimentKind"] == "custom_model_development"
