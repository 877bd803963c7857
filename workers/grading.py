r"""GRADERS: (completion, gold) -> Grade(correct, parsed, answer).

The four rules that say whether a completion is right. `gsm8k` and `math` are the rewards that verl
gives (`reward_score/gsm8k.py`, method `strict`; `reward_score/math_reward.py`), because the paper
trained on them; `gsm8k-flexible` and `math-flexible` are secondary metrics, to tell learning the
answer's form from learning the answer. verl's rules are kept where they are hard:

| completion ends in | gold | `gsm8k` | `gsm8k-flexible` |
|---|---|---|---|
| `#### 72` | 72 | right | right |
| `#### 1,000` | 1000 | right | wrong: the comma stays |
| `#### 72.` | 72 | wrong: the full stop stays | wrong: the full stop stays |
| `#### $72` | 72 | wrong, unparsed | right |
| `####72` | 72 | wrong, unparsed | right |
| `#### 72.00` | 72 | wrong: compared as text | wrong: compared as text |
| `#### 72` and 300 characters more | 72 | wrong, unparsed: out of sight | reads only those 300 |
| `72, as was asked.` | 72 | wrong, unparsed | wrong: the comma stays |

The gold is compared as it is given: whoever loads GSM8K takes the commas out of `#### 1,000`.
`math_answers` says what `math` reads and how it compares. `reasoning-gym` asks that package's own
scorers (`reasoning.py`), and is the one that gives partial credit.

Left out: rewards (`rewards.py` turns a Grade into a number), symbolic equivalence, and any
`except`: a fault never passes for a wrong answer. Only `reasoning-gym` can raise. A grader's
version, part of a cell's key, is kept in `grids`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from workers.math_answers import last_box, last_expression, last_frame, normalise
from workers.reasoning import scored

# verl's own window; it decides what is right, so it is part of the rule and not only a bound.
GSM8K_CHARS = 300

# verl reads the whole response. A bound keeps the cost of a degenerate completion constant; this
# one is several times what the paper's 1024 tokens hold, and a box stands at the end.
MATH_CHARS = 20_000

_FINAL_NUMBER = re.compile(r"#### (-?[0-9.,]+)")
# `-?[0-9.,]+` read backwards, for only the last is wanted and most texts have many.
_NUMBER_BACKWARDS = re.compile(r"[0-9.,]+-?")


@dataclass(frozen=True, slots=True)
class Grade:
    """The verdict on one completion."""

    correct: bool
    """The answer equals the gold under the grader's rule."""
    parsed: bool
    """An answer in the form that the grader demands was found; a wrong one counts."""
    answer: str | None
    """The answer as it was compared; None where none was found."""
    score: float | None = None
    """Partial credit in [0, 1]; None where the grader gives none."""


Grader = Callable[[str, str], Grade]

_UNPARSED = Grade(correct=False, parsed=False, answer=None)


def grade_gsm8k(completion: str, gold: str) -> Grade:
    """The last `#### N` of the last 300 characters; verl's strict rule."""
    numbers = _FINAL_NUMBER.findall(completion[-GSM8K_CHARS:])
    if not numbers:
        return _UNPARSED
    # verl also removes "$", which the pattern never lets in.
    answer = numbers[-1].replace(",", "")
    return Grade(correct=answer == gold, parsed=True, answer=answer)


def grade_gsm8k_flexible(completion: str, gold: str) -> Grade:
    """The last run of digits, points and commas of the last 300 characters; verl's flexible rule.

    A lone full stop is passed over, so `72 dollars.` is right; commas and other stops are kept, so
    `72.` and `1,000` are not. Where there are only full stops verl takes one for the answer; here
    nothing was found.
    """
    for found in _NUMBER_BACKWARDS.finditer(completion[-GSM8K_CHARS:][::-1]):
        if (answer := found[0][::-1]) != ".":
            return Grade(correct=answer == gold, parsed=True, answer=answer)
    return _UNPARSED


def grade_math(completion: str, gold: str) -> Grade:
    r"""The last `\boxed{...}`, in normal form; verl's `math_reward`."""
    return _grade_latex(last_box(completion[-MATH_CHARS:]), gold)


def grade_math_flexible(completion: str, gold: str) -> Grade:
    r"""As `math`; without a box the last `\fbox{...}`, else the last number or `$...$`."""
    text = completion[-MATH_CHARS:]
    for find in (last_box, last_frame, last_expression):
        answer = find(text)
        if answer is not None:
            return _grade_latex(answer, gold)
    return _UNPARSED


def grade_reasoning_gym(completion: str, gold: str) -> Grade:
    """The last `<answer>...</answer>` by the task's own scorer; right where its score is 1.

    Raises where the scorer does, or takes too long: such an answer stays unscored.
    """
    answer, score = scored(completion[-MATH_CHARS:], gold)
    return Grade(score >= 1, answer is not None, answer, score)


def _grade_latex(answer: str | None, gold: str) -> Grade:
    """Compares normal forms, or both texts as they are where either has no normal form."""
    if answer is None:
        return _UNPARSED
    gold = gold[-MATH_CHARS:]
    ours, theirs = normalise(answer), normalise(gold)
    if ours is None or theirs is None:
        ours, theirs = answer, gold
    return Grade(correct=ours == theirs, parsed=True, answer=ours)


GRADERS: dict[str, Grader] = {
    "gsm8k": grade_gsm8k,
    "gsm8k-flexible": grade_gsm8k_flexible,
    "math": grade_math,
    "math-flexible": grade_math_flexible,
    "reasoning-gym": grade_reasoning_gym,
}
