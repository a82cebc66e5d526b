"""The files of the site: pages, rows as data, bundles to load down, and the formulas' script and fonts."""

from __future__ import annotations

import csv
import json
import posixpath
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from harness import PROTOCOL_VERSION
from harness.record.bundle import bundle_files
from harness.report.published import FILE
from harness.site.bundles import Found, find_bundles, source_address
from harness.site.methods import Section, facts, page_names, rendered, sections
from harness.site.rows import LEVELS, Links, Origin, Row, all_rows
from methods import FAMILIES

ROOT = Path(__file__).parents[2]
_HERE = Path(__file__).parent
_OWNED = ("methods", "bundles", "reports", "katex")


class NoSite(ValueError):
    """The site cannot be written where it should; the text is for the user."""


@dataclass(frozen=True)
class Inputs:
    """What the site is made from.

    Attributes:
        results: directory of bundles; it may be empty or missing.
        reports: directory of reports, `SWEEP/report.html`.
        docs: directory of the documentation, whose sections the pages of methods show; it may be missing.
        documentation: where the built documentation is, seen from the site: `../..`; empty: nowhere.
    """

    results: Path
    reports: Path
    docs: Path = ROOT / "docs"
    documentation: str = ""


def build(inputs: Inputs, folder: Path) -> tuple[list[Row], list[Found]]:
    """Write the site. Returns its rows, and the bundles that were left out for their errors.

    Raises:
        NoSite: the folder holds something else.
        OSError: it cannot be written.
    """
    _prepare(folder)
    found = find_bundles(inputs.results)
    shown = [f for f in found if f.sweep is not None]
    links = {f.name: _copied(f, inputs, folder) for f in shown}
    rows = all_rows([(f.sweep, _origin(f, links[f.name])) for f in shown if f.sweep])
    pages = page_names([*facts(), *{row.method for row in rows}])
    _write_data(rows, pages, folder)
    _write_assets(inputs.docs, folder)
    _Pages(inputs, folder, rows, found, links, pages).write()
    return rows, [f for f in found if f.errors]


def _prepare(folder: Path) -> None:
    """An empty folder, or one with an earlier site, whose parts go."""
    if folder.exists() and not folder.is_dir():
        raise NoSite(f"{folder} is a file")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "rows.js").is_file():
        raise NoSite(f"{folder} holds something other than a site: name an empty folder, or a new one")
    folder.mkdir(parents=True, exist_ok=True)
    for name in _OWNED:
        shutil.rmtree(folder / name, ignore_errors=True)


def _origin(found: Found, links: Links) -> Origin:
    assert found.sweep is not None
    external = found.program is not None
    return Origin(found.sweep.name, links, external, found.repeated, found.unchecked)


def _copied(found: Found, inputs: Inputs, folder: Path) -> Links:
    """A bundle as one file to load down, and its report, copied into the site."""
    bundle = f"bundles/{found.name}.zip"
    (folder / "bundles").mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / bundle, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in bundle_files(found.folder):
            place = file.relative_to(found.folder)
            entry = zipfile.ZipInfo(f"{found.folder.name}/{place.as_posix()}")  # of no date: equal files
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, file.read_bytes())
    sweep = found.folder.parents[1].name if found.program else found.folder.name
    source = source_address(found.program.source.repository) if found.program else ""
    return Links(_report(sweep, inputs, folder), bundle, source=source)


def _report(sweep: str, inputs: Inputs, folder: Path) -> str:
    """The address of a sweep's report: a copy of the page, or the one in the documentation; empty: none."""
    page = inputs.reports / sweep / "report.html"
    if page.is_file():
        (folder / "reports").mkdir(exist_ok=True)
        shutil.copyfile(page, folder / "reports" / f"{sweep}.html")
        return f"reports/{sweep}.html"
    if inputs.documentation and (inputs.reports / sweep / "report.md").is_file():
        return f"{inputs.documentation}/reports/{sweep}/report/index.html"
    return ""


def _write_data(rows: Sequence[Row], pages: Mapping[str, str], folder: Path) -> None:
    """The rows as a script, which pages can load from a disk too, and as a table for other programs."""
    lines = [row.flat() for row in rows]
    fields = [*lines[0], "page"]
    table = [[*line.values(), pages[line["method"]]] for line in lines]
    text = json.dumps({"fields": fields, "rows": table}, separators=(",", ":"), ensure_ascii=True)
    (folder / "rows.js").write_text(f"window.ROWS = {text};\n", encoding="utf-8")
    with open(folder / "rows.csv", "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([fields[:-1], *(line[:-1] for line in table)])


def _write_assets(docs: Path, folder: Path) -> None:
    theme = (files("harness.report") / "theme.css").read_text(encoding="utf-8")
    own = (_HERE / "site.css").read_text(encoding="utf-8")
    (folder / "site.css").write_text(f"{theme}{own}", encoding="utf-8")
    shutil.copyfile(_HERE / "site.js", folder / "site.js")
    shutil.copyfile(FILE, folder / FILE.name)
    if (docs / "assets" / "katex").is_dir():
        shutil.copytree(docs / "assets" / "katex", folder / "katex")
        shutil.copyfile(docs / "assets" / "mathematics.js", folder / "katex" / "mathematics.js")


class _Pages:
    """The pages of a site: the leaderboard, and one for each method."""

    def __init__(
        self,
        inputs: Inputs,
        folder: Path,
        rows: Sequence[Row],
        found: Sequence[Found],
        links: Mapping[str, Links],
        pages: Mapping[str, str],
    ) -> None:
        self.inputs, self.folder, self.rows, self.pages = inputs, folder, rows, pages
        self.found = found
        self.sections = sections(inputs.docs)
        environment = Environment(
            loader=FileSystemLoader(_HERE),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.template = environment.get_template("page.html")
        self.shared = {
            "levels": LEVELS,
            "version": PROTOCOL_VERSION,
            "counts": Counter(row.level for row in rows),
            "bundles": [(f, links.get(f.name, Links())) for f in found],
            "families": self._families(),
        }

    def write(self) -> None:
        """Write `index.html` and `methods/NAME.html`."""
        self._write("index.html", method="", description=None)
        (self.folder / "methods").mkdir()
        for key, name in self.pages.items():
            self._write(f"methods/{name}.html", method=key, description=self._description(key))

    def _write(self, file: str, **content: Any) -> None:
        root = "../" * file.count("/")
        home = self.inputs.documentation
        text = self.template.render(
            root=root, documentation=f"{root}{home}/index.html" if home else "", **content, **self.shared
        )
        (self.folder / file).write_text(text, encoding="utf-8")

    def _families(self) -> dict[str, list[tuple[str, str, int]]]:
        """Registered methods by family, then the others: name, page and number of rows."""
        counts = Counter(row.method for row in self.rows)
        families: dict[str, list[tuple[str, str, int]]] = {
            name: [] for name in (*FAMILIES, "not implemented here")
        }
        for key, page in self.pages.items():
            known = facts().get(key)
            mine = any(r.method == key and r.level in ("repeated", "checked") for r in self.rows)
            family = known.family if known else "other" if mine else "not implemented here"
            families[family].append((key, page, counts[key]))
        return {family: members for family, members in families.items() if members}

    def _description(self, key: str) -> dict[str, Any]:
        """What a method's page says above its rows."""
        section = self.sections.get(key)
        parts = {"preamble": "", "text": "", "notation": ""}
        if section:
            parts = {p: rendered(getattr(section, p), lambda a: self._linked(a, section)) for p in parts}
        programs = [f for f in self.found if f.program and f.program.method == key]
        count = sum(row.method == key for row in self.rows)
        return {"facts": facts().get(key), "programs": programs, "rows": count, **parts}

    def _linked(self, address: str, section: Section) -> str:
        """The address, on the site, of a link in a section of the documentation."""
        target, _, anchor = address.partition("#")
        names = [name for name in re.split(r"[-/]", anchor) if name in self.sections]
        if names and (not target or target.endswith(".md")):
            return f"{self.pages[names[0]]}.html"
        if "://" in target:
            return address
        place = (
            posixpath.normpath(posixpath.join(posixpath.dirname(section.file), target))
            if target
            else section.file
        )
        if not self.inputs.documentation or place.startswith("..") or not place.endswith(".md"):
            return ""
        return f"../{self.inputs.documentation}/{place.removesuffix('.md')}/index.html#{anchor}".rstrip("#")
