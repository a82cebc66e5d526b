"""What the seeds of a sweep will be able to show, told before it runs from records of the past."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from harness.config.labels import place_labels, row_labels
from harness.config.sweep_file import Sweep
from harness.config.trial import Trial
from harness.lib.files import RESULTS
from harness.record.bundle import Bundle
from harness.record.types import MethodFacts, StoreError
from harness.report.design import designs_of, statement
from harness.report.results import TRACKS, over_noise_seeds, primary, tidy


def design_notes(sweep: Sweep) -> Iterator[str]:
    """For each data set of a sweep that compares rows, what its seeds can show in each track, from the bundle
    in `results/` that has the most trials of that data set; nothing without one.
    """
    if sweep.file.chooses:
        return
    data, _ = place_labels(sweep.trials)
    labels = row_labels(sweep.trials)
    for dataset in dict.fromkeys(data.values()):
        planned = [t for t in sweep.trials if data[t.id] == dataset]
        rows = _rows(planned, labels)
        pairs = {(t.seed, t.noise_seed) for t in planned}
        crossed = all(len({pair[i] for pair in pairs}) < len(pairs) for i in (0, 1))
        seeds = len({seed for seed, _ in pairs}) if crossed else len(pairs)  # as `over_noise_seeds`
        several = len({t.noise_ratio for t in planned}) > 1
        for bundle in _past(dataset):
            frame = over_noise_seeds(primary(tidy(bundle.sweep())))
            frame = frame[(frame["dataset"] == dataset) & (frame["perturbed"] == 0)]
            if frame.empty:  # a variant of the data set, by its options
                continue
            frame = frame[frame["noise"] == frame["noise"].mode().iloc[0]]
            designs = [
                replace(design, seeds=seeds, comparisons=rows[track] - 1)
                for track, design in designs_of(frame).items()
                if rows[track] > 1
            ]
            if designs and several == (frame["noise_ratio"].nunique() > 1):
                yield f"{dataset}, from {bundle.folder}. {statement(designs, several=several)}"
                break


def _rows(trials: Iterable[Trial], labels: Mapping[str, str]) -> Counter[str]:
    """How many rows each track has; none where no two of its rows compete (oracles do not)."""
    of_row = {labels[t.id]: t for t in trials}
    tracks = {row: TRACKS[t.hyper.get("n_networks", 1) > 1] for row, t in of_row.items()}
    competing = Counter(
        tracks[row] for row, t in of_row.items() if not MethodFacts.of(t.method).uses_ground_truth
    )
    rows = Counter(tracks.values())
    return Counter({track: rows[track] for track, count in competing.items() if count > 1})


def _past(dataset: str) -> list[Bundle]:
    """Bundles with finished trials of a data set that compare rows, those with the most first."""
    found = []
    for folder in sorted(RESULTS.glob("*/plan.json")):
        bundle = Bundle(folder.parent.name)
        try:
            record = bundle.sweep()
        except StoreError:
            continue
        count = sum(r.done and r.trial.dataset_label == dataset for r in record.records.values())
        if count and not record.select:
            found.append((count, bundle))
    return [bundle for _, bundle in sorted(found, key=lambda pair: -pair[0])]
