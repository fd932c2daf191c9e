"""Tuning: what is tried, what is predicted, and that the simulated acceptance is the one that a run then measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specbench import registry
from specbench.api import Silent
from specbench.bench.candidates import Tuned, combinations, interpolate
from specbench.bench.defaults import with_defaults
from specbench.bench.request import GridAxis, RunRequest, Setting
from specbench.bench.tuning import confirm, predict
from specbench.card import Card
from specbench.errors import UsageError
from specbench.store.db import open_store
from specbench.store.summary import summarise
from specbench.suite import Defaults


@pytest.fixture
def ask(tmp_path: Path, tiny_target: Path):
    """ask(method, **changes) -> a filled request over three one-turn questions."""
    file = tmp_path / "turns.jsonl"
    rows = [{"question_id": str(n), "turns": [text]} for n, text in enumerate(["abc abc abc", "0 1 0 1", "zz"])]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(method: str, **changes: Any) -> RunRequest:
        values = {
            "suite": str(file),
            "target": str(tiny_target),
            "methods": ("autoregressive", method),
            "max_new_tokens": 24,
            "repeats": 1,
            "threads": 1,
            "batch_size": 1,
            "store": tmp_path / "results",
            **changes,
        }
        return with_defaults(RunRequest(**values), Defaults()).request

    return make


def tune(request: RunRequest, method: str, *, top: int = 3) -> Tuned:
    """As the command does it."""
    found = predict(request, method, Silent(), will_confirm=top > 0)
    return confirm(found, request, method, Silent(), top=top) if top else found


def test_the_simulated_acceptance_is_what_the_confirming_run_counts(ask, tmp_path: Path) -> None:
    axes = (GridAxis("prompt_lookup", "num_tokens", ("1", "3", "6")),)
    found = tune(ask("prompt_lookup", grid=axes), "prompt_lookup", top=2)
    assert {each.options for each in found.candidates} == {(("num_tokens", n),) for n in ("1", "3", "6")}
    assert [each.predicted for each in found.candidates] == sorted(
        (c.predicted for c in found.candidates), reverse=True
    )
    assert {each.options for each in found.confirmed} == {each.options for each in found.candidates[:2]}
    with open_store(tmp_path / "results" / "specbench.duckdb", read_only=True) as store:
        rows = {row.method: row for row in summarise(store, found.run_id).rows}
    for each in found.candidates[:2]:
        [(name, value)] = each.options
        assert rows[f"prompt_lookup[{name}={value}]"].acceptance_length == pytest.approx(each.acceptance_length)
    for each in found.confirmed:
        assert each.decode is not None and each.speedup is not None and each.speedup_ci is not None
    # On a machine too busy for ranks, what was measured decides nothing.
    chosen = found.confirmed[0] if found.confirmed[0].rank is not None else found.candidates[0]
    assert f"--set prompt_lookup.num_tokens={chosen.options[0][1]}" in found.command
    assert found.state == "finished" and found.failed_checks == () and found.choice
    assert "--limit" not in found.command and "--variant" not in found.command


def test_at_a_temperature_it_is_exact_too(ask, tmp_path: Path) -> None:
    axes = (GridAxis("prompt_lookup", "num_tokens", ("4",)),)
    found = tune(ask("prompt_lookup", grid=axes, temperature=1.0), "prompt_lookup", top=1)
    with open_store(tmp_path / "results" / "specbench.duckdb", read_only=True) as store:
        row = next(row for row in summarise(store, found.run_id).rows if row.method.startswith("prompt_lookup"))
    assert row.acceptance_length == pytest.approx(found.candidates[0].acceptance_length)


def test_what_the_method_was_set_to_stays_set(ask) -> None:
    """Weights above all: no trained method can be tuned without."""
    axes = (GridAxis("prompt_lookup", "num_tokens", ("4",)),)
    loose, strict = (
        tune(ask("prompt_lookup", grid=axes, settings=settings), "prompt_lookup", top=0)
        for settings in ((), (Setting("prompt_lookup", "min_ngram", "3"), Setting("prompt_lookup", "max_ngram", "3")))
    )
    assert strict.candidates[0].acceptance_length < loose.candidates[0].acceptance_length


def test_nothing_is_confirmed_where_nothing_was_asked(ask, tmp_path: Path) -> None:
    axes = (GridAxis("prompt_lookup", "num_tokens", ("1", "2")),)
    found = tune(ask("prompt_lookup", grid=axes), "prompt_lookup", top=0)
    assert found.confirmed == () and found.run_id == ""
    assert not (tmp_path / "results" / "runs").exists()
    costs = dict(found.verify_cost)
    assert list(costs) == [0, 1, 2] and all(cost > 0 for cost in costs.values())
    json.dumps(found.as_dict())


def test_a_budget_that_cuts_nothing_and_a_depth_that_cannot_be_are_left_out() -> None:
    request = with_defaults(
        RunRequest(
            suite="demo",
            target="demo",
            methods=("autoregressive", "lstm"),
            limit=1,
            max_new_tokens=6,
            threads=1,
            grid=(
                GridAxis("lstm", "num_tokens", ("2",)),
                GridAxis("lstm", "beam_width", ("1", "2")),
                GridAxis("lstm", "max_nodes", ("0", "3", "9")),
            ),
        ),
        Defaults(),
    ).request
    found = tune(request, "lstm", top=0)
    tried = {(dict(each.options)["beam_width"], dict(each.options)["max_nodes"]): each for each in found.candidates}
    assert set(tried) == {("1", "0"), ("2", "0"), ("2", "3")}
    assert tried["2", "0"].acceptance_length >= tried["2", "3"].acceptance_length
    assert tried["2", "0"].max_nodes == 4 and tried["2", "3"].max_nodes == 3


def test_what_is_tried_comes_from_the_card_or_from_the_grid() -> None:
    card = Card.model_validate(
        {
            "name": "m",
            "title": "",
            "paper": "",
            "kind": "chain",
            "summary": "",
            "options": {
                "a": {"type": "int", "default": 1, "help": ""},
                "b": {"type": "bool", "default": False, "help": ""},
            },
            "tune": {"a": [1, 2], "b": [True, False]},
        }
    )
    plain = RunRequest(suite="demo")
    assert combinations(plain, card) == [(("a", a), ("b", b)) for a in ("1", "2") for b in ("true", "false")]
    said = RunRequest(suite="demo", settings=(Setting("m", "a", "7"),))
    assert combinations(said, card) == [(("b", "true"),), (("b", "false"),)]
    grid = RunRequest(suite="demo", grid=(GridAxis("m", "a", ("5",)),))
    assert combinations(grid, card) == [(("a", "5"),)]
    with pytest.raises(UsageError, match="beside what was set"):
        combinations(RunRequest(suite="demo", settings=(Setting("m", "a", "7"), Setting("m", "b", "true"))), card)
    wide = RunRequest(suite="demo", grid=(GridAxis("m", "a", tuple(str(n) for n in range(201))),))
    with pytest.raises(UsageError, match="201 combinations"):
        combinations(wide, card)


def test_every_card_s_values_are_values_of_its_options() -> None:
    for entry in registry.cards():
        assert entry.card is not None, entry.error
        tunable = entry.card.kind != "baseline" and entry.card.ranked
        assert bool(entry.card.tune) == tunable, entry.name


def test_a_cost_between_two_measured_ones_lies_on_the_line_between_them() -> None:
    cost = {0: 1.0, 4: 1.2, 8: 2.0}
    assert [interpolate(cost, n) for n in (0, 2, 4, 6, 8)] == pytest.approx([1.0, 1.1, 1.2, 1.6, 2.0])
    assert interpolate(cost, 12) == pytest.approx(2.8)
    assert interpolate({0: 1.0}, 5) == 1.0


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"rule": "rejection"}, "depends on what was drafted"), ({"batch_size": 2}, "one question")],
)
def test_what_cannot_be_simulated_is_refused(ask, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tune(ask("prompt_lookup", **changed), "prompt_lookup")


def test_a_split_target_is_refused_before_it_is_loaded(ask, monkeypatch: pytest.MonkeyPatch) -> None:
    request = ask("prompt_lookup")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="split over processes is not tuned"):
        tune(request, "prompt_lookup")
