"""Every form of a report, from committed records, against committed files; and that the forms work where they
are used.
"""

from __future__ import annotations

import difflib
import re
import shutil
import subprocess

import pandas as pd
import pytest

from harness.report.accuracy import with_marks
from harness.report.figures import styles
from harness.report.results import tidy, with_chance
from tests import golden

LATEX = shutil.which("pdflatex")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    golden.write_all(folder)
    return folder


@pytest.mark.parametrize("kind", ["golden", "golden-against-later"])
@pytest.mark.parametrize("form", golden.FORMS)
def test_a_report_says_what_it_said(made, kind, form):
    expected = (golden.FOLDER / kind / form).read_text().splitlines()
    found = golden.comparable((made / kind / form).read_text()).splitlines()
    difference = list(difflib.unified_diff(expected, found, "expected", "found", lineterm="", n=0))
    assert not difference, "python -m tests.golden makes the expected files anew\n" + "\n".join(
        line[:300] for line in difference[:20]
    )


def test_every_figure_that_a_report_names_is_there(made):
    named = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (made / "golden" / "report.md").read_text())
    assert len(named) == len(set(named))
    kinds = {name.partition("-")[0].removesuffix(".png") for name in named}
    assert kinds == {
        "headline",
        "degradation",
        "axis",
        "stability",
        "confidence",
        "reliability",
        "epochs",
        "cost",
        "ranks",
        "trained",
    }
    for name in named:
        for file in (made / "golden" / name, (made / "golden" / name).with_suffix(".svg")):
            assert file.stat().st_size > 3000, file


def test_the_records_hold_what_a_report_must_bear():
    source = golden.source("golden")
    frame = with_chance(tidy(source.sweep), source)
    assert (frame["status"] == "MISSING").sum() == 1
    assert (frame["status"] == "FAILED").sum() == 1
    assert frame[frame["method"] == "npc"]["seed"].nunique() == 1
    collapsed = frame[frame["collapsed"]]
    assert set(zip(collapsed["method"], collapsed["noise_ratio"], strict=True)) == {("triplet", 0.6)}
    # all scores equal: exactly chance
    assert collapsed["last_rsum"].tolist() == pytest.approx(collapsed["chance"].tolist())


def test_csv_has_a_line_for_each_trial(made):
    rows = pd.read_csv(made / "golden" / "results.csv")
    assert len(rows) == rows["trial"].nunique() == len(golden.sweep("golden").trials)
    assert rows.loc[~rows["done"], "rsum"].isna().all()
    assert rows.columns.is_unique
    both = pd.read_csv(made / "golden-against-later" / "results.csv")
    assert both["sweep"].value_counts().to_dict() == {"golden": len(rows), "later": 12}


def test_no_colour_and_marker_stand_for_two_rows():
    source = golden.source("golden")
    found = styles(with_marks(tidy(source.sweep)))
    assert len(set(found.values())) == len(found)


@pytest.mark.skipif(LATEX is None, reason="no pdflatex here: apt install texlive-latex-recommended")
def test_latex_compiles_as_it_is(made, tmp_path):
    for kind in ("golden", "golden-against-later"):
        text = (
            r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
            + "\n"
            + r"\input{"
            + str(made / kind / "tables.tex")
            + "}\n"
            + r"\clearpage\end{document}"
        )
        (tmp_path / "paper.tex").write_text(text)
        done = subprocess.run(
            ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            errors="replace",
        )
        assert done.returncode == 0, done.stdout[-2000:]
        assert "Overfull \\hbox" not in done.stdout, [
            line for line in done.stdout.splitlines() if "Overfull" in line
        ]
        assert "Missing character" not in (tmp_path / "paper.log").read_text(errors="replace")


@pytest.fixture
def page(browser, made):
    """The page from disk, in a browser without network; it must not say or ask for anything."""
    context = browser.new_context(offline=True, viewport={"width": 1200, "height": 900})
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((made / "golden" / "report.html").as_uri())
    yield page
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def shown(page, selector="section"):
    return page.eval_on_selector_all(selector, "found => found.filter(e => e.checkVisibility()).length")


def test_all_pictures_load(page):
    widths = page.eval_on_selector_all("img", "images => images.map(i => i.complete && i.naturalWidth)")
    assert len(widths) > 20
    assert all(widths)


def test_a_click_sorts_by_a_column_and_another_turns_it_round(page):
    section = page.locator("section", has=page.locator("h2", has_text="rSum by noise ratio")).first
    head = section.locator("th").nth(1)

    def column(number):
        return [row.strip() for row in section.locator(f"tbody td:nth-child({number})").all_inner_texts()]

    before = column(1)
    head.locator("button").click()
    rising = [float(text.split()[0]) for text in column(2)]
    assert rising == sorted(rising)
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").press("Enter")
    assert [float(text.split()[0]) for text in column(2)] == rising[::-1]
    assert head.get_attribute("aria-sort") == "descending"
    section.locator("th").first.locator("button").click()
    assert column(1) == sorted(before)
    assert section.locator("th[aria-sort]").count() == 1


def test_the_headline_comes_first_and_the_rest_folds(page):
    """One figure and one table answer accuracy, stability and cost; a topic opens from the contents."""
    assert page.locator("main details").first.get_attribute("id") == "headline"
    assert page.locator("#headline section").count() == 2
    unfolded = page.eval_on_selector_all("details[open]", "found => found.map(e => e.id)")
    assert unfolded == ["headline", "rSum"]
    page.click("nav a[href='#gallery']")
    assert shown(page, ".card") == 24
    assert shown(page, ".card .right") > 0
    page.click("#unfold")
    everything = shown(page)
    assert everything == page.locator("section").count()
    page.click("#fold")
    assert shown(page) == 0
    page.goto(f"{page.url.partition('#')[0]}#cost")
    assert page.locator("#cost[open]").count() == 1


def test_the_contents_stay_in_view_and_show_where_the_reader_is(page):
    page.click("#unfold")
    page.click("nav a[href='#stability']")
    page.wait_for_function("() => document.querySelector('nav a[aria-current]')?.hash === '#stability'")
    assert page.evaluate("scrollY") > 500
    assert page.locator("nav a[href='#headline']").evaluate(
        "e => { const box = e.getBoundingClientRect(); return box.top >= 0 && box.bottom <= innerHeight; }"
    )


def test_dark_mode_turns_the_page_and_leaves_figures_readable(page):
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light == "rgb(255, 255, 255)"
    picture = page.locator("figure img").first
    assert picture.evaluate("e => getComputedStyle(e).backgroundColor") == light


def test_a_data_set_is_picked(page, browser, made, tmp_path):
    """The golden sweep has one; of two, only what belongs to the picked one (or to both) is shown."""
    text = (made / "golden" / "report.html").read_text()
    assert 'id="place"' not in text
    where = "tests.small:load, caption-level noise"
    select = (
        f'<select id="place"><option '
        f'value="">all</option><option>{where}</option><option>other</option></select>'
    )
    (tmp_path / "two.html").write_text(text.replace("<nav ", f"{select}<nav ", 1))
    page.goto((tmp_path / "two.html").as_uri())
    page.click("#unfold")
    everything = shown(page)
    page.select_option("#place", "other")
    assert 0 < shown(page) < everything
    page.select_option("#place", where)
    assert shown(page) == everything


def test_the_page_reads_on_a_phone_and_in_print(page):
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.emulate_media(media="print")
    assert shown(page, "nav") == 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert shown(page) == page.locator("section").count()


def test_a_failure_cannot_write_into_the_page(made):
    """What a method raises is text, whatever it looks like."""
    from dataclasses import replace

    from harness.report.write import write

    source = golden.source("golden")
    records = dict(source.sweep.records)
    key = next(i for i, r in records.items() if not r.done)
    records[key] = replace(records[key], tags={"failure": "`<script>alert(1)</script>"})
    write(replace(source, sweep=replace(source.sweep, records=records)), made / "hostile")
    assert "<script>alert" not in (made / "hostile" / "report.html").read_text()
