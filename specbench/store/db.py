"""The DuckDB file: opened briefly, never the live channel (one writer locks everyone else out). No torch."""

from __future__ import annotations

import errno
import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from specbench.errors import EnvironmentFailed, StoreBusy
from specbench.store.files import cannot_write

STORE_SCHEMA = 7
"""Version of schema.sql; a newer store is refused, an older one gets the tables and columns it lacks."""
BUSY_S = 10.0
"""How long a locked store is waited for."""
_FIRST_WAIT_S = 0.02
_LONGEST_WAIT_S = 0.5
_HERE = Path(__file__).parent
_ELSEWHERE = "--store DIR, one that you may write to"
# Nothing is ever fetched: json and parquet are built in. One thread: sums of floats come out the same every time, and a
# run that is being measured keeps its cores (all views over a million steps take 0.7 s on one).
_CONFIG: dict[str, str | bool | int | float | list[str]] = {"autoinstall_known_extensions": "false", "threads": 1}


@contextmanager
def open_store(
    path: Path, *, read_only: bool = False, timeout_s: float = BUSY_S
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with tables and this program's views, closed at the end. Writing creates file and folder.

    Raises StoreBusy (naming the pid where DuckDB does) after timeout_s, EnvironmentFailed for a missing, foreign,
    newer, damaged or unwritable store and for a full disk.
    """
    if read_only and not path.exists():
        raise EnvironmentFailed(
            f"there is no store at {path} yet",
            where=str(path),
            try_="specbench run demo, or `specbench results ingest` for journals that are there",
        )
    if not read_only:
        _make_folder(path)
    connection = _connect(path, read_only=read_only, timeout_s=timeout_s)
    try:
        found = _check_version(connection, path, read_only=read_only)
        if read_only and found < STORE_SCHEMA:
            connection.close()
            with open_store(path, timeout_s=timeout_s):
                pass  # opening for writing brings it up to date
            connection = _connect(path, read_only=True, timeout_s=timeout_s)
        if not read_only:
            connection.execute(_sql("schema.sql"))
            connection.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", [str(STORE_SCHEMA)])
        _install_views(connection, read_only=read_only)
        yield connection
    except duckdb.IOException as error:
        raise EnvironmentFailed(
            f"the store could not be read or written: {_first_line(error)}",
            where=str(path),
            try_="check the disk; journals are untouched, `specbench results ingest` rebuilds the store from them",
        ) from error
    finally:
        connection.close()


@contextmanager
def transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """What is written inside the block is written whole or not at all."""
    connection.execute("BEGIN")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def insert_table(connection: duckdb.DuckDBPyConnection, name: str, table: Any) -> None:
    """Rows of an Arrow table, by the names of its columns."""
    connection.register("arriving", table)
    connection.execute(f"INSERT INTO {name} BY NAME SELECT * FROM arriving")
    connection.unregister("arriving")


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path.parent, error, try_=_ELSEWHERE) from error


def _connect(path: Path, *, read_only: bool, timeout_s: float) -> duckdb.DuckDBPyConnection:
    deadline = time.monotonic() + timeout_s
    wait_s = _FIRST_WAIT_S
    while True:
        try:
            return duckdb.connect(str(path), read_only=read_only, config=_CONFIG)
        except duckdb.Error as error:
            message = str(error)
            if "Permission denied" in message or "Read-only file system" in message:
                refused = PermissionError(errno.EACCES, "Permission denied")
                raise cannot_write(path, refused, try_=_ELSEWHERE) from error
            # The second text: this very process has it open in the other mode.
            if "Could not set lock" not in message and "different configuration" not in message:
                raise EnvironmentFailed(
                    f"{path} cannot be opened: {_first_line(error)}",
                    where=str(path),
                    try_="move the file away and run `specbench results ingest`: the store is rebuilt from journals",
                ) from error
            if time.monotonic() + wait_s > deadline:
                pid = re.search(r"PID (\d+)", message)
                by = f"process {pid.group(1)}" if pid else "another process"
                raise StoreBusy(
                    f"the store is held by {by}; waited {timeout_s:g} s",
                    where=str(path),
                    try_="nothing is lost: run `specbench results ingest` when it is free",
                ) from error
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _check_version(connection: duckdb.DuckDBPyConnection, path: Path, *, read_only: bool) -> int:
    """The version found; an empty file becomes a store of this one."""
    tables = {row[0] for row in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    if not tables and not read_only:
        connection.execute(_sql("schema.sql"))
        connection.execute("INSERT INTO meta VALUES ('schema_version', ?)", [str(STORE_SCHEMA)])
        return STORE_SCHEMA
    found = _meta(connection, "schema_version") if "meta" in tables else None
    if found is None:
        raise EnvironmentFailed(
            f"{path} is a DuckDB file, but not a store of specbench",
            where=str(path),
            try_="name another file with --store FILE.duckdb",
        )
    if int(found) > STORE_SCHEMA:
        raise EnvironmentFailed(
            f"the store was written by a newer specbench (schema {found}, this one reads {STORE_SCHEMA})",
            where=str(path),
            try_="pip install --upgrade specbench",
        )
    return int(found)


def _install_views(connection: duckdb.DuckDBPyConnection, *, read_only: bool) -> None:
    """Views belong to the program, not to the file: an older file gets this program's, temporarily where it is read."""
    text = _sql("views.sql")
    digest = hashlib.sha256(text.encode()).hexdigest()
    if _meta(connection, "views_hash") == digest:
        return
    if read_only:
        connection.execute(text.replace("CREATE OR REPLACE VIEW", "CREATE OR REPLACE TEMP VIEW"))
        return
    with transaction(connection):
        connection.execute(text)
        connection.execute("DELETE FROM meta WHERE key = 'views_hash'")
        connection.execute("INSERT INTO meta VALUES ('views_hash', ?)", [digest])


def _meta(connection: duckdb.DuckDBPyConnection, key: str) -> str | None:
    # fetchall throughout this room: a result left unfinished blocks the connection (DuckDB 2.0).
    rows = connection.execute("SELECT value FROM meta WHERE key = ?", [key]).fetchall()
    return rows[0][0] if rows else None


def _sql(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
