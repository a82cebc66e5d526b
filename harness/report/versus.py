"""Two sweeps side by side: their results, and the settings that changed from one to the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from harness.config.labels import settings
from harness.record.types import StoreError, SweepRecord
from harness.report.page import Page
from harness.report.results import over_noise_seeds, primary, tidy, with_chance
from harness.report.source import Source
from harness.report.stats import paired_difference
from harness.report.tables import Block, Cell, Table
from harness.report.write import begin, save

_PROVENANCE = (
    "git_commit",
    "data_fingerprint",
    "backbone_digest",
    "device",
    "precision",
    "processes",
    "threads",
    "torch",
    "open_clip_torch",
    "accelerate",
    "transformers",
    "timm",
    "numpy",
    "scikit-learn",
    "python",
)


def write_versus(a: Source, b: Source, folder: Path) -> Path:
    """Write a report of two sweeps into `folder`; `results.csv` names the sweep of each trial.

    Raises:
        StoreError: one is a search, which has no test results, or they are of two protocol versions.
    """
    for searched in (s.sweep.name for s in (a, b) if s.sweep.select):
        raise StoreError(
            f"sweep {searched!r} is a search (select: true), which does not report test results: there is "
            f"nothing to compare"
        )
    begin(folder)
    if a.sweep.protocol_version != b.sweep.protocol_version:
        raise StoreError(
            f"{a.sweep.name} is of protocol version {a.sweep.protocol_version}, {b.sweep.name} of "
            f"{b.sweep.protocol_version}: records of different versions are not compared"
        )
    frames = {s.sweep.name: with_chance(tidy(s.sweep), s) for s in (a, b)}
    pd.concat([f.assign(sweep=name) for name, f in frames.items()]).to_csv(
        folder / "results.csv", index=False, float_format="%.6g"
    )
    frames = {name: primary(f[f["perturbed"] == 0]) for name, f in frames.items()}
    one, other = a.sweep.name, b.sweep.name
    blocks = [*_tables(a, b, frames[one], frames[other]), Block("changes", "", _changes(a.sweep, b.sweep))]
    title, description = (
        f"{one} against {other}",
        f"Differences are {other} minus {one}: positive is better in {other}.",
    )
    state = "\n".join(
        f"- {name}: {int(f['done'].sum())} of {len(f)} planned trials are done" for name, f in frames.items()
    )
    save(folder, title, [description, state], blocks, [])
    Page(title, description, state, blocks, []).write(folder)
    return folder


def _tables(a: Source, b: Source, one: pd.DataFrame, other: pd.DataFrame) -> Iterator[Block]:
    names = a.sweep.name, b.sweep.name
    places = list(
        dict.fromkeys(
            [
                *one[["dataset", "noise"]].itertuples(index=False, name=None),
                *other[["dataset", "noise"]].itertuples(index=False, name=None),
            ]
        )
    )
    for dataset, noise in places:
        here = [over_noise_seeds(f[(f["dataset"] == dataset) & (f["noise"] == noise)]) for f in (one, other)]
        where = f"{dataset}, {noise}"
        rows = [_line(keys, *here) for keys in _cells(*here)]
        caption = (
            "Test rSum after the last epoch: mean ± sd over seeds (n). Difference: paired over the seeds "
            "that both have, with a 95 % t interval. Trials: `same` have the same id in both, so their "
            "numbers should agree up to machine and versions; `other` have different settings. A dash: no "
            "data, or one network against several."
        )
        yield Block(
            "rSum",
            where,
            Table(
                f"Side by side: {where}", caption, ["noise", "method", *names, "difference", "trials"], rows
            ),
        )


def _cells(one: pd.DataFrame, other: pd.DataFrame) -> list[tuple[float, str]]:
    distinct = pd.concat([one, other])[["noise_ratio", "row"]].drop_duplicates()
    return sorted(distinct.itertuples(index=False, name=None), key=lambda cell: cell[0])


def _line(cell: tuple[float, str], one: pd.DataFrame, other: pd.DataFrame) -> list[Cell]:
    ratio, row = cell
    ours, theirs = (f[(f["noise_ratio"] == ratio) & (f["row"] == row)] for f in (one, other))
    both = ours.merge(theirs, on=["seed", "noise_seed"], suffixes=("", "_other"))
    paired = paired_difference(both["rsum_other"], both["rsum"])
    difference = "–"
    tracks = {track for f in (ours, theirs) for track in f["track"]}
    if np.isfinite(paired.value) and len(tracks) == 1:
        interval = (
            (f" [{paired.low:+.1f}, {paired.high:+.1f}]") if np.isfinite(paired.low) else f" (n={paired.n})"
        )
        difference = f"{paired.value:+.1f}{interval}"
    trials = "–" if both.empty else "same" if (both["trial"] == both["trial_other"]).all() else "other"
    return [
        Cell(f"{ratio:g}"),
        Cell(row),
        Cell(_summary(ours)),
        Cell(_summary(theirs)),
        Cell(difference),
        Cell(trials),
    ]


def _summary(part: pd.DataFrame) -> str:
    values = part["rsum"].dropna()
    if values.empty:
        return "–"
    sd = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
    return f"{values.mean():.1f}{sd} ({len(values)})"


def _changes(a: SweepRecord, b: SweepRecord) -> Table:
    """Settings, rows, seeds, ratios and provenance that differ."""
    rows: list[tuple[str, ...]] = []
    for what, of in (("noise ratios", "noise_ratio"), ("seeds", "seed"), ("noise seeds", "noise_seed")):
        rows.append(
            (
                "all",
                what,
                *(", ".join(f"{v:g}" for v in sorted({getattr(t, of) for t in s.planned})) for s in (a, b)),
            )
        )
    one, other = _settings(a), _settings(b)
    for row in dict.fromkeys([*one, *other]):
        if row not in one or row not in other:
            rows.append((row, "row", "present" if row in one else "–", "present" if row in other else "–"))
            continue
        for key in dict.fromkeys([*one[row], *other[row]]):
            rows.append((row, key, one[row].get(key, "–"), other[row].get(key, "–")))
    for key in _PROVENANCE:
        rows.append(
            (
                "all",
                key,
                *(
                    ", ".join(sorted({r.tags.get(key, "?") for r in s.records.values() if r.done})) or "–"
                    for s in (a, b)
                ),
            )
        )
    rows.append(("all", "noise index digests", *(_digests(s) for s in (a, b))))
    changed = [[Cell(text) for text in row] for row in rows if row[2] != row[3]]
    caption = "Settings, rows and provenance that differ between the two sweeps; all others are identical."
    return Table(
        "What changed",
        caption,
        ["method", "setting", a.name, b.name],
        changed or [[Cell("–"), Cell("nothing"), Cell("–"), Cell("–")]],
    )


def _settings(sweep: SweepRecord) -> dict[str, dict[str, str]]:
    """All settings of each row; several values of one setting are joined."""
    frame = tidy(sweep)
    row_of = dict(zip(frame["trial"], frame["row"], strict=True))
    values_of: dict[str, dict[str, set[str]]] = {}
    for trial in sweep.planned:
        row_values = values_of.setdefault(row_of[trial.id], {})
        for key, value in settings(trial).items():
            row_values.setdefault(key, set()).add(value)
    return {row: {k: ", ".join(sorted(v)) for k, v in values.items()} for row, values in values_of.items()}


def _digests(sweep: SweepRecord) -> str:
    digest_of = {
        (r.trial.dataset_label, r.trial.noise_label, r.trial.noise_ratio, r.trial.noise_seed): r.tags.get(
            "noise_digest", "?"
        )
        for r in sweep.records.values()
        if r.done
    }
    return (
        "; ".join(
            f"{dataset}, {noise}, {ratio:g}/{seed}: {digest[:8]}"
            for (dataset, noise, ratio, seed), digest in sorted(digest_of.items())
        )
        or "–"
    )
