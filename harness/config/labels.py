"""What the trials of a sweep are called: rows of a table, data sets, noise, runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.config.trial import Trial

_NOT_A_SETTING = ("noise_ratio", "seed", "noise_seed", "perturbed")
_OF_THE_DATA = ("dataset", "dataset.", "noise", "noise.", "noise_granularity")


def row_labels(trials: Sequence[Trial], *, full: bool = False) -> dict[str, str]:
    """A short label for each trial's row: the method, and the settings that vary among the method's trials.

    A setting that has one value in at least half of the method's rows is named where it has another; with
    `full` everywhere. Several networks are marked as tables do: `clip ×2`.
    """
    by_method: dict[str, list[Trial]] = {}
    for trial in trials:
        by_method.setdefault(trial.method, []).append(trial)
    short = [method.rpartition(":")[2] for method in by_method]
    names = {m: m if short.count(s) > 1 else s for m, s in zip(by_method, short, strict=True)}
    labels = {}
    for method, members in by_method.items():
        settings_of = [settings(t) for t in members]
        keys, usual = varied(settings_of), {} if full else _usual(settings_of)
        for trial, values in zip(members, settings_of, strict=True):
            extra = ", ".join(
                f"{k.removeprefix('backbone.')}={values.get(k, 'default')}"
                for k in keys
                if k != "n_networks" and values.get(k, "default") != usual.get(k)
            )
            networks = values.get("n_networks", "1") if "n_networks" in keys else "1"
            several = "" if networks == "1" else f" ×{networks}"
            labels[trial.id] = f"{names[method]}{several} ({extra})" if extra else f"{names[method]}{several}"
    return labels


def run_labels(trials: Sequence[Trial]) -> dict[str, dict[str, str]]:
    """Tags that tell the runs of a sweep apart, by trial id: the run's name, its row, its cell and its place
    (data set and noise). Names leave out what all trials share.
    """
    rows, (data, noise) = shown_rows(trials), place_labels(trials)
    places = {t.id: f"{data[t.id]}, {noise[t.id]}" for t in trials}
    several = len(set(places.values())) > 1
    own_noise = any(t.noise_seed != t.seed for t in trials)
    labels = {}
    for trial in trials:
        where = f" {places[trial.id]}" if several else ""
        seeds = f"seed={trial.seed}" + (f" noise_seed={trial.noise_seed}" if own_noise else "")
        seeds += f" draw={trial.perturbed}" if trial.perturbed else ""
        labels[trial.id] = {
            "mlflow.runName": f"{rows[trial.id]}{where} noise={trial.noise_ratio:g} {seeds}",
            "row": rows[trial.id],
            "cell": f"{rows[trial.id]}{where} noise={trial.noise_ratio:g}",
            "place": places[trial.id],
        }
    return labels


def run_names(trials: Sequence[Trial]) -> dict[str, str]:
    """What the runs of a sweep are called, by trial id: on a terminal as in MLflow."""
    return {i: labels["mlflow.runName"] for i, labels in run_labels(trials).items()}


def shown_rows(trials: Sequence[Trial]) -> dict[str, str]:
    """`row_labels` where rows are shown with all their trials: perturbed ones have rows of their own."""
    labels = row_labels(trials)
    return {t.id: f"{labels[t.id]}{' (perturbed)' if t.perturbed else ''}" for t in trials}


def varied(rows: Sequence[dict[str, str]]) -> list[str]:
    """The settings that differ among rows, except those of the data; a backbone is identified by its parts
    where these differ.
    """
    keys = dict.fromkeys(k for row in rows for k in row)
    differing = [
        k
        for k in keys
        if len({row.get(k) for row in rows}) > 1 and (k.startswith("dataset.") or not of_the_data(k))
    ]
    return [
        k for k in differing if not (k == "backbone" and any(v.startswith("backbone.") for v in differing))
    ]


def _usual(rows: Sequence[dict[str, str]]) -> dict[str, str]:
    """For each varied setting, the value that at least half of the distinct rows have, if it is unique."""
    keys = varied(rows)
    distinct = {tuple(row.get(k, "default") for k in keys) for row in rows}
    usual = {}
    for index, key in enumerate(keys):
        values = [row[index] for row in distinct]
        common = [v for v in set(values) if 2 * values.count(v) >= len(values)]
        if len(common) == 1 and len(values) > 2:
            usual[key] = common[0]
    return usual


def settings(trial: Trial) -> dict[str, str]:
    """The settings that define a row of a table: all parameters except ratio and seeds; hyper-parameters
    without the name of the method.
    """
    short = trial.method.rpartition(":")[2]
    return {
        k.removeprefix(f"{short}."): str(v) for k, v in trial.parameters().items() if k not in _NOT_A_SETTING
    }


def of_the_data(key: str) -> bool:
    """Whether a setting belongs to the data set or its noise, and so does not define a row."""
    return key in _OF_THE_DATA or key.startswith(("dataset.", "noise."))


def shared_and_own_settings(
    trials: Sequence[Trial], *, full: bool = False
) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Settings that at least half of the rows share, and for each row those in which it differs (and its
    hyper-parameters). Settings of the noise that the trials do not all have are in neither: they are of
    places, not of rows.
    """
    labels = row_labels(trials, full=full)
    settings_of = {t.id: settings(t) for t in trials}
    known = {k for values in settings_of.values() for k in values if k.startswith("noise.")}
    varied = {k for k in known if len({values.get(k) for values in settings_of.values()}) > 1}
    rows = {
        labels[trial]: {k: v for k, v in values.items() if k not in varied}
        for trial, values in settings_of.items()
    }
    keys = list(dict.fromkeys(k for values in rows.values() for k in values))
    shared: dict[str, str] = {}
    for key in keys:
        values = [v[key] for v in rows.values() if key in v]
        most = max(dict.fromkeys(values), key=values.count)
        if key != "method" and len(values) == len(rows) and 2 * values.count(most) >= len(rows):
            shared[key] = most
    own = {
        row: {k: v for k, v in values.items() if k != "method" and shared.get(k) != v}
        for row, values in rows.items()
    }
    return shared, own


def place_labels(trials: Sequence[Trial]) -> tuple[dict[str, str], dict[str, str]]:
    """Labels of data set and of noise, each by trial id; distinct where two differ in their settings."""
    data = {t.id: (t.dataset_label, t.dataset_options) for t in trials}
    noise = {t.id: (t.noise_label, t.noise.model_dump(mode="json")) for t in trials}
    return _disambiguated(data), _disambiguated(noise)


def _disambiguated(given: Mapping[str, tuple[str, Mapping[str, Any]]]) -> dict[str, str]:
    """Labels by trial: where two that differ in their settings would be called the same (and pooled as
    seeds), with what differs.
    """
    of_label: dict[str, list[Mapping[str, Any]]] = {}
    for label, settings in given.values():
        of_label.setdefault(label, []).append(settings)
    differing = {}
    for label, members in of_label.items():
        keys = sorted({k for settings in members for k in settings})
        differing[label] = [k for k in keys if len({repr(settings.get(k)) for settings in members}) > 1]
    return {
        trial: f"{label} ({', '.join(f'{k}={settings.get(k)}' for k in differing[label])})"
        if differing[label]
        else label
        for trial, (label, settings) in given.items()
    }
