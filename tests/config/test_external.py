"""Files of external rows: what is refused, and what a row's trials are."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.config.external import ExternalRow, ExternalTrial, read_row
from harness.config.sweep_file import BadInput
from tests import small

ROW: dict[str, Any] = {
    "method": "their_method",
    "source": {"repository": "https://example.org/theirs", "commit": "0a1b2c3", "command": "python train.py"},
    "sweep": "made",
    "grid": {"dataset": "tests.small:load", "noise_ratio": [0.2, 0.4], "seed": [0, 1]},
    "files": {
        "similarities": "out/{ratio}_{seed}_{split}.npy",
        "noise_index": "noise/{ratio}_{seed}.npy",
    },
    "uses_clean_data": False,
    "tuning": {"by": "authors"},
    "epoch": "last",
}
"""A row with what a file must have."""


def row_with(**changes: Any) -> dict[str, Any]:
    """`ROW` with values in other places, given as `files__ranks=...`; None removes."""
    content = copy.deepcopy(ROW)
    for path, value in changes.items():
        *parents, key = path.split("__")
        place = content
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[key]
        else:
            place[key] = value
    return content


@pytest.fixture
def read(tmp_path):
    def read_content(**changes):
        file = tmp_path / "row.yaml"
        file.write_text(yaml.safe_dump(row_with(**changes)))
        return read_row(file)[0]

    return read_content


def test_a_row_may_say_its_network(read):
    told, untold = read(network="SGR").trials()[0], read().trials()[0]
    assert (told.backbone_label, untold.backbone_label) == ("SGR", "external")
    assert told.parameters()["network"] == "SGR"
    assert "network" not in untold.parameters()
    assert told.id != untold.id


def test_a_row_has_a_trial_for_each_ratio_and_seed(read):
    trials = read().trials()
    assert [(t.noise_ratio, t.seed, t.noise_seed) for t in trials] == [
        (0.2, 0, 0),
        (0.2, 1, 1),
        (0.4, 0, 0),
        (0.4, 1, 1),
    ]
    assert len({t.id for t in trials}) == 4
    assert len({t.cell_id for t in trials}) == 2
    first = trials[0]
    assert ExternalTrial.model_validate(first.facts()).id == first.id
    told = first.parameters()
    assert told["source.commit"] == "0a1b2c3"
    assert told["tuning.by"] == "authors"
    assert "lr" not in told  # nothing is said of settings that only our loop has


def test_another_state_of_the_program_is_another_row(read):
    before = {t.id for t in read().trials()}
    assert not before & {t.id for t in read(source__commit="0a1b2c4").trials()}


def test_without_a_grid_it_has_the_points_of_its_sweep(read):
    planned = small.sweep("clip", "small_loss", grid={"noise_ratio": [0, 0.4], "seed": [0, 1]}).trials
    trials = read(grid=None).trials(planned)
    assert {(t.noise_ratio, t.seed) for t in trials} == {(r, s) for r in (0, 0.4) for s in (0, 1)}
    assert {t.dataset for t in trials} == {"tests.small:load"}
    with pytest.raises(BadInput, match="grid is missing: there is no results/made here"):
        read(grid=None).trials()
    others = small.sweep("clip", grid={"dataset": ["tests.small:few"]}).trials
    with pytest.raises(BadInput, match="no single data set and noise"):
        read(grid=None).trials([*planned, *others])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methd": "x"}, "unknown key 'methd'; did you mean 'method'"),
        ({"method": None}, "method is missing"),
        ({"method": "../up"}, "method = '../up'"),
        ({"method": "npc"}, "a method of this project has this name"),
        ({"source__comit": "x"}, "unknown key 'source.comit'; did you mean 'commit'"),
        ({"source__commit": "main"}, "source.commit = 'main'"),
        ({"source__commit": 1234567}, "source.commit = 1234567: expected a valid string"),
        ({"networks": True}, "networks = True"),
        ({"uses_clean_data": "no"}, "uses_clean_data = 'no'"),
        ({"epoch": "best"}, "epoch = 'best': expected 'last' or 'selected'"),
        ({"tuning": {"by": "search"}}, "tries (on dev) belongs to by: search"),
        ({"tuning": {"by": "authors", "tries": 3}}, "tries (on dev) belongs to by: search"),
        ({"grid__noise_ratio": [1.0]}, "grid.noise_ratio.0 = 1.0: expected less than 1"),
        ({"grid__seed": []}, "grid.seed = []"),
        ({"grid__seed": [1, 1]}, "it has a duplicate value"),
        ({"grid__noise": "shufle"}, "unknown noise model 'shufle'; did you mean 'shuffle'"),
        ({"files__ranks": "{split}.npz"}, "give one of similarities and ranks"),
        ({"files__similarities": None}, "give one of similarities and ranks"),
        ({"files__similarities": "{sed}_{split}"}, "unknown placeholder {sed}; did you mean 'seed'"),
        ({"files__similarities": "{seed:03d}_{split}"}, "expected {seed} as it stands"),
        ({"files__similarities": "{seed!r}_{split}"}, "expected {seed} as it stands"),
        ({"files__similarities": "{seed.real}_{split}"}, "unknown placeholder {seed.real}"),
        ({"files__similarities": "{split"}, "a brace that is meant stands twice"),
        ({"files__noise_index": "{split}"}, "unknown placeholder {split}"),
        ({"cost": {"seconds": -1.0}}, "cost.seconds = -1.0"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_place(read, tmp_path, changes, message):
    with pytest.raises(BadInput) as refused:
        read(**changes)
    (error,) = refused.value.errors
    assert error.startswith(f"{tmp_path / 'row.yaml'}: ")
    assert message in error


def test_all_errors_are_said_at_once(read):
    with pytest.raises(BadInput) as refused:
        read(epoch="first", source__commit=None, networks=0, cost={"second": 1})
    assert len(refused.value.errors) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"files__similarities": "{ratio}_{split}.npy"},
            "is both of noise 0.2 seed 0 dev and of noise 0.2 se",
        ),
        (
            {"files__similarities": "{ratio}_{seed}.npy"},
            "is both of noise 0.2 seed 0 dev and of noise 0.2 se",
        ),
        ({"grid__noise": {"model": "partial"}}, "no file of a noise index has these"),
        ({"grid__noise": "none"}, "noise_ratio must be 0"),
        ({"grid__dataset_options": {"share": float("inf")}}, "a number in it is not finite"),
    ],
)
def test_a_grid_that_no_row_can_have_is_refused(read, changes, message):
    with pytest.raises(BadInput, match=message):
        read(**changes).trials()


def test_the_row_that_the_documentation_shows_can_be_read(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    (shown,) = re.findall(r"```yaml\n(method: .*?)```", text, re.S)
    (tmp_path / "row.yaml").write_text(shown)
    row, _ = read_row(tmp_path / "row.yaml")
    assert len(row.trials()) == 10
    assert row.cost.device == "NVIDIA H100"
    assert set(yaml.safe_load(shown)) == set(ExternalRow.model_fields)


def test_a_file_that_is_no_mapping_or_missing_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"row\.yaml does not exist"):
        read_row(tmp_path / "row.yaml")
    (tmp_path / "row.yaml").write_text("- a list")
    with pytest.raises(BadInput, match="expected a mapping, found list"):
        read_row(tmp_path / "row.yaml")
