"""Sheets of synthetic stores: what rows, notes and texts say; all formats say the same."""

import re
from dataclasses import replace

import pytest

from analysis.contrast_frame import contrast_frame
from analysis.html import tables_html
from analysis.intervals import NOTHING, Estimate
from analysis.latex import escaped, latex
from analysis.markdown import markdown_of
from analysis.sheet import Sheet, number, one_line, probability, unit_of
from analysis.sheets import ASSUMED, PIPELINE_CHECK, document
from tests.reported_store import CONTRAST, a_grid, filled


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return filled(tmp_path_factory.mktemp("filled")).table


def sheet_of(table, name):
    return next(sheet for sheet in document(table).sheets if sheet.name == name)


def entry(sheet, row, column):
    return sheet.rows[row][sheet.header.index(column)]


# ---- what is said


def test_the_sheets_of_a_grid(table):
    names = [sheet.name for sheet in document(table).sheets]
    assert names == ["arms", "contrasts", "behind", "best", "shares"]


def test_every_row_is_as_long_as_its_header(table):
    for sheet in document(table).sheets:
        assert {len(row) for row in sheet.rows} == {len(sheet.header)}


def test_a_counted_arm_shows_seeds_numbers_and_costs(table):
    arms = sheet_of(table, "arms")
    assert entry(arms, 0, "seeds") == "3/3"
    assert entry(arms, 0, "base test") == "0.250 [0.204, 0.302]"  # Wilson of 75 of 300
    assert entry(arms, 0, "final test").startswith("0.500 [")
    assert entry(arms, 0, "gain test").startswith("+0.250 [")
    assert entry(arms, 0, "sampled pass@1").startswith("0.400 [")
    assert entry(arms, 0, "tokens generated (thousand)") == "2.00 [2.00, 2.00]"


def test_a_diverged_seed_is_named_and_its_contrast_stands_at_zero_too(table):
    assert "diverged: s2" in entry(sheet_of(table, "arms"), 1, "notes")
    notes = "\n".join(sheet_of(table, "contrasts").notes)
    assert "arm b s2 diverged, counted at its last evaluation" in notes
    assert re.search(r"every diverged run counted as wrong throughout: [+-]\d", notes)


def test_a_contrast_shows_its_verdict_family_margin_and_standing(table):
    sheet = sheet_of(table, "contrasts")
    result = table.results[0]
    assert entry(sheet, 0, "b - a [95%]") == result.comparison.difference.format(sign=True)
    assert entry(sheet, 0, "Holm p (family)").endswith("(shape, 1)")
    assert entry(sheet, 0, "TOST p (margin)").endswith("(±0.05)")
    assert entry(sheet, 0, "verdict") == "inconclusive at lr 1e-06"
    assert entry(sheet, 0, "claim") == "superior: not shown"
    assert entry(sheet, 0, "standing") == "exploratory"
    notes = "\n".join(sheet.notes)
    assert "shape: a is (32,1,0) raw, b is (32,8,0) raw" in notes
    assert "Everything in which a and b differ: rollouts (1, 8)" in notes
    assert "Held equal: rounds, prompts, updates" in notes
    assert "never registered" in notes


def test_what_lies_behind_a_contrast(table):
    sheet, made = sheet_of(table, "behind"), table.results[0].comparison
    assert entry(sheet, 0, "by seed") == ", ".join(
        f"s{s} {x:+.3f}" for s, x in made.by_seed.items()
    )
    assert entry(sheet, 0, "a alone right") == f"{made.discordant.a_only:g}"
    assert entry(sheet, 0, "of answers") == "900"
    assert entry(sheet, 0, "tokens generated b/a").startswith("1.00 [")


def test_a_contrast_without_a_comparison_shows_dashes_and_why(tmp_path):
    table = filled(tmp_path, arms=("(32,1,0) raw",)).table
    sheet = sheet_of(table, "contrasts")
    assert entry(sheet, 0, "seeds") == "0/3"
    assert entry(sheet, 0, "b - a [95%]") == "—"
    assert entry(sheet, 0, "verdict") == "no verdict"
    assert any("no verdict: arm b: none of its 3 seeds" in note for note in sheet.notes)
    assert "behind" not in [sheet.name for sheet in document(table).sheets]


def test_an_empty_study_shows_waiting_arms_alone(tmp_path):
    table = filled(tmp_path, arms=()).table
    assert "3 of 3 seeds waiting" in entry(sheet_of(table, "arms"), 0, "notes")
    assert all(
        entry(sheet_of(table, "arms"), 0, f"{phase} test") == "—" for phase in ("final", "gain")
    )


def test_contrasts_of_several_pairs_are_pooled_and_corrected(tmp_path):
    table = filled(tmp_path, dataset=["gsm8k", "math"]).table
    made = table.results[0].comparison
    assert made.p < 0.9 and made.p_family == 1
    corrected = entry(sheet_of(table, "contrasts"), 0, "Holm p (family)")
    assert corrected == "1.000 (shape, 2)"
    sheet = sheet_of(table, "across")
    assert entry(sheet, 0, "pairs") == "2/2"
    assert entry(sheet, 0, "verdicts") == "2 inconclusive"


def test_a_limit_of_all_places_is_told_once(tmp_path):
    notes = sheet_of(filled(tmp_path, dataset=["gsm8k", "math"]).table, "contrasts").notes
    assert sum(note.startswith("everywhere: exploratory") for note in notes) == 1


def test_best_arms_and_shares_come_with_their_reading(table):
    best, shares = sheet_of(table, "best"), sheet_of(table, "shares")
    assert "In place of a bold maximum" in best.lead and "95%" in best.lead
    assert {entry(best, i, "may be best") for i in range(2)} <= {"yes", "no"}
    assert "seeds" in {entry(shares, i, "factor") for i in range(len(shares.rows))}
    assert table.choices[0].reading in shares.lead


def test_the_text_says_which_intervals_they_are(table):
    over, alone = (
        "\n".join(document(replace(table, over_questions=told)).text) for told in (True, False)
    )
    assert "clustered by seed and by question" in over and "Wilson's interval" in over
    assert "over the seeds alone" in alone and "clustered" not in alone and "Wilson" not in alone
    assert "mean over seeds with 95% t interval" in over and "with 95% t interval" in alone


def test_warnings_come_first(tmp_path):
    grid = a_grid(model=["tiny-qwen2"], dataset=["tiny-sums"], assumed=True)
    assert document(filled(tmp_path, grid, arms=()).table).warnings == (PIPELINE_CHECK, ASSUMED)


# ---- small parts


@pytest.mark.parametrize(
    "p, text", [(0.0342, "0.034"), (0.0004, "<0.001"), (0.0, "<0.001"), (float("nan"), "—")]
)
def test_a_probability_is_never_zero(p, text):
    assert probability(p) == text


def test_missing_numbers_are_dashes():
    assert number(float("nan")) == "—" and number(1.23456, 2) == "1.23"


@pytest.mark.parametrize(
    "tokens, text",
    [(950.0, "950 (n=1)"), (6400.0, "6.40 (n=1)"), (512_000.0, "512 (n=1)"), (2.5e6, "2.50 (n=1)")],
)
def test_counts_are_told_in_a_unit_that_fits(tokens, text):
    nan = float("nan")
    estimate = Estimate(tokens, nan, nan, nan, 0.0, 1)
    assert unit_of([estimate, NOTHING]).told(estimate) == text


def test_a_long_reason_is_cut_and_says_so():
    assert one_line("a  b\nc") == "a b c"
    assert one_line("x" * 50, 10) == "x" * 9 + "…"


def test_columns_that_say_nothing_are_left_out():
    sheet = Sheet("x", "", ("a", "b", "c"), (("1", "", "3"), ("4", "", "")))
    assert sheet.without_empty().header == ("a", "c")


# ---- every format says the same


def test_all_formats_show_the_same_entries(table):
    shown = document(table)
    texts = markdown_of(shown), latex(shown), tables_html([shown], "t")
    entries = [x for sheet in shown.sheets for row in sheet.rows for x in row if x]
    assert len(entries) > 60
    plain = re.sub(r"<[^>]+>", "", texts[2]).replace("&lt;", "<").replace("&#39;", "'")
    for x in entries:
        assert x in texts[0] and escaped(x) in texts[1] and x in plain, x


def test_the_contrasts_as_numbers(table):
    rows = contrast_frame(table)
    made = table.results[0].comparison
    assert rows.difference_value[0] == made.difference.value
    assert rows.p_family[0] == made.p_family and rows.verdict[0] == "inconclusive"
    assert (rows.contrast[0], rows.margin[0]) == (CONTRAST["name"], CONTRAST["margin"])
    assert rows.at_zero_value[0] == table.results[0].at_zero.difference.value


def test_a_missing_contrast_is_missing_in_numbers(tmp_path):
    rows = contrast_frame(filled(tmp_path, arms=("(32,1,0) raw",)).table)
    assert rows.difference_value.isna().all() and rows.p.isna().all()
    assert rows.verdict[0] == "none" and "none of its 3 seeds" in rows.why_no_verdict[0]


def test_reading_anew_shows_the_same(tmp_path):
    small = filled(tmp_path)
    assert document(small.table) == document(small.table)


def test_without_answers_no_contrast_is_explained_place_by_place(table):
    alone = sheet_of(replace(table, over_questions=False), "contrasts")
    assert "Contrasts need answers to single questions" in alone.lead
    assert len(alone.notes) == 1 and alone.notes[0].startswith("shape: a is (32,1,0) raw")
