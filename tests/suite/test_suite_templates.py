"""Prompts: the tokenizer's own chat template or a named plain one, special tokens once, never silently another."""

from __future__ import annotations

from typing import Any

import pytest

from specbench.errors import UsageError
from specbench.suite import Question, render, render_text, rendered_hash

CHAT = (
    "{{ bos_token }} {% for m in messages %}{{ 'user' if m['role'] == 'user' else 'bot' }} : {{ m['content'] }} "
    "{% endfor %}{% if add_generation_prompt %}bot :{% endif %}"
)
ONE = [{"role": "user", "content": "hi"}]
TWO = [*ONE, {"role": "assistant", "content": " bye"}, {"role": "user", "content": "hi"}]


def test_a_prompt_beyond_the_models_length_is_measured_without_a_warning_of_transformers(
    make_tokenizer: Any,
) -> None:
    """`Running this sequence through the model will result in indexing errors`: it never runs, it is refused."""
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 4
    assert len(render(tokenizer, [{"role": "user", "content": "hi " * 9}], "plain")) == 10
    assert not tokenizer.deprecation_warnings.get("sequence-length-is-longer-than-the-specified-maximum", False)


def test_chat_is_the_tokenizers_template_with_its_bos_once(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(chat_template=CHAT)
    assert tokenizer("hi")["input_ids"] == [0, 3]  # it would add a second one by itself
    ids = render(tokenizer, TWO)
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "<s>",
        "user",
        ":",
        "hi",
        "bot",
        ":",
        "bye",
        "user",
        ":",
        "hi",
        "bot",
        ":",
    ]
    assert ids == tokenizer.apply_chat_template(TWO, add_generation_prompt=True, tokenize=True, return_dict=False)


def test_no_chat_template_is_an_error_that_names_the_plain_ones(make_tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="no chat template") as caught:
        render(make_tokenizer(), ONE)
    for name in ("plain", "alpaca", "vicuna"):
        assert name in caught.value.try_


def test_a_plain_template_is_used_only_when_named(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(chat_template=CHAT)
    assert render_text(tokenizer, ONE, "plain") == "hi"
    assert render(tokenizer, ONE, "plain") == [0, 3]


def test_an_eos_that_the_tokenizer_would_add_never_ends_a_prompt(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(adds_eos=True)
    assert tokenizer("hi")["input_ids"] == [0, 3, 1]
    assert render(tokenizer, ONE, "plain") == [0, 3]


def test_a_bos_in_the_text_is_not_doubled(make_tokenizer: Any) -> None:
    assert render(make_tokenizer(), [{"role": "user", "content": "<s> hi"}], "plain") == [0, 3]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("plain", "hi bye\n\nhi"),
        (
            "alpaca",
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            "\n\n### Instruction:\nhi\n\n### Response:bye\n\n### Instruction:\nhi\n\n### Response:",
        ),
        (
            "vicuna",
            "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
            "detailed, and polite answers to the user's questions. USER: hi ASSISTANT: bye</s>USER: hi ASSISTANT:",
        ),
    ],
)
def test_plain_templates_over_two_turns(make_tokenizer: Any, template: str, text: str) -> None:
    assert render_text(make_tokenizer(), TWO, template) == text


def test_a_system_message_replaces_the_templates_own(make_tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *ONE]
    assert render_text(make_tokenizer(), messages, "vicuna") == "Be brief. USER: hi ASSISTANT:"


def test_braces_and_template_words_in_a_question_stay_text(make_tokenizer: Any) -> None:
    hostile = "{content} {eos} {0} {{ bos_token }} {% raw %}"
    messages = [{"role": "user", "content": hostile}]
    for template in ("plain", "alpaca", "vicuna", "chat"):
        assert hostile in render_text(make_tokenizer(chat_template=CHAT), messages, template)


def test_an_unknown_template_names_the_nearest(make_tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="did you mean 'vicuna'"):
        render(make_tokenizer(), ONE, "vicunna")


def test_a_chat_template_that_refuses_is_a_usage_error(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UsageError, match="roles must alternate"):
        render(tokenizer, ONE)


def question(*turns: str) -> Question:
    return Question(question_id="x", category="c", turns=turns, reference=())


def test_the_rendered_hash_is_the_suites_identity(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(chat_template=CHAT)
    base = rendered_hash(tokenizer, [question("a", "b"), question("c")])
    assert len(base) == 64
    assert base == rendered_hash(tokenizer, [question("a", "b"), question("c")])
    for others in ([question("c"), question("a", "b")], [question("a"), question("b", "c")], [question("a", "b")]):
        assert base != rendered_hash(tokenizer, others)
    assert base != rendered_hash(tokenizer, [question("a", "b"), question("c")], "plain")


def test_the_rendered_hash_ignores_ids_and_categories(make_tokenizer: Any) -> None:
    """Two sources that number their rows differently ask the same questions."""
    named = Question(question_id="81", category="writing", turns=("a",), reference=("r",))
    assert rendered_hash(make_tokenizer(), [named], "plain") == rendered_hash(
        make_tokenizer(), [question("a")], "plain"
    )
