"""Checkpointed towers: the same numbers to the last bit, and less memory."""

from __future__ import annotations

import pytest
from torch import nn
from torch.utils.checkpoint import checkpoint

from harness.backbones import clip, rows
from harness.config.sweep_file import BadInput, parse_sweep
from tests import build, small


@pytest.mark.parametrize(
    "name", ["clip", "npc"]
)  # npc: evaluation mode, and two backward passes over a graph
def test_checkpointing_changes_no_number(name, monkeypatch):
    drop_in_towers(monkeypatch)
    calls = count_checkpoints(monkeypatch)
    outcomes = [
        build.trainer(
            name, epochs=2, backbone=small.backbone(locked=False, checkpointing=on, head={"dropout": 0.3})
        ).fit()
        for on in (False, True)
    ]
    assert outcomes[0].weights == outcomes[1].weights
    assert calls


def count_checkpoints(monkeypatch):
    calls = []

    def counted(*given, **named):
        calls.append(given)
        return checkpoint(*given, **named)

    monkeypatch.setattr(rows, "checkpoint", counted)
    return calls


def drop_in_towers(monkeypatch):
    """Give the blocks of the tiny towers dropout layers, as a text tower of a language model has."""
    built = clip.build_towers

    def build_towers(**settings):
        towers = built(**settings)
        for module in towers.modules():
            if hasattr(module, "ls_2"):  # a block of an open_clip transformer
                module.mlp.add_module("drop", nn.Dropout(0.2))
        return towers

    monkeypatch.setattr(clip, "build_towers", build_towers)


def test_it_is_refused_where_a_method_differentiates_through_replaced_parameters():
    content = small.content(
        "clip", "mscn", fixed={"backbone": small.backbone(locked=False, checkpointing=True)}
    )
    with pytest.raises(BadInput, match="mscn differentiates through replaced parameters"):
        parse_sweep(content)


def test_the_id_is_that_of_before_where_it_is_off():
    plain, off, on = (
        small.trial("clip", backbone=small.backbone(locked=False, **changes))
        for changes in ({}, {"checkpointing": False}, {"checkpointing": True})
    )
    assert plain.id == off.id != on.id
    assert "checkpointing" not in plain.backbone
