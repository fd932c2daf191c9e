"""A whole run, end to end, on a tiny target: what it counts, what it survives, what it refuses."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import threading
from pathlib import Path

import pytest

from specbench import paths
from specbench.api import Silent
from specbench.bench import runner
from specbench.bench.request import GridAxis, Setting
from specbench.bench.runner import run
from specbench.errors import EnvironmentFailed, UsageError
from specbench.events import GenerationFailed, GenerationFinished, GenerationStarted, Measured, ReferenceFinished
from specbench.manifest import read_manifest
from specbench.store.db import open_store
from specbench.store.journal import read_events
from specbench.store.pairs import fetch
from tests.bench.runs import CHAIN_HEAD, Listening, events_of, request_for, rows_of


def test_a_run_answers_every_question_with_every_method_as_the_target_alone_would(go):
    outcome, events = go()
    rows = rows_of(outcome)
    assert outcome.state == "finished" and not outcome.failed_checks
    assert set(rows) == {"autoregressive", "autoregressive#2", "prompt_lookup"}
    for row in rows.values():
        assert row["num_failed"] == 0 and row["lossless"]
        assert row["equality"] == {"identical": 10, "tie": 0, "numeric": 0, "bug": 0}  # 5 turns x 2 repeats
    assert rows["autoregressive"]["speedup"] == 1.0 and rows["autoregressive"]["speedup_ci"] is None
    answers = {(e.question_id, e.turn): e.tokens for e in events(ReferenceFinished)}
    assert all(e.tokens == answers[e.question_id, e.turn] for e in events(GenerationFinished))


def test_sampled_runs_are_equal_too_and_another_seed_writes_another_text(go):
    first, events = go(temperature=0.9, top_p=0.95)
    assert rows_of(first)["prompt_lookup"]["equality"]["identical"] == 10
    tokens = [e.tokens for e in events(GenerationFinished)]
    second, events = go(temperature=0.9, top_p=0.95, seed=7)
    assert rows_of(second)["prompt_lookup"]["equality"]["identical"] == 10
    assert sorted(tokens) != sorted(e.tokens for e in events(GenerationFinished))


def test_the_second_turn_continues_the_references_first_answer(go):
    _, events = go()
    prompts = {e.num_prompt_tokens for e in events(GenerationStarted) if e.question_id == "two" and e.turn == 1}
    [first] = [e for e in events(ReferenceFinished) if e.question_id == "two" and e.turn == 0]
    # user text, answer text and second user text, each between two special tokens; the prompt ends by <assistant>
    shown = len(first.text.encode())
    assert prompts == {len("hello") + 2 + shown + 2 + len("and again") + 2 + 1}


def test_every_group_is_measured_exactly_once_and_in_the_order_of_the_plan(go, tmp_path):
    outcome, events = go()
    manifest = read_manifest(paths.run_dir(tmp_path / "results", outcome.run_id))
    assert [e.group for e in events(GenerationFinished)] == [g.group for g in manifest.groups]


def test_batches_write_the_same_tokens_as_single_questions(go):
    _, alone = go()
    outcome, batched = go(batch_size=3)
    assert rows_of(outcome)["prompt_lookup"]["equality"]["bug"] == 0
    key = lambda e: (e.method, e.question_id, e.turn, e.repeat)  # noqa: E731
    assert {key(e): e.tokens for e in alone(GenerationFinished)} == {
        key(e): e.tokens for e in batched(GenerationFinished)
    }
    assert all(e.total_s == 0 for e in batched(GenerationFinished) if e.row > 0)


def test_a_run_is_watched_from_beside_and_its_groups_find_their_samples(go, tmp_path):
    """The record of the machine reaches the store by the time at which each generation began."""
    outcome, events = go()
    begins = [e.began_s for e in events(GenerationStarted)]
    assert begins == sorted(begins)
    with open_store(paths.store_file(tmp_path / "results"), read_only=True) as connection:
        [flags] = fetch(connection, "SELECT * FROM device_flags")
        [sampler] = fetch(connection, "SELECT * FROM device_sampler")
    assert flags["num_groups"] == flags["num_dated"] == 30 and flags["num_watched"] > 0
    assert sampler["run_id"] == outcome.run_id and sampler["at_s"] < begins[-1]
    assert not any("not watched" in note for note in outcome.summary.notes)


def test_a_reference_is_kept_and_reused_by_the_next_run(go):
    _, first = go()
    said: list[str] = []
    _, second = go()
    assert [e.tokens for e in first(ReferenceFinished)] == [e.tokens for e in second(ReferenceFinished)]
    assert list((paths.cache_dir() / "references").glob("*.jsonl")), said


def test_prompts_too_long_for_the_target_fail_by_id_and_the_others_go_on(tiny_target, tmp_path, go):
    suite = tmp_path / "long.jsonl"
    suite.write_text(
        '{"question_id": "short", "prompt": "hi"}\n{"question_id": "long", "prompt": "%s"}\n' % ("x" * 300)
    )
    outcome, events = go(suite=str(suite))
    failures = events(GenerationFailed)
    assert {e.question_id for e in failures} == {"long"}
    assert "303 tokens + 12 new ones" in failures[0].error and "256" in failures[0].error
    assert rows_of(outcome)["prompt_lookup"]["num_questions"] == 1
    assert rows_of(outcome)["prompt_lookup"]["num_failed"] > 0


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_question_that_is_refused_is_told_once_and_no_method_is_asked_it(tiny_target, tmp_path, batch_size):
    suite, store, progress = tmp_path / "long.jsonl", tmp_path / "results", Listening()
    rows = [{"question_id": "short", "prompt": "hi"}, {"question_id": "long", "turns": ["x" * 300, "and then?"]}]
    suite.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"question_id": "last", "prompt": "ho"}\n')
    outcome = run(request_for(suite, tiny_target, store, batch_size=batch_size), progress)
    [told] = [line for line in progress.lines if "long" in line]
    assert told.startswith("question long, turn 1: not asked of the methods: ") and "303 tokens" in told
    assert not any(e.question_id == "long" for e in events_of(store, outcome.run_id, GenerationStarted))
    failures = events_of(store, outcome.run_id, GenerationFailed)
    assert {e.turn for e in failures if e.question_id == "long"} == {0, 1}
    if batch_size == 3:  # whoever shares the group fails with it, and its record says with whom
        shared = [e for e in failures if len([f for f in failures if f.group == e.group]) > 1]
        assert {e.question_id for e in shared} > {"long"}
        assert all(e.error.startswith("question long of this group: ") for e in shared)


def test_a_suite_of_which_nothing_fits_is_an_error(tiny_target, tmp_path, go):
    suite = tmp_path / "long.jsonl"
    suite.write_text('{"question_id": "long", "prompt": "%s"}\n' % ("x" * 300))
    with pytest.raises(UsageError, match="303 tokens"):
        go(suite=str(suite))


def test_a_method_that_breaks_on_one_question_fails_there_and_the_run_goes_on(go, plant):
    code = CHAIN_HEAD + (
        "class D(Drafter):\n"
        "    max_nodes = 1\n"
        "    def begin(self, requests):\n"
        "        self.prompt = requests[0].prompt\n"
        "    def draft(self, noise):\n"
        "        if len(self.prompt) == 5:\n"
        "            raise ZeroDivisionError('planted')\n"
        "        return empty(1, torch.device('cpu'))\n"
        "def build(options, target, inner=None):\n"
        "    return D()\n"
    )
    outcome, events = go(methods=("fragile",), methods_dirs=(plant("fragile", code),))
    assert {e.question_id for e in events(GenerationFailed)} == {"four"}
    assert "ZeroDivisionError: planted" in events(GenerationFailed)[0].error
    assert rows_of(outcome)["fragile"]["num_questions"] == 3
    assert rows_of(outcome)["autoregressive"]["num_failed"] == 0


@pytest.mark.parametrize(
    "error", ["torch.OutOfMemoryError('planted')", "RuntimeError('DefaultCPUAllocator: can\\'t allocate memory')"]
)
def test_out_of_memory_fails_the_question_and_says_so(go, plant, error):
    code = CHAIN_HEAD + (
        f"class D(Drafter):\n    def draft(self, noise):\n        raise {error}\n"
        "def build(options, target, inner=None):\n    return D()\n"
    )
    outcome, events = go(methods=("hungry",), methods_dirs=(plant("hungry", code),))
    assert all(e.error.startswith("out of memory") for e in events(GenerationFailed))
    assert rows_of(outcome)["hungry"]["speedup"] is None


def test_nan_logits_fail_the_question(go, monkeypatch):
    from specbench.lm.cached_lm import CachedLM

    right, armed = CachedLM.verify, []
    monkeypatch.setattr(runner, "measure_noise_floor", lambda *_, **__: armed.append(1) or 1e-6)

    def poisoned(self, root_B, tree):
        verified = right(self, root_B, tree)
        if self.lengths[0] > 17 and tree.num_nodes and armed:
            return dataclasses.replace(verified, logits_BMV=verified.logits_BMV * float("nan"))
        return verified

    monkeypatch.setattr(CachedLM, "verify", poisoned)
    _, events = go()
    failures = events(GenerationFailed)
    assert failures and all("NaN" in e.error for e in failures)
    assert {e.method for e in failures} == {"prompt_lookup"}


def test_a_method_whose_answers_differ_without_a_reason_fails_the_run(go, monkeypatch):
    from specbench.engine import accept

    right = accept.walk

    def cheating(chosen_BM, tree):
        return right(tree.tokens_BN.new_full(chosen_BM.shape, 65) if tree.num_nodes else chosen_BM, tree)

    monkeypatch.setattr(accept, "walk", cheating)
    outcome, _ = go()
    assert any("prompt_lookup" in sentence for sentence in outcome.failed_checks)
    row = rows_of(outcome)["prompt_lookup"]
    assert row["equality"]["bug"] > 0 and not row["lossless"] and not row["ranked"]


def test_a_verification_that_is_off_by_a_slot_is_told_at_once_and_its_answers_are_bugs(
    tiny_suite, tiny_target, tmp_path, monkeypatch
):
    """It measures a floor of whole logits of itself, within which every wrong answer would be a tie."""
    from specbench.lm.cached_lm import CachedLM

    right = CachedLM.verify

    def shifted(self, root_B, tree):
        verified = right(self, root_B, tree)
        return dataclasses.replace(verified, logits_BMV=verified.logits_BMV.roll(1, dims=1))

    monkeypatch.setattr(CachedLM, "verify", shifted)
    progress, store = Listening(), tmp_path / "results"
    outcome = run(request_for(tiny_suite, tiny_target, store), progress)
    equality = rows_of(outcome)["prompt_lookup"]["equality"]
    assert equality["bug"] > 0 and equality["tie"] == 0
    [told] = [line for line in progress.lines if "are bugs here, not ties" in line]
    assert outcome.failed_checks[-1] == told and outcome.failed_checks[0].startswith("prompt_lookup: ")
    readings = {e.name: e for e in events_of(store, outcome.run_id, Measured)}
    assert readings["noise_floor"].value == readings["rounding"].value < 1e-3
    assert readings["noise_floor"].detail == told


def test_a_full_disk_stops_the_run_and_keeps_what_was_written(go, tmp_path, monkeypatch):
    from specbench.store import journal

    right, calls = os.write, []

    def full(file, data):
        calls.append(1)
        if len(calls) > 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        return right(file, data)

    monkeypatch.setattr(journal.os, "write", full)
    with pytest.raises(EnvironmentFailed, match=r"(?i)space|full"):
        go()
    monkeypatch.undo()
    [folder] = list((tmp_path / "results" / "runs").iterdir())
    assert any(isinstance(line.event, GenerationFinished) for line in read_events(folder))


def test_a_folder_without_write_permission_is_an_error_that_names_it(tiny_suite, tiny_target, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(EnvironmentFailed) as caught:
        run(request_for(tiny_suite, tiny_target, blocked / "results"), Silent())
    assert "file" in caught.value.where and caught.value.try_.startswith("--store DIR")


def test_a_refused_folder_is_named_in_words(tiny_suite, tiny_target, tmp_path, monkeypatch):
    """By the one that refused, which may be several levels above the run's; no errno, no Python."""

    def refuse(self, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "results"))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(EnvironmentFailed) as caught:
        run(request_for(tiny_suite, tiny_target, tmp_path / "results"), Silent())
    assert caught.value.what == f"no permission to write {tmp_path / 'results'}"


def test_a_dry_run_measures_nothing_and_estimates_the_time(tiny_suite, tiny_target, tmp_path):
    store = tmp_path / "dry"
    outcome = run(request_for(tiny_suite, tiny_target, store, dry_run=True), Silent())
    assert outcome.state == "planned" and outcome.plan is not None
    assert outcome.plan.num_groups == 30 and outcome.plan.methods[1] == "autoregressive#2"
    assert outcome.plan.estimated_s is not None and outcome.plan.estimated_s > 0
    assert not store.exists()


def test_a_grid_makes_one_row_per_value_in_one_plan(go):

    outcome, _ = go(methods=("prompt_lookup",), grid=(GridAxis("prompt_lookup", "num_tokens", ("2", "4")),))
    assert set(rows_of(outcome)) == {
        "autoregressive",
        "autoregressive#2",
        "prompt_lookup[num_tokens=2]",
        "prompt_lookup[num_tokens=4]",
    }


def test_settings_reach_the_method(go):
    outcome, _ = go(settings=(Setting("prompt_lookup", "num_tokens", "1"),), methods=("prompt_lookup",))
    assert len(rows_of(outcome)["prompt_lookup"]["acceptance_by_position"]["proposed"]) <= 1


def test_machine_readings_stand_in_the_journal(go):
    _, events = go()
    names = {e.name for e in events(Measured)}
    assert {"noise_floor", "rounding", "warm_up_s", "rss_bytes", "load_average"} <= names


def test_the_oracle_is_shown_and_never_ranked(go):
    outcome, _ = go(methods=("oracle", "prompt_lookup"))
    row = rows_of(outcome)["oracle"]
    assert row["equality"]["identical"] == 10 and not row["ranked"]
    assert any("control" in note for note in row["notes"])


def test_under_rejection_no_equality_is_claimed_and_typical_is_lossy_and_unranked(go):
    sampled, events = go(temperature=1.0, rule="rejection")
    row = rows_of(sampled)["prompt_lookup"]
    assert row["equality"] is None and row["lossless"]
    assert all(e.equality is None for e in events(GenerationFinished))
    lossy, _ = go(temperature=1.0, rule="typical")
    row = rows_of(lossy)["prompt_lookup"]
    assert not row["lossless"] and not row["ranked"] and lossy.failed_checks == ()


def test_a_pause_waits_between_two_questions_is_on_the_record_and_loses_nothing(go, tmp_path, monkeypatch):
    """Asked for during the third answer, ended a moment later by another thread, as a viewer would."""
    from specbench.bench.runner import _Run
    from specbench.store import pausing

    waited, finished = [], []
    right = _Run._finished

    def then_pause(self, journal, group, cells, result):
        right(self, journal, group, cells, result)
        finished.append(group.group)
        if len(finished) == 3:
            (self._folder / "pause").touch()

    def wait(folder):
        waited.append(len(finished))
        assert pausing.is_asked(folder) and events_of(tmp_path / "results", folder.name, GenerationFinished)
        timer = threading.Timer(0.3, pausing.let_go, [folder])
        timer.start()
        return real(folder)

    real = pausing.wait
    monkeypatch.setattr(_Run, "_finished", then_pause)
    monkeypatch.setattr(pausing, "wait", wait)
    outcome, events = go()
    assert outcome.state == "finished" and waited == [3]
    [paused] = [each for each in events(Measured) if each.name == "paused_s"]
    assert 0.2 < paused.value < 60
    assert rows_of(outcome)["prompt_lookup"]["equality"]["identical"] == 10
    folder = paths.run_dir(tmp_path / "results", outcome.run_id)
    assert not (folder / "pause").exists() and not (folder / "paused").exists()
