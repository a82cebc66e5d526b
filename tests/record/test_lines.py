"""The lines of a bundle: appended, read while they grow, compressed, and whole after a process was killed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from harness.record.lines import Lines, records_text
from harness.record.types import StoreError


def line(trial, **values):
    return {"trial": trial, "curves": {"dev/rsum": [[0, 1 / 3]]}, **values}


def text_of(*lines):
    return "".join(json.dumps(x) + "\n" for x in lines).encode()


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_compressed_lines_are_the_same_lines_and_go_on(tmp_path):
    lines = Lines(tmp_path)
    lines.append([line("a"), line("b")])
    lines.append([line("a", again=True)])
    reader = Lines(tmp_path)
    assert reader.read() == {"a": line("a", again=True), "b": line("b")}
    lines.tidy(plain_bytes=0)
    assert names(tmp_path) == {"records.jsonl.gz"}
    assert records_text(tmp_path) == text_of(line("a", again=True), line("b"))
    assert reader.read() == Lines(tmp_path).read() == {"a": line("a", again=True), "b": line("b")}
    first = (tmp_path / "records.jsonl.gz").read_bytes()
    Lines(tmp_path).append([])
    assert names(tmp_path) == {"records.jsonl.gz"}  # nothing to add, nothing changed
    Lines(tmp_path).append([line("c")])
    assert names(tmp_path) == {"records.jsonl"}
    assert list(reader.read()) == ["a", "b", "c"]
    Lines(tmp_path).tidy()
    assert records_text(tmp_path) == text_of(line("a", again=True), line("b"), line("c"))
    (tmp_path / "records.jsonl").write_bytes(text_of(line("a", again=True), line("b")))
    Lines(tmp_path).tidy(plain_bytes=0)
    assert (tmp_path / "records.jsonl.gz").read_bytes() == first  # no time and no name in it


def test_few_lines_stay_readable_and_many_are_compressed(tmp_path):
    lines = Lines(tmp_path)
    lines.append([line("a", text="a" * 400_000)])
    lines.tidy()
    assert names(tmp_path) == {"records.jsonl"}
    lines.append([line("b", text="b" * 100_000)])
    lines.tidy()
    assert names(tmp_path) == {"records.jsonl.gz"}
    assert list(Lines(tmp_path).read()) == ["a", "b"]


def test_what_a_process_appends_itself_is_not_read_again(tmp_path, monkeypatch):
    """Each trial that ends would read all lines before it."""
    lines, other = Lines(tmp_path), Lines(tmp_path)
    lines.append([line("a")])
    lines.read()
    monkeypatch.setattr("harness.record.lines._text", lambda stream: pytest.fail("read again"))
    lines.append([line("b"), line("a", again=(1, 2))])
    assert lines.read() == {"a": line("a", again=[1, 2]), "b": line("b")}
    monkeypatch.undo()
    other.append([line("c")])  # by another process, which it must see
    lines.append([line("d")])
    assert lines.read() == Lines(tmp_path).read()
    assert list(lines.read()) == ["a", "b", "c", "d"]


def test_of_two_files_the_plain_one_counts(tmp_path):
    """A process was killed after the one was written and before the other was removed."""
    Lines(tmp_path).append([line("a")])
    Lines(tmp_path).tidy(plain_bytes=0)
    (tmp_path / "records.jsonl").write_bytes(text_of(line("a"), line("b")))
    assert list(Lines(tmp_path).read()) == ["a", "b"]
    Lines(tmp_path).append([line("c")])
    Lines(tmp_path).tidy(plain_bytes=0)
    assert names(tmp_path) == {"records.jsonl.gz"}
    assert list(Lines(tmp_path).read()) == ["a", "b", "c"]


def test_a_line_that_a_killed_process_has_begun_is_left_out(tmp_path):
    file = tmp_path / "records.jsonl"
    file.write_bytes(text_of(line("a"), line("b"))[:-20])
    lines = Lines(tmp_path)
    assert list(lines.read()) == ["a"]
    with open(file, "ab") as stream:  # it was not killed, only slow
        stream.write(text_of(line("a"), line("b"))[-20:])
    assert list(lines.read()) == ["a", "b"]
    file.write_bytes(text_of(line("a"), line("b"))[:-20])
    Lines(tmp_path).append([line("c")])
    assert list(Lines(tmp_path).read()) == ["a", "c"]


@pytest.mark.parametrize(
    "content", [b"", gzip.compress(b"{}\n" * 99, mtime=0)[:-9], b"no gzip"], ids=["empty", "cut", "other"]
)
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "records.jsonl.gz").write_bytes(content)
    for read in (Lines(tmp_path).read, lambda: records_text(tmp_path)):
        with pytest.raises(StoreError, match=r"records\.jsonl\.gz is damaged"):
            read()


@pytest.mark.parametrize("packed", [True, False])
def test_a_file_that_another_process_wrote_anew_is_read_from_its_beginning(tmp_path, packed):
    """Also where it has the number of the file that it took the place of, which file systems give again."""
    reader, writer = Lines(tmp_path), Lines(tmp_path)
    writer.append([line("a"), line("a"), line("b")])
    writer.tidy(plain_bytes=0 if packed else 10**6)
    assert list(reader.read()) == ["a", "b"]
    for new in ("c", "d", "e"):
        writer.append([line("a", by=new), line(new)])
        writer.tidy(plain_bytes=0 if packed else 10**6)
        assert reader.read() == Lines(tmp_path).read()
    reader.tidy(plain_bytes=0 if packed else 10**6)
    assert list(Lines(tmp_path).read()) == ["a", "b", "c", "d", "e"]
    assert Lines(tmp_path).read()["a"]["by"] == "e"
    fewer = text_of(line("b"))
    for file in tmp_path.iterdir():
        file.write_bytes(gzip.compress(fewer) if packed else fewer)
    assert list(reader.read()) == ["b"]


def test_without_a_file_there_are_no_lines(tmp_path):
    assert Lines(tmp_path).read() == {}
    Lines(tmp_path).tidy(plain_bytes=0)
    assert names(tmp_path) == set()
    with pytest.raises(FileNotFoundError, match=r"records\.jsonl'"):
        records_text(tmp_path)
