"""The CTC drafter at work: parallel frames and prefix search (nar), or EAGLE-1's chain of states (eagle).

The anchor is the last feature z_t, made of the current root x_{t+1} and the target's state h_t that predicted it.
Everything stays on the device; nothing is read.

B rows, U frames, W beams, C committed tokens of a step, D width, S cache slots, V the drafter's vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor

from methods.ctc.architecture import Architecture
from methods.ctc.context import FeatureCache
from methods.ctc.laid_out import LaidOutLayer, fits
from methods.ctc.module import CtcNetwork
from methods.ctc.prefix_search import Levels, frames_of, independent, search
from methods.ctc.transform import collapse_tree
from specbench import checkpoint
from specbench.beams import Expansion, expand, grown_tree
from specbench.errors import UsageError
from specbench.linear import lay_out_linears
from specbench.method import Commit, Drafter, DraftNoise, DraftTree, Options, Request, TargetView
from specbench.sampling import log_probs, process
from specbench.tree import chain

NAME = "ctc"
EAGLE_DEPTH = 4
"""Depth of the released tree."""


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
                self._cache.fill(row, self._features(tokens, states), max(offset - 1, 0))
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
        return grown_tree(
            [vocabulary.to_target(each) for each in index],
            [each.parent_BW for each in grown],
            [each.priority_BW for each in grown],
            [each.logq_BW for each in grown],
            max_nodes=self._budget,
        )


class NarDrafter(CtcDrafter):
    """All frames in one pass, then the prefixes of their collapsed output (or, `off`, one depth a frame)."""

    def __init__(self, network: CtcNetwork, target: TargetView, options: Options) -> None:
        arch = network.architecture
        asked = cast("int", options["num_tokens"])
        super().__init__(network, target, options, depth=min(asked or arch.labels, arch.frames))
        wish = options["transform"]
        self._collapses = wish == "collapse" or (wish == "auto" and arch.has_blank)
        self._top_k = cast("int", options["top_k"])
        # The penalty is for logits, and a collapsed law has none: it enters with the frames.
        self._processors = replace(target.sampling, repetition_penalty=1.0)
        self._cache = self._make_cache(arch.frames)
        self._frame_U = torch.arange(arch.frames, device=target.device)
        if self._width == 1 and self._budget:
            self._depth = min(self._depth, self._budget)

    def frame_logits(self) -> Tensor:
        """(B, U, W + 1) with a blank, else (B, U, W), float32 at least."""
        network, cache = self._network, self._cache
        if cache is None:
            return network.logits(network.mapped(self._anchor_BD), self._head)
        layer = network.layer
        assert layer is not None
        frames_BUD = network.frames(self._anchor_BD)
        # The anchor's own feature stands in the last slot; as the first frame it is written there again.
        first_B1 = cache.len_B[:, None] - int(self._arch.first_frame == "anchor")
        places_BU = first_B1 + self._frame_U
        cache.write(frames_BUD, places_BU)
        last_BU = places_BU if self._arch.causal_frames else places_BU[:, -1:].expand_as(places_BU)
        sees_BUS = cache.slots(cache.num_read) <= last_BU[..., None]
        return network.logits(layer.after(frames_BUD, cache.read(frames_BUD, places_BU, sees_BUS)), self._head)

    def _grow(self, noise: DraftNoise | None) -> DraftTree:
        logits = self.frame_logits()
        if self._seen_BV is not None:
            logits = self._penalised(logits)
        levels = self._collapsed(logits, noise) if self._collapses else self._as_they_are(logits, noise)
        return self._tree(levels.ids, levels.grown)

    def _collapsed(self, logits: Tensor, noise: DraftNoise | None) -> Levels:
        return search(
            frames_of(logits, has_blank=self._arch.has_blank, top_k=self._top_k),
            depth=self._depth,
            width=self._width,
            branch=self._branch,
            process=None if self._target.sampling.is_greedy else self._processed,
            noise=self._noise(noise),
        )

    def _as_they_are(self, logits: Tensor, noise: DraftNoise | None) -> Levels:
        return independent(
            logits[..., :-1] if self._arch.has_blank else logits,
            depth=self._depth,
            width=self._width,
            branch=self._branch,
            process=self._processed,
            noise=self._noise(noise),
        )

    def _processed(self, scores: Tensor) -> Tensor:
        return process(scores, self._processors)

    def _penalised(self, logits_BUX: Tensor) -> Tensor:
        """Repetition penalty on what prompt and answer hold; what the draft itself holds is left out."""
        assert self._seen_BV is not None
        num = self._network.vocabulary.size
        penalised = self._network.vocabulary.scores(logits_BUX[..., :num], self._penalty_only(), self._seen_BV[:, None])
        return torch.cat([penalised, logits_BUX[..., num:]], -1)

    def _penalty_only(self) -> TargetView:
        penalty = self._target.sampling.repetition_penalty
        return replace(self._target, sampling=type(self._target.sampling)(repetition_penalty=penalty))


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


def make(network: CtcNetwork, target: TargetView, options: Options) -> CtcDrafter:
    """The drafter of the network's form."""
    return (NarDrafter if network.architecture.form == "nar" else EagleDrafter)(network, target, options)


def build(options: Options, target: TargetView, inner: Drafter | None = None) -> Drafter:
    """Raises EnvironmentFailed (no or damaged weights) and UsageError (made for another target; options of the other
    form)."""
    folder = checkpoint.resolve(cast("str", options["weights"]), NAME)
    found = checkpoint.load(folder, method=NAME)
    checkpoint.check_fits(found, target, folder=folder)
    network = CtcNetwork(Architecture.read(found.architecture, where=str(folder / checkpoint.CONFIG)))
    checkpoint.load_state(network, found.state, folder=folder)
    checkpoint.as_dtype(network, target)
    lay_out_linears(network)
    drafter = make(network, target, options)
    if isinstance(drafter, EagleDrafter):
        drafter.lay_out()
    drafter.weights_hash, drafter.trained_on = found.weights_hash, found.target.weights_hash
    drafter.trained_quantisation = found.target.quantisation
    return drafter
