"""What the site holds besides `docs/`: reports, sweep files, API pages and the leaderboard."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Link, Navigation, Section

from harness.site.build import Inputs, build

ROOT = Path(__file__).parents[1]
_COPIED = (
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "examples/slurm/*.sbatch",
    "harness/data/*/NOTICE.md",
    "harness/report/published_results.csv",
    "reports/*/*.md",
    "reports/*/*.png",
    "sweeps/*.yaml",
)
_TABLE = "leaderboard/table"
_FOREIGN = re.compile(r"https://unpkg\.com/[\w@./-]+")  # Material's, for diagrams and for browsers of old


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the repository that pages link to, and a page of the API for each layer."""
    for pattern in _COPIED:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    layers = [("methods", "methods", "what is compared"), *((f"harness.{n}", n, t) for n, t in _layers())]
    index = [
        "# API",
        "",
        "Generated from the docstrings, layer by layer, from the top of the harness down.",
        "",
    ]
    for package, name, title in layers:
        files.append(File.generated(config, f"api/{name}.md", content=_api_page(package)))
        index.append(f"- [`{package}`](api/{name}.md): {title}")
    files.append(File.generated(config, "api.md", content="\n".join(index) + "\n"))
    return files


def _layers() -> list[tuple[str, str]]:
    """Names and contents of the layers, as the page on the architecture lists them."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("| layer |")[2].partition("\n\n")[0]
    return re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.M)


def _api_page(package: str) -> str:
    """A page that documents every public module of a package."""
    folder = ROOT / package.replace(".", "/")
    modules = [p.stem for p in sorted(folder.glob("*.py")) if not p.stem.startswith("_")]
    names = [package, *(f"{package}.{module}" for module in modules)]
    return f"# `{package}`\n\n" + "\n\n".join(f"::: {name}" for name in names) + "\n"


def on_nav(nav: Navigation, **_: Any) -> Navigation:
    """The table of the leaderboard, which is no page of Markdown, before the page about it."""
    section = next(item for item in nav.items if isinstance(item, Section) and item.title == "Leaderboard")
    section.children.insert(0, Link("All rows", f"{_TABLE}/index.html"))
    return nav


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that are right in the repository, made right on the site."""
    name = page.file.src_uri
    if name == "leaderboard.md":
        button = '<a class="md-button md-button--primary" href="table/index.html">Open the leaderboard</a>'
        return markdown.replace("\n\n", f"\n\n{button}\n\n", 1).replace("](../README.md", "](index.md")
    if name in ("index.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        return markdown.replace("](docs/", "](").replace("](README.md", "](index.md")
    return (
        markdown if "/" in name else markdown.replace("](../README.md", "](index.md").replace("](../", "](")
    )


def on_post_build(config: MkDocsConfig) -> None:
    """Add the leaderboard; take out the addresses that the theme's script would load from another host."""
    inputs = Inputs(ROOT / "results", ROOT / "reports", documentation="../..")
    _, left_out = build(inputs, Path(config.site_dir) / _TABLE)
    for found in left_out:
        logging.getLogger("mkdocs.hooks.leaderboard").warning("%s: %s", found.folder, "; ".join(found.errors))
    for script in Path(config.site_dir).glob("assets/javascripts/*.js"):
        script.write_text(_FOREIGN.sub("", script.read_text(encoding="utf-8")), encoding="utf-8")
