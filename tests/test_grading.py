r"""The graders: verl's rules case by case, no input that breaks them, and the real data sets.

The data sets are read from the folder that BANDITGRID_TEST_DATA names, or ../shared/data beside the
repository; without them their tests are skipped. Left out: rewards, and a comparison with verl
itself, which is not a dependency; the tables below state its behaviour instead.
"""

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from workers.grading import GRADERS, GSM8K_CHARS, MATH_CHARS, Grade
from workers.math_answers import normalise

DATA = Path(
    os.environ.get("BANDITGRID_TEST_DATA")
    or Path(__file__).resolve().parents[1].parent / "shared" / "data"
)

UNPARSED = Grade(correct=False, parsed=False, answer=None)
# Those whose gold is text as a data set has it; reasoning-gym's own are in test_reasoning.py.
TEXTUAL = {
    name: GRADERS[name] for name in ("gsm8k", "gsm8k-flexible", "math", "math-flexible")
}  # fmt: skip


def right(answer: str) -> Grade:
    return Grade(correct=True, parsed=True, answer=answer)


def wrong(answer: str) -> Grade:
    return Grade(correct=False, parsed=True, answer=answer)


def table(*rows):
    """Rows of (sentence, *values) as pytest parameters with the sentence for an id."""
    return [pytest.param(*values, id=sentence) for sentence, *values in rows]


def test_the_graders_are_there():
    assert set(GRADERS) == {*TEXTUAL, "reasoning-gym"}


GSM8K = table(
    ("a final answer is right", "So 72.\n#### 72", "72", right("72")),
    ("another number is wrong but parsed", "#### 71", "72", wrong("71")),
    ("a negative answer is right", "#### -5", "-5", right("-5")),
    ("the last of several counts", "#### 1\n#### 72", "72", right("72")),
    ("the first of several does not count", "#### 72\n#### 1", "72", wrong("1")),
    ("commas are taken out of the answer", "#### 1,000", "1000", right("1000")),
    ("commas are not taken out of the gold", "#### 1,000", "1,000", wrong("1000")),
    ("text may follow the number", "#### 72 clips", "72", right("72")),
    ("a full stop stays and is wrong", "#### 72.", "72", wrong("72.")),
    ("a dollar sign is not parsed", "#### $72", "72", UNPARSED),
    ("a missing space is not parsed", "####72", "72", UNPARSED),
    ("two spaces are not parsed", "####  72", "72", UNPARSED),
    ("a line break for the space is not parsed", "####\n72", "72", UNPARSED),
    ("five marks are parsed", "##### 72", "72", right("72")),
    ("three marks are not parsed", "### 72", "72", UNPARSED),
    ("decimals are compared as text", "#### 72.00", "72", wrong("72.00")),
    ("leading zeros are compared as text", "#### 072", "72", wrong("072")),
    ("a plus sign is not parsed", "#### +72", "72", UNPARSED),
    ("bold type is not parsed", "#### **72**", "72", UNPARSED),
    ("a number alone is not parsed", "The answer is 72", "72", UNPARSED),
    ("an unparsable mark hides no earlier one", "#### 72\n#### none", "72", right("72")),
    ("digits of another script are not parsed", "#### \u0667\u0662", "72", UNPARSED),
    ("a comma alone is parsed and empty", "#### ,", "72", wrong("")),
    ("nothing is not parsed", "", "72", UNPARSED),
)


@pytest.mark.parametrize(("completion", "gold", "grade"), GSM8K)
def test_gsm8k_follows_the_strict_rule_of_verl(completion, gold, grade):
    assert GRADERS["gsm8k"](completion, gold) == grade


GSM8K_FLEXIBLE = table(
    ("a number anywhere is right", "The answer is 72", "72", right("72")),
    ("the last number counts", "#### 72, of 80", "72", wrong("80")),
    ("a dollar sign does no harm", "#### $72", "72", right("72")),
    ("a lone full stop is passed over", "It is 72 dollars.", "72", right("72")),
    ("a full stop at the number stays", "It is 72.", "72", wrong("72.")),
    ("a comma at the number stays", "72, as was asked", "72", wrong("72,")),
    ("a comma in the number stays", "#### 1,000", "1000", wrong("1,000")),
    ("a lone comma counts as the answer", "72 clips, all told", "72", wrong(",")),
    ("a minus before the number belongs to it", "80 -8", "-8", right("-8")),
    ("words are not parsed", "seventy-two", "72", UNPARSED),
    ("full stops alone are not parsed", "Well. I see .", ".", UNPARSED),
    ("nothing is not parsed", "", "72", UNPARSED),
)


@pytest.mark.parametrize(("completion", "gold", "grade"), GSM8K_FLEXIBLE)
def test_gsm8k_flexible_takes_the_last_number(completion, gold, grade):
    assert GRADERS["gsm8k-flexible"](completion, gold) == grade


@pytest.mark.parametrize("name", ["gsm8k", "gsm8k-flexible"])
def test_gsm8k_looks_at_the_last_300_characters_only(name):
    answer = "#### 72"
    assert GRADERS[name](answer + " " * (GSM8K_CHARS - len(answer)), "72") == right("72")
    assert GRADERS[name]("5 " + answer + " " * GSM8K_CHARS, "72") == UNPARSED


def test_a_number_that_the_window_cuts_is_read_without_its_front():
    completion = "172" + " " * (GSM8K_CHARS - 2)
    assert GRADERS["gsm8k-flexible"](completion, "72") == right("72")


HALF = r"\frac{1}{2}"
BOXES = table(
    ("a box is right", r"so \boxed{72}.", "72", right("72")),
    ("another answer is wrong but parsed", r"\boxed{71}", "72", wrong("71")),
    ("the last box counts", r"\boxed{1} or \boxed{72}", "72", right("72")),
    ("braces in the box are balanced", r"\boxed{\frac{1}{2}} }", HALF, right(HALF)),
    ("a box in a box counts alone", r"\boxed{1 \boxed{72}}", "72", right("72")),
    ("an empty box is parsed", r"\boxed{}", "72", wrong("")),
    ("an open last box hides earlier ones", r"\boxed{72} \boxed{72", "72", UNPARSED),
    ("a box at the very end is not parsed", r"72 \boxed", "72", UNPARSED),
    ("an opening at the very end is not parsed", r"72 \boxed{", "72", UNPARSED),
    ("a box without braces or space is not parsed", r"\boxed72", "72", UNPARSED),
    ("a box around a bare command is not parsed", r"\boxed\frac{1}{2}", r"\frac{1}{2}", UNPARSED),
    ("a space before the brace keeps the braces", r"\boxed {72}", "72", wrong("{72}")),
    ("a box with a space runs to the dollar", r"$\boxed 72$ clips", "72", right("72")),
    ("a box with a space runs to the end", r"\boxed 72", "72", right("72")),
    ("the last box with a space counts", r"\boxed 1$, \boxed 72", "72", right("72")),
    ("a box with a space wins over later boxes", r"\boxed 1$, so \boxed{72}", "72", wrong("1")),
    ("a box with a space at the very end is empty", r"\boxed ", "72", wrong("")),
    ("a frame is found by the reference and always scored wrong", r"\fbox{72}", "72", UNPARSED),
    ("a number alone is not parsed", "72", "72", UNPARSED),
    ("a final mark is not parsed", "#### 72", "72", UNPARSED),
    ("nothing is not parsed", "", "72", UNPARSED),
)


@pytest.mark.parametrize(("completion", "gold", "grade"), BOXES)
def test_math_reads_the_last_box(completion, gold, grade):
    assert GRADERS["math"](completion, gold) == grade


NORMAL_FORMS = table(
    ("line breaks go", "1\n2", "12"),
    ("inverse spaces go", r"10,\!000", "10,000"),
    ("double backslashes become single", r"\\frac{1}{2}", HALF),
    ("tfrac is frac", r"\tfrac{1}{2}", HALF),
    ("dfrac is frac", r"\dfrac{1}{2}", HALF),
    ("left and right go", r"\left(1,2\right]", "(1,2]"),
    ("braced degrees go", r"45^{\circ}", "45"),
    ("bare degrees go", r"45^\circ", "45"),
    ("escaped dollars go", r"\$72", "72"),
    ("bare dollars stay", "$72$", "$72$"),
    ("a unit goes with all that follows", r"72\text{ cm} or so", "72"),
    ("a unit alone leaves nothing", r"\text{ cm}", ""),
    ("text without a space is no unit", r"\text{yes}", r"\text{yes}"),
    ("a unit without a space stays", r"72\text{cm}", r"72\text{cm}"),
    ("an escaped percent goes", r"50\%", "50"),
    ("a percent behind two backslashes goes with both", r"50\\\%", "50"),
    ("a bare percent stays", "50%", "50%"),
    ("a leading point gets a zero", ".25", "0.25"),
    ("a point after a space gets a zero", "1, .25", "1,0.25"),
    ("a point after a brace gets a zero", r"\sqrt{.25}", r"\sqrt{0.25}"),
    ("a short name goes", "k = 5", "5"),
    ("a long name stays", "xyz=5", "xyz=5"),
    ("two equal signs stay", "a=b=5", "a=b=5"),
    ("an empty name goes", "=5", "5"),
    ("a name without a value leaves nothing", "x=", ""),
    ("a root gets braces", r"2\sqrt3", r"2\sqrt{3}"),
    ("a root with braces stays", r"\sqrt{12}", r"\sqrt{12}"),
    ("a root takes one character", r"\sqrt12", r"\sqrt{1}2"),
    ("a root takes a space before spaces go", r"\sqrt 3", r"\sqrt{}3"),
    ("spaces go", "( 1, 2 )", "(1,2)"),
    ("other white space stays", "1\t2", "1\t2"),
    ("a fraction gets both braces", r"\frac12", HALF),
    ("a fraction gets its first braces", r"\frac1{72}", r"\frac{1}{72}"),
    ("a fraction does not get its second braces", r"\frac{72}1", r"\frac{72}1"),
    ("what follows a fraction stays", r"\frac12x", HALF + "x"),
    ("a spaced fraction is a fraction", r"\frac 1 2", HALF),
    ("half a fraction leaves all as it was", r"\frac12+\frac1", r"\frac12+\frac1"),
    ("an open fraction stays", r"\frac{", r"\frac{"),
    ("0.5 is a half", "0.5", HALF),
    (".5 is a half", ".5", HALF),
    ("0.50 is not", "0.50", "0.50"),
    ("0.25 is no fraction", "0.25", "0.25"),
    ("a slash of integers is a fraction", "1/2", HALF),
    ("a negative slash is a fraction", "-1/2", r"\frac{-1}{2}"),
    ("a slash with a leading zero stays", "01/2", "01/2"),
    ("a slash with minus zero stays", "-0/2", "-0/2"),
    ("a slash of names stays", "a/b", "a/b"),
    ("a slash of another script's digits stays", "\u0661/\u0662", "\u0661/\u0662"),
    ("a slash with underscores stays", "1_0/2", "1_0/2"),
    ("two slashes stay", "1/2/3", "1/2/3"),
    ("nothing is nothing", "", ""),
    ("a lone surrogate stays", "\ud800", "\ud800"),
    ("two units have no normal form", r"1\text{ m} 2\text{ cm}", None),
    ("a root at the end has no normal form", r"2\sqrt", None),
    ("two roots in a row have no normal form", r"\sqrt\sqrt2", None),
    ("a fraction at the end has no normal form", r"2\frac", None),
    ("two fractions in a row have no normal form", r"\frac\frac12", None),
)


@pytest.mark.parametrize(("answer", "normal"), NORMAL_FORMS)
def test_math_answers_have_one_normal_form(answer, normal):
    assert normalise(answer) == normal


EQUALS = table(
    ("both sides are normalised", r"\dfrac12", "1/2", True),
    ("the unit of the gold goes too", "100", r"100\text{ square units}", True),
    ("a comma in a number matters", "1,000", "1000", False),
    ("order matters", "1,2", "2,1", False),
    ("values are not computed", r"\frac{2}{4}", r"\frac{1}{2}", False),
    ("no normal form: compared as they are, equal", r"2\sqrt", r"2\sqrt", True),
    ("no normal form: compared as they are, unequal by a space", r"2 \sqrt", r"2\sqrt", False),
    ("a gold without normal form leaves the answer as it is", "0.5", r"\frac", False),
)


@pytest.mark.parametrize(("answer", "gold", "equal"), EQUALS)
def test_math_compares_normal_forms(answer, gold, equal):
    assert GRADERS["math"](f"\\boxed{{{answer}}}", gold).correct is equal


MATH_FLEXIBLE = table(
    ("a box counts as in math", r"\boxed{72} of 80", "72", right("72")),
    ("a wrong box is not looked past", r"\boxed{71}, no: 72", "72", wrong("71")),
    ("a frame counts", r"\fbox{72} of 80", "72", right("72")),
    ("the last number counts", "The answer is 72.", "72", right("72")),
    ("the last formula counts", r"so $x$ is $\frac12$.", HALF, right(HALF)),
    ("a displayed formula counts", r"so $$\frac12$$", HALF, right(HALF)),
    ("a number after the last formula counts", "with $x$ it is 72", "72", right("72")),
    ("an open box leaves the number", r"\boxed{72", "72", right("72")),
    ("escaped dollars make no formula", r"from \$5 to \$72", "72", right("72")),
    ("text between escaped dollars is no formula", r"72: \$a or \$b", "72", right("72")),
    ("a single dollar makes no formula", "I have 72 $ now", "72", right("72")),
    ("commas and decimals count", "in all 1,234.5, then", "1,234.5", right("1,234.5")),
    ("a sentence's comma does not", "it is 72, then", "72", right("72")),
    ("words are not parsed", "seventy-two", "72", UNPARSED),
    ("nothing is not parsed", "", "72", UNPARSED),
)


@pytest.mark.parametrize(("completion", "gold", "grade"), MATH_FLEXIBLE)
def test_math_flexible_guesses_where_there_is_no_box(completion, gold, grade):
    assert GRADERS["math-flexible"](completion, gold) == grade


FRAGMENTS = (
    "\\boxed{", "\\boxed ", "\\boxed", "\\fbox{", "{", "}", "}}", "\\frac", "\\dfrac", "\\sqrt",
    "\\text{ ", "\\left", "\\right", "\\", "\\\\", "\\!", "\\%", "^\\circ", "$", "\\$", "#### ",
    "####", "-", ",", ".", "/", "=", " ", "\n", "0.5", "72", "9,", "0", "x", "\0", "\ud800",
    "\u202e\u05d0", "\u0667", "\U0001f600",
)  # fmt: skip
ANY_TEXT = st.text() | st.text(st.characters()) | st.text(st.characters(categories=["Cs", "Cc"]))
PIECES = st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join)
TEXTS = ANY_TEXT | PIECES


@given(completion=TEXTS, gold=TEXTS)
@example(completion="\\boxed{\\frac", gold="\\frac")
@example(completion="\\boxed{\\frac}", gold="\\sqrt")
@example(completion="\\boxed{\\sqrt}", gold="\\sqrt")
@example(completion="\\boxed", gold="")
@example(completion="$", gold="")
@settings(deadline=None, max_examples=500)
def test_no_text_makes_a_grader_raise_and_grades_hold_together(completion, gold):
    for name, grader in TEXTUAL.items():
        grade = grader(completion, gold)
        assert isinstance(grade, Grade), name
        assert grade.parsed is (grade.answer is not None), name
        assert grade.parsed or not grade.correct, name
        assert grader(completion, gold) == grade, name


@given(before=PIECES, answer=TEXTS)
@settings(deadline=None, max_examples=300)
def test_a_box_around_the_gold_is_right_whatever_the_gold(before, answer):
    gold = answer.replace("{", "").replace("}", "").replace("\\boxed", "")
    completion = before.replace("\\boxed ", "") + "\\boxed{" + gold + "}"
    assume("\\boxed " not in completion)
    assert GRADERS["math"](completion, gold).correct


@given(before=TEXTS, number=st.integers(-(10**12), 10**12))
@settings(deadline=None, max_examples=300)
def test_a_number_after_the_marks_is_right_whatever_came_before(before, number):
    assert GRADERS["gsm8k"](f"{before}#### {number:,}", str(number)) == right(str(number))


@given(completion=TEXTS)
@settings(deadline=None, max_examples=300)
def test_where_the_strict_grader_finds_an_answer_the_flexible_one_does(completion):
    if GRADERS["math"](completion, "1").parsed:
        assert GRADERS["math-flexible"](completion, "1") == GRADERS["math"](completion, "1")


@given(flood=st.sampled_from(FRAGMENTS), end=TEXTS)
@settings(deadline=None, max_examples=100)
def test_what_lies_before_the_bound_changes_nothing(flood, end):
    seen = (flood * MATH_CHARS + end)[-MATH_CHARS:]
    for grader in TEXTUAL.values():
        assert grader("\\boxed 5$ #### 5 " + seen, "5") == grader(seen, "5")


ADVERSARIES = (
    "{", "}", "{}", "\\boxed{", "\\boxed ", "\\boxed", "\\fbox{", "-", "9", "9,", "9,999", "9.",
    ".", "#### ", "#### 9", "$", "\\$", "$1", "\\", "\\frac", "\\frac1", "\\sqrt", "\\sqrt1",
    "\\text{ ", "=", "/", " ", " .", "\ud800",
)  # fmt: skip


@pytest.mark.parametrize("flood", ADVERSARIES)
def test_a_megabyte_of_anything_is_graded_at_once(flood):
    """Guards against growth, not slowness: it takes milliseconds, a quadratic grader minutes."""
    text = flood * (1_000_000 // len(flood))
    inside = flood * ((MATH_CHARS - 20) // len(flood))
    completions = (text, f"{text}\\boxed{{1}}", f"\\boxed {inside}", f"\\boxed{{{inside}}}")
    started = time.perf_counter()
    for completion in completions:
        for grader in TEXTUAL.values():
            grader(completion, text)
    assert time.perf_counter() - started < 2.0


def rows_of(name: str) -> list[dict[str, str]]:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"no {path}: set BANDITGRID_TEST_DATA to the folder of gsm8k/ and math/")
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


# In so many rows N is written with a comma, which the flexible rule keeps and so grades wrong.
@pytest.mark.parametrize(("split", "rows", "commas"), [("train", 7473, 79), ("test", 1319, 14)])
def test_every_gsm8k_solution_is_right_under_the_strict_rule(split, rows, commas):
    solutions = [row["answer"] for row in rows_of(f"gsm8k/{split}.jsonl")]
    golds = [solution.rpartition("#### ")[2] for solution in solutions]
    pairs = list(zip(solutions, [gold.replace(",", "") for gold in golds], strict=True))

    def count_right(name: str) -> int:
        return sum(GRADERS[name](solution, gold).correct for solution, gold in pairs)

    assert len(pairs) == rows
    assert sum("," in gold for gold in golds) == commas
    assert count_right("gsm8k") == rows
    assert count_right("gsm8k-flexible") == rows - commas
    assert count_right("math") == 0


# Two rows of this copy of the training split have no answer.
@pytest.mark.parametrize(("split", "answers"), [("train", 7498), ("test", 5000)])
def test_every_math_answer_is_right_in_a_box(split, answers):
    golds = [row["answer"] for row in rows_of(f"math/{split}.jsonl") if row["answer"]]

    def count_right(name: str, form: str) -> int:
        return sum(GRADERS[name](form.replace("ANSWER", gold), gold).correct for gold in golds)

    assert len(golds) == answers
    assert count_right("math", r"Hence $\boxed{ANSWER}$.") == answers
    assert count_right("math-flexible", r"Hence $\boxed{ANSWER}$.") == answers
    assert count_right("math-flexible", "Hence $ANSWER$.") == answers
    assert count_right("math", "Hence $ANSWER$.") == 0
    assert all(normalise(gold) is not None for gold in golds)
