"""A small committed set of records, made up, with everything a report must bear: holes, one seed, a failed
trial, a method without confidence, ties, and a collapsed model.

`python -m tests.golden` writes the reports anew that the tests expect; with `records` the records too. Read
the difference before committing it.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from harness.config.sweep_file import Sweep, parse_sweep
from harness.evaluation.metrics import Ranking, detection, recalls
from harness.record.types import MethodFacts, StoreError, SweepRecord, TrialRecord
from harness.report.source import Source
from harness.report.versus import write_versus
from harness.report.write import write
from tests import small

FOLDER = Path(__file__).parent / "fixtures" / "golden"
BACKBONE = {
    "backbone": {"model": "effnet_minilm", "pretrained": "packages", "locked": True}
}  # one without a path: ids are the same everywhere
FORMS = ("report.md", "report.html", "tables.tex", "results.csv")
RATIOS = [0.0, 0.1, 0.2, 0.3, 0.4, 0.6]
# How far the right answer stands from the front without noise, and what the noise ratio adds to it.
SKILL = {
    "clip": (0.5, 4.0),
    "small_loss": (0.5, 1.5),
    "triplet": (1.0, 3.5),
    "mscn": (0.3, 3.0),
    "oracle": (0.3, 0.3),
    "npc": (0.4, 1.5),
}


def sweep(name: str) -> Sweep:
    """`golden`: three seeds, `npc` with one and an axis, and perturbed trials of `clip`. `later`: two of its
    methods again, one with another setting.
    """
    if name == "later":
        return small.sweep(
            "clip",
            "small_loss",
            name=name,
            grid={"noise_ratio": [0.2, 0.4], "seed": [0, 1, 2]},
            fixed=BACKBONE,
            overrides={"clip": {"lr": 0.001}},
        )
    everywhere = small.content(
        "clip",
        "small_loss",
        "triplet",
        "mscn",
        "oracle",
        grid={"noise_ratio": RATIOS, "seed": [0, 1, 2]},
        fixed=BACKBONE,
    )
    one_seed = {**everywhere["grid"], "method": ["npc"], "seed": [0], "npc.bank_threshold": [0.5, 0.9, 0.99]}
    perturbed = {
        **everywhere["grid"],
        "method": ["clip"],
        "noise_ratio": [0.4],
        "seed": [0],
        "perturbed": [1, 2],
    }
    overrides = {**everywhere["overrides"], "npc": small.WARMED_UP["npc"]}
    return parse_sweep(
        {
            **everywhere,
            "name": name,
            "description": "Made up, to test reports.",
            "grid": [everywhere["grid"], one_seed, perturbed],
            "overrides": overrides,
        }
    )


def source(name: str) -> Source:
    """A sweep as the committed records have it."""
    content = json.loads((FOLDER / "records.json").read_text())[name]
    with np.load(FOLDER / "arrays.npz") as file:
        arrays = {k.removeprefix(f"{name}/"): file[k] for k in file.files if k.startswith(f"{name}/")}
    planned = sweep(name)
    trials = {t.id: t for t in planned.trials}
    records = {
        i: TrialRecord(trials[i], f"run-{name}-{i}", r["status"], r["metrics"], r["tags"])
        for i, r in content.items()
    }

    def read(run: str, path: str) -> dict[str, np.ndarray]:
        prefix = f"{run.rpartition('-')[2]}/{path.removesuffix('.npz')}/"
        found = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        if not found:
            raise StoreError(f"run {run} has no artifact {path}")
        return found

    def names(run: str, folder: str) -> list[str]:
        prefix = f"{run.rpartition('-')[2]}/{folder}/"
        return sorted(
            {k.rpartition("/")[0].partition("/")[2] + ".npz" for k in arrays if k.startswith(prefix)}
        )

    record = SweepRecord(
        name,
        planned.file.description,
        planned.file.chooses,
        planned.trials,
        records,
        {t.method: MethodFacts.of(t.method) for t in planned.trials},
        planned.file.reference,
    )

    def curve(run: str, metric: str) -> dict[int, float]:
        values = content[run.rpartition("-")[2]]["curves"].get(metric, {})
        return {int(epoch): value for epoch, value in values.items()}

    return Source(record, read, names, curve, lambda run: f"http://127.0.0.1:5000/#/experiments/1/runs/{run}")


def write_all(folder: Path) -> None:
    """Both kinds of report of the records, under `folder`."""
    write(source("golden"), folder / "golden")
    write_versus(source("golden"), source("later"), folder / "golden-against-later")


def comparable(text: str) -> str:
    """Without what the pictures' encoders make."""
    return re.sub(r"data:image/(\w|\+)+;base64,[A-Za-z0-9+/=]+", "data:image", text)


def make_records() -> None:
    content: dict[str, dict] = {}
    arrays: dict[str, np.ndarray] = {}
    for name in ("golden", "later"):
        content[name] = {}
        for number, trial in enumerate(sweep(name).trials):
            if name == "golden" and (trial.method, trial.noise_ratio, trial.seed) == ("clip", 0.3, 1):
                continue  # a hole: not started
            failed = name == "golden" and (trial.method, trial.noise_ratio, trial.seed) == (
                "small_loss",
                0.6,
                2,
            )
            tags = {"failure": "Diverged: the loss is nan in epoch 2"} if failed else {}
            status = "FAILED" if failed else "FINISHED"
            curves: dict[str, dict[int, float]] = {}
            metrics = {} if failed else _trial(trial, number, f"{name}/{trial.id}", arrays, tags, curves)
            content[name][trial.id] = {"status": status, "metrics": metrics, "tags": tags, "curves": curves}
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "records.json").write_text(json.dumps(content, indent=0, sort_keys=True))
    np.savez_compressed(FOLDER / "arrays.npz", **arrays)


def _trial(trial, number, prefix, arrays, tags, curves) -> dict[str, float]:
    """One finished trial: its metrics, with its arrays, tags and curves put where they belong."""
    draw = np.random.default_rng([number, trial.seed])
    data, test = small.load(), small.load()["test"]
    noise = trial.noise_index(data)
    start, slope = SKILL[trial.method]
    distance = (
        start
        + slope * trial.noise_ratio
        + (0.5 * trial.hyper["bank_threshold"] if trial.method == "npc" else 0.0)
    )
    ranks, images, captions = {}, test.image_group, test.caption_group
    for side, queries, candidates in (("i2t", images, captions), ("t2i", captions, images)):
        rank = np.minimum(draw.poisson(distance, len(queries)), len(candidates) - 1)
        tied, matches = np.zeros_like(rank), np.ones_like(rank)
        if trial.method == "triplet" and trial.noise_ratio == 0.6:  # every score equal: all candidates tie
            rank = np.zeros_like(rank)
            tied = (candidates[None, :] != queries[:, None]).sum(1)
            matches = len(candidates) - tied
        top = np.stack([draw.permutation(len(candidates))[:5] for _ in queries])
        ranks[side] = Ranking(rank, tied, matches, top)
        for epoch in ("last", "test"):
            kept = {**ranks[side].arrays(side), f"{side}_group": queries.astype(np.int16)}
            arrays |= {f"{prefix}/{epoch}_rankings/{k}": v for k, v in kept.items()}
    found = recalls(ranks["i2t"], ranks["t2i"])
    metrics = {f"last/{k}": v for k, v in found.items()} | {f"test/{k}": v - 1.0 for k, v in found.items()}
    metrics |= {
        "dev/best_rsum": found["rsum"] + 5,
        "dev/rsum": found["rsum"] + 4,
        "dev/best_epoch": 1,
        "noise/realised_ratio": noise.realised,
    }
    if trial.method in ("small_loss", "npc", "mscn"):
        arrays[f"{prefix}/noise_index/matched"] = noise.matched
        for epoch in (1, 2):
            confidence = np.clip(
                draw.normal(np.where(noise.matched, 0.6 + 0.1 * epoch, 0.4), 0.2), 0, 1
            ).astype(np.float16)
            arrays[f"{prefix}/confidence/epoch_{epoch:03d}/confidence"] = confidence
            scores = detection(confidence.astype(float), noise.matched)
            for kind, part in (("matched", noise.matched), ("mismatched", ~noise.matched)):
                if part.any():
                    scores[f"mean_{kind}"] = float(confidence[part].astype(float).mean())
            for key, value in scores.items():
                curves.setdefault(f"detection/{key}", {})[epoch] = value
        metrics |= {f"detection/{k}": v for k, v in scores.items()}
        for epoch in range(3):
            kept = noise.matched if epoch else np.ones(len(noise.matched), bool)
            purity = float(noise.matched[kept].mean()) - 0.02 * epoch
            curves.setdefault("trained_on/share", {})[epoch] = float(kept.mean())
            curves.setdefault("trained_on/purity", {})[epoch] = purity
        metrics |= {"trained_on/share": float(kept.mean()) - 0.01, "trained_on/purity": purity}
    networks, passes = (2, 3.5) if trial.method == "mscn" else (1, 3.8 if trial.method == "npc" else 1.0)
    seconds = 10.0 * passes * networks + trial.seed
    metrics |= {
        "cost/seconds": seconds + 3,
        "cost/train_seconds": seconds,
        "cost/method_seconds": 2.0,
        "cost/evaluation_seconds": 1.0,
    }
    metrics |= {
        "cost/train_pairs_per_second": 1800 / seconds,
        "cost/evaluation_pairs_per_second": 600.0,
        "cost/forward_passes": passes,
    }
    metrics |= {"cost/peak_memory_mb": 900.0, "cost/networks_at_test": networks, "cost/parameters": 12_000.0}
    tags |= {
        "noise_digest": noise.digest,
        "data_fingerprint": trial.fingerprint(data),
        "git_commit": "0123456789ab",
        "device": "cpu (x86_64)",
    }
    return metrics


if __name__ == "__main__":
    if "records" in sys.argv[1:]:
        make_records()
    with tempfile.TemporaryDirectory() as made:
        write_all(Path(made))
        for kind in Path(made).iterdir():
            (FOLDER / kind.name).mkdir(exist_ok=True)
            for form in FORMS:
                if form.endswith(".html"):
                    (FOLDER / kind.name / form).write_text(comparable((kind / form).read_text()))
                else:
                    shutil.copy(kind / form, FOLDER / kind.name / form)
