"""What a method may carry from one answer to the next: nothing, or a stream's own past."""

from __future__ import annotations

import pytest

from specbench.api import Silent
from specbench.bench.request import RunRequest
from specbench.bench.runner import run
from specbench.events import GenerationFinished, GenerationStarted, Steps
from tests.bench.runs import CHAIN_HEAD, Impatient, events_of, request_for

TRIE = (
    CHAIN_HEAD
    + """
class D(Drafter):
    '''Remembers every answer it has seen and proposes it again: the benchmark's worst cheat.'''
    max_nodes = 6
    carries = 'stream'
    def __init__(self):
        self.memory = {}
    def begin(self, requests):
        self.prompt = requests[0].prompt
    def start(self, len_B, root_B):
        self.text = [int(root_B[0])]
    def draft(self, noise):
        known = self.memory.get(self.prompt, [])
        ahead = known[len(self.text):len(self.text) + 6] if known[:len(self.text)] == self.text else []
        return from_lists([ahead], [list(range(-1, len(ahead) - 1))], device=torch.device('cpu'))
    def commit(self, commit):
        self.text += commit.tokens[0]
        self.memory[self.prompt] = list(self.text)
    def snapshot(self):
        return dict(self.memory)
    def restore(self, snapshot):
        self.memory = dict(snapshot)
def build(options, target, inner=None):
    return D()
"""
)


def accepted_by_repeat(events):
    where = {(e.group, e.row): e.repeat for e in events(GenerationStarted) if e.method == "memory"}
    counts: dict[int, int] = {}
    for batch in events(Steps):
        for row in batch.rows:
            if (batch.group, row.row) in where:
                repeat = where[batch.group, row.row]
                counts[repeat] = counts.get(repeat, 0) + row.num_accepted
    return counts


@pytest.mark.parametrize("carry", ["none", "stream"])
def test_a_memory_of_earlier_repeats_gains_nothing(go, plant, carry):
    """Measurement 6: otherwise a repeat would find the answer in its own memory."""
    _, events = go(methods=("memory",), methods_dirs=(plant("memory", TRIE),), repeats=3, carry=carry)
    accepted = accepted_by_repeat(events)
    assert accepted[0] == accepted[1] == accepted[2] == 0


def test_without_restoring_that_memory_would_show(go, plant, monkeypatch):
    """The control of the test above: with restore() disabled the same method accepts nearly everything in repeat 3."""
    from specbench.bench.runner import _Run

    monkeypatch.setattr(_Run, "_restore", lambda *_: None)
    _, events = go(methods=("memory",), methods_dirs=(plant("memory", TRIE),), repeats=3)
    accepted = accepted_by_repeat(events)
    assert accepted[2] > 20 and accepted[0] == 0


COUNTER = (
    CHAIN_HEAD
    + """
class D(Drafter):
    '''Drafts as many (wrong) tokens as it has answered questions: its state can be read off its steps.'''
    max_nodes = 64
    carries = 'stream'
    def __init__(self):
        self.seen = 0
    def begin(self, requests):
        self.seen += 1
    def draft(self, noise):
        return chain(torch.full((1, min(self.seen, 64)), 7))
    def snapshot(self):
        return self.seen
    def restore(self, snapshot):
        self.seen = snapshot
def build(options, target, inner=None):
    return D()
"""
)


def nodes_by_group(events):
    groups = {e.group for e in events(GenerationFinished) if e.method == "counter"}
    nodes: dict[int, set[int]] = {}
    for batch in events(Steps):
        for row in batch.rows:
            if batch.group in groups:
                nodes.setdefault(batch.group, set()).add(row.num_nodes)
    return [nodes[group] for group in sorted(nodes)]


def test_under_stream_state_grows_along_the_questions_and_every_repeat_starts_afresh(go, plant):
    _, events = go(methods=("counter",), methods_dirs=(plant("counter", COUNTER),), carry="stream")
    assert nodes_by_group(events) == [{1}, {2}, {3}, {4}, {5}] * 2


def test_a_resumed_stream_carries_what_an_uninterrupted_one_would(plant, tmp_path, tiny_suite, tiny_target):
    store = tmp_path / "results"
    folders = (plant("counter", COUNTER),)
    asked = request_for(tiny_suite, tiny_target, store, methods=("counter",), methods_dirs=folders, carry="stream")
    cut = run(asked, Impatient(10))
    run(RunRequest(resume=cut.run_id, store=store), Silent())
    assert nodes_by_group(lambda kind: events_of(store, cut.run_id, kind)) == [{1}, {2}, {3}, {4}, {5}] * 2
