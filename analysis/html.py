"""Pages as HTML that stands alone: style inside, no script, nothing loaded from anywhere.

All text is escaped. Leaves out what is shown (`sheets.py`, `page.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from analysis.sheet import Document

if TYPE_CHECKING:  # commands that write no page start without it
    from jinja2 import Environment

INTERVAL: Final = re.compile(r"(\[[-+\d., ]+\]|\(n=\d+\))")


def tables_html(documents: Sequence[Document], title: str) -> str:
    """The tables of one or several grids as one page."""
    return render("tables.html.j2", documents=documents, title=title)


def render(template: str, **shown: Any) -> str:
    """A page of `templates/`, with its values."""
    return _environment().get_template(template).render(**shown)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("analysis"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    made.filters |= {"pieces": pieces, "anchors": anchors}
    return made


def pieces(entry: str) -> list[str]:
    """An entry's texts and intervals in turns: `0.25 [0.20, 0.30]` may break before its bracket,
    and nowhere else."""
    return INTERVAL.split(entry)


def anchors(documents: Sequence[Document]) -> list[tuple[str, str]]:
    """Where each document begins on its page, and what to call it."""
    return [(f"grid-{i}", shown.heading) for i, shown in enumerate(documents, start=1)]
