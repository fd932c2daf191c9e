"""A conversation with a tiny target: what it says, what it remembers, how it is stopped, what it tells of itself."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from specbench.chat.commands import Talk
from specbench.chat.conversation import Conversation, Settings
from specbench.chat.reply import Pace, figures_of, heard_of
from specbench.errors import UsageError
from specbench.lm.load import load_lm
from specbench.sampling import Sampling
from tests.bench.conftest import save_tiny_target
from tests.store.crafted import crafted_steps


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    folder = save_tiny_target(tmp_path_factory.mktemp("chat"))
    return load_lm(str(folder), device=torch.device("cpu"), dtype=torch.float64, attention_name="auto")


class Heard:
    """A front that writes down what it is told."""

    def __init__(self):
        self.notes, self.tokens, self.replies, self.num_changes = [], [], [], 0

    def note(self, text, style=""):
        self.notes.append((style, text))

    def heard(self, tokens, figures):
        self.tokens += tokens

    def ended(self, reply):
        self.replies.append(reply)

    def changed(self):
        self.num_changes += 1

    def last(self):
        return self.notes[-1][1]


@pytest.fixture
def talk(lm, tmp_path):
    """talk(**settings) -> (Talk, its front)."""

    def begin(**changes):
        settings = Settings(**{"max_new_tokens": 12, **changes})
        conversation = Conversation(lm, settings, target_is_demo=False)
        front = Heard()
        return Talk(conversation, front, default_file=lambda: tmp_path / "chat.json"), front

    return begin


def test_every_method_says_what_the_target_alone_says_and_tokens_arrive_in_order(talk):
    """Two turns: the second continues the first answer."""
    said = {}
    for method in ("autoregressive", "prompt_lookup", "suffix"):
        for temperature in (0.0, 0.8):
            chat, front = talk(method=method, sampling=Sampling(temperature=temperature))
            assert chat.handle("abc abc abc") and chat.handle("and again abc")
            assert [heard.token for heard in front.tokens] == [t for reply in front.replies for t in reply.tokens]
            said.setdefault(temperature, []).append([reply.tokens for reply in front.replies])
    assert all(each == answers[0] for answers in said.values() for each in answers)


def test_drafted_tokens_are_told_from_the_targets_own(talk):
    chat, front = talk(method="prompt_lookup", max_new_tokens=24)
    chat.handle("abc abc abc abc abc abc")
    figures = front.replies[0].figures
    sources = [heard.source for heard in front.tokens]
    # The end cuts the last step: its accepted tokens may be more than were said.
    assert 0 < sources.count("drafted") <= figures.num_accepted
    assert sources[0] == "plain" and sources.count("bonus") <= figures.num_steps
    assert figures.num_tokens == len(front.replies[0].tokens) == len(front.tokens)


def test_a_step_is_heard_as_drafted_tokens_by_depth_then_the_targets_own():
    row = crafted_steps([(3, 2, 0)])[0]
    assert [(each.source, each.depth) for each in heard_of(row)] == [("drafted", 1), ("drafted", 2), ("bonus", 0)]
    plain = crafted_steps([(0, 0, 0)])[0]
    assert [(each.source, each.depth) for each in heard_of(plain)] == [("plain", 0)]


def test_figures_are_those_of_the_steps():
    """Three steps of a second each behind one of prefill: worked out by hand."""
    rows = [row._replace(end_s=row.end_s + 1.0) for row in crafted_steps([(2, 2, 0), (2, 0, 0), (2, 1, 0)])]
    found = figures_of(rows, prefill_s=1.0)
    assert (found.num_tokens, found.num_steps, found.num_drafted, found.num_accepted) == (7, 3, 6, 3)
    assert found.acceptance_length == 2.0 and found.decode_s == 3.0 and found.tokens_per_s == 2.0
    assert found.asked_at == (3, 2) and found.accepted_at == (2, 1)
    assert found.against(Pace(0.25, 32)) == 0.5


def test_a_stop_ends_the_answer_between_two_steps_and_keeps_what_was_said(talk, monkeypatch):
    from specbench.engine import recorder

    monkeypatch.setattr(recorder, "FLUSH_S", 0.0)
    chat, front = talk(max_new_tokens=60)
    told = front.heard

    def heard(tokens, figures):
        told(tokens, figures)
        chat.conversation.is_stop_asked = figures.num_steps >= 3

    front.heard = heard
    chat.handle("abc abc")
    [reply] = front.replies
    assert reply.finish_reason == "stopped" and len(reply.tokens) == 4
    assert chat.conversation.messages[-1] == {"role": "assistant", "content": reply.text}
    front.heard = told
    assert chat.handle("abc") and front.replies[-1].finish_reason in ("length", "stop_id")


def test_a_conversation_that_outgrows_the_target_is_refused_with_what_makes_room(talk):
    """The tiny target reads 256 tokens."""
    chat, front = talk(max_new_tokens=100)
    chat.handle("x" * 200)
    style, words = front.notes[-1]
    assert style == "bad" and "more than the 256" in words and "/clear" in words and "/set max_new_tokens=" in words
    assert chat.conversation.messages == [] and front.replies == []
    room = words.partition("max_new_tokens=")[2].split(" ")[0]
    chat.handle(f"/set max_new_tokens={room}")
    chat.handle("x" * 200)
    assert len(front.replies) == 1


def test_a_longer_conversation_gets_a_longer_cache_and_says_the_same(talk, monkeypatch):
    from specbench.chat import conversation

    chat, front = talk(method="suffix")
    chat.handle("abc abc abc")
    chat.handle("def")
    monkeypatch.setattr(conversation, "_FIRST_LEN", 32)
    short, other = talk(method="suffix")
    short.handle("abc abc abc")
    short.handle("def")
    assert [reply.tokens for reply in other.replies] == [reply.tokens for reply in front.replies]


def test_eval_compares_with_autoregression_and_leaves_the_state_as_it_was(talk):
    chat, front = talk(method="suffix", max_new_tokens=20)
    chat.handle("abc abc abc abc")
    before = front.replies[0].figures
    chat.handle("/eval")
    style, words = front.notes[-1]
    assert style == "good" and "the texts are equal" in words and "no interval" in words
    found = chat.conversation.evaluate()
    # From the state before that answer: as many drafted and accepted as then, not an answer found in its own memory.
    assert (found.figures.num_drafted, found.figures.num_accepted) == (before.num_drafted, before.num_accepted)
    assert found.speedup == pytest.approx(sum(found.plain_s) / sum(found.method_s))


def test_another_method_can_be_evaluated_on_the_last_answer(talk):
    """It begins with a state of its own kind, not with what the last method remembered."""
    chat, front = talk(method="prompt_lookup", max_new_tokens=20)
    chat.handle("abc abc abc abc")
    chat.handle("/method suffix")
    chat.handle("/eval")
    style, words = front.notes[-1]
    assert style == "good" and "the texts are equal" in words


def test_when_nothing_is_accepted_it_says_so_and_why(talk):
    chat, front = talk(method="prompt_lookup")
    chat.handle("q")
    drafted = front.replies[0].figures.num_drafted
    told = [words for style, words in front.notes if style == "warn"]
    if not drafted:
        assert "drafted nothing" in told[0] and "repeats" in told[0]
    figures = dataclasses.replace(front.replies[0].figures, num_drafted=9, num_accepted=0)
    assert "none of 9 drafted tokens was accepted" in chat.why_nothing(figures)
    stuck = dataclasses.replace(figures, num_accepted=4)
    assert "20 steps in a row" in chat.why_nothing(stuck, was_stuck=True) and not chat.why_nothing(stuck)


def test_a_drafter_of_another_target_is_named_as_the_reason(talk, monkeypatch):
    chat, front = talk(method="prompt_lookup")
    chat.handle("abc")
    chat.conversation._drafter.trained_on = "f" * 64
    figures = dataclasses.replace(front.replies[0].figures, num_drafted=9, num_accepted=0)
    assert "trained on another target" in chat.why_nothing(figures)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/metod", "did you mean '/method'?"),
        ("/method medusa", "medusa"),
        ("/set temperature=warm", "no number"),
        ("/set temperature=-1", "out of range"),
        ("/set top_q=1", "did you mean 'top_p'?"),
        ("/set rule=greedy", "no rule"),
        ("/set prompt_lookup.nothing=1", "unknown option"),
        ("/set suffix.max_tokns=1", "did you mean 'max_tokens'?"),
        ("/set suffix.max_tokens=many", "suffix.max_tokens"),
        ("/set sufix.max_tokens=3", "did you mean 'suffix'?"),
        ("/set foo.bar=1", "foo"),
        ("/set 'x", "close the quotation"),
        ("/set max_new_tokens=0", "out of range"),
        ("/method oracle", "cannot talk"),
        ("/eval", "autoregression against itself"),
        ("/stats", "there is no answer yet"),
    ],
)
def test_what_is_wrong_is_told_and_changes_nothing(talk, line, told):
    chat, front = talk()
    if "prompt_lookup." in line:
        chat.handle("/method prompt_lookup")
    before = chat.conversation.settings
    assert chat.handle(line)
    style, words = front.notes[-1]
    assert style == "bad" and told in words
    assert chat.conversation.settings == before


def test_a_line_that_no_tokenizer_takes_is_told_and_the_next_one_is_answered(talk):
    """Half a surrogate pair: what a terminal's odd byte, or JSON, can hold."""
    begun, front = talk(max_new_tokens=3)
    for line in ("zw\udcf6lf", "/set system=\ud800"):
        assert begun.handle(line) and not front.replies
        assert front.notes[-1] == ("bad", "✗ this line is not valid Unicode · try: type it again, in UTF-8")
    assert begun.handle("abc") and len(front.replies) == 1


def test_settings_are_changed_together_and_listed(talk):
    chat, front = talk()
    chat.handle("/set temperature 0.5")
    chat.handle("/set top_p=0.9 seed=3 max_new_tokens=7 system='be brief'")
    chat.handle("/method prompt_lookup")
    chat.handle("/set prompt_lookup.num_tokens=3")
    chat.handle("/set")
    told = {words.partition("=")[0]: words.partition("=")[2] for _, words in front.notes if "=" in words}
    assert told["temperature"] == "0.5" and told["top_p"] == "0.9" and told["system"] == "be brief"
    assert told["prompt_lookup.num_tokens"] == "3" and told["method"] == "prompt_lookup"
    chat.handle("abc abc abc abc")
    assert len(front.replies[0].tokens) <= 7
    assert not chat.handle("/quit")


def test_clear_forgets_the_messages_and_what_the_method_remembers(talk):
    chat, front = talk(method="suffix", max_new_tokens=20)
    chat.handle("abc abc")
    chat.handle("/clear")
    assert chat.conversation.messages == []
    chat.handle("abc abc")
    assert front.replies[1].tokens == front.replies[0].tokens
    # Had it remembered the answer, it would have drafted all of it.
    assert front.replies[1].figures.num_accepted == front.replies[0].figures.num_accepted


def test_save_writes_the_conversation_once_and_never_over_a_file(talk, tmp_path):
    chat, front = talk()
    chat.handle("abc")
    chat.handle("/save")
    body = json.loads((tmp_path / "chat.json").read_text())
    assert [each["role"] for each in body["messages"]] == ["user", "assistant"]
    assert body["replies"][0]["num_tokens"] == len(front.replies[0].tokens)
    chat.handle("/save")
    assert "is there already" in front.last()


def test_the_pace_is_measured_over_whole_steps_and_stop_ids_come_back(talk):
    chat, _ = talk()
    before = chat.conversation._engine.stop
    pace = chat.conversation.measure_pace()
    assert pace.step_s > 0 and pace.num_steps == 32
    assert chat.conversation._engine.stop is before


def test_oracle_is_refused_before_a_word_is_said(lm):
    with pytest.raises(UsageError, match="cannot talk"):
        Conversation(lm, Settings(method="oracle"), target_is_demo=False)


def test_settings_of_the_engine_leave_what_a_method_remembers_and_others_say_that_it_is_gone(talk):
    """Suffix tries live as long as the conversation: another temperature is no reason to forget them."""
    chat, front = talk(method="suffix")
    chat.handle("abc abc")
    chat.handle("def")
    before = chat.conversation._drafter.snapshot()
    chat.handle("/set temperature=0.5 rule=coupled")
    after = chat.conversation._drafter.snapshot()
    assert before.answers and (after.answers, after.waiting) == (before.answers, before.waiting)
    assert "gone" not in front.last()
    chat.handle("/eval")
    assert "✗" not in front.last(), "the state before the last answer is still known"
    chat.handle("/set suffix.max_tokens=3")
    assert "what suffix remembered of this conversation is gone" in front.last()
    assert not chat.conversation._drafter.snapshot().answers


def test_a_method_without_a_memory_has_nothing_to_lose(talk):
    chat, front = talk(method="prompt_lookup")
    chat.handle("abc abc")
    chat.handle("/method suffix")
    assert "gone" not in front.last()


def test_a_file_in_the_home_of_nobody_is_an_error_of_save(talk):
    chat, front = talk()
    assert chat.handle("/save ~nobody-by-this-name/x.json")
    assert front.notes[-1][0] == "bad" and "nobody's home folder" in front.last()
