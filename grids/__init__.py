"""What to run: cells, grids, the catalogue of models and data sets, declared contrasts.

Imports pydantic and yaml alone, so that planning is instant where there is no torch, ray or mlflow.
"""

from grids.cell import Cell, Evaluation
from grids.errors import InputError
from grids.grid import Expansion, Grid
from grids.load import load_grid

__all__ = ["Cell", "Evaluation", "Expansion", "Grid", "InputError", "load_grid"]
