"""The rows of the leaderboard: a cell of a sweep (all seeds of otherwise equal trials), of an external row,
or a published result.

Numbers are never averaged over holes: a row shows its n and how many seeds were planned, and a mean over
noise ratios is over the seeds that have all of them. Rows are of the present protocol version alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from harness.config.external import ExternalTrial
from harness.config.trial import Trial
from harness.evaluation.metrics import RECALLS
from harness.record.types import SweepRecord, TrialRecord
from harness.report.published import FILE, network_name, networks_at_test, published, published_name
from harness.report.results import MEAN, MEASURES, over_noise_seeds, primary, tidy
from harness.report.stats import mean_interval
from harness.site.methods import facts, key_of_published

LEVELS = {
    "repeated": "run and repeated here",
    "checked": "bundle checked",
    "external": "external",
    "published": "as published",
    "flagged": "as published and flagged",
}
"""How far a row is verified, from the most to the least."""
NOT_REPORTED = "not reported"
BY_AUTHORS, BY_HAND = "by its authors", "by hand"
"""How settings were chosen where no search with counted tries has: of published rows, and of ours."""
_OWN, _UNKNOWN = "its own", "unknown"
_NO_NETWORK = (
    "external",
    "same config",
    "script default module in issue",
    "faster-rcnn r101 feats + bigru, co-teaching",
)
"""What rows say in place of a network."""
_NETWORKS = {"vit-b-32": "ViT-B/32", "vit-b-16": "ViT-B/16", "vit-l-14": "ViT-L/14"}


@dataclass(frozen=True)
class Links:
    """Where a row comes from: addresses of its report, its bundle and, where a paper reports it, the table of
    papers' rows (relative to the site), and of its source (`github.com/...`, without a scheme); empty where
    there is none.
    """

    report: str = ""
    bundle: str = ""
    table: str = ""
    source: str = ""


@dataclass(frozen=True)
class Row:
    """A row of the leaderboard. Recalls and rSum are in percent, of test; None: not known.

    Attributes:
        method: what its page is about: a registered method, or the name of another.
        label: what the row is called: the method and what else varies.
        origin: the sweep, the paper or the program.
        dataset: with the protocol of MS-COCO: `MS-COCO 5K`.
        noise, granularity, ratio: the noise model, what moves, and the nominal ratio as text.
        backbone, network: as the row has it, and by the name of the network alone.
        networks: averaged at test.
        clean, truth: whether it uses clean data, and the ground truth.
        tuning: how its settings were chosen.
        rsum, recalls: after the last epoch; means over seeds.
        sd, low, high: of rSum: standard deviation over seeds (ddof 1), 95 % t interval of the mean.
        selected: rSum of the epoch that is best on dev.
        n, planned: seeds with results, and all.
        seconds: of a trial, mean over seeds; `device`: where.
        level: one of `LEVELS`, with `note`: what is known beyond it.
        cited: where exactly a published row stands.
        trials: ids of its trials.
    """

    method: str
    label: str
    origin: str
    dataset: str
    noise: str
    granularity: str
    ratio: str
    backbone: str
    network: str
    networks: int | None
    clean: bool | None
    truth: bool
    rsum: float | None
    recalls: tuple[float | None, ...]
    level: str
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    selected: float | None = None
    n: int | None = None
    planned: int | None = None
    seconds: float | None = None
    device: str = ""
    note: str = ""
    cited: str = ""
    tuning: str = BY_AUTHORS
    links: Links = field(default_factory=Links)
    trials: frozenset[str] = frozenset()

    def flat(self) -> dict[str, Any]:
        """The row as columns of plain values; numbers to six digits, rounded once more where shown."""
        values = {k: v for k, v in vars(self).items() if k not in ("recalls", "links", "trials")}
        values |= dict(zip(RECALLS, self.recalls, strict=True)) | vars(self.links)
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()}


@dataclass(frozen=True)
class Origin:
    """What all rows of a bundle share.

    Attributes:
        name: of the sweep, or of the program.
        external: whether a program that is not of this project made them.
        repeated: ids of trials that were run again with the same numbers.
        unchecked: what of trials could not be checked, by id.
    """

    name: str
    links: Links
    external: bool = False
    repeated: frozenset[str] = frozenset()
    unchecked: Mapping[str, str] = field(default_factory=dict)


def order(row: Row) -> tuple[Any, ...]:
    """The order in which rows are listed: by place, then from the best."""
    best = row.rsum if row.rsum is not None else row.selected
    published_ones = row.level in ("published", "flagged")
    ratio = float(row.ratio) if re.fullmatch(r"[\d.]+", row.ratio) else -1.0
    return (
        published_ones,
        row.dataset,
        row.noise,
        row.granularity,
        ratio,
        row.ratio,
        -(best or 0.0),
        row.label,
    )


# Of bundles ------------------------------------------------------------------------------------------


def sweep_rows(sweep: SweepRecord, origin: Origin) -> list[Row]:
    """The rows of a sweep: of each cell with results, and of the means over its noise ratios.

    A search has none: it uses no test results. Perturbed trials are left out.
    """
    frame = tidy(sweep)
    if sweep.select or frame.empty:
        return []
    tunings = {t.id: _tuning(t, sweep.records.get(t.id)) for t in sweep.planned}
    frame = primary(frame[frame["perturbed"] == 0]).assign(
        repeated=lambda f: f["trial"].isin(origin.repeated),
        tuning=lambda f: f["trial"].map(tunings),
    )
    frame = over_noise_seeds(frame)
    rows = []
    for _, place in frame.groupby(["dataset", "noise"], sort=False):
        for label, suffix, part in _protocols(place):
            for _, cell in _with_means(part).groupby(["row", "ratio"], sort=False):
                rows.append(_of_cell(cell, f"{label} {suffix}".rstrip(), origin))
    return [row for row in rows if row.n]


def _protocols(place: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """The data set as published tables call it, the protocol of MS-COCO, and the frame with its measures."""
    own = str(place["dataset"].iloc[0])
    name = published_name(own)
    label = (
        f"{name}{own[own.find(' (') :] if ' (' in own else ''}" if name else own
    )  # options tell data apart
    folds = "1k_rsum" in place and place["1k_rsum"].notna().any()
    yield label, "5K" if folds else "", place
    if folds:
        renamed = {f"{p}1k_{m}": f"{p}{m}" for p in ("", "selected_") for m in MEASURES}
        yield label, "1K", place.drop(columns=list(renamed.values()), errors="ignore").rename(columns=renamed)


def _with_means(part: pd.DataFrame) -> pd.DataFrame:
    """The frame with `ratio` as text, and lines of the means over the ratios: of each row and seed that is
    planned at all of them, empty until it has them all.
    """
    natural = part["noise_model"] == "none"
    part = part.assign(ratio=np.where(natural, _UNKNOWN, part["noise_ratio"].map("{:g}".format)))
    ratios = sorted(part["noise_ratio"].unique())
    if len(ratios) < 2:
        return part
    numbers = [c for p in ("", "selected_") for m in MEASURES if (c := f"{p}{m}") in part] + ["seconds"]
    groups = part.groupby(["row", "seed", "noise_seed"], sort=False)
    means = groups[numbers].mean().where(groups[numbers].count() == len(ratios))
    lines = groups.first()
    lines[numbers] = means
    lines["repeated"] = groups["repeated"].all()
    lines = lines[groups.size() == len(ratios)].reset_index()
    text = ", ".join(f"{r:g}" for r in ratios)
    return pd.concat([part, lines.assign(noise_ratio=MEAN, ratio=f"mean of {text}")], ignore_index=True)


def _of_cell(cell: pd.DataFrame, dataset: str, origin: Origin) -> Row:
    first, natural = cell.iloc[0], cell["noise_model"].iloc[0] == "none"
    counted = cell["rsum"] if cell["rsum"].notna().any() else cell["selected_rsum"]
    rsum = mean_interval(cell["rsum"])
    repeated = int((cell["repeated"] & counted.notna()).sum())
    told = [f"{repeated} of {len(cell)} run again"] if repeated else []
    unchecked = dict.fromkeys(origin.unchecked[i] for i in cell["trial"] if i in origin.unchecked)
    label, networks = str(first["row"]), _whole(cell["networks"].max())
    if networks and networks > 1 and "×" not in label:  # which a table of its own need not say
        label += f" ×{networks}"
    return Row(
        method=str(first["method"]),
        label=label,
        origin=origin.name,
        dataset=dataset,
        noise=_OWN if natural else "shuffle" if first["noise_model"] == "shuffle" else str(first["noise"]),
        granularity="" if natural else str(first["granularity"]),
        ratio=str(first["ratio"]),
        backbone=str(first["backbone"]),
        network=_network(str(first["backbone"])),
        networks=networks,
        clean=bool(first["clean_data"]),
        truth=bool(first["ground_truth"]),
        rsum=_number(rsum.value),
        recalls=tuple(_number(cell[m].mean()) for m in RECALLS),
        sd=_number(cell["rsum"].std(ddof=1)),
        low=_number(rsum.low),
        high=_number(rsum.high),
        selected=_number(cell["selected_rsum"].mean()),
        n=int(counted.count()),
        planned=len(cell),
        seconds=_number(cell["seconds"].mean()),
        device=", ".join(dict.fromkeys(d for d in cell["device"] if d)),
        level="external" if origin.external else "repeated" if repeated else "checked",
        note="; ".join([*told, *unchecked]),
        tuning=", ".join(dict.fromkeys(filter(None, cell["tuning"]))),
        links=origin.links,
        trials=frozenset(cell["trial"]),
    )


def _tuning(trial: Trial, record: TrialRecord | None) -> str:
    """How the settings of a trial were chosen; empty where it has no record yet."""
    if isinstance(trial, ExternalTrial):
        return BY_AUTHORS if trial.tuning.tries is None else _searched(trial.tuning.tries)
    if record is None:
        return ""
    tries = record.tags.get("search_tries")
    return _searched(int(tries)) if tries else BY_HAND


def _searched(tries: int) -> str:
    return f"best of {tries} tries" if tries > 1 else "first try"


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def _whole(value: Any) -> int | None:
    return None if pd.isna(value) else int(value)


def _network(backbone: str) -> str:
    """The network of a backbone, whatever else is said of it."""
    name = network_name(backbone)
    if name in ("sgraf", "sgr", "saf"):
        return name.upper()
    if name in _NO_NETWORK:
        return NOT_REPORTED
    return _NETWORKS.get(name) or re.split(r"[,(]| locked", backbone)[0].strip() or NOT_REPORTED


# As published ----------------------------------------------------------------------------------------


def published_rows() -> list[Row]:
    """The rows of `published_results.csv`."""
    return [_of_published(line) for line in published().to_dict("records")]


def _of_published(line: Mapping[Any, Any]) -> Row:
    method, natural = key_of_published(line["method"]), line["noise_type"] == "real"
    known = facts().get(method)
    protocol = line["protocol"].strip("-")
    return Row(
        method=method,
        label=line["method"],
        origin=line["paper"],
        dataset=f"{line['dataset']} {protocol}".rstrip(),
        noise=_OWN if natural else "shuffle",
        granularity="" if natural else _granularity(line["noise_granularity"]),
        ratio=_UNKNOWN if natural else line["noise_ratio"],
        backbone=line["backbone"].replace("(UNCONFIRMED)", "(unconfirmed)") or NOT_REPORTED,
        network=_network(line["backbone"]),
        networks=networks_at_test(line["backbone"]),
        clean=known.uses_clean_data if known else None,
        truth=False,
        rsum=_number(line["rsum"]),
        recalls=tuple(_number(line[m]) for m in RECALLS),
        level="flagged" if line["flag"] else "published",
        note=line["flag"],
        cited=line["source"],
        links=Links(table=FILE.name, source=_address(line["source"])),
    )


def _granularity(text: str) -> str:
    """`caption`, `image` or what else a published table says of it."""
    return re.split(r" \(", text)[0].replace("/", " or ") or NOT_REPORTED


def _address(source: str) -> str:
    """Where a source is, without a scheme: a repository at its commit, or a paper on arXiv or of AAAI."""
    repository = re.match(r"github ([\w.-]+/[\w.-]+)", source)
    if repository:
        issue, commit = re.search(r"issue #(\d+)", source), re.search(r"@([0-9a-f]{7,})", source)
        tail = f"/issues/{issue[1]}" if issue else f"/tree/{commit[1]}" if commit else ""
        return f"github.com/{repository[1]}{tail}"
    if paper := re.search(r"arXiv (\d{4}\.\d{4,5})", source):
        return f"arxiv.org/abs/{paper[1]}"
    article = re.search(r"ojs\.aaai\.org (\d+)", source)
    return f"ojs.aaai.org/index.php/AAAI/article/view/{article[1]}" if article else ""


def all_rows(bundles: Sequence[tuple[SweepRecord, Origin]]) -> list[Row]:
    """The rows of bundles and the published ones, in the order in which they are listed."""
    ours = _once([row for sweep, origin in bundles for row in sweep_rows(sweep, origin)])
    return sorted([*ours, *published_rows()], key=order)


def _once(rows: Sequence[Row]) -> list[Row]:
    """Rows without those whose trials are all among those of another one, which says where else they stand:
    a sweep that changes one part of a method has the method as it is once more.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.method, row.dataset, row.noise, row.granularity, row.ratio), []).append(row)
    kept = []
    for group in groups.values():
        widest: list[Row] = []
        also: dict[frozenset[str], list[str]] = {}
        # Of equal ones that whose trials were run again, else the first (the sort is stable).
        for row in sorted(group, key=lambda r: (-len(r.trials), r.level != "repeated")):
            owner = next((other for other in widest if row.trials <= other.trials), None)
            if owner is None:
                widest.append(row)
            else:
                also.setdefault(owner.trials, []).append(row.origin)
        for row in widest:
            elsewhere = ", ".join(o for o in dict.fromkeys(also.get(row.trials, ())) if o != row.origin)
            told = [row.note, f"also in {elsewhere}" if elsewhere else ""]
            kept.append(replace(row, note="; ".join(filter(None, told))))
    return kept
