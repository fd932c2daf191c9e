"""Learning inside a paired run: a stream that every repeat grows anew, and learning on a clock of its own, shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from specbench import paths
from specbench.adapt.observed import Observed
from specbench.adapt.versions import AdapterStore
from specbench.api import Silent
from specbench.bench.collecting import collect
from specbench.bench.defaults import with_defaults
from specbench.bench.learning import Learning
from specbench.bench.request import GridAxis, RunRequest, Setting
from specbench.bench.runner import run
from specbench.errors import UsageError
from specbench.events import AdapterRound, Measured
from specbench.store.db import open_store
from specbench.store.journal import Journal, read_events
from specbench.store.observed import ObservedLog, observed_file, read_observed
from specbench.store.pairs import fetch
from specbench.store.streams import stream_curves
from specbench.store.summary import to_json
from specbench.suite.schema import Defaults
from tests.bench.learning_runs import learning_request
from tests.bench.test_carry import _accepted
from tests.conftest import Ran


def _measured(store: Path, run_id: str) -> list[Measured]:
    return [line.event for line in read_events(paths.run_dir(store, run_id)) if isinstance(line.event, Measured)]


def test_on_and_off_run_in_one_plan_and_learning_is_charged_beside_the_clock(
    many: Path, tiny_target: Path, tiny_draft: Path, tmp_path: Path
) -> None:
    """Repeats begin from the same state and learn the same; the texts are the target's own; the seconds are shown."""
    store = tmp_path / "store"
    grid = (GridAxis("adaptive_lora", "adapt", ("off", "on")),)
    outcome = run(learning_request(many, tiny_target, tiny_draft, store, grid=grid, carry="stream"), Silent())
    assert outcome.state == "finished" and outcome.failed_checks == ()
    assert outcome.summary is not None
    off, on = (next(r for r in outcome.summary.rows if f"adapt={word}" in r.method) for word in ("off", "on"))
    assert off.learn_s is None and off.speedup_serial is None
    assert on.lossless and on.learn_s is not None and on.learn_s > 0 and on.speedup_serial is not None
    assert on.speedup_total is not None and on.speedup_serial < on.speedup_total
    assert any("learnt for" in note and "serial" in note for note in on.notes)
    assert {"learn_s", "speedup_serial"} <= to_json(outcome.summary)["rows"][0].keys()
    measured = [each for each in _measured(store, outcome.run_id) if each.method == on.method]
    learnt = [each.value for each in measured if each.name == "learn_s"]
    assert len(learnt) == 24 and sum(learnt) == pytest.approx(on.learn_s)
    repeats = _accepted(store, outcome.run_id, on.method)
    assert repeats[0] == repeats[1], "a repeat finds nothing of the one before"
    [kept] = (paths.run_dir(store, outcome.run_id) / "adapters").iterdir()
    answers = list(AdapterStore(kept).rows.read())
    assert answers, "observed answers lie beside the journal"
    _check_observed(store, outcome.run_id, on.method, answers)


def _check_observed(store: Path, run_id: str, method: str, answers: list[Observed]) -> None:
    """What the store tells of each position is what the steps and the file of laws say, version by version."""
    with open_store(paths.store_file(store), read_only=True) as connection:
        seen = fetch(connection, "SELECT * FROM observed_positions WHERE run_id = ? ORDER BY repeat, place", run_id)
        rounds = fetch(connection, "SELECT * FROM adapter_rounds WHERE run_id = ? ORDER BY position", run_id)
        stream = fetch(
            connection, "SELECT * FROM stream_acceptance WHERE run_id = ? AND method = ? ORDER BY repeat, since",
            run_id, method,
        )  # fmt: skip
        curves = stream_curves(connection, run_id)
    assert [(curve.learns, curve.num_repeats) for curve in curves] == [(False, 2), (True, 2)]
    assert sum(point.num_tried for point in curves[1].points) == sum(row["num_tried"] for row in stream)
    assert [(each.outcome, each.version) for each in curves[1].changes] == [
        (r["outcome"], r["version"]) for r in rounds
    ]
    assert all(0 < each.at <= max(row["since"] + row["num_tried"] for row in stream) for each in curves[1].changes)
    assert {row["method"] for row in seen} == {method} and {row["repeat"] for row in seen} == {0, 1}
    # 16 tokens are fewer than per_answer: every position that was tried was observed.
    for repeat in (0, 1):
        mine = [row for row in seen if row["repeat"] == repeat]
        assert [row["place"] for row in mine] == list(range(len(mine)))
        tried = [row for row in stream if row["repeat"] == repeat]
        assert sum(row["num_tried"] for row in tried) == len(mine)
        assert sum(row["num_accepted"] for row in tried) == sum(row["is_accepted"] for row in mine)
        assert [row["since"] for row in tried] == [
            min(row["place"] for row in mine if row["group_id"] == each["group_id"]) for each in tried
        ]
    of_file = sorted(round(overlap, 5) for answer in answers for overlap in answer.overlap_N.tolist())
    first = sorted(row["overlap"] for row in seen if row["repeat"] == 0)
    assert first == pytest.approx(of_file, abs=2e-5), "the file holds each context once: the first repeat's"
    assert rounds and all(row["previous"] < row["version"] for row in rounds if row["outcome"] == "promoted")
    versions = {0, *(row["version"] for row in rounds)}
    assert {row["version"] for row in seen} <= versions
    # Nothing is drafted with before it was promoted.
    for row in seen:
        before = [each for each in rounds if each["group_id"] < row["group_id"]]
        assert row["version"] in {0, *(each["version"] for each in before)}


def test_what_a_run_observed_is_purged_with_its_laws(
    many: Path, tiny_target: Path, tiny_draft: Path, tmp_path: Path, specbench: Callable[..., Ran]
) -> None:
    """Beside the journal and in the store; figures and rounds stay, and ingesting brings nothing back."""
    from specbench.store.ingest import ingest

    store = tmp_path / "store"
    outcome = run(learning_request(many, tiny_target, tiny_draft, store, adapt="on", repeats=1, limit=6), Silent())
    folder = paths.run_dir(store, outcome.run_id)
    before = _counts(store)
    assert before["observed"] > 0 and before["generations"] > 0
    [kept] = (folder / "adapters").iterdir()
    done = specbench("adapt", "purge", "--store", str(kept))
    assert done.code == 0 and f"{before['observed']} observed positions of run {outcome.run_id}" in done.out, done.err
    assert not observed_file(folder).exists() and not list(AdapterStore(kept).rows.read())
    assert _counts(store) == before | {"observed": 0}
    ingest(paths.store_file(store), folder)
    assert _counts(store) == before | {"observed": 0}


def _counts(store: Path) -> dict[str, int]:
    with open_store(paths.store_file(store), read_only=True) as connection:
        tables = ("observed", "adapter_rounds", "generations", "steps")
        return {name: fetch(connection, f"SELECT count(*) AS num FROM {name}")[0]["num"] for name in tables}


def test_without_a_stream_nothing_is_learnt(many: Path, tiny_target: Path, tiny_draft: Path, tmp_path: Path) -> None:
    request = learning_request(many, tiny_target, tiny_draft, tmp_path / "store", limit=3, repeats=1)
    request = RunRequest(**{**vars(request), "settings": (*request.settings, Setting("adaptive_lora", "adapt", "on"))})
    outcome = run(request, Silent())
    assert outcome.summary is not None
    assert not any(each.name == "learn_s" for each in _measured(tmp_path / "store", outcome.run_id))


def test_adapt_on_is_a_stream_and_says_so_on_the_command(tiny_target: Path, tiny_draft: Path, tmp_path: Path) -> None:
    request = learning_request(tmp_path / "s.jsonl", tiny_target, tiny_draft, tmp_path, adapt="on")
    filled = with_defaults(request, Defaults())
    assert filled.request.carry == "stream" and Setting("adaptive_lora", "adapt", "on") in filled.request.settings
    assert "--adapt on" in filled.command and "--carry stream" in filled.command
    assert with_defaults(filled.request, Defaults()).request == filled.request, "filling twice changes nothing"
    off = with_defaults(
        learning_request(tmp_path / "s.jsonl", tiny_target, tiny_draft, tmp_path, adapt="off"), Defaults()
    )
    assert off.request.carry == "none" and Setting("adaptive_lora", "adapt", "off") in off.request.settings


def test_adapt_is_refused_where_it_can_mean_nothing(tiny_target: Path, tiny_draft: Path, tmp_path: Path) -> None:
    suite = tmp_path / "s.jsonl"
    with pytest.raises(UsageError, match="--adapt on learns from one question for the next"):
        learning_request(suite, tiny_target, tiny_draft, tmp_path, adapt="on", carry="none")
    with pytest.raises(UsageError, match="is not a choice of --adapt"):
        learning_request(suite, tiny_target, tiny_draft, tmp_path, adapt="maybe")
    with pytest.raises(UsageError, match="no method of this run learns") as refused:
        with_defaults(RunRequest(suite=str(suite), target="demo", methods=("suffix",), adapt="on"), Defaults())
    assert "adaptive_lora" in str(refused.value.try_)
    for word, said in (("off", "contradict each other"), ("perhaps", "is not of type bool")):
        settings = (Setting("adaptive_lora", "model", str(tiny_draft)), Setting("adaptive_lora", "adapt", word))
        with pytest.raises(UsageError, match=said):
            with_defaults(
                learning_request(suite, tiny_target, tiny_draft, tmp_path, adapt="on", settings=settings),
                Defaults(),
            )
    settings = (Setting("adaptive_lora", "model", str(tiny_draft)), Setting("adaptive_lora", "adapt", "true"))
    request = learning_request(suite, tiny_target, tiny_draft, tmp_path, adapt="on", settings=settings)
    assert with_defaults(request, Defaults()).request.settings == settings, "the same, said in another word"


@pytest.mark.parametrize("adapt", ["on", "off"])
def test_an_adapter_per_system_prompt_is_refused_where_no_question_has_one(
    many: Path, tiny_target: Path, tiny_draft: Path, tmp_path: Path, adapt: str
) -> None:
    request = learning_request(many, tiny_target, tiny_draft, tmp_path / "store", adapt=adapt)
    settings = (*request.settings, Setting("adaptive_lora", "domains", "system"))
    request = RunRequest(**{**vars(request), "settings": settings})
    with pytest.raises(UsageError, match="no question of a suite has one") as caught:
        run(request, Silent())
    assert "domains=category" in caught.value.try_ and "specbench chat" in caught.value.try_
    with pytest.raises(UsageError, match="no question of a suite has one"):
        collect(request, AdapterStore(tmp_path / "adapters"), Silent())


def test_a_stream_that_is_grown_again_tells_its_rounds_and_nothing_twice(tmp_path: Path) -> None:
    """What a resumed run decodes again was told before: its seconds and positions; its versions are new ones."""

    from helpers import requests_for, tokens_of

    from tests.adapt.adapted import engine, learning_drafter, save_draft

    on = engine()
    drafter = learning_drafter(save_draft(tmp_path / "draft"), on, after_positions=5, min_held_out=99)
    on.reserve(drafter.max_nodes)
    competitor = SimpleNamespace(label="adaptive_lora", choice=SimpleNamespace(options={"learning": "concurrent"}))
    contestant: Any = SimpleNamespace(drafter=drafter, competitor=competitor)
    log, said = ObservedLog(tmp_path), list[str]()
    learning = Learning(said.append, log)
    prompts = requests_for([tokens_of(seed, 5) for seed in range(12)], max_new_tokens=8)
    with Journal(tmp_path) as journal:
        on.generate(drafter, prompts[:4])
        learning.between(contestant, 3, journal, is_regrown=True)
        assert not observed_file(tmp_path).exists() and said == []
        competitor.choice.options["learning"] = "serial"
        on.generate(drafter, prompts[4:8])
        learning.between(contestant, 7, journal)
    events = [line.event for line in read_events(tmp_path)]
    first, second = (event for event in events if isinstance(event, AdapterRound))
    assert (first.group, first.is_regrown, first.is_concurrent) == (3, True, False) and first.seconds > 0
    assert (second.group, second.is_regrown, second.outcome) == (7, False, "kept") and len(said) == 1
    assert [event.name for event in events if isinstance(event, Measured)] == ["learn_s"]
    assert {each.group for each in read_observed(tmp_path)} == {7}
