"""Published rows beside ours: joined where they are about the same, and compared only where they are
comparable.
"""

from __future__ import annotations

import pytest

from harness.record.types import MethodFacts
from harness.report.published import papers_table, published
from methods import METHODS
from tests.report.test_results import frame

FACTS = {name: MethodFacts.of(name) for name in METHODS}


def ours(
    method,
    backbone,
    dataset="karpathy flickr30k",
    granularity="caption",
    networks=1,
    noise_model="shuffle",
    **more,
):
    """Trials whose epoch selected on dev, which counts beside published rows, has 540 and 541."""
    made = frame([(method, ratio, seed, 9, 80) for ratio in (0.0, 0.2) for seed in (0, 1)])
    return made.assign(
        selected_rsum=540 + made["seed"],
        method=method,
        dataset=dataset,
        backbone=backbone,
        granularity=granularity,
        networks=networks,
        noise_model=noise_model,
        **more,
    )


def test_the_file_is_whole():
    rows = published()
    assert len(rows) == 646
    assert (rows["flag"] != "").sum() == 54
    npc = rows[(rows["method"] == "NPC") & (rows["dataset"] == "Flickr30K") & (rows["noise_ratio"] == "0.2")]
    assert npc["rsum"].tolist() == pytest.approx([544.4], abs=0.05)


def test_a_comparable_row_gets_a_difference():
    text = papers_table(ours("npc", "ViT-B-32-quickgelu"), FACTS, "w").markdown()
    line = next(line for line in text.splitlines() if "| 0.2 " in line or "0.2 |" in line)
    assert "540.5 ± 0.7" in line
    assert "544.4" in line
    assert "-3.9" in line


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda: ours("npc", "effnet_minilm locked"), "backbone CLIP ViT-B/32"),
        (lambda: ours("npc", "ViT-B-32-quickgelu", granularity="image"), "granularity caption"),
        (lambda: ours("npc", "ViT-B-32-quickgelu", noise_model="hard"), "noise synthetic shuffle"),
        (lambda: ours("ncr", "sgraf SGR"), "2 networks at test"),
        (
            lambda: ours("npc", "ViT-B-32-quickgelu", dataset="karpathy coco").assign(selected_1k_rsum=500.0),
            "flagged: t2i_r10 INVALID",
        ),
    ],
)
def test_what_is_not_comparable_says_why_and_has_no_difference(made, reason):
    table = papers_table(made(), FACTS, "w")
    lines = [row for row in table.rows if reason in row[-1].text]
    assert lines
    assert all(row[5].text == "–" for row in lines)


def test_5k_and_1k_are_not_mixed_up():
    table = papers_table(
        ours("npc", "ViT-B-32-quickgelu", dataset="npc coco").assign(selected_1k_rsum=111.0), FACTS, "w"
    )
    assert {row[2].text: row[3].text[:5] for row in table.rows} == {"5K": "540.5", "1K": "111.0"}


def test_other_data_and_methods_without_a_paper_have_no_table():
    assert papers_table(ours("npc", "ViT-B-32-quickgelu", dataset="emoji"), FACTS, "w") is None
    assert papers_table(ours("small_loss", "ViT-B-32-quickgelu"), FACTS, "w") is None


def test_rows_that_tell_who_ran_them_are_those_of_their_method():
    """`CRCL (author re-run)` and two others, at 0.8."""
    table = papers_table(ours("crcl", "sgraf SGR").assign(noise_ratio=0.8), FACTS, "w")
    assert sum("CRCL (" in row[6].text for row in table.rows) == 3


def test_real_noise_is_compared_with_real_noise():
    made = ours("npc", "ViT-B-32-quickgelu", dataset="npc cc120k", noise_model="none")
    assert papers_table(made[made["noise_ratio"] == 0], FACTS, "w") is not None
    assert papers_table(made.assign(noise_model="shuffle")[made["noise_ratio"] == 0], FACTS, "w") is None
