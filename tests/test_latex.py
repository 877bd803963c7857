"""LaTeX: text that cannot harm, tables that fit the page, and a document that compiles."""

import shutil
import subprocess

import pytest

from analysis.latex import PAGE, WIDEST, escaped, latex, parts, standalone
from analysis.report import write_tables
from analysis.sheet import Document, Sheet
from tests.reported_store import a_grid, filled

needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX installed")
NASTY = '50% & $x_1^2$ #3 {a} \\b ~ <0.001 > | "q" × ± − → ≤ ² é ñ Č 中 [1] …'


def wide(columns, entry="+0.315 [+0.274, +0.357]"):
    header = ("pair", "arm", *(f"c{i}" for i in range(columns)))
    return Sheet("arms", "Arms", header, (("p", "a", *[entry] * columns),) * 3)


def shown_by(*sheets):
    return Document("4.2 x", NASTY, (NASTY,), (NASTY,), sheets)


def compiled(folder, text):
    """The log of a run of pdflatex, which must succeed."""
    (folder / "all.tex").write_text(text, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    ran = subprocess.run(command, cwd=folder, capture_output=True, timeout=120)
    log = ran.stdout.decode("latin-1")
    assert ran.returncode == 0, log[-2000:]
    assert (folder / "all.pdf").stat().st_size > 1000
    return log


@pytest.mark.parametrize(
    "text, made",
    [
        ("50% of a_b & #1", r"50\% of a\_b \& \#1"),
        ("{x} \\ ~ ^ $", r"\{x\} \textbackslash{} \textasciitilde{} \textasciicircum{} \$"),
        ("±0.02 × 3 → <1", r"$\pm$0.02 $\times$ 3 $\rightarrow$ $<$1"),
        ("é Č ç", "\\'{e} \\v {C} \\c {c}"),
        ("中", "(U+4E2D)"),
        ("[1] a\n b", "{}[1] a b"),
        ("a [1]", "a [1]"),
    ],
)
def test_letters_of_meaning_are_escaped(text, made):
    assert escaped(text) == made


def test_a_table_has_booktabs_rules_and_all_its_rows():
    text = latex(shown_by(wide(2)))
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert rule in text
    assert text.count(r"p & a & +0.315 [+0.274, +0.357] & +0.315 [+0.274, +0.357] \\") == 3
    assert r"\usepackage{array,booktabs,longtable}" in text and r"\documentclass" not in text


def test_a_wide_table_goes_on_below_with_its_keys():
    sheet = wide(20)
    made = parts(sheet)
    assert len(made) > 1
    assert all(part.header[:2] == ("pair", "arm") for part in made)
    assert [name for part in made for name in part.header[2:]] == list(sheet.header[2:])
    for part in made:
        assert sum(min(len(x), WIDEST) for x in part.rows[0]) <= PAGE


def test_a_column_wider_than_the_page_is_not_lost():
    made = parts(wide(3, "x" * 500))
    assert sum(len(part.header) - 2 for part in made) == 3


def test_a_long_entry_wraps():
    assert r"p{" in latex(shown_by(wide(1, "x " * 60))) and r"p{" not in latex(shown_by(wide(1)))


@needs_latex
def test_nasty_text_compiles(tmp_path):
    sheet = Sheet("x", NASTY, ("a", "b", NASTY), (("p", "q", NASTY), ("[p", "q", NASTY * 9)),
                  lead=NASTY, notes=(NASTY, "[a] b"))  # fmt: skip
    (tmp_path / "part.tex").write_text(latex(shown_by(sheet, wide(25))), encoding="utf-8")
    log = compiled(tmp_path, standalone(["part.tex", "part.tex"]))
    assert "Overfull \\hbox" not in log or all(
        float(line.split("(")[1].split("pt")[0]) < 40
        for line in log.splitlines() if line.startswith("Overfull \\hbox")
    )  # fmt: skip


@needs_latex
def test_the_tables_of_a_study_compile(tmp_path):
    small = filled(tmp_path)
    out = tmp_path / "out"
    write_tables([small.table, filled(tmp_path, a_grid(name="other"), arms=()).table], out)
    log = compiled(out, (out / "tables.tex").read_text(encoding="utf-8"))
    assert "Overfull" not in log


def test_no_latex_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    paths = write_tables([filled(tmp_path).table], tmp_path / "out", ("tex",))
    assert [path.name for path in paths] == ["small.tex", "tables.tex"]
