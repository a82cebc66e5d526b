"""Bundles that are not what they claim to be are told so."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from harness.noise.models import make_noise
from harness.record.bundle import Bundle, bundle_files
from harness.record.check import check_bundle
from harness.record.trial_arrays import TrialArrays
from harness.record.tries import result_of
from harness.record.types import StoreError
from harness.results import main
from tests import recorded, small
from tests.recorded import lines_of, rewrite
from tests.sweep.running import run_sweep, write

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def swept(tmp_path_factory, feature_cache):
    """The bundles of a finished sweep of two methods, and of a search."""
    folder = tmp_path_factory.mktemp("bundles")
    space = {"lr": {"log_uniform": [1e-3, 1e-2]}}
    with contextlib.chdir(folder):
        assert run_sweep([write(folder, "clip", "small_loss", name="made")]) == 0
        content = small.content("clip", name="found", search={"tries": 2, "space": space})
        del content["fixed"]["lr"]
        (folder / "found.yaml").write_text(yaml.safe_dump(content))
        assert run_sweep([str(folder / "found.yaml")]) == 0
    return folder / "results"


@pytest.fixture
def made(swept, tmp_path):
    return shutil.copytree(swept / "made", tmp_path / "made")


def test_bundles_as_they_are_made_have_no_errors(swept, capsys):
    assert main(["check", str(swept / "made"), str(swept / "found")]) == 0
    told = capsys.readouterr().err
    assert "2 planned, 2 finished" in told
    assert main(["check", str(swept)]) == 0  # all that are there
    assert sorted(capsys.readouterr().err.splitlines()) == sorted(told.splitlines())


@pytest.mark.parametrize("name", ["made", "found"])
def test_a_bundle_of_any_sweep_is_exported(swept, tmp_path, monkeypatch, name):
    """As the sweep itself has left it."""
    monkeypatch.chdir(swept.parent)
    out = tmp_path / name
    assert main(["export", name, "--out", str(out)]) == 0
    assert main(["check", str(out)]) == 0
    theirs, ours = (sorted(f.relative_to(d) for f in d.rglob("*")) for d in (swept / name, out))
    assert theirs == ours
    assert sorted(map(json.dumps, lines_of(out))) == sorted(map(json.dumps, lines_of(swept / name)))
    assert main(["export", "nowhere", "--out", str(out)]) == 2
    assert main(["export", {"made": "found", "found": "made"}[name], "--out", str(out)]) == 2  # of another
    assert json.loads((out / "plan.json").read_text())["name"] == name


def test_a_number_that_was_changed_is_found(made):
    trial = rewrite(made, lambda line: line.update({"last/rsum": line["last/rsum"] + 1}))
    errors, _ = check_bundle(made)
    assert [e for e in errors if e.startswith(f"{trial}: last/rsum is ")]


def test_a_recall_that_was_changed_together_with_its_sum_is_found(made):
    """By the ranks."""

    def change(line):
        line["last/t2i_r1"] += 0.5
        line["last/rsum"] += 0.5

    trial = rewrite(made, change)
    errors, _ = check_bundle(made)
    assert any(f"{trial}: last/t2i_r1 is" in e and "its ranks give" in e for e in errors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line["tags"].update(noise_digest="0" * 16), "its noise index is 0000000000000000"),
        (lambda line: line["tags"].update(data_fingerprint="other"), "it is of version other of the data"),
        (lambda line: line["tags"].update(protocol_version="1"), "it is of protocol version 1"),
        (lambda line: line["parameters"].update(lr="0.5"), "lr are not those of the trial"),
        (lambda line: line.update(seed=7), "seed are not those of the trial"),
        (lambda line: line.update({"dev/best_rsum": 599.0}), "dev/best_rsum 599.0 is not the best"),
        (lambda line: line.update({"test/i2t_r1": float("nan")}), "and the six recalls are"),
        (
            lambda line: line.update({"test/i2t_median_rank": 0.5}),
            "test/i2t_median_rank is 0.5, and its ranks",
        ),
        (
            lambda line: line.update({"noise/realised_ratio": 0.01}),
            "noise/realised_ratio is 0.01, and its noise",
        ),
        (
            lambda line: line.update({"cost/networks_at_test": 2.0}),
            "is not the number of networks of the trial",
        ),
        (
            lambda line: line["tags"].update(uses_clean_data="true"),
            "uses_clean_data is not what plan.json says",
        ),
        (lambda line: line.update(status="KILLED"), "its status is KILLED"),
        (lambda line: line.update({"dev/t2i_r1": 1.5}), "dev/rsum is "),
        (lambda line: line.update({"train/loss": 0.5}), "train/loss is 0.5, and the last of its curve"),
        (lambda line: line["tags"].update(noise_model="hard"), "noise_model are not those of the trial"),
        (lambda line: line["tags"].update(trial_id="0" * 12), "trial_id are not those of the trial"),
    ],
)
def test_a_line_that_does_not_fit_its_trial_is_found(made, change, message):
    trial = rewrite(made, change)
    errors, _ = check_bundle(made)
    assert any(trial in e and message in e for e in errors), errors


def test_what_is_no_part_of_a_bundle_is_found(made):
    """It would be published with it, and nobody has looked at it."""
    trial = lines_of(made)[0]["trial"]
    known = [Bundle("made", made).line_digest(trial)]
    (made / "payload.pkl").write_bytes(b"\x80")
    (made / "arrays" / "more").mkdir()
    (made / "arrays" / "more" / "x.npz").write_bytes(b"x")
    (made / "noise" / "linked.npz").symlink_to("/etc/hostname")
    TrialArrays(made / "arrays").save("f" * 12, {"last/i2t_rank": np.arange(3)})
    np.savez(made / "queries" / "other.npz", i2t_group=np.arange(3))
    (made / "external" / "theirs").mkdir(parents=True)
    (made / "environment.json").unlink()
    assert set(check_bundle(made)[0]) == {
        "payload.pkl is no file of a bundle",
        "arrays/more/x.npz is no file of a bundle",
        "noise/linked.npz is no file of a bundle",
        f"arrays/{'f' * 12}.npz has arrays of '{'f' * 12}', which has no record",
        "noise/linked.npz is of no trial",
        "queries/other.npz is of no trial",
        "external/theirs is no external row: it has no plan.json",
        "environment.json is missing",
    }
    assert known == [Bundle("made", made).line_digest(trial)]
    assert {file.name for file in bundle_files(made)} & {"payload.pkl", "x.npz", "linked.npz"} == set()


def test_two_lines_of_a_trial_are_told(made):
    first, second = lines_of(made)
    text = "".join(json.dumps(line) + "\n" for line in (first, second, first))
    (made / "records.jsonl").write_text(text)
    assert check_bundle(made)[0] == [f"several lines of one trial: {first['trial']}"]


def test_a_search_that_the_file_does_not_take_is_no_ones_to_name(made):
    claim = {"search": "search_emoji", "search_digest": "f" * 12, "search_tries": "12"}
    rewrite(made, lambda line: line["tags"].update(claim))
    told = "1 records name the search 'search_emoji', from which sweep.yaml takes no settings"
    assert check_bundle(made)[0] == [told]
    plan = json.loads((made / "plan.json").read_text())
    (made / "plan.json").write_text(json.dumps({**plan, "settings_from": [claim]}))
    errors, notes = check_bundle(made)
    assert "plan.json says that settings are from search_emoji, and sweep.yaml from none" in errors
    assert [note for note in notes if note.startswith("settings are from the search 'search_emoji' (fff")]


def test_a_trial_that_is_missing_or_not_planned_is_found(made):
    kept, dropped = lines_of(made)
    (made / "records.jsonl").write_text(json.dumps(kept) + "\n")
    errors, _ = check_bundle(made)
    assert any(e.startswith(f"no record: {dropped['trial']} ({dropped['method']}") for e in errors)
    (made / "records.jsonl").write_text(
        "".join(json.dumps(x) + "\n" for x in (kept, dropped, {**kept, "trial": "x"}))
    )
    assert "not in the plan: x" in check_bundle(made)[0]


def test_a_plan_that_was_changed_is_found(made):
    plan = json.loads((made / "plan.json").read_text())
    plan["trials"][0]["lr"] = 0.5
    (made / "plan.json").write_text(json.dumps(plan))
    errors, _ = check_bundle(made)
    assert "the ids of plan.json are not those of its trials" in errors


def test_what_the_plan_says_of_a_method_is_what_its_class_says(made):
    plan = json.loads((made / "plan.json").read_text())
    plan["methods"]["clip"].update(uses_clean_data=True, family="weighting")
    (made / "plan.json").write_text(json.dumps(plan))
    errors, _ = check_bundle(made)
    assert "plan.json says of clip another uses_clean_data and family than its class" in errors


@pytest.mark.parametrize("name", ["made", "found"])
def test_a_sweep_file_that_plans_others_is_found(swept, tmp_path, name):
    folder = shutil.copytree(swept / name, tmp_path / name)
    content = yaml.safe_load((folder / "sweep.yaml").read_text())
    content["grid"]["seed"] = [3]
    (folder / "sweep.yaml").write_text(yaml.safe_dump(content))
    assert check_bundle(folder)[0] == ["sweep.yaml plans other trials than plan.json"]
    (folder / "sweep.yaml").write_text("grid: {}")
    assert check_bundle(folder)[0][-1].startswith("sweep.yaml: ")


def test_a_trial_that_failed_is_told(made):
    trial = rewrite(made, lambda line: line.update(status="FAILED"))
    errors, notes = check_bundle(made)
    assert errors == []
    assert any(note.startswith(f"failed: {trial}") for note in notes)


def test_without_the_data_noise_is_held_against_the_bundle_itself(made, monkeypatch):
    """The other trial, the files of noise, and the mismatches that they have."""

    def nowhere(*_, **__):
        raise OSError

    monkeypatch.setattr("harness.record.check_content.load_dataset", nowhere)
    assert check_bundle(made)[0] == []
    known = (made / "records.jsonl").read_text()
    other = lines_of(made)[1]["trial"]
    for change, trial, message in (
        (
            {"tags": {"noise_digest": "0" * 16}},
            other,
            "and that of trials with the same noise 0000000000000000",
        ),
        ({"tags": {"data_fingerprint": "other"}}, other, "of the data, and other trials of other"),
        ({"noise/realised_ratio": 0.5}, None, "noise/realised_ratio is 0.5, and its noise index has"),
    ):

        def altered(line, change=change):
            line["tags"].update(change.get("tags", {}))
            line.update({k: v for k, v in change.items() if k != "tags"})

        first = rewrite(made, altered)
        assert any((trial or first) in e and message in e for e in check_bundle(made)[0]), message
        (made / "records.jsonl").write_text(known)
    (file,) = (made / "noise").glob("*.npz")
    np.savez(file, image=np.roll(dict(np.load(file))["image"], 1))
    assert check_bundle(made)[0] == [f"noise/{file.name} holds another index than its name says"]
    file.unlink()
    assert any(e.startswith(f"noise/{file.name} cannot be read") for e in check_bundle(made)[0])


def test_a_foreign_noise_index_is_found(made):
    (file,) = (made / "noise").glob("*.npz")
    image = dict(np.load(file))["image"]
    np.savez(file, image=np.roll(image, 1))
    assert f"noise/{file.name} holds another index than its name says" in check_bundle(made)[0]
    file.unlink()
    assert any(file.name in e and "cannot be read" in e for e in check_bundle(made)[0])


def test_noise_that_cannot_be_made_anew_is_told(tmp_path):
    """Its file is another one now, which fits no more."""
    file = tmp_path / "noise.npy"
    np.save(file, make_noise(small.load()["train"], ratio=0.4, granularity="caption", seed=0).image)
    noise = {"model": "from_file", "path": str(file)}
    sweep = small.sweep("clip", fixed={"noise": noise, "lr": 1e-3}, grid={"noise_ratio": [0.4]})
    recorded.bundle(sweep, tmp_path / "made")
    assert check_bundle(tmp_path / "made")[0] == []
    np.save(file, np.arange(3))
    moved, unmade = check_bundle(tmp_path / "made")[0]
    assert "it is of version" in moved  # a noise file is part of what is trained on
    assert unmade.startswith(f"{sweep.trials[0].id}: its noise index cannot be made: noise file {file}")


def test_ranks_of_another_split_are_found(made):
    queries = next((made / "queries").glob("*.npz"))
    groups = dict(np.load(queries))
    np.savez(queries, **{**groups, "i2t_group": groups["i2t_group"][::-1].copy()})
    file = next((made / "arrays").glob("*.npz"))
    trial = np.load(file)["trial"][0]
    assert f"{trial}: the groups of last are not those of the test split" in check_bundle(made)[0]
    queries.unlink()
    assert any(trial in e and "queries" in e and e.endswith("is missing") for e in check_bundle(made)[0])
    np.savez(queries, **groups)
    assert check_bundle(made)[0] == []
    file.unlink()
    assert any(trial in e and "arrays cannot be read" in e for e in check_bundle(made)[0])


def test_ranks_and_groups_in_the_file_of_a_trial_count(made):
    """Ranks of the selected epoch, where they are not the last epoch's; groups, as in older bundles."""
    trial = lines_of(made)[0]["trial"]
    arrays, queries = TrialArrays(made / "arrays"), next((made / "queries").glob("*.npz"))
    last = {k: v for k, v in arrays.read(trial).items() if k.startswith("last/")}
    groups = {f"{part}/{k}": v for part in ("last", "test") for k, v in np.load(queries).items()}
    others = {k.replace("last/", "test/"): np.full_like(v, 60 if "rank" in k else 1) for k, v in last.items()}
    others_of_sweep = {line["trial"]: arrays.read(line["trial"]) for line in lines_of(made)[1:]}
    shutil.rmtree(made / "arrays")
    for each, content in {trial: {**last, **groups, **others}, **others_of_sweep}.items():
        arrays.save(each, content)
    (error,) = (e for e in check_bundle(made)[0] if e.startswith(trial))
    assert error.startswith(f"{trial}: test/i2t_r1 is ")


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b""])
def test_damaged_arrays_are_told(made, damage):
    for folder in ("arrays", "noise", "queries"):
        file = next((made / folder).glob("*.npz"))
        told = np.load(file)["trial"][0] if folder == "arrays" else file.stem
        file.write_bytes(damage(file.read_bytes()))
        assert any(told in e and "cannot be read" in e for e in check_bundle(made)[0])


def test_a_method_that_is_not_here_is_said(made, capfd):
    """The rest is checked, and trials of other methods are run again."""
    plan = json.loads((made / "plan.json").read_text())
    for content in plan["trials"]:
        if content["method"] == "small_loss":
            content["method"] = "nowhere:Nobody"
    plan["methods"]["nowhere:Nobody"] = plan["methods"].pop("small_loss")
    (made / "plan.json").write_text(json.dumps(plan))
    errors, notes = check_bundle(made)
    assert all("method" in error for error in errors)  # its lines say another
    assert any(
        "nowhere" in n and "trial ids, facts of methods and what a search found are not checked" in n
        for n in notes
    )
    assert main(["check", str(made)]) == 1
    assert "Traceback" not in capfd.readouterr().err


def test_what_a_search_found_follows_from_its_records(swept, tmp_path):
    folder = shutil.copytree(swept / "found", tmp_path / "found")
    found = json.loads((folder / "search.json").read_text())
    found["winners"]["clip"]["settings"]["lr"] *= 2
    (folder / "search.json").write_text(json.dumps(found))
    assert check_bundle(folder)[0] == ["search.json is not what the records of the search say"]


def test_data_that_is_not_here_is_said(made):
    plan = json.loads((made / "plan.json").read_text())
    for trial in plan["trials"]:
        trial["dataset"] = "tests.nowhere:load"
    (made / "plan.json").write_text(json.dumps(plan))
    _, notes = check_bundle(made)
    assert notes == ["data set 'tests.nowhere:load' is not here: fingerprint and noise are not checked"]


def test_what_is_no_bundle(tmp_path, capsys):
    with pytest.raises(StoreError, match="is no bundle"):
        check_bundle(tmp_path)
    assert main(["check", str(tmp_path), str(ROOT / "results" / "emoji_rates")]) == 2
    assert "emoji_rates: 200 planned" in capsys.readouterr().err  # the others are checked
    (tmp_path / "plan.json").write_text('{"trials": []}')
    (tmp_path / "records.jsonl").write_text('{"trial": "a"}\n')
    with pytest.raises(StoreError, match="line 1 of its records: run is missing or malformed"):
        check_bundle(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tags", None),
        ("parameters", []),
        ("curves", []),
        ("curves", {"dev/rsum": [1, 2]}),
        ("curves", {"dev/rsum": [[0, "x"]]}),
        ("last/rsum", "x"),
        ("last/i2t_r1", None),
        ("trial", ["a"]),
        ("seed", "0"),
    ],
)
def test_a_malformed_line_is_named(made, field, value, capsys):
    rewrite(made, lambda line: line.update({field: value}))
    with pytest.raises(StoreError, match=f"line 1 of its records: {field}.* is missing or malformed"):
        check_bundle(made)
    assert main(["check", str(made)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def edit_plan(folder, change):
    plan = json.loads((folder / "plan.json").read_text())
    change(plan)
    (folder / "plan.json").write_text(json.dumps(plan))


def test_a_plan_of_no_facts(made):
    edit_plan(made, lambda plan: plan.update(methods=["clip"]))
    with pytest.raises(StoreError, match="are not the facts of methods by name"):
        check_bundle(made)


@pytest.mark.parametrize("ids", [True, False])
def test_a_table_that_says_it_is_a_search_keeps_its_ranks_checked(made, ids):
    """Of a search no ranks are kept, and none are checked."""
    rewrite(made, lambda line: line.update({"last/i2t_r1": 50.0, "last/rsum": line["last/rsum"] + 1}))
    edit_plan(made, lambda plan: plan.update(select=True))
    assert (
        "sweep.yaml and plan.json do not agree on whether settings are selected"
        in check_bundle(made, ids=ids)[0]
    )


def test_a_search_that_leaves_out_tries_is_found(swept, tmp_path):
    """Also where plan, records and what was found agree: the file says what was planned."""
    folder = shutil.copytree(swept / "found", tmp_path / "found")
    assert check_bundle(folder) == ([], [])

    def shorter(plan):
        plan["trials"], plan["ids"] = plan["trials"][:1], plan["ids"][:1]

    edit_plan(folder, shorter)
    kept = {t.id for t in Bundle("found", folder).sweep().planned}
    text = "".join(json.dumps(x) + "\n" for x in lines_of(folder) if x["trial"] in kept)
    (folder / "records.jsonl").write_text(text)
    found = result_of(Bundle("found", folder).sweep()).model_dump_json(exclude_none=True)
    (folder / "search.json").write_text(found)
    assert check_bundle(folder)[0] == ["sweep.yaml plans other trials than plan.json"]
    edit_plan(folder, lambda plan: plan["search"].update(tries=3))
    assert "sweep.yaml says other things of the search than plan.json" in check_bundle(folder)[0]


@pytest.mark.parametrize(
    "folder", sorted(p.parent for p in ROOT.glob("results/*/plan.json")), ids=lambda p: p.name
)
def test_the_committed_bundles_are_what_they_claim_to_be(folder):
    errors = check_bundle(folder)[0]
    if not (ROOT / "reports" / folder.name).is_dir():  # a sweep that is measured in parts has no report yet
        errors = [e for e in errors if not e.startswith("no record: ")]
    assert errors == []
