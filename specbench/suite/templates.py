"""Messages -> the ids a target is prompted with: its own chat template, or a plain one named on the command line.

Never one in place of the other without being told: the prompt is part of what a number means. No torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from specbench.errors import UsageError, did_you_mean
from specbench.suite.rows import Question

Message = Mapping[str, str]
"""`{"role": "system" | "user" | "assistant", "content": text}`."""


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    chat_template: Any
    bos_token_id: int | None
    eos_token: str | None

    def __call__(self, text: str, *, add_special_tokens: bool = True, verbose: bool = True) -> Any: ...

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, add_generation_prompt: bool, tokenize: bool
    ) -> Any: ...


@dataclass(frozen=True)
class PlainTemplate:
    """`{content}` is the message's text, `{eos}` the tokenizer's end-of-sequence text."""

    system: str
    """Used when the messages bring no system message of their own."""
    after_system: str
    user: str
    assistant: str
    """An earlier answer; the text before it and the generation prompt are both `before_answer`."""
    before_answer: str


PLAIN_TEMPLATES = {
    # The bare text: what a model without instructions continues.
    "plain": PlainTemplate(
        system="", after_system="\n\n", user="{content}", assistant="{content}\n\n", before_answer=""
    ),
    # Stanford Alpaca's prompt without an input.
    "alpaca": PlainTemplate(
        system="Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.",
        after_system="\n\n",
        user="### Instruction:\n{content}\n\n",
        assistant="{content}\n\n",
        before_answer="### Response:",
    ),
    # FastChat's vicuna_v1.1.
    "vicuna": PlainTemplate(
        system="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
        after_system=" ",
        user="USER: {content} ",
        assistant=" {content}{eos}",
        before_answer="ASSISTANT:",
    ),
}
CHAT = "chat"
"""The target's own."""
TEMPLATE_NAMES = (CHAT, *PLAIN_TEMPLATES)


def render_text(tokenizer: Tokenizer, messages: Sequence[Message], template: str = "chat") -> str:
    """The prompt as text, generation prompt included; a BOS is in it only if the chat template writes one.

    Raises UsageError for an unknown template, a tokenizer without a chat template, or messages the template refuses.
    """
    if template == "chat":
        return _render_chat(tokenizer, messages)
    plain = PLAIN_TEMPLATES.get(template)
    if plain is None:
        raise UsageError(f"unknown template {template!r}; {did_you_mean(template, TEMPLATE_NAMES)}", where="--template")
    own_system = [message["content"] for message in messages if message["role"] == "system"]
    system = "\n".join(own_system) or plain.system
    parts = [system + plain.after_system] if system else []
    for message in messages:
        if message["role"] == "user":
            parts.append(_fill(plain.user, message["content"], tokenizer))
        elif message["role"] == "assistant":
            # Named templates bring their own white space around an answer; `plain` continues text as it stands.
            content = message["content"] if template == "plain" else message["content"].strip()
            parts.append(plain.before_answer + _fill(plain.assistant, content, tokenizer))
        else:
            assert message["role"] == "system", message["role"]
    return "".join(parts) + plain.before_answer


def render(tokenizer: Tokenizer, messages: Sequence[Message], template: str = "chat") -> list[int]:
    """The prompt's ids, generation prompt included, with the tokenizer's BOS at most once and never its EOS.

    Under `chat` the special tokens are the template's alone; a plain template gets the BOS that the tokenizer would
    put before any text. Raises UsageError as `render_text`.
    """
    text = render_text(tokenizer, messages, template)
    # verbose: transformers would warn of a text beyond the model's length; the engine refuses it, by question.
    ids = [int(token) for token in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
    if template == "chat":
        return ids
    bos = tokenizer.bos_token_id
    by_itself = tokenizer(text, verbose=False)["input_ids"]
    wants_bos = bos is not None and by_itself[:1] == [bos] and ids[:1] != [bos]
    return [bos, *ids] if wants_bos and bos is not None else ids


def rendered_hash(tokenizer: Tokenizer, questions: Iterable[Question], template: str = "chat") -> str:
    """A suite's identity (measurement 16): sha256 over the questions in order, first turns rendered, later ones raw.

    Later turns follow an answer, so only their own text can belong to the suite.
    """
    digest = hashlib.sha256()
    for question in questions:
        first = render_text(tokenizer, [{"role": "user", "content": question.turns[0]}], template)
        for text in (first, *question.turns[1:]):
            raw = text.encode()
            digest.update(len(raw).to_bytes(8, "big") + raw)
        digest.update(b"\xff" * 8)  # no text is that long: where one question ends stays part of the identity
    return digest.hexdigest()


def _render_chat(tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    if not tokenizer.chat_template:
        raise UsageError(
            "the target's tokenizer has no chat template",
            where="--template chat",
            try_="--template plain (the bare text), or --template alpaca or vicuna if it was trained on that form",
        )
    from jinja2 import TemplateError  # 30 ms, and transformers has it loaded once a template is rendered

    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages], add_generation_prompt=True, tokenize=False
        )
    except TemplateError as error:
        raise UsageError(
            f"the target's chat template refuses these messages: {error}",
            where="--template chat",
            try_=f"--template {' | '.join(PLAIN_TEMPLATES)}",
        ) from error
    assert isinstance(text, str), type(text)
    return text


def _fill(pattern: str, content: str, tokenizer: Tokenizer) -> str:
    # replace, not format: a question may hold braces. The end text first, so that a question cannot smuggle one in.
    return pattern.replace("{eos}", tokenizer.eos_token or "").replace("{content}", content)
