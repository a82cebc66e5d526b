"""What a person sees while a sweep runs: counts, the table, the running trials."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from harness.lib.console import console
from harness.lib.watchdog import Heartbeat, Watchdog, last_heartbeat
from harness.sweep.attempt import BUSY, DONE, FAILED, Ending
from harness.sweep.progress import Progress
from harness.sweep.table import Board, Rates, running_table, share_done
from tests import small


def shown(renderable, width=80):
    """The lines that a terminal of this width shows."""
    terminal = Console(width=width, force_terminal=True, color_system=None, file=io.StringIO())
    terminal.print(renderable)
    return terminal.file.getvalue().splitlines()


def test_progress_counts_right(capfd, tmp_path):
    """What is done, failed, put back because another sweep has it, and done elsewhere."""
    trials = small.sweep("clip", grid={"seed": list(range(10))}).trials
    board = Board(trials, {t.id: "done" for t in trials[6:]})
    progress = Progress(board, lambda trial: tmp_path, lambda trial: 1.0)
    for trial in trials[:4]:
        progress.started(trial)
    assert len(progress.running) == 4
    for trial, outcome in zip(trials[:4], (DONE, FAILED, BUSY, DONE), strict=True):
        progress.ended(Ending(trial, outcome, "a reason", 1.0))
    assert progress.text() == "6 done, 0 running, 1 failed of 10"
    assert progress.busy == [trials[2]]
    progress.release({trials[2].id: SimpleNamespace(done=True)})
    assert progress.text() == "7 done, 0 running, 1 failed of 10"
    assert board.counts() == {"done": 7, "failed": 1, "to run": 2}
    lines = capfd.readouterr().err
    assert lines.count("FAILED (a reason)") == 1
    assert "6 done, 0 running, 1 failed of 10" in lines
    assert not console.is_terminal


def board(*methods, **grid):
    trials = small.sweep(*methods, grid={"seed": [0, 1, 2], "noise_ratio": [0, 0.4], **grid}).trials
    return Board(trials)


def test_a_cell_shows_the_mean_so_far_and_what_is_not_done():
    table = board("clip", "oracle")
    of_clip = [t for t in table.trials if t.method == "clip" and t.noise_ratio == 0.4]
    table.states |= dict(zip((t.id for t in of_clip), ("done", "done", "failed"), strict=True))
    table.scores |= {of_clip[0].id: 150.0, of_clip[1].id: 160.0}
    other = next(t for t in table.trials if t.method == "oracle" and t.noise_ratio == 0)
    table.states[other.id] = "running"
    lines = shown(table.table(80))
    row = next(line for line in lines if line.startswith("clip")).split()
    assert row == ["clip", "0/3", "155.0", "2/3", "✗1"]
    assert next(line for line in lines if line.startswith("oracle")).split() == ["oracle", "0/3", "▸1", "0/3"]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_line_is_longer_than_the_terminal(width):
    """Long rows, many ratios: what does not fit is counted."""
    table = board(
        "clip", "small_loss", "oracle", noise_ratio=[0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6], weight_decay=[0.1, 0.2]
    )
    table.scores |= {t.id: 123.4 for t in table.trials}
    table.states |= {t.id: "done" for t in table.trials}
    lines = shown(table.table(width, 4), width)
    assert max(map(len, lines)) <= width
    assert sum("3/3" in line for line in lines) == 4
    columns = sum(word == "noise" for line in lines for word in line.split())
    if width == 80:
        assert f"{7 - columns} more ratios" in " ".join(lines) or "…" in lines[-1]
        assert 2 <= columns < 7


def test_a_running_trial_shows_where_it_is_its_score_its_rate_and_the_time_left():
    trial = small.sweep("clip", fixed={"epochs": 4}).trials[0]
    rates = Rates()
    first = Heartbeat("epoch 1, step 1 of 10", 20.0, 1, 101.5)
    now = Heartbeat("epoch 2, step 1 of 10", 0.0, 2, 110.25)
    assert share_done(trial, first) == pytest.approx(1.1 / 4)
    assert rates.seconds_left(trial, first) is None, "one heartbeat has no rate"
    labels = {trial.id: "clip"}
    (line,) = shown(running_table([trial], labels, {trial.id: now}, 80, rates))
    parts = [part.strip() for part in line.split("  ") if part.strip()]
    assert parts == ["▸ clip", "0.4 seed 0", "epoch 2, 1/10", "dev 110.2", "20 s/ep.", "38 s left"]
    assert len(line) <= 80


def test_between_steps_the_epoch_is_shown_all_the_same():
    trial = small.sweep("clip").trials[0]
    labels = {trial.id: "clip"}
    beats = {trial.id: Heartbeat("ranking dev", 0.0, 2, 99.0)}
    (line,) = shown(running_table([trial], labels, beats, 80))
    assert "epoch 2, ranking dev" in line
    (line,) = shown(running_table([trial], labels, {trial.id: None}, 80))
    assert "starting" in line


def test_running_trials_of_one_method_are_told_apart_by_their_settings():
    """A long row is cut, its ratio and seed are not."""
    table = board("clip", weight_decay=[0.1, 0.2, 0.3])
    running = [t for t in table.trials if t.seed == 2 and t.noise_ratio == 0.4]
    for width, told in ((100, "clip (weight_decay=0.1)"), (44, "clip (weigh")):
        lines = shown(running_table(running, table.labels, {}, width), width)
        assert max(map(len, lines)) <= width
        assert sum(told in line for line in lines) == (1 if width == 100 else 3)
        assert all("0.4 seed 2" in line for line in lines)


def test_a_heartbeat_says_how_many_epochs_are_finished(tmp_path):
    watchdog = Watchdog(tmp_path, stall=60, deadline=None)  # without its thread, which writes when it likes
    watchdog.heartbeat("epoch 3, step 2 of 5")
    watchdog.epoch_ended(3, 140.5)
    watchdog.epoch_ended(4, None)  # an epoch without evaluation
    watchdog._write_heartbeat(tmp_path, 0.0)
    beat = last_heartbeat(tmp_path)
    assert (beat.where, beat.epochs, beat.score) == ("epoch 3, step 2 of 5", 4, 140.5)
