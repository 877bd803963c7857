"""docs/troubleshooting.md: each heading below a part's is a message that the program has.

A heading's words must stand, in this order, in one text of the sources; `…` is what varies. So a
message that changes, or goes, takes its heading along. Leaves out whether the advice helps.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^### (.+)$", PAGE, re.M)
PACKAGES = ("grids", "workers", "orchestrator", "analysis")
VARIES = "…"


@cache
def texts() -> list[str]:
    """All texts of the sources but docstrings; `…` in place of what is put into them."""
    paths = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]
    return [text for path in paths for text in _texts(ast.parse(path.read_text(encoding="utf-8")))]


def _texts(tree: ast.AST) -> Iterator[str]:
    documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {
        id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
        for part in node.values
    }  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(map(_part, node.values))
        elif isinstance(node, ast.Constant) and id(node) not in documented | inside:
            if isinstance(node.value, str):
                yield re.sub(r"%[.\d]*[sdfg]", VARIES, node.value)


def _part(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else VARIES


def is_said(heading: str) -> bool:
    """Some text of the program holds the heading's words in their order."""
    pattern = ".*?".join(re.escape(part.strip()) for part in heading.split(VARIES))
    return any(re.search(pattern, text, re.S) for text in texts())


def test_the_page_has_what_users_meet_most() -> None:
    assert len(HEADINGS) >= 30
    assert len(set(HEADINGS)) == len(HEADINGS)


@pytest.mark.parametrize("heading", HEADINGS)
def test_each_heading_is_a_message_of_the_program(heading: str) -> None:
    words = max(heading.split(VARIES), key=len).strip()
    assert len(words) > 12, "too little of it is fixed to be told from others"
    assert is_said(heading), f"no message says {heading!r}: correct the heading, or the message"


def test_a_message_that_nobody_says_is_seen() -> None:
    assert not is_said("no cluster answers with … and flowers")
    assert not is_said("correct --address … no cluster answers at"), "the order counts"
