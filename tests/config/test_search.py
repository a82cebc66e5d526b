"""Searches: what is drawn, what is refused, and what another sweep takes."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest

from harness.config.search import Range, Search, SearchResult, edge_of, own_stage, shared_settings
from harness.config.sweep_file import BadInput, expand_sweep, parse_sweep
from tests import small

SPACE = {
    "lr": {"log_uniform": [5e-5, 5e-3]},
    "weight_decay": {"log_uniform": [0.01, 1]},
    "small_loss.warmup_epochs": {"integers": [0, 2]},
}
SEARCH = {"tries": 5, "space": SPACE}


def searched(*methods, search=SEARCH, told=None, **changes):
    """A search of methods, whose own keys are left out of the space where they are not among them."""
    given = {k: v for k, v in search["space"].items() if "small_loss" not in k or "small_loss" in methods}
    search = {**search, "space": given}
    fixed = changes.pop("fixed", {})
    grid = {"noise_ratio": [0.2, 0.6], "seed": [100, 101], **changes.pop("grid", {})}
    overrides = {m: {} for m in methods}
    content = small.content(*methods, grid=grid, search=search, overrides=overrides, fixed=fixed, **changes)
    if "lr" not in fixed:
        del content["fixed"]["lr"]
    sweep = parse_sweep(content)
    return expand_sweep(sweep.file, text="", told=told) if told else sweep


# Drawing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["sobol", "random"])
def test_every_method_has_as_many_distinct_tries_at_all_ratios_and_seeds(sampler):
    def drawn(seed=0):
        search = {**SEARCH, "sampler": sampler, "seed": seed}
        return searched("clip", "small_loss", search=search).trials

    for method in ("clip", "small_loss"):
        trials = [t for t in drawn() if t.method == method]
        tries = {(t.lr, t.weight_decay, t.hyper.get("warmup_epochs")) for t in trials}
        assert (len(trials), len(tries)) == (5 * 4, 5)
    assert [t.id for t in drawn()] == [t.id for t in drawn()]
    assert not {t.id for t in drawn(seed=1)} & {t.id for t in drawn()}


def test_tries_of_a_method_do_not_depend_on_the_others():
    alone = {t.id for t in searched("clip").trials}
    assert alone == {t.id for t in searched("triplet", "clip").trials if t.method == "clip"}


def test_a_sequence_fills_its_range_on_its_scale():
    search = Search(space={"lr": {"log_uniform": [1e-4, 1e-2]}}, tries=32)
    logs = sorted(math.log10(s["lr"]) for s in search.settings("clip"))
    assert [sum(-4 + k / 4 <= x < -4 + (k + 1) / 4 for x in logs) for k in range(8)] == [4] * 8
    assert all(float(f"{s['lr']:.3g}") == s["lr"] for s in search.settings("clip"))


def test_settings_drawn_twice_are_drawn_anew():
    space = {"warmup": {"choices": ["a", "b", "c"]}, "other": {"integers": [1, 2]}}
    assert len({repr(s) for s in Search(space=space, tries=6).settings("clip")}) == 6
    with pytest.raises(ValueError, match=r"clip has 6 distinct settings, and search.tries = 7"):
        Search(space=space, tries=7).settings("clip")


@pytest.mark.parametrize(
    ("values", "value", "edge"),
    [
        (Range(log_uniform=(1e-4, 1e-2)), 1.2e-4, "low"),
        (Range(log_uniform=(1e-4, 1e-2)), 1.4e-4, None),
        (Range(log_uniform=(1e-4, 1e-2)), 9e-3, "high"),
        (Range(uniform=(0.0, 1.0)), 0.04, "low"),
        (Range(integers=(1, 6)), 6, "high"),
        (Range(integers=(1, 6)), 5, None),
        (Range(choices=["a", "b"]), "b", None),
    ],
)
def test_an_edge_is_within_a_twentieth_of_the_range(values, value, edge):
    assert values.edge(value) == edge


def test_a_natural_bound_is_one_that_no_search_could_go_beyond():
    (trial,) = small.sweep("npc", fixed={"epochs": 8}).trials
    warmup, threshold = Range(integers=(0, 7)), Range(uniform=(0.3, 1.0))
    assert edge_of(trial, "warmup_epochs", warmup, 0) == ("low", "natural")
    assert edge_of(trial, "warmup_epochs", warmup, 3) is None
    assert edge_of(trial, "warmup_epochs", warmup, 4) == ("high", "natural")  # 5 leave 8 % of the rate
    assert edge_of(trial, "warmup_epochs", Range(integers=(1, 3)), 3) == ("high", "set")
    assert edge_of(trial, "bank_threshold", threshold, 0.98) == ("high", "natural")
    assert edge_of(trial, "bank_threshold", threshold, 0.31) == ("low", "set")
    assert edge_of(trial, "lr", Range(log_uniform=(1e-4, 1e-2)), 1.1e-4) == ("low", "set")


# What a warm-up leaves -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "warmup", "share"),
    [
        ({"epochs": 8}, 0, 1),
        ({"epochs": 8}, None, 1),
        ({"epochs": 8}, 4, 0.5 - 1 / math.pi),  # the integral of the cosine from 1/2 to 1
        ({"epochs": 8}, 7, 1 / 8 - math.sin(math.pi / 8) / math.pi),
        ({"epochs": 8}, 9, 0),
        ({"epochs": 10, "decay_epochs": [7]}, 7, 0.3 / 7.3),
        ({"epochs": 10, "decay_epochs": [9, 4, 12]}, 5, (0.1 * 4 + 0.01) / (4 + 0.1 * 5 + 0.01)),
        ({"epochs": 4, "decay_epochs": []}, 1, 0.75),
    ],
)
def test_what_is_left_of_the_learning_rate_after_a_warm_up(fields, warmup, share):
    trial = small.trial("npc", **fields)
    trial = trial.model_copy(update={"hyper": {**trial.hyper, "warmup_epochs": warmup}})
    assert own_stage(trial) == pytest.approx(share, abs=1e-12)


def test_a_method_that_judges_by_the_pretrained_network_has_no_warm_up():
    estimators = ("pretrained", "warmup")
    own = [{"osa": {"estimator": estimator, "warmup_epochs": 2}} for estimator in estimators]
    shares = [own_stage(small.sweep("osa", overrides=overrides).trials[0]) for overrides in own]
    assert shares == [1, pytest.approx(1 / 3 - math.sin(math.pi / 3) / math.pi)]


def test_an_edge_stays_one_where_a_warm_up_takes_the_trial():
    """Of a search from before its warm-ups were limited: its learning rate could still be wider."""
    trial = small.trial("npc", epochs=8)
    trial = trial.model_copy(update={"hyper": {**trial.hyper, "warmup_epochs": 7}})
    assert edge_of(trial, "lr", Range(log_uniform=(1e-4, 1e-2)), 1.1e-4) == ("low", "set")
    assert edge_of(trial, "warmup_epochs", Range(integers=(0, 9)), 7) == ("high", "natural")


@pytest.mark.parametrize("sampler", ["sobol", "random"])
def test_a_setting_that_is_hardly_more_than_a_warm_up_is_drawn_anew(sampler):
    def drawn(longest):
        ranges = {**SPACE, "small_loss.warmup_epochs": {"integers": [0, longest]}}
        search = {"tries": 12, "sampler": sampler, "space": ranges}
        trials = searched("small_loss", search=search, fixed={"epochs": 8}).trials
        return {(t.lr, t.weight_decay): t.hyper["warmup_epochs"] for t in trials}

    assert len(drawn(7)) == 12
    assert max(drawn(7).values()) == 4
    # Those that may be tries are the first ones of the sequence, whatever comes between them.
    everything = Search(
        space={k: Range.model_validate(v) for k, v in SPACE.items()}
        | {"small_loss.warmup_epochs": Range(integers=(0, 7))},
        tries=40,
        sampler=sampler,
    ).settings("small_loss")
    short = [s for s in everything if s["warmup_epochs"] <= 4]
    assert list(drawn(7)) == [(s["lr"], s["weight_decay"]) for s in short[:12]]


def test_optuna_is_asked_anew_where_a_warm_up_takes_the_trial():
    pytest.importorskip("optuna")
    told: list[tuple[dict[str, Any], float]] = []

    def drawn(shortest):
        ranges = {"lr": SPACE["lr"], "small_loss.warmup_epochs": {"integers": [shortest, 7]}}
        search = {"tries": 5, "sampler": "optuna", "space": ranges}
        trials = searched("small_loss", search=search, fixed={"epochs": 8}, told={"small_loss": told}).trials
        return {"lr": trials[-1].lr, "warmup_epochs": trials[-1].hyper["warmup_epochs"]}

    with pytest.raises(BadInput, match="small_loss has 0 distinct settings"):
        drawn(5)
    for _ in range(5):
        settings = drawn(0)
        told.append((settings, 50.0 + settings["warmup_epochs"]))  # the longer, the better
    assert len({repr(settings) for settings, _ in told}) == 5
    assert max(settings["warmup_epochs"] for settings, _ in told) <= 4


# What is refused -----------------------------------------------------------------------------------


def space(**ranges):
    """With other ranges beside that of the learning rate."""
    return {"search": {"tries": 5, "space": {"lr": SPACE["lr"], **ranges}}}


@pytest.mark.parametrize(
    ("methods", "changes", "message"),
    [
        (["clip"], {"fixed": {"lr": 1e-3}}, "clip.lr is set both in search.space and in fixed"),
        (["clip"], {"grid": {"lr": [0.1]}}, "clip.lr is set both in search.space and in the grid"),
        (["zero_shot", "clip"], {}, "zero_shot does not train, so there is nothing to search"),
        (["clip"], {"search": {"tries": 1, "space": SPACE}}, "search.tries = 1"),
        (["clip"], space(lrr={"uniform": [0, 1]}), "unknown key 'lrr'"),
        (["clip"], space(**{"npc.lr": {"uniform": [0, 1]}}), "no method 'npc'"),
        (["clip"], space(weight_decay={"uniform": [1, 0]}), "a lower and a higher bound"),
        (["clip"], space(weight_decay={"log_uniform": [0, 1]}), "a lower bound above 0"),
        (["clip"], space(seed={"integers": [0, 9]}), "search.space.seed: it is an axis"),
        (["clip"], space(weight_decay={}), "expected one of log_uniform"),
        (["clip"], space(weight_decay={"choices": [1, 0.1, 1.0]}), "none of them twice"),
        (["clip"], space(weight_decay={"choices": ["1e-2", 0.1]}), "'1e-2' is not (YAML reads 1e-2 as text"),
        (["clip"], space(backbone={"choices": [{"dim": 1}, {"dim": 2}]}), "numbers, words, true and false"),
        (["clip"], {"grid": {"batch_size": [8, 16]}}, "a search has no axis 'batch_size'"),
        (["clip"], {"grid": {"clip.n_networks": [1, 2]}}, "a search has no axis 'clip.n_networks'"),
        (["clip"], {"search": {"tries": 5, "space": {"lr": {"uniform": [0.1, 1]}}}}, "must be log_uniform"),
        (
            ["small_loss"],
            {**space(), "fixed": {"small_loss.warmup_epochs": 3}},
            "small_loss has 0 distinct settings, and search.tries = 5; ",
        ),
        (
            ["small_loss"],
            {"search": {"tries": 2, "space": {"small_loss.warmup_epochs": {"integers": [1, 5]}}}},
            "small_loss has 1 distinct settings, and search.tries = 2; all others drawn leave its own",
        ),
        (
            ["clip"],
            {**space(), "resources": {"processes": 2}, "asha": {}},
            "search.asha stops trials of one process only",
        ),
    ],
)
def test_a_search_that_could_not_be_fair_is_refused(methods, changes, message):
    if "asha" in changes:
        changes = {**changes, "search": {**changes["search"], "asha": changes["asha"]}}
        del changes["asha"]
    with pytest.raises(BadInput) as error:
        searched(*methods, **changes)
    assert any(message in text for text in error.value.errors), error.value.errors


# Settings from a search ----------------------------------------------------------------------------


class Found:
    """A file of what a search found, with changes."""

    result: ClassVar = {
        "name": "found",
        "protocol_version": 2,
        "digest": "0123456789ab",
        "tries": 12,
        "missing": {"clip": 0, "small_loss": 0},
        "seeds": [100, 101],
        "fingerprints": {"tests.small:load": "x"},
        "space": SPACE,
    }

    def __init__(self, folder, **changes):
        winners = {}
        for method, settings in (
            ("clip", {"lr": 4e-4, "weight_decay": 0.1}),
            ("small_loss", {"lr": 2e-4, "weight_decay": 0.2, "warmup_epochs": 1}),
        ):
            trial = small.sweep(method, overrides={}).trials[0]
            others = shared_settings(trial, settings)
            winners[method] = {"settings": settings, "others": others, "objective": 100.0}
        for method in winners:
            winners[method] |= changes.pop(method, {})
        only = changes.pop("only", winners)
        winners = {method: winners[method] for method in only}
        content = SearchResult.model_validate({**self.result, "winners": winners, **changes})
        file = folder / "results" / content.name / "search.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content.model_dump_json())


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def taken(*methods, fixed=None, **changes):
    overrides = {m: {} for m in methods}
    content = small.content(*methods, fixed=fixed or {}, overrides=overrides, **changes)
    del content["fixed"]["lr"]  # which the search has chosen
    content["fixed"] = {k: v for k, v in content["fixed"].items() if k not in content["grid"]}
    return parse_sweep({"settings_from": "found", **content})


def test_a_search_that_ships_is_found_where_there_is_none_of_its_name_here(
    here, tmp_path_factory, monkeypatch
):
    elsewhere = tmp_path_factory.mktemp("shipped")
    monkeypatch.setattr("harness.config.search.shipped", lambda kind: elsewhere / kind)
    Found(elsewhere)
    assert len(taken("clip").found) == 1
    Found(here, tries=3)
    assert taken("clip").found[0].tries == 3
    with pytest.raises(BadInput, match=r"no results/nowhere/search.json \(searches there: found\)"):
        taken("clip", settings_from="nowhere")


def test_a_sweep_takes_the_best_settings_and_names_their_search(here):
    Found(here)
    sweep = taken("clip", "small_loss", grid={"seed": [0, 1]})
    assert {(t.method, t.lr, t.weight_decay) for t in sweep.trials} == {
        ("clip", 4e-4, 0.1),
        ("small_loss", 2e-4, 0.2),
    }
    assert {t.hyper.get("warmup_epochs") for t in sweep.trials if t.method == "small_loss"} == {1}
    assert sweep.found[0].tags == {"search": "found", "search_digest": "0123456789ab", "search_tries": "12"}


def test_each_method_takes_its_settings_from_the_search_that_has_it(here):
    Found(here, only=["clip"])
    Found(here, only=["small_loss"], name="other", seeds=[200])
    sweep = taken("clip", "small_loss", settings_from=["found", "other"])
    assert {t.method: t.lr for t in sweep.trials} == {"clip": 4e-4, "small_loss": 2e-4}
    assert [result.name for result in sweep.found] == ["found", "other"]
    with pytest.raises(BadInput, match="it has chosen on seeds 200, which the sweep has too"):
        taken("clip", "small_loss", settings_from=["found", "other"], grid={"seed": [200]})
    with pytest.raises(BadInput, match=r"no settings of triplet \(there are: clip, small_loss\)"):
        taken("clip", "triplet", settings_from=["found", "other"])
    Found(here, name="other")
    with pytest.raises(BadInput, match="clip was searched by found and by other"):
        taken("clip", settings_from=["found", "other"])


def test_an_axis_varies_a_setting_around_the_best(here):
    Found(here)
    sweep = taken("small_loss", grid={"small_loss.warmup_epochs": [0, 1, 2]})
    assert [t.hyper["warmup_epochs"] for t in sweep.trials] == [0, 1, 2]
    assert {t.lr for t in sweep.trials} == {2e-4}
    assert [t.hyper["n_networks"] for t in taken("clip", grid={"clip.n_networks": [1, 2]}).trials] == [1, 2]


LONG = {"lr": 2e-4, "weight_decay": 0.2, "warmup_epochs": 2}


@pytest.mark.parametrize(
    ("found", "changes", "message"),
    [
        ({"missing": {"clip": 3}}, {}, "incomplete; of 12 tries each there are missing: 3 of clip"),
        ({"protocol_version": 1}, {}, "it is of protocol version 1, and this is 2"),
        ({"seeds": [0, 100]}, {}, "it has chosen on seeds 0, which the sweep has too"),
        ({}, {"fixed": {"weight_decay": 0.3}}, "clip.weight_decay is set in fixed too, and the search has"),
        (
            {},
            {"grid": {"weight_decay": [0.3]}},
            "clip.weight_decay is set in the grid too, and the search has",
        ),
        ({}, {"grid": {"small_loss.lr": [0.3]}}, "small_loss.lr is set in the grid too, and the search has"),
        ({}, {"fixed": {"epochs": 5}}, "clip was searched with epochs = 3, and has 5 here"),
        ({}, {"fixed": {"backbone": small.backbone(image_size=8)}}, "clip was searched with backbone.image"),
        ({"clip": {"at_edge": ["lr"]}}, {}, "the best lr of clip, 0.0004, lies at an edge of its range"),
        ({}, {"grid": {"epochs": [5]}}, "clip was searched with epochs = 3, and has 5 here"),
        (
            {"small_loss": {"settings": LONG}},
            {},
            "the best setting of small_loss is hardly more than a warm-up",
        ),
        ({}, {"fixed": {"clip.n_networks": 2}}, "clip was searched with clip.n_networks = 1, and has 2"),
    ],
)
def test_a_search_that_does_not_fit_is_refused(here, found, changes, message):
    Found(here, **found)
    with pytest.raises(BadInput) as error:
        taken("clip", "small_loss", **changes)
    assert any(message in text for text in error.value.errors), error.value.errors


def test_a_search_over_several_data_sets_serves_each(here):
    """`check_searched_data` holds a sweep to them."""
    others = shared_settings(small.sweep("clip", overrides={}).trials[0], {"lr": 1, "weight_decay": 1})
    Found(here, clip={"others": {**others, "dataset": "emoji"}})
    assert [t.lr for t in taken("clip").trials] == [4e-4]


def test_a_search_that_is_not_there_or_not_readable_is_told(here):
    with pytest.raises(BadInput, match=r"there is no results/found/search.json \(searches there: "):
        taken("clip")
    Found(here)
    (here / "results" / "found" / "search.json").write_text("{}")
    with pytest.raises(BadInput, match="cannot be read"):
        taken("clip")
