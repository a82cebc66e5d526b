"""Accuracy of each row: tables of recalls, and the parts that all tables share (marks of rows, formatted
cells, the best in bold).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from harness.config.external import MARK
from harness.evaluation.coco import ECCV_MEASURES
from harness.report.comparison import not_worse
from harness.report.design import RESOLUTION, needed_seeds
from harness.report.results import MEAN, MEASURES, cells, collapsed, heading, with_mean
from harness.report.tables import Cell, Table

LONG = 12
"""Rows beyond which a table by noise ratio names their families."""
MEAN_SD = "Mean ± sd over seeds (ddof 1)"
_UNDERLINED = (
    " Underlined: not significantly worse than the best of its track (paired t test over seeds, Holm over "
    "the column of means and over the others)."
)
_HEADINGS = {f"{d}_r{k}": f"{d} R@{k}" for d in ("i2t", "t2i") for k in (1, 5, 10)} | {"rsum": "rSum"}
_ECCV = {"map_at_r": "mAP@R", "rprecision": "R-Precision", "r1": "R@1"}


def by_ratio(frame: pd.DataFrame, measure: str, title: str, what: str, *, digits: int = 1) -> Table:
    """Rows x noise ratio of one measure where higher is better, with the mean over ratios first; rows without
    any value of it are omitted.
    """
    frame = with_mean(frame, measure)
    ratios = sorted(frame["noise_ratio"].unique())
    table = cells(frame, measure)
    best = {float(r): best_rows(frame, table.xs(r, level="noise_ratio")) for r in ratios}
    needed, planned = needed_seeds(frame, measure), int(table["planned"].max())
    track_of = dict(zip(frame["row"], frame["track"], strict=True))
    near = {
        (row, ratio)
        for (row, ratio), d in not_worse(frame, best, measure).items()
        if d.n >= needed.get((track_of[row], ratio == MEAN), np.inf)
    }
    chance = _at_chance(frame, measure) if measure in ("rsum", "selected_rsum") else set()
    family = dict(zip(frame["row"], frame["family"], strict=True))
    long = len(family) > LONG and len(set(family.values())) > 1
    rows = []
    for row in dict.fromkeys(frame["row"]):
        if measure not in MEASURES and not measure.startswith("selected_") and table.loc[row]["n"].sum() == 0:
            continue
        texts = [
            mean_sd(table.loc[row, r], digits, usual=planned) + ("°" if (row, r) in chance else "")
            for r in ratios
        ]
        rows.append(
            [
                Cell(row),
                *([Cell(family[row])] if long else []),
                *(
                    Cell(t, best=row in best[r], near=(row, r) in near)
                    for t, r in zip(texts, ratios, strict=True)
                ),
            ]
        )
    at_chance = " ° at least one seed is close to chance level." if chance else ""
    caption = (
        f"{what}. {MEAN_SD}, n = {planned} seeds per cell unless marked. "
        f"{legend(frame)}{_UNDERLINED if near else ''}{_too_few(needed, planned, MEAN in ratios)}{at_chance}"
    )
    columns = ["method", *(["family"] if long else []), *map(heading, ratios)]
    return Table(title, caption, columns, rows)


def _too_few(needed: Mapping[tuple[str, bool], int], planned: int, means: bool) -> str:
    """What a caption says where so many seeds are too few to underline anything.

    Args:
        needed: as `needed_seeds` gives them.
        means: whether the table has means over ratios.
    """

    def whose(several: bool) -> str | None:
        """The rows that seeds are too few for: empty where for all, None where for none."""
        known = {track: seeds for (track, of_means), seeds in needed.items() if of_means == several}
        few = [track for track, seeds in known.items() if planned < seeds]
        if not few:
            return None
        return "" if len(few) == len(known) else f" among rows of {few[0]}"

    cannot = f"these seeds cannot tell a difference of {RESOLUTION:g} points"
    first, single = whose(means), whose(False) if means else None
    text = "" if first is None else f" Nothing is underlined{first}: {cannot} (see the design)."
    if single is not None and first != "":
        text += (
            f" At a single ratio nothing is underlined{single}: {cannot} there, and bold is no more than the "
            "highest mean."
        )
    return text


def by_measure(
    frame: pd.DataFrame, measures: Mapping[str, tuple[str, int, bool]], title: str, what: str
) -> Table:
    """(Noise ratio, row) x measures; `measures` gives for a column its heading, digits and whether higher
    is better.

    Cells without any of them are omitted, except cells with unfinished trials.
    """
    tables = {m: cells(frame, m) for m in measures}
    rows = []
    for ratio in sorted(frame["noise_ratio"].unique()):
        at = {m: tables[m].xs(ratio, level="noise_ratio") for m in measures}
        best = {m: best_rows(frame, at[m], more=more) for m, (_, _, more) in measures.items()}
        for row in dict.fromkeys(frame["row"]):
            part = frame[(frame["row"] == row) & (frame["noise_ratio"] == ratio)]
            if part["done"].any() and part[list(measures)].isna().all(axis=None):
                continue  # the method does not report any of these
            values = [
                Cell(mean_sd(at[m].loc[row], digits), best=row in best[m])
                for m, (_, digits, _) in measures.items()
            ]
            count = pd.Series({"n": part[list(measures)].notna().any(axis=1).sum(), "planned": len(part)})
            rows.append([Cell(f"{ratio:g}"), Cell(row), *values, Cell(counted(count))])
    columns = ["noise", "method", *(heading for heading, _, _ in measures.values()), "n"]
    return Table(title, f"{what}. {MEAN_SD}. {legend(frame)}", columns, rows)


def recalls_table(frame: pd.DataFrame, where: str) -> Table:
    """All six recalls and rSum for each ratio and row."""
    measures = {m: (_HEADINGS[m], 1, True) for m in MEASURES}
    return by_measure(
        frame,
        measures,
        f"All recalls: {where}",
        "Test recalls in percent after the last epoch",
    )


def coco_tables(frame: pd.DataFrame, where: str) -> list[Table]:
    """Tables of the 1K protocol of MS-COCO and of ECCV Caption, for trials that have these metrics."""
    tables = []
    if "1k_rsum" in frame and frame["1k_rsum"].notna().any():
        renamed = frame.drop(columns=list(MEASURES)).rename(columns={f"1k_{m}": m for m in MEASURES})
        tables.append(recalls_table(renamed, f"{where}, 1K (mean of five folds of 1,000 images)"))
    for measure in ECCV_MEASURES:
        if measure in frame and frame[measure].notna().any():
            _, direction, name = measure.split("_", 2)
            title = f"ECCV Caption {direction} {_ECCV[name]}: {where}"
            tables.append(
                by_ratio(
                    frame,
                    measure,
                    title,
                    f"{_ECCV[name]} in percent, with the relevance judgements of ECCV Caption",
                )
            )
    return tables


def search_table(frame: pd.DataFrame) -> Table:
    """Dev rSum of each configuration of a search, the best of each method in bold; test is not used."""
    dev_rsums = frame.groupby(["method", "row"], sort=False)["dev_rsum"].agg(
        mean="mean", sd=lambda x: x.std(ddof=1), n="count", planned="size"
    )
    rows = []
    for _, part in dev_rsums.groupby(level=0, sort=False):
        complete = part["n"] == part["planned"]
        best = part.loc[complete, "mean"].max()
        usual = int(part["planned"].max())
        rows += [
            [
                Cell(row),
                Cell(
                    mean_sd(line, 1, usual=usual), best=line["n"] == line["planned"] and line["mean"] == best
                ),
            ]
            for (_, row), line in part.iterrows()
        ]
    tries = ", ".join(f"{method} {len(part)}" for method, part in dev_rsums.groupby(level=0, sort=False))
    caption = (
        "Dev rSum of each configuration after the last epoch, mean ± sd over its trials (noise ratios and "
        "seeds pooled). Bold: the configuration selected for the method, among complete ones. "
        f"Configurations: {tries}."
    )
    return Table("Search on dev", caption, ["configuration", "dev rSum"], rows)


def legend(frame: pd.DataFrame) -> str:
    """The meaning of bold, and of the marks that occur in the frame."""
    restriction = " that do not use the ground truth" if frame["ground_truth"].any() else ""
    tracks = " in each track (one network, several)" if frame["track"].nunique() > 1 else ""
    return f"Bold: best among methods{restriction}{tracks}, with all seeds. {marks(frame)}".rstrip()


def marks(frame: pd.DataFrame) -> str:
    """The meaning of the marks that occur in the frame."""
    texts = {
        "×2: the similarities of two networks averaged at test.": frame["networks"].max() > 1,
        "† uses clean data.": frame["clean_data"].any(),
        "‡ uses the ground truth: a reference, not a competitor.": frame["ground_truth"].any(),
        f"{MARK} external: of another program, on the same data and noise indices.": frame["external"].any(),
    }
    return " ".join(text for text, applies in texts.items() if applies)


def devices(frame: pd.DataFrame) -> dict[str, list[str]]:
    """The methods on each device, of trials whose time is known."""
    timed = frame[frame["seconds"].notna()].groupby("device", sort=False)
    return {str(device) or "?": list(methods) for device, methods in timed["method"].unique().items()}


def on_devices(frame: pd.DataFrame) -> str:
    """That times do not compare, where they are of several devices."""
    count = len(devices(frame))
    return f"Trials ran on {count} devices (Provenance): times do not compare. " if count > 1 else ""


def best_rows(frame: pd.DataFrame, table: pd.DataFrame, *, more: bool = True) -> set[str]:
    """Rows with the best mean of [row] cells in their track, among those of methods that do not use the
    ground truth with as many seeds as any is planned to have.

    A track of one row, or of equal rows, has no best.
    """
    found: set[str] = set()
    for _, part in frame[~frame["ground_truth"]].groupby("track", sort=False):
        column = table[table.index.isin(set(part["row"])) & (table["n"] == table["planned"].max())]
        best = column.index[column["mean"] == (column["mean"].max() if more else column["mean"].min())]
        if len(best) < len(column):  # one that nobody competes with is not the best
            found |= set(best)
    return found


def mean_sd(cell: pd.Series, digits: int, *, usual: int | None = None) -> str:
    """`101.2 ± 3.4`, followed by n where it differs from `usual` (None: never); a dash without values."""
    if cell["n"] == 0:
        return "–"  # not planned, or not finished yet
    sd = "" if pd.isna(cell["sd"]) else f" ± {cell['sd']:.{digits}f}"
    short = f" (n={counted(cell)})" if usual is not None and cell["n"] != usual else ""
    return f"{cell['mean']:.{digits}f}{sd}{short}"


def counted(cell: pd.Series) -> str:
    """`n` of a cell, as `2 of 3!` where planned seeds are missing."""
    n, planned = int(cell["n"]), int(cell["planned"])
    return str(n) if n == planned else f"{n} of {planned}!"


def with_marks(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with marks added to the names of rows; `label` keeps the names without marks."""
    return frame.assign(
        label=frame["row"], row=frame["row"].map({row: _marked(frame, row) for row in frame["row"].unique()})
    )


def _marked(frame: pd.DataFrame, row: str) -> str:
    line = frame.loc[frame["row"] == row].iloc[0]
    networks = frame.loc[frame["row"] == row, "networks"].max()  # NaN before a trial is done
    row += f" ×{networks:g}" if networks > 1 and f"×{networks:g}" not in row else ""
    given = {"†": line["clean_data"], "‡": line["ground_truth"], MARK: line["external"]}
    return row + "".join(f" {mark}" for mark, applies in given.items() if applies)


def _at_chance(frame: pd.DataFrame, measure: str) -> set[tuple[str, float]]:
    return set(
        frame.loc[collapsed(frame, measure), ["row", "noise_ratio"]].itertuples(index=False, name=None)
    )
