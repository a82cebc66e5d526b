"""Two sweeps side by side, and two processes that write one report."""

from __future__ import annotations

import threading
from pathlib import Path

from harness.lib.files import RESULTS
from harness.record.store import Store
from harness.report.__main__ import main as report
from harness.report.source import from_store
from harness.report.versus import write_versus
from harness.report.write import held
from tests import recorded, small


def test_one_network_is_not_compared_with_several(tmp_path):
    """The rows have one name where each sweep has one setting of it."""
    store = Store(f"sqlite:///{tmp_path / 'm.db'}")
    grid = {"noise_ratio": [0.4], "seed": [0, 1]}
    for name, networks in (("alone", 1), ("pair", 2), ("again", 1)):
        sweep = small.sweep("clip", name=name, grid=grid, fixed={"clip.n_networks": networks})
        recorded.fill(store, sweep, seed=networks)
    alone, pair, again = (from_store(store, name) for name in ("alone", "pair", "again"))

    def line(one, other):
        text = (write_versus(one, other, tmp_path / "versus") / "report.md").read_text()
        (found,) = (row for row in text.splitlines() if row.startswith("| 0.4"))
        return [cell.strip() for cell in found.strip("|").split("|")]

    _, row, one, other, difference, trials = line(alone, pair)
    assert (row, difference, trials) == ("clip", "–", "other")
    assert one != other
    _, row, one, other, difference, trials = line(alone, again)
    assert (row, difference, trials) == ("clip", "+0.0 (n=2)", "same")
    assert one == other


def test_a_report_waits_for_another_process_that_writes_it(tmp_path, monkeypatch):
    """It would remove the figures that the other is about to read."""
    monkeypatch.chdir(tmp_path)
    recorded.bundle(small.sweep("clip", name="made"), RESULTS / "made")
    folder = Path("reports") / "made"
    writing = threading.Thread(target=report, args=(["made"],))
    with held(folder):
        writing.start()
        writing.join(3)
        assert writing.is_alive()
        assert not folder.exists()
    writing.join()
    assert (folder / "report.html").is_file()
