"""A chain drafter over a second, smaller CachedLM: `draft_model` is one, and so is anything that adapts such a model.

The draft's cache is kept in step with the target's, so that no token is ever processed twice. Drafting K tokens is K
forwards: the first reads the pending tokens, the others the token drafted before them; the last drafted one is never
read.

    cache before    ... root' d1 d2 .. dK-1        (the step drafted d1 .. dK behind root')
    a < K accepted  ... root' d1 .. da             pending: the bonus token, the new root
    a = K accepted  ... root' d1 .. dK-1           pending: dK and the new root, read by one forward of two tokens
    set aside       ... root'                      pending: all committed tokens, whoever drafted them (`follow`)

B rows, K drafted tokens, M pending tokens of a row (1 or 2; more after `follow`), C = K + 1, V the target's
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from specbench.lm.adaptive_length import AdaptiveLength, Evidence
from specbench.lm.cached_lm import CachedLM
from specbench.lm.finite import FiniteWatch
from specbench.lm.held_chain import HeldChain
from specbench.method import Commit, Drafter, DraftNoise, Request, TargetView
from specbench.sampling import STREAM_DRAFT, NoiseStream, Sampling, log_probs, process, top_children
from specbench.tree import DraftTree, chain, empty

Picks = Literal["shared-noise", "greedy", "sampled"]
"""How a token is picked from the draft's processed law q at a temperature above 0 (at 0 all three are its argmax):
argmax(log q + the noise the engine hands out), argmax q, or a draw from q that is independent of the target's noise."""


class _Picker:
    """One draft's picks, token by token: (depth, logits) -> token (B, 1). Laws are kept where acceptance tests them."""

    def __init__(
        self,
        shared: Callable[[Tensor], Tensor],
        sampling: Sampling,
        noise: DraftNoise | None,
        *,
        seen_BV: Tensor | None,
        records_law: bool,
        shows_q: bool,
        tell: Callable[[Tensor], None] | None = None,
    ) -> None:
        self._shared = shared
        self._tell = tell
        self._logq: list[Tensor] | None = [] if shows_q else None
        self._sampling = sampling
        self._noise = noise
        self._seen_BV = seen_BV
        self._laws: list[Tensor] | None = [] if records_law else None
        self._last: tuple[Tensor, ...] = ()

    def __call__(self, depth: int, logits_BV: Tensor) -> Tensor:
        shared_BV = self._shared(logits_BV)
        if self._tell is not None:
            self._tell(shared_BV)
        scores_BV = process(shared_BV, self._sampling, self._seen_BV)
        tokens_B1 = top_children(scores_BV, None if self._noise is None else self._noise.at_depth(depth), 1)
        if self._laws is not None:
            self._laws.append(log_probs(scores_BV))
        if self._logq is not None:
            self._logq.append(log_probs(scores_BV).gather(1, tokens_B1))
        if self._seen_BV is not None:
            self._seen_BV.scatter_(1, tokens_B1, True)
        self._last = scores_BV, tokens_B1
        return tokens_B1

    def last_scores(self) -> Tensor:
        """Scores (B, 1) of the deepest tokens, before noise: NaN or +inf where any number of its row's draft is, as
        an argmax takes NaN for the greatest and every forward reads what the ones before it left in the cache."""
        return self._last[0].gather(1, self._last[1])

    def logq(self) -> Tensor | None:
        """score_BN of the whole chain, for those who look."""
        return torch.cat(self._logq, dim=1) if self._logq else None

    def laws(self) -> Tensor | None:
        """logq_BMV of the whole chain."""
        if not self._laws:
            return None
        # The last token has no children, hence no law.
        return torch.stack([*self._laws, torch.full_like(self._laws[0], float("-inf"))], dim=1)


class ChainDrafter(Drafter):
    """Drafts `num_tokens` tokens a step (fewer where the answer or the draft's context ends) with `lm`, which it owns.

    num_shared: ids below it mean the same in both vocabularies (`vocabulary.compare`); no other is proposed.
    adaptive: chooses K per step instead; its evidence outlives a generation, so the drafter then carries a stream.
    """

    branches = False

    def __init__(
        self,
        lm: CachedLM,
        target: TargetView,
        *,
        num_tokens: int,
        num_shared: int,
        picks: Picks = "shared-noise",
        adaptive: AdaptiveLength | None = None,
    ) -> None:
        self._lm, self.models = lm, (lm,)
        self._target = target
        self._num_tokens = num_tokens
        self._num_shared = num_shared
        self._adaptive = adaptive
        self.max_nodes = num_tokens if adaptive is None else adaptive.maximum
        if adaptive is not None:
            self.carries = "stream"
        self._sampling = target.sampling
        self._draws = picks != "greedy" and not self._sampling.is_greedy
        # Under `rejection` the engine's noise is independent of its acceptance; elsewhere it is the target's own.
        self._has_own_noise = self._draws and picks == "sampled" and target.rule != "rejection"
        self._records_law = self._draws and target.rule == "rejection"
        # K that changes is decided on the host, and own draws are found by lengths the host counts.
        self.capturable = adaptive is None and not self._has_own_noise and lm.is_capturable
        self.carried = ("_held.pair_B2", "_held.length_B", "_seen_BV")
        self._held: HeldChain | None = None
        self._context = lm.context_length
        self._own_noise: NoiseStream | None = None
        self._finite = FiniteWatch(target.device)
        self._tell: Callable[[Tensor], None] | None = None
        """Told each drafted depth's logits (B, V) over the target's vocabulary, before any processor."""
        self._seen_BV: Tensor | None = None
        self._pending_BM = torch.empty(0, 0, dtype=torch.long)
        self._last_B = torch.empty(0, dtype=torch.long)
        """The prompts' last tokens."""
        self._num_pending: list[int] = []
        self._len_B: list[int] = []
        self._end_B: list[int] = []
        self._num_drafted = 0
        self._drafted_B: list[int] = []
        """Of the last draft, what each row had use for."""
        self.weights_hash = lm.weights_hash
        lm.allocate(max_batch=target.max_batch, max_len=target.max_len, max_nodes=self.max_nodes + 1)

    def num_parameters(self) -> int:
        return self._lm.num_parameters()

    # --- a group begins ----------------------------------------------------------------------------------------------

    def begin(self, requests: Sequence[Request]) -> None:
        self._lm.begin(len(requests))
        self._held = None
        self._last_B = torch.tensor([request.prompt[-1] for request in requests], device=self._target.device)
        self._end_B = [len(request.prompt) + request.max_new_tokens for request in requests]
        vocab_size, device = self._target.vocab_size, self._target.device
        if self._has_own_noise:
            keys = [request.key for request in requests]
            self._own_noise = NoiseStream(keys, vocab_size=vocab_size, device=device, stream=STREAM_DRAFT)
        if self._sampling.needs_context:
            self._seen_BV = torch.zeros(len(requests), vocab_size, dtype=torch.bool, device=device)

    def prefill(self, row: int, tokens_T: Tensor, hidden_TKD: Tensor | None, offset: int) -> None:
        if self._context is None or offset + tokens_T.shape[0] <= self._context:
            self._finite.see(self._lm.prefill(row, self._readable(tokens_T))[0])
        # else the draft model cannot follow: this row drafts nothing (`_room`).
        if self._seen_BV is not None:
            self._seen_BV[row, tokens_T] = True

    def start(self, len_B: list[int], root_B: Tensor) -> None:
        self._len_B = list(len_B)
        self._pending_BM, self._num_pending = root_B[:, None], [1] * len(len_B)
        if self._seen_BV is not None:
            self._seen_BV.scatter_(1, root_B[:, None], True)

    # --- a step ------------------------------------------------------------------------------------------------------

    def hold(self, span: int | None) -> None:
        if span is None:
            self._held = None
            return
        if self._held is None:
            pair_B2 = torch.stack([self._last_B, self._pending_BM[:, 0]], dim=1)
            length_B = torch.tensor(self._len_B, device=self._target.device)
            self._held = self._hold(pair_B2, length_B)
        self._held.hold(span)

    def _hold(self, pair_B2: Tensor, length_B: Tensor) -> HeldChain:
        return HeldChain(self._lm, pair_B2, length_B, num_tokens=self._num_tokens)

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        if self._held is not None:
            return self._held_draft(self._held, noise)
        num_rows = len(self._len_B)
        wanted = self._adaptive.num_tokens() if self._adaptive is not None else self._num_tokens
        room_B = [self._room(row) for row in range(num_rows)]
        num = self._num_drafted = min(wanted, max(room_B))
        if num == 0:
            return empty(num_rows, self._target.device)
        self._drafted_B = [min(num, room) for room in room_B]
        if self._own_noise is not None:
            self._own_noise.seek(self._len_B)
            noise = self._own_noise
        self._catch_up()
        return self._grow(noise, num, room_B)

    def _grow(self, noise: DraftNoise | None, num: int, room_B: list[int]) -> DraftTree:
        """`num` tokens deep behind the pending ones, which are read first. room_B: those a row has use for."""
        num_rows = len(room_B)
        pick = self._picker(noise)
        tokens_BM, num_B, drafted = self._pending_BM, self._num_pending, []
        for depth in range(1, num + 1):
            tokens_BM = pick(depth, self._lm.append(self._readable(tokens_BM), num_B))
            num_B = [1] * num_rows
            drafted.append(tokens_BM)
        self._finite.see(pick.last_scores())
        return chain(
            torch.cat(drafted, dim=1) if num > 1 else tokens_BM,
            valid_BN=self._valid(room_B, num),
            score_BN=pick.logq(),
            logq_BMV=pick.laws(),
        )

    def _held_draft(self, held: HeldChain, noise: DraftNoise | None) -> DraftTree:
        pick = self._picker(noise)
        tokens_BN = held.draft(pick, self._readable)
        self._finite.see(pick.last_scores())
        valid_BN = None
        if self._context is not None and held.span > self._context:
            places = torch.arange(self._num_tokens, device=tokens_BN.device)
            valid_BN = places < (self._context + 1 - held.length_B)[:, None]
        return chain(tokens_BN, valid_BN=valid_BN, logq_BMV=pick.laws())

    def _picker(self, noise: DraftNoise | None) -> _Picker:
        return _Picker(
            self._shared,
            self._sampling,
            noise if self._draws else None,
            seen_BV=None if self._seen_BV is None else self._seen_BV.clone(),
            records_law=self._records_law,
            tell=self._tell,
            shows_q=self.shows_q,
        )

    def commit(self, commit: Commit) -> None:
        if self._held is not None:
            self._held.commit(commit.tokens_BC, commit.num_accepted_B)
            self._see(commit)
            return
        accepted = [len(tokens) - 1 for tokens in commit.tokens]
        for row, count in enumerate(accepted):
            self._len_B[row] += count + 1
        num, self._num_drafted = self._num_drafted, 0
        if num == 0:
            # No row can ever draft again: each is past the draft's context, or one token from its end.
            return
        self._keep_read(commit, [min(count, num - 1) for count in accepted], num)
        self._num_pending = [2 if count == num else 1 for count in accepted]
        self._pending_BM = self._last_tokens(commit.tokens_BC, accepted)
        self._see(commit)
        if self._adaptive is not None:
            self._learn_length(self._adaptive, commit, [True] * len(accepted))

    def follow(self, commit: Commit, is_own: list[bool]) -> None:
        """What was committed without a draft of ours stays pending; the next draft's first forward reads it."""
        num, self._num_drafted = self._num_drafted, 0
        was_pending = self._pending_BM.tolist()
        counts = zip(commit.tokens, is_own, strict=True)
        kept = [min(len(tokens) - 1, num - 1) if own else 0 for tokens, own in counts]
        if num > 0:
            self._keep_read(commit, kept, num)
        pending: list[list[int]] = []
        for row, tokens in enumerate(commit.tokens):
            self._len_B[row] += len(tokens)
            still = was_pending[row][: self._num_pending[row]] if num == 0 else []
            pending.append(still + (tokens if num == 0 else tokens[kept[row] :]))
        self._set_pending(pending)
        self._see(commit)
        if self._adaptive is not None and num > 0:
            self._learn_length(self._adaptive, commit, is_own)

    def _learn_length(self, adaptive: AdaptiveLength, commit: Commit, is_own: list[bool]) -> None:
        rows = zip(commit.tokens, self._drafted_B, commit.finished, is_own, strict=True)
        # A finished row's count was cut at its stop; it says nothing about the draft.
        tried = [(len(tokens) - 1, drafted) for tokens, drafted, ends, own in rows if own and not ends]
        adaptive.learn([accepted for accepted, _ in tried], [drafted for _, drafted in tried])

    def _keep_read(self, commit: Commit, kept: list[int], num: int) -> None:
        """Of the tokens drafted `num` deep all but the deepest were read; each row keeps the first `kept` in its
        cache."""
        for row, count in enumerate(kept):
            if count < num - 1:
                self._lm.truncate(row, self._lm.lengths[row] - (num - 1 - count))

    def _see(self, commit: Commit) -> None:
        if self._seen_BV is not None:
            places = torch.arange(commit.tokens_BC.shape[1], device=commit.tokens_BC.device)
            is_committed = places <= commit.num_accepted_B[:, None]
            # Padding repeats column 0, which is always committed.
            self._seen_BV.scatter_(1, torch.where(is_committed, commit.tokens_BC, commit.tokens_BC[:, :1]), True)

    def _catch_up(self) -> None:
        """Read long pending runs row by row, all but the last token: in one forward with the others they would pad
        every row to the longest run, behind the longest row. A single row needs no forward of its own for it."""
        if len(self._num_pending) == 1 or max(self._num_pending) <= 2:
            return
        ends_B1 = torch.tensor(self._num_pending, device=self._target.device)[:, None] - 1
        for row, count in enumerate(self._num_pending):
            if count > 1:
                self._lm.prefill(row, self._readable(self._pending_BM[row, : count - 1]))
        self._pending_BM = self._pending_BM.gather(1, ends_B1)
        self._num_pending = [1] * len(self._num_pending)

    def _last_tokens(self, tokens_BC: Tensor, accepted: list[int]) -> Tensor:
        """pending_BM: of each row's committed tokens the last `num_pending`, left-aligned; what follows is padding."""
        width = max(self._num_pending)
        if len(accepted) == 1:
            end = accepted[0] + 1
            # A copy: the commit's tokens may be a captured step's memory, and the draft that reads these may come after
            # the next step (`follow`).
            return tokens_BC[:, end - width : end].clone()
        last = tokens_BC.shape[1] - 1
        index = [
            [min(count + 1 - pending + place, last) for place in range(width)]
            for count, pending in zip(accepted, self._num_pending, strict=True)
        ]
        return tokens_BC.gather(1, torch.tensor(index, device=tokens_BC.device))

    def reread(self, texts: Sequence[Sequence[int]]) -> None:
        """The model's weights have changed, so its cache is void: every row's text, root included, stays pending and is
        read again with the next draft. Between steps, and not while steps are captured."""
        assert self._held is None, "a captured step cannot be told of it"
        self._lm.begin(len(texts))
        # A row past the draft's context drafts nothing further: nothing of it need be read.
        fits = [self._context is None or len(text) <= self._context for text in texts]
        self._set_pending([list(text) if fit else list(text[-1:]) for text, fit in zip(texts, fits, strict=True)])

    def _set_pending(self, pending: list[list[int]]) -> None:
        self._num_pending = [len(tokens) for tokens in pending]
        width = max(self._num_pending)
        padded = [tokens + [0] * (width - len(tokens)) for tokens in pending]
        self._pending_BM = torch.tensor(padded, device=self._target.device)

    # --- rows leave, state stays -------------------------------------------------------------------------------------

    def keep(self, rows: list[int]) -> None:
        if self._held is not None:
            self._held.keep(rows)
        else:
            self._lm.keep(rows)
        self._last_B = self._last_B[rows]
        self._len_B = [self._len_B[row] for row in rows]
        self._end_B = [self._end_B[row] for row in rows]
        self._num_pending = [self._num_pending[row] for row in rows]
        self._pending_BM = self._pending_BM[rows]
        if self._seen_BV is not None:
            self._seen_BV = self._seen_BV[rows]
        if self._own_noise is not None:
            self._own_noise.keep(rows)

    def is_finite(self) -> bool:
        return self._finite.is_finite()

    def erase(self) -> None:
        self._lm.erase()
        self._finite.forget()

    def snapshot(self) -> object:
        return None if self._adaptive is None else self._adaptive.evidence

    def restore(self, snapshot: object) -> None:
        if self._adaptive is not None:
            assert isinstance(snapshot, Evidence), "a snapshot of this drafter holds its evidence"
            self._adaptive.evidence = snapshot

    # --- what fits ---------------------------------------------------------------------------------------------------

    def _room(self, row: int) -> int:
        """Draft tokens a row has use for: one less than its answer may grow by, and what the draft's context reads."""
        length = self._len_B[row]
        useful = self._end_B[row] - length - 1
        # Positions read are up to length + K - 2.
        return useful if self._context is None else max(min(useful, self._context + 1 - length), 0)

    def _valid(self, room_B: list[int], num: int) -> Tensor | None:
        if len(room_B) == 1 or min(room_B) >= num:
            return None
        return torch.tensor([[place < room for place in range(num)] for room in room_B], device=self._target.device)

    def _readable(self, tokens: Tensor) -> Tensor:
        """Ids the draft model has no row for are read as its last one: they cost acceptance, never correctness."""
        return tokens if self._lm.vocab_size >= self._target.vocab_size else tokens.clamp(max=self._lm.vocab_size - 1)

    def _shared(self, logits_BV: Tensor) -> Tensor:
        """The draft's logits over the target's vocabulary, -inf where an id is not shared."""
        if logits_BV.shape[-1] == self._target.vocab_size == self._num_shared:
            return logits_BV
        known = logits_BV[..., : self._num_shared]
        return F.pad(known, (0, self._target.vocab_size - self._num_shared), value=float("-inf"))
