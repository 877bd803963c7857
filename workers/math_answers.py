r"""Answers to competition mathematics in LaTeX: finding them in a text, writing them one way.

Computes the last box of a completion and the normal form in which two answers are compared, by
the rules of MATH (Hendrycks et al. 2021, arXiv 2103.03874) as verl's `math_reward` applies them:
rewriting of strings, no algebra. Odd rules are kept on purpose, for another rule is another reward:

- `\boxed 5` (with a space) anywhere wins over every `\boxed{...}`, and runs to the next `$`;
- only the last `\boxed` counts: where it is not closed (a truncated completion), nothing is found;
- `\boxed5` and `\boxed\frac12` are no boxes, and neither is `\fbox{...}`: the reference finds an
  `\fbox` and then always scores it 0, so here only `last_frame` reads it, for the secondary metric;
- `\sqrt 3` becomes `\sqrt{}3`, since roots get their braces before spaces go;
- `1,000` is not `1000`, `0.50` is not `0.5`, `2x` is not `x2`, `\text{yes}` is not `yes`.

Left out: symbolic or numeric equivalence (math_verify), sets, intervals and tuples in any order.
Every function takes any string, never raises, and costs time linear in its length.
"""

import re

_BRACE = re.compile(r"[{}]")
_WHOLE = r"(0|-?[1-9][0-9]*)"
_SLASH = re.compile(f"{_WHOLE}/{_WHOLE}")
_DOLLARS = re.compile(r"(?<!\\)\$+")
_NUMBER = re.compile(r"-?(?:[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+)")

# "\text{ " with its space opens a unit; "\text{yes}" is an answer.
_UNIT = "\\text{ "

# Order matters: an earlier line may make what a later one matches.
_BEFORE_UNITS = (
    ("\n", ""),
    ("\\!", ""),
    ("\\\\", "\\"),
    ("tfrac", "frac"),
    ("dfrac", "frac"),
    ("\\left", ""),
    ("\\right", ""),
    ("^{\\circ}", ""),
    ("^\\circ", ""),
    ("\\$", ""),
)
_AFTER_UNITS = (
    ("\\\\%", ""),
    ("\\%", ""),
    (" .", " 0."),
    ("{.", "{0."),
)


def last_box(text: str) -> str | None:
    r"""What the last `\boxed{...}` holds, or None; see the module for `\boxed ` with a space."""
    _, spaced, rest = text.rpartition("\\boxed ")
    if spaced:
        return rest.partition("$")[0]
    return _last_group(text, "\\boxed")


def last_frame(text: str) -> str | None:
    r"""What the last `\fbox{...}` holds, or None."""
    return _last_group(text, "\\fbox")


def last_expression(text: str) -> str | None:
    """The number or `$...$` that ends last in the text, or None: a guess, for texts without a box.

    Of an odd count of `$` the last two are taken as the pair; `$$` counts as one, `\\$` as none.
    """
    *before, tail = _DOLLARS.split(text)
    number = _last_number(tail)
    if number is not None or not before:
        return number
    return before[-1] if len(before) >= 2 else _last_number(before[0])


def normalise(answer: str) -> str | None:
    r"""The one way of writing an answer, or None where the rules do not say.

    None stands for the inputs on which the reference raises an exception, and then compares the
    answers as they are: two units, or a `\sqrt` or `\frac` with nothing after it.
    """
    value, *units = _rewrite(answer, _BEFORE_UNITS).split(_UNIT)
    if len(units) > 1:
        return None
    value = _rewrite(value, _AFTER_UNITS)
    if value.startswith("."):
        value = "0" + value
    rooted = _brace_roots(_without_name(value))
    braced = None if rooted is None else _brace_fractions(rooted.replace(" ", ""))
    return None if braced is None else _as_fraction(braced)


def _last_group(text: str, command: str) -> str | None:
    """The balanced braces that follow the last occurrence of a command, without the braces."""
    at = text.rfind(command)
    start = at + len(command)
    if at < 0 or not text.startswith("{", start):
        return None
    depth = 0
    for brace in _BRACE.finditer(text, start):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[start + 1 : brace.start()]
    return None


def _last_number(text: str) -> str | None:
    numbers: list[str] = _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def _rewrite(text: str, rules: tuple[tuple[str, str], ...]) -> str:
    for old, new in rules:
        text = text.replace(old, new)
    return text


def _without_name(text: str) -> str:
    """`k = 5` -> ` 5`: a name of at most two characters, its space among them, before the only `=`.

    `x+1=5` is left as it is, and so is `a=b=5`.
    """
    name, *values = text.split("=")
    return values[0] if len(values) == 1 and len(name) <= 2 else text


def _brace_roots(text: str) -> str | None:
    r"""`\sqrt3` -> `\sqrt{3}`; None where a `\sqrt` has nothing after it."""
    head, *tails = text.split("\\sqrt")
    if "" in tails:
        return None
    braced = (tail if tail[0] == "{" else f"{{{tail[0]}}}{tail[1:]}" for tail in tails)
    return "\\sqrt".join([head, *braced])


def _brace_fractions(text: str) -> str | None:
    r"""`\frac12` -> `\frac{1}{2}`, `\frac1{72}` -> `\frac{1}{72}`; None where nothing follows.

    A `\frac` with one character after it leaves the whole text as it was.
    """
    head, *tails = text.split("\\frac")
    braced = []
    for tail in tails:
        if not tail:
            return None
        if len(tail) == 1 and tail != "{":
            return text
        braced.append(_brace_arguments(tail))
    return "\\frac".join([head, *braced])


def _brace_arguments(tail: str) -> str:
    if tail[0] == "{":
        return tail
    numerator, denominator, rest = tail[0], tail[1], tail[2:]
    if denominator == "{":
        return f"{{{numerator}}}{{{rest}"
    return f"{{{numerator}}}{{{denominator}}}{rest}"


def _as_fraction(text: str) -> str:
    r"""`0.5` -> `\frac{1}{2}` (that one decimal alone), `a/b` of integers -> `\frac{a}{b}`.

    Integers are matched as text: Python's `int` takes other scripts, and refuses 5000 digits.
    """
    if text == "0.5":
        return "\\frac{1}{2}"
    slash = _SLASH.fullmatch(text)
    return f"\\frac{{{slash[1]}}}{{{slash[2]}}}" if slash else text
