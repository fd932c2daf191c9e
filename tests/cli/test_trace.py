"""`specbench trace` where a trace is there already: printed without torch, as a tree or as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from specbench.store.traces import Which
from tests.store.synthetic import make_manifest, run_events, write_run
from tests.store.traced import write_traced


@pytest.fixture
def store(tmp_path: Path) -> Path:
    manifest = make_manifest(run_id="20260102-demo-run-a", num_questions=2, repeats=1)
    write_run(tmp_path / "runs" / manifest.run_id, manifest, run_events(manifest))
    return tmp_path


def _trace(store: Path, **changes):
    return write_traced(store / "runs" / "20260102-demo-run-a", Which("tree", "81", 0, 0), siblings=3, **changes)


def test_a_step_is_printed_as_a_tree_with_its_cost(specbench, store):
    _trace(store)
    ran = specbench("trace", "run-a", "--method", "tree", "--step", "2", "--store", str(store))
    assert ran.code == 0
    assert "step 2/" in ran.out and "├─" in ran.out and "✗ rejected" in ran.out and "◆ the target's own" in ran.out
    assert "verify" in ran.out and "ms each" in ran.out


def test_json_holds_every_step_and_the_head(specbench, store):
    found = _trace(store)
    ran = specbench("trace", "run-a", "81", "--method", "tree", "--json", "--store", str(store))
    body = json.loads(ran.out)
    assert ran.code == 0 and body["schema"] == 1 and body["matches"] is True
    assert [step["step"] for step in body["steps"]] == [step.step for step in found.steps]
    first = body["steps"][0]["nodes"][0]
    assert set(first) == {"token", "parent", "q", "p", "verdict", "chosen", "top"}
    one = json.loads(
        specbench("trace", "run-a", "--method", "tree", "--step", "3", "--json", "--store", str(store)).out
    )
    assert [step["step"] for step in one["steps"]] == [2]


def test_a_replay_that_is_another_answer_exits_1_and_says_what_changed(specbench, store):
    _trace(store, matches=False)
    ran = specbench("trace", "run-a", "--method", "tree", "--store", str(store))
    assert ran.code == 1
    assert "another answer than the timed run's: token 3 differs" in ran.err and "torch (1.0 then" in ran.err
    assert "NOT the timed run's" in ran.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "--method"),
        (["--method", "tre"], "did you mean 'tree'"),
        (["99", "--method", "tree"], "known: 81, 82"),
        (["--method", "tree", "--turn", "2"], "turns 1 to 1"),
        (["--method", "tree", "--step", "999"], "--step 1"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(specbench, store, words, told):
    _trace(store)
    ran = specbench("trace", "run-a", *words, "--store", str(store))
    assert ran.code == 2 and told in ran.err


def test_a_trace_that_is_there_is_read_without_torch(store):
    """2 s of torch for a file of JSON would be a poor viewer."""
    _trace(store)
    code = (
        "import sys\nfrom specbench.cli import main\n"
        f"try:\n main(['trace', 'run-a', '--method', 'tree', '--step', '1', '--store', {str(store)!r}])\n"
        "except SystemExit as end:\n assert end.code == 0\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
