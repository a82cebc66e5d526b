"""External rows in a report: beside the rows of the sweep where they fit, and described in a section."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.config.external import MARK, ExternalTrial
from harness.record.bundle import Bundle
from harness.record.external import external_bundles, misfits
from harness.record.types import StoreError, SweepRecord
from harness.report.source import Arrays, Source

_EPOCHS = {"last": "of the last epoch", "selected": "of the epoch selected on dev"}


def with_external(source: Source, folder: Path) -> Source:
    """A sweep with the external rows beside its bundle; those that do not fit are named in `left_out`.

    Args:
        folder: of the bundle: `results/SWEEP`.
    """
    sweep = source.sweep
    bundle_of: dict[str, Bundle] = {}
    left_out = []
    for bundle in external_bundles(folder):
        try:
            row = bundle.sweep()
        except StoreError as error:
            left_out.append(f"{bundle.name}: {error}")
            continue
        if reasons := misfits(row, source.sweep):
            left_out.append(f"{bundle.name}: {'; '.join(reasons)}")
            continue
        bundle_of |= {record.run_id: bundle for record in row.records.values()}
        sweep = dataclasses.replace(
            sweep,
            planned=(*sweep.planned, *row.planned),
            records={**sweep.records, **row.records},
            methods={**sweep.methods, **row.methods},
        )
    return _joined(source, sweep, bundle_of, left_out)


def _joined(
    source: Source, sweep: SweepRecord, bundle_of: Mapping[str, Bundle], left_out: Sequence[str]
) -> Source:
    """A source whose runs are those of a sweep and of the bundles of external rows."""

    def read(run: str, path: str) -> Arrays:
        return bundle_of[run].read(run, path) if run in bundle_of else source.read(run, path)

    def names(run: str, directory: str) -> Sequence[str]:
        return [] if run in bundle_of else source.names(run, directory)

    def curve(run: str, metric: str) -> Mapping[int, float]:
        return {} if run in bundle_of else source.curve(run, metric)

    def link(run: str) -> str:
        return "" if run in bundle_of else source.link(run)

    return Source(sweep, read, names, curve, link, source.views, left_out)


def without_external(sweep: SweepRecord) -> SweepRecord:
    """The sweep with its own trials alone."""
    return dataclasses.replace(
        sweep,
        planned=tuple(t for t in sweep.planned if not isinstance(t, ExternalTrial)),
        records={i: r for i, r in sweep.records.items() if not isinstance(r.trial, ExternalTrial)},
    )


def rows_text(sweep: SweepRecord) -> list[str]:
    """A section that says of each external row where it is from and how it was tuned; none without one."""
    rows = {t.method: t for t in sweep.planned if isinstance(t, ExternalTrial)}
    if not rows:
        return []
    lines = [
        "### External rows",
        "",
        f"{MARK}: results of programs that are not of this project, on the data and noise indices of this "
        "sweep. Their recalls are made anew from the ranks of all queries; how the programs were trained is "
        "as their authors say.",
        "",
        *(f"- {method.replace('_', chr(92) + '_')}: {_about(trial)}" for method, trial in rows.items()),
    ]
    return ["\n".join([*lines, ""])]


def _about(trial: ExternalTrial) -> str:
    networks = "one network" if trial.networks == 1 else f"{trial.networks} networks"
    source = trial.source
    return (
        f"{source.repository} at {source.commit[:12]}, `{source.command}`; {trial.tuning}; "
        f"{_EPOCHS[trial.epoch]}; {networks}"
    )
