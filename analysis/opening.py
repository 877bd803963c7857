"""Which source reads what lies at a place: a store, a study's folder, a bundle, parquet, or MLflow.

Leaves out reading (`sources.py`, `bundle.py`, `foreign.py`, `from_mlflow.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from analysis.sources import Source, StoreSource
from grids.errors import InputError, listed, nearest
from grids.paths import StudyPaths

ALLOWED: Final = (
    "a store, a study's folder, a bundle (.zip), a file of outcomes (.parquet), or MLflow's "
    "address (https://..., sqlite:///...)"
)
ZIP: Final = b"PK"
PARQUET: Final = b"PAR1"
SQLITE: Final = b"SQLite format 3"


def source_at(where: str | Path, study: str | None = None) -> Source:
    """What reads the study at `where`; `study` names one where there are several.

    Raises `InputError`, with what was found and what is allowed, where there is none.
    """
    if "://" in str(where):
        from analysis.from_mlflow import MlflowSource

        return MlflowSource(str(where), study)
    path = Path(where)
    if path.is_dir():
        return store_at(path, study)
    if not path.exists():
        raise InputError(f"{path}: there is nothing; expected {ALLOWED}")
    source = _in_file(path)
    if study not in (None, source.name):
        raise InputError(f"{path}: holds {source.name}, not {study!r}; leave the study out")
    return source


def store_at(path: Path, study: str | None = None) -> StoreSource:
    """What reads a study's folder, or one study of a store.

    Raises `InputError`, with what was found, where there is none.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; expected a store or a study's folder")
    if StudyPaths(path).cells.is_dir():
        if study not in (None, path.resolve().name):
            raise InputError(
                f"{path}: is the folder of one study, not a store with a study {study!r}"
            )
        return _of_study(path.resolve())
    studies = sorted(f.name for f in path.iterdir() if StudyPaths(f).cells.is_dir())
    if not studies:
        held = listed(f.name for f in path.iterdir()) or "nothing"
        raise InputError(
            f"{path}: a folder without a study; it holds {held[:200]}; expected {ALLOWED}"
        )
    if study is None and len(studies) > 1:
        raise InputError(f"{path}: holds {len(studies)} studies; name one of {listed(studies)}")
    name = study or studies[0]
    if name not in studies:
        raise InputError(
            f"{path}: has no study {name!r}; it has {listed(studies)}{nearest(name, studies)}"
        )
    return _of_study(path / name)


def _of_study(folder: Path) -> StoreSource:
    paths = StudyPaths(folder)
    if not any(f.is_dir() for f in paths.cells.iterdir()):
        raise InputError(f"{folder}: a study without cells; `banditgrid run` a grid of it first")
    return StoreSource(paths)


def _in_file(path: Path) -> Source:
    """A bundle or a file of outcomes, told by how it begins, else by its name."""
    try:
        with path.open("rb") as file:
            begins = file.read(len(SQLITE))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if begins.startswith(ZIP) or path.suffix == ".zip":
        from analysis.bundle import BundleSource

        return BundleSource(path)
    if begins.startswith(PARQUET) or path.suffix == ".parquet":
        from analysis.foreign import ForeignSource

        return ForeignSource(path)
    if begins.startswith(SQLITE):
        raise InputError(f"{path}: a database; MLflow's is given as sqlite:///{path}")
    raise InputError(f"{path}: neither a bundle nor parquet; expected {ALLOWED}")
