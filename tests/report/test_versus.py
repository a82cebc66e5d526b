"""Two sweeps side by side."""

from __future__ import annotations

from harness.record.store import Store
from harness.report.source import from_store
from harness.report.versus import write_versus
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

    assert line(alone, pair)[1:] == ["clip", "250.7 ± 5.4 (2)", "256.8 ± 1.4 (2)", "–", "other"]
    assert line(alone, again)[1:] == ["clip", "250.7 ± 5.4 (2)", "250.7 ± 5.4 (2)", "+0.0 (n=2)", "same"]
