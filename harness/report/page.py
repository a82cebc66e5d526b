"""The report as one self-contained HTML file, for screen, phone and print."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup, escape

from harness.report.gallery import Gallery
from harness.report.tables import TEXT_COLUMNS, Block, Table, slug


@dataclass(frozen=True)
class TrialLine:
    """A trial in the page's list, with the address of its run."""

    row: str
    where: str
    noise_ratio: float
    seed: int
    state: str
    rsum: str
    link: str


@dataclass
class Page:
    """Content of the page; `state` and `ends` are Markdown, `measure` is what is shown of each trial."""

    title: str
    description: str
    state: str
    blocks: list[Block]
    ends: list[str]
    galleries: list[Gallery] = field(default_factory=list)
    trials: list[TrialLine] = field(default_factory=list)
    measure: str = "rSum"
    views: Sequence[tuple[str, str]] = ()

    def write(self, folder: Path) -> None:
        """Write `report.html`, with the figures of the directory embedded."""
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        markdown = MarkdownIt("commonmark", {"html": False})
        text = environment.get_template("page.html").render(
            page=self,
            topics=_topics(self.blocks),
            places=list(dict.fromkeys(b.where for b in self.blocks if b.where)),
            is_table=lambda content: isinstance(content, Table),
            anchor=slug,
            is_text=TEXT_COLUMNS.__contains__,
            picture=lambda figure: _address(folder / f"{figure.file}.svg"),
            rendered=lambda text: Markup(markdown.render(text)),
            coded=_coded,
        )
        (folder / "report.html").write_text(text, encoding="utf-8")


def _topics(blocks: Sequence[Block]) -> dict[str, list[Block]]:
    """The tables and figures of each topic, in the order of the blocks; those without a topic come last."""
    topics: dict[str, list[Block]] = {}
    for block in blocks:
        topics.setdefault(block.topic, []).append(block)
    return topics


def trial_lines(frame: pd.DataFrame, link: Callable[[str], str]) -> list[TrialLine]:
    """Lines of all planned trials; those without a run have no link."""
    measure = "rsum" if "rsum" in frame else "dev_rsum"
    return [
        TrialLine(
            t.row,
            f"{t.dataset}, {t.noise}",
            t.noise_ratio,
            t.seed,
            "done" if t.done else t.failure or t.status.lower(),
            f"{getattr(t, measure):.1f}" if t.done else "–",
            link(t.run) if t.run else "",
        )
        for t in frame.itertuples()
    ]


def _coded(text: str) -> Markup:
    """A caption with text between backticks as code."""
    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(parts)
    )


def _address(file: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(file.read_bytes()).decode()
