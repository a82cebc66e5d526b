"""Checkpointed towers: the same numbers to the last bit, and less memory. Compiled ones: the same up to
rounding.
"""

from __future__ import annotations

import shutil

import pytest
import torch
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


@pytest.mark.cluster  # compiles for a minute
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here: apt install g++")
def test_compiled_towers_train_as_others_do(monkeypatch):
    """Also in the look-ahead of `npc`, whose parameters are replaced."""
    drop_in_towers(monkeypatch)
    plain, compiled = (
        build.trainer(
            "npc", precision="fp64", backbone=small.backbone(locked=False, compile=on, head={"dropout": 0.3})
        )
        for on in (False, True)
    )
    for trainer in (plain, compiled):
        trainer.fit()
    frames = torch._dynamo.utils.counters["stats"]["calls_captured"]
    assert frames, "nothing was compiled"
    expected = plain.method.state_dict()
    found = compiled.method.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize(
    ("option", "reason"),
    [("checkpointing", "through replaced parameters"), ("compile", "through a gradient")],
)
def test_it_is_refused_where_a_method_differentiates_twice(option, reason):
    content = small.content(
        "clip", "mscn", fixed={"backbone": small.backbone(locked=False, **{option: True})}
    )
    with pytest.raises(BadInput, match=f"{option} = True: mscn differentiates {reason}"):
        parse_sweep(content)


def test_checkpointing_and_compiled_towers_exclude_each_other():
    backbone = small.backbone(locked=False, checkpointing=True, compile=True)
    with pytest.raises(BadInput, match="compile and checkpointing exclude each other"):
        parse_sweep(small.content("clip", fixed={"backbone": backbone}))


@pytest.mark.parametrize("option", ["checkpointing", "compile"])
def test_the_id_is_that_of_before_where_it_is_off(option):
    plain, off, on = (
        small.trial("clip", backbone=small.backbone(locked=False, **changes))
        for changes in ({}, {option: False}, {option: True})
    )
    assert plain.id == off.id != on.id
    assert option not in plain.backbone
