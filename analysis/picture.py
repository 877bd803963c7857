"""A figure on a page: its image as text inside the page, and the files that lie beside it.

Leaves out drawing (`charts.py`).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from analysis.study import Study
from analysis.tables import Table


@dataclass(frozen=True)
class Picture:
    """One figure.

    Attributes:
        caption: how to read it; it stands in the image, and here for those who cannot see that.
        files: as PNG and PDF.
    """

    name: str
    caption: str
    files: tuple[Path, ...]

    @property
    def source(self) -> str:
        """The PNG as a data URI."""
        image = next(path for path in self.files if path.suffix == ".png")
        return f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode('ascii')}"


def pictures(table: Table, studies: Mapping[str, Study], folder: Path) -> tuple[Picture, ...]:
    """The figures of a table, written into a folder."""
    from analysis.charts import write_figures

    made = write_figures(table, studies[table.grid.study], folder, ("png", "pdf"))
    return tuple(Picture(name, name, tuple(files)) for name, files in made.items())
