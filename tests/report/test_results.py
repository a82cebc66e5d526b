from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure

from harness.config.labels import row_labels, run_labels, shared_and_own_settings
from harness.config.sweep_file import parse_sweep
from harness.record.types import MethodFacts, SweepRecord, TrialRecord
from harness.report.__main__ import main as report
from harness.report.accuracy import by_ratio, recalls_table, with_marks
from harness.report.cost import cost_figure, cost_tables
from harness.report.detection import scores_table
from harness.report.figures import marks_legend, styles
from harness.report.headline import headline
from harness.report.results import cells, needs, primary, tidy
from harness.report.stability import seeds_table, shares_table, stability, stability_table
from harness.report.tables import Cell, Table
from harness.report.write import _devices, _origin, _state, write
from harness.sweep.preflight import check_trial
from methods import FAMILIES, METHODS
from tests import golden, layouts, small

README = Path(__file__).parents[2] / "README.md"
DOCS = README.parent / "docs"


def frame(rows):
    """(row, ratio, seed, rsum, i2t_r1) with what else a tidy frame has."""
    made = pd.DataFrame(rows, columns=["row", "noise_ratio", "seed", "rsum", "i2t_r1"])
    for name in ("i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10"):
        made[name] = made["i2t_r1"]
    done = made["rsum"].notna()
    return made.assign(
        noise_seed=made["seed"],
        method=made["row"],
        done=done,
        chance=np.nan,
        ground_truth=made["row"] == "ceiling",
        external=False,
        clean_data=made["row"] == "clean",
        networks=1 + (made["row"] == "clean"),
        family="loss",
        warmup_epochs=0,
        restarts=0,
        aligned=False,
        selected_rsum=made["rsum"],
        method_pairs_per_second=np.nan,
        track="one network",
    )


def test_noise_from_a_file_has_the_granularity_of_its_file():
    """Whatever the sweep file says: a trial has read it."""
    trial = small.trial("clip", noise={"model": "from_file", "path": "{ratio}_{seed}.npy"})
    record = TrialRecord(trial, "run", "FINISHED", {}, {"noise_granularity": "image"})
    facts = {"clip": MethodFacts.of("clip")}
    for records, granularity in (({trial.id: record}, "image"), ({}, "caption")):
        found = tidy(SweepRecord("s", "", False, (trial,), records, facts))
        assert found["granularity"].tolist() == [granularity]


def test_variance_over_ratios_is_that_of_npcs_figure():
    """Flickr30K i2t R@1 of NPC's README at 0 / 20 / 40 / 60 %: the figure says 3.61 and 56.40."""
    published = {"npc": (87.9, 87.3, 85.6, 83.0), "clip": (86.2, 82.3, 76.2, 66.3)}
    rows = [
        (name, ratio, 0, 0.0, value)
        for name, values in published.items()
        for ratio, value in zip((0, 0.2, 0.4, 0.6), values, strict=True)
    ]
    found = stability(frame(rows))
    assert found.loc["npc", "var_i2t_r1"] == pytest.approx(3.61, abs=0.005)
    assert found.loc["clip", "var_i2t_r1"] == pytest.approx(56.40, abs=0.005)


def test_stability_over_seeds():
    found = stability(
        frame([("a", 0, 0, 100, 10), ("a", 0, 1, 104, 12), ("a", 0.4, 0, 80, 8), ("a", 0.4, 1, 90, 6)])
    ).loc["a"]
    assert found["drop"] == pytest.approx(102 - 85)
    assert found["sd_seeds"] == pytest.approx((np.std([100, 104], ddof=1) + np.std([80, 90], ddof=1)) / 2)
    assert found["worst"] == 80
    assert found["var_i2t_r1"] == pytest.approx((1.0 + 9.0) / 2)


def test_rows_of_different_ratios_have_no_stability(tmp_path):
    made = frame([("a", 0.0, 0, 100, 10), ("a", 0.0, 1, 104, 12), ("b", 0.4, 0, 80, 8), ("b", 0.4, 1, 90, 6)])
    made = made.assign(seconds=1.0)
    assert stability_table(made, "w", "") is None
    assert cost_figure(made, "w", tmp_path) is None


def test_a_track_of_one_row_has_no_best():
    rows = [("a", r, s, 100 - s - 50 * r, 20 + s) for r in (0.0, 0.4) for s in (0, 1)]
    made = frame(rows + [("b ×2", r, s, x + 1, y) for _, r, s, x, y in rows])
    made["track"] = np.where(made["row"] == "a", "one network", "several networks")
    assert not any(cell.best for row in stability_table(made, "w", "").rows for cell in row)


def test_collapsed_trials_are_listed_by_the_epoch_that_is_shown():
    """The last one; and by data set where there are several."""
    trials = small.sweep("clip", grid={"dataset": ["tests.small:load", "tests.small:few"]}).trials
    records = {
        t.id: TrialRecord(t, "run", "FINISHED", {"test/rsum": 160.2 - last, "last/rsum": last}, {})
        for t, last in zip(trials, (10.2, 150.0), strict=True)
    }
    sweep = SweepRecord("s", "", False, trials, records, {"clip": MethodFacts.of("clip")})
    text = _state(tidy(sweep).assign(chance=10.0, collapsed=False, in_warmup=False))
    (line,) = [x for x in text.splitlines() if x.startswith("- collapsed: ")]
    assert line.startswith("- collapsed: clip noise 0.4 (tests.small:load, caption-level noise): rSum 10.2")


@pytest.mark.parametrize(("warmup", "said"), [(0, False), (4, False), (5, True), (7, True)])
def test_a_row_that_is_hardly_more_than_its_warm_up_is_told(warmup, said):
    """Of a cosine over eight epochs the part after four is 18 %, and after five 8 %."""
    trial = small.trial("npc", epochs=8)
    trial = trial.model_copy(update={"hyper": {**trial.hyper, "warmup_epochs": warmup}})
    record = TrialRecord(trial, "run", "FINISHED", {"test/rsum": 50.0}, {})
    facts = {"npc": MethodFacts.of("npc")}
    text = _state(
        tidy(SweepRecord("s", "", False, (trial,), {trial.id: record}, facts)).assign(
            chance=10.0, collapsed=False, in_warmup=False
        )
    )
    assert ("- hardly more than its warm-up: npc, where " in text) == said


def test_epochs_selected_in_the_warm_up_are_counted_by_row():
    """Ratios without any are left out, and so are trials that are not done."""
    trials = small.sweep("clip", "npc", grid={"noise_ratio": [0, 0.2, 0.4], "seed": [0, 1]}).trials
    records = {t.id: TrialRecord(t, "run", "FINISHED", {"test/rsum": 50.0}, {}) for t in trials[:-1]}
    facts = {name: MethodFacts.of(name) for name in ("clip", "npc")}
    lines = tidy(SweepRecord("s", "", False, trials, records, facts)).assign(chance=10.0, collapsed=False)
    early = (lines["method"] == "npc") & (
        (lines["noise_ratio"] == 0.4) | (lines["seed"] * lines["noise_ratio"] > 0)
    )
    told = [x for x in _state(lines.assign(in_warmup=early)).splitlines() if "warm-up" in x]
    assert told == [
        "- the epoch selected on dev is one of the warm-up, before the method's own stage: "
        "npc at noise 0.2 (1 of 2 seeds), 0.4 (1 of 1 seeds)"
    ]


def test_slope_area_and_intervals_by_hand():
    """Two seeds over three ratios: 100, 90, 60 and 100, 80, 80."""
    values = {0: (100, 90, 60), 1: (100, 80, 80)}
    rows = frame(
        [
            ("a", ratio, seed, value, value / 2)
            for seed, curve in values.items()
            for ratio, value in zip((0, 0.2, 0.4), curve, strict=True)
        ]
    )
    found = stability(rows).loc["a"]
    slopes = np.array([-10.0, -5.0])  # rSum per 10 points: (last - first) / 4 tenths
    areas = np.array([(95 + 75) / 200, (90 + 80) / 200])
    assert found["slope_rsum"] == pytest.approx(slopes.mean())
    assert found["slope_i2t_r1"] == pytest.approx(slopes.mean() / 2)
    assert found["area"] == pytest.approx(areas.mean())
    half = 12.706 * slopes.std(ddof=1) / np.sqrt(2)
    assert (found["slope_rsum_low"], found["slope_rsum_high"]) == pytest.approx(
        (slopes.mean() - half, slopes.mean() + half), rel=1e-4
    )
    assert "worst" in seeds_table(rows, "w").columns[-1]
    assert "0.4: 70.0 [" in seeds_table(rows, "w").markdown()


def test_shares_of_variance_where_noise_and_model_seeds_vary():
    one = frame([("a", 0.4, s, 100 + s, 1) for s in (0, 1)])
    assert shares_table(one, "w") is None
    both = frame([("a", 0.4, s, 100 + 10 * n + s, 1) for n in (0, 1, 2) for s in (0, 1, 2)]).assign(
        noise_seed=np.repeat([0, 1, 2], 3)
    )
    assert re.search(r"\| a +\| +99 % \| +1 % \| +0 % \| +3 x 3 \|", shares_table(both, "w").markdown())


def test_a_seed_with_a_hole_is_not_averaged_over():
    found = stability(
        frame([("a", 0, 0, 1, 10), ("a", 0.4, 0, 1, 20), ("a", 0, 1, 1, 30), ("a", 0.4, 1, np.nan, np.nan)])
    ).loc["a"]
    assert found["var_i2t_r1"] == pytest.approx(25)


def test_a_row_without_a_ratio_has_a_hole_and_no_stability():
    rows = frame(
        [("a", r, s, 10 + s, 1) for r in (0, 0.4) for s in (0, 1)] + [("b", 0, s, 20, 1) for s in (0, 1)]
    )
    text = by_ratio(rows, "rsum", "t", "c").markdown()
    assert re.search(r"\| b +\| +– \| +\*\*20.0 ± 0.0\*\* +\| +– \|", text)
    assert "| b" not in stability_table(rows, "w", "").markdown()
    assert "b" in recalls_table(rows, "w").markdown()


def test_an_unfinished_row_is_never_the_most_stable():
    rows = [("a", r, s, 10 + 50 * r + s, 1) for r in (0, 0.4) for s in (0, 1)]
    rows += [
        ("b", 0, 0, 20, 1),
        ("b", 0, 1, np.nan, np.nan),
        ("b", 0.4, 0, 20, 1),
        ("b", 0.4, 1, np.nan, np.nan),
    ]
    text = stability_table(frame(rows), "w", "").markdown()
    line = next(line for line in text.splitlines() if line.startswith("| b"))
    assert "**" not in line
    assert "2 of 4!" in line


def test_a_row_of_fewer_seeds_is_never_the_most_stable():
    """Also where no more were planned: the worst of one seed is no worst of two."""
    rows = [(row, r, s, 10 + 50 * r + s, 1) for row in "ab" for r in (0, 0.4) for s in (0, 1)]
    table = stability_table(frame([*rows, ("c", 0, 0, 90, 1), ("c", 0.4, 0, 90, 1)]), "w", "")
    assert not any(cell.best for cell in table.rows[2])
    assert table.rows[2][0].text == "c"


def test_rows_of_one_class_name_are_told_apart():
    class_names = small.sweep("tests.mine:Mine", "tests.other_mine:Mine").trials
    assert set(row_labels(class_names).values()) == {"tests.mine:Mine", "tests.other_mine:Mine"}
    options = small.sweep("clip", grid={"dataset_options": [{}, {"file": "a"}]}).trials
    assert set(row_labels(options).values()) == {"clip (dataset.file=default)", "clip (dataset.file=a)"}


def test_a_method_has_one_colour_everywhere():
    def of(*names):
        return styles(with_marks(frame([(name, 0, 0, 1, 1) for name in names])))

    both, alone = of("clip", "npc", "mine"), of("npc")
    assert both["npc"] == alone["npc"]
    assert len(set(both.values())) == 3


def test_each_row_has_a_marker_of_its_own_and_many_rows_of_a_method_colours():
    names = ["clip", "clip ×2", "npc", *(f"npc (step={i})" for i in range(6))]
    rows = with_marks(frame([(name, 0, 0, 1, 1) for name in names]))
    rows["method"] = [name.split()[0] for name in names]
    found = styles(rows)
    assert len({marker for _, marker in found.values()}) == len(names)
    assert len({colour for colour, _ in found.values()}) == len(names)
    assert found["clip"] == styles(rows[rows["row"] == "clip"])["clip"]


def test_cells_say_their_n():
    found = cells(frame([("a", 0, 0, 1, 1), ("a", 0, 1, 3, 1), ("a", 0, 2, np.nan, 1)]), "rsum").loc["a", 0]
    assert (found["mean"], found["n"], found["planned"]) == (2, 2, 3)
    assert found["sd"] == pytest.approx(np.sqrt(2))


def test_bold_is_the_best_complete_cell_that_does_not_know_the_truth():
    rows = [("a", 0, s, 100 + s, 1) for s in (0, 1)] + [("b", 0, 0, 500, 1), ("b", 0, 1, np.nan, 1)]
    rows += [("ceiling", 0, s, 200, 1) for s in (0, 1)] + [("clean", 0, s, 90, 1) for s in (0, 1)]
    text = by_ratio(with_marks(frame(rows)), "rsum", "t", "c").markdown()
    assert "**100.5 ± 0.7**" in text
    assert "| 500.0 (n=1 of 2!)" in text
    assert "| ceiling ‡" in text
    assert "| clean ×2 †" in text
    assert text.count("**") == 2


def test_an_f1_is_bold_only_above_that_of_calling_every_pair_mismatched():
    made = frame([(row, 0.6, seed, 100, 1) for row in ("a", "b") for seed in (0, 1)])
    made = made.assign(realised_ratio=0.6, auroc=0.5, average_precision=0.6, ece=0.1)

    def shown(of_a, of_b):
        made["f1"] = made["row"].map({"a": of_a, "b": of_b})
        return scores_table(made, "t").markdown()

    assert "**" not in shown(0.75, 0.5)  # 2r / (1 + r) at r = 0.6
    assert "**0.760 ± 0.000**" in shown(0.75, 0.76)


def several_networks(rows):
    """Rows of which "clean" has two networks, and "ceiling" uses the ground truth."""
    return with_marks(frame(rows)).assign(seconds=1.0, dataset="d", noise="n", device="cpu")


def test_captions_explain_the_marks_that_are_drawn():
    one, two, known = (several_networks([(row, 0.4, 0, 100, 1)]) for row in ("a", "clean", "ceiling"))
    assert marks_legend(one) == ""
    assert marks_legend(pd.concat([one, two])) == " Open markers: several networks."
    assert marks_legend(pd.concat([one, known])) == " Dashed: uses the ground truth."
    assert marks_legend(pd.concat([one, known]), dashes=False) == ""


@pytest.mark.parametrize("ratios", [1, 2])
def test_points_have_open_markers_of_several_networks_and_dashes_of_the_truth(ratios, tmp_path, monkeypatch):
    """The captions say so; nothing of whiskers and dashes where one ratio has none."""
    figures = []
    monkeypatch.setattr("harness.report.figures._save", lambda figure, target: figures.append(figure))
    rows = [(row, 0.2 * k, 0, 90 + k, 1) for row in ("a", "clean", "ceiling") for k in range(1, ratios + 1)]
    caption, table = headline(several_networks(rows), "t", tmp_path)
    (axes,) = figures[0].axes
    drawn = {
        c.get_label(): (c.lines[0].get_markerfacecolor(), [b.get_linestyle() for b in c.lines[2]])
        for c in axes.containers
    }
    (clean,) = (row for row in drawn if row.startswith("clean"))
    (ceiling,) = (row for row in drawn if row.startswith("ceiling"))
    assert drawn[clean][0] == "white"
    assert "white" not in (drawn["a"][0], drawn[ceiling][0])
    assert "Open markers: several networks." in caption.caption
    assert drawn["a"][1][0][0][1] is None  # solid
    assert drawn[ceiling][1][0][0][1] is not None
    for said in ("hiskers", "Dashed"):
        assert (said in caption.caption) == (ratios > 1)
    assert ("range" in caption.title) == ("Drop" in table.caption) == (ratios > 1)


def test_tables_of_a_sweep_that_has_not_begun_have_no_numbers():
    rows = frame([("a", r, s, np.nan, np.nan) for r in (0, 0.4) for s in (0, 1)])
    for table in (by_ratio(rows, "rsum", "t", "c"), recalls_table(rows, "w"), stability_table(rows, "w", "")):
        assert "nan" not in table.markdown().lower()


def test_rows_are_told_apart_by_what_varies():
    trials = small.sweep("clip", "npc", grid={"npc.bank_threshold": [0.5, 0.9], "seed": [0, 1]}).trials
    assert set(row_labels(trials).values()) == {
        "clip",
        "npc (bank_threshold=0.5)",
        "npc (bank_threshold=0.9)",
    }


def test_perturbed_trials_stand_in_no_table_and_have_rows_of_their_own_where_all_are_shown(tmp_path):
    source = golden.source("golden")
    frame = primary(tidy(source.sweep))
    assert (frame["perturbed"] > 0).sum() == 2
    labels = run_labels(source.sweep.planned)
    moved = [labels[t] for t in frame.loc[frame["perturbed"] > 0, "trial"]]
    assert {label["row"] for label in moved} == {"clip (perturbed)"}
    assert len({label["mlflow.runName"] for label in moved}) == 2
    text = (write(source, tmp_path) / "report.md").read_text()
    assert re.search(r"\| clip +\| .*\| 17 of 18! \|", text)  # of three seeds at six ratios
    assert re.search(r"### Moved by rounding.*\n\n.*\n.*\n\| 0.4 +\| clip +\|.*\| +2 \|", text)


def test_settings_say_what_was_cut_for_one_method():
    trials = small.sweep("clip", "triplet", "mscn", overrides={"mscn": {"epochs": 1}}).trials
    shared, own = shared_and_own_settings(trials)
    assert shared["epochs"] == "3"
    assert own["mscn"]["epochs"] == "1"
    assert own["clip"] == {"n_networks": "1"}
    assert own["triplet"] == {"margin": "0.2", "warmup_epochs": "0"}


def test_settings_are_shared_that_half_of_the_rows_have_and_noise_that_differs_is_no_rows():
    trials = small.sweep(
        "clip", grid={"weight_decay": [0.1, 0.2, 0.3], "noise": [{"model": "shuffle"}, {"model": "partial"}]}
    ).trials
    shared, own = shared_and_own_settings(trials)
    assert "weight_decay" not in shared
    assert [values["weight_decay"] for values in own.values()] == ["0.1", "0.2", "0.3"]
    assert not any(key.startswith("noise.") for values in (shared, *own.values()) for key in values)


def test_a_report_names_each_search_with_the_methods_that_have_its_settings():
    trials = small.sweep("clip", "triplet", "npc").trials
    searches = {"clip": "0" * 12, "triplet": "1" * 12, "npc": "0" * 12}
    records = {
        t.id: TrialRecord(
            t,
            "run",
            "FINISHED",
            {"test/rsum": 1.0},
            {"search": "found", "search_digest": searches[t.method], "search_tries": "12", "code": "c"},
        )
        for t in trials
    }
    facts = {t.method: MethodFacts.of(t.method) for t in trials}
    lines = _origin(SweepRecord("small", "", False, trials, records, facts))
    assert lines[:2] == [
        f"- settings from the search found (digest {'0' * 12}, 12 tries for each method): clip, npc",
        f"- settings from the search found (digest {'1' * 12}, 12 tries for each method): triplet",
    ]


def test_one_slow_trial_does_not_make_a_method_slow():
    rows = primary(tidy(golden.source("golden").sweep))
    clip = rows[(rows["row"] == "clip") & rows["done"]].head(3).assign(seconds=[9.0, 10.0, 400.0])
    time, _ = cost_tables(clip, "here")
    assert time.rows[0][1].text == "10.0"


def test_times_of_several_devices_are_said_not_to_compare(tmp_path):
    rows = with_marks(primary(tidy(golden.source("golden").sweep)))
    told = "Trials ran on 2 devices (Provenance): times do not compare."
    several = rows.assign(device=["cpu (A)", "cpu (B)"] * (len(rows) // 2) + ["cpu (A)"] * (len(rows) % 2))
    for frame, expected in ((rows, False), (rows.assign(device="cpu (A)"), False), (several, True)):
        time, memory = cost_tables(frame, "here")
        drawn = cost_figure(frame, "here", tmp_path)
        shown = [x.caption for x in headline(frame, "here", tmp_path)]
        assert [told in text for text in (time.caption, drawn.caption, *shown)] == [expected] * 4
        assert told not in memory.caption
    clip, npc = (several.method == m for m in ("clip", "npc"))
    places = several.assign(seconds=1.0, device=np.where(clip, "cpu (A)", "cpu (B)"))[clip | npc]
    assert _devices(places) == ["- device: cpu (A): clip", "- device: cpu (B): npc"]
    assert _devices(places.assign(seconds=np.where(clip, 1.0, np.nan)[clip | npc])) == ["- device: cpu (A)"]


def test_latex_escapes_and_rules():
    text = Table("a_b & 50 %", "± †", ["noise", "x_1"], [[Cell("0"), Cell("1 ± 2", best=True)]]).latex("t")
    assert r"a\_b \& 50 \%" in text
    assert r"\textbf{1 $\pm$ 2}" in text
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 1
    assert r"\toprule" in text


def section(page, heading):
    """The text of a page under a heading of the second level."""
    return page.read_text(encoding="utf-8").split(f"## {heading}")[1].split("\n## ")[0]


def table_rows(text):
    """The rows of Markdown tables as cells, without what marks a cell as best or not significantly worse."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|:")]
    return [tuple(c.strip() for c in re.sub(r"\*\*|</?u>", "", line).strip("|").split("|")) for line in lines]


@pytest.mark.parametrize(
    ("page", "heading", "sweeps", "rows"),
    [
        (README, "What comes out", "emoji", 12),
        (DOCS / "results.md", "What the search found", "search_emoji", 9),
        (DOCS / "results.md", "Eight methods", "emoji", 22),
        (DOCS / "results.md", "Another data set", "icons", 22),
        (DOCS / "results.md", "Other noise", "emoji_noise", 18),
        (DOCS / "results.md", "MSCN taken apart", "mscn_ablation", 11),
        (DOCS / "results.md", "NCR taken apart", "ncr_ablation ncr_first", 8),
        (DOCS / "results.md", "NPC taken apart", "npc_ablation", 12),
        (DOCS / "results.md", "Is plain InfoNCE tuned?", "emoji_rates", 5),
        (DOCS / "results.md", "Region features", "regions", 5),
    ],
)
def test_the_documented_tables_are_those_of_the_reports(page, heading, sweeps, rows):
    reports = [(README.parent / "reports" / sweep / "report.md").read_text() for sweep in sweeps.split()]
    documented = table_rows(section(page, heading))
    assert len(documented) == rows
    assert set(documented) <= {row for report in reports for row in table_rows(report)}


def test_the_readmes_method_is_the_projects_and_trains(tmp_path, monkeypatch):
    """Copied from the README into a file, it works under its dotted name."""
    import methods.cross_entropies
    from tests import build

    (code,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
        if "(OnLogits)" in block
    ]
    assert len([line for line in code.splitlines() if line.strip()]) <= 25
    shown, ours = (ast.parse(text) for text in (code, inspect.getsource(methods.cross_entropies)))
    (name,) = _functions(shown)
    assert _functions(shown)[name] == _functions(ours)[name]
    (tmp_path / "bounded.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    outcome = build.trainer(f"bounded:{name}", hyper={"q": 0.5}).fit()
    assert outcome.metrics["test/rsum"] > 0


def _functions(module):
    """The functions of each class, without docstrings."""
    return {
        item.name: [ast.dump(_undocumented(f)) for f in item.body if isinstance(f, ast.FunctionDef)]
        for item in module.body
        if isinstance(item, ast.ClassDef)
    }


def _undocumented(function):
    if ast.get_docstring(function):
        del function.body[0]
    return function


@pytest.mark.parametrize(
    ("page", "trials"),
    [(README, [2 * 2 * 3]), (DOCS / "operations.md", [2 * 3 + 2 * 3 * 3, 2 * 12 * 2 * 2])],
)
def test_the_documented_sweeps_are_valid(page, trials):
    texts = [block for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.S) if "grid:" in block]
    sweeps = [parse_sweep({"name": "documented", **yaml.safe_load(text)}) for text in texts]
    assert [len(sweep.trials) for sweep in sweeps] == trials


@pytest.mark.parametrize("page", ["operations.md", "region_features.md"])
def test_the_documented_settings_of_all_trials_are_valid(page):
    texts = [b for b in re.findall(r"```yaml\n(.*?)```", (DOCS / page).read_text(), re.S) if "grid:" not in b]
    assert texts
    for text in texts:
        content = small.content("clip")
        content["fixed"] |= yaml.safe_load(text)["fixed"]
        assert parse_sweep(content).trials


def test_the_readmes_lines_for_pictures_of_ones_own_are_enough(tmp_path, monkeypatch):
    """The user's folder, and the lines as they stand there put into a sweep."""
    section = README.read_text(encoding="utf-8").split("## Your own pictures")[1]
    lines = yaml.safe_load(section.split("```yaml\n")[1].split("```")[0])
    layouts.own_table(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    lines["fixed"]["dataset_options"]["held_out"] = 6  # of 38 pictures
    content = small.content("clip", fixed=lines["fixed"])
    del content["grid"]["dataset"]
    (trial,) = parse_sweep(content).trials
    assert check_trial(trial) == []


def test_ci_runs_the_readmes_test_command():
    from subprocess import run

    script = (README.parent / ".ci" / "run").read_text()
    (extract,) = re.findall(r"command=\$\((.*?) README\.md", script)
    found = run(
        f"{extract} README.md | head -n 1", shell=True, cwd=README.parent, capture_output=True, text=True
    ).stdout.strip()
    assert found.startswith("python3.11 -m venv .venv && ")
    assert found.endswith("-m pytest")
    assert found in README.read_text().splitlines()


def test_data_sets_of_one_name_are_not_pooled_as_seeds():
    """Two folders with one last name, and one folder under two options."""

    def labels(*options):
        grid = {
            "method": ["clip"],
            "dataset": ["table"],
            "noise_ratio": [0.2],
            "seed": [0, 1],
            "dataset_options": list(options),
        }
        return set(
            tidy(
                SweepRecord(
                    "x",
                    "",
                    False,
                    parse_sweep({"name": "x", "grid": grid}).trials,
                    {},
                    {"clip": MethodFacts.of("clip")},
                )
            )["dataset"]
        )

    assert labels({"folder": "a/photos"}, {"folder": "b/photos"}) == {
        "table photos (folder=a/photos)",
        "table photos (folder=b/photos)",
    }
    assert labels({"folder": "photos", "held_out": 5}, {"folder": "photos"}) == {
        "table photos (held_out=5)",
        "table photos (held_out=None)",
    }
    assert labels({"folder": "photos"}) == {"table photos"}


def test_many_rows_are_told_apart_by_family_and_by_what_they_need():
    """Families come in one order, whatever the plan's; a long table names them."""
    names = [*METHODS][::-1]
    planned = small.sweep(*names, grid={"noise_ratio": [0.2, 0.6]}).trials
    lines = tidy(SweepRecord("x", "", False, planned, {}, {n: MethodFacts.of(n) for n in names}))
    order = list(dict.fromkeys(lines["family"]))
    assert order == [f for f in FAMILIES if f != "other"]
    table = by_ratio(with_marks(primary(lines.assign(chance=np.nan))), "rsum", "title", "what")
    assert table.columns[:2] == ["method", "family"]
    assert list(dict.fromkeys(row[1].text for row in table.rows)) == order
    rows = dict(iter(lines.assign(networks=2, method_pairs_per_second=9.0).groupby("method")))
    assert needs(rows["ncr"]) == "2 networks, 1 warm-up epoch, further passes"
    assert needs(lines[lines["method"] == "clip"]) == "–"
    assert needs(lines[lines["method"] == "mscn"]).startswith("clean pairs")
    assert "1 warm-up epoch, 1 restart" in needs(rows["crcl"])
    assert needs(lines[lines["method"] == "crcl"].assign(aligned=True)).endswith("1 restart, aligned weights")


@pytest.mark.cluster  # most of a minute
@pytest.mark.parametrize(
    "name",
    sorted(
        p.parent.name
        for p in README.parent.glob("results/*/plan.json")
        if (README.parent / "reports" / p.parent.name).is_dir()
    ),
)
def test_the_committed_reports_are_made_from_the_committed_bundles(name, tmp_path, monkeypatch):
    """The texts; figures are drawn, and not written as pictures, which takes longest."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **kwargs: file.write_bytes(b""))
    Path("results").symlink_to(README.parent / "results")
    assert report([name]) == 0
    for file in ("report.md", "results.csv", "tables.tex"):
        committed = README.parent / "reports" / name / file
        assert Path("reports", name, file).read_text() == committed.read_text(), file
