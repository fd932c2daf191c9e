"""`specbench trace`: the replay is the timed answer, and every number in it agrees with an independent reckoning."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from specbench import paths
from specbench.api import Silent
from specbench.bench.request import RunRequest, Setting
from specbench.bench.runner import run
from specbench.bench.trace import Overrides, trace
from specbench.errors import EnvironmentFailed, UsageError
from specbench.events import GenerationFinished, Steps, to_line
from specbench.manifest import read_manifest
from specbench.store.attempts import attempt_of
from specbench.store.journal import read_events
from specbench.store.traces import Which, find_group, read_trace, trace_file, write_trace

METHODS = ("autoregressive", "prompt_lookup", "draft_model")


@pytest.fixture(scope="module")
def traced(tmp_path_factory, tiny_target):
    """traced(**changes) -> (store, manifest, replay(method, question, turn, repeat) -> Trace), one run per change."""
    runs = {}
    suite = tmp_path_factory.mktemp("suite") / "tiny.jsonl"
    rows = [
        {"question_id": "one", "category": "x", "turns": ["abc abc abc", "and abc again"]},
        {"question_id": "two", "category": "y", "turns": ["0 1 0 1 0 1"]},
        {"question_id": "three", "category": "y", "turns": ["zz zz"]},
    ]
    suite.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def go(**changes):
        key = repr(sorted(changes.items()))
        if key not in runs:
            store = tmp_path_factory.mktemp("results")
            values = {
                "suite": str(suite), "target": str(tiny_target), "methods": METHODS, "max_new_tokens": 12, "repeats": 1,
                "threads": 1, "store": store, "dtype": "float64",
                "settings": (Setting("draft_model", "model", str(tiny_target)),), **changes,
            }  # fmt: skip
            outcome = run(RunRequest(**values), Silent())
            runs[key] = store, read_manifest(paths.run_dir(store, outcome.run_id))
        store, manifest = runs[key]

        def replay(method, question="one", turn=0, repeat=0):
            which = Which(method, question, turn, repeat)
            return trace(store, manifest, which, overrides=Overrides(), say=lambda words: None)

        return store, manifest, replay

    return go


def _recorded(store, manifest, method, question="one", turn=0, repeat=0):
    group, row = find_group(manifest, Which(method, question, turn, repeat))
    attempt = attempt_of(paths.run_dir(store, manifest.run_id), group.group)
    return attempt.finished[row], [each for each in attempt.rows if each[0] == row]


CASES = [
    pytest.param({}, id="greedy"),
    pytest.param({"temperature": 0.8, "top_p": 0.9}, id="sampled"),
    pytest.param({"temperature": 0.8, "rule": "rejection"}, id="rejection"),
    pytest.param({"repetition_penalty": 1.3, "batch_size": 3}, id="penalty and batch"),
]


@pytest.mark.parametrize("changes", CASES)
@pytest.mark.parametrize("method", METHODS)
def test_a_replay_has_the_tokens_drafts_and_costs_of_the_timed_answer(traced, changes, method):
    """Otherwise the tree of a step would be the tree of another step."""
    store, manifest, replay = traced(**changes)
    found = replay(method)
    answer, steps = _recorded(store, manifest, method)
    assert found.head.matches and found.head.drafts_match and found.head.changed == ()
    assert found.head.tokens == answer.tokens
    kept = [token for step in found.steps for token in step.kept()]
    assert (answer.tokens[0], *kept) == answer.tokens
    assert [len(step.nodes) for step in found.steps] == [row[3] for row in steps]
    assert [step.num_accepted for step in found.steps] == [row[5] for row in steps]
    assert [step.num_truncated for step in found.steps] == [row[7] for row in steps]
    if "batch_size" not in changes:  # a batch's seconds stand on its first live row
        assert [step.cost for step in found.steps] == [tuple(row[-4:]) for row in steps]
    assert all(step.cost is not None for step in found.steps)


def test_later_turns_continue_the_references_first_answer(traced):
    _, _, replay = traced()
    assert replay("prompt_lookup", turn=1).head.matches


def test_carried_state_is_regrown_along_the_repeat(traced, monkeypatch):
    """A suffix memory that has read earlier answers drafts otherwise than an empty one, which the control shows."""
    from specbench.bench import trace as module

    _, manifest, replay = traced(methods=("autoregressive", "suffix"), carry="stream", settings=())
    last = [group for group in manifest.groups if group.method == "suffix"][-1]
    found = replay("suffix", last.question_ids[0], last.turn)
    assert found.head.matches and found.head.drafts_match
    monkeypatch.setattr(module, "finished_groups", lambda folder: set())
    assert not replay("suffix", last.question_ids[0], last.turn).head.drafts_match


@pytest.mark.parametrize("changes", [CASES[0], CASES[1], CASES[3]])
def test_p_and_top_five_are_those_of_a_plain_forward_of_the_same_prefix(traced, changes, tiny_target):
    """By an ordinary causal forward and a softmax written out here: not the engine's cache, tree or processors."""
    _, manifest, replay = traced(**changes)
    found = replay("draft_model")
    model = AutoModelForCausalLM.from_pretrained(tiny_target, dtype=torch.float64)
    prompt = AutoTokenizer.from_pretrained(tiny_target).apply_chat_template(
        [{"role": "user", "content": "abc abc abc"}], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    answer = [found.head.tokens[0]]
    for step in found.steps:
        texts = {-1: [*prompt, *answer]}
        for place, node in enumerate(step.nodes):
            law = _law(model, texts[node.parent], manifest.sampling)
            assert node.p == pytest.approx(float(law[node.token]), abs=1e-9)
            texts[place] = [*texts[node.parent], node.token]
        for slot, text in texts.items():
            top = _law(model, text, manifest.sampling).topk(5)
            assert [p for _, p in step.laws[slot + 1].top] == pytest.approx(top.values.tolist(), abs=1e-9)
        answer += step.kept()
    assert tuple(answer) == found.head.tokens


def _law(model, text, sampling):
    with torch.no_grad():
        logits = model(torch.tensor([text])).logits[0, -1].clone()
    if sampling.repetition_penalty != 1:
        for token in set(text):
            factor = sampling.repetition_penalty
            logits[token] = logits[token] * factor if logits[token] < 0 else logits[token] / factor
    if sampling.temperature:
        logits = logits / sampling.temperature
    law = logits.softmax(-1)
    if sampling.top_p < 1:
        order = law.argsort(descending=True)
        before = law[order].cumsum(0) - law[order]
        law[order[before >= sampling.top_p]] = 0
        law = law / law.sum()
    return law


def test_a_draft_that_is_the_target_has_q_equal_to_p_and_everything_accepted(traced):
    """draft_model here is the target itself, so its law must be the target's, and no node is ever rejected."""
    for changes in ({}, {"temperature": 0.8, "rule": "rejection"}, {"temperature": 0.8, "top_p": 0.9}):
        _, _, replay = traced(**changes)
        nodes = [node for step in replay("draft_model").steps for node in step.nodes]
        assert nodes and {node.verdict for node in nodes} <= {"accepted", "cut"}
        assert [node.q for node in nodes] == pytest.approx([node.p for node in nodes], abs=1e-6)


def test_a_draft_models_tree_is_shown_as_a_tree_with_q_at_every_node(traced, tiny_target):
    """The target is its own draft: each node's q is the target's law there, beside its siblings, below its parent."""
    chosen = {"model": str(tiny_target), "beam_width": "3", "max_nodes": "7"}
    settings = tuple(Setting("draft_model", name, value) for name, value in chosen.items())
    for changes in ({}, {"temperature": 0.8, "top_p": 0.9}):
        _, _, replay = traced(settings=settings, methods=("autoregressive", "draft_model"), **changes)
        steps = [step for step in replay("draft_model").steps if step.nodes]
        nodes = [node for step in steps for node in step.nodes]
        assert [node.q for node in nodes] == pytest.approx([node.p for node in nodes], abs=1e-6)
        assert any(len({node.parent for node in step.nodes}) < len(step.nodes) for step in steps), (
            "siblings stand there"
        )
        assert {"accepted", "rejected"} <= {node.verdict for node in nodes}


def test_a_method_without_a_law_has_no_q(traced):
    _, _, replay = traced()
    nodes = [node for step in replay("prompt_lookup").steps for node in step.nodes]
    assert nodes and all(node.q is None for node in nodes)


def test_verdicts_follow_from_the_tree_and_the_choices_alone(traced):
    """accepted: the parent's choice; rejected: asked and not chosen; unreached: nobody asked."""
    _, _, replay = traced(
        methods=("autoregressive", "prompt_lookup"), settings=(Setting("prompt_lookup", "continuations", "3"),)
    )
    for step in replay("prompt_lookup").steps:
        reached = {-1}
        for place, node in enumerate(step.nodes):
            chosen = step.laws[node.parent + 1].chosen == node.token
            if node.parent not in reached:
                assert node.verdict == "unreached"
            elif chosen:
                assert node.verdict in ("accepted", "cut")
                reached.add(place)
            else:
                assert node.verdict == "rejected"
        assert step.bonus == step.laws[max(reached) + 1].chosen


def test_another_answer_in_the_journal_is_said_and_its_steps_get_no_cost(traced, tmp_path):
    """The journal is what was timed; a replay that disagrees must never be taken for it."""
    store, manifest, _ = traced()
    folder = paths.run_dir(tmp_path, manifest.run_id)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text((paths.run_dir(store, manifest.run_id) / "manifest.json").read_text())
    group, _ = find_group(manifest, Which("prompt_lookup", "one", 0, 0))
    lines = []
    for line in read_events(paths.run_dir(store, manifest.run_id)):
        event = line.event
        if isinstance(event, GenerationFinished) and event.group == group.group:
            tokens = list(event.tokens)
            tokens[4] += 1
            event = dataclasses.replace(event, tokens=tuple(tokens))
        if isinstance(event, Steps) and event.group == group.group:
            event = dataclasses.replace(event, rows=tuple(row._replace(num_accepted=0) for row in event.rows))
        lines.append(to_line(event) + "\n")
    (folder / "events.jsonl").write_text("".join(lines))
    which = Which("prompt_lookup", "one", 0, 0)
    found = trace(tmp_path, manifest, which, overrides=Overrides(), say=lambda words: None)
    assert not found.head.matches and found.head.first_difference == 4
    assert not found.head.drafts_match and all(step.cost is None for step in found.steps)


def test_what_changed_since_the_run_is_listed(traced):
    store, manifest, _ = traced()
    older = manifest.model_copy(update={"provenance": manifest.provenance | {"versions": {"torch": "1.0"}}})
    which = Which("prompt_lookup", "one", 0, 0)
    found = trace(store, older, which, overrides=Overrides(), say=lambda words: None)
    assert any(words.startswith("torch (1.0 then") for words in found.head.changed)


def test_a_question_that_is_asked_otherwise_now_is_refused(traced, tmp_path):
    store, manifest, _ = traced()
    questions = tuple(each.model_copy(update={"prompt_hash": "0" * 16}) for each in manifest.questions)
    changed = manifest.model_copy(update={"questions": questions})
    with pytest.raises(EnvironmentFailed, match="as it was asked"):
        trace(store, changed, Which("prompt_lookup", "one", 0, 0), overrides=Overrides(), say=lambda words: None)


def test_a_run_that_is_being_measured_is_not_disturbed(traced, monkeypatch):
    from specbench.bench import trace as module
    from specbench.store.files import Holder

    _, _, replay = traced()
    monkeypatch.setattr(module, "holder", lambda folder: Holder(1, "here"))
    with pytest.raises(UsageError, match="still being measured"):
        replay("prompt_lookup")


def test_unknown_answers_name_the_known_ones(traced):
    _, _, replay = traced()
    with pytest.raises(UsageError) as caught:
        replay("prompt_lokup")
    assert "prompt_lookup" in caught.value.try_
    with pytest.raises(UsageError, match="no turn 2"):
        replay("prompt_lookup", "two", turn=1)


def test_a_trace_survives_the_file_and_leaves_nothing_beside_it(traced, tmp_path):
    _, _, replay = traced()
    found = replay("draft_model")
    path = write_trace(tmp_path, found)
    assert path == trace_file(tmp_path, found.head.group, found.head.row)
    assert read_trace(path) == found
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"e":"trace","version":99}\n', "newer specbench"),
        ("", "damaged"),
        ("not json\n", "damaged"),
        ('{"e":"trace","version":1}\n', "damaged"),
    ],
)
def test_a_file_that_cannot_be_read_says_which_and_what_to_type(tmp_path, text, words):
    path = tmp_path / "1-0.jsonl"
    path.write_text(text)
    with pytest.raises(EnvironmentFailed, match=words) as caught:
        read_trace(path)
    assert str(path) in caught.value.where and "--again" in caught.value.try_
