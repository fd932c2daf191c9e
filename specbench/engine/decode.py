"""The engine: one target under one sampling and one acceptance rule, for every method and the baseline alike.

How a group of rows is decoded is `run` (step by step), `captured` and `host_drafted` (steps as graphs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch

from specbench.engine.answer import GroupResult, NotFinite, OnPrefill, StepSink
from specbench.engine.captured import CapturedRun
from specbench.engine.clock import Clock, clock_for
from specbench.engine.graphs import Backend, Capturing, Graphs
from specbench.engine.host_drafted import HostDraftedRun
from specbench.engine.pinned_run import Capture
from specbench.engine.pins import DrafterPins, EnginePins
from specbench.engine.run import Run, Setting
from specbench.engine.stop import Stop
from specbench.engine.watched import StepWatch
from specbench.errors import UsageError
from specbench.lm import facts
from specbench.lm.cached_lm import CachedLM
from specbench.method import Drafter, Request, Rule, TargetView
from specbench.sampling import Sampling


class Engine:
    """A target, its sampling and an acceptance rule. Drafters are passed per call; nothing of theirs is kept."""

    def __init__(
        self,
        lm: CachedLM,
        *,
        sampling: Sampling,
        rule: Rule = "coupled",
        max_batch: int = 1,
        max_len: int,
        max_nodes: int = 0,
        prefill_chunk: int = 512,
        stop: Stop | None = None,
        graphs: Backend | None = None,
        has_stamps: bool = True,
    ) -> None:
        """graphs: capture steps with it; None runs every step operator by operator. has_stamps: False leaves the times
        of captured phases out, to see what taking them costs.

        Raises UsageError when `typical` is asked for at temperature 0, where it has no law to be typical of.
        """
        if rule == "typical" and sampling.is_greedy:
            raise UsageError("rule 'typical' needs a temperature above 0", try_="--temperature 0.7, or --rule coupled")
        self.lm = lm
        self.sampling = sampling
        self.rule: Rule = rule
        self.stop = stop or Stop()
        self.max_len = max_len
        self.max_batch = max_batch
        self.max_nodes = max_nodes
        self._prefill_chunk = prefill_chunk
        self._has_stamps = has_stamps
        self._clock: Clock = clock_for(lm.device)
        # A target that cannot be captured (bitsandbytes) says so on its rows.
        self.graphs = Graphs(graphs) if graphs is not None and lm.is_capturable else None
        self._pins: EnginePins | None = None
        self._drafter_pins: WeakKeyDictionary[Drafter, DrafterPins] = WeakKeyDictionary()
        self._allocate()

    def reserve(self, max_nodes: int) -> None:
        """Make room for drafts of this many nodes; never shrinks."""
        self.max_nodes = max(self.max_nodes, max_nodes)
        self._allocate()

    def _allocate(self) -> None:
        # Captured steps need no more: whatever goes on stands in front of its limit, what has ended is pushed back.
        self.lm.allocate(max_batch=self.max_batch, max_len=self.max_len, max_nodes=self.max_nodes)

    def view(self) -> TargetView:
        """What drafters may read."""
        lm = self.lm
        return TargetView(
            name=lm.name,
            config=lm.config,
            tokenizer=lm.tokenizer,
            embed_tokens=lm.embed_tokens,
            lm_head=lm.lm_head,
            final_norm=lm.final_norm,
            stop_ids=tuple(sorted(self.stop.ids)),
            vocab_size=lm.vocab_size,
            device=lm.device,
            dtype=lm.dtype,
            attention=lm.attention_asked,
            max_batch=self.max_batch,
            max_len=self.max_len,
            sampling=self.sampling,
            rule=self.rule,
        )

    def check_fits(self, num_prompt_tokens: int, max_new_tokens: int) -> None:
        """Raises UsageError when the prompt is empty or prompt and answer exceed the cache, naming the option that
        helps."""
        if num_prompt_tokens == 0:
            raise UsageError("the prompt is empty: there is no token to continue", try_="give at least one token")
        needed = num_prompt_tokens + max_new_tokens
        context = self.lm.context_length
        if context is not None and needed > context:
            raise UsageError(
                f"prompt of {num_prompt_tokens} tokens + {max_new_tokens} new ones = {needed}, "
                f"but {self.lm.name} was built for {context}",
                try_=f"--max-new-tokens {max(context - num_prompt_tokens, 0)}"
                if num_prompt_tokens < context
                else "leave the question out, or choose a target with a longer context",
            )
        if needed > self.max_len:
            raise UsageError(
                f"prompt of {num_prompt_tokens} tokens + {max_new_tokens} new ones = {needed}, "
                f"but the cache holds {self.max_len}",
                try_=f"--max-len {needed}",
            )

    @torch.inference_mode()
    def generate(
        self,
        drafter: Drafter,
        requests: Sequence[Request],
        *,
        sink: StepSink | None = None,
        capturing: Capturing = "met",
        watch: StepWatch | None = None,
        on_prefill: OnPrefill | None = None,
    ) -> GroupResult:
        """Decode all requests together. Exact stopping; every row's tokens depend on its own request only.

        capturing: whether shapes may be captured now, which takes time: "none" where it is timed. watch: shown every
        step as it is decided, for untimed replays; steps then run operator by operator. on_prefill: see `OnPrefill`.
        Raises UsageError (does not fit), NotFinite (NaN logits), torch.OutOfMemoryError.
        """
        assert 0 < len(requests) <= self.max_batch, f"{len(requests)} requests in an engine of {self.max_batch} rows"
        assert drafter.max_nodes <= self.max_nodes, (
            f"drafter needs {drafter.max_nodes} nodes, the cache has {self.max_nodes}"
        )
        for request in requests:
            self.check_fits(len(request.prompt), request.max_new_tokens)
            facts.check_tokens(request.prompt, vocab_size=self.lm.vocab_size, name=self.lm.name)
        self.lm.tap(drafter.taps)
        try:
            run = self._run(drafter, requests, sink, capturing=capturing, watch=watch)
            run.on_prefill = on_prefill
            result = run.run()
        except NotFinite:
            # Masked slots weigh 0, but 0 times a NaN left in them is NaN: the next question must not inherit it.
            self.lm.erase()
            drafter.erase()
            raise
        if drafter.is_finite():
            return result
        drafter.erase()
        return replace(result, is_draft_finite=False)

    def _run(
        self,
        drafter: Drafter,
        requests: Sequence[Request],
        sink: StepSink | None,
        *,
        capturing: Capturing,
        watch: StepWatch | None,
    ) -> Run:
        setting = Setting(
            lm=self.lm,
            sampling=self.sampling,
            rule=self.rule,
            stop=self.stop,
            clock=self._clock,
            prefill_chunk=self._prefill_chunk,
            max_len=self.max_len,
            has_stamps=self._has_stamps,
        )
        if self.graphs is None or watch is not None:
            return Run(setting, drafter, requests, sink, watch)
        capture = self._capture(self.graphs, drafter, capturing=capturing)
        kind = CapturedRun if drafter.capturable else HostDraftedRun
        return kind(setting, drafter, requests, sink, capture)

    def _capture(self, graphs: Graphs, drafter: Drafter, *, capturing: Capturing) -> Capture:
        pins = self._pins
        # A cache that has grown, or pins that must, have moved: what was captured on them is void.
        if pins is None or pins.max_nodes < self.max_nodes or graphs.cache is not self.lm.cache:
            graphs.forget(self.lm.cache)
            pins = self._pins = EnginePins(
                max_rows=self.max_batch,
                max_nodes=self.max_nodes,
                vocab_size=self.lm.vocab_size,
                needs_context=self.sampling.needs_context,
                device=self.lm.device,
            )
        drafter_pins = self._drafter_pins.get(drafter)
        if drafter_pins is None:
            drafter_pins = self._drafter_pins[drafter] = DrafterPins(max_rows=self.max_batch)
        return Capture(graphs, pins, drafter_pins, capturing)
