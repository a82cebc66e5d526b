"""MS-COCO's own measures: 1K by folds, and ECCV Caption with the judgements of its package."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from harness.data.base import DataSet, Split
from harness.evaluation.coco import ECCV_MEASURES, FOLD_MEASURES, coco_metrics, eccv_metrics, fold_metrics
from harness.evaluation.given import evaluate
from harness.evaluation.metrics import rank_queries, recalls
from harness.report.accuracy import coco_tables
from harness.training.accelerator import make_accelerator
from harness.training.run_trial import build_trainer
from tests import small
from tests.report.test_results import frame


class InFolds(DataSet):
    """A small data set that is measured by parts, as MS-COCO is."""

    folds = 4


def in_folds(images=40, each=5):
    test = Split(
        range(images),
        [str(c) for c in range(images * each)],
        np.arange(images * each) // each,
        np.arange(images),
    )
    return InFolds("small", {"train": test, "dev": test, "test": test}, "")


def test_1k_is_the_mean_over_folds_in_file_order():
    data, images, each, folds = in_folds(), 40, 5, 4
    scores = np.random.default_rng(0).standard_normal((images, images * each)).astype(np.float32)
    scores[data["test"].owner, np.arange(images * each)] += 1.5
    found = fold_metrics(scores, data)
    parts = []
    # as NCR's evaluation slices: images[1000 i : 1000 (i + 1)], captions[5000 i : 5000 (i + 1)]
    for fold in range(folds):
        own = scores[10 * fold : 10 * (fold + 1), 50 * fold : 50 * (fold + 1)]
        groups = np.arange(10), np.arange(50) // 5
        parts.append(recalls(rank_queries(own, *groups), rank_queries(own.T, groups[1], groups[0])))
    for name in ("i2t_r1", "t2i_r10", "rsum"):
        assert found[f"1k_{name}"] == pytest.approx(np.mean([p[name] for p in parts]))
    assert set(FOLD_MEASURES) <= set(found)


def test_only_cocos_test_split_is_measured_by_folds():
    def test_of(images, each):
        split = Split(
            range(images), [""] * (images * each), np.arange(images * each) // each, np.arange(images)
        )
        return DataSet("x", {"test": split}, "")

    assert test_of(5000, 5).folds == 5
    assert test_of(1000, 5).folds == 0
    assert test_of(5000, 1).folds == 0
    assert coco_metrics(np.zeros((1000, 5000), np.float32), test_of(1000, 5)) == {}


def test_what_another_program_computed_has_the_same_measures_and_lacks_none_in_silence():
    data = in_folds()
    scores = np.random.default_rng(0).standard_normal((40, 200)).astype(np.float32)
    found = evaluate(scores, data["test"].image_group, data["test"].caption_group, coco=data)
    assert found.metrics["1k_rsum"] == fold_metrics(scores, data)["1k_rsum"]
    assert any("no measures of ECCV Caption" in note for note in found.notes)


def test_a_trial_records_1k_of_the_best_and_the_last_epoch():
    trial = small.trial("clip")
    whole = small.load()
    data = InFolds(whole.name, whole.splits, whole.fingerprint, distinct_groups=True)
    outcome = build_trainer(trial, data, trial.noise_index(data), make_accelerator("fp32")).fit()
    for kind in ("test", "last"):
        assert outcome.metrics[f"{kind}/1k_rsum"] > outcome.metrics[f"{kind}/rsum"]  # fewer candidates


def test_the_report_has_tables_of_what_coco_is_measured_by():
    rows = frame([("a", r, s, 100 + s, 10) for r in (0, 0.4) for s in (0, 1)])
    assert coco_tables(rows, "w") == []
    measured = pd.concat(
        [rows, pd.DataFrame(dict.fromkeys((*FOLD_MEASURES, *ECCV_MEASURES), rows["rsum"] + 50))], axis=1
    )
    text = "\n".join(t.markdown() for t in coco_tables(measured, "w"))
    assert "1K (mean of five folds of 1,000 images)" in text
    assert "ECCV Caption t2i mAP@R" in text
    assert "150.5 ± 0.7" in text


@pytest.fixture(scope="module")
def judged():
    """MS-COCO's test split by the numbers in the package: 5,000 images, 25,000 captions."""
    package = pytest.importorskip(
        "eccv_caption", reason="eccv_caption is not installed: its measures are not tested"
    )
    judge = package.Metrics()
    owner_of = {c: i for i, captions in judge.coco_gts["i2t"].items() for c in captions}
    images = sorted(judge.coco_gts["i2t"])
    captions = [c for i in images for c in judge.coco_gts["i2t"][i]]
    place = {number: row for row, number in enumerate(images)}
    owner = np.array([place[owner_of[c]] for c in captions])
    split = Split(range(len(images)), [str(c) for c in captions], owner, np.arange(len(images)))
    return judge, DataSet("coco", {"test": split}, "", coco_ids=(np.array(images), np.array(captions)))


def test_a_model_that_knows_every_judgement_gets_all(judged):
    judge, data = judged
    images, captions = ({n: k for k, n in enumerate(ids)} for ids in data.coco_ids)
    scores = np.zeros((len(images), len(captions)), np.float32)
    for image, matches in judge.eccv_gts["i2t"].items():
        for caption in set(matches) & set(captions):  # two judged captions are sixth ones, which nobody ranks
            scores[images[image], captions[caption]] = 1
    found = eccv_metrics(scores, data)
    assert found["eccv_i2t_r1"] == 100
    assert 99.95 < found["eccv_i2t_map_at_r"] < 100
    # The owners alone: right at first, and with all their five among the matches.
    scores[:] = 0
    scores[data["test"].owner, np.arange(len(captions))] = 1
    found = eccv_metrics(scores, data)
    assert found["eccv_t2i_r1"] == 100
    assert found["eccv_i2t_map_at_r"] < 100


def test_another_split_is_not_judged(judged):
    _, data = judged
    images, captions = data.coco_ids
    scores = np.zeros((len(images), len(captions)), np.float32)
    assert eccv_metrics(scores, replace(data, coco_ids=(images + 1_000_000, captions))) == {}
    assert eccv_metrics(scores, replace(data, coco_ids=None)) == {}
