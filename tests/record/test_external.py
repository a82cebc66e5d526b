"""External rows: imported whole or not at all, beside a sweep, and checked with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from harness.evaluate import main as evaluate
from harness.noise.files import write_index
from harness.record import external
from harness.record.bundle import Bundle
from harness.record.check import check_bundle
from harness.record.external import external_bundles, import_row, misfits
from harness.results import main
from tests import recorded, small
from tests.config.test_external import row_with
from tests.recorded import rewrite

RATIOS, SEEDS = (0.2, 0.4), (0, 1)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A directory with the bundle of a sweep, and the files of a program that was run on its grid."""
    folder = tmp_path_factory.mktemp("external")
    sweep = small.sweep("clip", name="made", grid={"noise_ratio": list(RATIOS), "seed": list(SEEDS)})
    recorded.bundle(sweep, folder / "results" / "made")
    recorded.program(sweep, folder)
    return folder


@pytest.fixture
def here(swept, tmp_path, monkeypatch):
    """A copy of all of it, as the working directory."""
    folder = shutil.copytree(swept, tmp_path / "here")
    monkeypatch.chdir(folder)
    return folder


def row_file(**changes) -> Path:
    Path("row.yaml").write_text(yaml.safe_dump(row_with(**changes)))
    return Path("row.yaml")


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def refused(capsys, **changes) -> str:
    """What is said of a row that is not imported."""
    assert main(["import", str(row_file(**changes))]) == 2
    said = capsys.readouterr().err
    assert "nothing was written" in said
    return " ".join(said.split())


def test_a_row_beside_a_sweep_that_is_not_here_says_so(here, capsys):
    file = row_file(
        sweep="mad", grid={"dataset": "tests.small:load", "noise_ratio": list(RATIOS), "seed": list(SEEDS)}
    )
    assert main(["import", str(file)]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert (
        "there is no sweep 'mad' in results: the row stands in no table until there is; did you mean 'made'"
        in told
    )


def test_a_row_becomes_a_bundle_that_holds_what_it_was_given(here, capsys):
    assert main(["import", str(row_file(cost={"seconds": 12.5, "device": "one GPU"}))]) == 0
    assert "4 planned, 4 finished; 0.0 MB; commits 0a1b2c3" in capsys.readouterr().err
    (bundle,) = external_bundles(here / "results" / "made")
    row = bundle.sweep()
    data = small.load()
    for trial in row.planned:
        record = row.records[trial.id]
        assert record.done
        assert record.metrics["cost/seconds"] == 12.5
        assert record.tags["noise_digest"] == trial.noise_index(data).digest
        name = f"{trial.noise_ratio:g}_{trial.seed}"
        out = here / f"{name}.json"
        groups = {f"--{side}-groups": here / f"{side}.npy" for side in ("image", "caption")}
        np.save(groups["--image-groups"], data["test"].image_group)
        np.save(groups["--caption-groups"], data["test"].caption_group)
        options = [str(x) for pair in groups.items() for x in pair]
        assert evaluate([f"out/{name}_test.npy", *options, "--json", str(out)]) == 0
        told = json.loads(out.read_text())
        assert record.metrics["last/rsum"] == record.metrics["test/rsum"] == told["rsum"]
        assert record.metrics["test/t2i_r5"] == told["t2i_r5"]
    assert main(["check", "results/made", str(bundle.folder)]) == 0


def test_ranks_give_what_their_similarities_give(here):
    import_row(row_file())
    (bundle,) = external_bundles(Path("results/made"))
    of_similarities = {i: r.metrics for i, r in bundle.sweep().records.items()}
    data = small.load()
    for file in sorted(Path("out").glob("*.npy")):
        split = data[file.stem.rpartition("_")[2]]
        np.save("images.npy", split.image_group)
        np.save("captions.npy", split.caption_group)
        groups = ["--image-groups", "images.npy", "--caption-groups", "captions.npy"]
        assert evaluate([str(file), *groups, "--ranks", str(file.with_suffix(".npz"))]) == 0
        file.unlink()
    import_row(row_file(files__similarities=None, files__ranks="out/{ratio}_{seed}_{split}.npz"))
    (bundle,) = external_bundles(Path("results/made"))
    assert {i: r.metrics for i, r in bundle.sweep().records.items()} == of_similarities
    assert check_bundle(bundle.folder) == ([], [])


def test_a_selected_epoch_has_no_results_of_the_last(here):
    import_row(row_file(epoch="selected"))
    (bundle,) = external_bundles(Path("results/made"))
    for record in bundle.sweep().records.values():
        assert record.done
        assert not [k for k in record.metrics if k.startswith("last/")]
    assert check_bundle(Path("results/made")) == ([], [])


def test_everything_that_is_wrong_is_said_at_once(here, capsys):
    Path("out/0.2_0_dev.npy").unlink()
    scores = np.load("out/0.2_1_test.npy")
    np.save("out/0.2_1_test.npy", scores[:, :-2])
    broken = np.load("out/0.4_0_dev.npy")
    broken[3, 4] = np.nan
    np.save("out/0.4_0_dev.npy", broken)
    shutil.copy("noise/0.2_1.npy", "noise/0.4_1.npy")
    said = refused(capsys, data_fingerprint="0123456789abcdef")
    assert "similarities out/0.2_0_dev.npy is missing" in said
    assert "out/0.2_1_test.npy: similarities of shape" in said
    assert "2 captions are missing" in said
    assert "out/0.4_0_dev.npy: the similarity of image 3 and caption 4 is nan" in said
    assert "noise file noise/0.4_1.npy is not the index of noise 0.4 seed 1" in said
    assert "it is that of noise 0.2 seed 1" in said
    assert f"'0123456789abcdef': the data here are of version {small.load().fingerprint}" in said
    assert said.startswith("5 errors, nothing was written:")
    assert not Path("results/made/external").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("t2i_rank"), "t2i_rank: expected"),
        (lambda a: a.update(i2t_rank=a["i2t_rank"][:-1]), "i2t_rank: expected"),
        (lambda a: a.update(i2t_rank=a["i2t_rank"] + 0.5), "integers, found float64"),
        (lambda a: a.update(t2i_group=a["t2i_group"][::-1]), "t2i_group: these are not the groups"),
        (lambda a: a.update(i2t_rank=a["i2t_rank"].astype(int) + 10**6), "query 0 of i2t has rank"),
        (lambda a: a.update(i2t_matches=a["i2t_matches"] * 0), "0 tied matches, which no query has"),
    ],
)
def test_ranks_that_are_none_of_the_split_are_refused(here, capsys, change, message):
    data = small.load()
    for split in ("dev", "test"):
        np.save("images.npy", data[split].image_group)
        np.save("captions.npy", data[split].caption_group)
        groups = ["--image-groups", "images.npy", "--caption-groups", "captions.npy"]
        evaluate([f"out/0.2_0_{split}.npy", *groups, "--ranks", f"out/0.2_0_{split}.npz"])
    with np.load("out/0.2_0_test.npz") as kept:
        arrays = dict(kept)
    change(arrays)
    np.savez("out/0.2_0_test.npz", **arrays)
    one = {"grid__noise_ratio": [0.2], "grid__seed": [0]}
    ranks = {"files__similarities": None, "files__ranks": "out/{ratio}_{seed}_{split}.npz"}
    assert message in refused(capsys, **one, **ranks)


def test_a_text_file_is_a_noise_index_too(here):
    """In NPC's form equal captions cannot be told apart, and need not be."""
    data = small.load()
    for trial in Bundle("made").sweep().planned:
        file = Path(f"noise/{trial.noise_ratio:g}_{trial.seed}.txt")
        write_index(trial.noise_index(data).image, data["train"], file, "text")
    import_row(row_file(files__noise_index="noise/{ratio}_{seed}.txt"))
    assert check_bundle(Path("results/made")) == ([], [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid__seed": [0, 7]}, "the sweep has no trial of noise 0.2 seed 7"),
        (
            {"grid__noise_granularity": "image"},
            "it is of tests.small:load, image-level noise, and the sweep of",
        ),
        (
            {"grid__dataset": "tests.small:few"},
            "it is of tests.small:few, caption-level noise, and the sweep",
        ),
    ],
)
def test_a_row_of_another_grid_than_its_sweep_is_refused(here, capsys, changes, message):
    assert f"beside sweep 'made': {message}" in refused(capsys, **changes)


def test_data_that_are_not_here_are_said(here, capsys):
    assert "data set 'scan'" in refused(
        capsys, grid__dataset="scan", grid__dataset_options={"folder": "nowhere"}
    )


def test_an_import_replaces_the_earlier_one_and_a_failed_one_does_not(here, capsys, monkeypatch):
    folder, _ = import_row(row_file())
    first = content_of(folder)
    scores = {file: np.load(file) for file in Path("out").glob("*_test.npy")}
    for file, values in scores.items():
        np.save(file, -values)
    import_row(row_file())
    second = content_of(folder)
    assert second.keys() == first.keys()
    assert second["records.jsonl"] != first["records.jsonl"]

    Path("out/0.2_0_dev.npy").unlink()
    refused(capsys)
    assert content_of(folder) == second

    def full(*arguments, **options):
        raise OSError(28, "No space left on device", "arrays")

    for file, values in scores.items():
        np.save(file, values)
    shutil.copy("out/0.2_1_dev.npy", "out/0.2_0_dev.npy")
    monkeypatch.setattr(external, "save_arrays", full)
    assert main(["import", str(row_file())]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert content_of(folder) == second
    assert [p.name for p in folder.parent.iterdir()] == ["their_method"]


def test_an_interrupted_import_leaves_the_earlier_row(here, monkeypatch):
    """Ctrl-C between the two renames, when the earlier row has been moved away."""
    folder, _ = import_row(row_file())
    before = content_of(folder)
    rename = Path.rename

    def interrupted(path, target):
        if path.name == "new":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_row(row_file())
    assert content_of(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == ["their_method"]


# Checking ------------------------------------------------------------------------------------------


@pytest.fixture
def imported(here):
    return import_row(row_file())[0]


def test_an_external_row_is_not_run_again(imported, capfd):
    assert main(["check", str(imported), "--verify", "2"]) == 0
    told = " ".join(capfd.readouterr().err.split())
    assert "note: 4 cannot be run again here: another program has trained it" in told
    assert "0 run again" in told


def add(*names):
    def change(line):
        for name in names:
            line[name] += 1.0

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add("last/rsum"), "last/rsum is"),
        (add("test/i2t_r1", "test/rsum"), "and its ranks give"),
        (add("dev/best_rsum"), "dev/best_rsum is"),
        (lambda line: line["tags"].update(noise_digest="0" * 16), "its noise index is 0000000000000000"),
        (lambda line: line["tags"].update(data_fingerprint="other"), "it is of version other of the data"),
        (lambda line: line["tags"].update(protocol_version="1"), "it is of protocol version 1"),
        (lambda line: line["parameters"].update({"source.commit": "fffffff"}), "source.commit are not those"),
        (lambda line: line.update({"cost/networks_at_test": 2.0}), "is not the number of networks"),
    ],
)
def test_a_line_that_was_changed_is_found_with_the_sweep_and_alone(imported, change, message):
    trial = rewrite(imported, change)
    alone, _ = check_bundle(imported)
    assert [e for e in alone if trial in e and message in e], alone
    with_sweep, _ = check_bundle(imported.parents[1])
    assert {f"external/their_method: {e}" for e in alone} <= set(with_sweep)
    assert main(["check", str(imported.parents[1])]) == 1


def test_what_the_plan_says_of_the_program_is_part_of_its_ids(imported):
    plan = json.loads((imported / "plan.json").read_text())
    for trial in plan["trials"]:
        trial["uses_clean_data"] = True
    (imported / "plan.json").write_text(json.dumps(plan))
    errors, _ = check_bundle(imported)
    assert "the ids of plan.json are not those of its trials" in errors
    assert "plan.json says other things of the method than its trials" in errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uses_clean_data": True}, "row.yaml says other things of the row than plan.json"),
        ({"tuning": {"by": "search", "tries": 7}}, "row.yaml says other things of the row than plan.json"),
        ({"cost": {"seconds": 1.0}}, "cost/seconds is not that of row.yaml"),
        ({"networks": "two"}, "row.yaml: networks"),
    ],
)
def test_a_row_file_that_says_other_things_is_found(imported, change, message):
    content = yaml.safe_load((imported / "row.yaml").read_text())
    (imported / "row.yaml").write_text(yaml.safe_dump({**content, **change}))
    assert any(message in e for e in check_bundle(imported)[0]), check_bundle(imported)[0]


def test_a_folder_of_another_name_and_a_missing_file_are_found(imported):
    other = imported.rename(imported.with_name("another"))
    (other / "row.yaml").unlink()
    errors, _ = check_bundle(imported.parents[1])
    assert "external/another: its folder is 'another', and its trials are of 'their_method'" in errors
    assert "external/another: row.yaml is missing" in errors
    (other / "records.jsonl").unlink()
    assert any("is no bundle" in e for e in check_bundle(imported.parents[1])[0])


def test_a_sweep_that_has_changed_since_is_one_that_the_row_does_not_fit(imported):
    plan = imported.parents[1] / "plan.json"
    content = json.loads(plan.read_text())
    plan.write_text(json.dumps({**content, "protocol_version": 1}))
    row, sweep = Bundle("x", imported).sweep(), Bundle("made", imported.parents[1]).sweep()
    assert misfits(row, sweep) == ["it is of protocol version 2, and the sweep of 1"]
    plan.write_text(json.dumps({**content, "select": True}))
    assert check_bundle(imported)[0] == ["the sweep is a search, which has no test results"]
    plan.write_text(json.dumps(content))
    rewrite(imported.parents[1], lambda line: line["tags"].update(noise_digest="other"))
    (error,) = check_bundle(imported)[0]
    assert error.startswith("its noise index is ")
    assert error.endswith("and that of the sweep other")
    sweep = Bundle("made", imported.parents[1])
    text = (sweep.folder / "records.jsonl").read_text()
    (sweep.folder / "records.jsonl").write_text(text.replace(small.load().fingerprint, "another"))
    assert any(e.startswith("its data are ") for e in check_bundle(imported)[0])


def test_a_row_that_says_it_is_a_search_is_found(imported):
    """Of a search no ranks are kept, and none would be checked."""
    plan = imported / "plan.json"
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "select": True}))
    for ids in (True, False):
        assert "its plan.json is one of a search" in check_bundle(imported, ids=ids)[0]


def test_beside_a_sweep_that_crosses_its_seeds_no_row_can_stand(imported):
    """Its rows are means over noise indices, and an external row has one index for each seed."""
    row = Bundle("x", imported).sweep()
    grid = {"noise_ratio": list(RATIOS), "seed": list(SEEDS), "noise_seed": list(SEEDS)}
    crossed = small.sweep("clip", name="made", grid=grid)
    recorded.bundle(crossed, imported.parents[2] / "crossed")
    sweep = Bundle("made", imported.parents[2] / "crossed").sweep()
    (reason,) = misfits(row, sweep)
    assert reason == "the sweep crosses seeds with noise seeds, and a row has one index for each seed"
