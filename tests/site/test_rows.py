"""Rows of the leaderboard: known numbers, how far each is verified, and nothing averaged over holes."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections import Counter
from datetime import UTC, datetime

import pytest

from harness.evaluation.metrics import RECALLS
from harness.record.bundle import Bundle
from harness.record.repeated import Repetition
from harness.site.bundles import find_bundles, source_address
from harness.site.methods import facts, key_of_published, page_names, rendered, sections
from harness.site.rows import LEVELS, Links, Origin, all_rows, published_rows, sweep_rows
from methods import METHODS
from methods.base import Method
from tests import golden
from tests.recorded import rewrite
from tests.site.made import ROOT
from tests.site.made import results as made_results

# What is published ------------------------------------------------------------------------------------


def test_all_published_rows_are_there_with_their_flags():
    rows = published_rows()
    assert Counter(row.level for row in rows) == {"published": 592, "flagged": 54}
    assert all(row.note for row in rows if row.level == "flagged")
    assert not any(row.note for row in rows if row.level == "published")
    assert not {row.network for row in rows} & {"same config", "script default module in issue"}
    assert all(row.cited and row.n is None and row.seconds is None for row in rows)


def test_a_published_row_has_the_numbers_of_its_table():
    (row,) = (
        r
        for r in published_rows()
        if (r.method, r.dataset, r.ratio, r.origin) == ("npc", "Flickr30K", "0.2", "NPC AAAI24")
    )
    assert row.rsum == pytest.approx(544.4, abs=0.05)
    assert (row.network, row.networks, row.granularity, row.clean) == ("ViT-B/32", 1, "caption", False)
    assert row.links.source == "github.com/ZhangXu0963/NPC/tree/823d781"
    without = Counter(row.origin for row in published_rows() if not row.links.source)
    assert without == {"VACSR 2026": 10}  # whose address is not known
    assert all(row.links.table == "published_results.csv" for row in published_rows())


@pytest.mark.parametrize(
    ("backbone", "networks"),
    [
        ("SGR, 2 co-trained nets ensembled", 2),
        ("SGRAF", 2),
        ("SGR", 1),
        ("SGR x2", 2),
        ("SCAN (BUTD 36x2048 + BiGRU)", 1),
        ("same config", None),
        ("SGRAF (unconfirmed)", None),
        ("not reported", None),
    ],
)
def test_networks_are_not_guessed(backbone, networks):
    found = {row.networks for row in published_rows() if row.backbone == backbone}
    assert found == {networks}


def test_data_that_are_noisy_by_nature_have_no_ratio_and_no_granularity():
    (rows,) = [[r for r in published_rows() if r.dataset == "CC152K"]]
    assert len(rows) == 55
    assert {(r.noise, r.ratio, r.granularity) for r in rows} == {("its own", "unknown", "")}


def test_names_of_published_methods_lead_to_ours():
    known = ("NCR-single", "RCL-VSRN", "CRCL (author re-run)", "CLIP+OSA", "SCAN")
    assert [key_of_published(n) for n in known] == ["ncr", "rcl", "crcl", "osa", "SCAN"]


# Of a sweep -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept():
    """The golden sweep: three seeds, a failed and a missing trial, perturbed ones, a row with one seed."""
    return golden.source("golden").sweep


@pytest.fixture(scope="module")
def rows(swept):
    return sweep_rows(swept, Origin("golden", Links(bundle="bundles/golden.zip")))


def values(swept, row, measure):
    """What the trials of a row have on record."""
    return [
        r.metrics[measure]
        for r in swept.records.values()
        if r.done
        and not r.trial.perturbed
        and r.trial.method == row.method
        and f"{r.trial.noise_ratio:g}" == row.ratio
    ]


def test_a_row_is_the_mean_of_its_seeds_after_the_last_epoch(swept, rows):
    (row,) = (r for r in rows if (r.method, r.ratio) == ("small_loss", "0.2"))
    rsums = values(swept, row, "last/rsum")
    assert (row.n, row.planned) == (3, 3)
    assert row.rsum == pytest.approx(sum(rsums) / 3)
    assert row.sd == pytest.approx(math.sqrt(sum((x - row.rsum) ** 2 for x in rsums) / 2))
    half = 4.3027 * row.sd / math.sqrt(3)  # t of 2 degrees of freedom
    assert (row.low, row.high) == pytest.approx((row.rsum - half, row.rsum + half), rel=1e-4)
    assert row.selected == pytest.approx(sum(values(swept, row, "test/rsum")) / 3)
    assert sum(row.recalls) == pytest.approx(row.rsum)
    assert row.links.bundle == "bundles/golden.zip"


def test_holes_are_counted_and_not_filled(swept, rows):
    """A cell with a failed or missing trial has its n; its seed is in no mean over the ratios."""
    short = [r for r in rows if r.n != r.planned]
    cells = [r for r in short if not r.ratio.startswith("mean")]
    assert sum(r.planned - r.n for r in cells) == 2  # one failed, one missing
    for cell in cells:
        assert cell.n == len(values(swept, cell, "last/rsum"))
        (mean,) = (r for r in rows if r.label == cell.label and r.ratio.startswith("mean"))
        assert mean.n < mean.planned


def test_a_mean_over_ratios_is_of_all_of_them(swept, rows):
    (mean,) = (r for r in rows if r.method == "triplet" and r.ratio.startswith("mean"))
    assert mean.ratio == "mean of 0, 0.1, 0.2, 0.3, 0.4, 0.6"
    cells = [r.rsum for r in rows if r.method == "triplet" and not r.ratio.startswith("mean")]
    assert len(cells) == 6
    assert (mean.n, mean.rsum) == (3, pytest.approx(sum(cells) / 6))
    (holed,) = (r for r in rows if r.method == "small_loss" and r.ratio.startswith("mean"))
    of_seed: dict[int, list[float]] = {}
    for r in swept.records.values():
        if r.done and r.trial.method == "small_loss":
            of_seed.setdefault(r.trial.seed, []).append(r.metrics["last/rsum"])
    whole = [sum(rsums) / 6 for rsums in of_seed.values() if len(rsums) == 6]
    assert (holed.n, holed.rsum) == (2, pytest.approx(sum(whole) / 2))


def test_a_row_says_how_its_settings_were_chosen(swept, rows):
    assert {row.tuning for row in rows} == {"by hand"}
    searched = {
        i: dataclasses.replace(r, tags={**r.tags, "search_tries": "12"}) for i, r in swept.records.items()
    }
    found = sweep_rows(dataclasses.replace(swept, records=searched), Origin("golden", Links()))
    assert {row.tuning for row in found} == {"best of 12 tries"}
    assert {row.tuning for row in published_rows()} == {"by its authors"}


def test_trials_that_two_sweeps_hold_are_one_row(swept, rows):
    """That of the sweep that has more of them; it names the other."""
    few = tuple(t for t in swept.planned if t.method == "clip" and t.seed == 0)
    kept = {t.id: swept.records[t.id] for t in few if t.id in swept.records}
    part = dataclasses.replace(swept, name="part", planned=few, records=kept)
    listed = all_rows([(part, Origin("part", Links())), (swept, Origin("golden", Links()))])
    ours = [row for row in listed if row.level == "checked"]
    assert sorted((r.label, r.ratio) for r in ours) == sorted((r.label, r.ratio) for r in rows)
    assert {r.origin for r in ours} == {"golden"}
    told = {r.method for r in ours if r.note == "also in part"}
    assert told == {"clip"}


def test_of_two_sweeps_with_the_same_trials_the_one_run_again_is_listed(swept):
    again = Origin("again", Links(), repeated=frozenset(swept.records))
    ours = [r for r in all_rows([(swept, Origin("golden", Links())), (swept, again)]) if r.n]
    counted = [r for r in ours if r.level not in ("published", "flagged", "external")]
    assert {(r.origin, r.level) for r in counted} == {("again", "repeated")}
    assert all("also in golden" in r.note for r in counted)


def test_perturbed_trials_and_searches_are_no_rows(swept, rows):
    (row,) = (r for r in rows if (r.method, r.ratio) == ("clip", "0.4"))
    assert row.planned == 3
    assert sweep_rows(dataclasses.replace(swept, select=True), Origin("search", Links())) == []


def test_levels_of_a_bundle(swept, rows):
    assert {r.level for r in rows} == {"checked"}
    trial = next(r.trial for r in swept.records.values() if r.done and r.trial.method == "oracle")
    again = sweep_rows(swept, Origin("golden", Links(), repeated=frozenset({trial.id})))
    (row,) = (r for r in again if r.level == "repeated")
    assert (row.method, row.ratio, row.note) == ("oracle", f"{trial.noise_ratio:g}", "1 of 3 run again")
    assert row.truth
    external = sweep_rows(swept, Origin("theirs", Links(), external=True))
    assert {(r.level, r.note) for r in external} == {("external", "")}


def test_an_external_row_may_have_the_selected_epoch_alone(swept):
    records = {
        i: dataclasses.replace(r, metrics={k: v for k, v in r.metrics.items() if not k.startswith("last/")})
        for i, r in swept.records.items()
    }
    found = sweep_rows(dataclasses.replace(swept, records=records), Origin("theirs", Links(), external=True))
    assert found
    assert all(r.rsum is None and r.selected is not None and r.n for r in found)


def test_rows_are_plain_values_in_an_order(swept):
    rows = all_rows([(swept, Origin("golden", Links()))])
    assert [r.level in ("published", "flagged") for r in rows].index(True) == len(rows) - 646
    flat = rows[0].flat()
    assert {*RECALLS, "rsum", "report", "bundle", "source"} <= flat.keys()
    assert json.loads(json.dumps(flat, allow_nan=False)) == flat
    assert {r.level for r in rows} <= LEVELS.keys()


def test_numbers_are_rounded_once(swept):
    row = all_rows([(swept, Origin("golden", Links()))])[0]
    flat = dataclasses.replace(row, rsum=4.2471234567, sd=4.2471234567).flat()
    assert (flat["rsum"], flat["sd"]) == (4.247123, 4.247123)  # 4.25 would be shown as 4.3


# Bundles ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A directory with the bundles of a sweep and of an external row."""
    return made_results(tmp_path_factory.mktemp("site-rows"), "clip")


def test_no_bundles_are_no_error(tmp_path):
    assert find_bundles(tmp_path / "nowhere") == []


def test_bundles_of_sweeps_and_external_rows_are_read(results):
    sweep, row = find_bundles(results)
    assert (sweep.name, sweep.errors, sweep.program, sweep.repeated) == ("made", [], None, frozenset())
    assert sweep.sweep is not None
    assert len(sweep.sweep.records) == 4
    assert (row.name, row.errors) == (f"made-external-{row.folder.name}", [])
    assert row.program is not None
    assert row.program.source.commit == "0a1b2c3"
    assert row.sweep is not None
    listed = sweep_rows(row.sweep, Origin("theirs", Links(), external=True))
    assert {r.network for r in listed} == {"not reported"}  # its file does not say it


def test_an_external_row_that_does_not_fit_its_sweep_is_left_out(results, tmp_path):
    """And the sweep beside it stays."""
    shutil.copytree(results / "made", tmp_path / "made")
    (folder,) = (tmp_path / "made" / "external").iterdir()
    rewrite(folder, lambda line: line["tags"].update(noise_digest="0" * 16))
    sweep, row = find_bundles(tmp_path)
    assert (sweep.errors, row.sweep) == ([], None)
    assert any("noise index is 0000000000000000" in error for error in row.errors)


@pytest.mark.parametrize("metric", ["last/rsum", "last/t2i_r1"])
def test_a_bundle_with_a_changed_number_is_left_out(results, tmp_path, metric):
    folder = shutil.copytree(results / "made", tmp_path / "made")
    trial = rewrite(folder, lambda line: line.update({metric: line[metric] + 1}))
    found = find_bundles(tmp_path)[0]
    assert found.sweep is None
    assert any(trial in error for error in found.errors)


def test_a_bundle_may_be_unfinished(results, tmp_path):
    folder = shutil.copytree(results / "made", tmp_path / "made")
    shutil.rmtree(folder / "external")
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    (folder / "records.jsonl").write_text("".join(lines[:-1]))
    (found,) = find_bundles(tmp_path)
    assert found.errors == []
    assert any(note.startswith("no record: ") for note in found.notes)
    assert found.sweep is not None
    rows = sweep_rows(found.sweep, Origin("made", Links()))
    assert sorted((r.n, r.planned) for r in rows) == [(1, 2), (1, 2), (2, 2)]


def test_a_bundle_of_another_protocol_version_is_left_out(results, tmp_path):
    shutil.copytree(results / "made", tmp_path / "made")
    file = tmp_path / "made" / "plan.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"protocol_version": 1}))
    found = find_bundles(tmp_path)[0]
    assert "it is of protocol version 1, and this is 2" in found.errors


def test_a_folder_that_is_no_bundle_is_left_out(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "plan.json").write_text("[]")
    (found,) = find_bundles(tmp_path)
    assert found.sweep is None
    assert found.errors


def test_what_could_not_be_checked_is_said_of_its_rows_alone(swept):
    trial = swept.planned[0]
    rows = sweep_rows(swept, Origin("golden", Links(), unchecked={trial.id: "noise is not checked"}))
    told = {(row.label, row.ratio) for row in rows if row.note}
    assert (trial.method, f"{trial.noise_ratio:g}") in told
    assert {label for label, _ in told} == {trial.method}
    assert len(told) < sum(row.label == trial.method for row in rows)


def test_a_plan_that_says_other_things_of_a_method_leaves_the_bundle_out(results, tmp_path):
    folder = shutil.copytree(results / "made", tmp_path / "made")
    plan = json.loads((folder / "plan.json").read_text())
    plan["methods"]["clip"]["uses_clean_data"] = True
    (folder / "plan.json").write_text(json.dumps(plan))
    assert find_bundles(tmp_path)[0].errors == [
        "plan.json says of clip another uses_clean_data than its class"
    ]


def test_notes_of_repetitions_are_read(results):
    """Those with other numbers do not count, and malformed ones leave the bundle out."""
    bundle = Bundle("made", results / "made")
    trials = bundle.sweep().planned
    for trial, equal in ((trials[0], True), (trials[1], False)):
        bundle.note_repeated(
            Repetition(
                trial=trial.id,
                record=bundle.line_digest(trial.id),
                commit="0a1b2c3",
                environment={"torch": "2.0"},
                when=datetime(2026, 1, 1, tzinfo=UTC),
                equal=equal,
            )
        )
    assert find_bundles(results)[0].repeated == {trials[0].id}
    (bundle.folder / "repeated.json").write_text('[{"trial": "x"}]')
    assert any("repeated.json: 0.trial" in error for error in find_bundles(results)[0].errors)


def test_a_search_has_no_rows_and_may_be_unfinished(results):
    shutil.copytree(results / "made", results / "found")
    plan = json.loads((results / "found" / "plan.json").read_text())
    (results / "found" / "plan.json").write_text(json.dumps({**plan, "search": {"tries": 12}}))
    assert "found" not in [found.name for found in find_bundles(results)]


@pytest.mark.parametrize(
    ("repository", "address"),
    [
        ("https://github.com/who/what.git", "github.com/who/what"),
        ("example.org/who/what", "example.org/who/what"),
        ("javascript:alert(1)", ""),
        ('https://example.org/a"onclick="b', ""),
        ("", ""),
    ],
)
def test_only_addresses_of_the_web_are_linked(repository, address):
    assert source_address(repository) == address


# Methods ----------------------------------------------------------------------------------------------


def test_facts_read_from_the_source_are_those_of_the_classes():
    from harness.config.trial import method_class

    for name, known in facts().items():
        cls: type[Method] = method_class(name)
        assert vars(known) == {key: getattr(cls, key) for key in vars(known)}, name


def test_every_method_has_a_section_and_a_page_of_its_own():
    found = sections(ROOT / "docs")
    assert METHODS.keys() <= found.keys()
    assert all(s.text and "softmax" in s.notation for s in found.values())
    keys = [*METHODS, *{row.method for row in published_rows()}, "SGR", "sgr", "my.module:Clip"]
    names = page_names(keys)
    assert len({n.lower() for n in names.values()}) == len(set(keys))
    assert all(names[name] == name for name in METHODS)


def test_formulas_and_links_come_through_markdown():
    text = r"A \(a_1 * b_1 * c\) and \[ x < y \\ \text{if } |z| \] [there](x.md) [nowhere](y.md) <script>"
    html = rendered(text, lambda address: "there.html" if address == "x.md" else "")
    assert r'<span class="arithmatex">\(a_1 * b_1 * c\)</span>' in html
    assert r"\[ x &lt; y \\ \text{if } |z| \]" in html
    assert '<a href="there.html">there</a> nowhere &lt;script&gt;' in html
