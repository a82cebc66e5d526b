"""What a report is put together from: tables (as Markdown and as LaTeX) and figures."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tabulate import tabulate

TEXT_COLUMNS = (
    "method",
    "noise",
    "try",
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
    """What stands in a table: plain text, whether it is the best of its column, and whether it is not
    significantly worse (underlined).
    """

    text: str
    best: bool = False
    near: bool = False


@dataclass
class Table:
    """Rows under columns, with a title and a caption that says what the numbers are."""

    title: str
    caption: str
    columns: list[str]
    rows: list[list[Cell]] = field(default_factory=list)

    def markdown(self) -> str:
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
    """A figure in the report's folder: `file` without its suffix (there is a .png and an .svg), and a text
    that says what it shows.
    """

    title: str
    file: str
    caption: str = ""

    def markdown(self) -> str:
        text = f"### {_markdown(self.title)}\n\n![{self.title}]({self.file}.png)\n"
        return f"{text}\n{_markdown(self.caption)}\n" if self.caption else text


@dataclass(frozen=True)
class Block:
    """A part of a report: its topic, the data and noise that it is about (empty: all), and what it shows.

    `picked`: the page shows it only where its topic is picked.
    """

    topic: str
    where: str
    content: Table | Figure
    picked: bool = False


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
