"""Tables of labels and splits (csv, tsv, xlsx, parquet), of which only the named columns are kept, as text.

Text, because ids such as 007 and labels such as 1e5 must survive. Reading csv by the standard library rather than by
pandas keeps the true line numbers for messages and notices rows with too many cells, which pandas drops silently.
"""

from __future__ import annotations

import csv
import difflib
import functools
import importlib
import os
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd

from mil_jax.csv_cells import original
from mil_jax.errors import DataError

MISSING = frozenset(("", "NA", "N/A", "n/a", "nan", "NaN", "NULL", "null", "#N/A", "<NA>"))
TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".tab")
SUFFIXES = (*TEXT_SUFFIXES, ".xlsx", ".parquet")
FEATURE_SUFFIXES = (".pt", ".h5")
MOST_ROWS = 20_000_000
MOST_UNPACKED, FREE_UNPACKED, MOST_EXPANSION = 4 << 30, 64 << 20, 100  # bytes of a compressed file, or times its own
MOST_SHEET_ROWS, MOST_CELLS = 1 << 20, 100_000_000  # the format's own limit; of a sheet in memory
_SEPARATOR = re.compile(r'"?sep=(.)"?[,;\t]*', re.IGNORECASE)  # Excel's own line, also as Excel saves it again
_INVISIBLE = dict.fromkeys(
    map(ord, "\u00ad\u200b\u200e\u200f\u2060\ufeff")
)  # what is copied from web pages brings them
_LONGEST_SHOWN = 80
HEADLESS = ("path", "label", "Fold")  # the columns of a table that has no header
_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)?(\.\d*)?([eE][+-]?\d+)?", re.ASCII)


def read_header(path: str | os.PathLike[str]) -> list[str]:
    """The column names of a table, in order. Raises DataError when the file is missing or unreadable."""
    source = _existing(path)
    if source.suffix.lower() in TEXT_SUFFIXES:
        return _read_text(source, None)[0]
    if source.suffix.lower() == ".parquet":
        parquet = _needed("pyarrow.parquet", source)
        with _readable(source):
            return [str(name) for name in parquet.read_schema(source).names]
    return _excel(source)[0]


def read_columns(
    path: str | os.PathLike[str], columns: Iterable[str], missing: frozenset[str] = MISSING
) -> pd.DataFrame:
    """The named columns as text, one row per row of the file, indexed by the line (row) number in the file.

    Empty lines, lines of `#` and Excel's `sep=;` above the header and UTF-16 are understood. Cells are stripped of blanks and of characters
    that nobody sees; those that equal one of `missing` become NaN.
    Raises DataError for a file that cannot be read and for a column that it lacks, suggesting the nearest name.
    """
    source, names = _existing(path), list(dict.fromkeys(columns))
    header = read_header(source)
    for name in names:
        require_column(name, header, source)
    if source.suffix.lower() in TEXT_SUFFIXES:
        _, lines, columns_of_text = _read_text(source, names)
        cells: dict[str, list[Any]] = dict(zip(names, columns_of_text, strict=True))
    elif source.suffix.lower() == ".parquet":
        cells = _parquet(source, names)
        lines = list(range(2, len(next(iter(cells.values()))) + 2))
    else:
        _, lines, rows, _ = _excel(source)
        places = {name: header.index(name) for name in names}
        cells = {name: [row[place] if place < len(row) else None for row in rows] for name, place in places.items()}
    index = pd.Index(lines, dtype=np.int64, name="row")
    return pd.DataFrame(
        {name: pd.Series([_text(cell, missing) for cell in cells[name]], index=index, dtype=object) for name in names}
    )


def require_column(name: str, header: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Raises DataError when a table has no such column, or has it twice."""
    count = list(header).count(name)
    if count > 1:
        raise DataError(f"{path}: {count} columns are named {name!r}; rename all but one")
    if count == 0:
        raise DataError(f"{path}: no column {name!r}{suggestion(name, header)}; {columns_seen(path, header)}")


def columns_seen(path: str | os.PathLike[str], header: Sequence[str]) -> str:
    """`its columns are a, b and c`, for messages; of a workbook also which of its sheets was read."""
    source, text = Path(path).expanduser(), f"its columns are {listed(header, 12)}"
    others = _excel(source)[3][1:] if source.suffix.lower() == ".xlsx" else []
    return text + (
        f", in the first of its sheets; save {listed(others)} as a file of its own if the table is there"
        if others
        else ""
    )


def suggestion(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` or nothing."""
    names = list(known)
    exact = [other for other in names if other.lower() == name.lower()]
    near = exact or difflib.get_close_matches(name, names, n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def listed(items: Iterable[object], most: int = 3) -> str:
    """`a, b, c and 4 more`."""
    texts = [brief(str(item)) for item in items]
    rest = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {rest} more" if rest > 0 else "")


def brief(text: str) -> str:
    """A text of a file as a message can hold it."""
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}... ({len(text):,} characters)"


def mentioned_columns(expression: str, header: Sequence[str]) -> list[str]:
    """The columns that a filter expression names, bare or in backticks."""
    return [name for name in header if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", expression)]


def is_number(text: str) -> bool:
    """Whether a cell is a number; 007 is not, it is an id."""
    return any(digit.isdigit() for digit in text) and _NUMBER.fullmatch(text) is not None


def as_numbers(column: pd.Series) -> pd.Series:
    """The column as numbers where all its cells are, else as it is."""
    present = column.dropna()
    return pd.to_numeric(column) if len(present) and all(map(is_number, present)) else column


def _text(value: Any, missing: frozenset[str]) -> Any:
    """A cell as text; NaN when missing. Whole numbers stored as floats (a column with gaps) lose their `.0`."""
    if value is None or value is pd.NaT or value is pd.NA:
        return np.nan
    if isinstance(value, float | np.floating):
        if np.isnan(value):
            return np.nan
        return str(int(value)) if float(value).is_integer() else str(value)
    if isinstance(value, bytes):
        value = value.decode(errors="backslashreplace")
    text = _trimmed(str(original(value)))
    return np.nan if text in missing else text


def _trimmed(text: str) -> str:
    return (text if text.isascii() else text.translate(_INVISIBLE)).strip()


def _existing(path: str | os.PathLike[str]) -> Path:
    source = Path(path).expanduser()
    if not source.is_file():
        raise DataError(f"{path}: no such file; name a table ({', '.join(SUFFIXES)})")
    if source.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: not a table that can be read; save it as one of {', '.join(SUFFIXES)}")
    return source


def _needed(module: str, path: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise DataError(f"{path}: reading it needs {package}; run: pip install 'mil-jax[tables]'") from error


class _readable:
    """Turns what a reader raises for a damaged file into one sentence."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, DataError):
            first_line = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(f"{self.path}: cannot be read as a table ({first_line}); save it again") from error


def _parquet(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    """The columns of a file; an index that pandas saved is a column like the others."""
    parquet = _needed("pyarrow.parquet", path)
    with _readable(path):
        metadata, schema = parquet.read_metadata(path), parquet.read_schema(path)
        if metadata.num_rows > MOST_ROWS:
            raise DataError(
                f"{path}: claims {metadata.num_rows:,} rows, and a table may have {MOST_ROWS:,}; is it a label table?"
            )
        kinds = {name: schema.field(name).type for name in names}
        for name, kind in kinds.items():
            if kind.num_fields:
                raise DataError(f"{path}: the column {name!r} holds {kind}, and a cell of a table is one value")
        groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
        columns = (group.column(number) for group in groups for number in range(group.num_columns))
        unpacked = sum(column.total_uncompressed_size for column in columns if column.path_in_schema in names)
        _require_bounded(unpacked, path)
        texts = [name for name, kind in kinds.items() if str(kind) in ("string", "large_string")]
        # As a dictionary a text that repeats is kept once.
        table = parquet.ParquetFile(path, read_dictionary=texts).read(columns=list(names))
        return {name: [cell for chunk in table.column(name).chunks for cell in _cells(chunk)] for name in names}


def _cells(chunk: Any) -> list[Any]:
    """Of a column of parquet; those of a dictionary share their text."""
    if not hasattr(chunk, "dictionary"):
        cells: list[Any] = chunk.to_pylist()
        return cells
    texts = [text.strip() if isinstance(text, str) else text for text in chunk.dictionary.to_pylist()]
    return [None if place is None else texts[place] for place in chunk.indices.to_pylist()]


def _require_bounded(unpacked: int, path: Path) -> None:
    """Raises DataError for what compression hides: few bytes that take all memory."""
    if unpacked > min(MOST_UNPACKED, max(FREE_UNPACKED, MOST_EXPANSION * path.stat().st_size)):
        raise DataError(
            f"{path}: its {path.stat().st_size:,} bytes unpack to {unpacked:,}; save the columns of the labels alone, as csv"
        )


@functools.lru_cache(maxsize=2)
def _excel_at(path: Path, size: int, mtime_ns: int) -> tuple[list[str], list[int], list[tuple[Any, ...]], list[str]]:
    """Header, row numbers and rows of the first sheet that has any, and the names of all that have.

    Read row by row: what a far cell spans is never made.
    """
    openpyxl = _needed("openpyxl", path)
    with _readable(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # openpyxl warns of styles and validations that it leaves out
        with zipfile.ZipFile(path) as archive:
            _require_bounded(sum(member.file_size for member in archive.infolist()), path)
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            sheets = {sheet.title: _filled_rows(sheet, path) for sheet in book.worksheets}
        finally:
            book.close()
    filled = [title for title, rows in sheets.items() if rows]
    if not filled:
        raise DataError(f"{path}: the file is empty; its first row must name the columns")
    if len(filled) > 1 and filled[0] != next(iter(sheets)):
        raise DataError(
            f"{path}: its first sheet is empty and {listed(filled)} are not; save the one with the table as a file"
        )
    numbered = sheets[filled[0]]
    header = ["" if cell is None else _trimmed(str(cell)) for cell in numbered[0][1]]
    width = max(len(row) for _, row in numbered[:2])
    _require_header([*header, *[""] * (width - len(header))], path)
    while header and not header[-1]:
        header.pop()
    return header, [number for number, _ in numbered[1:]], [row for _, row in numbered[1:]], filled


def _excel(path: Path) -> tuple[list[str], list[int], list[tuple[Any, ...]], list[str]]:
    status = path.stat()
    return _excel_at(path, status.st_size, status.st_mtime_ns)


def _filled_rows(sheet: Any, path: Path) -> list[tuple[int, tuple[Any, ...]]]:
    """(number, cells up to the last that is filled) of the rows that hold anything."""
    sheet.reset_dimensions()  # what the file claims
    rows, cells = [], 0
    for number, row in enumerate(sheet.iter_rows(values_only=True), start=1):
        if number > MOST_SHEET_ROWS:
            raise DataError(
                f"{path}: its sheet {sheet.title} claims more than {MOST_SHEET_ROWS:,} rows, which no sheet has"
            )
        width = next((place for place in range(len(row), 0, -1) if _is_filled(row[place - 1])), 0)
        cells += len(row)
        if cells > MOST_CELLS:
            raise DataError(
                f"{path}: its sheet {sheet.title} spans more than {MOST_CELLS:,} cells; save the columns of the labels alone"
            )
        if width:
            rows.append((number, row[:width]))
    return rows


def _is_filled(cell: Any) -> bool:
    return cell is not None and (not isinstance(cell, str) or bool(cell.strip()))


def _require_header(header: Sequence[str], path: Path) -> None:
    """Raises DataError for a title above the table."""
    if sum(map(bool, header)) == 1 and len(header) > 1:
        title = next(filter(None, header))
        raise DataError(
            f"{path}: its first row holds only {title!r}; the first row must name the columns: delete titles above the table"
        )


def _encoding(path: Path) -> str:
    """Of a text file by its first bytes: Excel's 'Unicode Text' is UTF-16."""
    with path.open("rb") as file:
        return "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def _beginning(file: TextIO) -> tuple[int, int, str]:
    """(place of the header, lines above it, delimiter). Empty lines, cBioPortal's lines of `#` and Excel's `sep=;` may stand above it."""
    above, delimiter = 0, ""
    while True:
        start, line = file.tell(), file.readline()
        separator = _SEPARATOR.fullmatch(line.rstrip("\r\n"))
        comment = line.startswith("#") and not line.startswith("#N/A")
        if line and (separator or comment or not line.strip(",; \t\r\n")):
            above, delimiter = above + 1, separator[1] if separator else delimiter
        else:
            return start, above, delimiter or max(",\t;", key=line.count)


def _text_lines(file: TextIO, path: Path) -> Iterator[str]:
    for line in file:
        if "\0" in line:
            raise DataError(
                f"{path}: holds NUL characters, so it is damaged, or UTF-16 without its mark; save it as 'CSV UTF-8'"
            )
        yield line


def _read_text(path: Path, names: Sequence[str] | None) -> tuple[list[str], list[int], list[list[str]]]:
    """Header, line numbers and the columns `names` (None: the header alone) of a delimited file; blank lines skipped, short rows filled.

    Only the cells asked for are kept: a table of 20,000 genes need not fit in memory.
    """
    lines: list[int] = []
    kept: list[list[str]] = [[] for _ in names or ()]
    try:
        with path.open(encoding=_encoding(path), newline="") as file:
            start, above, delimiter = _beginning(file)
            file.seek(start)
            # Strict: a quote that is left open would swallow the lines below it.
            reader = csv.reader(_text_lines(file, path), delimiter=delimiter, strict=True)
            header = [_trimmed(name) for name in next(reader, [])]
            if header and header[0].lower().endswith(FEATURE_SUFFIXES) and len(header) <= len(HEADLESS):
                header = list(HEADLESS[: len(header)])  # PathGene: some tables begin with their first row
                file.seek(start)
                reader = csv.reader(_text_lines(file, path), delimiter=delimiter, strict=True)
            _require_header(header, path)
            if not any(header):
                raise DataError(f"{path}: the file is empty; its first line must name the columns")
            places = [header.index(name) for name in names or ()]
            for row in () if names is None else reader:
                width = len(row)
                if width > len(header):
                    if any(cell.strip() for cell in row[len(header) :]):
                        raise DataError(
                            f"{path}, line {above + reader.line_num}: {width} cells under {len(header)} column names; "
                            f"put text that holds {delimiter!r} in quotes"
                        )
                elif not any(cell.strip() for cell in row):
                    continue
                lines.append(above + reader.line_num)
                for column, place in zip(kept, places):
                    column.append(row[place] if place < width else "")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text; save it as 'CSV UTF-8'") from error
    except csv.Error as error:
        where = f"below line {lines[-1]}" if lines else "at its beginning"
        raise DataError(
            f"{path}, {where}: cannot be read as a table ({error}); close its quotes, or save it again"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read as a table ({error}); save it again") from error
    return header, lines, kept
