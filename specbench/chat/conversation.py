"""A conversation with one loaded target: its messages, the method that answers, the engine they share.

State that outlives an answer (suffix tries, adaptive lengths) lives on, as under `--carry stream`: that is how a method
would be used. Nothing here is a measurement; `specbench run` is.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specbench import registry, suite
from specbench.adapt.adaptation import Adaptation
from specbench.bench.equality import first_difference
from specbench.bench.execution import pick_graphs
from specbench.bench.record import notes_on
from specbench.chat.adapter import Held
from specbench.chat.reply import Evaluation, Heard, Pace, Reply, figures_of, heard_of
from specbench.engine.answer import GroupResult
from specbench.engine.decode import Engine
from specbench.engine.stop import Stop
from specbench.errors import EnvironmentFailed, UsageError
from specbench.events import StepRow
from specbench.lm.cached_lm import CachedLM
from specbench.lm.stops import stop_ids_of
from specbench.method import Drafter, Request, Rule
from specbench.sampling import Sampling, sequence_key

BASELINE = "autoregressive"
_FIRST_LEN = 2048
"""Tokens of cache to begin with; doubled where a conversation needs more."""
_PACE_TOKENS = 33
"""Of plain decoding, the prefill's token included: measured once after as many to warm up."""

Told = Callable[[Sequence[Heard], Sequence[StepRow], float], None]
"""Receives tokens as they come, all steps so far and the prefill's seconds, at most every 100 ms."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `/set` changes."""

    method: str = BASELINE
    said: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Options as given, by method."""
    max_new_tokens: int = 256
    sampling: Sampling = field(default_factory=Sampling)
    rule: Rule = "coupled"
    seed: int = 0
    system: str = ""
    template: str = "chat"


class _StopAsked(Exception):
    """Raised between steps: the answer ends here, the program does not."""


class Conversation:
    """target_is_demo: the embedded drafters are at hand."""

    def __init__(
        self, lm: CachedLM, settings: Settings, *, target_is_demo: bool, methods_dirs: tuple[Path, ...] = ()
    ) -> None:
        if lm.tokenizer is None:
            raise EnvironmentFailed(f"target {lm.name!r} has no tokenizer files, so nothing can be said to it")
        self.lm = lm
        self.tokenizer = lm.tokenizer
        self.messages: list[dict[str, str]] = []
        self.replies: list[Reply] = []
        self.is_stop_asked = False
        """Set from a signal or another thread while an answer is under way."""
        self._is_demo = target_is_demo
        self.methods_dirs = methods_dirs
        self._last: Request | None = None
        self._state_before: object = None
        self.settings = settings
        self._graphs = pick_graphs("auto", lm)
        self._engine = self._make_engine(settings, _FIRST_LEN)
        self._held = Held()
        self.adapter_folder = ""
        """An adapter store that was named and is not drafted from now: `/load` finds its versions."""
        self._drafter = self._make_drafter(settings, self._engine)
        self._held.take(self._drafter.adaptation)
        self.pace: Pace | None = None

    # --- settings -----------------------------------------------------------------------------------------------------

    def _make_engine(self, settings: Settings, max_len: int) -> Engine:
        context = self.lm.context_length
        return Engine(
            self.lm,
            sampling=settings.sampling,
            rule=settings.rule,
            max_len=max_len if context is None else min(max_len, context),
            stop=Stop(ids=stop_ids_of(self.lm)),
            graphs=self._graphs,
        )

    def _make_drafter(self, settings: Settings, engine: Engine) -> Drafter:
        choice = registry.choose(
            settings.method, settings.said, target_is_demo=self._is_demo, methods_dirs=self.methods_dirs
        )
        if "reference" in choice.card.requires:
            raise UsageError(
                f"method {settings.method!r} replays a known answer, so it cannot talk", try_="/method, for the others"
            )
        drafter = registry.build(choice, engine.view(), methods_dirs=self.methods_dirs)
        engine.reserve(drafter.max_nodes)
        return drafter

    def change(self, **changes: Any) -> str:
        """New settings -> what of the method's memory is gone with them; empty where nothing is. Where they cannot be
        had nothing changes. Raises UsageError or EnvironmentFailed."""
        wanted = dataclasses.replace(self.settings, **changes)
        lost = ""
        if not changes.keys() <= {"max_new_tokens", "seed", "system", "template"}:
            before = self._drafter
            engine = self._make_engine(wanted, self._engine.max_len)
            drafter = self._make_drafter(wanted, engine)
            if self._is_same_drafter(wanted):
                # Sampling and rule are the engine's: what was remembered and learnt is as good under others.
                drafter.restore(before.snapshot())
            else:
                self._held.take(drafter.adaptation)
                # The last answer was another drafter's: this one would have begun it with nothing.
                self._state_before = drafter.snapshot()
                lost = self._lost_with(before)
            self._drafter, self._engine = drafter, engine
        self.settings = wanted
        return lost

    def _is_same_drafter(self, wanted: Settings) -> bool:
        """The method and all its options are those of now; of one that wraps another, the other's as well."""
        if wanted.method != self.settings.method:
            return False
        if registry.card(wanted.method, methods_dirs=self.methods_dirs).wraps:
            return wanted.said == self.settings.said
        return wanted.said.get(wanted.method, {}) == self.settings.said.get(wanted.method, {})

    def _lost_with(self, drafter: Drafter) -> str:
        if drafter.carries != "stream" or not self.replies:
            return ""
        words = f"what {self.settings.method} remembered of this conversation is gone"
        adaptation = drafter.adaptation
        if adaptation is None:
            return words
        store = adaptation.store
        kept = "its adapter with it" if store is None else f"answers and adapters stay in {store.folder}"
        return f"{words}, {kept}"

    @property
    def adaptation(self) -> Adaptation | None:
        """What of the drafter learns between answers; None: nothing."""
        return self._drafter.adaptation

    @property
    def notes(self) -> tuple[str, ...]:
        """What must be said of the drafter: above all, that it learnt from another target."""
        return (
            *self._drafter.notes,
            *notes_on(self._drafter, target_hash=self.lm.weights_hash, quantisation=self.lm.quantisation),
        )

    def clear(self) -> None:
        """Forget what was said; what a method remembers of it, too."""
        self.messages, self.replies, self._last = [], [], None
        self._drafter = self._make_drafter(self.settings, self._engine)

    def measure_pace(self) -> Pace:
        """Seconds of a step of plain decoding behind a short prompt; a warm-up of the same length comes first."""
        plain = self._plain()
        prompt = self._render([{"role": "user", "content": "Hello"}])
        request = Request(key=0, prompt=prompt, max_new_tokens=_PACE_TOKENS)
        # Stop ids would end some targets after a word: the pace is a matter of steps, not of what they say.
        stop, self._engine.stop = self._engine.stop, Stop()
        try:
            for _ in range(2):
                result = self._engine.generate(plain, [request])
        finally:
            self._engine.stop = stop
        num_steps = len(result.generations[0].steps)
        self.pace = Pace(result.decode_s / num_steps, num_steps)
        return self.pace

    def _plain(self) -> Drafter:
        choice = registry.choose(BASELINE, {}, target_is_demo=self._is_demo)
        return registry.build(choice, self._engine.view())

    # --- answers ------------------------------------------------------------------------------------------------------

    def decode(self, tokens: Sequence[int]) -> str:
        """Ids -> text, special tokens left out."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def _render(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        system = [{"role": "system", "content": self.settings.system}] if self.settings.system else []
        return tuple(suite.render(self.tokenizer, [*system, *messages], self.settings.template))

    def reply(self, text: str, told: Told) -> Reply:
        """Answer; the message and its answer are kept, also one that was stopped.

        Raises UsageError where the conversation does not fit the target any more; then nothing is kept.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        prompt = self._render(asked)
        self._make_room(len(prompt))
        turn = len(self.replies)
        request = Request(
            key=sequence_key(seed=self.settings.seed, question_id="chat", turn=turn),
            prompt=prompt,
            max_new_tokens=self.settings.max_new_tokens,
            system=self.settings.system,
        )
        self._state_before = self._drafter.snapshot()
        found = self._answer(request, told)
        self._last = request
        self.messages = [*asked, {"role": "assistant", "content": found.text}]
        self.replies.append(found)
        return found

    def _make_room(self, num_prompt: int) -> None:
        needed, context = num_prompt + self.settings.max_new_tokens, self.lm.context_length
        if context is not None and needed > context:
            room = context - num_prompt
            raise UsageError(
                f"the conversation is {num_prompt} tokens long; with an answer of up to "
                f"{self.settings.max_new_tokens} that is more than the {context} {self.lm.name} was built for",
                try_="/clear forgets it" + (f"; /set max_new_tokens={room} makes do with less" if room > 0 else ""),
            )
        if needed > self._engine.max_len:
            state = self._drafter.snapshot()
            engine = self._make_engine(self.settings, max(needed, 2 * self._engine.max_len))
            self._drafter, self._engine = self._make_drafter(self.settings, engine), engine
            self._drafter.restore(state)

    def _answer(self, request: Request, told: Told) -> Reply:
        rows: list[StepRow] = []
        first: list[int] = []
        began_s = time.perf_counter()
        prefill_s = 0.0

        def on_prefill(tokens: list[int]) -> None:
            nonlocal prefill_s
            prefill_s = time.perf_counter() - began_s
            first.extend(tokens)
            told([Heard(tokens[0], "plain", 0)], rows, prefill_s)

        def sink(new: Sequence[StepRow]) -> None:
            rows.extend(new)
            told([heard for row in new for heard in heard_of(row)], rows, prefill_s)
            if self.is_stop_asked:
                raise _StopAsked

        self.is_stop_asked = False
        try:
            result: GroupResult = self._engine.generate(self._drafter, [request], sink=sink, on_prefill=on_prefill)
            [generation] = result.generations
            tokens, reason, prefill_s = generation.tokens, generation.finish_reason, result.prefill_s
        except _StopAsked:
            tokens, reason = (*first, *(token for row in rows for token in row.tokens)), "stopped"
        return Reply(
            text=self.decode(tokens),
            tokens=tokens,
            finish_reason=reason,
            num_prompt_tokens=len(request.prompt),
            figures=figures_of(rows, prefill_s=prefill_s),
        )

    def evaluate(self) -> Evaluation:
        """The last answer again, whole: autoregression, method, method, autoregression. The method starts from the
        state it had before that answer, or it would find the answer in its own memory.

        Raises UsageError where nothing was answered yet.
        """
        if self._last is None:
            raise UsageError("there is no answer to repeat yet", try_="say something first")
        self._make_room(len(self._last.prompt))
        state_now, plain = self._drafter.snapshot(), self._plain()
        results: dict[str, list[GroupResult]] = {"plain": [], "method": []}
        for name in ("plain", "method", "method", "plain"):
            if name == "method":
                self._drafter.restore(self._state_before)
            drafter = plain if name == "plain" else self._drafter
            results[name].append(self._engine.generate(drafter, [self._last]))
        self._drafter.restore(state_now)
        [ours], [theirs] = results["method"][-1].generations, results["plain"][-1].generations
        return Evaluation(
            method=self.settings.method,
            plain_s=tuple(each.total_s for each in results["plain"]),
            method_s=tuple(each.total_s for each in results["method"]),
            first_difference=first_difference(ours.tokens, theirs.tokens),
            figures=figures_of(ours.steps, prefill_s=results["method"][-1].prefill_s),
        )
