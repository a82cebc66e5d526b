"""What a sweep would do and cost: computed, then shown by `--dry-run`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from rich.table import Table

from harness.config.labels import run_names
from harness.config.resources import Resources
from harness.config.sweep_file import Sweep
from harness.config.trial import Trial, method_class
from harness.data.base import DataSet
from harness.lib.console import console, duration
from harness.record.types import Speed, TrialRecord
from harness.sweep.preflight import data_key
from harness.sweep.step_cost import StepCost

PAIRS_OF_A_GPU = 128
"""Pairs of which a step of ViT-B/32 computes for about as long as its kernels take to launch (estimated)."""


@dataclass(frozen=True)
class CellPlan:
    """The trials of one method, data set, noise and ratio, and what they would cost.

    Attributes:
        left: trials that are not done.
        steps: optimizer steps of each trial.
        seconds: training time of each trial, None where nothing like it was measured.
        devices: where that was measured.
        step_costs: what a step of the trials was counted to take, as far as it is known.
    """

    method: str
    dataset: str
    noise: str
    ratio: float
    trials: tuple[Trial, ...]
    left: tuple[Trial, ...]
    steps: Mapping[str, int]
    seconds: Mapping[str, float | None]
    devices: frozenset[str]
    step_costs: tuple[StepCost, ...] = ()

    @property
    def seconds_left(self) -> float | None:
        """Training time of what is left; None where it is unknown for some of it."""
        times = [self.seconds[t.id] for t in self.left]
        return None if None in times else sum(s for s in times if s is not None)

    @property
    def seconds_each(self) -> float | None:
        """Median training time of a trial; None where it is unknown for all."""
        known = [s for s in self.seconds.values() if s is not None]
        return median(known) if known else None

    @property
    def rates(self) -> list[str]:
        """Steps a second that the times follow from."""
        return sorted({f"{self.steps[i] / s:.3g}" for i, s in self.seconds.items() if s})


@dataclass(frozen=True)
class SweepPlan:
    """All cells of a sweep, and how many of its trials failed before."""

    name: str
    cells: tuple[CellPlan, ...]
    failed: int

    @property
    def left(self) -> list[Trial]:
        """All trials that are not done."""
        return [t for cell in self.cells for t in cell.left]


def make_plan(
    sweep: Sweep,
    data: Mapping[str, DataSet],
    records: Mapping[str, TrialRecord],
    speeds: Sequence[Speed],
    step_costs: Mapping[str, StepCost],
) -> SweepPlan:
    """The plan of a sweep.

    Args:
        data: data sets by `data_key`.
        records: what is on record, by trial id.
        speeds: of finished trials in the store; those with the same method, data set, backbone and batch size
            count.
        step_costs: counted cost of a step, by trial id.
    """
    grouped: dict[tuple[str, str, str, float], list[Trial]] = {}
    for trial in sweep.trials:
        key = (trial.method, trial.dataset_label, trial.noise_label, trial.noise_ratio)
        grouped.setdefault(key, []).append(trial)
    asha = sweep.file.search and sweep.file.search.asha
    done = {i for i, r in records.items() if r.done or (r.stopped_early and asha)}
    cells = []
    for key, trials in grouped.items():
        steps = {t.id: steps_of(t, data[data_key(t)]) for t in trials}
        costs = {t.id: _cost(t, steps[t.id], speeds, sweep.file.resources.processes) for t in trials}
        cells.append(
            CellPlan(
                *key,
                trials=tuple(trials),
                left=tuple(t for t in trials if t.id not in done),
                steps=steps,
                seconds={i: cost and cost[0] for i, cost in costs.items()},
                devices=frozenset(cost[1] for cost in costs.values() if cost and cost[1]),
                step_costs=tuple(dict.fromkeys(step_costs[t.id] for t in trials if t.id in step_costs)),
            )
        )
    return SweepPlan(sweep.name, tuple(cells), sum(r.status == "FAILED" for r in records.values()))


def steps_of(trial: Trial, data: DataSet) -> int:
    """Optimizer steps of a trial, over its networks; none where the method does not train."""
    if not method_class(trial.method).trains:
        return 0
    per_epoch = len(data["train"].captions) // trial.batch_size
    return trial.epochs * per_epoch * int(trial.hyper.get("n_networks", 1))


def warmup_notes(trials: Iterable[Trial], data: Mapping[str, DataSet]) -> list[str]:
    """Trials that are over before the warm-up is, as a note for each number of steps.

    Args:
        data: data sets by `data_key`.
    """
    short: dict[tuple[str, int, int], dict[str, None]] = {}  # methods in their order
    for trial in trials:
        steps = steps_of(trial, data[data_key(trial)]) // int(trial.hyper.get("n_networks", 1))
        if 0 < steps <= trial.warmup_steps:
            short.setdefault((trial.dataset_label, steps, trial.warmup_steps), {})[trial.method] = None
    return [
        f"warmup_steps = {warmup}, and a network has {steps} optimizer steps in a trial of "
        f"{', '.join(methods)} on {dataset}: the learning rate still rises when training ends"
        for (dataset, steps, warmup), methods in short.items()
    ]


def gpu_notes(trials: Iterable[Trial], resources: Resources) -> list[str]:
    """Batches that are too small for the GPUs that share each of them, as a note for each batch size."""
    if not resources.gpus or resources.processes == 1:
        return []
    sizes = sorted({t.batch_size for t in trials if t.batch_size < PAIRS_OF_A_GPU * resources.processes})
    return [
        f"each of {resources.processes} GPUs gets {size / resources.processes:g} pairs of a batch of {size}; "
        f"with fewer than some {PAIRS_OF_A_GPU} it launches kernels for longer than it computes (estimated, "
        f"ViT-B/32): trials side by side use them better (resources: {{gpus: 1, processes: 1}})"
        for size in sizes
    ]


def _cost(trial: Trial, steps: int, speeds: Sequence[Speed], processes: int) -> tuple[float, str] | None:
    """Training time of a trial and where it was measured; None where nothing like it was measured.

    Of several devices the one with as many processes counts, then the one that was measured most.
    """
    if not steps:
        return 0.0, ""
    identity = (trial.method, trial.backbone, trial.batch_size, trial.dataset_label)
    rates: dict[tuple[str, str], list[float]] = {}
    for speed in speeds:
        if (speed.method, speed.backbone, speed.batch_size, speed.dataset) == identity:
            rates.setdefault((speed.device, speed.processes), []).append(speed.steps_per_second)
    if not rates:
        return None
    device, count = max(rates, key=lambda key: (key[1] == str(processes), len(rates[key])))
    plural = "es" if count != "1" else ""
    return steps / median(rates[device, count]), f"{device}, {count} process{plural}"


def show_plan(plan: SweepPlan, records: Mapping[str, TrialRecord]) -> None:
    """A table of the cells, what is known of the cost, then each trial with its id and its state."""
    trials = sum(len(cell.trials) for cell in plan.cells)
    left = plan.left
    settings = {f"{cell.dataset}, {cell.noise}" for cell in plan.cells}
    several = len(settings) > 1
    columns = ["method", "ratio", "seeds", "to run", "steps", "steps/s", "a trial", "in all"]
    table = Table(
        *(["data and noise"] if several else []),
        *columns,
        title=f"sweep {plan.name}: {trials} trials, {trials - len(left)} done, {plan.failed} failed before",
        caption="" if several else next(iter(settings), ""),
    )
    for cell in plan.cells:
        table.add_row(
            *([f"{cell.dataset}, {cell.noise}"] if several else []),
            cell.method,
            f"{cell.ratio:g}",
            str(len(cell.trials)),
            str(len(cell.left)),
            " or ".join(f"{steps:,}" for steps in sorted(set(cell.steps.values()))),
            ", ".join(cell.rates) or "–",
            duration(cell.seconds_each),
            duration(cell.seconds_left),
        )
    console.print(table)
    _show_step_costs(plan)
    _show_cost(plan)
    planned = [t for cell in plan.cells for t in cell.trials]
    names = run_names(planned)
    for trial in planned:
        print(f"{trial.id} {names[trial.id]}: {_state_of(records.get(trial.id))}")


def _show_step_costs(plan: SweepPlan) -> None:
    """A table of what steps take, as far as it was counted; the ratio does not matter to it."""
    table = Table("data set", "method", "TFLOP a step", "GiB", title="a step of the last epoch")
    for dataset, method, cost in dict.fromkeys(
        (cell.dataset, cell.method, cost) for cell in plan.cells for cost in cell.step_costs
    ):
        numbers = ["–" if x is None else f"{x:.3g}" for x in (cost.tflop, cost.gib)]
        table.add_row(dataset, method, *numbers)
        if cost.reason:
            console.print(f"a step of {method} is not counted: {cost.reason}", markup=False)
    if table.row_count:
        console.print(table)
        console.print(
            "counted without computing it: the whole batch in one process, kernels of a CPU, and without "
            "what an allocator adds",
            markup=False,
        )


def _state_of(record: TrialRecord | None) -> str:
    """What is on record of a trial; whether it is running in this moment, `--status` finds out."""
    if record is None:
        return "to run"
    if record.done:
        return "done"
    if record.stopped_early:
        return "stopped early by its search"
    return "failed" if record.status == "FAILED" else "started, not finished"


def _show_cost(plan: SweepPlan) -> None:
    times = [cell.seconds[t.id] for cell in plan.cells for t in cell.left]
    total, unknown = sum(s for s in times if s is not None), sum(s is None for s in times)
    devices = sorted({device for cell in plan.cells for device in cell.devices})
    if devices:
        console.print(
            f"training time of what is left: {duration(total)} one after another, as measured on "
            f"{', '.join(devices)}{f'; {unknown} trials have no measurement' if unknown else ''} "
            "(evaluation is not included)",
            markup=False,
        )
    elif unknown:
        console.print(
            "the cost is unknown: no finished trial with the same method, data set, backbone and batch "
            "size is in the store (python -m harness.train FILE --trial ID measures one; a sweep keeps "
            "what it measured)",
            markup=False,
        )
