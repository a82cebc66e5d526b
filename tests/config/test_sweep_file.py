from __future__ import annotations

from pathlib import Path

import pytest

from harness.config.sweep_file import BadInput, load_sweep, parse_sweep, read_sweep_file
from methods import METHODS
from tests import small

ROOT = Path(__file__).parents[2]
MINE = "tests.mine:Mine"
AXES = {
    "dataset": "emoji",
    "noise": "derangement",
    "noise_ratio": 0.1,
    "noise_granularity": "image",
    "seed": 3,
    "noise_seed": 3,
}
"""What belongs to all methods of a grid."""


def errors_of(**changes):
    content = small.content("clip", "npc")
    for key, value in changes.items():
        content[key] = (
            {**content[key], **value}
            if isinstance(value, dict) and isinstance(content.get(key), dict)
            else value
        )
    with pytest.raises(BadInput) as caught:
        parse_sweep(content)
    return caught.value.errors


def test_a_grid_is_every_combination():
    sweep = small.sweep("clip", "triplet", grid={"noise_ratio": [0, 0.4], "seed": [0, 1, 2]})
    assert len(sweep.trials) == 2 * 2 * 3
    assert len({t.id for t in sweep.trials}) == 12
    assert len({t.cell_id for t in sweep.trials}) == 4


def test_an_axis_of_one_method_varies_for_that_method_only():
    sweep = small.sweep("clip", "npc", grid={"npc.bank_threshold": [0.5, 0.9, 0.99]})
    assert [t.method for t in sweep.trials] == ["clip", "npc", "npc", "npc"]
    assert [t.hyper["bank_threshold"] for t in sweep.trials[1:]] == [0.5, 0.9, 0.99]


def test_what_is_said_of_one_method_wins():
    sweep = small.sweep(
        "clip", "triplet", grid={"eps": [1e-3, 1e-4]}, overrides={"triplet": {"eps": 5e-5, "margin": 0.1}}
    )
    assert [(t.method, t.eps) for t in sweep.trials] == [("clip", 1e-3), ("clip", 1e-4), ("triplet", 5e-5)]
    dotted = small.sweep("clip", "triplet", fixed={"triplet.lr": 5e-5, "triplet.margin": 0.1})
    assert [t.lr for t in dotted.trials] == [3e-3, 5e-5]


def test_ids_are_of_the_content():
    base = small.trial("clip")
    assert base.id == small.trial("clip").id
    assert base.id != small.trial("clip", lr=1e-4).id
    assert base.id != small.trial("triplet").id
    # Written differently, the same: defaults spelled out, numbers as text in another notation.
    assert small.trial("npc", warmup_steps=3).id == small.trial("npc").id
    assert (
        parse_sweep(
            small.content(
                "npc", overrides={"npc": {"variant": "paper", "warmup_epochs": 1, "least_bank": 0.2}}
            )
        )
        .trials[0]
        .id
        == small.trial("npc").id
    )


def test_a_sweep_file_that_is_repeated_today_has_the_ids_of_yesterday():
    """Golden ids: if they change, finished work is not recognised any more, and the protocol version should
    say so.
    """
    trial = parse_sweep(
        {"name": "x", "grid": {"method": ["clip"], "dataset": ["emoji"], "noise_ratio": [0.4], "seed": [0]}}
    ).trials[0]
    assert trial.id == "c68c383d9dae"


def test_the_noise_seed_follows_the_seed_unless_varied():
    assert {(t.seed, t.noise_seed) for t in small.sweep("clip", grid={"seed": [0, 7]}).trials} == {
        (0, 0),
        (7, 7),
    }
    apart = small.sweep("clip", grid={"seed": [0, 1], "noise_seed": [5, 6]})
    assert {(t.seed, t.noise_seed) for t in apart.trials} == {(0, 5), (0, 6), (1, 5), (1, 6)}
    assert len({t.cell_id for t in apart.trials}) == 1


def test_a_method_of_ones_own_works_like_a_built_in_name():
    sweep = small.sweep(MINE, grid={f"{MINE}.strength": [1.0, 3.0]})
    assert [t.hyper["strength"] for t in sweep.trials] == [1.0, 3.0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"grid": {"method": ["clpi"]}}, "did you mean 'clip'"),
        ({"grid": {"dataset": []}}, "grid.dataset = []: expected at least one value"),
        ({"grid": {"seed": []}}, "grid.seed = []"),
        ({"grid": {"seed": [1, 1]}}, "it has a duplicate value"),
        ({"grid": {"noise_ratio": [1.0]}}, "noise_ratio = 1.0: expected less than 1"),
        ({"grid": {"noise_ratio": [-0.1]}}, "noise_ratio = -0.1: expected greater than or equal to 0"),
        ({"grid": {"noise_ratio": ["much"]}}, "noise_ratio = 'much': expected a valid number"),
        ({"fixed": {"epoch": 3}}, "unknown key 'epoch'; did you mean 'epochs'"),
        ({"fixed": {"epochs": 0}}, "epochs = 0: expected greater than or equal to 1"),
        ({"fixed": {"lr": float("nan")}}, "lr = nan"),
        (
            {"fixed": {"dataset_options": {"x": [float("inf")]}}},
            "dataset_options = {'x': [inf]}: a number in it is not finite",
        ),
        ({"fixed": {"learning_rate": 0.1}}, "unknown key 'learning_rate'; did you mean 'lr'?"),
        ({"overrides": {"npc": {"learning_rate": 0.1}}}, "no such hyper-parameter; did you mean 'lr'"),
        ({"fixed": {"noise": "hard"}}, "noise.embedding is missing"),
        (
            {"fixed": {"noise": {"model": "hard", "embeding": "x"}}},
            "unknown key 'noise.embeding'; did you mean 'embedding'? (allowed: embedding, model)",
        ),
        ({"fixed": {"backbone": "clop"}}, "unknown backbone 'clop'; did you mean 'clip'"),
        ({"fixed": {"backbone": {"modle": "x"}}}, "unknown key 'backbone.modle'; did you mean 'model'"),
        ({"fixed": {"backbone": small.backbone() | {"head": None}}}, "nothing to train"),
        (
            {"fixed": {"noise_granularity": "word"}},
            "noise_granularity = 'word': expected 'caption', 'image' or 'text'",
        ),
        (
            {"overrides": {"npc": {"bank_treshold": 0.5}}},
            "npc.bank_treshold: npc has no such hyper-parameter; did you mean 'bank_threshold'",
        ),
        ({"overrides": {"npc": {"bank_threshold": 1.5}}}, "npc.bank_threshold = 1.5"),
        ({"overrides": {"npc": {"hyper": {"bank_threshold": 0.5}}}}, "stand here by name, without 'hyper'"),
        ({"overrides": {"mscn": {"margin": 0.5}}}, "no method 'mscn' in the grid"),
        ({"grid": {"npz.lr": [1]}}, "no method 'npz' in the grid; did you mean 'npc'"),
        ({"resources": {"processes": 0}}, "resources.processes = 0: expected greater than or equal to 1"),
        ({"gird": {}}, "unknown key 'gird'; did you mean 'grid'"),
        ({"name": "../escape"}, "name = '../escape'"),
        ({"grid": {"method": [5]}}, "method = 5: expected a name"),
        ({"grid": {"method": [None]}}, "method = None: expected a name"),
        ({"grid": {"method": [["clip"]]}}, "method = ['clip']: expected a name"),
        ({"grid": {"method": [{"a": 1}]}}, "expected a name"),
        ({"grid": {"method": [":x"]}}, "unknown method ':x'"),
        ({"grid": {"method": ["..a:B"]}}, "unknown method '..a:B'"),
        ({"grid": {"method": ["tests.broken:B"]}}, "cannot import 'tests.broken'"),
        ({"grid": {"method": ["tests.small:load"]}}, "is not a subclass of methods.base.Method"),
        ({"grid": {"dataset": [None]}}, "dataset = None: expected a valid string"),
        ({"grid": {"seed": [True]}}, "seed = True: expected a valid integer"),
        ({"grid": {"backbone": [{1: 2, "a": 3}]}, "fixed": {}}, "backbone is set both in grid and in fixed"),
        ({"fixed": {"hyper": {"x": 1}}}, "unknown key 'hyper'"),
        ({"fixed": {"clip.method": "npc"}}, "'clip.method': method is an axis of the whole grid"),
        *(
            ({"overrides": {"npc": {key: value}}}, f"overrides 'npc': {key} is an axis of the whole grid")
            for key, value in AXES.items()
        ),
        *(
            ({"fixed": {f"npc.{key}": value}}, f"'npc.{key}': {key} is an axis of the whole grid")
            for key, value in AXES.items()
        ),
    ],
)
def test_bad_input_is_told(changes, expected):
    assert any(expected in e for e in errors_of(**changes)), errors_of(**changes)


def test_a_missing_axis_is_told():
    content = small.content("clip")
    del content["grid"]["seed"]
    with pytest.raises(BadInput, match="seed is missing"):
        parse_sweep(content)


def test_all_errors_at_once():
    found = errors_of(grid={"method": ["clpi", "npc"], "noise_ratio": [2]}, fixed={"lr": -1, "typo": 1})
    text = "\n".join(found)
    for part in ("clpi", "typo"):
        assert part in text
    found = errors_of(
        grid={"noise_ratio": [2]},
        fixed={"lr": -1, "batch_size": "many"},
        overrides={"npc": {"bank": "never"}},
    )
    text = "\n".join(found)
    for part in ("noise_ratio = 2", "lr = -1", "batch_size = 'many'", "npc.bank = 'never'"):
        assert part in text
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    "text", ["", "- a list", "{unclosed", "grid: 5", "\tx: 1", "a: !!python/object:os.system {}"]
)
def test_files_that_are_no_sweeps(tmp_path, text):
    file = tmp_path / "s.yaml"
    file.write_text(text)
    with pytest.raises(BadInput):
        load_sweep(file)


def test_a_missing_file_names_its_neighbours(tmp_path):
    (tmp_path / "quickstart.yaml").write_text("")
    with pytest.raises(BadInput, match=r"did you mean 'quickstart\.yaml'"):
        load_sweep(tmp_path / "quickstat.yaml")
    (tmp_path / "quickstart.yaml").unlink()
    with pytest.raises(BadInput, match=r"does not exist$"):
        load_sweep(tmp_path / "quickstat.yaml")


def test_a_sweep_goes_by_its_name(tmp_path, monkeypatch):
    """One in `sweeps/` here comes before one that ships, and a file before both."""
    monkeypatch.chdir(tmp_path)
    assert read_sweep_file("quickstart")[1] == (ROOT / "sweeps" / "quickstart.yaml").read_text()
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "quickstart.yaml").write_text("grid: {seed: [7]}")
    assert read_sweep_file("quickstart")[0] == {"name": "quickstart", "grid": {"seed": [7]}}
    (tmp_path / "quickstart").write_text("grid: {seed: [8]}")
    assert read_sweep_file("quickstart")[0]["grid"] == {"seed": [8]}
    (tmp_path / "sweeps" / "mine.yaml").touch()
    with pytest.raises(BadInput, match=r"no sweep 'quickstrat'; did you mean 'quickstart'.*emoji.*mine"):
        read_sweep_file("quickstrat")
    with pytest.raises(BadInput, match=r"sweeps/emoji.yaml does not exist.*named 'emoji', without a path"):
        read_sweep_file("sweeps/emoji.yaml")


def test_the_sweeps_that_ship_are_valid():
    files = sorted((ROOT / "sweeps").glob("*.yaml"))
    assert {"quickstart.yaml", "emoji.yaml", "search_emoji.yaml"} <= {f.name for f in files}
    run = {t.method for file in files for t in load_sweep(file).trials}
    assert run == set(METHODS)


def test_planned_sweeps_lack_nothing_but_their_search():
    """They wait for the result of a search, and move to `sweeps/` with what they have measured."""
    files = sorted((ROOT / "sweeps" / "planned").glob("*.yaml"))
    assert files
    for file in files:
        content, text = read_sweep_file(file)
        searches = content.pop("settings_from", [])
        assert parse_sweep(content, text=text).trials
        for search in [searches] if isinstance(searches, str) else searches:
            assert (file.parents[1] / f"{search}.yaml").is_file()


def test_axes_of_a_method_multiply_its_own_trials_alone(monkeypatch):
    """And tries those of a search, before any is made."""
    monkeypatch.setattr("harness.config.sweep_checks.MOST_TRIALS", 8)
    axes = {"clip.n_networks": [1, 2, 3], "small_loss.n_networks": [1, 2, 3], "seed": [0]}
    assert len(small.sweep("clip", "small_loss", "triplet", grid=axes).trials) == 7
    with pytest.raises(BadInput, match="grid: 14 trials, and a sweep has at most 8"):
        small.sweep("clip", "small_loss", "triplet", grid={**axes, "seed": [0, 1]})
    search = {"tries": 9, "space": {"lr": {"log_uniform": [1e-4, 1e-2]}}}
    with pytest.raises(BadInput, match="grid: 9 trials, and a sweep has at most 8"):
        small.sweep("clip", grid={"seed": [0]}, search=search, overrides={})
