"""The container files install what the README installs. (No image is built here: that needs a daemon.)"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {name: (ROOT / name).read_text() for name in ("Dockerfile", "apptainer.def")}
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def installed(text: str) -> tuple[str, str]:
    """Constraints and requirement of the one `pip install` in a text, without `-e`."""
    (line,) = re.findall(r"pip install (.+?)(?: && |$)", text, re.M)
    words = [w for w in shlex.split(line) if w not in ("-q", "-e", "--no-compile", "--no-cache-dir")]
    assert words[0] == "-c"
    return words[1], words[2]


def copied(name: str) -> dict[str, str]:
    """What is copied into the image, and to where below the place of the installation."""
    text = FILES[name].replace("/opt/harness/", "")
    if name == "Dockerfile":
        lines = [shlex.split(line) for line in re.findall(r"^COPY (.+)$", text, re.M)]
        return {source: source if to == "./" else to for *sources, to in lines for source in sources}
    section = text.partition("%files\n")[2].partition("\n\n")[0]
    return dict(shlex.split(line) for line in section.splitlines())


@pytest.mark.parametrize("name", FILES)
def test_a_container_installs_what_the_readme_installs(name):
    (command,) = re.findall(
        r"^python3\.11 -m venv .* -m harness\.sweep .*$", (ROOT / "README.md").read_text(), re.M
    )
    assert installed(FILES[name]) == installed(command)


@pytest.mark.parametrize("name", FILES)
def test_all_that_is_installed_is_copied_to_its_place(name):
    files = copied(name)
    assert all(source == to and (ROOT / source).exists() for source, to in files.items())
    packages = {SETUPTOOLS["package-dir"].get(p, p.partition(".")[0]) for p in SETUPTOOLS["packages"]}
    assert packages | {"constraints.txt", "pyproject.toml", "README.md", "LICENSE"} <= set(files)


def test_both_containers_are_made_of_the_same():
    assert copied("Dockerfile") == copied("apptainer.def")
    images = {re.search(r"^(?:FROM|From:) (\S+)$", text, re.M)[1] for text in FILES.values()}
    assert images == {"python:3.11-slim"}
    packages = {re.search(r"--no-install-recommends (.+?)(?: \\)?$", t, re.M)[1] for t in FILES.values()}
    assert len(packages) == 1


def test_the_daemon_is_sent_what_is_copied_and_nothing_else():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == set(copied("Dockerfile"))
    assert "*" in lines


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_the_scripts_of_apptainer_are_shell():
    for section in ("%post", "%runscript"):
        script = FILES["apptainer.def"].partition(section)[2].partition("\n%")[0]
        assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
