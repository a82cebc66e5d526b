"""Published results next to ours: joined by method, data set, protocol, backbone, granularity
and ratio; never mixed into our rows.

`published_results.csv` holds 646 rows of the field's tables with their sources; `flag` says what is wrong
with a row (a copied column, a sum that its parts do not give, ...). Its rSum is the sum of the six printed
recalls, but for ten rows, flagged so, that print the sum alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import pandas as pd

from harness.evaluation.metrics import RECALLS
from harness.record.types import MethodFacts
from harness.report.tables import Cell, Table

FILE = Path(__file__).parent / "published_results.csv"
_SHUFFLES = ("shuffle", "derangement", "from_file")
"""Models of noise that stand for the shuffles of the papers."""
_DATA_SETS = {
    "f30k": "Flickr30K",
    "flickr": "Flickr30K",
    "coco": "MS-COCO",
    "cc152k": "CC152K",
    "cc120k": "CC120K",
}


@lru_cache
def published() -> pd.DataFrame:
    """The rows of `published_results.csv`; missing entries are empty."""
    rows = pd.read_csv(FILE, dtype={"noise_ratio": str}, keep_default_na=False)
    for name in (*RECALLS, "rsum"):
        rows[name] = pd.to_numeric(rows[name], errors="coerce")
    return rows


def papers_table(frame: pd.DataFrame, methods: Mapping[str, MethodFacts], where: str) -> Table | None:
    """Ours against published rows of the same method, data set, protocol and ratio; None where there are
    none.

    The frame is of one data set and one kind of noise. A row that differs in backbone or granularity, or that
    is flagged, is shown with the reason, and without a difference.
    """
    name = published_name(str(frame["dataset"].iloc[0]))
    theirs = published()
    lines = []
    for (row, ratio), part in frame.groupby(["row", "noise_ratio"], sort=False):
        names = methods[part["method"].iloc[0]].published
        natural = part["noise_model"].iloc[0] == "none"
        same = theirs[
            (theirs["dataset"] == name)
            & theirs["method"].map(plain_name).isin(names)
            & theirs["noise_ratio"].map(lambda r, x=ratio, n=natural: _is_ratio(r, x, n))
        ]
        for _, line in same.iterrows():
            measure = "selected_1k_rsum" if line["protocol"] == "1K" else "selected_rsum"
            ours = part[measure] if measure in part else pd.Series(dtype=float)
            if ours.notna().any():
                lines.append(_line(str(row), float(ratio), part, ours.dropna(), line))
    if not lines:
        return None
    caption = (
        "Test rSum, ours: of the epoch that is best on dev, as papers select theirs, mean ± sd over seeds. "
        "Published: the sum of the six printed recalls (or the printed sum, where it stands alone and is "
        "flagged so), one run unless the source states otherwise. A difference is given only where "
        "backbone, number of networks and granularity agree and the published row is not flagged. Sources "
        "are in harness/report/published_results.csv."
    )
    return Table(
        f"Comparison with published results: {where}",
        caption,
        ["method", "noise", "protocol", "ours", "published", "difference", "source", "remarks"],
        lines,
    )


def plain_name(method: str) -> str:
    """The method of a published row, without what the row adds: `CRCL` of `CRCL (author re-run)`."""
    return method.partition(" (")[0]


def published_name(dataset: str) -> str | None:
    """What a data set is called in published tables, from our label of it; None where it is in none."""
    return next((full for part, full in _DATA_SETS.items() if part in dataset.lower()), None)


def networks_at_test(backbone: str) -> int | None:
    """The number of networks whose similarities a published row averages, from what it says of its backbone;
    None where that is not known.
    """
    if not backbone or re.search(r"UNCONFIRMED|co-teaching$|same config|script default", backbone):
        return None
    return 2 if re.search(r"\b2 (co-trained )?nets|\bx2\b|ensemble|^SGRAF$", backbone) else 1


def _is_ratio(text: str, ratio: float, natural: bool) -> bool:
    if text.startswith("real"):
        return natural
    try:
        return not natural and abs(float(text) - ratio) < 1e-9
    except ValueError:
        return False


def _line(row: str, ratio: float, part: pd.DataFrame, ours: pd.Series, line: pd.Series) -> list[Cell]:
    reasons = _differs(part, ratio, line)
    mean, sd = ours.mean(), ours.std(ddof=1)
    mean_and_sd = f"{mean:.1f}" + ("" if pd.isna(sd) else f" ± {sd:.1f}")
    gap = "–" if reasons else f"{mean - line['rsum']:+.1f}"
    texts = (
        row,
        f"{ratio:g}",
        line["protocol"],
        mean_and_sd,
        f"{line['rsum']:.1f}",
        gap,
        f"{line['paper']}: {line['method']}",
        "; ".join(reasons),
    )
    return [Cell(str(t)) for t in texts]


def _differs(part: pd.DataFrame, ratio: float, line: pd.Series) -> list[str]:
    """Why the two are not comparable; empty where they are."""
    reasons = [f"flagged: {line['flag']}"] if line["flag"] else []
    if network_name(part["backbone"].iloc[0]) != network_name(line["backbone"]):
        reasons.append(f"backbone {line['backbone'] or 'not reported'}")
    networks = networks_at_test(line["backbone"])
    if networks != part["networks"].max():
        reasons.append(
            f"{networks} network{'s' if networks > 1 else ''} at test"
            if networks
            else "networks not reported"
        )
    granularity = str(line["noise_granularity"])
    if ratio and not granularity.startswith(part["granularity"].iloc[0]):
        reasons.append(f"granularity {granularity or 'not reported'}")
    if ratio and part["noise_model"].iloc[0] not in _SHUFFLES:
        reasons.append(f"noise {line['noise_type']}")
    return reasons


def network_name(name: str) -> str:
    """Normalized name of a backbone, in our notation or that of a paper: `vit-b-32`, `sgr`, `saf`, ..."""
    plain = name.lower().replace("/", "-")
    return next(
        (
            n
            for n in ("vit-b-32", "vit-b-16", "vit-l-14", "sgraf sgr", "sgraf saf", "sgraf", "sgr", "saf")
            if n in plain
        ),
        plain,
    ).removeprefix("sgraf ")
