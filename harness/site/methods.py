"""What the site says of a method: the facts that its class declares, and its section in `docs/methods`.

Facts are read from the source of the class, since importing it would load torch.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markupsafe import Markup, escape

from harness.report.published import plain_name
from methods import METHODS

_FACTS = ("paper", "family", "published", "uses_clean_data", "uses_ground_truth")
_FORMULA = re.compile(r"\\\(.+?\\\)|\\\[.+?\\\]", re.S)
_LINK = re.compile(r"\[([^]]+)\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Facts:
    """What the class of a registered method declares: the class attributes of `methods.base.Method`."""

    paper: str
    family: str
    published: tuple[str, ...]
    uses_clean_data: bool
    uses_ground_truth: bool


@lru_cache
def facts() -> dict[str, Facts]:
    """The facts of all registered methods, by name."""
    return {name: Facts(**_declared(*place.split(":"))) for name, place in METHODS.items()}


def _declared(module: str, name: str) -> dict[str, Any]:
    """The facts of a class, its own before those of the classes that it derives from."""
    tree = _source(module)
    origins = {
        alias.asname or alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("methods.")
        for alias in node.names
    }
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    found: dict[str, Any] = {}
    for base in reversed(classes[name].bases):
        if isinstance(base, ast.Name) and base.id in origins | classes.keys():
            found |= _declared(origins.get(base.id) or module, base.id)
    for line in classes[name].body:
        target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
        if isinstance(target, ast.Name) and target.id in _FACTS:
            found[target.id] = ast.literal_eval(line.value)  # type: ignore[attr-defined]
    return found


@lru_cache
def _source(module: str) -> ast.Module:
    spec = find_spec(module)
    assert spec is not None  # METHODS names modules of this package
    return ast.parse(Path(str(spec.origin)).read_bytes())


@lru_cache
def key_of_published(name: str) -> str:
    """The method that a published row is a row of: a registered one where a class says so, or its name.

    `RCL-VSRN` is `rcl` on another backbone, and `CRCL (author re-run)` is `crcl`.
    """
    plain = plain_name(name)
    for key, known in facts().items():
        if plain in known.published:
            return key
    before = plain.partition("-")[0].lower()
    return before if "-" in plain and before in METHODS and facts()[before].published else plain


def page_names(keys: Iterable[str]) -> dict[str, str]:
    """A file name, without suffix, for each method; distinct also where capitals do not count."""
    names: dict[str, str] = {}
    for key in sorted(set(keys), key=lambda k: (k not in METHODS, k)):
        plain = "-".join(re.findall(r"\w+", key.rpartition(":")[2])).lower() or "method"
        taken, number = set(names.values()), 2
        name = plain
        while name in taken:
            name, number = f"{plain}-{number}", number + 1
        names[key] = name
    return names


# Sections of the documentation -----------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """Markdown about a method: its section, what its family's page says first, and the notation."""

    file: str
    text: str
    preamble: str
    notation: str


def sections(docs: Path) -> dict[str, Section]:
    """The sections of `methods.md` and `methods/*.md` by method; empty where there is no documentation."""
    main = docs / "methods.md"
    if not main.is_file():
        return {}
    notation = main.read_text(encoding="utf-8").partition("**Notation.**")[2].partition("\n## ")[0].strip()
    found = {}
    for file in (main, *sorted((docs / "methods").glob("*.md"))):
        preamble, *parts = re.split(r"^## ", file.read_text(encoding="utf-8"), flags=re.M)
        about = "" if file == main else preamble.partition("\n")[2].strip()
        for part in parts:
            heading, _, text = part.partition("\n")
            for name in re.findall(r"`(\w+)`", heading):
                found[name] = Section(file.relative_to(docs).as_posix(), text.strip(), about, notation)
    return found


def rendered(text: str, link: Callable[[str], str]) -> Markup:
    r"""Markdown as HTML, with formulas as they stand, for KaTeX: `\( \)` or `\[ \]` in a `span.arithmatex`.

    Args:
        link: the address that a link of the text has on the site; empty: the text stays without one.
    """
    formulas: list[str] = []

    def kept(match: re.Match[str]) -> str:
        formulas.append(match[0])
        return f"\ue000{len(formulas) - 1}\ue001"  # characters of no text, and none of Markdown's

    def linked(match: re.Match[str]) -> str:
        address = link(match[2])
        return f"[{match[1]}]({address})" if address else match[1]

    plain = _LINK.sub(linked, _FORMULA.sub(kept, text))
    html = MarkdownIt("commonmark", {"html": False}).enable("table").render(plain)
    return Markup(
        re.sub(
            "\ue000(\\d+)\ue001",
            lambda m: f'<span class="arithmatex">{escape(formulas[int(m[1])])}</span>',
            html,
        )
    )
