"""Messages -> token ids and which of them the assistant wrote, exactly.

Where a chat template marks its answers (`{% generation %}`) the marks are taken. Otherwise the conversation is
rendered up to every answer and through it, and the two lengths are the answer's span; that holds only where both are
really prefixes of the whole, which is checked. Spans are of text, so that ids are those of the whole conversation, as
at inference; a tokenizer without character offsets is refused. No torch is used, but the tokenizer's library loads it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from specbench.errors import UsageError, did_you_mean
from specbench.suite.templates import PLAIN_TEMPLATES, TEMPLATE_NAMES, Message, render, render_text

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Rendered(NamedTuple):
    """One document."""

    ids: list[int]
    is_answer: list[bool]
    """Tokens the assistant wrote, its stop token included."""
    is_asked: bool = True
    """What stands before the first answer is what a run asks with. Not so where one token holds the prompt's end and
    the answer's beginning: asked alone, the prompt ends in another one."""


class Refused(NamedTuple):
    """The template does not take this conversation (two system messages, no system message, ...)."""

    reason: str


class _Span(NamedTuple):
    start: int
    stop: int


@dataclass(frozen=True)
class Renderer:
    """One tokenizer under one template.

    stop_ids: the ids that end an answer; the first behind (or inside) an answer belongs to it, what follows it in the
    template does not.
    """

    tokenizer: Any
    template: str
    stop_ids: frozenset[int]
    _has_marks: bool

    @classmethod
    def of(cls, tokenizer: Any, *, template: str = "chat", stop_ids: Iterable[int] = ()) -> Renderer:
        """Raises UsageError for an unknown template, no chat template, or a tokenizer without offsets."""
        if template not in TEMPLATE_NAMES:
            raise UsageError(f"unknown template {template!r}; {did_you_mean(template, TEMPLATE_NAMES)}")
        if not getattr(tokenizer, "is_fast", False):
            raise UsageError(
                "the target's tokenizer gives no character offsets, so answers cannot be told from prompts",
                try_="save it once as tokenizer.json (AutoTokenizer.from_pretrained(...).save_pretrained(DIR))",
            )
        found = frozenset(stop_ids)
        if not found and tokenizer.eos_token_id is not None:
            found = frozenset([tokenizer.eos_token_id])
        has_marks = template == "chat" and _MARKS.search(str(tokenizer.chat_template or "")) is not None
        return cls(tokenizer, template, found, has_marks)

    @cached_property
    def key(self) -> str:
        """The same for renderers that make the same ids of the same text: sha256, 16 digits."""
        facts = {name: fact for name, fact in self.fingerprint.items() if name != "stop_ids"}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Everything ids and masks depend on, but the text."""
        return {
            "tokenizer": self.tokenizer.backend_tokenizer.to_str(),
            "special": {key: str(value) for key, value in self.tokenizer.special_tokens_map.items()},
            "chat_template": str(self.tokenizer.chat_template) if self.template == "chat" else "",
            "template": self.template,
            "stop_ids": sorted(self.stop_ids),
        }

    def text(self, text: str) -> Rendered:
        """Plain text, with the special tokens the tokenizer adds by itself; everything counts as answer."""
        ids = [int(token) for token in self.tokenizer(text)["input_ids"]]
        return Rendered(ids, [True] * len(ids))

    def conversation(self, messages: Sequence[Message]) -> Rendered | Refused:
        """A conversation that ends with an answer. Raises UsageError where answers cannot be told from the rest."""
        if self.template != "chat":
            return self._plain(messages)
        if not self.tokenizer.chat_template:
            render_text(self.tokenizer, messages)  # raises: it knows what to type instead
        from jinja2 import TemplateError  # 30 ms, and transformers has it loaded once a template is rendered

        try:
            rendered = self._marked(messages) if self._has_marks else None
            if rendered is None or not any(rendered.is_answer):
                rendered = self._incremental(messages)
            return self._checked(rendered, messages)
        except TemplateError as error:
            return Refused(f"the chat template refuses it: {error}")

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids that ask for the next answer."""
        return render(self.tokenizer, messages, self.template)

    # --- the three ways --------------------------------------------------------------------------------------------

    def _marked(self, messages: Sequence[Message]) -> Rendered:
        coded = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True},
        )
        ids = [int(token) for token in coded["input_ids"]]
        is_answer = [bool(flag) for flag in coded["assistant_masks"]]
        firsts = [place for place, flag in enumerate(is_answer) if flag and not (place and is_answer[place - 1])]
        whole = self._chat_text(messages, asks=False)
        ends = self._ends_of_prompts(messages, whole)
        for place in firsts:
            start, stop = coded["offset_mapping"][place]
            # Marked is whatever holds the answer's first character: begun before, it was part of the prompt.
            if any(start < end < stop for end in ends):
                is_answer[place] = False
        return self._closed(ids, is_answer)

    def _ends_of_prompts(self, messages: Sequence[Message], whole: str) -> list[int]:
        """Characters of what stands before each answer, where it is a prefix of the whole."""
        from jinja2 import TemplateError  # as above

        found = []
        for place, message in enumerate(messages):
            if message["role"] == "assistant":
                # A template that takes the whole may refuse a part: what cannot be asked has no end.
                with suppress(TemplateError):
                    found.append(self._chat_text(messages[:place], asks=True))
        return [len(prompt) for prompt in found if whole.startswith(prompt)]

    def _checked(self, rendered: Rendered, messages: Sequence[Message]) -> Rendered:
        """... and whether its first prompt is what `run` asks with."""
        first = next((place for place, message in enumerate(messages) if message["role"] == "assistant"), None)
        if first is None or not any(rendered.is_answer):
            return rendered
        before = rendered.ids[: rendered.is_answer.index(True)]
        try:
            return rendered._replace(is_asked=before == self.prompt(messages[:first]))
        except UsageError:
            # The template refuses what a run would ask with.
            return rendered._replace(is_asked=False)

    def _incremental(self, messages: Sequence[Message]) -> Rendered:
        whole = self._chat_text(messages, asks=False)
        spans = []
        for place, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._chat_text(messages[:place], asks=True)
            if not whole.startswith(before):
                raise _not_a_prefix("up to", place, before, whole)
            through = self._chat_text(messages[: place + 1], asks=False)
            if whole.startswith(through):
                stop = len(through)
            elif whole.startswith(message["content"], len(before)):
                # Templates that write the last answer differently (an empty thought before it) end an earlier one here.
                stop = len(before) + len(message["content"])
            else:
                raise _not_a_prefix("through", place, through, whole)
            spans.append(_Span(len(before), stop))
        return self._tokenised(whole, spans, adds_bos=False)

    def _plain(self, messages: Sequence[Message]) -> Rendered:
        """The named templates: the text before each answer is the prompt that `run` would ask with."""
        pattern = PLAIN_TEMPLATES[self.template]
        head, _, _ = pattern.assistant.partition("{content}")
        spans = []
        whole = ""
        for place, message in enumerate(messages):
            if message["role"] == "assistant":
                content = message["content"] if self.template == "plain" else message["content"].strip()
                before = render_text(self.tokenizer, messages[:place], self.template)
                assert before.startswith(whole), "a plain template is a prefix of its continuation"
                whole = before + head + content
                spans.append(_Span(len(before), len(whole)))
        rendered = self._tokenised(whole, spans, adds_bos=True)
        eos = self.tokenizer.eos_token_id
        if eos is not None and rendered.ids[-1:] != [eos]:
            # These templates write no stop token behind the last answer; without one a drafter would never learn to
            # stop.
            rendered = Rendered([*rendered.ids, int(eos)], [*rendered.is_answer, True])
        return self._checked(rendered, messages)

    # --- shared ----------------------------------------------------------------------------------------------------

    def _chat_text(self, messages: Sequence[Message], *, asks: bool) -> str:
        text = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages], add_generation_prompt=asks, tokenize=False
        )
        assert isinstance(text, str), type(text)
        return text

    def _tokenised(self, text: str, spans: Sequence[_Span], *, adds_bos: bool) -> Rendered:
        coded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = [int(token) for token in coded["input_ids"]]
        offsets = [_Span(*pair) for pair in coded["offset_mapping"]]
        if adds_bos and ids[:1] != [self.tokenizer.bos_token_id]:
            bos = self.tokenizer.bos_token_id
            if bos is not None and self.tokenizer("")["input_ids"][:1] == [bos]:
                ids, offsets = [bos, *ids], [_Span(-1, -1), *offsets]
        # A token belongs to an answer when its text begins in it: one that begins before was part of the prompt.
        is_answer = [any(span.start <= begin < span.stop for span in spans) for begin, _ in offsets]
        return self._closed(ids, is_answer)

    def _closed(self, ids: list[int], is_answer: list[bool]) -> Rendered:
        """Each answer ends with its stop token: taken in where it stands behind, and the end where it stands inside."""
        closed = list(is_answer)
        place = 0
        while place < len(ids):
            if not closed[place]:
                place += 1
                continue
            end = place
            while end < len(ids) and closed[end]:
                end += 1
            # The last one: an answer may quote a stop token's text.
            stops = [index for index in range(place, end) if ids[index] in self.stop_ids]
            if stops:
                closed[stops[-1] + 1 : end] = [False] * (end - stops[-1] - 1)
            elif end < len(ids) and ids[end] in self.stop_ids:
                closed[end] = True
                end += 1
            place = end
        return Rendered(ids, closed)


def _not_a_prefix(what: str, place: int, part: str, whole: str) -> UsageError:
    at = next((i for i, (a, b) in enumerate(zip(part, whole, strict=False)) if a != b), min(len(part), len(whole)))
    return UsageError(
        "the chat template neither marks its answers nor renders a conversation piece by piece: "
        f"{what} message {place + 1} it writes {part[max(at - 20, 0) : at + 20]!r}, "
        f"in the whole {whole[max(at - 20, 0) : at + 20]!r}",
        where=f"character {at}",
        try_="put {% generation %}…{% endgeneration %} around the answer in its chat_template, or --template vicuna",
    )
