"""A figure on a page: its image as text inside the page, and the files that lie beside it.

Leaves out drawing (`charts.py`).
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

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

    @property
    def links(self) -> list[tuple[str, str]]:
        """What to call each file, and its address from the page, which lies two folders above."""
        return [
            (path.suffix.removeprefix(".").upper(), quote("/".join(path.parts[-3:])))
            for path in self.files
        ]


def pictures(table: Table, study: Study, folder: Path) -> tuple[Picture, ...]:
    """The figures of a table, written into a folder."""
    from analysis.charts import write_figures

    made = write_figures(table, study, folder, ("png", "pdf"))
    return tuple(Picture(name, name, tuple(files)) for name, files in made.items())
