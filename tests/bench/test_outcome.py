"""A run on a machine without DuckDB, a borrowed GPU: measured, kept, and summed up elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from specbench import paths
from specbench.store.ingest import ingest

REPOSITORY = Path(__file__).resolve().parents[2]
_WITHOUT = "import sys; sys.modules['duckdb'] = None; from specbench.cli import main; sys.exit(main())"


def test_a_run_without_duckdb_keeps_its_journal_and_says_how_to_ingest_it(
    tiny_suite: Path, tiny_target: Path, tmp_path: Path
) -> None:
    """In a process of its own, in which DuckDB cannot be imported by anything."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        options = ["--target", str(tiny_target), "--methods", "autoregressive,prompt_lookup", "--max-new-tokens", "8"]
        return subprocess.run(
            [sys.executable, "-c", _WITHOUT, "run", str(tiny_suite), *options, "--repeats", "1", *words],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "400"}, capture_output=True,
            text=True, timeout=200, check=False,
        )  # fmt: skip

    done = run("--store", str(tmp_path / "results"))
    assert done.returncode == 0, done.stderr[-2000:]
    [folder] = (tmp_path / "results" / "runs").iterdir()
    said = " ".join(done.stderr.split())
    assert "DuckDB is not installed" in said and f"specbench results ingest {folder.name}" in said
    stored = ingest(paths.store_file(tmp_path / "results"), folder)
    assert stored.state == "finished" and stored.num_generations >= 10
