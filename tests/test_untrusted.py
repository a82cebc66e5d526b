"""Files of unknown origin: an error message or a right result, never a traceback, a hang, or a wrong number.

`HARNESS_FUZZ=5000 python -m pytest tests/test_untrusted.py` looks longer, and elsewhere each time.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.backbones import towers
from harness.backbones.towers import check_towers
from harness.config.plain_yaml import read_yaml
from harness.config.sweep_file import BadInput, load_sweep
from harness.config.trial import Trial
from harness.data import load_dataset
from harness.data.base import DataError, read_array
from harness.data_tools.cli import main as data_command
from harness.noise.files import read_index
from harness.sweep.preflight import check_sweep
from tests import layouts, small

ROOT = Path(__file__).parents[1]
LONG = int(os.environ.get("HARNESS_FUZZ", "0"))
quick = {
    "deadline": timedelta(seconds=10),
    "suppress_health_check": list(HealthCheck),
    "derandomize": not LONG,
    "database": None,
}

# Damage ---------------------------------------------------------------------------------------------

MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["cut", "drop", "insert", "flip", "double", "swap"]),
        st.floats(0, 1),
        st.floats(0, 1),
        st.binary(min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=4,
)
SPECIAL = [
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    "\u2028".encode(),
    b"\r",
    b"\x0b",
    b"\x1c",
    "\x85".encode(),
    b'"',
    b"\t",
    b"&a [*a]",
    b"..",
    b"/",
    b"\n\n",
    b"-1",
    b"1e400",
    b"true",
    b"~",
]


def damaged(content: bytes, mutations: list[tuple[str, float, float, bytes]]) -> bytes:
    """Bytes cut off, left out, put in, changed, and lines that stand twice or in another order."""
    for kind, where, length, extra in mutations:
        at = int(where * len(content))
        end = min(len(content), at + 1 + int(length * 20))
        if kind == "cut":
            content = content[:at]
        elif kind == "drop":
            content = content[:at] + content[end:]
        elif kind == "insert":
            content = (
                content[:at]
                + (SPECIAL[int(length * (len(SPECIAL) - 1))] if extra[0] % 2 else extra)
                + content[at:]
            )
        elif kind == "flip":
            content = content[:at] + bytes(b ^ extra[0] for b in content[at:end]) + content[end:]
        else:
            lines = content.split(b"\n")
            k = int(where * (len(lines) - 1))
            other = int(length * (len(lines) - 1))
            if kind == "double":
                lines.insert(k, lines[k])
            else:
                lines[k], lines[other] = lines[other], lines[k]
            content = b"\n".join(lines)
    return content


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([0, -1, 1, 10**30, 2**63, 1e308]),
        st.floats(),
        st.text(max_size=8),
        st.dates(),
        st.sampled_from(
            [
                "clip",
                "npc",
                "emoji",
                "os:system",
                "a:b",
                "..",
                "/etc/passwd",
                "\0",
                "1e-3",
                "x" * 300,
                "nan",
                "🙂",
                "tests.small:load",
            ]
        ),
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.one_of(
                st.text(max_size=5),
                st.integers(),
                st.sampled_from(["method", "seed", "model", "folder", "npc.tau"]),
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=5,
)


def changed(content: Any, path: list[float], value: Any, kind: str) -> Any:
    """The content with one value, somewhere down the path, replaced, left out, or put under another key."""
    if not path or not isinstance(content, (dict, list)) or not content:
        return value
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    key = keys[int(path[0] * (len(keys) - 1))]
    made = dict(content) if isinstance(content, dict) else list(content)
    if len(path) == 1 and kind == "drop":
        del made[key]
    elif len(path) == 1 and kind == "rename" and isinstance(made, dict):
        made[value if isinstance(value, (str, int)) else "other"] = made.pop(key)
    else:
        made[key] = changed(content[key], path[1:], value, kind)
    return made


# Sweep files ------------------------------------------------------------------------------------------


def loaded(text: bytes, folder: Path) -> None:
    """Load a sweep; where it is taken, its trials are what the file says."""
    file = folder / "fuzzed.yaml"
    file.write_bytes(text)
    try:
        sweep = load_sweep(file)
    except BadInput as error:
        assert error.errors and all(isinstance(e, str) and e for e in error.errors)  # noqa: PT017, PT018
        return
    # By the parser of the harness: PyYAML's own refuses a few files that libyaml reads.
    content = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    for trial in sweep.trials:
        assert Trial.model_validate(json.loads(trial.model_dump_json())).id == trial.id
        for key in ("lr", "epochs", "batch_size", "warmup_steps"):
            said = (content.get("fixed") or {}).get(key)
            if isinstance(said, (int, float)) and not any(
                key in place for place in (content["overrides"] if content.get("overrides") else {}).values()
            ):
                assert getattr(trial, key) == said
    if len(sweep.trials) < 200:
        errors, _ = check_sweep(sweep, elsewhere=True)
        assert all(isinstance(e, str) and e for e in errors)


@settings(max_examples=LONG or 150, **quick)
@given(name=st.sampled_from(["quickstart", "emoji", "regions"]), mutations=MUTATIONS)
def test_damaged_sweep_files(fuzz_folder, name, mutations):
    loaded(damaged((ROOT / "sweeps" / f"{name}.yaml").read_bytes(), mutations), fuzz_folder)


SMALL_SWEEP = small.content(
    "clip",
    "npc",
    grid={
        "seed": [0, 1],
        "npc.bank_threshold": [0.5, 0.9],
        "noise": ["shuffle", {"model": "partial", "words": 0.5}],
    },
    resources={"cpus": 1},
)


@settings(max_examples=LONG or 300, **quick)
@given(
    path=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    value=VALUES,
    kind=st.sampled_from(["replace", "replace", "drop", "rename"]),
)
def test_sweep_files_with_other_values(fuzz_folder, path, value, kind):
    text = yaml.dump(
        changed(SMALL_SWEEP, path, value, kind), Dumper=yaml.SafeDumper, allow_unicode=True
    ).encode("utf-8", "surrogatepass")
    loaded(text, fuzz_folder)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grid: &a [*a]", "it refers to itself"),
        ("[" * 100_000, "nested too deeply"),
        (
            "\n".join(
                [
                    "a0: &a0 [x, x, x, x, x, x, x, x, x, x]",
                    *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)),
                ]
            ),
            "stands for more than 100,000 values",
        ),
        ("x: " + "y" * 1_000_001, "larger than 1,000,000 bytes"),
        ("grid: {lr: [1]}\ngrid: {lr: [2]}", "the key 'grid' is a duplicate"),
        ("x: !!python/object/apply:os.system ['touch evil']", "could not determine a constructor"),
        ("x: " + "9" * 5000, "4300 digits"),
        ("x: 2020-13-45", "month must be in 1..12"),
        ("x: \x00", "control characters are not allowed"),
    ],
)
def test_hostile_yaml(tmp_path, text, expected):
    with pytest.raises((ValueError, yaml.YAMLError), match=expected):
        read_yaml(text)
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(BadInput, match="cannot be read"):
        load_sweep(tmp_path / "x.yaml")
    assert not Path("evil").exists()


def test_yaml_that_is_fine():
    assert read_yaml("base: &b {lr: 1}\nx: {<<: *b, epochs: 2}") == {
        "base": {"lr": 1},
        "x": {"lr": 1, "epochs": 2},
    }


def test_a_grid_without_end(tmp_path):
    content = small.content(
        "clip",
        grid={
            "seed": list(range(1000)),
            "lr": [1e-3 / (1 + i) for i in range(1000)],
            "weight_decay": [i / 1000 for i in range(1000)],
        },
    )
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(BadInput, match="1,000,000,000 trials, and a sweep has at most 100,000"):
        load_sweep(tmp_path / "x.yaml")


def test_true_is_no_number(tmp_path):
    for key in ("seed", "noise_ratio"):
        (tmp_path / "x.yaml").write_text(yaml.safe_dump(small.content("clip", grid={key: [True]})))
        with pytest.raises(BadInput, match=f"{key} = True: expected a value"):
            load_sweep(tmp_path / "x.yaml")


# Captions ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fuzz_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    small.write_scan(folder / "scan")
    return {
        "karpathy": (layouts.karpathy_flickr30k(folder / "karpathy"), ["dataset_flickr30k.json"], {}),
        "npc": (
            layouts.npc(folder / "npc"),
            [
                "annotations/scan_split/train_caps.txt",
                "annotations/scan_split/dev_ids.txt",
                "annotations/scan_split/image_name.txt",
            ],
            {},
        ),
        "table": (layouts.own_table(folder / "table"), ["captions.csv"], {"held_out": 4}),
        "scan": (folder / "scan", ["train_caps.txt", "test_groups.npy", "train_ims.npy"], {}),
    }


@settings(max_examples=LONG or 250, **quick)
@given(
    layout=st.sampled_from(["karpathy", "npc", "table", "scan"]),
    which=st.floats(0, 0.999),
    mutations=MUTATIONS,
)
def test_damaged_caption_files(roots, layout, which, mutations):
    root, files, options = roots[layout]
    file = root / files[int(which * len(files))]
    whole = file.read_bytes()
    content = damaged(whole, mutations)
    file.write_bytes(content)
    try:
        data = load_dataset(layout, folder=str(root), **options)
    except DataError as error:
        assert str(error)  # noqa: PT017
        return
    finally:
        file.write_bytes(whole)
    text = content.decode("utf-8", "replace")
    text = str(json.loads(content)) if file.suffix == ".json" else text
    written = " ".join(text.split()) if file.suffix in (".txt", ".csv", ".json") else None
    for name, split in data.splits.items():
        assert len(split.owner) == len(split.captions)
        assert split.owner.min() >= 0
        assert split.owner.max() < len(split.images)
        if written and "caps" in file.name and name in file.name:  # each line is a caption, in order
            lines = [
                " ".join(line.split()) for line in content.decode("utf-8-sig").removesuffix("\n").split("\n")
            ]
            assert [" ".join(c.split()) for c in split.captions] == lines


@pytest.mark.parametrize(
    "path", ["../secret.jpg", "/etc/passwd", "a/../../secret.jpg", "images/../../secret.jpg"]
)
@pytest.mark.parametrize("layout", ["karpathy", "table", "npc"])
def test_paths_cannot_leave_the_folder(tmp_path, layout, path):
    (tmp_path / "secret.jpg").write_bytes(layouts.entries()[0].picture)
    root = {"karpathy": layouts.karpathy_flickr30k, "table": layouts.own_table, "npc": layouts.npc}[layout](
        tmp_path / "data"
    )
    options = {"held_out": 4} if layout == "table" else {}
    if layout == "karpathy":
        content = json.loads((root / "dataset_flickr30k.json").read_text())
        content["images"][0]["filename"] = path
        (root / "dataset_flickr30k.json").write_text(json.dumps(content))
    elif layout == "table":
        lines = (root / "captions.csv").read_text().splitlines()
        (root / "captions.csv").write_text("\n".join([lines[0], f"{path},a caption", *lines[1:]]) + "\n")
    else:
        names = root / "annotations" / "scan_split" / "image_name.txt"
        names.write_text("\n".join([path, *names.read_text().splitlines()[1:]]) + "\n")
    with pytest.raises(DataError, match=r"leads? out of|outside|leaves"):
        load_dataset(layout, folder=str(root), **options)


def test_a_text_in_a_shard_that_unpacks_without_end(tmp_path):
    """A text of 50 MB, which a sparse member says to be for nothing: refused by its size and not read."""
    picture = layouts.entries()[0].picture
    with tarfile.open(tmp_path / "train-000000.tar", "w") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.size = len(picture)
        tar.addfile(info, io.BytesIO(picture))
        large = tarfile.TarInfo("a.txt")
        large.size = 50_000_000
        tar.addfile(large, io.BytesIO(bytes(50_000_000)))
    with pytest.raises(DataError, match=r"a\.txt: larger than"):
        load_dataset("webdataset", folder=str(tmp_path), held_out=1)


# Arrays and index files -------------------------------------------------------------------------------


def npy(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


@settings(max_examples=LONG or 300, **quick)
@given(
    mutations=MUTATIONS,
    form=st.sampled_from(["caption", "image"]),
    dtype=st.sampled_from(["int64", "int32", "uint64", "uint8", ">i4", "float32", "bool", "U3"]),
)
def test_damaged_index_files(fuzz_folder, mutations, form, dtype):
    train = small.load()["train"]
    count = len(train.captions if form == "caption" else train.images)
    draw = np.random.default_rng(len(mutations))
    index = draw.permutation(train.owner if form == "caption" else len(train.images)) % count
    file = fuzz_folder / "index.npy"
    content = (
        damaged(npy(index.astype(dtype)), mutations) if mutations[0][1] < 0.9 else npy(index.astype(dtype))
    )
    file.write_bytes(content)
    try:
        found = read_index(file, train)
    except DataError as error:
        assert str(file) in str(error)  # noqa: PT017
        return
    read = np.load(file)
    assert found.image.shape == (len(train.captions),)
    assert (found.image == (read if len(read) == len(train.captions) else read[train.owner])).all()
    assert ((found.image >= 0) & (found.image < len(train.images))).all()


@settings(max_examples=LONG or 150, **quick)
@given(mutations=MUTATIONS)
def test_damaged_index_texts(fuzz_folder, mutations):
    train = small.load()["train"]
    draw = np.random.default_rng(0)
    file = fuzz_folder / "0.4_noise_train_caps.txt"
    order = draw.permutation(len(train.captions))
    file.write_bytes(damaged("".join(f"{train.captions[k]}\n" for k in order).encode(), mutations))
    try:
        found = read_index(file, train)
    except DataError as error:
        assert str(file) in str(error)  # noqa: PT017
        return
    lines = [
        " ".join(line.split())
        for line in file.read_bytes().decode("utf-8-sig").removesuffix("\n").split("\n")
    ]
    own = [" ".join(c.split()) for c in train.captions]
    trained_with: dict[str, set[int]] = {}  # line k stands for the image that owns caption k
    for line, image in zip(lines, train.owner.tolist(), strict=True):
        trained_with.setdefault(line, set()).add(image)
    assert all(
        image in trained_with[caption] for caption, image in zip(own, found.image.tolist(), strict=True)
    )


def header(shape: str, dtype: str = "<i8") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        header("(99999999999999,)"),
        header("(2, " * 3),
        header("(-1,)"),
        header("(3,)", "|O") + b"\x80\x04]\x94.",
        npy(np.array({"a": 1}, object), allow_pickle=True),
        b"PK\x03\x04 no archive",
    ],
)
@pytest.mark.parametrize("mapped", [False, True])
def test_arrays_that_are_none(tmp_path, content, mapped):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"features .*x\.npy cannot be read as an array of numbers"):
        read_array(tmp_path / "x.npy", "features", mapped=mapped)


def test_an_archive_is_no_array(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.arange(3))
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    with pytest.raises(DataError, match="an archive of several"):
        read_array(tmp_path / "x.npy", "features", mapped=True)


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_a_pickled_array_is_converted_by_an_explicit_command(tmp_path, capfd):
    bank = {5: 17, 2: 3}
    np.save(tmp_path / "bank.npy", bank, allow_pickle=True)
    with pytest.raises(DataError, match=r"python -m harness\.data unpickle"):
        read_array(tmp_path / "bank.npy", "noise file")
    assert data_command(["unpickle", str(tmp_path / "bank.npy"), "--out", str(tmp_path / "bank.npz")]) == 0
    assert "warning:" in capfd.readouterr().err
    with np.load(tmp_path / "bank.npz", allow_pickle=False) as found:
        assert dict(zip(found["keys"].tolist(), found["values"].tolist(), strict=True)) == bank
    np.save(tmp_path / "evil.npy", Evil(tmp_path / "mark"), allow_pickle=True)
    assert data_command(["unpickle", str(tmp_path / "evil.npy"), "--out", str(tmp_path / "evil.npz")]) == 2
    assert "it asks for posix.system" in capfd.readouterr().err
    assert not (tmp_path / "mark").exists()
    assert not (tmp_path / "evil.npz").exists()


# Weights ----------------------------------------------------------------------------------------------


def test_weights_are_weights_alone(tmp_path):
    torch.save({"a": Evil(tmp_path / "mark")}, tmp_path / "evil.pt")
    (tmp_path / "torn.safetensors").write_bytes(b"\xff" * 20)
    (tmp_path / "torn.pt").write_bytes(b"PK\x03\x04")
    for name in ("evil.pt", "torn.safetensors", "torn.pt"):
        assert "cannot be read as weights alone" in check_towers(
            model=small.TINY_MODEL, pretrained=str(tmp_path / name)
        )
    assert not (tmp_path / "mark").exists()


def test_a_torchscript_archive_is_a_program(tmp_path, monkeypatch):
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "x.pt")
    assert "TorchScript archive, which is a program" in check_towers(
        model=small.TINY_MODEL, pretrained=str(tmp_path / "x.pt")
    )
    assert len(towers._openai_digests()) >= 9


@pytest.mark.parametrize(
    "make",
    [lambda path: path.symlink_to("/dev/zero"), os.mkfifo, Path.mkdir],
    ids=["device", "pipe", "folder"],
)
def test_pictures_are_files(tmp_path, make):
    """A device has no end, and a pipe waits for a writer."""
    root = layouts.own_table(tmp_path / "data")
    (root / "3.jpg").unlink()
    make(root / "3.jpg")
    assert data_command(["check", str(root), "--options", "{held_out: 4}"]) == 1
    with pytest.raises(DataError):
        list(load_dataset("table", folder=str(root), held_out=4)["train"].images)


def test_names_that_a_terminal_cannot_show(tmp_path):
    root = layouts.own_table(tmp_path / "data")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xe9.jpg")).write_bytes(layouts.entries()[0].picture)
    command = [sys.executable, "-m", "harness.data", "check", str(root), "--options", "{held_out: 4}"]
    found = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert found.returncode == 0, found.stderr
    assert "have no caption in any split: \\udcff\\udce9.jpg" in found.stdout
