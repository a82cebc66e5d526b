"""Recorders: what writes a trial's results into its run as it goes, or prints them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from harness.config.trial import Trial
from harness.lib.watchdog import take_termination_report
from harness.record.client import Run
from harness.record.heartbeat import Hold, place_of
from harness.record.store import Store
from harness.record.types import (
    RESTORED,
    STOPPED_EARLY,
    WITHOUT_ARRAYS,
    AlreadyFailed,
    AlreadyStopped,
    DataChanged,
    EpochRecord,
    Outcome,
    Setup,
    SweepHandle,
)

PER_ATTEMPT_TAGS = ("git_commit", "device", "processes", "threads")
"""Tags that may differ between attempts at one trial. Code and versions may not: its numbers could not be
repeated."""
_RENAMED_TAGS = {"noise_kind": "noise_granularity"}
_IDENTITY = {"data_fingerprint": "data", "noise_digest": "noise index"}


class MlflowRecorder:
    """Writes a trial into its run; epochs that an interrupted attempt already logged are not logged twice.

    The tag `attempts` counts the starts; `history` says how each attempt but the last ended, and what the
    next one resumed from.

    Args:
        directory: the trial's own, where an attempt may have left a termination report; None: nobody else
            runs the trial, and no heartbeat is written.
        since: when the sweep was started: a trial that another sweep has seen fail after that is not
            repeated.
        stops_early: whether its sweep is a search that stops trials early: one that another sweep has stopped
            stays stopped.
        labels: tags that tell the runs of its sweep apart.
    """

    def __init__(
        self,
        handle: SweepHandle,
        trial: Trial,
        *,
        directory: Path | None = None,
        since: float = float("inf"),
        stops_early: bool = False,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self.handle, self.trial, self.directory, self.since = handle, trial, directory, since
        self.stops_early = stops_early
        self.labels = labels or {}
        self.run_id, self.history, self.logged = "", "", -1
        self.held: Hold | None = None

    def start(self, setup: Setup) -> float:
        """See `harness.record.types.Recorder.start`."""
        self.store = Store(self.handle.uri)
        self.client = self.store.client
        self.test = setup.data["test"]
        self._claim()
        tags = _tags(setup)
        before = self.store.unfinished_run(self.handle, self.trial)
        if before and before.status == "FAILED" and before.end_time > self.since * 1000:
            raise AlreadyFailed(before.tags.get("failure", "it failed in another sweep"))
        if before and self.stops_early and STOPPED_EARLY in before.tags:
            raise AlreadyStopped(before.tags.get("failure", "it was stopped in another sweep"))
        run = before and self._resumable(before, tags)
        if run:
            self.run_id = run.run_id
            self._resume(run, tags)
        else:
            self.run_id = self.store.create_run(
                self.handle, self.trial, {**tags, **self.labels, "attempts": "1"}
            )
        self._log_setup(setup, run)
        return self.logged + 1 if setup.trains else float("inf")

    def _claim(self) -> None:
        """Before the runs are looked at: another attempt may be about to finish one."""
        if self.directory:
            place = place_of(self.handle, self.directory.parents[1])
            held = Hold(self.client, self.handle.experiment_id, self.trial.id, place)
            held.acquire()
            self.held = held

    def _confirm(self) -> None:
        if self.held:
            self.held.confirm()

    def close(self) -> None:
        """Give up the claim on the trial."""
        if self.held:
            self.held.release()
        self.held = None

    def _resumable(self, run: Run, tags: Mapping[str, str]) -> Run | None:
        """The run, if an attempt with these tags may resume it; else None, and the run is superseded.

        Raises:
            DataChanged: it is of other data.
        """
        known = {_RENAMED_TAGS.get(k, k): v for k, v in run.tags.items()}
        for key, name in _IDENTITY.items():
            if known.get(key, tags[key]) != tags[key]:
                raise DataChanged(
                    f"the {name} of this trial changed since it was started: {known[key]} then, "
                    f"{tags[key]} now"
                )
        changed = [
            f"{k} {known[k]} -> {v}"
            for k, v in tags.items()
            if k not in PER_ATTEMPT_TAGS and known.get(k, v) != v
        ]
        if not changed:
            return run
        text = f"restarted in another run: {', '.join(changed)}"
        self.client.set_tag(run.run_id, "superseded", text[:5000])
        self.client.set_status(run.run_id, "KILLED")
        return None

    def _resume(self, run: Run, tags: Mapping[str, str]) -> None:
        """Take up a run: what is on record of it, how the attempt before ended, and its tags from now on."""
        known, updates = run.tags, dict(tags)
        self.logged = max((step for step, _ in self.client.history(run.run_id, "seconds/train")), default=-1)
        summary, report = take_termination_report(self.directory) if self.directory else ("", "")
        if report:
            self.client.log_text(run.run_id, report, "termination_report.txt")
        ended = known.get("failure") or summary or "its process ended without a report"
        attempt = int(known.get("attempts", "0"))
        self.history = known.get("history", "")
        updates["attempts"] = str(attempt + 1)
        if attempt:
            moved = "".join(
                f"; {k} {known[k]} -> {tags[k]}"
                for k in PER_ATTEMPT_TAGS
                if k in known and known[k] != tags[k]
            )
            text = f"attempt {attempt}, {self.logged + 1} epochs on record: {ended}{moved}"
            updates["history"] = self._extended(text)
        for past in known.keys() & {"failure", STOPPED_EARLY, RESTORED, WITHOUT_ARRAYS}:
            self.client.delete_tag(run.run_id, past)
        self.client.set_status(run.run_id, "RUNNING")
        self.client.log(run.run_id, tags=updates)

    def _log_setup(self, setup: Setup, run: Run | None) -> None:
        noise = setup.noise
        metrics = {"cost/parameters": float(setup.parameters), "noise/ambiguous": float(noise.ambiguous)}
        metrics |= {} if noise.matched is None else {"noise/realised_ratio": noise.realised}
        metrics |= {f"skipped/{split}_images": float(count) for split, count in setup.data.skipped.items()}
        known = run.metrics if run else {}
        self.client.log(self.run_id, metrics={k: v for k, v in metrics.items() if k not in known})
        matched = {} if noise.matched is None else {"matched": noise.matched}
        self._log_array("noise_index", image=noise.image, **matched)
        if run is None or not run.has_dataset:
            self._log_noise(setup)

    def _log_noise(self, setup: Setup) -> None:
        """The noise index as the data-set input of the run."""
        noise = setup.noise
        realised = None if noise.matched is None else noise.realised
        profile = {"pairs": len(noise.image), "nominal": noise.nominal, "realised": realised}
        source = {
            "seed": noise.seed,
            "granularity": noise.granularity,
            "model": noise.model,
            "data": setup.fingerprint,
        }
        self.client.log_dataset(
            self.run_id,
            name=f"{setup.data.name} noise {noise.nominal:g} {noise.granularity} seed {noise.seed}",
            digest=noise.digest,
            kind="noise index",
            source=json.dumps(source),
            profile=json.dumps(profile),
        )

    def note(self, text: str) -> None:
        """Add a line to the tag `history`."""
        self.client.set_tag(self.run_id, "history", self._extended(text))

    def _extended(self, text: str) -> str:
        self.history = f"{self.history}\n{text}".strip()[-5000:]
        return self.history

    def epoch(self, record: EpochRecord) -> None:
        """Log an epoch, unless it is on record already."""
        self._confirm()
        if record.epoch <= self.logged:
            return
        if record.confidence is not None:
            arrays = {"confidence": record.confidence, **record.diagnostics}
            self._log_array(f"confidence/epoch_{record.epoch:03d}", **arrays)
        metrics, ranks = split_ranks(record.metrics)
        if ranks:
            self.client.log_text(self.run_id, json.dumps(ranks), f"ranks/epoch_{record.epoch:03d}.json")
        # Last: a resumed trial looks for the metrics.
        self.client.log(self.run_id, metrics=metrics, step=record.epoch)

    def finish(self, outcome: Outcome) -> None:
        """Log the final results, and mark the run as finished."""
        self._confirm()
        groups = {"i2t_group": self.test.image_group, "t2i_group": self.test.caption_group}
        for epoch, (i2t, t2i) in outcome.rankings.items():
            self._log_array(f"{epoch}_rankings", **i2t.arrays("i2t"), **t2i.arrays("t2i"), **groups)
        metrics, others = split_ranks(outcome.metrics)
        self.client.log_text(self.run_id, json.dumps(others), "ranks/last.json")
        self.client.log(self.run_id, metrics=metrics, tags={"weights_digest": outcome.weights})
        self.client.set_status(self.run_id, "FINISHED")  # last: a run that says so is complete
        self.close()

    def _log_array(self, path: str, **arrays: np.ndarray) -> None:
        self.store.write_array(self.run_id, f"{path}.npz", **arrays)


def split_ranks(metrics: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics that are compared, and median and mean ranks on dev and after the last epoch, which nobody
    compares: they are artifacts, so that the charts of a run show what matters.
    """
    ranks = {k: v for k, v in metrics.items() if k.endswith("_rank") and not k.startswith("test/")}
    return {k: v for k, v in metrics.items() if k not in ranks}, ranks


def _tags(setup: Setup) -> dict[str, str]:
    """What a run must carry to be repeated, besides its parameters."""
    return {
        **setup.environment,
        "data_fingerprint": setup.fingerprint,
        "noise_digest": setup.noise.digest,
        "noise_granularity": setup.noise.granularity,
        "noise_model": setup.noise.model,
        "uses_clean_data": str(setup.uses_clean_data).lower(),
        "uses_ground_truth": str(setup.uses_ground_truth).lower(),
    }


class PrintRecorder:
    """Keeps nothing, prints a line an epoch: for `--no-tracking`."""

    def start(self, setup: Setup) -> float:
        """Print what is trained."""
        noise, trial = setup.noise, setup.trial
        print(
            f"trial {trial.id}: {trial.method} on {trial.dataset}, {len(noise.image)} pairs, noise "
            f"{noise.nominal} (realised {noise.realised:.4f}, index {noise.digest}), {setup.parameters:,} "
            f"parameters, {setup.environment['device']}, {setup.environment['precision']}",
            flush=True,
        )
        return float("inf")

    def note(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)

    def epoch(self, record: EpochRecord) -> None:
        """Print an epoch's main results."""
        shown = ("train/loss", "dev/rsum", "detection/auroc", "seconds/train")
        values = "  ".join(f"{k} {record.metrics[k]:.4g}" for k in shown if k in record.metrics)
        print(f"epoch {record.epoch}  {values}", flush=True)

    def finish(self, outcome: Outcome) -> None:
        """Print the final results."""
        for key in sorted(outcome.metrics):
            print(f"{key} {outcome.metrics[key]:.4f}", flush=True)
        print(f"weights {outcome.weights}", flush=True)

    def close(self) -> None:
        """Nothing is open."""
