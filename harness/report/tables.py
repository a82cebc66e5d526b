"""The parts of a report: tables (as Markdown and LaTeX) and figures."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tabulate import tabulate

TEXT_COLUMNS = (
    "method",
    "family",
    "needs",
    "noise",
    "configuration",
    "protocol",
    "source",
    "remarks",
    "value",
    "with",
    "setting",
    "sweep",
)


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: plain text.
        best: whether it is the best of its column (bold).
        near: whether it is not significantly worse than the best (underlined).
    """

    text: str
    best: bool = False
    near: bool = False


@dataclass
class Table:
    """A table with a title and a caption that defines its numbers."""

    title: str
    caption: str
    columns: list[str]
    rows: list[list[Cell]] = field(default_factory=list)

    def markdown(self) -> str:
        """The table under a heading, with its caption."""
        body = [[_marked(c, _markdown(c.text), "**", "**", "<u>", "</u>") for c in row] for row in self.rows]
        align = ["left" if c in TEXT_COLUMNS else "right" for c in self.columns]
        grid = tabulate(
            body,
            headers=[_markdown(c) for c in self.columns],
            tablefmt="pipe",
            colalign=align,
            disable_numparse=True,
        )
        return f"### {_markdown(self.title)}\n\n{grid}\n\n{_markdown(self.caption)}\n"

    def latex(self, label: str) -> str:
        """A `table` with booktabs rules, no wider than the line; needs \\usepackage{booktabs,graphicx} and
        nothing else.
        """
        columns = "".join("l" if c in TEXT_COLUMNS else "r" for c in self.columns)
        lines = [
            r"\begin{table}[t]",
            r"\centering\small",
            rf"\caption{{{_latex(self.title)}. {_latex(self.caption)}}}",
            rf"\label{{tab:{label}}}",
            rf"\resizebox{{\ifdim\width>\linewidth\linewidth\else\width\fi}}{{!}}{{\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(_latex(c) for c in self.columns) + r" \\",
            r"\midrule",
        ]
        for i, row in enumerate(self.rows):
            if (
                i
                and row[0].text
                and len(self.columns) > 2
                and self.rows[i - 1][0].text != row[0].text
                and self.columns[0] == "noise"
            ):
                lines.append(r"\midrule")
            lines.append(
                " & ".join(_marked(c, _latex(c.text), r"\textbf{", "}", r"\underline{", "}") for c in row)
                + r" \\"
            )
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}", r"\end{table}", ""])


@dataclass(frozen=True)
class Figure:
    """A figure in the directory of the report: title, `file` without suffix (both .png and .svg exist) and
    caption.
    """

    title: str
    file: str
    caption: str = ""

    def markdown(self) -> str:
        """The image under a heading, with its caption."""
        text = f"### {_markdown(self.title)}\n\n![{self.title}]({self.file}.png)\n"
        return f"{text}\n{_markdown(self.caption)}\n" if self.caption else text


@dataclass(frozen=True)
class Block:
    """A table or figure of a report.

    Attributes:
        topic: the topic under which the page lists it.
        where: data set and noise (empty: all).
        content: the table or figure.
    """

    topic: str
    where: str
    content: Table | Figure


def slug(*texts: str) -> str:
    """Texts as one file name, short: `degradation-emoji-caption`."""
    return "-".join(re.findall(r"\w+", " ".join(texts).replace("-level noise", "")))


def _marked(cell: Cell, text: str, bold: str, end: str, under: str, under_end: str) -> str:
    return f"{bold}{text}{end}" if cell.best else f"{under}{text}{under_end}" if cell.near else text


def _markdown(text: str) -> str:
    return text.replace("|", "\\|").replace("_", "\\_")


_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "°": r"$^\circ$",
    "–": "--",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "<": r"$<$",
    ">": r"$>$",
    "×": r"$\times$",
    "§": r"\S",
    "*": r"$^*$",
    "|": r"$|$",
}


def _latex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in text.replace("`", ""))
