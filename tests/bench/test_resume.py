"""A run that was cut off goes on; one that cannot says why."""

from __future__ import annotations

import json

import pytest

from specbench import paths, provenance
from specbench.api import Silent
from specbench.bench.request import GridAxis, RunRequest, Variant
from specbench.bench.runner import run
from specbench.bench.session import Session
from specbench.engine import accept
from specbench.errors import EnvironmentFailed, UsageError
from specbench.events import GenerationFinished
from specbench.store.db import open_store
from specbench.store.ingest import ingest
from specbench.store.summary import summarise
from tests.bench.runs import Impatient, events_of, request_for, rows_of
from tests.store.synthetic import write_synthetic


def test_ctrl_c_keeps_what_was_finished_and_resume_completes_it(go, tmp_path, tiny_suite, tiny_target):
    store = tmp_path / "results"
    cut = run(request_for(tiny_suite, tiny_target, store), Impatient(7))
    assert cut.state == "interrupted"
    assert len(events_of(store, cut.run_id, GenerationFinished)) == 7
    whole = run(RunRequest(resume=cut.run_id, store=store), Silent())
    assert whole.state == "finished" and whole.run_id == cut.run_id
    finished = [e.group for e in events_of(store, cut.run_id, GenerationFinished)]
    assert sorted(finished) == sorted(set(finished)) and len(finished) == 30
    fresh, _ = go()
    for method, row in rows_of(fresh).items():
        resumed = rows_of(whole)[method]
        for fact in (
            "num_questions",
            "num_repeats",
            "num_new_tokens",
            "acceptance_length",
            "equality",
            "acceptance_by_position",
        ):
            assert resumed[fact] == row[fact], (method, fact)


def test_a_stream_that_cannot_be_grown_again_is_not_gone_on_with(tmp_path, tiny_suite, tiny_target, monkeypatch):
    """An answer that was there when it was measured is part of what the later ones were to be drafted from."""

    store = tmp_path / "results"
    asked = request_for(tiny_suite, tiny_target, store, methods=("autoregressive", "suffix"), carry="stream")
    cut = run(asked, Impatient(9))
    generate = Session.generate

    def full(self, drafter, cells, **given):
        if drafter.carries == "stream" and [cell.question.question_id for cell in cells] == [failing]:
            raise MemoryError("planted")
        return generate(self, drafter, cells, **given)

    done = events_of(store, cut.run_id, GenerationFinished)
    failing = next(event.question_id for event in done if event.method == "suffix")
    monkeypatch.setattr(Session, "generate", full)
    with pytest.raises(EnvironmentFailed, match=r"suffix answered .* cannot now: .*planted"):
        run(RunRequest(resume=cut.run_id, store=store), Silent())
    assert len(events_of(store, cut.run_id, GenerationFinished)) == 9
    monkeypatch.undo()
    assert run(RunRequest(resume=cut.run_id, store=store), Silent()).state == "finished"


def test_resume_refuses_a_suite_that_changed(tmp_path, tiny_suite, tiny_target):
    store = tmp_path / "results"
    cut = run(request_for(tiny_suite, tiny_target, store), Impatient(1))
    tiny_suite.write_text(tiny_suite.read_text().replace("hello", "other"))
    with pytest.raises(EnvironmentFailed, match="the suite"):
        run(RunRequest(resume=cut.run_id, store=store), Silent())


def test_resume_refuses_another_machine_and_other_software_and_names_both(
    tmp_path, tiny_suite, tiny_target, monkeypatch
):
    """Seconds of two machines are not one run's, and a paired plan would mix them without a word."""

    monkeypatch.setattr(provenance, "git_revision", lambda: provenance.Revision("b" * 40, True))
    store = tmp_path / "results"
    cut = run(request_for(tiny_suite, tiny_target, store), Impatient(1))
    file = paths.run_dir(store, cut.run_id) / "manifest.json"
    whole = json.loads(file.read_text())

    def changed(room, name, value):
        body = json.loads(json.dumps(whole))
        at = body["device"] if room == "device" else body["provenance"][room]
        was, at[name] = at[name], value
        file.write_text(json.dumps(body))
        return was

    for room, name, value, said in (
        ("device", "name", "Another CPU, of the same kind", "the device's name"),
        ("device", "threads", 16, "the number of CPU threads"),
        ("device", "attention", "plain", "the attention"),
        ("versions", "torch", "1.0", "torch"),
        ("versions", "transformers", "1.0", "transformers"),
        ("git", "sha", "a" * 12, "specbench's commit"),
    ):
        now = changed(room, name, value)
        now = now[:12] if name == "sha" else now
        with pytest.raises(EnvironmentFailed) as caught:
            run(RunRequest(resume=cut.run_id, store=store), Silent())
        assert f"{said} ({value} then, {now} now)" in caught.value.what
        assert "start a new run" in caught.value.try_
    # What one side does not know refuses nothing, and a checkout may be dirty or clean.
    changed("git", "dirty", False)
    monkeypatch.setattr(provenance, "git_revision", lambda: None)
    assert run(RunRequest(resume=cut.run_id, store=store), Silent()).state == "finished"


def test_a_bug_found_before_an_interruption_fails_the_resumed_run_too(tmp_path, tiny_suite, tiny_target, monkeypatch):
    """With a store and without one: the exit code is the whole run's."""

    right = accept.walk

    def cheating(chosen_BM, tree):
        return right(tree.tokens_BN.new_full(chosen_BM.shape, 65) if tree.num_nodes else chosen_BM, tree)

    store = tmp_path / "results"
    with monkeypatch.context() as broken:
        broken.setattr(accept, "walk", cheating)
        cut = run(request_for(tiny_suite, tiny_target, store), Impatient(7))
    [said] = cut.failed_checks
    assert said.startswith("prompt_lookup: ") and "no rounding explains it" in said
    whole = run(RunRequest(resume=cut.run_id, store=store), Silent())
    assert whole.state == "finished" and whole.failed_checks == (said,)
    assert rows_of(whole)["prompt_lookup"]["equality"]["bug"] == int(said.split()[1])
    monkeypatch.setattr("specbench.bench.outcome.is_absent", lambda: True)
    again = run(RunRequest(resume=cut.run_id, store=store), Silent())
    assert again.summary is None and again.failed_checks == (said,)


def test_resuming_a_run_that_is_not_there_is_a_usage_error_that_lists_those_that_are(tmp_path):
    """As `results show` has it: the same exit code, the same words."""
    store = tmp_path / "results"
    ingest(paths.store_file(store), write_synthetic(paths.run_dir(store, "run-a"), num_questions=1, repeats=1))
    with pytest.raises(UsageError) as resumed:
        run(RunRequest(resume="run-b", store=store), Silent())
    with open_store(paths.store_file(store), read_only=True) as connection, pytest.raises(UsageError) as shown:
        summarise(connection, "run-b")
    assert resumed.value.as_dict() == shown.value.as_dict()
    assert "did you mean 'run-a'?" in resumed.value.what


def test_resuming_a_training_names_the_command_that_does(tmp_path):
    folder = paths.run_dir(tmp_path, "t")
    folder.mkdir(parents=True)
    (folder / "train.json").write_text("{}")
    with pytest.raises(UsageError, match="t is a training") as caught:
        run(RunRequest(resume="t", store=tmp_path), Silent())
    assert caught.value.try_ == "specbench train --resume t"


def test_variants_compete_with_their_options_together_and_survive_a_resume(go, tmp_path):
    variants = tuple(
        Variant("prompt_lookup", (("num_tokens", a), ("max_ngram", b)), name)
        for a, b, name in (("2", "1", "short"), ("4", "2", ""))
    )
    outcome, _ = go(
        methods=("prompt_lookup",), variants=variants, grid=(GridAxis("prompt_lookup", "min_ngram", ("1",)),)
    )
    labels = {
        "prompt_lookup:short[min_ngram=1]",
        "prompt_lookup[num_tokens=4,max_ngram=2,min_ngram=1]",
    }
    assert set(rows_of(outcome)) == {"autoregressive", "autoregressive#2"} | labels
    again = run(RunRequest(resume=outcome.run_id, store=tmp_path / "results"), Silent())
    assert set(rows_of(again)) == set(rows_of(outcome))


def test_a_path_in_a_label_survives_a_resume_from_another_folder(go, tmp_path, tiny_target, monkeypatch):
    """Paths of a request are kept absolute; rows are called by what was typed."""
    monkeypatch.chdir(tiny_target.parent)
    variants = tuple(
        Variant("draft_model", (("model", tiny_target.name), ("num_tokens", number))) for number in ("1", "2")
    )
    outcome, _ = go(methods=("draft_model",), variants=variants)
    labels = {f"draft_model[model={tiny_target.name},num_tokens={number}]" for number in ("1", "2")}
    assert labels < set(rows_of(outcome))
    monkeypatch.chdir(tmp_path)
    again = run(RunRequest(resume=outcome.run_id, store=tmp_path / "results"), Silent())
    assert set(rows_of(again)) == set(rows_of(outcome))
    folder = tmp_path / "results" / "runs" / outcome.run_id
    events = (folder / "events.jsonl").read_text().splitlines()
    last = max(number for number, line in enumerate(events) if '"generation_finished"' in line)
    (folder / "events.jsonl").write_text("\n".join(events[:last]) + "\n")
    again = run(RunRequest(resume=outcome.run_id, store=tmp_path / "results"), Silent())
    assert again.state == "finished" and set(rows_of(again)) == set(rows_of(outcome))
