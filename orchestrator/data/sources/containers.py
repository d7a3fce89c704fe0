"""Files as spans that are read alone, and the rows of a span: JSONL, plain text, Parquet, CSV, JSON arrays, hub data.

A span of JSONL or text is a range of bytes that ends with a line, one of Parquet a range of row groups; CSV, whose
cells may hold line ends, and JSON arrays are one span a file.
"""

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pydantic_core import from_json

from orchestrator.data.sources.hub import PREFIX, open_rows, rows_between
from orchestrator.data.sources.rows import RowError

SPAN_BYTES = 2 << 20  # of JSONL and text: what one process reads, or tokenizes, at a time
ROWS_BEHIND_BYTES = 1 << 16  # of JSONL: what is read at a time of what comes after a span
HUB_ROWS = 10_000  # of a span
LEROBOT = "lerobot:"  # begins the name of a folder that is a LeRobotDataset
LARGEST_ARRAY = 1 << 30  # bytes of a JSON array, which is parsed whole
_BOM = b"\xef\xbb\xbf"

Rows = Iterator[tuple[int, Any]]  # (number within the span from 0, the row, or a RowError where none can be read)


@dataclass(frozen=True)
class Span:
    """A part of a file: bytes of JSONL and text, row groups of Parquet, rows of a hub dataset, all of another.

    Of a robot's recordings, episodes.
    """

    file: str
    start: int
    end: int

    @property
    def suffix(self) -> str:
        named = next((prefix for prefix in (PREFIX, LEROBOT) if self.file.startswith(prefix)), None)
        return named or Path(self.file).suffix


@dataclass(frozen=True)
class Part:
    """A file, or what stands for one: `identity` changes when its rows may have changed."""

    name: str
    identity: tuple[str | int, ...]
    size: int  # bytes
    spans: Callable[[], list[Span]]


def part_of(file: Path) -> Part:
    """A file as it is now. Raises OSError."""
    found = os.stat(file)
    identity = (str(file), found.st_size, found.st_mtime_ns)
    return Part(str(file), identity, found.st_size, partial(spans_of, file))


def write_parquet(file: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as a Parquet file, with a column for every name that one of them has."""
    names = dict.fromkeys(name for row in rows for name in row)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_columns(file, {name: [row.get(name) for row in rows] for name in names})


def write_columns(file: Path, columns: Mapping[str, Any]) -> None:
    """Lists or arrays of one length as a Parquet file, with checksums."""
    from pyarrow import Table, parquet

    parquet.write_table(Table.from_pydict(dict(columns)), file, write_page_checksum=True)


def read_columns(file: Path, chosen: Callable[[str], bool] = lambda name: True) -> dict[str, np.ndarray]:
    """The columns of a Parquet file whose names are chosen. Raises OSError, also for a damaged one."""
    table = _parquet(file, page_checksum_verification=True).read(use_threads=False)
    return {name: table.column(name).to_numpy() for name in table.column_names if chosen(name)}


def part_of_hub(reference: str) -> Part:
    """The rows of a resolved reference. Raises HubDatasetError and HubError."""
    rows = open_rows(reference)
    identity = (reference, len(rows), str(rows._fingerprint))  # of the library's cache file and what was selected
    firsts = range(0, len(rows), HUB_ROWS)
    spans = [Span(reference, first, min(first + HUB_ROWS, len(rows))) for first in firsts]
    return Part(reference, identity, int(rows.data.nbytes), lambda: spans)


def spans_of(file: Path, span_bytes: int = SPAN_BYTES) -> list[Span]:
    """The parts of a file in order; none of an empty one. Raises OSError."""
    if file.suffix == ".parquet":
        groups: int = _parquet(file).num_row_groups
        return [Span(str(file), group, group + 1) for group in range(groups)]
    size = os.stat(file).st_size
    if file.suffix not in (".jsonl", ".txt"):
        return [Span(str(file), 0, size)]
    return [Span(str(file), start, end) for start, end in pairwise(_cuts(file, size, span_bytes))]


def rows_of(span: Span) -> Rows:
    """The rows of a span in order, the fields of a column that are empty left out. Raises OSError."""
    return _READERS[span.suffix](span)


def rows_behind(span: Span) -> Rows:
    """The rows after a span in its file, in order; none where a span is all of it, or whole episodes. Raises OSError.

    Their numbers are not of the span.
    """
    for start, end in _behind(span):
        yield from rows_of(Span(span.file, start, end))


def _behind(span: Span) -> Iterator[tuple[int, int]]:
    if span.suffix == ".jsonl":
        yield from pairwise(_cuts(Path(span.file), os.stat(span.file).st_size, ROWS_BEHIND_BYTES, span.end))
    elif span.suffix == ".parquet":
        yield from pairwise(range(span.end, int(_parquet(Path(span.file)).num_row_groups) + 1))
    elif span.suffix == PREFIX:
        yield from pairwise(range(span.end, len(open_rows(span.file)) + 1))


def number_of_first_row(span: Span) -> int:
    """Where a span begins, as people count: lines of a file, rows of a table, from 1."""
    if span.start == 0:
        return 1
    if span.suffix == PREFIX:
        return 1 + span.start
    if span.suffix == ".parquet":
        metadata = _parquet(Path(span.file)).metadata
        return 1 + int(sum(metadata.row_group(group).num_rows for group in range(span.start)))
    lines = 1
    with open(span.file, "rb") as stream:
        for start in range(0, span.start, SPAN_BYTES):
            lines += len(_lines(stream.read(min(SPAN_BYTES, span.start - start)))) - 1
    return lines


def _cuts(file: Path, size: int, span_bytes: int, start: int = 0) -> Iterator[int]:
    """Offsets from a start to the size, each at the start of a line; in plain text, of the line after an empty one."""
    yield start
    with open(file, "rb") as stream:
        while start + span_bytes < size:
            stream.seek(start + span_bytes)
            stream.readline()
            if file.suffix == ".txt":
                while stream.readline().strip(b"\r\n"):
                    pass
            if stream.tell() >= size:
                break
            start = stream.tell()
            yield start
    if start < size:
        yield size


def _read(span: Span) -> bytes:
    with open(span.file, "rb") as stream:
        stream.seek(span.start)
        data = stream.read(span.end - span.start)
    return data.removeprefix(_BOM) if span.start == 0 else data


def _lines(data: bytes) -> list[bytes]:
    """Split at every kind of line end, as Python reads a text file."""
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return data.split(b"\n")


def _json_lines(span: Span) -> Rows:
    for number, line in enumerate(_lines(_read(span))):
        if not line or line.isspace():
            continue
        try:
            yield number, from_json(line, cache_strings="keys")
        except ValueError:  # it says where in another manner, and refuses what only the standard library reads
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                yield number, RowError("", _encoding_fault(error))
                return
            if text.strip():
                yield number, _parse_slowly(text)


def _parse_slowly(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        return RowError("", f"not valid JSON: {reason}; write one JSON object a line")


def _paragraphs(span: Span) -> Rows:
    """A plain text file: blank lines separate its examples."""
    try:
        text = b"\n".join(_lines(_read(span))).decode()
    except UnicodeDecodeError as error:
        yield 0, RowError("", _encoding_fault(error))
        return
    paragraphs = (paragraph.strip() for paragraph in text.split("\n\n"))
    yield from enumerate({"text": paragraph} for paragraph in paragraphs if paragraph)


def _table(span: Span) -> Rows:
    file, number = _parquet(Path(span.file)), 0
    for batch in file.iter_batches(batch_size=1024, row_groups=range(span.start, span.end)):
        for row in batch.to_pylist():
            yield number, {key: value for key, value in row.items() if value is not None}
            number += 1


def _comma_separated(span: Span) -> Rows:
    csv.field_size_limit(1 << 30)  # the default refuses a cell of more than 128 KiB
    try:
        with open(span.file, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            for row in reader:
                number = reader.line_num - 1
                if None in row:
                    yield number, RowError("", "the row has more cells than the header; quote cells that hold commas")
                else:
                    yield number, {key: value for key, value in row.items() if value}
    except UnicodeDecodeError as error:
        yield 0, RowError("", _encoding_fault(error))
    except csv.Error as error:
        yield reader.line_num, RowError("", f"not valid CSV: {error}; quote cells with double quotes")


def _json_array(span: Span) -> Rows:
    if span.end > LARGEST_ARRAY:
        yield (
            0,
            RowError("", f"a JSON array of {span.end:,} bytes would be read whole; write it as JSONL"),
        )
        return
    try:
        rows = from_json(_read(span), cache_strings="keys")
    except ValueError as error:
        yield 0, RowError("", f"not valid JSON: {error}; a .json file is one list of rows, JSONL ends in .jsonl")
        return
    if not isinstance(rows, list):
        yield 0, RowError("", "the file holds no list; a .json file is one list of rows, JSONL ends in .jsonl")
        return
    yield from enumerate(
        {key: value for key, value in row.items() if value is not None} if isinstance(row, dict) else row
        for row in rows
    )


def _encoding_fault(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 text ({error.reason}, byte {error.object[error.start]:#04x}); save it as UTF-8"


def _parquet(file: Path, **options: bool) -> Any:
    from pyarrow import ArrowInvalid, parquet

    try:
        return parquet.ParquetFile(file, memory_map=True, **options)
    except ArrowInvalid as error:
        raise OSError(0, f"no Parquet file: {error}") from None


_READERS: dict[str, Callable[[Span], Rows]] = {
    ".jsonl": _json_lines,
    ".txt": _paragraphs,
    ".parquet": _table,
    ".csv": _comma_separated,
    ".json": _json_array,
    PREFIX: lambda span: rows_between(span.file, span.start, span.end),
}
