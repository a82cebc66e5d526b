"""The documentation builds without a warning, and a built page loads nothing from another host."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REMOTE = r"(?:https?:)?//"
IDENTIFIERS = ("http://www.w3.org/",)  # names of formats
# Asked about the repository of a site, which ours does not name.
UNUSED = ("https://api.github.com/", "https://${")

pytest.importorskip("mkdocs")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder


def files(site, suffix):
    found = sorted(site.rglob(f"*{suffix}"))
    assert found
    return [(file, file.read_text(encoding="utf-8")) for file in found]


def test_pages_load_nothing_from_another_host(site):
    for page, text in files(site, ".html"):
        for tag in re.findall(r"<(?!a[\s>])[a-z]+\b[^>]*>", text):
            assert not re.search(rf"""\b(?:src|href|srcset|data|poster)=["']?{REMOTE}""", tag), (page, tag)


def test_styles_load_nothing_from_another_host(site):
    inline = [
        (page, s) for page, text in files(site, ".html") for s in re.findall(r"<style.*?</style>", text, re.S)
    ]
    for file, text in [*files(site, ".css"), *files(site, ".svg"), *inline]:
        assert not re.search(rf"""(?:url\(|@import)\s*["']?{REMOTE}""", text), file


def test_scripts_load_nothing_from_another_host(site):
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "repo_url" not in config
    pages = [
        (p, s) for p, text in files(site, ".html") for s in re.findall(r"<script.*?</script>", text, re.S)
    ]
    for file, text in [*files(site, ".js"), *pages]:
        addresses = re.findall(rf"""["'`]({REMOTE}[^"'`\s]+)""", text)
        assert [a for a in addresses if "." in a and not a.startswith(IDENTIFIERS + UNUSED)] == [], file


def test_formulas_have_their_script_and_fonts(site):
    page = (site / "methods" / "index.html").read_text(encoding="utf-8")
    assert 'class="arithmatex"' in page
    style = site / "assets" / "katex" / "katex.min.css"
    assert style.is_file()
    for font in re.findall(r"url\(([^)]+)\)", style.read_text()):
        assert (style.parent / font).is_file()


def test_every_public_module_has_its_place_in_the_api(site):
    modules = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for package in ("harness", "methods")
        for file in (ROOT / package).rglob("*.py")
        if not file.stem.startswith("_") and file.parent != ROOT / "harness"
    }
    text = "".join(page for _, page in files(site / "api", ".html"))
    assert {m for m in modules if f'id="{m}"' not in text} == set()
