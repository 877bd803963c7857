"""The steps of a worked solution: its equations, `a + b = c`, written in one way.

A step is an arithmetic expression, an equals sign and what stands after it; of `a = b = c` both
are steps. Brackets, currency, spaces and commas in thousands are dropped, `×`, `x` and `\\times`
are `*`, and the order of a sum's or a product's parts does not count. GSM8K's annotations
(`<<48/2=24>>`) are read as equations too. Leaves out whether an equation is true, equations with
letters or words in them, and LaTeX's fractions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

_ANNOTATION = re.compile(r"<<([^<>]*)>>")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_TIMES = re.compile(r"\\times|\\cdot|[×·]|(?<=\d)\s*x\s*(?=\d)")
_OVER = re.compile(r"\\div|÷")
_DROPPED = re.compile(r"\\\$|[$€£()\[\]{}]")
_TOKEN = re.compile(r"\d+(?:\.\d+)?|\.\d+|\S")
_OPERATORS = frozenset("+-*/")


def equations(text: str) -> frozenset[str]:
    """All equations of a text, in its annotations and beside them."""
    return _annotated(text) | _scanned(_ANNOTATION.sub("", text))


@lru_cache(maxsize=4096)  # the rollouts of a question ask for the same
def steps(solution: str) -> frozenset[str]:
    """The equations of a worked solution: its annotations where it has some."""
    return _annotated(solution) or _scanned(solution)


def _annotated(text: str) -> frozenset[str]:
    found = (_scanned(note) for note in _ANNOTATION.findall(text))
    return frozenset().union(*found)


def _scanned(text: str) -> frozenset[str]:
    text = _TIMES.sub("*", _THOUSANDS.sub("", text))
    tokens = [_number(t) for t in _TOKEN.findall(_DROPPED.sub(" ", _OVER.sub("/", text)))]
    return frozenset(_found(tokens))


def _number(token: str) -> str:
    """`15.0` -> `15`, `.5` -> `0.5`; anything else as it is."""
    if not _is_number(token) or "." not in token:
        return token
    whole, _, part = token.partition(".")
    part = part.rstrip("0")
    return f"{whole or '0'}.{part}" if part else whole or "0"


def _found(tokens: Sequence[str]) -> Iterator[str]:
    for at, token in enumerate(tokens):
        if token != "=":
            continue
        left, right = _before(tokens, at), _after(tokens, at)
        if len(left) > 1 and right:
            yield f"{_ordered(left)}={''.join(right)}"


def _before(tokens: Sequence[str], at: int) -> Sequence[str]:
    """The expression that ends before a place; empty where there is none."""
    start = at
    if at and _is_number(tokens[at - 1]):
        start = at - 1
        while start > 1 and tokens[start - 1] in _OPERATORS and _is_number(tokens[start - 2]):
            start -= 2
    return tokens[start:at]


def _after(tokens: Sequence[str], at: int) -> Sequence[str]:
    """The expression that begins after a place, with its sign; empty where there is none."""
    first = at + 2 if tokens[at + 1 : at + 2] == ["-"] else at + 1
    if first >= len(tokens) or not _is_number(tokens[first]):
        return ()
    end = first + 1
    while end + 1 < len(tokens) and tokens[end] in _OPERATORS and _is_number(tokens[end + 1]):
        end += 2
    return tokens[at + 1 : end]


def _ordered(expression: Sequence[str]) -> str:
    """The expression; the parts of a sum or of a product in one order."""
    signs = set(expression[1::2])
    if signs == {"+"} or signs == {"*"}:
        return signs.pop().join(sorted(expression[::2]))
    return "".join(expression)


def _is_number(token: str) -> bool:
    return token[0].isdigit() or token[0] == "." and len(token) > 1
