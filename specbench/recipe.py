"""How a drafter is trained: what a recipe sees of the frozen target, and what it gives back to the training runner.

The runner owns data, the target's forward, optimiser, schedule, accumulation, checkpoints and metrics. A recipe
(`methods/NAME/train.py`) turns features into a loss and never sees accelerate, files or clocks.

Offsets, once for all methods. h_t is the target's state after x_t; it predicted x_{t+1}. An anchor t stands where a
draft begins: x_{t+1} is the root (the target's own token), depth i reads x_{t+1+i} and is asked for x_{t+2+i}:

    anchor  t      ahead[0] = x_{t+1}   ahead[1] = x_{t+2}   ahead[2] = x_{t+3}
    state   h_t    (root, given)        label of depth 0     label of depth 1
    teacher        law after ahead[0] -> depth 0's           law after ahead[1] -> depth 1's

B packed rows, T tokens a row, K taps, D hidden size, A anchors, n depths, F = n + 1 tokens ahead, S states of the
target in one flat table (B * T of the text, row-major, then those of continuations), N any number of them, V
vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from specbench.losses import DepthCounts, Law, Objective
from specbench.method import Drafter, Options, Tap, TargetView


class Teacher(Protocol):
    """The frozen target's next-token laws."""

    def law(self, index_N: Tensor) -> Law:
        """Laws after the tokens of these flat states: whole (recomputed from the states) or top-k and tail (from a
        cache)."""
        ...


class Continuations(NamedTuple):
    """What the target itself writes after every text position (`seq`, local distillation, Zhang 2024): greedy, F tokens
    each. Row b, place t, column i lies at flat state B * T + (b * T + t) * F + i."""

    tokens_BTF: Tensor
    valid_BTF: Tensor | None = None
    """bool: no stop id stands before it; what a target writes behind the end of its answer is never drafted. None: no
    token ends an answer."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """One micro-batch after the frozen target's forward. Documents stand packed behind each other; nothing of one was
    seen by another."""

    tokens_BT: Tensor
    """int64."""
    document_BT: Tensor
    """int64: which document of its row a token belongs to, ascending from 0; -1 is padding, at the end."""
    learn_BT: Tensor
    """bool: the token may be a label (assistant text under `assistant-only`)."""
    states_BTKD: Tensor
    """States of the recipe's taps, in the target's dtype, without gradient."""
    teacher: Teacher | None = None
    """Set when the objective asks for it."""
    continuations: Continuations | None = None
    """Set under `seq`."""
    keys_B: Tensor | None = None
    """int64: a number of each row, another one at every step. What a recipe draws by it (`sampling.uniforms`) does not
    depend on how a batch was cut. Set in training."""


class Windows(NamedTuple):
    """Anchors and what follows them."""

    anchor_A: Tensor
    """int64: flat index (b * T + t) of the anchor, of its state and of its token."""
    ahead_AF: Tensor
    """int64: the tokens after the anchor; column 0 is the root. 0 where there is none."""
    valid_AF: Tensor
    """bool. Column 0: the root exists. Column i + 1: it may be the label of depth i."""
    state_AF: Tensor
    """int64: flat index of the state after each of them, for `Teacher.law`. Depth i's law is that of column i."""


def windows(features: Features, *, depth: int, only_generated: bool = False) -> Windows:
    """All anchors with at least one valid label.

    Only a label must be assistant text; anchor and inputs may lie in the prompt (Zhang 2024). only_generated: the root
    must be assistant text too, as it always is when drafting. Under `seq` the tokens ahead are the target's own, and an
    anchor counts where its next text token may be learnt and its root does not end the answer.
    """
    tokens_BT, document_BT, learn_BT = features.tokens_BT, features.document_BT, features.learn_BT
    num_rows, num_tokens = tokens_BT.shape
    width = depth + 1
    device = tokens_BT.device
    place_T = torch.arange(num_tokens, device=device)
    row_base_B = torch.arange(num_rows, device=device)[:, None] * num_tokens
    is_text_BT = document_BT >= 0
    if features.continuations is not None:
        ahead = features.continuations.tokens_BTF
        assert ahead.shape[2] >= width, f"{ahead.shape[2]} continuation tokens for {depth} depths: one more is needed"
        stride = ahead.shape[2]
        following = torch.zeros_like(learn_BT)
        following[:, :-1] = learn_BT[:, 1:] & (document_BT[:, 1:] == document_BT[:, :-1])
        valid_BTF = features.continuations.valid_BTF
        valid_BTF = torch.ones_like(ahead, dtype=torch.bool) if valid_BTF is None else valid_BTF
        is_anchor_BT = is_text_BT & following & valid_BTF[..., 1:width].any(-1)
        flat = (row_base_B + place_T)[is_anchor_BT]
        columns = torch.arange(width, device=device)
        return Windows(
            anchor_A=flat,
            ahead_AF=ahead[..., :width][is_anchor_BT],
            valid_AF=valid_BTF[..., :width][is_anchor_BT],
            state_AF=num_rows * num_tokens + flat[:, None] * stride + columns,
        )
    index_TF = place_T[:, None] + torch.arange(1, width + 1, device=device)
    inside_TF = index_TF < num_tokens
    index_TF = index_TF.clamp(max=num_tokens - 1)
    exists_BTF = inside_TF & (document_BT[:, index_TF] == document_BT[:, :, None]) & is_text_BT[:, :, None]
    valid_BTF = exists_BTF & learn_BT[:, index_TF]
    if only_generated:
        valid_BTF = valid_BTF & valid_BTF[:, :, :1]
    valid_BTF[:, :, 0] = exists_BTF[:, :, 0]
    is_anchor_BT = valid_BTF[:, :, 1:].any(-1)
    return Windows(
        anchor_A=(row_base_B + place_T)[is_anchor_BT],
        ahead_AF=torch.where(exists_BTF, tokens_BT[:, index_TF], 0)[is_anchor_BT],
        valid_AF=valid_BTF[is_anchor_BT],
        state_AF=(row_base_B[:, :, None] + index_TF)[is_anchor_BT],
    )


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One micro-batch's loss as sums; the runner divides after adding up micro-batches and processes."""

    total: Tensor
    """Scalar with gradient: the sum over anchors of what an anchor costs (its depths added up)."""
    num_anchors: Tensor
    """Scalar int64: what `total` is divided by, however the batch was cut."""
    counts: DepthCounts
    """Without gradient, for the metrics per depth."""
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    """Named detached sums over anchors of the loss's terms, where it has several (ctc, regression, ...)."""


class Recipe(ABC):
    """One method's trainable drafter. `build(options, target)` in `methods/NAME/train.py` returns one; the options are
    the card's `training:` section, checked."""

    taps: ClassVar[tuple[Tap, ...]] = ("final",)
    """States that `Features.states_BTKD` must hold, in this order."""
    depth: int
    """n: depths that are learnt; `seq` makes n + 1 continuation tokens."""
    module: nn.Module
    """What learns, and nothing else: the target's embedding and head are read from the TargetView, frozen."""
    architecture: dict[str, Any]
    """JSON-able: what `build` in drafter.py needs to make the module again; stored in the checkpoint's config.json."""

    def see_labels(self, counts_V: Tensor) -> None:
        """Called once, before the first step of a fresh training (not at a resume, whose weights decide): how often
        each target id is a label in the data, int64 (V,). For trimmed vocabularies (`blocks.frequent_ids`)."""

    @abstractmethod
    def loss(self, features: Features, objective: Objective) -> Loss:
        """Runs inside the wrapped module's forward (DDP, FSDP): use `self.module`'s parameters only here."""

    @abstractmethod
    def drafter(self, target: TargetView, options: Options) -> Drafter:
        """A drafter over the live weights (shared, not copied), for simulated acceptance and the save/load test.

        options: the card's drafting options with their defaults; `weights` is not read.
        """


class BuildRecipe(Protocol):
    """`methods/NAME/train.py` defines `build` of this shape."""

    def __call__(self, options: Options, target: TargetView) -> Recipe: ...
