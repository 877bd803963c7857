"""A figure on a page: its image as text inside the page, and the files that lie beside it.

Leaves out drawing (`charts.py`).
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from analysis.study import Study
from analysis.tables import Table

FORMATS: Final = ("png", "pdf")


@dataclass(frozen=True)
class Picture:
    """One figure.

    Attributes:
        title: `4.6 tradeoff: gain by cost`.
        caption: how to read it; it stands in the image, and here for those who cannot see that.
        files: one a format.
    """

    title: str
    caption: str
    files: tuple[Path, ...]

    @property
    def source(self) -> str:
        """The PNG as a data URI."""
        image = next(path for path in self.files if path.suffix == ".png")
        return f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode('ascii')}"

    @property
    def links(self) -> list[tuple[str, str]]:
        """What to call each file, and its address from the page, which lies two folders above."""
        return [
            (path.suffix.removeprefix(".").upper(), quote("/".join(path.parts[-3:])))
            for path in self.files
        ]


def pictures(table: Table, study: Study, folder: Path) -> tuple[Picture, ...]:
    """The figures of a table, written into a folder as PNG and PDF."""
    from analysis.charts import caption_of, figures_of, save

    made = []
    for name, figure in figures_of(table, study).items():
        told = name.replace("-", " ")
        files = tuple(save(figure, folder / f"{name}.{form}") for form in FORMATS)
        made.append(Picture(f"{table.title}: {told}", caption_of(figure), files))
    return tuple(made)
