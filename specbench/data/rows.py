"""Files of rows: JSONL, JSON, Parquet and plain text, gzipped or not. Every refusal names file and line. No torch."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specbench.errors import EnvironmentFailed, UsageError
from specbench.suite.rows import Row

SUFFIXES = (".jsonl", ".json", ".parquet", ".txt")
TRY = "one of .jsonl, .json, .parquet or .txt, the text ones also as .gz"


def kind_of(path: Path) -> str:
    """The suffix that says how to read the file, `.gz` left out; empty where it says nothing."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else ""


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of one file, in order. Raises UsageError (unknown kind, malformed line) or EnvironmentFailed."""
    kind = kind_of(path)
    try:
        if kind == ".jsonl":
            yield from _jsonl(path)
        elif kind == ".json":
            yield from _json(path)
        elif kind == ".parquet":
            yield from _parquet(path)
        elif kind == ".txt":
            yield from _text(path)
        else:
            raise UsageError(f"{path.name} is no kind of file that holds rows", where=str(path), try_=TRY)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(f"not a whole gzip file: {error}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8 text ({error.reason} at byte {error.start})", where=str(path)) from error
    except OSError as error:
        raise EnvironmentFailed(f"cannot read {path}: {error.strerror or error}", where=str(path)) from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    # newline="\n": a carriage return or U+2028 inside a JSON string is not the end of a row.
    with opener(path, "rt", encoding="utf-8-sig", newline="\n") as file:
        yield from enumerate(file, start=1)


def _jsonl(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if line.strip():
            where = f"{path}:{number}"
            yield _row(_parse(line, where), where)


def _json(path: Path) -> Iterator[Row]:
    text = "".join(line for _, line in _lines(path))
    values = _parse(text, str(path))
    if not isinstance(values, list):
        raise UsageError(f"a .json file holds a list of objects, not {type(values).__name__}", where=str(path))
    for number, value in enumerate(values):
        where = f"{path}[{number}]"
        yield _row(value, where)


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow  # 0.1 s, only for this kind of file
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path} row {number}", values)
    except pyarrow.ArrowInvalid as error:
        raise UsageError(f"not a Parquet file: {error}", where=str(path)) from error


def _text(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if line.strip():
            yield Row(f"{path}:{number}", {"text": line.strip("\r\n")})


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = where if error.lineno == 1 else f"{where}:{error.lineno}"
        raise UsageError(f"malformed JSON: {error.msg} (column {error.colno})", where=place) from error
    except RecursionError as error:
        raise UsageError("malformed JSON: nested too deeply", where=where) from error


def _row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise UsageError(f"a row is one JSON object, not {type(value).__name__}", where=where)
    return Row(where, value)
