"""The plain training script: one cell, in a process of its own.

`python -m tests.benchmarks.one_cell CELL DIRECTORY SHARED`, with a file that holds the cell as
JSON. What a shell loop calls, and what banditgrid is compared with.
"""

from __future__ import annotations

import sys
from pathlib import Path

from grids.cell import Cell
from workers.run import run_cell

if __name__ == "__main__":
    cell = Cell.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    run_cell(cell, Path(sys.argv[2]), lambda progress: None, Path(sys.argv[3]))
