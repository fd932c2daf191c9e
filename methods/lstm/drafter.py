"""Drafts with an LSTM speculator: a chain of first choices, or a tree whose branches each carry their own state.

The recurrence begins anew at every step of the engine, from the root and the target's state that predicted it. Nothing
is read on the host.

B rows, W branches of a row (all rows' branches are one batch of B * W, row-major), H width of the target's state, V its
vocabulary, C columns of a commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from methods.lstm.architecture import Architecture
from methods.lstm.laid_out import Cell, lay_out
from methods.lstm.module import Speculator, make_speculator
from specbench import checkpoint
from specbench.beams import expand, grow
from specbench.errors import UsageError
from specbench.method import Commit, Drafter, DraftNoise, Options, Request, TargetView
from specbench.sampling import log_probs
from specbench.tree import DraftTree, chain

NAME = "lstm"


class SpeculatorDrafter(Drafter):
    """num_tokens: depth of the draft, 0 = the trained heads. beam_width, branch, max_nodes: as on the card.

    uses_noise: above temperature 0 tokens are ranked with the noise the engine hands out. Under `rejection` that noise
    is independent of acceptance: a chain's tokens are then draws from q, which is recorded; a tree ignores it and its
    nodes are picked. Raises UsageError where the trained weights do not reach as deep as asked.
    """

    taps = ("final",)
    capturable = True
    carried = ("_root_B", "_hidden_BH", "_seen_BV")

    def __init__(
        self,
        network: Speculator,
        target: TargetView,
        *,
        cell: Cell | None = None,
        num_tokens: int = 0,
        beam_width: int = 1,
        branch: int = 0,
        max_nodes: int = 0,
        uses_noise: bool = True,
    ) -> None:
        arch = network.architecture
        self._network, self._target = network, target
        self._cell: Cell = cell or network
        self._num_tokens = num_tokens or arch.num_heads
        if self._num_tokens > arch.num_heads and not (arch.tie_weights and arch.num_heads > 1):
            raise UsageError(
                f"the drafter has weights for {arch.num_heads} depths, not {num_tokens}",
                where=f"{NAME}.num_tokens",
                try_=f"num_tokens={arch.num_heads}, or train one with tie_weights=true and num_heads of 2 or more",
            )
        if max_nodes:
            self._num_tokens = min(self._num_tokens, max_nodes)
        self._beam_width, self._branch = beam_width, branch
        num_all = _num_nodes(self._num_tokens, beam_width, branch, network.vocabulary.size)
        self.max_nodes = min(num_all, max_nodes or num_all)
        self._is_chain = beam_width == 1
        self.branches = not self._is_chain
        is_sampled = uses_noise and not target.sampling.is_greedy
        self._records_law = is_sampled and self._is_chain and target.rule == "rejection"
        self._uses_noise = is_sampled and (self._is_chain or target.rule != "rejection")
        # At temperature 0 the first choice of the logits is that of the processed scores.
        self._needs_scores = not target.sampling.is_greedy or target.sampling.needs_context
        rows, device = target.max_batch, target.device
        self._rows = torch.arange(rows, device=device)
        self._all_roots = torch.zeros(rows, dtype=torch.long, device=device)
        self._all_hidden = torch.zeros(rows, arch.hidden_size, dtype=network.dtype, device=device)
        needs_context = target.sampling.needs_context
        self._all_seen = torch.zeros(rows, arch.vocab_size, dtype=torch.bool, device=device) if needs_context else None
        self._view(rows)

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._network.parameters())

    # --- a group begins ----------------------------------------------------------------------------------------------

    def begin(self, requests: Sequence[Request]) -> None:
        self._view(len(requests))
        if self._seen_BV is not None:
            self._seen_BV.fill_(False)

    def prefill(self, row: int, tokens_T: Tensor, hidden_TKD: Tensor | None, offset: int) -> None:
        assert hidden_TKD is not None, "the final state is tapped"
        # The last chunk's last state is the one that predicts the first root.
        self._hidden_BH[row].copy_(hidden_TKD[-1, 0])
        if self._seen_BV is not None:
            self._seen_BV[row, tokens_T] = True

    def start(self, len_B: list[int], root_B: Tensor) -> None:
        self._root_B.copy_(root_B)
        if self._seen_BV is not None:
            self._seen_BV.scatter_(1, root_B[:, None], True)

    def _view(self, num_rows: int) -> None:
        """The live rows: the first of the buffers, which never move."""
        self._root_B = self._all_roots[:num_rows]
        self._hidden_BH = self._all_hidden[:num_rows]
        self._seen_BV = None if self._all_seen is None else self._all_seen[:num_rows]

    # --- a step ------------------------------------------------------------------------------------------------------

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        noise = noise if self._uses_noise else None
        return self._chain(noise) if self._is_chain else self._tree(noise)

    def _chain(self, noise: DraftNoise | None) -> DraftTree:
        cell, vocabulary = self._cell, self._network.vocabulary
        tokens_B, state = self._root_B, cell.start(self._hidden_BH)
        seen_BV = None if self._seen_BV is None else self._seen_BV.clone()
        drafted, laws, logq = [], [], []
        for depth in range(self._num_tokens):
            state = cell.step(depth, tokens_B, state)
            scores_BW = cell.logits(depth, state)
            if self._needs_scores:
                scores_BW = vocabulary.scores(scores_BW, self._target, seen_BV)
            if self._records_law:
                laws.append(self._over_target(log_probs(scores_BW)))
            law_BW = scores_BW
            noise_BW = None if noise is None else vocabulary.noise(noise.at_depth(depth + 1))
            if noise_BW is not None:
                scores_BW = scores_BW + noise_BW
            best_B = scores_BW.argmax(-1)
            tokens_B = vocabulary.to_target(best_B)
            if self.shows_q:
                logq.append(log_probs(law_BW).gather(1, best_B[:, None]))
            drafted.append(tokens_B)
            if seen_BV is not None:
                seen_BV.scatter_(1, tokens_B[:, None], True)
        if laws:
            laws.append(torch.full_like(laws[0], float("-inf")))  # the last token has no children, hence no law
        return chain(
            torch.stack(drafted, 1),
            score_BN=torch.cat(logq, 1) if logq else None,
            logq_BMV=torch.stack(laws, 1) if laws else None,
        )

    def _tree(self, noise: DraftNoise | None) -> DraftTree:
        cell, vocabulary = self._cell, self._network.vocabulary
        num_rows, num_beams = self._root_B.shape[0], 1
        tokens, state = self._root_B, cell.start(self._hidden_BH)
        seen, first_B1 = self._seen_BV, self._rows[:num_rows, None]
        priority_BW = state.hidden_ND.new_zeros(num_rows, 1)
        levels = []
        for depth in range(self._num_tokens):
            state = cell.step(depth, tokens, state)
            scores = vocabulary.scores(cell.logits(depth, state), self._target, seen)
            noise_BV = None if noise is None else vocabulary.noise(noise.at_depth(depth + 1))
            scores_BWV = scores.unflatten(0, (num_rows, num_beams))
            grown = expand(priority_BW, scores_BWV, noise_BV, width=self._beam_width, branch=self._branch)
            tokens_BW = vocabulary.to_target(grown.index_BW)
            levels.append((tokens_BW, grown))
            parents = (grown.parent_BW + first_B1 * num_beams).flatten()
            state, tokens, priority_BW = state.select(parents), tokens_BW.flatten(), grown.priority_BW
            if seen is not None:
                seen = seen.index_select(0, parents).scatter(1, tokens[:, None], True)
            num_beams = tokens_BW.shape[1]
        return grow(
            [tokens_BW for tokens_BW, _ in levels],
            [grown.parent_BW for _, grown in levels],
            [grown.priority_BW for _, grown in levels],
            [grown.logq_BW for _, grown in levels],
            max_nodes=self.max_nodes,
        ).tree

    def _over_target(self, logq_BW: Tensor) -> Tensor:
        """A law over the drafter's vocabulary as one over the target's."""
        ids = self._network.vocabulary.ids
        if ids is None:
            return logq_BW
        none = logq_BW.new_full((logq_BW.shape[0], self._target.vocab_size), float("-inf"))
        return none.index_copy_(1, ids, logq_BW)

    def commit(self, commit: Commit) -> None:
        assert commit.hidden_BCKD is not None, "the final state is tapped"
        num_rows, num_columns = commit.tokens_BC.shape
        # Row b's last committed token and the state that predicted it, in flat places of (B, C).
        place_B = commit.num_accepted_B
        if num_rows > 1:
            place_B = place_B + self._rows[:num_rows] * num_columns
        self._root_B.copy_(commit.tokens_BC.flatten().index_select(0, place_B))
        self._hidden_BH.copy_(commit.hidden_BCKD[:, :, 0].flatten(0, 1).index_select(0, place_B))
        if self._seen_BV is not None:
            places = torch.arange(num_columns, device=place_B.device)
            is_committed = places <= commit.num_accepted_B[:, None]
            # Padding repeats column 0, which is always committed.
            self._seen_BV.scatter_(1, torch.where(is_committed, commit.tokens_BC, commit.tokens_BC[:, :1]), True)

    def keep(self, rows: list[int]) -> None:
        root, hidden, seen = self._root_B, self._hidden_BH, self._seen_BV
        self._view(len(rows))
        self._root_B.copy_(root[rows])
        self._hidden_BH.copy_(hidden[rows])
        if self._seen_BV is not None and seen is not None:
            self._seen_BV.copy_(seen[rows])


def _num_nodes(num_tokens: int, beam_width: int, branch: int, size: int) -> int:
    """Nodes of all levels: a beam has at most `branch` children, and no more than there are words."""
    each = min(branch or beam_width, beam_width, size)
    total, width = 0, 1
    for _ in range(num_tokens):
        width = min(beam_width, width * each)
        total += width
    return total


def over(network: Speculator, target: TargetView, options: Options, *, cell: Cell | None = None) -> SpeculatorDrafter:
    """A drafter over these weights, which it shares. options: the card's, `weights` unread. cell: the same network,
    laid out; None while it is still learning."""
    return SpeculatorDrafter(
        network,
        target,
        cell=cell,
        num_tokens=cast("int", options["num_tokens"]),
        beam_width=cast("int", options["beam_width"]),
        branch=cast("int", options["branch"]),
        max_nodes=cast("int", options["max_nodes"]),
        uses_noise=options["draft"] == "shared-noise",
    )


def build(options: Options, target: TargetView, inner: Drafter | None = None) -> Drafter:
    """Raises EnvironmentFailed (no or unreadable weights) and UsageError (made for another target or depth)."""
    folder = checkpoint.resolve(cast("str", options["weights"]), NAME)
    loaded = checkpoint.load(folder, method=NAME)
    checkpoint.check_fits(loaded, target, folder=folder)
    network = make_speculator(Architecture.from_dict(loaded.architecture))
    checkpoint.load_state(network, loaded.state, folder=folder)
    checkpoint.as_dtype(network, target)
    network.borrow(target)
    drafter = over(network, target, options, cell=lay_out(network, target))
    drafter.weights_hash, drafter.trained_on = loaded.weights_hash, loaded.target.weights_hash
    drafter.trained_quantisation = loaded.target.quantisation
    return drafter
