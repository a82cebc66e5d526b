"""What the seeds of a sweep will be able to show, told before it runs from records of the past."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from harness.config.labels import place_labels, row_labels
from harness.config.sweep_file import Sweep
from harness.lib.files import RESULTS
from harness.record.bundle import Bundle
from harness.record.types import MethodFacts, StoreError
from harness.report.design import design_of
from harness.report.results import over_noise_seeds, primary, tidy


def design_notes(sweep: Sweep) -> Iterator[str]:
    """For each data set of a sweep that compares rows, what its seeds can show, from the bundle in `results/`
    that has the most trials of that data set; nothing without one.
    """
    if sweep.file.chooses:
        return
    data, _ = place_labels(sweep.trials)
    labels = row_labels(sweep.trials)
    for dataset in dict.fromkeys(data.values()):
        planned = [t for t in sweep.trials if data[t.id] == dataset]
        of_row = {labels[t.id]: t for t in planned}
        competing = [row for row, t in of_row.items() if not MethodFacts.of(t.method).uses_ground_truth]
        if len(competing) < 2:
            continue
        tracks = Counter(t.hyper.get("n_networks", 1) > 1 for t in of_row.values())
        rows = max(tracks.values())
        seeds = max(len({t.seed for t in planned}), len({t.noise_seed for t in planned}))
        ratios = len({t.noise_ratio for t in planned})
        for bundle in _past(dataset):
            frame = over_noise_seeds(primary(tidy(bundle.sweep())))
            frame = frame[(frame["dataset"] == dataset) & (frame["perturbed"] == 0)]
            if frame.empty:  # a variant of the data set, by its options
                continue
            frame = frame[frame["noise"] == frame["noise"].mode().iloc[0]]
            design = design_of(frame, seeds=seeds, comparisons=rows - 1)
            if design and rows > 1 and (ratios > 1) == (frame["noise_ratio"].nunique() > 1):
                yield f"{dataset}, from {bundle.folder}. {design.text()}"
                break


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
