"""Assembly of a report: the tables and figures of a sweep, and the files that hold them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from harness import PROTOCOL_VERSION
from harness.config.labels import shared_and_own_settings
from harness.evaluation.metrics import PERFECT, RECALLS
from harness.lib.console import console
from harness.record.store import Store
from harness.record.types import SweepRecord
from harness.report import ablation, detection
from harness.report.accuracy import by_ratio, coco_tables, legend, recalls_table, search_table, with_marks
from harness.report.comparison import (
    blocks_table,
    differences_table,
    queries_table,
    ranks_figure,
    reference_row,
)
from harness.report.cost import cost_figure, cost_tables
from harness.report.drawing import finish
from harness.report.figures import BANDS, degradation
from harness.report.gallery import galleries
from harness.report.headline import headline
from harness.report.page import Page, trial_lines
from harness.report.published import papers_table
from harness.report.results import COLLAPSED, MEASURES, tidy, with_chance
from harness.report.source import Source, from_store
from harness.report.stability import seeds_table, shares_table, stability_figure, stability_table
from harness.report.tables import Block, Figure, Table, slug

_HEADINGS = {m: f"{m[:3]} R@{m.rpartition('_r')[2]}" for m in RECALLS}


def write_report(store: Store, name: str, folder: Path) -> Path:
    """Write the report of a sweep into `folder`, and return it.

    Raises:
        StoreError: no such sweep, or one of another protocol version.
    """
    return write(from_store(store, name), folder)


def write(source: Source, folder: Path) -> Path:
    """`report.md`, `report.html`, `tables.tex`, `results.csv` (one line a trial) and the figures of a sweep.
    Older figures in the folder go.
    """
    sweep = source.sweep
    frame = with_chance(tidy(sweep), source)
    if sweep.select:  # a search does not use test results
        frame = frame.drop(
            columns=[
                c for c in frame if c.removeprefix("last_") in MEASURES or c.startswith(("1k_", "eccv_"))
            ]
        ).assign(collapsed=False)
    frame["in_warmup"] = (frame["best_epoch"] < frame["warmup_epochs"]) & (not sweep.select)
    marked = with_marks(frame)
    begin(folder)
    frame.to_csv(folder / "results.csv", index=False, float_format="%.6g")
    blocks = list(_search(source, marked, folder) if sweep.select else _comparison(source, marked, folder))
    ends = [_settings(sweep), _provenance(sweep, frame)]
    save(folder, sweep.name, [sweep.description, _state(frame)], blocks, ends)
    page = Page(sweep.name, sweep.description, _state(frame), blocks, ends)
    if not sweep.select:
        page.blocks = [*blocks, *_measures(marked)]
        page.galleries = galleries(source, marked)
    page.trials = trial_lines(frame, source.link)
    page.views = source.views
    finish()
    page.write(folder)
    return folder


def begin(folder: Path) -> None:
    """Make the directory of a report, and remove the figures of an earlier one; other files stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("*.png"), *folder.glob("*.svg")]:
        old.unlink()


def save(folder: Path, title: str, heads: list[str], blocks: list[Block], ends: list[str]) -> None:
    """`report.md` and `tables.tex`."""
    text = [f"# {title}", ""]
    for head in heads:
        text += [head, ""]
    text += [block.content.markdown() for block in blocks]
    (folder / "report.md").write_text("\n".join([*text, *ends]), encoding="utf-8")
    latex = [
        block.content.latex(f"{slug(title)}-{i}")
        for i, block in enumerate(blocks)
        if isinstance(block.content, Table)
    ]
    head = "% needs \\usepackage{booktabs,graphicx}; made by python -m harness.report\n"
    (folder / "tables.tex").write_text(head + "\n".join(latex), encoding="utf-8")


def first_tables(text: str, length: int) -> str:
    """The first sections with tables of a report in Markdown, as many as fit into so many characters."""
    tables = [f"### {part}" for part in text.split("### ")[1:] if "\n|" in part]
    fitting = [t for i, t in enumerate(tables) if sum(map(len, tables[: i + 1])) <= length]
    return "".join(fitting)


def print_summary(folder: Path, views: Sequence[tuple[str, str]] = ()) -> None:
    """Print the first table of the report, the paths of its files and the addresses of the prepared views."""
    from rich.markdown import Markdown

    text = (folder / "report.md").read_text(encoding="utf-8")
    tables = [part for part in text.split("### ")[1:] if "\n|" in part]
    first = next((part for part in tables if part.startswith("rSum by noise ratio")), *tables[:1] or [""])
    width = max(shutil.get_terminal_size().columns, 100)
    console.print(Markdown(f"**{first}".replace("\n", "**\n", 1)), width=width)
    console.print(f"report: {folder / 'report.md'} and report.html", soft_wrap=True)
    if views:
        console.print("in MLflow's UI (`mlflow ui` here, or the server):", markup=False)
    for name, address in views:
        console.print(f"  {name}: {address}", soft_wrap=True, markup=False)


def _comparison(source: Source, frame: pd.DataFrame, folder: Path) -> Iterator[Block]:
    """All tables and figures of a sweep that compares rows over noise ratios."""
    sweep = source.sweep
    for (dataset, noise), part in frame.groupby(["dataset", "noise"], sort=False):
        where = f"{dataset}, {noise}"
        reference = reference_row(part, sweep.reference)
        for topic, content in _of_one(source, part, reference, where, folder):
            if content is not None:
                yield Block(topic, where, content)
    together = blocks_table(frame, reference_row(frame, sweep.reference))
    if together and frame["row"].nunique() > 1:
        yield Block("all blocks", "", together)
        drawn = ranks_figure(frame, folder)
        if drawn:
            yield Block("all blocks", "", drawn)


def _of_one(
    source: Source, part: pd.DataFrame, reference: str, where: str, folder: Path
) -> Iterator[tuple[str, Table | Figure | None]]:
    """Topics of one data set and noise, with their tables and figures (None: not applicable)."""
    several = part["row"].nunique() > 1
    done = part["done"].any()
    for content in headline(part, where, folder):
        yield "headline", content
    if done:
        file = slug("degradation", where)
        band = "a band of one sd over seeds, " if part["row"].nunique() <= BANDS else ""
        degradation(part, where, folder / file)
        yield (
            "rSum",
            Figure(
                f"rSum over the noise ratio: {where}",
                file,
                f"Test rSum at the epoch with the best dev rSum: mean, {band}and the seeds as dots.",
            ),
        )
    yield (
        "rSum",
        by_ratio(
            part, "rsum", f"rSum by noise ratio: {where}", "Test rSum at the epoch with the best dev rSum"
        ),
    )
    if several:
        yield "differences", differences_table(part, reference, where)
    yield "differences", queries_table(part, reference, source.read, where)
    for axis in ablation.axes(source.sweep.planned, part):
        if done:
            yield "hyper-parameters", ablation.axis_figure(axis, part, "rsum", where, folder)
        yield "hyper-parameters", ablation.axis_table(axis, part, "rsum", where)
        if part["in_warmup"].any():  # the selected epoch precedes the stage that the axis changes
            yield "hyper-parameters", ablation.axis_figure(axis, part, "last_rsum", where, folder)
            yield "hyper-parameters", ablation.axis_table(axis, part, "last_rsum", where)
    yield "recalls", recalls_table(part, where)
    for table in coco_tables(part, where):
        yield "recalls", table
    if part["noise_ratio"].nunique() > 1:
        yield "stability", stability_figure(part, where, folder)
        yield "stability", stability_table(part, where, legend(part))
    if part["seed"].nunique() > 1:
        yield "stability", seeds_table(part, where)
    yield "stability", shares_table(part, where)
    yield (
        "last epoch",
        by_ratio(
            part,
            "last_rsum",
            f"rSum of the last epoch: {where}",
            "Test rSum after the last epoch, without selection on dev",
        ),
    )
    beliefs = detection.beliefs(source, part)
    if part["ece"].notna().any() or part["auroc"].notna().any():
        yield "noise detection", detection.scores_table(part, where)
    if beliefs:
        every = detection.means(beliefs)
        for figure in detection.confidence_figures(beliefs, every, part, where, folder):
            yield "noise detection", figure
        for table in detection.epochs_tables(every, where):
            yield "noise detection", table
    yield "cost", cost_figure(part, where, folder)
    for table in cost_tables(part, where):
        yield "cost", table
    yield "published", papers_table(part, source.sweep.methods, where)


def _measures(frame: pd.DataFrame) -> Iterator[Block]:
    """Each recall by noise ratio, for the page."""
    for (dataset, noise), part in frame.groupby(["dataset", "noise"], sort=False):
        for measure, name in _HEADINGS.items():
            table = by_ratio(
                part,
                measure,
                f"{name}: {dataset}, {noise}",
                f"Test {name} in percent at the epoch with the best dev rSum",
            )
            yield Block("each recall", f"{dataset}, {noise}", table)


def _search(source: Source, frame: pd.DataFrame, folder: Path) -> Iterator[Block]:
    """The configurations of a search and the effect of each hyper-parameter, on dev."""
    yield Block("search", "", search_table(frame))
    for (dataset, noise), part in frame.groupby(["dataset", "noise"], sort=False):
        where = f"{dataset}, {noise}"
        for axis in ablation.axes(source.sweep.planned, part):
            if part["done"].any():
                yield Block(
                    "hyper-parameters", where, ablation.axis_figure(axis, part, "dev_rsum", where, folder)
                )
            yield Block("hyper-parameters", where, ablation.axis_table(axis, part, "dev_rsum", where))


def _state(frame: pd.DataFrame) -> str:
    done = int(frame["done"].sum())
    lines = [
        f"{done} of {len(frame)} planned trials are done."
        + ("" if done == len(frame) else " **Cells with fewer seeds are marked.**")
    ]
    for line in frame[frame["failure"] != ""].itertuples():
        lines.append(f"- failed: {line.row} noise {line.noise_ratio:g} seed {line.seed}: `{line.failure}`")
    for (row, ratio), part in frame[frame["collapsed"]].groupby(["row", "noise_ratio"], sort=False):
        scores = ", ".join(
            f"{rsum:.1f} (seed {seed})" for rsum, seed in zip(part["rsum"], part["seed"], strict=True)
        )
        lines.append(
            f"- collapsed: {row} noise {ratio:g}: rSum {scores}; a random ranking has "
            f"{part['chance'].iloc[0]:.1f}; ° marks an rSum of at most that plus {COLLAPSED:.0%} of the "
            f"range up to {PERFECT:g}"
        )
    for (row, ratio), part in frame[frame["in_warmup"]].groupby(["row", "noise_ratio"], sort=False):
        seeds = ", ".join(str(s) for s in part["seed"])
        lines.append(
            f"- best on dev within the warm-up: {row} noise {ratio:g} (seeds {seeds}): the test rSum is that "
            f"of a model before the method's own stage; the rSum of the last epoch is from after it"
        )
    return "\n".join(lines)


def _settings(sweep: SweepRecord) -> str:
    shared, own = shared_and_own_settings(sweep.planned, full=sweep.select)
    hidden = ("dataset", "noise_granularity", "precision", "backbone")
    lines = [
        "### Settings",
        "",
        "Shared by all rows unless listed below: "
        + ", ".join(f"{k} = {v}" for k, v in shared.items() if k not in hidden)
        + ".",
        "",
    ]
    lines += [
        f"- {row}: " + ", ".join(f"{k} = {v}" for k, v in values.items())
        for row, values in own.items()
        if values
    ]
    return "\n".join([*lines, ""]).replace("_", "\\_")


def _realised(part: pd.DataFrame) -> str:
    share = part["realised_ratio"].mean()
    return "mismatched pairs unknown" if pd.isna(share) else f"realised {share:.4f}"


def _provenance(sweep: SweepRecord, frame: pd.DataFrame) -> str:
    """Versions, digests and machine of the trials; each run in the store has all of them."""
    tags = [r.tags for r in sweep.records.values() if r.done]
    shown = (
        "git_commit",
        "data_fingerprint",
        "device",
        "precision",
        "processes",
        "threads",
        "torch",
        "open_clip_torch",
        "accelerate",
        "scikit-learn",
        "python",
    )
    lines = ["### Provenance", "", f"- protocol version {PROTOCOL_VERSION}"]
    lines += [f"- {key}: {', '.join(sorted({t.get(key, '?') for t in tags}))}" for key in shown if tags]
    digests = frame[frame["noise_digest"] != ""].groupby(["noise", "noise_ratio", "noise_seed"])
    index = [
        f"{ratio:g}/{seed}: {', '.join(sorted(set(part['noise_digest'])))} ({_realised(part)})"
        for (_, ratio, seed), part in digests
    ]
    lines += [
        "- noise index (ratio/seed: digest): " + "; ".join(index),
        f"- six recalls: {', '.join(RECALLS)}; every line of `results.csv` names its run",
    ]
    return "\n".join([*lines, ""])
