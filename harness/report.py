"""`python -m harness.report NAME`: from the store to `reports/NAME/`.

Writes `report.md`, `tables.tex`, `results.csv` (one line a trial) and figures. Results come from MLflow and
from nowhere else.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from harness import PROTOCOL_VERSION
from harness.coco import ECCV_MEASURES
from harness.comparison import blocks_table, differences_table, not_worse, queries_table, reference_row
from harness.console import console, fail
from harness.metrics import RECALLS
from harness.published import papers_table
from harness.registry import UnknownName
from harness.results import MEASURES, cells, shared_and_own_settings, tidy
from harness.stability import seeds_table, shares_table, stability_table
from harness.tables import Cell, Table
from harness.tracking import Store, StoreError, SweepRecord

_HEADINGS = {f"{d}_r{k}": f"{d} R@{k}" for d in ("i2t", "t2i") for k in (1, 5, 10)} | {"rsum": "rSum"}
_UNDERLINED = "Underlined: not significantly worse than the best (paired t test over seeds, Holm over the table)."
_ECCV = {"map_at_r": "mAP@R", "rprecision": "R-Precision", "r1": "R@1"}
_MEAN = "Mean ± sd over seeds (ddof 1)"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m harness.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="the sweep's name")
    parser.add_argument("--tracking-uri", help="MLflow store (default: mlflow.db here)")
    options = parser.parse_args(arguments)
    try:
        folder = write_report(Store(options.tracking_uri, patient=False), options.name, Path.cwd() / "reports" / options.name)
    except (StoreError, UnknownName) as error:
        return fail([str(error)])
    print_summary(folder)
    return 0


def write_report(store: Store, name: str, folder: Path) -> Path:
    """Write the report of a sweep into `folder`, and return it.

    Raises:
        StoreError: no such sweep, or one of another protocol version.
    """
    sweep = store.read_sweep(name)
    frame = tidy(sweep)

    def rankings(run: str) -> Mapping[str, Any]:
        return store.read_array(run, "test_rankings.npz")

    folder.mkdir(parents=True, exist_ok=True)
    if sweep.select:  # test plays no part in a search
        frame = frame.drop(columns=[c for c in frame if c.removeprefix("last_") in MEASURES or c.startswith(("1k_", "eccv_"))])
    frame.to_csv(folder / "results.csv", index=False, float_format="%.6g")
    tables, figures = _selection(sweep, frame) if sweep.select else _comparison(frame, folder, sweep.reference, rankings)
    text = [f"# {sweep.name}", "", sweep.description, "", _state(frame), ""]
    for title, file in figures:
        text += [f"![{title}]({file})", ""]
    text += [table.markdown() for table in tables]
    text += [_settings(sweep), _provenance(sweep, frame)]
    (folder / "report.md").write_text("\n".join(text), encoding="utf-8")
    latex = [table.latex(f"{name}-{i}") for i, table in enumerate(tables)]
    head = "% needs \\usepackage{booktabs}; made by python -m harness.report\n"
    (folder / "tables.tex").write_text(head + "\n".join(latex), encoding="utf-8")
    return folder


def print_summary(folder: Path) -> None:
    """The report's first table on the terminal, and where the rest is."""
    from rich.markdown import Markdown

    text = (folder / "report.md").read_text(encoding="utf-8")
    start = text.index("### ")
    first = text[start : text.find("### ", start + 4)]
    width = max(shutil.get_terminal_size().columns, 100)
    console.print(Markdown(first.replace("### ", "**", 1).replace("\n", "**\n", 1)), width=width)
    console.print(f"report: {folder / 'report.md'}   all runs: mlflow ui", soft_wrap=True)


def _comparison(frame: pd.DataFrame, folder: Path, reference: str | None, read: Callable[[str], Mapping[str, Any]]) -> tuple[list[Table], list[tuple[str, str]]]:
    """All tables and figures of a sweep that compares rows over noise ratios."""
    from harness.figures import degradation

    tables, figures = [], []
    for (dataset, noise), part in frame.groupby(["dataset", "noise"], sort=False):
        where, marked = f"{dataset}, {noise}", _with_marks(part)
        file = "-".join(["degradation", *re.findall(r"\w+", dataset), *re.findall(r"\w+", noise.removesuffix("-level noise"))])
        degradation(part, where, folder / file)
        figures.append((f"rSum over the noise ratio: {where}", f"{file}.png"))
        tables += [
            _by_ratio(part, "rsum", f"rSum by noise ratio: {where}", "Test rSum of the epoch that is best on dev"),
            *([differences_table(marked, reference_row(marked, reference), where)] if part["row"].nunique() > 1 else []),
            *filter(None, [queries_table(marked, reference_row(marked, reference), read, where)]),
            _recalls(part, where),
            *_coco(part, where),
            *([stability_table(marked, where, _LEGEND)] if part["noise_ratio"].nunique() > 1 else []),
            *([seeds_table(marked, where)] if part["seed"].nunique() > 1 else []),
            *filter(None, [shares_table(marked, where)]),
            _by_ratio(part, "last_rsum", f"rSum of the last epoch: {where}", "Test rSum after the last epoch, nothing selected"),
        ]
        if part["auroc"].notna().any():
            caption = "AUROC of the confidence after the last epoch for telling matched from mismatched training pairs; "
            tables.append(_by_ratio(part, "auroc", f"Noise detection: {where}", caption + "rows without a confidence are left out", digits=3))
        tables.append(_cost(part, where))
        tables += filter(None, [papers_table(marked, where)])
    every = _with_marks(frame)
    together = blocks_table(every, reference_row(every, reference))
    return [*tables, *([together] if together and frame["row"].nunique() > 1 else [])], figures


def _by_ratio(frame: pd.DataFrame, measure: str, title: str, what: str, *, digits: int = 1) -> Table:
    """Rows x noise ratio of one measure."""
    ratios = sorted(frame["noise_ratio"].unique())
    found = cells(frame, measure)
    best = {float(r): _best(frame, found, r) for r in ratios}
    near = not_worse(frame, best, measure)
    rows = []
    for row in dict.fromkeys(frame["row"]):
        if measure == "auroc" and found.loc[row]["n"].sum() == 0:
            continue
        cells_ = [Cell(_mean_sd(found.loc[row, r], digits), best=row in best[r], near=(row, r) in near) for r in ratios]
        rows.append([Cell(_marked(frame, row)), *cells_])
    planned = int(found["planned"].max())
    caption = f"{what}. {_MEAN}, n = {planned} seeds a cell unless marked. {_LEGEND} {_UNDERLINED if near else ''}".rstrip()
    return Table(title, caption, ["method", *(f"noise {r:g}" for r in ratios)], rows)


def _coco(frame: pd.DataFrame, where: str) -> list[Table]:
    """MS-COCO's 1K protocol and ECCV Caption, where the trials have them."""
    tables = []
    if "1k_rsum" in frame and frame["1k_rsum"].notna().any():
        renamed = frame.drop(columns=list(MEASURES)).rename(columns={f"1k_{m}": m for m in MEASURES})
        tables.append(_recalls(renamed, f"{where}, 1K (mean of five folds of 1,000 images)"))
    for measure in ECCV_MEASURES:
        if measure in frame and frame[measure].notna().any():
            _, direction, name = measure.split("_", 2)
            title = f"ECCV Caption {direction} {_ECCV[name]}: {where}"
            tables.append(_by_ratio(frame, measure, title, f"{_ECCV[name]} in percent with ECCV Caption's judgements of MS-COCO's test images"))
    return tables


def _recalls(frame: pd.DataFrame, where: str) -> Table:
    """All six recalls and rSum for each ratio and row."""
    found = {m: cells(frame, m) for m in MEASURES}
    rows = []
    for ratio in sorted(frame["noise_ratio"].unique()):
        best = {m: _best(frame, found[m], ratio) for m in MEASURES}
        for row in dict.fromkeys(frame["row"]):
            values = [Cell(_mean_sd(found[m].loc[row, ratio], 1, mark=False), best=row in best[m]) for m in MEASURES]
            cell = found["rsum"].loc[row, ratio]
            rows.append([Cell(f"{ratio:g}"), Cell(_marked(frame, row)), *values, Cell(_count(cell))])
    columns = ["noise", "method", *(_HEADINGS[m] for m in MEASURES), "n"]
    return Table(f"All recalls: {where}", f"Test recalls in percent, epoch best on dev. {_MEAN}. {_LEGEND}", columns, rows)


def _cost(frame: pd.DataFrame, where: str) -> Table:
    rows = []
    for row, part in frame.groupby("row", sort=False):
        done = part[part["done"]]
        if done.empty:
            continue
        mean = done[["seconds", "pairs_per_second", "peak_memory_mb", "networks", "parameters"]].mean()
        speed = "–" if pd.isna(mean["pairs_per_second"]) else f"{mean['pairs_per_second']:,.0f}"
        count = Cell(_count(pd.Series({"n": len(done), "planned": len(part)})))
        values = [f"{mean['seconds']:.1f}", speed, f"{mean['peak_memory_mb']:,.0f}", f"{mean['networks']:g}", f"{mean['parameters'] / 1e6:.2f}"]
        rows.append([Cell(_marked(frame, str(row))), *map(Cell, values), count])
    caption = (
        "Means over a row's trials: seconds of training, looking at pairs and evaluation; pairs that networks were trained on per "
        "second of the first two; peak memory (of the GPU where there is one; on a CPU of the process, with what earlier trials in it left); "
        "networks whose similarities are averaged at test; trained parameters, in millions. Wall-clock times, so whatever shared the "
        "machine is in them: `python -m harness.bench` measures methods in turn and gives ratios. " + _LEGEND
    )
    return Table(f"Cost: {where}", caption, ["method", "seconds ↓", "pairs/s ↑", "peak MB ↓", "networks", "parameters (M)", "n"], rows)


def _selection(sweep: SweepRecord, frame: pd.DataFrame) -> tuple[list[Table], list[tuple[str, str]]]:
    """A search: dev rSum of every try, the best of each method marked. Test stays out of it."""
    found = frame.groupby(["method", "row"], sort=False)["dev_rsum"].agg(mean="mean", sd=lambda x: x.std(ddof=1), n="count", planned="size")
    rows = []
    for _, part in found.groupby(level=0, sort=False):
        best = part["mean"].max()
        rows += [[Cell(row), Cell(_mean_sd(line, 1), best=line["mean"] == best)] for (_, row), line in part.iterrows()]
    tries = ", ".join(f"{method} {len(part)}" for method, part in found.groupby(level=0, sort=False))
    caption = f"Best dev rSum of each try, mean over noise ratios and seeds; in bold the setting that is chosen for the method. Tries: {tries}."
    return [Table("Search on dev", caption, ["try", "dev rSum"], rows)], []


_LEGEND = "Bold: best among methods that do not know the truth, with all seeds done. ×2: the similarities of two networks averaged at test. † uses clean data. ‡ knows the truth: a ceiling, not a competitor."


def _best(frame: pd.DataFrame, found: pd.DataFrame, ratio: float) -> set[str]:
    """Rows with the highest mean at a ratio, among complete cells of methods that do not know the truth."""
    allowed = set(frame.loc[~frame["ground_truth"], "row"])
    column = found.xs(ratio, level="noise_ratio")
    column = column[column.index.isin(allowed) & (column["n"] == column["planned"])]
    return set(column.index[column["mean"] == column["mean"].max()])


def _mean_sd(cell: pd.Series, digits: int, *, mark: bool = True) -> str:
    if cell["n"] == 0:
        return "–"  # nothing there: not planned, or nothing done yet
    sd = "" if pd.isna(cell["sd"]) else f" ± {cell['sd']:.{digits}f}"
    short = f" (n={_count(cell)})" if mark and cell["n"] < cell["planned"] else ""
    return f"{cell['mean']:.{digits}f}{sd}{short}"


def _count(cell: pd.Series) -> str:
    n, planned = int(cell["n"]), int(cell["planned"])
    return str(n) if n == planned else f"{n} of {planned}!"


def _with_marks(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with rows called as tables show them."""
    return frame.assign(row=frame["row"].map({row: _marked(frame, row) for row in frame["row"].unique()}))


def _marked(frame: pd.DataFrame, row: str) -> str:
    line = frame.loc[frame["row"] == row].iloc[0]
    networks = frame.loc[frame["row"] == row, "networks"].max()  # none before a trial is done
    row += f" ×{networks:g}" if networks > 1 else ""
    return row + (" †" if line["clean_data"] else "") + (" ‡" if line["ground_truth"] else "")


def _state(frame: pd.DataFrame) -> str:
    done = int(frame["done"].sum())
    lines = [f"{done} of {len(frame)} planned trials are done." + ("" if done == len(frame) else " **Cells with fewer seeds are marked.**")]
    for _, line in frame[frame["failure"] != ""].iterrows():
        lines.append(f"- failed: {line['row']} noise {line['noise_ratio']:g} seed {line['seed']}: `{line['failure']}`")
    return "\n".join(lines)


def _settings(sweep: SweepRecord) -> str:
    shared, own = shared_and_own_settings(sweep.planned)
    hidden = ("dataset", "noise_granularity", "precision", "backbone")
    lines = ["### Settings", "", "Shared: " + ", ".join(f"{k} = {v}" for k, v in shared.items() if k not in hidden) + ".", ""]
    lines += [f"- {row}: " + ", ".join(f"{k} = {v}" for k, v in values.items()) for row, values in own.items() if values]
    return "\n".join([*lines, ""]).replace("_", "\\_")


def _realised(part: pd.DataFrame) -> str:
    share = part["realised_ratio"].mean()
    return "which pairs mismatch is not known" if pd.isna(share) else f"realised {share:.4f}"


def _provenance(sweep: SweepRecord, frame: pd.DataFrame) -> str:
    """What is needed to repeat the numbers; each run in the store carries all of it."""
    tags = [r.tags for r in sweep.records.values() if r.done]
    shown = ("git_commit", "data_fingerprint", "device", "precision", "processes", "threads", "torch", "open_clip_torch", "accelerate", "scikit-learn", "python")
    lines = ["### Provenance", "", f"- protocol version {PROTOCOL_VERSION}"]
    lines += [f"- {key}: {', '.join(sorted({t.get(key, '?') for t in tags}))}" for key in shown if tags]
    digests = frame[frame["noise_digest"] != ""].groupby(["noise", "noise_ratio", "noise_seed"])
    index = [f"{ratio:g}/{seed}: {', '.join(sorted(set(part['noise_digest'])))} ({_realised(part)})"
             for (_, ratio, seed), part in digests]
    lines += ["- noise index (ratio/seed: digest): " + "; ".join(index), f"- six recalls: {', '.join(RECALLS)}; every line of `results.csv` names its run"]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
