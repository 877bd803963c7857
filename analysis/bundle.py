"""A bundle: a study as one zip file, to pass on or to keep; it is read as the store is.

    bundle.json        format, name of the study, and which row group holds a cell's answers
    outcomes.parquet   graded answers of all cells: the store's columns without texts, and `cell`
    contrasts.jsonl, looks.jsonl, searches/
    cells/KEY/         the records of a cell as the store has them, whole journals among them

So one code reads store and bundle, at any horizon and under any evaluation. Equal content gives
equal bytes. Nothing in a bundle is extracted or executed. Records name hosts and folders as they do
in the store. Leaves out checkpoints, samples and, unless asked for, completions.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.outcomes import COLUMNS, NAMES, Answers, Unusable, Which, answers_in, read_rows
from analysis.sources import StoreSource
from grids import outcome
from grids.cell import Cell
from grids.errors import InputError
from grids.paths import CellPaths, StudyPaths, scratch

SUFFIX: Final = ".banditgrid.zip"
FORMAT: Final = 1  # raised when an older reader would misread
MANIFEST: Final = "bundle.json"
OUTCOMES: Final = outcome.OUTCOMES_FILE
# `done.json` first: a journal that is copied later holds all that the mark speaks of.
RECORDS: Final = (
    outcome.DONE_FILE, outcome.FAILED_FILE, outcome.JOURNAL_FILE, outcome.TIMINGS_FILE,
    outcome.PROVENANCE_FILE, outcome.CELL_FILE,
)  # fmt: skip
NO_TIME: Final = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file can tell

_TEXT = pa.dictionary(pa.int32(), pa.string())
_NUMBERS = {"round": pa.int64(), "sample": pa.int64(), "correct": pa.float64()}
# `correct` is as in the store: a dictionary of 0, 1 and NaN takes no more room than a byte would.
_SCHEMA = pa.schema(
    [("cell", _TEXT), *((c, _TEXT if c in NAMES else _NUMBERS[c]) for c in COLUMNS)]
)


def write_bundle(source: StoreSource, out: Path, completions: bool = False) -> Path:
    """Write a study as the file `out`, whole or not at all.

    With `completions`, each cell's own file of outcomes goes along as it is.
    Raises `InputError` where the study has no cells or the file cannot be written.
    """
    folders = source.paths.cells
    keys = sorted(f.name for f in folders.iterdir() if f.is_dir()) if folders.is_dir() else []
    if not keys:
        raise InputError(f"{source.place} has no cells: there is nothing to export")
    _check_place(out)
    made = scratch(out)
    try:
        with zipfile.ZipFile(made, "w") as bundle:
            _fill(bundle, source, keys, completions)
        os.replace(made, out)
    except OSError as error:
        raise InputError(f"{out}: the bundle cannot be written: {error}") from None
    finally:
        made.unlink(missing_ok=True)
    return out


def _check_place(out: Path) -> None:
    if not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}; make it, or name another file")
    if out.is_dir() or (out.exists() and not zipfile.is_zipfile(out)):
        raise InputError(f"{out}: exists and is no bundle; name another file")


def _fill(bundle: zipfile.ZipFile, source: StoreSource, keys: list[str], completions: bool) -> None:
    for key in keys:
        _add_records(bundle, source.paths.cell(key), completions)
    for path in (source.paths.registrations, source.paths.looks):
        _add_file(bundle, path.name, path)
    searches = source.paths.searches
    for path in sorted(searches.glob("*.json")) if searches.is_dir() else ():
        _add_file(bundle, f"{searches.name}/{path.name}", path)
    content = {"format": FORMAT, "study": source.name, **_add_outcomes(bundle, source.paths, keys)}
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    bundle.writestr(_member(MANIFEST), text)


def _add_records(bundle: zipfile.ZipFile, paths: CellPaths, completions: bool) -> None:
    folder = f"cells/{paths.directory.name}/"
    bundle.writestr(_member(folder), b"")
    for name in (*RECORDS, OUTCOMES) if completions else RECORDS:
        _add_file(bundle, folder + name, paths.directory / name)
    if paths.checkpoint.exists():  # that there is one tells unfinished cells from waiting ones
        bundle.writestr(_member(f"{folder}{outcome.CHECKPOINT_DIR}/"), b"")


def _add_file(bundle: zipfile.ZipFile, name: str, path: Path) -> None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    bundle.writestr(_member(name), content)


def _member(name: str) -> zipfile.ZipInfo:
    """A member that is the same whenever and wherever it is written."""
    made = zipfile.ZipInfo(name, NO_TIME)
    made.create_system = 3
    made.external_attr = 0o644 << 16
    packed = name.endswith((".parquet", "/"))  # parquet is compressed in itself
    made.compress_type = zipfile.ZIP_STORED if packed else zipfile.ZIP_DEFLATED
    return made


def _add_outcomes(
    bundle: zipfile.ZipFile, paths: StudyPaths, keys: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """Add the answers of all cells; which row group holds a cell's, or why it has none."""
    groups: dict[str, int] = {}
    unusable: dict[str, str] = {}
    with (
        bundle.open(_member(OUTCOMES), "w", force_zip64=True) as member,
        pq.ParquetWriter(member, _SCHEMA, compression="zstd", write_statistics=False) as writer,
    ):
        for key in keys:
            try:
                rows = _rows(paths.cell(key))
            except Unusable as error:
                unusable[key] = str(error)
                continue
            writer.write_table(rows, row_group_size=max(rows.num_rows, 1))
            groups[key] = len(groups)
    return {"row_groups": groups, "unusable": unusable}


def _rows(paths: CellPaths) -> pa.Table:
    """A cell's rows under the bundle's schema. Raises `Unusable` where there are none."""
    rows = read_rows(paths.outcomes).select(COLUMNS)
    cell = pa.DictionaryArray.from_arrays(
        pa.repeat(pa.scalar(0, pa.int32()), rows.num_rows), [paths.directory.name]
    )
    try:
        return rows.add_column(0, "cell", cell).cast(_SCHEMA)
    except pa.ArrowException as error:
        where = f"{paths.directory.name}/{OUTCOMES}"
        raise Unusable(f"{where}: a column is not of its type: {error}") from None


class BundleSource(StoreSource):
    """A study in a bundle.

    Attributes:
        row_groups: cell key -> the row group with its answers.
        unusable: cell key -> why it has none.
    """

    def __init__(self, path: Path) -> None:
        """Raises `InputError` where the file is no bundle, is damaged or too new."""
        self.path = path
        self._zip = _opened(path)
        # zipfile.Path does what reading records asks of a path: /, name, exists, read_text.
        super().__init__(StudyPaths(cast(Path, zipfile.Path(self._zip))))
        self.name, self.row_groups, self.unusable = _manifest(self._zip, path)

    @property
    def place(self) -> str:
        return f"study {self.name} of the bundle {self.path.name}"

    def answers(self, cell: Cell) -> dict[Which, Answers]:
        where = f"{cell.key}/{OUTCOMES}"
        if cell.key not in self.row_groups:
            raise Unusable(self.unusable.get(cell.key, f"{where}: is missing"))
        return answers_in(self._rows.read_row_group(self.row_groups[cell.key], COLUMNS), where)

    @cached_property
    def _rows(self) -> pq.ParquetFile:
        """In memory as it is packed; one cell's row group is unpacked at a time."""
        return pq.ParquetFile(pa.BufferReader(self._zip.read(OUTCOMES)))

    def note_looks(self, looks: list[dict[str, Any]]) -> bool:
        return False


def _opened(path: Path) -> zipfile.ZipFile:
    """The zip file, all of whose checksums are right."""
    try:
        bundle = zipfile.ZipFile(path)
        bad = bundle.testzip()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(
            f"{path}: the bundle is damaged ({error}); copy or export it again"
        ) from None
    if bad is not None:
        raise InputError(f"{path}: the bundle is damaged, at {bad}; copy or export it again")
    return bundle


class _Manifest(NamedTuple):
    study: str
    row_groups: dict[str, int]
    unusable: dict[str, str]


def _manifest(bundle: zipfile.ZipFile, path: Path) -> _Manifest:
    try:
        told = json.loads(bundle.read(MANIFEST))
        if (written := int(told["format"])) > FORMAT:
            raise InputError(
                f"{path}: is a bundle of format {written}; this banditgrid reads formats up to "
                f"{FORMAT}: update it"
            )
        return _Manifest(str(told["study"]), dict(told["row_groups"]), dict(told["unusable"]))
    except InputError:
        raise
    except (KeyError, ValueError, TypeError):
        raise InputError(
            f"{path}: is no bundle of banditgrid: {MANIFEST} is missing or not as it writes it; "
            "`banditgrid export` makes one"
        ) from None
