"""The MLflow UI in a browser with a fresh profile: a sweep opens as a comparison, without a click.

`HARNESS_SCREENSHOTS=DIRECTORY` keeps what was seen; with `HARNESS_STORE=FILE` the sweep `quickstart` is the
one of that store: so the screenshots of the documents are made.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.record import summary
from harness.record.store import Store
from harness.report.publish import publish_curves, publish_report
from harness.report.write import write_report
from tests import recorded, small
from tests.sweep.paced import free_port

pytestmark = pytest.mark.cluster
METHODS = ("clip", "triplet", "small_loss", "npc", "mscn", "oracle")
GRID = {"seed": [0, 1], "noise_ratio": [0, 0.4, 0.6]}
TRACES = """() => [...document.querySelectorAll('.js-plotly-plot')].map(
  plot => (plot.data || []).flatMap(
    trace => [trace.name, ...(trace.text || []), ...(trace.y || [])].map(String)))"""
SECONDS = 60_000  # for a chart to be drawn, in ms: a limit for a page that never will


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A finished sweep of 36 trials, one of 600, and a search."""
    folder = tmp_path_factory.mktemp("store")
    file = folder / "mlflow.db"
    given = os.environ.get("HARNESS_STORE")
    if given:
        shutil.copy(given, file)
    store = Store(f"sqlite:///{file}")
    if not given:
        finish(store, small.sweep(*METHODS, name="quickstart", grid=GRID), folder)
    many = {"seed": list(range(5)), "noise_ratio": [0, 0.2, 0.4, 0.6, 0.8], "weight_decay": [0.1, 0.2]}
    many["noise_granularity"] = ["caption", "image"]
    finish(store, small.sweep(*METHODS, name="many", grid=many), folder)
    search = {"seed": [0], "noise_ratio": [0.4], "weight_decay": [0.1, 0.2, 0.3]}
    finish(store, small.sweep("clip", "oracle", name="search", grid=search, select=True), folder)
    return store


def finish(store, sweep, folder):
    handle = publish_curves(store, recorded.fill(store, sweep))
    publish_report(store, handle, write_report(store, sweep.name, folder / "reports" / sweep.name))


@pytest.fixture(scope="module")
def server(store):
    """`mlflow ui` on the store; what its addresses begin with."""
    port = free_port()
    file = Path(store.uri.removeprefix("sqlite:///"))
    log = file.with_suffix(".log")
    with open(log, "w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "ui", "--port", str(port), "--workers", "1"],
            cwd=file.parent,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )
    until = time.monotonic() + 300
    while "Application startup complete" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}"
    os.killpg(process.pid, 15)
    process.wait(60)


@pytest.fixture
def page(browser):
    """A page of a fresh profile."""
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    yield context.new_page()
    context.close()


def links(store, server, name):
    experiment_id = store.client.experiment_id(name)
    return {
        title: address.replace("http://127.0.0.1:5000", server)
        for title, address in summary.views(store, experiment_id)
    }


def look(page, name):
    """Keep what is seen, for the documents; without paths of this machine and the panel of MLflow's
    assistant, which opens by itself.
    """
    folder = os.environ.get("HARNESS_SCREENSHOTS")
    if folder:
        page.locator('[data-component-id="mlflow.assistant.chat_panel.close"]').click()
        page.wait_for_timeout(1500)  # until charts have grown to their size
        leaves = "[...document.querySelectorAll('*')].filter(e => !e.children.length)"
        page.evaluate(f"{leaves}.forEach(e => e.textContent.includes('file:///') && (e.textContent = ''))")
        page.screenshot(path=f"{folder}/{name}.png")


def charts(page):
    """Names and labels in each chart on the page, once one has been drawn."""
    page.wait_for_function(f"() => ({TRACES})().some(texts => texts.length)", timeout=SECONDS)
    return page.evaluate(TRACES)


def shows(page, *names):
    """Whether one chart shows all these. The UI draws charts as they come into view, one after another."""
    try:
        page.wait_for_function(
            f"names => ({TRACES})().some(texts => names.every(n => texts.some(t => t.startsWith(n))))",
            arg=list(names),
            timeout=SECONDS,
        )
    except Exception:
        pytest.fail(f"no chart shows {names}: {charts(page)}")


def shows_bars(page, *names):
    """Whether a chart has a bar for each of these names, which stand in its legend."""
    page.wait_for_function(
        """count => [...document.querySelectorAll('.js-plotly-plot')].some(
            plot => (plot.data || []).some(trace => trace.type === 'bar' && trace.x.length === count))""",
        arg=len(names),
        timeout=SECONDS,
    )
    text = page.evaluate("() => document.body.innerText")
    assert [name for name in names if name not in text] == []


def test_the_result_shows_the_curve_of_every_method(store, server, page):
    page.goto(links(store, server, "quickstart")["Result: rSum over the noise ratio"])
    shows(page, *METHODS)
    look(page, "mlflow-result")
    assert page.get_by_text("Model training").count()


def test_the_epochs_of_a_ratio_show_every_method(store, server, page):
    page.goto(links(store, server, "quickstart")["Epochs: noise 0.4"])
    page.wait_for_function(
        """lines => [...document.querySelectorAll('.js-plotly-plot')].some(plot => (plot.data || []).filter(
            trace => trace.type === 'scatter' && trace.x.length > 1).length >= lines)""",
        arg=len(METHODS),
        timeout=SECONDS,
    )
    text = page.evaluate("() => document.body.innerText")
    assert [m for m in METHODS if f"{m} (dev/rsum)" not in text] == []
    look(page, "mlflow-epochs")
    page.mouse.move(800, 600)  # over the charts
    for _ in range(10):
        page.mouse.wheel(0, 400)
        page.wait_for_timeout(200)
    shows_bars(page, *METHODS)


def test_test_rsum_by_method_and_ratio_shows_every_cell(store, server, page):
    page.goto(links(store, server, "quickstart")["Test rSum by method and ratio"])
    shows_bars(page, *(f"{m} noise={r:g}" for m in METHODS for r in (0, 0.4, 0.6)))


def test_cost_and_accuracy_shows_every_method(store, server, page):
    page.goto(links(store, server, "quickstart")["Cost and accuracy"])
    shows(page, *METHODS)
    look(page, "mlflow-cost")


def test_the_table_of_trials_shows_names_and_what_matters_first(store, server, page):
    page.goto(links(store, server, "quickstart")["All trials"])
    page.get_by_text("clip noise=0 seed=0").first.wait_for(timeout=SECONDS)
    heads = page.get_by_role("columnheader").all_inner_texts()
    assert {"test/rsum", "last/rsum", "cost/seconds"} <= {text.strip() for text in heads}
    look(page, "mlflow-trials")


def test_the_experiment_without_a_view_shows_the_curve_of_every_method(store, server, page):
    """Whoever goes to the charts of the experiment by themselves."""
    experiment_id = store.client.experiment_id("quickstart")
    page.goto(f"{server}/#/experiments/{experiment_id}/runs?{summary.MODEL_TRAINING}&compareRunsMode=CHART")
    shows(page, *METHODS)


def test_a_search_shows_its_settings_in_parallel_coordinates(store, server, page):
    page.goto(links(store, server, "search")["Search: settings and dev rSum"])
    page.locator(".parcoords, [data-testid*=parallel], canvas").first.wait_for(timeout=SECONDS)
    assert page.get_by_text("weight_decay").count()
    assert page.get_by_text("test/rsum").count() == 0


def test_the_report_is_shown_in_place(store, server, page):
    experiment_id = store.client.experiment_id("quickstart")
    (parent,) = store.parents(experiment_id)
    runs = f"{server}/#/experiments/{experiment_id}/runs"
    page.goto(f"{runs}/{parent.run_id}/artifacts/report.html?{summary.MODEL_TRAINING}")
    frame = page.frame_locator("iframe").first
    frame.get_by_role("heading", name="quickstart").first.wait_for(timeout=SECONDS)
    look(page, "mlflow-report")


def test_600_trials_open_at_once(store, server, page):
    """The first visit loads the UI itself; the second is timed."""
    address = links(store, server, "many")["Result: rSum over the noise ratio"]
    for _ in range(2):
        page.goto("about:blank")
        began = time.monotonic()
        page.goto(address)
        charts(page)
    seconds = time.monotonic() - began
    print(f"600 trials: first chart after {seconds:.1f} s")
    shows(page, *(f"{m} (weight_decay={w})" for m in METHODS for w in (0.1, 0.2)))


def test_the_page_of_600_trials_is_small_and_ready_at_once(store, page):
    file = Path(store.uri.removeprefix("sqlite:///")).parent / "reports" / "many" / "report.html"
    assert file.stat().st_size < 3_000_000
    began = time.monotonic()
    page.goto(file.as_uri())
    page.get_by_text("unfold all").click()
    seconds = time.monotonic() - began
    print(f"page of 600 trials: {file.stat().st_size / 1e6:.1f} MB, ready after {seconds:.1f} s")


def test_two_sweeps_are_compared_by_cell(store, server, page):
    """MLflow's comparison of two experiments: the same metrics and tags, so it groups over both."""
    both = [store.client.experiment_id(name) for name in ("quickstart", "many")]
    listed = ",".join(f"%22{i}%22" for i in both)
    query = f"experiments=[{listed}]&{summary.MODEL_TRAINING}&compareRunsMode=CHART"
    page.goto(f"{server}/#/compare-experiments/s?{query}&searchFilter=tags.kind+%3D+%27row%27")
    shows(page, "clip", "clip (weight_decay=0.1)")
