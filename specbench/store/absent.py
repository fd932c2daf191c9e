"""A machine without DuckDB, a borrowed GPU say: journals are kept there, tables are made elsewhere."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def is_absent() -> bool:
    """Whether DuckDB cannot be imported here."""
    return importlib.util.find_spec("duckdb") is None


def where_to_ingest(folder: Path) -> str:
    """What to do with this run's journal. folder: RUNS/RUN."""
    return (
        f"the journal is whole: copy {folder} into results/runs of a machine that has DuckDB and type there: "
        f"specbench results ingest {folder.name}"
    )
