"""EAGLE-1's chain of states, one token after the other (eagle).

B rows, U frames, W beams, C committed tokens of a step, D width, S cache slots, V the drafter's vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor

from methods.ctc.context import FeatureCache
from methods.ctc.drafting import CtcDrafter
from methods.ctc.laid_out import LaidOutLayer, fits
from methods.ctc.module import CtcNetwork
from methods.ctc.transform import collapse_tree
from specbench.beams import expand
from specbench.errors import UsageError
from specbench.method import DraftNoise, DraftTree, Options, TargetView
from specbench.sampling import log_probs
from specbench.tree import chain

EAGLE_DEPTH = 4
"""Depth of the released tree."""


class EagleDrafter(CtcDrafter):
    """EAGLE-1: a state in place of the target's next one, depth by depth; W paths at one time."""

    def __init__(self, network: CtcNetwork, target: TargetView, options: Options) -> None:
        if options["top_k"]:
            raise UsageError(
                "top_k belongs to the prefix search of form nar; this drafter is of form eagle",
                where="ctc.top_k",
                try_=f"ctc.branch={options['top_k']}",
            )
        super().__init__(network, target, options, depth=cast("int", options["num_tokens"]) or EAGLE_DEPTH)
        if self._width == 1 and self._budget:
            self._depth = min(self._depth, self._budget)
        self._collapses = options["transform"] == "collapse"
        self._scratch = self._width * self._depth
        self._cache = self._make_cache(self._scratch)
        self._own_NN = torch.eye(self._scratch, dtype=torch.bool, device=target.device)
        self._laid_out: LaidOutLayer | None = None

    def lay_out(self) -> None:
        """Drafts run on weights in another order from now on; the network must not learn any more."""
        layer = self._network.layer
        if layer is not None and fits(self._network, self._target):
            self._laid_out = LaidOutLayer(self._network, layer, self._target)

    def _grow(self, noise: DraftNoise | None) -> DraftTree:
        if self._width == 1 and not self._collapses and self._laid_out is not None and self._cache is not None:
            return self._chain(self._laid_out, self._cache, noise)
        return self._paths(noise)

    def _chain(self, layer: LaidOutLayer, cache: FeatureCache, noise: DraftNoise | None) -> DraftTree:
        vocabulary, noise_at = self._network.vocabulary, self._noise(noise)
        seen_BV = None if self._seen_BV is None else self._seen_BV.clone()
        # The anchor's keys and values stand there already; they are written again.
        z_BD, place_B = self._anchor_BD, cache.len_B - 1
        drafted: list[Tensor] = []
        logq: list[Tensor] = []
        for depth in range(1, self._depth + 1):
            state_BD = layer.follow(z_BD, partial(cache.advance, place_B=place_B))
            scores_BV = self._network.token_logits(state_BD, self._head)
            if not self._is_plain:
                scores_BV = vocabulary.scores(scores_BV, self._target, seen_BV)
            law_BV = scores_BV
            if noise_at is not None:
                scores_BV = scores_BV + noise_at(depth)
            best_B = scores_BV.argmax(-1)
            token_B = vocabulary.to_target(best_B)
            drafted.append(token_B)
            if self.shows_q:
                logq.append(log_probs(law_BV).gather(1, best_B[:, None]))
            if depth == self._depth:
                # An argmax takes NaN for the greatest, and what was NaN before it is read by it.
                self._finite.see(law_BV.gather(1, best_B[:, None]))
                break
            if seen_BV is not None:
                seen_BV.scatter_(1, token_B[:, None], True)
            z_BD, place_B = layer.features(token_B, state_BD), place_B + 1
        return chain(torch.stack(drafted, 1), score_BN=torch.cat(logq, 1) if logq else None)

    def _paths(self, noise: DraftNoise | None) -> DraftTree:
        network, noise_at = self._network, self._noise(noise)
        num_rows = self._root_B.shape[0]
        rows_B1 = self._rows_B[:num_rows, None]
        seen_BWV = None if self._seen_BV is None else self._seen_BV[:, None]
        state_BWD = self._first_state()[:, None]
        places = None if self._cache is None else _Places.behind(self._cache, self._scratch)
        above_BWN = self._own_NN.new_zeros(num_rows, 1, self._scratch)
        priority_BW = torch.zeros_like(state_BWD[..., 0], dtype=torch.promote_types(state_BWD.dtype, torch.float32))
        index, levels, used = [], [], 0
        for depth in range(1, self._depth + 1):
            scores = network.token_logits(state_BWD, self._head)
            if not self._is_plain:
                scores = network.vocabulary.scores(scores, self._target, seen_BWV)
            noise_BV = None if noise_at is None else noise_at(depth)
            grown = expand(priority_BW, scores, noise_BV, width=self._width, branch=self._branch)
            index.append(grown.index_BW)
            levels.append(grown)
            if depth == self._depth:
                break
            token_BW, width = network.vocabulary.to_target(grown.index_BW), grown.index_BW.shape[1]
            if seen_BWV is not None:
                seen_BWV = seen_BWV[rows_B1, grown.parent_BW].scatter(2, token_BW[..., None], True)
            state_BWD = state_BWD[rows_B1, grown.parent_BW]
            if places is None:
                state_BWD = network.mapped(self._features(token_BW, state_BWD))
            else:
                above_BWN = above_BWN[rows_B1, grown.parent_BW] | self._own_NN[used : used + width]
                state_BWD = self._next_state(token_BW, state_BWD, places, places.seen(above_BWN), depth, used)
            priority_BW, used = grown.priority_BW, used + width
        tree = self._tree(index, levels)
        return collapse_tree(tree) if self._collapses else tree

    def _first_state(self) -> Tensor:
        """f (B, D) of the anchor, whose keys and values are committed already."""
        cache, layer = self._cache, self._network.layer
        if cache is None or layer is None:
            return self._network.mapped(self._anchor_BD)
        if self._laid_out is not None:
            return self._laid_out.follow(self._anchor_BD, partial(cache.advance, place_B=cache.len_B - 1))
        places_B1 = cache.len_B[:, None] - 1
        sees_B1S = cache.slots(cache.num_read) <= places_B1[..., None]
        anchor_B1D = self._anchor_BD[:, None]
        return layer.after(anchor_B1D, cache.read(anchor_B1D, places_B1, sees_B1S))[:, 0]

    def _next_state(
        self, token_BW: Tensor, state_BWD: Tensor, places: _Places, sees_BWS: Tensor, depth: int, used: int
    ) -> Tensor:
        """f of nodes at `depth`, of their tokens and their parents' states. used: nodes that stand before them."""
        cache, layer = self._cache, self._network.layer
        assert cache is not None and layer is not None, "there are places behind a text that is kept"
        shape = token_BW.shape
        place_BW = (places.end_B1 + (depth - 1)).expand(shape)
        slot_BW = places.end_B1 + cache.slots(used + shape[1])[used:]
        if self._laid_out is None:
            z_BWD = self._features(token_BW, state_BWD)
            cache.write(z_BWD, slot_BW, place_BW)
            return layer.after(z_BWD, cache.read(z_BWD, place_BW, sees_BWS))

        def attend(heads_NXd: Tensor) -> Tensor:
            heads_BWXd = heads_NXd.view(*shape, *heads_NXd.shape[1:])
            return cache.grow(heads_BWXd, slot_BW, place_BW, sees_BWS).flatten(0, 1)

        z_ND = self._laid_out.features(token_BW.flatten(), state_BWD.flatten(0, 1))
        return self._laid_out.follow(z_ND, attend).view(*shape, -1)


class _Places(NamedTuple):
    """Where the nodes of a draft stand, behind the text of each row: the same at every depth."""

    end_B1: Tensor
    """First slot behind the text."""
    node_BS: Tensor
    """Which node stands in a slot; of any where none does."""
    is_node_BS: Tensor
    is_text_B1S: Tensor

    @classmethod
    def behind(cls, cache: FeatureCache, num_nodes: int) -> _Places:
        """Of the cache as it is now."""
        end_B1 = cache.len_B[:, None]
        behind_BS = cache.slots(cache.num_read) - end_B1
        node_BS = behind_BS.clamp(0, num_nodes - 1)
        return cls(end_B1, node_BS, behind_BS == node_BS, (behind_BS < 0)[:, None])

    def seen(self, above_BWN: Tensor) -> Tensor:
        """above: which nodes each of W nodes sees -> all slots it sees (B, W, S)."""
        node_BWS = self.node_BS[:, None].expand(-1, above_BWN.shape[1], -1)
        return (above_BWN.gather(2, node_BWS) & self.is_node_BS[:, None]) | self.is_text_B1S
