"""The loop: prefill, then draft / verify / accept / commit, the same code for every method and the baseline.

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
from specbench.engine.answer import Generation, GroupResult, NotFinite, StepSink
from specbench.engine.clock import Clock, clock_for
from specbench.engine.readback import committed_states, read_step
from specbench.engine.recorder import Recorder
from specbench.engine.stop import Stop
from specbench.errors import UsageError
from specbench.lm.cached_lm import CachedLM
from specbench.method import Commit, Drafter, Request, Rule, TargetView
from specbench.sampling import (
    STREAM_ACCEPT,
    STREAM_DRAFT,
    STREAM_TEST,
    NoiseStream,
    Sampling,
    log_probs,
    process,
    uniforms,
)
from specbench.tree import DraftTree, sibling_ranks, topology


@dataclass
class _Row:
    """A live row's host state."""

    index: int
    request: Request
    length: int
    tokens: list[int]
    finish_reason: str | None = None


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
    ) -> None:
        """Raises UsageError when `typical` is asked for at temperature 0, where it has no law to be typical of."""
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
        self._clock: Clock = clock_for(lm.device)
        lm.allocate(max_batch=max_batch, max_len=max_len, max_nodes=max_nodes)

    def reserve(self, max_nodes: int) -> None:
        """Make room for drafts of this many nodes; never shrinks."""
        self.max_nodes = max(self.max_nodes, max_nodes)
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
    def generate(self, drafter: Drafter, requests: Sequence[Request], *, sink: StepSink | None = None) -> GroupResult:
        """Decode all requests together. Exact stopping; every row's tokens depend on its own request only.

        Raises UsageError (does not fit), NotFinite (NaN logits), torch.OutOfMemoryError.
        """
        assert 0 < len(requests) <= self.max_batch, f"{len(requests)} requests in an engine of {self.max_batch} rows"
        assert drafter.max_nodes <= self.max_nodes, (
            f"drafter needs {drafter.max_nodes} nodes, the cache has {self.max_nodes}"
        )
        for request in requests:
            self.check_fits(len(request.prompt), request.max_new_tokens)
            self.lm.check_tokens(request.prompt)
        self.lm.tap(drafter.taps)
        try:
            return _Run(self, drafter, requests, self._clock, sink, self._prefill_chunk).run()
        except NotFinite:
            # Masked slots weigh 0, but 0 times a NaN left in them is NaN: the next question must not inherit it.
            self.lm.erase()
            raise


class _Run:
    """One call of `generate`."""

    def __init__(
        self,
        engine: Engine,
        drafter: Drafter,
        requests: Sequence[Request],
        clock: Clock,
        sink: StepSink | None,
        prefill_chunk: int,
    ) -> None:
        self._lm = engine.lm
        self._sampling = engine.sampling
        self._rule = engine.rule
        self._stop = engine.stop
        self._drafter = drafter
        self._requests = requests
        self._clock = clock
        self._prefill_chunk = prefill_chunk
        keys = [request.key for request in requests]
        is_noisy = not self._sampling.is_greedy
        self._noise = self._stream(keys, STREAM_ACCEPT) if is_noisy else None
        if not is_noisy:
            self._draft_noise = None
        elif self._rule == "rejection":
            self._draft_noise = self._stream(keys, STREAM_DRAFT)
        else:
            self._draft_noise = self._noise
        self._test_keys = [key ^ (STREAM_TEST << 61) for key in keys]
        self._rows: list[_Row] = []
        self._live: list[_Row] = []
        self._seen_BV: Tensor | None = None
        if self._sampling.needs_context:
            self._seen_BV = torch.zeros(len(requests), self._lm.vocab_size, dtype=torch.bool, device=self._lm.device)
        self._recorder = Recorder(clock, sink, num_rows=len(requests))

    def _stream(self, keys: list[int], stream: int) -> NoiseStream:
        return NoiseStream(keys, vocab_size=self._lm.vocab_size, device=self._lm.device, stream=stream)

    def run(self) -> GroupResult:
        self._clock.finish()
        begin_mark = self._clock.mark()
        start = time.perf_counter()
        self._recorder.begin(begin_mark, now_s=start)
        root_B = self._prefill()
        self._clock.finish()
        prefilled = time.perf_counter()
        root_B = self._drop_finished(root_B)
        step = 0
        while self._live:
            root_B = self._step(root_B, step)
            root_B = self._drop_finished(root_B)
            step += 1
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

    # --- prefill ---------------------------------------------------------------------------------------------------

    def _prefill(self) -> Tensor:
        """Prompts row by row in chunks; then each row's first token -> root_B."""
        self._drafter.begin(self._requests)
        self._lm.begin(len(self._requests))
        logits = []
        for index, request in enumerate(self._requests):
            prompt_T = torch.tensor(request.prompt, device=self._lm.device)
            for offset in range(0, len(request.prompt), self._prefill_chunk):
                chunk_T = prompt_T[offset : offset + self._prefill_chunk]
                last_V, hidden = self._lm.prefill(index, chunk_T)
                self._drafter.prefill(index, chunk_T, hidden, offset)
            logits.append(last_V)
            if self._seen_BV is not None:
                self._seen_BV[index, prompt_T] = True
            self._rows.append(_Row(index=index, request=request, length=len(request.prompt), tokens=[]))
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
        self._see(root_B[:, None], root_B.new_ones(len(self._live)))
        self._drafter.start([row.length for row in self._live], root_B)
        return root_B

    def _seek(self, len_B: list[int]) -> None:
        for stream in {id(s): s for s in (self._noise, self._draft_noise) if s is not None}.values():
            stream.seek(len_B)

    def _see(self, tokens_BC: Tensor, num_B: Tensor) -> None:
        if self._seen_BV is not None:
            places = torch.arange(tokens_BC.shape[1], device=tokens_BC.device)
            kept = places < num_B[:, None]
            # Padding repeats column 0, which is always committed.
            self._seen_BV.scatter_(1, torch.where(kept, tokens_BC, tokens_BC[:, :1]), True)

    def _extend(self, row: _Row, new: list[int]) -> int:
        """Append committed tokens up to the stop -> how many were cut."""
        kept, reason = self._stop.cut(row.tokens, new, max_new_tokens=row.request.max_new_tokens)
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
        verdict = accept.walk(self._choose(verified.logits_BMV, tree), tree)
        read = read_step(verdict, tree, verified.logits_BMV)
        marks.append(mark())
        self._lm.commit(read.num_accepted, tree, verdict.path_BP)
        self._see(verdict.tokens_BC, verdict.num_accepted_B + 1)
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
            )
        )
        marks.append(mark())
        self._recorder.step(step, [row.index for row in self._live], read, num_cut, marks)
        return verdict.tokens_BC.gather(1, verdict.num_accepted_B[:, None])[:, 0]

    def _choose(self, logits_BMV: Tensor, tree: DraftTree) -> Tensor:
        """The acceptance rule -> chosen_BM."""
        scores = process(logits_BMV, self._sampling, self._context_of_slots(tree))
        if self._noise is None:
            return accept.coupled(scores, None)
        ahead = self._noise.ahead(tree.max_depth + 1)
        if tree.is_chain:
            noise_BMV = ahead
        else:
            depth_BM = topology(tree).depth_BM
            noise_BMV = ahead.gather(1, depth_BM[..., None].expand(-1, -1, ahead.shape[-1]))
        if self._rule == "coupled":
            return accept.coupled(scores, noise_BMV)
        logp = log_probs(scores)
        max_children = int(sibling_ranks(tree).max()) + 1 if tree.num_nodes else 1
        if self._rule == "typical":
            return accept.typical(logp, noise_BMV, tree, max_children=max_children)
        return accept.rejection(logp, noise_BMV, self._tests(tree, max_children), tree, max_children=max_children)

    def _tests(self, tree: DraftTree, max_children: int) -> Tensor:
        """Uniforms of the accept tests, keyed by the position of the slot, one per slot and child rank: (B, M, R)."""
        depth_BM = topology(tree).depth_BM
        keys = torch.tensor([self._test_keys[row.index] for row in self._live], device=self._lm.device)
        lengths = torch.tensor([row.length for row in self._live], device=self._lm.device)
        slots = depth_BM.shape[1]
        # A slot's own index enters too: two slots of one depth are different events.
        index = torch.arange(slots, device=self._lm.device)
        return uniforms(keys, (lengths[:, None] + depth_BM) * 4096 + index, max_children)

    def _context_of_slots(self, tree: DraftTree) -> Tensor | None:
        """bool (B, M, V): tokens in prompt + committed + the slot's ancestors and itself."""
        if self._seen_BV is None:
            return None
        num_nodes = tree.num_nodes
        seen_BMV = self._seen_BV[:, None].expand(-1, num_nodes + 1, -1)
        if num_nodes == 0:
            return seen_BMV
        sees_BMN = topology(tree).sees_BMM[:, :, 1:]
        tokens_BMN = tree.tokens_BN[:, None].expand(-1, num_nodes + 1, -1)
        ahead = torch.zeros(seen_BMV.shape, dtype=torch.int32, device=seen_BMV.device)
        ahead.scatter_add_(2, tokens_BMN, sees_BMN.int())
        return seen_BMV | (ahead > 0)

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
        for stream in {id(s): s for s in (self._noise, self._draft_noise) if s is not None}.values():
            stream.keep(places)
        if self._seen_BV is not None:
            self._seen_BV = self._seen_BV[places]
        return root_B[places]
