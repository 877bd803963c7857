"""A document as LaTeX: longtables ruled by booktabs, on landscape A4 where they stand alone.

A sheet that is wider than the page goes on below itself, its key columns repeated, so that letters
keep their size. `standalone` needs a plain LaTeX with booktabs and longtable; nothing here runs it.
Leaves out what is shown (`sheets.py`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Final

import pandas as pd

from analysis.sheet import Document, Sheet, one_line

PACKAGES: Final = r"""\usepackage[utf8]{inputenc}
\usepackage{array,booktabs,longtable}"""
PAGE: Final = 215  # letters of \scriptsize that a line of the page holds
WIDEST: Final = 40  # letters of an entry that is not wrapped
GAP: Final = 2  # letters between two columns
LETTER: Final = 0.52  # em, of a letter that stands among others

ESCAPES: Final = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%",
    "#": r"\#", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": "$<$", ">": "$>$", "|": "$|$", '"': "''", "`": r"\`{}",
    "×": r"$\times$", "±": r"$\pm$", "−": "$-$", "→": r"$\rightarrow$", "≤": r"$\leq$",
    "≥": r"$\geq$", "·": r"$\cdot$", "—": "---", "–": "--", "…": r"\ldots{}", "’": "'", "²": "$^2$",
}  # fmt: skip
ACCENTS: Final = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u030a": "r ",
    "\u030c": "v ", "\u0327": "c ",
}  # fmt: skip


def latex(shown: Document) -> str:
    """A part of a document of yours, which must load `PACKAGES`; ends in a newline."""
    comment = "\n".join(f"% needs {line}" for line in PACKAGES.splitlines())
    warnings = [rf"\textbf{{{escaped(warning)}}}" for warning in shown.warnings]
    parts = [comment, rf"\section*{{{escaped(shown.heading)}}}", *warnings]
    parts += [escaped(paragraph) for paragraph in shown.text]
    return "\n\n".join([*parts, *(part for sheet in shown.sheets for part in _sheet(sheet))]) + "\n"


def standalone(files: Sequence[str]) -> str:
    """A whole document that takes in the given files, each on a page of its own."""
    inputs = "\n\\clearpage\n".join(rf"\input{{{name}}}" for name in files)
    return rf"""\documentclass[10pt]{{article}}
{PACKAGES}
\usepackage[a4paper,landscape,margin=15mm]{{geometry}}
\setlength{{\parindent}}{{0pt}}
\setlength{{\parskip}}{{4pt}}
\setlength{{\LTleft}}{{0pt}}
\begin{{document}}
{inputs}
\end{{document}}
"""


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is; a letter that it may lack is told by its number."""
    flat = one_line(text)
    # A bracket that comes first would be an option of the line's end or item before it.
    return ("{}" if flat.startswith("[") else "") + "".join(map(_letter, flat))


def _letter(letter: str) -> str:
    if letter in ESCAPES:
        return ESCAPES[letter]
    if letter.isascii():
        return letter
    parts = unicodedata.normalize("NFD", letter)
    if len(parts) == 2 and parts[0].isascii() and parts[1] in ACCENTS:
        return rf"\{ACCENTS[parts[1]]}{{{parts[0]}}}"
    return f"(U+{ord(letter):04X})"


def _sheet(sheet: Sheet) -> Iterator[str]:
    yield rf"\subsection*{{{escaped(sheet.title)}}}"
    if sheet.lead:
        yield escaped(sheet.lead)
    for part in parts(sheet):
        yield "\n".join(
            [r"{\scriptsize\setlength{\tabcolsep}{3pt}\setlength{\LTleft}{0pt}%", _table(part), "}"]
        )
    if sheet.notes:
        items = "\n".join(rf"\item[$\bullet$] {escaped(note)}" for note in sheet.notes)
        title = escaped(sheet.notes_title)
        yield "\n".join([
            rf"{{\scriptsize {title}:", r"\begin{itemize}\itemsep0pt\parskip0pt\parsep0pt", items,
            r"\end{itemize}}",
        ])  # fmt: skip


def parts(sheet: Sheet) -> list[Sheet]:
    """The sheet in parts that fit the page, each beginning with the key columns."""
    keys = list(range(sheet.keys))
    widths = [_width(sheet, i) + GAP for i in range(len(sheet.header))]
    taken = sum(widths[i] for i in keys)
    groups: list[list[int]] = [[]]
    room = PAGE - taken
    for i in range(sheet.keys, len(widths)):
        if groups[-1] and widths[i] > room:
            groups.append([])
            room = PAGE - taken
        groups[-1].append(i)
        room -= widths[i]
    return [sheet.of_columns([*keys, *group]) for group in groups]


def _width(sheet: Sheet, column: int) -> int:
    """In letters, of a column as it will be set."""
    entries = [row[column] for row in sheet.rows]
    return min(max(map(len, [sheet.header[column], *entries])), WIDEST)


def _table(sheet: Sheet) -> str:
    """Text alone: letters are escaped here, for pandas knows no more than ASCII's."""
    rows = [[escaped(entry) for entry in row] for row in sheet.rows]
    frame = pd.DataFrame(rows, columns=[escaped(name) for name in sheet.header])
    made: str = frame.style.hide(axis="index").to_latex(
        hrules=True,
        environment="longtable",
        column_format="".join(_column(sheet, i) for i in range(len(sheet.header))),
    )
    return made.strip()


def _column(sheet: Sheet, column: int) -> str:
    """A column that wraps where some entry is long."""
    if max((len(row[column]) for row in sheet.rows), default=0) <= WIDEST:
        return "l"
    return rf">{{\raggedright\arraybackslash}}p{{{WIDEST * LETTER:.1f}em}}"
