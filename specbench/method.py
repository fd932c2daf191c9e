"""The adapter protocol: what a method sees of the target and what passes between it and the engine.

A method drafts a tree of tokens; the engine verifies, accepts, times. The drafter never calls the target's forward,
never accepts and never looks at a clock. A chain is a tree; no drafting is a tree of no nodes.

Shape legend: B sequences in flight, T tokens, N draft nodes of a step, P longest path, C = P + 1,
K tapped layers, D hidden size, V vocabulary, M = N + 1 parents (row 0 = root).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from specbench.sampling import Sampling
from specbench.tree import DraftTree

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from specbench.adapt.adaptation import Adaptation
    from specbench.lm.cached_lm import CachedLM

__all__ = [
    "Commit",
    "DraftNoise",
    "DraftTree",
    "Drafter",
    "Options",
    "Request",
    "Rule",
    "Sampling",
    "Tap",
    "TargetStats",
    "TargetView",
]

Tap = int | Literal["final"]
"""A decoder layer's output (0-based), or "final": the state the language-model head reads, after the final norm."""

Rule = Literal["coupled", "rejection", "typical"]
Options = Mapping[str, Any]
"""A card's options, already checked for type and range; `build` reads every one of them."""


@dataclass(frozen=True, kw_only=True)
class TargetView:
    """What a drafter may read of the target. Nothing here can run the target's forward."""

    name: str
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase | None
    embed_tokens: nn.Module
    lm_head: nn.Module
    final_norm: nn.Module | None
    stop_ids: tuple[int, ...]
    vocab_size: int
    device: torch.device
    dtype: torch.dtype
    attention: str
    """`--attention` as it was given. A model that a method loads follows it, `auto` by its own type and shapes."""
    max_batch: int
    max_len: int
    """Most tokens a sequence may hold, prompt and draft nodes included."""
    sampling: Sampling
    """The engine's processors; a drafter applies them to its own law as the engine applies them to the target's."""
    rule: Rule

    @property
    def hidden_size(self) -> int:
        """Width of the "final" state, which the head reads."""
        return _columns(self.lm_head)

    @property
    def embed_width(self) -> int:
        """Width of a row of the embedding table; differs from hidden_size where a model projects between the two."""
        return _columns(self.embed_tokens)


def _columns(module: nn.Module) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor), f"{type(module).__name__} holds no weight matrix"
    return int(weight.shape[1])


@dataclass(frozen=True, kw_only=True)
class Request:
    """One sequence to be decoded, as a drafter is told of it before its prefill."""

    key: int
    """64-bit key of (seed, question, turn): the only identity noise depends on."""
    prompt: tuple[int, ...]
    max_new_tokens: int
    reference: tuple[int, ...] | None = None
    """The autoregressive answer, for methods whose card says `requires: [reference]` (oracle); None for all others."""
    domain: str = ""
    """What kind of prompt it is (a suite's category), for methods that keep an adapter per kind."""
    system: str = ""
    """The system prompt as the user wrote it, '' without one; its tokens are part of `prompt`."""


class DraftNoise(Protocol):
    """Gumbel noise of the positions ahead. `coupled`: the acceptance noise itself; `rejection`: an independent
    stream."""

    def at_depth(self, depth: int) -> Tensor:
        """Noise for children at `depth` >= 1 below the root: float32 (B, V)."""
        ...


@dataclass(frozen=True)
class TargetStats:
    """What verification computed of the target anyway, for drafters that learn from it (`Drafter.wants_target`)."""

    logits_BMV: Tensor
    """The target's own logits before any processor: row m's law is that of the token after slot m (0 = root). The
    engine's memory, written anew in the next step: read it in `commit`, copy what is kept."""


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What the target made of a draft.

    root  n1  n2  n3        num_accepted = 2, path = (n1, n2, -1), tokens = (n1, n2, bonus, pad)
          ok  ok  no        hidden[i] predicted tokens[i]: hidden[0] is the root's state

    Where steps are captured the tensors are the engine's memory, written anew in the next step: what is kept of them
    beyond the next draft is copied, views included.
    """

    num_accepted_B: Tensor
    """int64 (B,), bonus excluded, before truncation."""
    path_BP: Tensor
    """int64 (B, P): accepted node indices, root first, -1 padded."""
    tokens_BC: Tensor
    """int64 (B, C): accepted tokens, then the bonus token, then padding (0)."""
    hidden_BCKD: Tensor | None
    """The tapped states that predicted tokens_BC; None for a drafter without taps."""
    tokens: list[list[int]]
    """The same tokens on the host, per row, cut at the stop; the engine read them already."""
    finished: list[bool]
    """Rows that end with this step; `keep` follows when others go on."""
    target: TargetStats | None = None
    """Set for a drafter that `wants_target`."""


class Drafter(ABC):
    """One method's drafting state for up to `max_batch` sequences.

    The engine calls, per group: `begin`, `prefill` (row by row, chunk by chunk), `start`, then per step `draft`,
    `commit`, and `keep` when rows leave. Rows are prefilled one at a time so that a row's numbers do not depend on its
    neighbours.
    """

    taps: tuple[Tap, ...] = ()
    carries: Literal["nothing", "stream"] = "nothing"
    """"stream" when state outlives a generation (tries, adapters, adaptive K): then snapshot/restore must be honest."""
    capturable: bool = False
    """True when draft() and commit() read nothing on the host and keep nothing in Python: fit for a CUDA graph."""
    carried: tuple[str, ...] = ()
    """Of a capturable drafter: the attributes (dotted names) that a step leaves for the next one. Tensors of one row
    per sequence, or None; draft() and commit() may replace them or write into them. Under capture the engine keeps
    them in one place and gives rows that have ended their old values back. Caches of which a carried length says how
    much counts need not be named: what stands behind the length is never read."""
    wants_target: bool = False
    """Whether commits bring the target's logits (`Commit.target`); read at every generation."""
    models: tuple[CachedLM, ...] = ()
    """Language models of its own that it drafts with: compiled, on CUDA, where the target is."""
    adaptation: Adaptation | None = None
    """What of it learns between requests (`specbench.adapt`), for whoever has the time to let it; None: nothing."""
    weights_hash: str = ""
    """sha256 of the drafter's weights, for provenance; empty for methods without any."""
    trained_on: str = ""
    """Weights hash of the target it was trained on; another target is noted on the row. Empty: not trained on one."""
    trained_quantisation: str = ""
    """How that target's weights were held ('none' for plain ones); another one is noted. Empty: not known."""
    notes: tuple[str, ...] = ()
    """What its row must say of it, one sentence each."""
    max_nodes: int = 0
    """Most nodes a draft may hold; the engine reserves cache slots for them."""
    branches: bool = True
    """False: every draft is a chain, so that a batch whose drafts come from the host needs graphs for no trees."""
    shows_q: bool = False
    """Set by an untimed replay, before `begin`: draft() also fills score_BN where it has a law that it would leave out
    for the sake of speed. Which tokens are drafted must not depend on it."""

    def begin(self, requests: Sequence[Request]) -> None:
        """A new group: forget the last one. requests[b] is row b."""

    def prefill(self, row: int, tokens_T: Tensor, hidden_TKD: Tensor | None, offset: int) -> None:
        """A chunk of row's prompt: positions offset .. offset + T - 1. hidden_TKD[t] is the state after tokens_T[t]."""

    def start(self, len_B: list[int], root_B: Tensor) -> None:
        """Prefill is over: root_B int64 (B,) is each row's first new token, len_B its length, root included."""

    @abstractmethod
    def draft(self, noise: DraftNoise | None) -> DraftTree:
        """Propose continuations of the current roots. noise is None at temperature 0."""

    def commit(self, commit: Commit) -> None:
        """The target's verdict on the last draft."""

    def follow(self, commit: Commit, is_own: list[bool]) -> None:
        """Called by a method that wraps this one in place of `commit`, where this drafter was not asked in this step,
        or the drafts of some rows were set aside. is_own[b]: row b's tree was this drafter's own draft.

        Of the other rows, tokens and hidden states are those of what was committed, path_BP is -1 throughout, and C
        may be larger than the own P + 1. The default is right for a drafter whose `commit` reads tokens and states
        alone; one whose state depends on what it drafted (an own cache, the accepted path) must override it.
        """
        self.commit(commit)

    def hold(self, span: int | None) -> None:
        """Of a capturable drafter, after `start` or `keep`: draft() and commit() are captured from now on, their Python
        runs once and not again. No row passes `span` tokens, draft included, while that capture is used, so own caches
        may be read up to there. None: steps run one by one again."""

    def keep(self, rows: list[int]) -> None:
        """Rows leave the batch: gather own per-row state so that new row i is old row rows[i]."""

    def snapshot(self) -> object:
        """State that outlives a generation, to be restored before every generation under `carry: none`."""
        return None

    def restore(self, snapshot: object) -> None:
        """Back to `snapshot`."""

    def is_finite(self) -> bool:
        """Whether all laws of its own have been numbers since the last `erase`. Asked once a generation, when nothing
        is timed any more: it may read the device. draft() and prefill() keep what it reads there (`lm.finite`).
        """
        return True

    def erase(self) -> None:
        """Zero the caches of its own, all slots of all rows: the target's logits or its own laws were not finite, and
        what stands behind a row's length weighs 0 in an attention, but 0 times NaN is NaN. Called between generations;
        what `begin` and `prefill` write in any case need not be zeroed. A method that wraps another passes it on."""

    def num_parameters(self) -> int:
        """Parameters the drafter adds to the target; 0 for training-free methods."""
        return 0


class Build(Protocol):
    """`methods/NAME/drafter.py` defines `build` of this shape; `inner` is set only where the card says `wraps`."""

    def __call__(self, options: Options, target: TargetView, inner: Drafter | None = None) -> Drafter: ...
