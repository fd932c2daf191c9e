"""Masks are exact: what is learnt is what the assistant wrote and its stop, on every kind of template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from specbench.data.rendering import Refused, Rendered, Renderer
from specbench.errors import UsageError
from specbench.suite import render

from .conftest import CHATML, MakeTokenizer, turn

TALK = [turn("user", "Hi 12?"), turn("assistant", " Yes, 3. "), turn("user", "más"), turn("assistant", "no\nnever")]


def rendered(renderer: Renderer, messages: Sequence[dict[str, str]] = TALK) -> Rendered:
    found = renderer.conversation(messages)
    assert isinstance(found, Rendered), found
    assert len(found.ids) == len(found.is_answer)
    return found


def learnt(tokenizer: Any, found: Rendered) -> list[str]:
    """The text of every learnt stretch."""
    texts, stretch = [], []
    for token, flag in zip([*found.ids, 0], [*found.is_answer, False], strict=True):
        if flag:
            stretch.append(token)
        elif stretch:
            texts.append(tokenizer.decode(stretch))
            stretch = []
    return texts


def without_marks(tokenizer: Any) -> Any:
    """The same template unmarked; a tag stays in each place, because Jinja drops the newline behind one."""
    template = tokenizer.chat_template.replace("{% generation %}", "{% if true %}")
    tokenizer.chat_template = template.replace("{% endgeneration %}", "{% endif %}")
    return tokenizer


def test_marked_answers_and_their_stops_are_learnt(demo_tokenizer: Any) -> None:
    found = rendered(Renderer.of(demo_tokenizer))
    assert learnt(demo_tokenizer, found) == [" Yes, 3. <|end|>", "no\nnever<|end|>"]


def test_a_template_without_marks_gives_the_same_ids_and_mask(demo_tokenizer: Any) -> None:
    marked = rendered(Renderer.of(demo_tokenizer))
    assert rendered(Renderer.of(without_marks(demo_tokenizer))) == marked


def test_what_stands_before_an_answer_is_the_prompt_that_run_asks_with(demo_tokenizer: Any) -> None:
    found = rendered(Renderer.of(demo_tokenizer))
    prompt = render(demo_tokenizer, TALK[:1])
    assert found.ids[: len(prompt)] == prompt
    assert found.is_answer.index(True) == len(prompt)


def test_a_newline_behind_the_stop_token_is_not_learnt(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(CHATML)
    assert learnt(tokenizer, rendered(Renderer.of(tokenizer))) == [" Yes, 3. <|im_end|>", "no\nnever<|im_end|>"]


def test_a_stop_token_outside_the_marks_is_learnt(make_tokenizer: MakeTokenizer) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = make_tokenizer(template)
    assert learnt(tokenizer, rendered(Renderer.of(tokenizer))) == [" Yes, 3. <|im_end|>", "no\nnever<|im_end|>"]


def test_an_earlier_answer_that_is_written_otherwise_than_the_last_is_found(make_tokenizer: MakeTokenizer) -> None:
    """Qwen3's way: an empty thought before the last answer alone."""
    template = CHATML.replace(
        "{{ m['content'] }}", "{% if m['role'] == 'assistant' and loop.last %}(think){% endif %}{{ m['content'] }}"
    )
    tokenizer = make_tokenizer(template)
    texts = learnt(tokenizer, rendered(Renderer.of(tokenizer)))
    assert texts == [" Yes, 3. <|im_end|>", "(think)no\nnever<|im_end|>"]


def test_a_template_that_changes_what_it_wrote_is_refused_with_the_place(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("{{ messages | length }} turns\n" + CHATML)
    with pytest.raises(UsageError, match=r"neither marks its answers nor .* message 2 it writes '1 turns") as caught:
        Renderer.of(tokenizer).conversation(TALK)
    assert "generation" in caught.value.try_


def test_a_conversation_the_template_refuses_is_a_counted_reason(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer("{{ raise_exception('System role not supported') }}")
    found = Renderer.of(tokenizer).conversation(TALK)
    assert found == Refused("the chat template refuses it: System role not supported")


def test_a_tokenizer_without_chat_template_is_told_the_plain_ones(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(UsageError, match="no chat template") as caught:
        Renderer.of(make_tokenizer(None)).conversation(TALK)
    assert "--template" in caught.value.try_


@pytest.mark.parametrize("template", ["plain", "alpaca", "vicuna"])
def test_plain_templates_end_the_last_answer_with_the_stop_and_ask_as_run_does(
    make_tokenizer: MakeTokenizer, template: str
) -> None:
    tokenizer = make_tokenizer(None)
    found = rendered(Renderer.of(tokenizer, template=template))
    prompt = render(tokenizer, TALK[:3], template)
    assert found.ids[: len(prompt)] == prompt
    assert all(found.is_answer[len(prompt) :])
    assert tokenizer.decode(found.ids[len(prompt) :]).strip() == "no\nnever<|im_end|>"
    assert not any(found.is_answer[: len(render(tokenizer, TALK[:1], template))])


def test_unknown_template_names_the_nearest(demo_tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="did you mean 'vicuna'"):
        Renderer.of(demo_tokenizer, template="vicunia")


@pytest.mark.parametrize("folder", ["tokenizers/vicuna-7b-v1.3", "models/tiny-instruct"])
def test_real_tokenizers_learn_answers_and_stops_alone(shared: Path, folder: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / folder)
    found = rendered(Renderer.of(tokenizer))
    texts = learnt(tokenizer, found)
    assert [text.strip() for text in texts] == [
        f" Yes, 3. {tokenizer.eos_token}".strip(),
        f"no\nnever{tokenizer.eos_token}",
    ]
    # The last of a learnt stretch is the stop id, once.
    assert [token for token, flag in zip(found.ids, found.is_answer, strict=True) if flag].count(
        tokenizer.eos_token_id
    ) == 2


def test_gpt2_has_no_template_of_its_own_and_takes_a_plain_one(shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "gpt2")
    found = rendered(Renderer.of(tokenizer, template="alpaca"), TALK[:2])
    assert learnt(tokenizer, found) == ["Yes, 3.<|endoftext|>"]


@pytest.mark.parametrize("has_marks", [True, False])
def test_a_token_that_begins_in_the_prompt_is_no_answer_and_its_prompt_is_not_what_run_asks(
    demo_tokenizer: Any, has_marks: bool
) -> None:
    """One token holds the newline that ends the prompt and the answer's first characters; asked alone it is another."""
    tokenizer = demo_tokenizer if has_marks else without_marks(demo_tokenizer)
    renderer = Renderer.of(tokenizer)
    for content, is_asked in (("hello", True), ("  lead", False), ("\n\nx", False), ("  ", False)):
        talk = [turn("user", "q"), turn("assistant", content), turn("user", "more"), turn("assistant", content)]
        found = rendered(renderer, talk)
        first, prompt = found.is_answer.index(True), renderer.prompt(talk[:1])
        assert found.is_asked is is_asked is (found.ids[:first] == prompt), content
        assert tokenizer.decode(found.ids[:first]).startswith(tokenizer.decode(prompt)), (
            "nothing of the prompt is learnt"
        )
        texts = learnt(tokenizer, found)
        assert texts[0] == texts[1] and (content + "<|end|>").endswith(texts[0])
    assert rendered(Renderer.of(tokenizer, template="plain")).is_asked


def test_a_conversation_whose_prompt_a_marked_template_refuses_is_learnt_and_not_asked(demo_tokenizer: Any) -> None:
    template = (
        "{% if messages|length < 2 %}{{ raise_exception('too short') }}{% endif %}" + demo_tokenizer.chat_template
    )
    demo_tokenizer.chat_template = template
    found = rendered(Renderer.of(demo_tokenizer), TALK[:2])
    assert learnt(demo_tokenizer, found) == [" Yes, 3. <|end|>"] and not found.is_asked
