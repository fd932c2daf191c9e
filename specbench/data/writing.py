"""The target answers prompts through specbench's own engine, in batches of similar length; what is done is kept.

`write_responses` is the library's door (`--dataset self`); `specbench data generate` uses the same writer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from specbench import paths, registry
from specbench.data.counts import Counts
from specbench.data.documents import Documents
from specbench.data.loading import Builder
from specbench.data.prompts import Prompt
from specbench.data.rendering import Rendered, Renderer
from specbench.data.responses import Ask, Response, Writer, append, make_room, merged, read_responses
from specbench.engine.decode import Engine
from specbench.engine.graphs import graphs_for
from specbench.engine.stop import Stop
from specbench.errors import EnvironmentFailed, UsageError
from specbench.lm.cached_lm import CachedLM
from specbench.lm.stops import stop_ids_of
from specbench.method import Request
from specbench.sampling import Sampling, sequence_key

Progress = Callable[[int, int, int], None]
"""(answers done, answers wanted, tokens written by this call)."""


class Asked(NamedTuple):
    """Prompts as ids, and how many cannot be asked."""

    asks: list[Ask]
    num_too_long: int
    """Prompt and answer would exceed the target's context."""

    @property
    def unusable(self) -> dict[str, int]:
        """As `Counts` has it."""
        return {"prompt and answer exceed the context": self.num_too_long} if self.num_too_long else {}


def asks_of(prompts: Sequence[Prompt], renderer: Renderer, *, max_new_tokens: int, context_length: int | None) -> Asked:
    """Render prompts. One process's share may hold none that fits: `none_fits` is for who sees all prompts."""
    asks = [Ask(prompt=prompt, ids=tuple(renderer.prompt(prompt.messages))) for prompt in prompts]
    fitting = [ask for ask in asks if context_length is None or len(ask.ids) + max_new_tokens <= context_length]
    return Asked(fitting, len(asks) - len(fitting))


def none_fits(max_new_tokens: int) -> UsageError:
    """There are prompts, and none of them can be asked."""
    return UsageError(
        f"no prompt leaves room for {max_new_tokens} new tokens in the target's context",
        try_="--max-new-tokens with a smaller number",
    )


class EngineWriter:
    """Plain autoregression of our engine. A row's noise depends on seed and prompt id only, never on its group."""

    def __init__(
        self,
        lm: CachedLM,
        renderer: Renderer,
        *,
        sampling: Sampling,
        max_new_tokens: int,
        seed: int,
        batch_size: int,
        max_prompt: int,
    ) -> None:
        """max_prompt: tokens of the longest prompt to come; the cache is made for it."""
        self._tokenizer = renderer.tokenizer
        self._rendering = renderer.key
        self._max_new_tokens = max_new_tokens
        self._seed = seed
        self._batch_size = batch_size
        stop = Stop(ids=stop_ids_of(lm))
        self._engine = Engine(
            lm,
            sampling=sampling,
            max_batch=batch_size,
            max_len=max_prompt + max_new_tokens,
            stop=stop,
            graphs=graphs_for(lm),
        )
        card = registry.card("autoregressive")
        self._drafter = registry.load(card.name)(registry.check_options(card, {}), self._engine.view())

    def groups(self, asks: Sequence[Ask]) -> list[list[Ask]]:
        """Prompts of similar length together; the longest first, so that too small a memory shows at once."""
        ordered = sorted(asks, key=lambda ask: (-len(ask.ids), ask.prompt.prompt_id))
        return [ordered[at : at + self._batch_size] for at in range(0, len(ordered), self._batch_size)]

    def write(self, asks: Sequence[Ask]) -> list[Response]:
        """One group. Raises EnvironmentFailed when the device's memory is too small for it."""
        requests = [
            Request(
                key=sequence_key(seed=self._seed, question_id=ask.prompt.prompt_id, turn=0),
                prompt=ask.ids,
                max_new_tokens=self._max_new_tokens,
            )
            for ask in asks
        ]
        try:
            result = self._engine.generate(self._drafter, requests)
        except torch.OutOfMemoryError as error:
            raise EnvironmentFailed(
                f"out of memory with {len(asks)} prompts of up to {max(len(ask.ids) for ask in asks)} tokens",
                try_=f"--batch-size {max(self._batch_size // 2, 1)}; what was finished is kept",
            ) from error
        return [
            response_of(ask, answer.tokens, answer.finish_reason, tokenizer=self._tokenizer, rendering=self._rendering)
            for ask, answer in zip(asks, result.generations, strict=True)
        ]


def response_of(ask: Ask, ids: Sequence[int], finish_reason: str, *, tokenizer: Any, rendering: str) -> Response:
    """One finished row."""
    text = str(tokenizer.decode(list(ids), skip_special_tokens=True))
    return Response(
        prompt_id=ask.prompt.prompt_id,
        messages=(*ask.prompt.messages, {"role": "assistant", "content": text}),
        prompt_ids=ask.ids,
        answer_ids=tuple(ids),
        finish_reason=finish_reason,
        rendering=rendering,
    )


def write_missing(writer: Writer, asks: Sequence[Ask], done: set[str], path: Path | None) -> Iterator[list[Response]]:
    """Answer what is not done yet, group by group; each is on the disk before it is yielded."""
    missing = [ask for ask in asks if ask.prompt.prompt_id not in done]
    for group in writer.groups(missing):
        responses = writer.write(group)
        if path is not None:
            append(path, responses)
        yield responses


def write_responses(
    lm: CachedLM,
    prompts: Sequence[Prompt],
    *,
    sampling: Sampling,
    max_new_tokens: int,
    seed: int,
    max_len: int,
    batch_size: int = 8,
    template: str | None = None,
    assistant_only: bool = True,
    name: str = "self",
    progress: Progress | None = None,
) -> Documents:
    """The target's own answers as documents with exactly its ids; the stop is among what is learnt.

    Kept in the cache folder under a hash of weights, prompts and settings: a second call reads them, a killed one goes
    on where it was. A model without a weights hash (made in memory) is asked every time. One process at a time: under
    several, let the first write before the others ask. Raises UsageError or EnvironmentFailed.
    """
    renderer, asked = _to_be_asked(lm, prompts, max_new_tokens=max_new_tokens, template=template)
    digest = _digest(lm, renderer, prompts, sampling=sampling, max_new_tokens=max_new_tokens, seed=seed)
    path = _kept(lm, digest)
    found: list[Response] = []
    if path is not None:
        make_room(path)
        found = read_responses(path)
    done = {response.prompt_id for response in found}
    writer = EngineWriter(
        lm,
        renderer,
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        seed=seed,
        batch_size=batch_size,
        max_prompt=max(len(ask.ids) for ask in asked.asks),
    )
    num_tokens = 0
    for responses in write_missing(writer, asked.asks, done, path):
        found += responses
        num_tokens += sum(len(response.answer_ids) for response in responses)
        if progress is not None:
            progress(len(found), len(asked.asks), num_tokens)
    rows, statistics = merged(found)
    builder = Builder(max_len=max_len, assistant_only=assistant_only)
    for row in rows:
        builder.add(row.rendered)
    return builder.finish(
        name=name,
        counts=Counts(num_read=len(prompts), unusable=asked.unusable, num_repeated=statistics.num_repeated),
        fingerprint=digest,
        source=f"written by {lm.name}",
        licence="",
        notes=tuple(statistics.lines()),
    )


def _digest(
    lm: CachedLM, renderer: Renderer, prompts: Sequence[Prompt], *, sampling: Sampling, max_new_tokens: int, seed: int
) -> str:
    """Of all that the answers depend on."""
    identity = {
        "weights": lm.weights_hash,
        "dtype": str(lm.dtype),
        "quantisation": lm.quantisation,
        "sampling": dataclasses.asdict(sampling),
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "rendering": renderer.key,
        "stop_ids": sorted(renderer.stop_ids),
        "prompts": sorted(each.prompt_id for each in prompts),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _kept(lm: CachedLM, digest: str) -> Path | None:
    """Where answers are kept; None for a model that was made in memory."""
    return paths.cache_dir() / "responses" / f"{digest[:32]}.jsonl" if lm.weights_hash else None


def unwritten_responses(
    lm: CachedLM, prompts: Sequence[Prompt], *, sampling: Sampling, max_new_tokens: int, seed: int, max_len: int,
    template: str | None = None, name: str = "self",
) -> Documents | None:  # fmt: skip
    """What `write_responses` would come to at most: its prompts, each with an answer of max_new_tokens tokens that
    stand for others. Nothing is decoded. For plans, never to be learnt from. None where every answer is written and
    `write_responses` would only read. Raises as it does."""
    renderer, asked = _to_be_asked(lm, prompts, max_new_tokens=max_new_tokens, template=template)
    path = _kept(lm, _digest(lm, renderer, prompts, sampling=sampling, max_new_tokens=max_new_tokens, seed=seed))
    if path is not None and path.exists():
        written = {response.prompt_id for response in read_responses(path)}
        if {ask.prompt.prompt_id for ask in asked.asks} <= written:
            return None
    builder = Builder(max_len=max_len)
    for ask in asked.asks:
        answer = [ask.ids[-1]] * max_new_tokens
        builder.add(Rendered([*ask.ids, *answer], [False] * len(ask.ids) + [True] * len(answer)))
    return builder.finish(
        name=name,
        counts=Counts(num_read=len(prompts), unusable=asked.unusable),
        fingerprint="",
        source="",
        licence="",
        notes=(),
    )


def _to_be_asked(
    lm: CachedLM, prompts: Sequence[Prompt], *, max_new_tokens: int, template: str | None
) -> tuple[Renderer, Asked]:
    """Raises UsageError where there is nothing to ask, EnvironmentFailed for a target without a tokenizer."""
    if not prompts:
        raise UsageError("there is no prompt to answer")
    if lm.tokenizer is None:
        raise EnvironmentFailed(f"target {lm.name!r} has no tokenizer files, so no prompt can be made for it")
    renderer = Renderer.of(lm.tokenizer, template=template or "chat", stop_ids=stop_ids_of(lm))
    asked = asks_of(prompts, renderer, max_new_tokens=max_new_tokens, context_length=lm.context_length)
    if not asked.asks:
        raise none_fits(max_new_tokens)
    return renderer, asked
