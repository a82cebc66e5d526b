"""What a sweep would do and cost: `--dry-run`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from rich.table import Table

from harness.config.sweep_file import Sweep, Trial, method_class
from harness.data.base import DataSet
from harness.lib.console import console
from harness.record.store import Speed
from harness.sweep.preflight import data_key


def show_plan(
    sweep: Sweep, data: Mapping[str, DataSet], speeds: Sequence[Speed], *, done: set[str], failed: set[str]
) -> None:
    """The cells of the grid with their trials and what each would cost; then every trial that is left, with
    its id.

    Costs come from the steps a second of finished trials in the store with the same method, data set,
    backbone and batch size, if there are any.
    """
    title = f"sweep {sweep.name}: {len(sweep.trials)} trials, {len(done)} done, {len(failed)} failed before"
    settings = {(t.dataset_label, t.noise_label) for t in sweep.trials}
    several = len(settings) > 1
    table = Table(
        *(["data and noise"] if several else []),
        "method",
        "ratio",
        "seeds",
        "to run",
        "steps",
        "steps/s",
        "a trial",
        "in all",
        title=title,
        caption="" if several else ", ".join(*settings),
    )
    cells: dict[tuple[str, str, str, float], list[Trial]] = {}
    for trial in sweep.trials:
        cells.setdefault(
            (trial.method, trial.dataset_label, trial.noise_label, trial.noise_ratio), []
        ).append(trial)
    total, unknown, devices = 0.0, 0, set()
    for (method, dataset, noise, ratio), trials in cells.items():
        left = [t for t in trials if t.id not in done]
        known = [_seconds(t, data[data_key(t)], speeds, sweep.file.resources.processes) for t in trials]
        seconds = [k[0] for t, k in zip(trials, known, strict=True) if k and t in left]
        devices |= {k[1] for k in known if k and k[1]}
        total, unknown = total + sum(seconds), unknown + len(left) - len(seconds)
        steps = sorted({steps_of(t, data[data_key(t)]) for t in trials})
        each = median(k[0] for k in known if k) if any(known) else None
        rates = {
            f"{steps_of(t, data[data_key(t)]) / k[0]:.3g}"
            for t, k in zip(trials, known, strict=True)
            if k and k[0]
        }
        table.add_row(
            *([f"{dataset}, {noise}"] if several else []),
            method,
            f"{ratio:g}",
            str(len(trials)),
            str(len(left)),
            " or ".join(f"{s:,}" for s in steps),
            ", ".join(sorted(rates)) or "–",
            duration(each),
            duration(sum(seconds) if len(seconds) == len(left) else None),
        )
    console.print(table)
    if devices:
        console.print(
            f"training time of what is left: {duration(total)} one after another, as measured on "
            f"{', '.join(sorted(devices))}"
            f"{f'; {unknown} trials have no measurement' if unknown else ''} (evaluation comes on top)",
            markup=False,
        )
    elif unknown:
        console.print(
            "no finished trial like these (method, data set, backbone, batch size) is in the store, so the "
            "cost is not known: run one of them "
            "(python -m harness.train FILE --trial ID measures, a sweep keeps what it measured)",
            markup=False,
        )
    for trial in sweep.trials:
        if trial.id not in done:
            print(trial.id, label(trial))


def label(trial: Trial) -> str:
    """A trial in a line."""
    model = "" if trial.noise.model == "shuffle" else f" ({trial.noise_label})"
    return f"{trial.method} {trial.dataset_label} noise={trial.noise_ratio:g}{model} seed={trial.seed}"


def steps_of(trial: Trial, data: DataSet) -> int:
    """Optimizer steps of a trial, over its networks; none where the method does not train."""
    if not method_class(trial.method).trains:
        return 0
    return (
        trial.epochs
        * (len(data["train"].captions) // trial.batch_size)
        * int(trial.hyper.get("n_networks", 1))
    )


def _seconds(
    trial: Trial, data: DataSet, speeds: Sequence[Speed], processes: int
) -> tuple[float, str] | None:
    """Training time of a trial and the device it was measured on; None where nothing like it was measured.

    Of several devices the one with as many processes counts, then the one that was measured most.
    """
    if not steps_of(trial, data):
        return 0.0, ""
    like: dict[tuple[str, str], list[float]] = {}
    for s in speeds:
        if (s.method, s.backbone, s.batch_size, s.dataset) == (
            trial.method,
            trial.backbone,
            trial.batch_size,
            trial.dataset_label,
        ):
            like.setdefault((s.device, s.processes), []).append(s.steps_per_second)
    if not like:
        return None
    (device, count), rates = max(
        like.items(), key=lambda found: (found[0][1] == str(processes), len(found[1]))
    )
    return steps_of(trial, data) / median(rates), f"{device}, {count} process{'es' if count != '1' else ''}"


def duration(seconds: float | None) -> str:
    """Seconds in words: `3.2 h`."""
    if seconds is None:
        return "?"
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
