"""Suffix methods in real runs: nothing is remembered unless the run says so, and a wrapped method is recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specbench import paths
from specbench.api import Silent
from specbench.bench.competitors import competitors
from specbench.bench.request import GridAxis, RunRequest, Setting
from specbench.bench.runner import run
from specbench.errors import UsageError
from specbench.events import GenerationStarted, Steps
from specbench.manifest import read_manifest
from specbench.store.journal import read_events
from specbench.store.summary import to_json


@pytest.fixture
def repetitive_suite(tmp_path: Path) -> Path:
    """Four questions that differ in one letter: their answers resemble each other."""
    path = tmp_path / "repetitive.jsonl"
    rows = [{"question_id": f"q{place}", "turns": ["say it " + "abcd"[place]]} for place in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _request(suite: Path, target: Path, store: Path, **changes: object) -> RunRequest:
    values = {
        "suite": str(suite),
        "target": str(target),
        "methods": ("suffix",),
        "max_new_tokens": 24,
        "repeats": 3,
        "threads": 1,
        "store": store,
        **changes,
    }
    return RunRequest(**values)  # type: ignore[arg-type]


def _accepted(store: Path, run_id: str, method: str) -> dict[int, dict[str, int]]:
    """repeat -> question -> accepted tokens, in the order of execution."""
    events = [line.event for line in read_events(paths.run_dir(store, run_id))]
    where = {(e.group, e.row): e for e in events if isinstance(e, GenerationStarted) and e.method == method}
    found: dict[int, dict[str, int]] = {}
    for batch in events:
        if isinstance(batch, Steps):
            for row in batch.rows:
                started = where.get((batch.group, row.row))
                if started is not None:
                    repeat = found.setdefault(started.repeat, {})
                    repeat[started.question_id] = repeat.get(started.question_id, 0) + row.num_accepted
    return found


@pytest.mark.parametrize("method", ["suffix", "hybrid(prompt_lookup)"])
def test_a_persistent_trie_gains_nothing_under_none_and_grows_under_stream(
    repetitive_suite: Path, tiny_target: Path, tmp_path: Path, method: str
) -> None:
    """Measurement 6. Answers of near-equal questions share long runs: under `stream` later questions profit."""
    name = method.partition("(")[0]
    accepted = {}
    for carry in ("none", "stream"):
        settings = (Setting("hybrid", "inner", "prompt_lookup"),) if name == "hybrid" else ()
        store = tmp_path / carry
        asked = _request(
            repetitive_suite, tiny_target, store, methods=(name,), settings=settings, carry=carry, repeats=3
        )
        outcome = run(asked, Silent())
        [row] = [row for row in to_json(outcome.summary)["rows"] if row["method"] == method]
        assert row["equality"]["identical"] == 12 and not outcome.failed_checks
        accepted[carry] = _accepted(store, outcome.run_id, method)
    assert accepted["none"][0] == accepted["none"][1] == accepted["none"][2]
    # Each repeat from the snapshot again.
    assert accepted["stream"][0] == accepted["stream"][1] == accepted["stream"][2], (
        "each repeat from the snapshot again"
    )
    first, *later = accepted["stream"][0]
    assert accepted["stream"][0][first] == accepted["none"][0][first], "nothing was answered before the first question"
    assert sum(accepted["stream"][0][each] for each in later) > sum(accepted["none"][0][each] for each in later)


def test_without_restoring_the_trie_would_answer_from_memory(
    repetitive_suite: Path, tiny_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above."""
    from specbench.bench.runner import _Run

    monkeypatch.setattr(_Run, "_restore", lambda *_: None)
    store = tmp_path / "store"
    found = _accepted(store, run(_request(repetitive_suite, tiny_target, store), Silent()).run_id, "suffix")
    assert sum(found[2].values()) > sum(found[0].values())


def test_a_wrapped_method_is_recorded_with_its_options(
    repetitive_suite: Path, tiny_target: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    asked = _request(
        repetitive_suite,
        tiny_target,
        store,
        methods=("hybrid",),
        settings=(Setting("draft_model", "model", str(tiny_target)), Setting("draft_model", "num_tokens", "3")),
        grid=(GridAxis("hybrid", "inner", ("draft_model", "prompt_lookup")),),
        repeats=1,
        batch_size=2,
    )
    outcome = run(asked, Silent())
    records = {each.label: each for each in read_manifest(paths.run_dir(store, outcome.run_id)).methods}
    assert {"hybrid(draft_model)", "hybrid(prompt_lookup)"} < records.keys()
    record = records["hybrid(draft_model)"]
    assert record.name == "hybrid" and record.weights_hash and record.num_parameters > 0
    assert record.options["inner"] == "draft_model"
    assert record.options["draft_model.num_tokens"] == 3 and record.options["draft_model.model"] == str(tiny_target)
    assert records["hybrid(prompt_lookup)"].options["prompt_lookup.num_tokens"] == 10
    for row in to_json(outcome.summary)["rows"]:
        assert row["equality"]["identical"] == 4


def test_a_wrapped_methods_options_vary_inside_what_wraps_it(tiny_suite: Path, tiny_target: Path) -> None:
    asked = RunRequest(
        suite=str(tiny_suite),
        target=str(tiny_target),
        methods=("hybrid",),
        settings=(Setting("hybrid", "inner", "prompt_lookup"),),
        grid=(GridAxis("prompt_lookup", "num_tokens", ("2", "4")), GridAxis("hybrid", "max_tokens", ("8",))),
    )
    found = {each.label: each.options for each in competitors(asked)[2:]}
    assert list(found) == [
        "hybrid(prompt_lookup)[max_tokens=8,prompt_lookup.num_tokens=2]",
        "hybrid(prompt_lookup)[max_tokens=8,prompt_lookup.num_tokens=4]",
    ]
    assert [options["prompt_lookup.num_tokens"] for options in found.values()] == [2, 4]


def test_what_a_wrapped_method_cannot_do_without_may_come_from_the_grid(tiny_suite: Path, tiny_target: Path) -> None:
    asked = RunRequest(
        suite=str(tiny_suite),
        target=str(tiny_target),
        methods=("draft_model", "hybrid"),
        grid=(GridAxis("draft_model", "model", ("a", "b")),),
    )
    assert [each.label for each in competitors(asked)[2:]] == [
        "draft_model[model=a]",
        "draft_model[model=b]",
        "hybrid(draft_model)[draft_model.model=a]",
        "hybrid(draft_model)[draft_model.model=b]",
    ]


def test_options_of_a_method_that_nothing_wraps_are_still_refused(tiny_suite: Path) -> None:
    with pytest.raises(UsageError, match="not among the methods"):
        RunRequest(
            suite=str(tiny_suite),
            methods=("hybrid",),
            settings=(Setting("hybrid", "inner", "prompt_lookup"), Setting("draft_model", "num_tokens", "2")),
        )
