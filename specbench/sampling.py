"""Logits processors and position-keyed noise: the same code for the target, the baseline and every drafter's own law.

Every random choice in specbench is a function of (seed, question, turn, position, token) and nothing else: never of
batch row, repeat, method or tree. That is what makes the text of any method at any temperature equal, token for
token, to
seeded autoregression (rule `coupled`), and losslessness a matter of equality.

V vocabulary, Q positions, B sequences; (..., V) means any leading shape.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from specbench.errors import UsageError

_NEG_INF = float("-inf")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """temperature 0 = greedy. top_k 0, top_p 1, min_p 0, repetition_penalty 1 = off. Raises UsageError out of range."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        checks = (
            ("temperature", self.temperature, self.temperature >= 0.0 and math.isfinite(self.temperature), ">= 0"),
            ("top-k", self.top_k, self.top_k >= 0, ">= 0 (0 = off)"),
            ("top-p", self.top_p, 0.0 < self.top_p <= 1.0, "in (0, 1]"),
            ("min-p", self.min_p, 0.0 <= self.min_p < 1.0, "in [0, 1)"),
            ("repetition-penalty", self.repetition_penalty, self.repetition_penalty > 0.0, "> 0"),
        )
        for name, value, is_ok, wanted in checks:
            if not is_ok:
                raise UsageError(f"--{name} {value} is out of range", try_=f"--{name} must be {wanted}")

    @property
    def is_greedy(self) -> bool:
        """No noise is drawn."""
        return self.temperature == 0.0

    @property
    def needs_context(self) -> bool:
        """Whether `process` must be told which tokens a context holds."""
        return self.repetition_penalty != 1.0


def process(logits: Tensor, sampling: Sampling, seen: Tensor | None = None) -> Tensor:
    """Logits (..., V) -> scores (..., V): log-probabilities up to a constant per row, -inf where a filter removed a
    token.

    float32, or float64 for float64 logits. Order as in transformers: repetition penalty, temperature, top-k, top-p,
    min-p. seen (..., V) bool: tokens in prompt + committed + ancestors (CTRL's penalty, Keskar 2019); required when the
    penalty is on. At temperature 0 only the penalty applies: the filters never remove the argmax.
    """
    scores = logits if logits.dtype == torch.float64 else logits.float()
    if sampling.needs_context:
        assert seen is not None, "repetition penalty needs the context's tokens"
        penalty = sampling.repetition_penalty
        scores = torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
    if sampling.is_greedy:
        return scores
    if sampling.temperature != 1.0:
        scores = scores / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        kth = scores.topk(sampling.top_k, dim=-1).values[..., -1:]
        scores = scores.masked_fill(scores < kth, _NEG_INF)
    if sampling.top_p < 1.0:
        scores = _keep_nucleus(scores, sampling.top_p)
    if sampling.min_p > 0.0:
        floor = scores.max(-1, keepdim=True).values + math.log(sampling.min_p)
        scores = scores.masked_fill(scores < floor, _NEG_INF)
    return scores


def _keep_nucleus(scores: Tensor, top_p: float) -> Tensor:
    """The smallest set of most probable tokens whose mass reaches top_p (Holtzman 2019); at least one token stays."""
    ordered, index = scores.sort(dim=-1, descending=True, stable=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    removed = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, index, before >= top_p)
    return scores.masked_fill(removed, _NEG_INF)


def log_probs(scores: Tensor) -> Tensor:
    """Normalised log-probabilities of `process`'s scores, same shape."""
    return scores.log_softmax(-1)


# --- noise -----------------------------------------------------------------------------------------------------------

_MASK64 = (1 << 64) - 1
# splitmix64's finaliser (Steele, Lea & Flood 2014) as signed 64-bit constants: torch has no uint64 multiply on every
# device.
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_POSITION_STRIDE = 0xD1B54A32D192ED03 - (1 << 64)

STREAM_ACCEPT = 0
"""What the acceptance rule draws with; under `coupled` drafters draw with it too."""
STREAM_DRAFT = 1
"""Drafters' own stream under `rejection`: independent of acceptance."""
STREAM_TEST = 2
"""Uniforms of the accept tests under `rejection`."""


def sequence_key(*, seed: int, question_id: str, turn: int) -> int:
    """The 63-bit identity noise is keyed by. Text ids are hashed, so a row's place in a batch or a subset never
    matters."""
    digest = hashlib.blake2b(f"{seed}\x1f{question_id}\x1f{turn}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _stream_key(key: int, stream: int) -> int:
    mixed = (key + (stream + 1) * 0x9E3779B97F4A7C15) & _MASK64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK64
    mixed ^= mixed >> 31
    return mixed - (1 << 64) if mixed >= 1 << 63 else mixed


def _mix(z: Tensor) -> Tensor:
    """splitmix64 finaliser on int64; arithmetic shifts are masked into logical ones."""
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _MIX_1
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _MIX_2
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def uniforms(keys_B: Tensor, positions_BQ: Tensor, size: int) -> Tensor:
    """Counter-based uniforms in (0, 1): float32 (B, Q, size), a pure function of (key, position, index).

    40 random bits, half a step off both ends; float32 keeps full relative precision near 0, where it matters for
    `gumbel`.
    """
    row_BQ = _mix(keys_B[:, None] + positions_BQ * _POSITION_STRIDE)
    index_V = torch.arange(1, size + 1, device=keys_B.device) * _GOLDEN
    bits = _mix(row_BQ[:, :, None] + index_V) >> 24 & ((1 << 40) - 1)
    unit = (bits * 2 + 1).to(torch.float32).mul_(2.0**-41)
    return unit.clamp_(max=1.0 - 2.0**-24)


def gumbel(keys_B: Tensor, positions_BQ: Tensor, size: int) -> Tensor:
    """Standard Gumbel noise, float32 (B, Q, size): -log(-log1p(-u)). argmax(log p + g) is a draw from p (Gumbel
    1954)."""
    return uniforms(keys_B, positions_BQ, size).neg_().log1p_().neg_().log_().neg_()


_MOST_AT_ONCE = 1 << 17
"""Elements that one call of the hash makes on a CPU: its integers, 8 bytes each and several of them, then stay in a
core's cache. On one thread of an AMD EPYC a row of 151,936 takes 1.3 ms by itself and 14 ms in a block of 32."""
_MOST_AHEAD = 1 << 22
"""Elements that all rows of a batch together make before they are asked for."""


def rows_at_once(vocab_size: int, device: torch.device, *, num_rows: int = 1) -> int:
    """Positions of noise that one call of the hash makes for one of num_rows rows, at least one. Few large calls are
    cheaper than many small ones, until they outgrow a CPU's cache or, elsewhere, the memory they are kept in."""
    most = min(32, _MOST_AHEAD // (num_rows * vocab_size))
    return max(1, most if device.type != "cpu" else min(most, _MOST_AT_ONCE // vocab_size))


class _RowNoise:
    """Noise of one row: a page of made positions that its text walks along. A position is made once."""

    def __init__(self, key_1: Tensor, vocab_size: int, block: int) -> None:
        self._key_1 = key_1
        self._block_size = block
        self._page = torch.empty(0, vocab_size, device=key_1.device)
        """(room, V): positions from `_first` on, of which the first `_known` are made. It is handed out in views: what
        is made is never written again, and a larger page is another tensor."""
        self._first = 0
        self._known = 0

    def ahead(self, first: int, num: int) -> Tensor:
        """Positions first .. first + num - 1: (num, V)."""
        begin = first - self._first
        if not 0 <= begin <= self._known:
            self._page, self._first, self._known, begin = self._page[:0], first, 0, 0
        if begin + num > self._known:
            wanted = max(begin + num, self._known + self._block_size)
            if wanted > self._page.shape[0]:
                wanted -= begin
                self._move_to(begin, room=2 * wanted)  # twice, so that what is kept seldom moves
                begin = 0
            self._make(wanted)
        return self._page[begin : begin + num]

    def _move_to(self, begin: int, *, room: int) -> None:
        """Another page, which begins with what is this one's place `begin`."""
        kept = self._page[begin : self._known]
        self._page = self._page.new_empty(room, self._page.shape[1])
        self._page[: kept.shape[0]] = kept
        self._first, self._known = self._first + begin, kept.shape[0]

    def _make(self, wanted: int) -> None:
        """The first `wanted` places, a block at a time."""
        for start in range(self._known, wanted, self._block_size):
            end = min(start + self._block_size, wanted)
            positions = torch.arange(self._first + start, self._first + end, device=self._key_1.device)
            self._page[start:end] = gumbel(self._key_1, positions[None], self._page.shape[1])[0]
        self._known = wanted


class NoiseStream:
    """Gumbel noise of the positions ahead of B roots. Satisfies `method.DraftNoise`.

    `seek` once per step. Positions are made once, `block` of a row at a time (`rows_at_once` where none is given), and
    kept until the row's text has passed them: what a step's draft did not reach is the next step's. Values depend on
    none of this.
    """

    def __init__(
        self, keys: list[int], *, vocab_size: int, device: torch.device, stream: int, block: int | None = None
    ) -> None:
        keys_B = torch.tensor(stream_keys(keys, stream), device=device)
        block = block or rows_at_once(vocab_size, device, num_rows=len(keys))
        self._rows = [_RowNoise(keys_B[row : row + 1], vocab_size, block) for row in range(len(keys))]
        self._len_B = [0] * len(keys)

    def seek(self, len_B: list[int]) -> None:
        """len_B: committed tokens per row, root included; the root stands at position len - 1."""
        self._len_B = list(len_B)

    def ahead(self, num: int) -> Tensor:
        """Noise of depths 1 .. num below the roots: float32 (B, num, V)."""
        found = [row.ahead(length, num) for row, length in zip(self._rows, self._len_B, strict=True)]
        return found[0][None] if len(found) == 1 else torch.stack(found)

    def at_depth(self, depth: int) -> Tensor:
        """Noise for children at `depth` >= 1: float32 (B, V)."""
        found = [row.ahead(length, depth)[depth - 1] for row, length in zip(self._rows, self._len_B, strict=True)]
        return found[0][None] if len(found) == 1 else torch.stack(found)

    def keep(self, rows: list[int]) -> None:
        """Rows left the batch."""
        self._rows = [self._rows[row] for row in rows]
        self._len_B = [self._len_B[row] for row in rows]


class PinnedNoise:
    """`NoiseStream` of steps that are captured: keys and positions are read from tensors that never move.

    roots_B: position of each row's root. `renew` at the beginning of each step: until then what was made is kept. What
    lies ahead is made anew in every step, as a captured step has one shape however far its rows have come.
    """

    def __init__(self, keys_B: Tensor, roots_B: Tensor, *, vocab_size: int) -> None:
        self._keys_B = keys_B
        self._roots_B = roots_B
        self._vocab_size = vocab_size
        self._ahead: Tensor | None = None

    def renew(self) -> None:
        """The roots have moved."""
        self._ahead = None

    def ahead(self, num: int) -> Tensor:
        """Noise of depths 1 .. num below the roots: float32 (B, num, V)."""
        known = 0 if self._ahead is None else self._ahead.shape[1]
        if self._ahead is None or known < num:
            offsets = torch.arange(known + 1, num + 1, device=self._keys_B.device)
            more = gumbel(self._keys_B, self._roots_B[:, None] + offsets, self._vocab_size)
            self._ahead = more if self._ahead is None else torch.cat([self._ahead, more], dim=1)
        return self._ahead[:, :num]

    def at_depth(self, depth: int) -> Tensor:
        """Noise for children at `depth` >= 1: float32 (B, V)."""
        return self.ahead(depth)[:, depth - 1]


def stream_keys(keys: list[int], stream: int) -> list[int]:
    """The keys one stream of these sequences draws with."""
    return [_stream_key(key, stream) for key in keys]


def top_children(scores: Tensor, noise: Tensor | None, num: int) -> Tensor:
    """Ids of the `num` best children: top-k of scores + noise (scores alone at temperature 0). (..., V) -> int64
    (..., num).

    With the acceptance noise this is drafting with the same noise: the first child is the target's own token whenever
    target and drafter agree on the perturbed argmax (architecture 5).
    """
    perturbed = scores if noise is None else scores + noise
    if num == 1:
        return perturbed.argmax(-1, keepdim=True)
    return perturbed.topk(num, dim=-1).indices
