"""One group of rows from prompt to stop: prefill, then draft / verify / accept / commit, the same code for every method
and the baseline.

B live rows, N nodes, M = N + 1 slots, C = P + 1, V vocabulary. Lengths count committed tokens, the root included; the
cache holds one less (the root enters it with the next verification).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specbench.engine import accept
from specbench.engine.answer import Generation, GroupResult, NotFinite, OnPrefill, StepSink
from specbench.engine.choose import choose, counted_children, see, test_key
from specbench.engine.clock import Clock
from specbench.engine.readback import Shape, committed_states, read_table, step_table
from specbench.engine.recorder import Recorder
from specbench.engine.stop import Stop
from specbench.engine.watched import StepSeen, StepWatch
from specbench.lm.cached_lm import CachedLM
from specbench.method import Commit, Drafter, Request, Rule, TargetStats
from specbench.sampling import STREAM_ACCEPT, STREAM_DRAFT, NoiseStream, Sampling, process


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a group is decoded under."""

    lm: CachedLM
    sampling: Sampling
    rule: Rule
    stop: Stop
    clock: Clock
    prefill_chunk: int
    max_len: int
    """Most tokens of a row, prompt and answer."""
    has_stamps: bool = True
    """Whether captured steps write down when their phases end."""


@dataclass
class Row:
    """A live row's host state."""

    index: int
    request: Request
    length: int
    tokens: list[int]
    finish_reason: str | None = None


class Run:
    """One call of `Engine.generate`, step by step: the host reads every step before it asks for the next."""

    def __init__(
        self,
        setting: Setting,
        drafter: Drafter,
        requests: Sequence[Request],
        sink: StepSink | None,
        watch: StepWatch | None = None,
    ) -> None:
        self._setting = setting
        self._watch = watch
        self.on_prefill: OnPrefill | None = None
        self._lm = setting.lm
        self._sampling = setting.sampling
        self._drafter = drafter
        self._requests = requests
        self._clock = setting.clock
        keys = [request.key for request in requests]
        is_noisy = not self._sampling.is_greedy
        self._noise = self._stream(keys, STREAM_ACCEPT) if is_noisy else None
        if not is_noisy:
            self._draft_noise = None
        elif setting.rule == "rejection":
            self._draft_noise = self._stream(keys, STREAM_DRAFT)
        else:
            self._draft_noise = self._noise
        self._test_keys = [test_key(key) for key in keys]
        self._rows: list[Row] = []
        self._live: list[Row] = []
        self._seen_BV: Tensor | None = None
        if self._sampling.needs_context:
            self._seen_BV = torch.zeros(len(requests), self._lm.vocab_size, dtype=torch.bool, device=self._lm.device)
        self._recorder = Recorder(self._clock, sink, num_rows=len(requests))

    def _stream(self, keys: list[int], stream: int) -> NoiseStream:
        return NoiseStream(keys, vocab_size=self._lm.vocab_size, device=self._lm.device, stream=stream)

    def run(self) -> GroupResult:
        self._clock.finish()
        start = time.perf_counter()
        self._begin(now_s=start)
        root_B = self._prefill()
        self._clock.finish()
        prefilled = time.perf_counter()
        if self.on_prefill is not None:
            self.on_prefill([row.tokens[0] for row in self._rows])
        root_B = self._drop_finished(root_B)
        if self._live:
            self._decode(root_B)
        self._clock.finish()
        end = time.perf_counter()
        recorder = self._recorder
        recorder.finish()
        return GroupResult(
            generations=tuple(
                Generation(tokens=tuple(row.tokens), finish_reason=row.finish_reason or "", steps=tuple(steps))
                for row, steps in zip(self._rows, recorder.rows, strict=True)
            ),
            prefill_s=prefilled - start,
            decode_s=end - prefilled,
            total_s=end - start,
            draft_s=recorder.draft_s,
            verify_s=recorder.verify_s,
            accept_s=recorder.accept_s,
            commit_s=recorder.commit_s,
            journal_s=recorder.journal_s,
        )

    def _begin(self, *, now_s: float) -> None:
        """Steps end so long after this mark: it lies inside what the whole generation takes."""
        self._recorder.begin(self._clock.mark(), now_s=now_s)

    def _decode(self, root_B: Tensor) -> None:
        """Steps until no row is live."""
        step = 0
        while self._live:
            root_B = self._drop_finished(self._step(root_B, step))
            step += 1

    # --- prefill ---------------------------------------------------------------------------------------------------

    def _prefill(self) -> Tensor:
        """Prompts row by row in chunks; then each row's first token -> root_B."""
        self._drafter.begin(self._requests)
        self._lm.begin(len(self._requests))
        logits, chunk = [], self._setting.prefill_chunk
        for index, request in enumerate(self._requests):
            prompt_T = torch.tensor(request.prompt, device=self._lm.device)
            for offset in range(0, len(request.prompt), chunk):
                chunk_T = prompt_T[offset : offset + chunk]
                last_V, hidden = self._lm.prefill(index, chunk_T)
                self._drafter.prefill(index, chunk_T, hidden, offset)
            logits.append(last_V)
            if self._seen_BV is not None:
                self._seen_BV[index, prompt_T] = True
            self._rows.append(Row(index=index, request=request, length=len(request.prompt), tokens=[]))
        self._live = list(self._rows)
        if self._noise is not None:
            # One less than a root's length: the first token's position is the first one ahead of the prompt's last
            # token.
            self._seek([row.length for row in self._live])
        logits_B1V = torch.stack(logits)[:, None]
        scores_B1V = process(logits_B1V, self._sampling, None if self._seen_BV is None else self._seen_BV[:, None])
        root_B = accept.coupled(scores_B1V, None if self._noise is None else self._noise.ahead(1))[:, 0]
        is_finite = logits_B1V.amax((1, 2)).isfinite().tolist()
        for row, token, row_is_finite in zip(self._live, root_B.tolist(), is_finite, strict=True):
            if not row_is_finite:
                raise NotFinite.at(self._lm.name, "after the prompt")
            self._extend(row, [token])
        if self._seen_BV is not None:
            see(self._seen_BV, root_B[:, None], root_B.new_ones(len(self._live)))
        self._drafter.start([row.length for row in self._live], root_B)
        return root_B

    def _seek(self, len_B: list[int]) -> None:
        for stream in self._streams():
            stream.seek(len_B)

    def _streams(self) -> list[NoiseStream]:
        """The distinct ones."""
        return list({id(each): each for each in (self._noise, self._draft_noise) if each is not None}.values())

    def _extend(self, row: Row, new: list[int]) -> int:
        """Append committed tokens up to the stop -> how many were cut."""
        kept, reason = self._setting.stop.cut(row.tokens, new, max_new_tokens=row.request.max_new_tokens)
        row.tokens += new[:kept]
        row.length += kept
        row.finish_reason = reason
        return len(new) - kept

    # --- one step --------------------------------------------------------------------------------------------------

    def _step(self, root_B: Tensor, step: int) -> Tensor:
        mark = self._clock.mark
        marks = [mark()]
        if self._noise is not None:
            self._seek([row.length for row in self._live])
        tree = self._drafter.draft(self._draft_noise)
        marks.append(mark())
        verified = self._lm.verify(root_B, tree)
        marks.append(mark())
        chosen_BM = choose(
            verified.logits_BMV,
            tree,
            sampling=self._sampling,
            rule=self._setting.rule,
            noise=self._noise,
            tests=self,
            seen_BV=self._seen_BV,
            most_children=counted_children,
        )
        verdict = accept.walk(chosen_BM, tree)
        read = read_table(step_table(verdict, tree, verified.logits_BMV).tolist(), Shape.of(tree))
        marks.append(mark())
        if self._watch is not None:
            live = [row.index for row in self._live]
            self._watch(StepSeen(step, live, tree, verified.logits_BMV, self._seen_BV, chosen_BM, verdict.path_BP))
        self._lm.commit(read.num_accepted, tree, verdict.path_BP)
        if self._seen_BV is not None:
            see(self._seen_BV, verdict.tokens_BC, verdict.num_accepted_B + 1)
        num_cut = []
        for place, row in enumerate(self._live):
            if not read.is_finite[place]:
                raise NotFinite.at(self._lm.name, f"at step {step}")
            num_cut.append(self._extend(row, read.tokens[place]))
        self._drafter.commit(
            Commit(
                num_accepted_B=verdict.num_accepted_B,
                path_BP=verdict.path_BP,
                tokens_BC=verdict.tokens_BC,
                hidden_BCKD=committed_states(verified.hidden_BMKD, verdict.slots_BC),
                tokens=[new[: len(new) - cut] for new, cut in zip(read.tokens, num_cut, strict=True)],
                finished=[row.finish_reason is not None for row in self._live],
                target=TargetStats(verified.logits_BMV) if self._drafter.wants_target else None,
            )
        )
        marks.append(mark())
        self._recorder.step(step, [row.index for row in self._live], read, num_cut, marks)
        return verdict.tokens_BC.gather(1, verdict.num_accepted_B[:, None])[:, 0]

    def keys_B(self) -> Tensor:
        """For `rejection`'s tests."""
        return torch.tensor([self._test_keys[row.index] for row in self._live], device=self._lm.device)

    def roots_B(self) -> Tensor:
        """For `rejection`'s tests."""
        return torch.tensor([row.length for row in self._live], device=self._lm.device)

    # --- bookkeeping -----------------------------------------------------------------------------------------------

    def _drop_finished(self, root_B: Tensor) -> Tensor:
        places = [place for place, row in enumerate(self._live) if row.finish_reason is None]
        if len(places) == len(self._live):
            return root_B
        self._live = [self._live[place] for place in places]
        if not self._live:
            return root_B
        self._lm.keep(places)
        self._drafter.keep(places)
        for stream in self._streams():
            stream.keep(places)
        if self._seen_BV is not None:
            self._seen_BV = self._seen_BV[places]
        return root_B[places]
