"""The counts that a person sees while a sweep runs."""

from __future__ import annotations

from harness.lib.console import console
from harness.sweep.attempt import BUSY, DONE, FAILED, Ending
from harness.sweep.progress import Progress
from tests import small


def test_progress_counts_right(capfd):
    """What is done, failed, put back because another sweep has it, and done elsewhere."""
    trials = small.sweep("clip", grid={"seed": list(range(6))}).trials
    shown = Progress(total=10, done=4)
    for trial in trials[:4]:
        shown.started(trial)
    assert len(shown.running) == 4
    for trial, outcome in zip(trials[:4], (DONE, FAILED, BUSY, DONE), strict=True):
        shown.ended(Ending(trial, outcome, "a reason", 1.0))
    assert shown.text() == "6 done, 0 running, 1 failed of 10"
    assert shown.busy == [trials[2]]
    shown.release(done=1)
    assert shown.text() == "7 done, 0 running, 1 failed of 10"
    told = capfd.readouterr().err
    assert told.count("FAILED (a reason)") == 1
    assert "6 done, 0 running, 1 failed of 10" in told
    assert not console.is_terminal
