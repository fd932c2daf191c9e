"""What both forms of the CTC drafter share at work: features of committed tokens, their cache, the tree's size.

The anchor is the last feature z_t, made of the current root x_{t+1} and the target's state h_t that predicted it.
Everything stays on the device; nothing is read.

B rows, U frames, W beams, C committed tokens of a step, D width, S cache slots, V the drafter's vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from methods.ctc.context import FeatureCache
from methods.ctc.module import CtcNetwork
from specbench.beams import Expansion, grow
from specbench.lm.finite import FiniteWatch
from specbench.method import Commit, Drafter, DraftNoise, DraftTree, Options, Request, TargetView


class CtcDrafter(Drafter):
    """What both forms share: features of committed tokens, their cache, the tree's size. Weights are read as they are
    at every draft, never copied."""

    taps = ("final",)
    capturable = True
    carried: tuple[str, ...] = ("_root_B", "_anchor_BD", "_seen_BV")

    def __init__(self, network: CtcNetwork, target: TargetView, options: Options, *, depth: int) -> None:
        self._network = network
        self._target = target
        self._arch = network.architecture
        self._depth = depth
        self._width = cast("int", options["beams"])
        self._branch = cast("int", options["branch"])
        self._budget = cast("int", options["max_nodes"])
        num_all = depth * self._width
        self.max_nodes = min(num_all, self._budget) if self._budget else num_all
        sampling = target.sampling
        self._is_plain = sampling.is_greedy and not sampling.needs_context
        # Under `rejection` the noise has nothing to do with acceptance: the most probable nodes are the best.
        self._uses_noise = not sampling.is_greedy and options["draft"] == "shared-noise" and target.rule != "rejection"
        self._head = network.borrowed_head(target)
        self._seen_BV: Tensor | None = None
        self._cache: FeatureCache | None = None
        self._pending_BD = torch.empty(0)
        self._anchor_BD = torch.empty(0)
        self._root_B = torch.empty(0, dtype=torch.long)
        self._finite = FiniteWatch(target.device)
        self._rows_B = torch.arange(target.max_batch, device=target.device)

    def _make_cache(self, scratch: int) -> FeatureCache | None:
        layer = self._network.layer
        if layer is None:
            return None
        self.carried = (*self.carried, "_cache.len_B")
        arch = self._arch
        return FeatureCache(
            layer.self_attn,
            kv_heads=arch.kv_heads,
            head_dim=arch.head_dim,
            theta=arch.rope_theta,
            target=self._target,
            # A commit writes every column of its step, the accepted ones and what follows them.
            scratch=max(scratch, self._depth + 1),
        )

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._network.parameters())

    # --- a group begins ----------------------------------------------------------------------------------------------

    def begin(self, requests: Sequence[Request]) -> None:
        num_rows, target = len(requests), self._target
        self._pending_BD = torch.zeros(num_rows, target.hidden_size, dtype=target.dtype, device=target.device)
        if self._cache is not None:
            self._cache.begin(num_rows)
        if target.sampling.needs_context:
            self._seen_BV = torch.zeros(num_rows, target.vocab_size, dtype=torch.bool, device=target.device)

    def prefill(self, row: int, tokens_T: Tensor, hidden_TKD: Tensor | None, offset: int) -> None:
        assert hidden_TKD is not None, "the final states are tapped"
        if self._seen_BV is not None:
            self._seen_BV[row, tokens_T] = True
        state_TD = hidden_TKD[:, 0]
        if self._cache is not None:
            # Feature i needs token i + 1: a chunk's last state waits for the next chunk, or for the root.
            states, tokens = state_TD[:-1], tokens_T[1:]
            if offset:
                states, tokens = torch.cat([self._pending_BD[row, None], states]), tokens_T
            if tokens.shape[0]:
                z_TD = self._features(tokens, states)
                self._finite.see(z_TD)
                self._cache.fill(row, z_TD, max(offset - 1, 0))
        self._pending_BD[row] = state_TD[-1]

    def start(self, len_B: list[int], root_B: Tensor) -> None:
        if self._cache is not None:
            lengths = torch.tensor(len_B, device=root_B.device) - 2
            self._cache.set_lengths(lengths, max(len_B) - 2)
        self._follow(root_B[:, None], self._pending_BD[:, None], torch.zeros_like(root_B))
        if self._seen_BV is not None:
            self._seen_BV.scatter_(1, root_B[:, None], True)

    def _features(self, tokens: Tensor, states: Tensor) -> Tensor:
        embedded: Tensor = self._target.embed_tokens(tokens)
        dtype = self._network.dtype
        return self._network.features(embedded.to(dtype), states.to(dtype))

    def _follow(self, tokens_BC: Tensor, states_BCD: Tensor, last_B: Tensor) -> None:
        """New tokens, each with the state that predicted it; the one at `last` is the root."""
        z_BCD = self._features(tokens_BC, states_BCD)
        rows_B = self._rows_B[: tokens_BC.shape[0]]
        self._anchor_BD, self._root_B = z_BCD[rows_B, last_B], tokens_BC[rows_B, last_B]
        if self._cache is not None:
            self._cache.append(z_BCD, last_B + 1)

    # --- a step ------------------------------------------------------------------------------------------------------

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        return self._grow(noise if self._uses_noise else None)

    @abstractmethod
    def _grow(self, noise: DraftNoise | None) -> DraftTree:
        """The draft; noise is the acceptance noise, where it is to be used."""

    def commit(self, commit: Commit) -> None:
        assert commit.hidden_BCKD is not None, "the final states are tapped"
        self._follow(commit.tokens_BC, commit.hidden_BCKD[:, :, 0], commit.num_accepted_B)
        if self._seen_BV is not None:
            places = torch.arange(commit.tokens_BC.shape[1], device=commit.tokens_BC.device)
            is_committed = places <= commit.num_accepted_B[:, None]
            # Padding repeats column 0, which is always committed.
            self._seen_BV.scatter_(1, torch.where(is_committed, commit.tokens_BC, commit.tokens_BC[:, :1]), True)

    def hold(self, span: int | None) -> None:
        if self._cache is not None:
            self._cache.hold(span)

    def is_finite(self) -> bool:
        return self._finite.is_finite()

    def erase(self) -> None:
        if self._cache is not None:
            self._cache.erase()
        self._finite.forget()

    def keep(self, rows: list[int]) -> None:
        self._pending_BD, self._anchor_BD = self._pending_BD[rows], self._anchor_BD[rows]
        self._root_B = self._root_B[rows]
        if self._cache is not None:
            self._cache.keep(rows)
        if self._seen_BV is not None:
            self._seen_BV = self._seen_BV[rows]

    # --- what both forms do with laws --------------------------------------------------------------------------------

    def _noise(self, noise: DraftNoise | None) -> Callable[[int], Tensor] | None:
        if noise is None:
            return None
        vocabulary = self._network.vocabulary

        def at(depth: int) -> Tensor:
            found = vocabulary.noise(noise.at_depth(depth))
            assert found is not None
            return found

        return at

    def _tree(self, index: list[Tensor], grown: list[Expansion]) -> DraftTree:
        vocabulary = self._network.vocabulary
        # The best beam of the deepest level: topk takes NaN for the greatest, and its children are NaN again.
        self._finite.see(grown[-1].logq_BW[:, :1])
        return grow(
            [vocabulary.to_target(each) for each in index],
            [each.parent_BW for each in grown],
            [each.priority_BW for each in grown],
            [each.logq_BW for each in grown],
            max_nodes=self._budget,
        ).tree
