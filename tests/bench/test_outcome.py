"""What a run came to: where nothing of a method finished, and on a machine without DuckDB, a borrowed GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from specbench import paths
from specbench.bench import runner
from specbench.events import GenerationFailed
from specbench.store.ingest import ingest
from tests.bench.runs import CHAIN_HEAD

REPOSITORY = Path(__file__).resolve().parents[2]
_WITHOUT = "import sys; sys.modules['duckdb'] = None; from specbench.cli import main; sys.exit(main())"


BREAKING = CHAIN_HEAD + (
    "class D(Drafter):\n"
    "    max_nodes = 1\n"
    "    def begin(self, requests):\n"
    "        self.prompt = requests[0].prompt\n"
    "    def draft(self, noise):\n"
    "        if len(self.prompt) {breaks_at}:\n"
    "            raise ZeroDivisionError('planted')\n"
    "        return empty(1, torch.device('cpu'))\n"
    "def build(options, target, inner=None):\n"
    "    return D()\n"
)


@pytest.mark.parametrize(
    ("breaks_at", "said"),
    [(">= 0", ("fragile: nothing was measured: 10 timed generations of it failed, none finished",)), ("== 5", ())],
)
def test_a_method_of_which_nothing_finished_is_a_failed_check_and_a_failed_question_is_none(
    go, plant, breaks_at: str, said: tuple[str, ...]
) -> None:
    """Exit code 0 promises a figure for everything that was asked for."""
    folder = plant("fragile", BREAKING.format(breaks_at=breaks_at))
    outcome, events = go(methods=("fragile",), methods_dirs=(folder,))
    assert outcome.state == "finished" and events(GenerationFailed)
    assert outcome.failed_checks == said


def test_a_run_in_which_everything_failed_says_so_once(go, monkeypatch: pytest.MonkeyPatch) -> None:
    """The baseline included, whose reference pass was fine."""

    def broken() -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(runner.machine, "without_collection", broken)
    outcome, _ = go()
    # 5 turns x 2 repeats x 3 methods, the control among them
    assert outcome.failed_checks == ("nothing was measured: all 30 timed generations failed",)


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
