"""Assembly of a report: the tables and figures of a sweep, and the files that hold them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness import PROTOCOL_VERSION
from harness.config.labels import shared_and_own_settings
from harness.config.search import LEAST_OWN_STAGE
from harness.evaluation.metrics import PERFECT, RECALLS
from harness.lib.console import console
from harness.lib.files import RESULTS, STORAGE
from harness.lib.locks import acquire
from harness.record.store import Store
from harness.record.types import SweepRecord
from harness.report import ablation, detection
from harness.report.accuracy import (
    by_ratio,
    coco_tables,
    devices,
    legend,
    recalls_table,
    search_table,
    with_marks,
)
from harness.report.comparison import (
    blocks_table,
    differences_table,
    queries_table,
    ranks_figure,
    reference_row,
)
from harness.report.cost import cost_figure, cost_tables
from harness.report.design import designs_of, rounding_table, statement
from harness.report.drawing import finish
from harness.report.external import rows_text, with_external, without_external
from harness.report.figures import BANDS, degradation, marks_legend
from harness.report.gallery import galleries
from harness.report.headline import headline
from harness.report.page import Page, trial_lines
from harness.report.published import papers_table
from harness.report.results import (
    COLLAPSED,
    MEASURES,
    collapsed,
    over_noise_seeds,
    primary,
    tidy,
    with_chance,
)
from harness.report.search import searched
from harness.report.source import Source, from_store
from harness.report.stability import seeds_table, shares_table, stability_figure, stability_table
from harness.report.tables import Block, Figure, Table, slug

_HEADINGS = {m: f"{m[:3]} R@{m.rpartition('_r')[2]}" for m in RECALLS}


def held(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Holds the folder of a report for one process at a time: two sweeps of one file may end together."""
    return acquire(STORAGE.parent / "reports" / folder.name, wait=True)


def write_report(store: Store, name: str, folder: Path) -> Path:
    """Write the report of a sweep into `folder`, and return it.

    Raises:
        StoreError: no such sweep, or one of another protocol version.
    """
    return write(with_external(from_store(store, name), RESULTS / name), folder)


def write(source: Source, folder: Path) -> Path:
    """`report.md`, `report.html`, `tables.tex`, `results.csv` (one line a trial) and the figures of a sweep.
    Older figures in the folder go.
    """
    sweep = source.sweep
    frame = with_chance(tidy(sweep), source)
    if sweep.select:  # a search does not use test results
        test = [c for c in frame if c.removeprefix("last_") in MEASURES or "1k_" in c or "eccv_" in c]
        frame = frame.drop(columns=test).assign(collapsed=False)
    frame["in_warmup"] = (frame["best_epoch"] < frame["warmup_epochs"]) & (not sweep.select)
    begin(folder)
    frame.to_csv(folder / "results.csv", index=False, float_format="%.6g")
    marked = with_marks(primary(frame))
    blocks = list(_search(source, marked, folder) if sweep.select else _comparison(source, marked, folder))
    own = without_external(sweep)
    ends = [*rows_text(sweep), _settings(own), _provenance(own, frame)]
    left_out = [f"- external row left out: {text}" for text in source.left_out]
    state = "\n".join([*_version(sweep), _state(frame), *left_out, *_designs(marked, sweep)])
    save(folder, sweep.name, [sweep.description, state], blocks, ends)
    page = Page(sweep.name, sweep.description, state, blocks, ends)
    if not sweep.select:
        unperturbed = marked[marked["perturbed"] == 0]
        page.blocks = [*blocks, *_measures(unperturbed)]
        page.galleries = galleries(source, unperturbed[~unperturbed["external"]])
    else:
        page.measure = "dev rSum"
    page.trials = trial_lines(primary(frame), source.link)
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
    everything, frame = frame, frame[frame["perturbed"] == 0]
    for (dataset, noise), part in frame.groupby(["dataset", "noise"], sort=False):
        where = f"{dataset}, {noise}"
        reference = reference_row(part, sweep.reference)
        for topic, content in _of_one(source, part, reference, where, folder):
            if content is not None:
                yield Block(topic, where, content)
        here = everything[(everything["dataset"] == dataset) & (everything["noise"] == noise)]
        if moved := rounding_table(here, where):
            yield Block("rounding", where, moved)
    frame = over_noise_seeds(frame)
    together = blocks_table(frame, reference_row(frame, sweep.reference))
    if together and frame["row"].nunique() > 1:
        yield Block("all blocks", "", together)
        drawn = ranks_figure(frame, folder)
        if drawn:
            yield Block("all blocks", "", drawn)


def _of_one(
    source: Source, trials: pd.DataFrame, reference: str, where: str, folder: Path
) -> Iterator[tuple[str, Table | Figure | None]]:
    """Topics of one data set and noise, with their tables and figures (None: not applicable)."""
    part = over_noise_seeds(trials)
    several = part["row"].nunique() > 1
    done = part["done"].any()
    for content in headline(part, where, folder):
        yield "headline", content
    if done:
        file = slug("degradation", where)
        ratios = part["noise_ratio"].nunique() > 1
        band = "a band of one sd over seeds, " if ratios and part["row"].nunique() <= BANDS else ""
        aside = "beside it" if ratios else "in the same colour; rows stand side by side"
        degradation(part, where, folder / file)
        yield (
            "rSum",
            Figure(
                f"rSum over the noise ratio: {where}",
                file,
                f"Test rSum after the last epoch: mean, {band}and the seeds as dots {aside}."
                + marks_legend(part[part["done"]], dashes=ratios),
            ),
        )
    yield (
        "rSum",
        by_ratio(part, "rsum", f"rSum by noise ratio: {where}", "Test rSum after the last epoch"),
    )
    yield (
        "rSum",
        by_ratio(
            part,
            "selected_rsum",
            f"rSum of the epoch selected on dev: {where}",
            "Test rSum at the epoch with the best dev rSum: the second endpoint",
        ),
    )
    if several:
        yield "differences", differences_table(part, reference, where)
    yield "differences", queries_table(part, reference, source.read, where)
    for axis in ablation.axes(source.sweep.planned, trials):
        if done:
            yield "hyper-parameters", ablation.axis_figure(axis, part, "rsum", where, folder)
        yield "hyper-parameters", ablation.axis_table(axis, part, "rsum", where)
    yield "recalls", recalls_table(part, where)
    for table in coco_tables(part, where):
        yield "recalls", table
    if part["noise_ratio"].nunique() > 1:
        yield "stability", stability_figure(part, where, folder)
        yield "stability", stability_table(part, where, legend(part))
    if part["seed"].nunique() > 1:
        yield "stability", seeds_table(part, where)
    yield "stability", shares_table(trials, where)
    for trained in detection.trained_on(source, trials, where, folder):
        yield "what is trained on", trained
    beliefs = detection.beliefs(source, trials)
    if part["ece"].notna().any() or part["auroc"].notna().any():
        yield "noise detection", detection.scores_table(part, where)
    if beliefs:
        every = detection.means(beliefs, source)
        for figure in detection.confidence_figures(beliefs, every, trials, where, folder):
            yield "noise detection", figure
        for table in detection.epochs_tables(every, where):
            yield "noise detection", table
    yield "cost", cost_figure(trials, where, folder)
    for table in cost_tables(trials, where):
        yield "cost", table
    yield "published", papers_table(part, source.sweep.methods, where)


def _measures(frame: pd.DataFrame) -> Iterator[Block]:
    """Each recall by noise ratio, for the page."""
    for (dataset, noise), part in frame.groupby(["dataset", "noise"], sort=False):
        for measure, name in _HEADINGS.items():
            table = by_ratio(
                over_noise_seeds(part),
                measure,
                f"{name}: {dataset}, {noise}",
                f"Test {name} in percent after the last epoch",
            )
            yield Block("each recall", f"{dataset}, {noise}", table)


def _search(source: Source, frame: pd.DataFrame, folder: Path) -> Iterator[Block]:
    """What a search has found, its configurations and the effect of each hyper-parameter, on dev."""
    if source.sweep.search:
        yield from searched(source.sweep, frame, folder)
        return
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
    own = frame[~frame["external"]]
    done = int(own["done"].sum())
    measured = primary(frame[frame["perturbed"] == 0])
    if "rsum" in measured:  # of the last epoch, which is shown
        measured = measured.assign(collapsed=collapsed(measured, "rsum"))
    several = frame[["dataset", "noise"]].drop_duplicates().shape[0] > 1
    lines = [
        f"{done} of {len(own)} planned trials are done."
        + ("" if done == len(own) else " **Cells with fewer seeds are marked.**")
    ]
    for line in frame[frame["failure"] != ""].itertuples():
        cell = _cell((line.row, line.noise_ratio, line.dataset, line.noise), several)
        lines.append(f"- failed: {cell} seed {line.seed}: `{line.failure}`")
    keys = ["row", "noise_ratio", "dataset", "noise"]
    for key, part in measured[measured["collapsed"]].groupby(keys, sort=False):
        scores = ", ".join(
            f"{rsum:.1f} (seed {seed})" for rsum, seed in zip(part["rsum"], part["seed"], strict=True)
        )
        lines.append(
            f"- collapsed: {_cell(key, several)}: rSum {scores}; a random ranking has "
            f"{part['chance'].iloc[0]:.1f}; ° marks an rSum of at most that plus {COLLAPSED:.0%} of the "
            f"range up to {PERFECT:g}"
        )
    if "rsum" in measured:  # a search shows how long the warm-up of each of its settings is
        lines += _hardly_begun(measured)
    lines += _selected_in_warmup(measured, several)
    return "\n".join(lines)


def _hardly_begun(measured: pd.DataFrame) -> Iterator[str]:
    """The rows whose warm-up takes almost all of the learning: they say little of the method's own stage."""
    for row, part in measured.groupby("row", sort=False):
        share = part["own_stage"].min()
        if share < LEAST_OWN_STAGE:
            yield (
                f"- hardly more than its warm-up: {row}, where {part['warmup_epochs'].max():g} warm-up "
                f"epochs leave {share:.1%} of the summed learning rate to the method's own stage"
            )


def _selected_in_warmup(measured: pd.DataFrame, several: bool) -> Iterator[str]:
    """For each row in how many trials the epoch selected on dev is one before the method's own stage."""
    rows = measured[measured["done"]].groupby(["row", "dataset", "noise"], sort=False)
    for (row, dataset, noise), part in rows:
        counts = part.groupby("noise_ratio")["in_warmup"].agg(["sum", "size"])
        told = [f"{ratio:g} ({hit} of {n} seeds)" for ratio, hit, n in counts.itertuples() if hit]
        if told:
            where = f"{row} ({dataset}, {noise})" if several else row
            yield (
                "- the epoch selected on dev is one of the warm-up, before the method's own stage: "
                f"{where} at noise {', '.join(told)}"
            )


def _cell(key: Any, several: bool) -> str:
    """The words for a cell (row, ratio, data set and noise), with the last two where there are several."""
    row, ratio, dataset, noise = key
    return f"{row} noise {ratio:g}" + (f" ({dataset}, {noise})" if several else "")


def _version(sweep: SweepRecord) -> list[str]:
    """A warning where the records are of an older protocol version."""
    if sweep.protocol_version == PROTOCOL_VERSION:
        return []
    return [
        f"**Recorded under protocol version {sweep.protocol_version}: not to be compared with records of "
        f"version {PROTOCOL_VERSION}.**\n"
    ]


def _designs(frame: pd.DataFrame, sweep: SweepRecord) -> list[str]:
    """What the seeds can show, for each data set and noise."""
    lines = []
    frame = frame[frame["perturbed"] == 0]
    for (dataset, noise), part in frame.groupby(["dataset", "noise"], sort=False):
        designs = {} if sweep.select else designs_of(over_noise_seeds(part))
        if designs:
            text = statement(list(designs.values()), several=part["noise_ratio"].nunique() > 1)
            lines.append(f"- {dataset}, {noise}. {text}")
    return lines


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


def _origin(sweep: SweepRecord) -> list[str]:
    """The searches that each method has its settings from, and the digests of the code behind its numbers."""
    done = [record for record in sweep.records.values() if record.done]
    searches: dict[tuple[str, str, str], list[str]] = {}
    for record in done:
        if name := record.tags.get("search"):
            key = (name, record.tags["search_digest"], record.tags["search_tries"])
            if record.trial.method not in (methods := searches.setdefault(key, [])):
                methods.append(record.trial.method)
    lines = [
        f"- settings from the search {name} (digest {digest}, {tries} tries for each method): "
        + ", ".join(methods)
        for (name, digest, tries), methods in searches.items()
    ]
    digests: dict[str, set[str]] = {}
    for record in done:
        digests.setdefault(record.trial.method, set()).add(record.tags.get("code", "?"))
    if digests:
        listed = "; ".join(f"{method} {', '.join(sorted(found))}" for method, found in digests.items())
        several = any(len(found) > 1 for found in digests.values())
        warning = " **(several: these records are not of one state of the code)**" if several else ""
        lines.append(f"- digest of the code that makes numbers: {listed}{warning}")
    return lines


def _devices(frame: pd.DataFrame) -> list[str]:
    """Where the trials ran; of several devices, which methods where."""
    found = devices(frame)
    return [f"- device: {d}" + f": {', '.join(m)}" * (len(found) > 1) for d, m in found.items()]


def _provenance(sweep: SweepRecord, frame: pd.DataFrame) -> str:
    """Versions, digests and machine of the trials; each run in the store has all of them."""
    tags = [r.tags for r in sweep.records.values() if r.done]
    shown = (
        "git_commit",
        "data_fingerprint",
        "precision",
        "processes",
        "threads",
        "torch",
        "open_clip_torch",
        "accelerate",
        "scikit-learn",
        "python",
    )
    lines = ["### Provenance", "", f"- protocol version {sweep.protocol_version}", *_origin(sweep)]
    lines += _devices(frame)
    lines += [f"- {key}: {', '.join(sorted({t.get(key, '?') for t in tags}))}" for key in shown if tags]
    places = frame[frame["noise_digest"] != ""].groupby(["dataset", "noise"], sort=False)
    lines += [
        f"- noise index of {dataset}, {noise} (ratio/seed: digest): "
        + "; ".join(
            f"{ratio:g}/{seed}: {', '.join(sorted(set(part['noise_digest'])))} ({_realised(part)})"
            for (ratio, seed), part in place.groupby(["noise_ratio", "noise_seed"])
        )
        for (dataset, noise), place in places
    ]
    lines += [
        f"- six recalls: {', '.join(RECALLS)}; every line of `results.csv` names its run",
    ]
    return "\n".join([*lines, ""])
