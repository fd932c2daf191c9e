"""Where a method is asked to keep its promises: a tiny target under one sampling, its drafter, the answers to reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from specbench import registry
from specbench.card import MADE_HERE
from specbench.conformance.targets import save_draft_of
from specbench.conformance.watch import PlainDrafter, Watched
from specbench.conformance.weights import Made, make_weights
from specbench.engine.answer import Generation
from specbench.engine.decode import Engine
from specbench.engine.graphs import Backend
from specbench.engine.stop import Stop
from specbench.lm.cached_lm import CachedLM
from specbench.method import Drafter, Request, Rule
from specbench.sampling import Sampling, sequence_key

MAX_BATCH = 4
PROMPTS: tuple[tuple[int, ...], ...] = ((1, 2, 5, 0, 0, 5, 6), (9,) * 13, (4, 5), (7, 8, 9, 10) * 4)
"""Ragged; repeated tokens; id 0 inside."""


@dataclass(frozen=True, kw_only=True)
class Stand:
    """One target under one sampling with the method's drafter built for it, and the answers it must reach."""

    engine: Engine
    drafter: Watched
    requests: tuple[Request, ...]
    answers: tuple[Generation, ...]

    def generate(self, places: Sequence[int], *, chunk: int | None = None) -> list[Generation]:
        engine = self.engine if chunk is None else engine_like(self.engine, chunk=chunk)
        return list(engine.generate(self.drafter, [self.requests[place] for place in places]).generations)


class Stands:
    """Makes stands for one method. Drafts of every run are inspected on the way."""

    def __init__(
        self,
        choice: registry.Choice,
        targets: Sequence[CachedLM],
        scratch: Path,
        *,
        methods_dirs: Sequence[Path],
        training: Mapping[str, Any] | None = None,
    ) -> None:
        self._choice = choice
        self._methods_dirs = methods_dirs
        self.targets = targets
        self._scratch = scratch
        self._requires = choice.requires
        self.can_take_any_target = not names_weights(choice)
        self._training = dict(training or {})
        self.made: dict[Path, Made] = {}

    def _made_for(self, choice: registry.Choice, lm: CachedLM) -> registry.Choice:
        """The choice, `model` and `weights` replaced by ones made for this target where a card asks for them."""
        inner = None if choice.inner is None else self._made_for(choice.inner, lm)
        if choice.options.get("weights") == MADE_HERE:
            folder = self._scratch / f"{choice.card.name}-{lm.name}"
            if folder not in self.made:
                self.made[folder] = make_weights(
                    choice.card, lm, folder, training=self._training, methods_dirs=tuple(self._methods_dirs)
                )
            choice = replace(choice, options={**choice.options, "weights": str(folder)})
        if "draft_model" not in choice.card.requires or not self.can_take_any_target:
            return replace(choice, inner=inner)
        folder = self._scratch / lm.name
        if not folder.exists():
            save_draft_of(lm, folder)
        return replace(choice, options={**choice.options, "model": str(folder)}, inner=inner)

    def drafter(self, engine: Engine) -> Drafter:
        """The method, built for the engine's target."""
        choice = self._made_for(self._choice, engine.lm)
        return registry.build(choice, engine.view(), methods_dirs=self._methods_dirs)

    def stand(
        self,
        lm: CachedLM,
        sampling: Sampling,
        *,
        prompts: Sequence[tuple[int, ...]] = PROMPTS,
        stop: Stop | None = None,
        rule: Rule = "coupled",
        max_new_tokens: int = 16,
        has_answers: bool = True,
        first_id: int = 0,
    ) -> Stand:
        """has_answers: make the autoregressive answers first; always done for methods that replay them."""
        max_len = max(len(prompt) for prompt in prompts) + max_new_tokens + len(PROMPTS)
        engine = Engine(
            lm,
            sampling=sampling,
            rule=rule,
            max_batch=max(MAX_BATCH, len(prompts)),
            max_len=max_len,
            stop=stop,
        )
        requests = tuple(
            Request(
                key=sequence_key(seed=0, question_id=str(first_id + place), turn=0),
                prompt=prompt,
                # Different lengths, so that rows leave a batch at different steps.
                max_new_tokens=max_new_tokens + place % len(PROMPTS),
            )
            for place, prompt in enumerate(prompts)
        )
        wants_reference = "reference" in self._requires
        answers: tuple[Generation, ...] = ()
        if has_answers or wants_reference:
            answers = engine.generate(PlainDrafter(engine.view()), requests).generations
        if wants_reference:
            requests = tuple(
                replace(request, reference=answer.tokens) for request, answer in zip(requests, answers, strict=True)
            )
        drafter = Watched(self.drafter(engine), vocab_size=lm.vocab_size)
        engine.reserve(drafter.max_nodes)
        return Stand(engine=engine, drafter=drafter, requests=requests, answers=answers)


def names_weights(choice: registry.Choice) -> bool:
    """Whether the method, or the one it wraps, comes with weights for one target."""
    own = "weights" in choice.card.requires and choice.options.get("weights") != MADE_HERE
    return own or (choice.inner is not None and names_weights(choice.inner))


def engine_like(engine: Engine, *, chunk: int = 512, graphs: Backend | None = None) -> Engine:
    return Engine(
        engine.lm, sampling=engine.sampling, rule=engine.rule, max_batch=engine.max_batch, max_len=engine.max_len,
        max_nodes=engine.max_nodes, prefill_chunk=chunk, stop=engine.stop, graphs=graphs,
    )  # fmt: skip
