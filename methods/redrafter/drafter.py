"""ReDrafter at work: beam search over the recurrent network, as a static-shape tree (Zhang 2024).

The context h is the target's state that predicted the current root. Everything stays on the device; nothing is read.

B rows, W beams, D depths, H width of the target's final state, V the drafter's vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from methods.redrafter.laid_out import Context, LaidOut, Table
from methods.redrafter.module import Architecture, ReDrafterNetwork
from specbench import checkpoint
from specbench.beams import Expansion, expand, grow
from specbench.blocks import DraftVocabulary
from specbench.method import Commit, Drafter, DraftNoise, DraftTree, Options, Request, TargetView
from specbench.sampling import log_probs
from specbench.tree import chain

NAME = "redrafter"


class ReDrafter(Drafter):
    """Drafts D tokens deep with W beams; W = 1 is a plain chain.

    live: the network is still being trained; its weights are read as they are at every draft, never copied.
    """

    taps = ("final",)
    capturable = True
    carried = ("_root_B", "_context_BH", "_seen_BV")

    def __init__(self, network: ReDrafterNetwork, target: TargetView, options: Options, *, live: bool = False) -> None:
        self._target = target
        self._vocabulary: DraftVocabulary = network.vocabulary
        self._depth = cast("int", options["num_tokens"])
        self._width = cast("int", options["beam_width"])
        self._branch = cast("int", options["branch"])
        self._top_k = cast("int", options["draft_top_k"])
        budget = cast("int", options["max_nodes"])
        if self._width == 1 and budget:
            self._depth = min(self._depth, budget)  # a chain's best nodes are its first ones
        self._budget = budget
        self._num_parameters = sum(parameter.numel() for parameter in network.parameters())
        table = cast("Table", options["table"])
        self._net = LaidOut(network, target, table=table, live=live)
        num_all = self._depth * self._width
        self.max_nodes = min(num_all, budget) if budget else num_all
        sampling = target.sampling
        self._is_greedy = sampling.is_greedy and not sampling.needs_context
        wants_noise = not sampling.is_greedy and options["draft"] == "shared-noise"
        # Under `rejection` the noise is independent of acceptance: a chain drawn with it hands its law on; nodes of a
        # tree are picked, and then the most probable ones are the best.
        self._records_law = wants_noise and target.rule == "rejection" and self._width == 1
        self._uses_noise = wants_noise and (target.rule != "rejection" or self._records_law)
        # No node can be dead where every token of every beam has a probability above 0.
        self._all_live = sampling.is_greedy and not self._top_k
        self._context_BH = torch.empty(0)
        self._root_B = torch.empty(0, dtype=torch.long)
        self._seen_BV: Tensor | None = None

    def num_parameters(self) -> int:
        return self._num_parameters

    # --- a group begins ----------------------------------------------------------------------------------------------

    def begin(self, requests: Sequence[Request]) -> None:
        num_rows, target = len(requests), self._target
        self._context_BH = torch.zeros(num_rows, target.hidden_size, dtype=target.dtype, device=target.device)
        if target.sampling.needs_context:
            self._seen_BV = torch.zeros(num_rows, target.vocab_size, dtype=torch.bool, device=target.device)

    def prefill(self, row: int, tokens_T: Tensor, hidden_TKD: Tensor | None, offset: int) -> None:
        assert hidden_TKD is not None, "the final states are tapped"
        self._context_BH[row] = hidden_TKD[-1, 0]
        if self._seen_BV is not None:
            self._seen_BV[row, tokens_T] = True

    def start(self, len_B: list[int], root_B: Tensor) -> None:
        self._root_B = root_B
        if self._seen_BV is not None:
            self._seen_BV.scatter_(1, root_B[:, None], True)

    # --- a step ------------------------------------------------------------------------------------------------------

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        context = self._net.context(self._context_BH)
        if not self._uses_noise:
            noise = None
        return self._chain(context, noise) if self._width == 1 else self._tree(context, noise)

    def _chain(self, context: Context, noise: DraftNoise | None) -> DraftTree:
        token_B, state_BS = self._root_B, None
        seen_BV = None if self._seen_BV is None else self._seen_BV.clone()
        drafted, laws, logq = [], [], []
        for depth in range(1, self._depth + 1):
            state_BS = self._net.next_state(token_B, state_BS)
            scores_BV = self._net.logits(context, state_BS)
            if not self._is_greedy:
                scores_BV = self._processed(scores_BV, seen_BV)
                if self._records_law:
                    laws.append(self._law_over_target(log_probs(scores_BV)))
            law_BV = scores_BV
            if not self._is_greedy and noise is not None:
                scores_BV = scores_BV + self._noise(noise, depth)
            best_B = scores_BV.argmax(-1)
            token_B = self._vocabulary.to_target(best_B)
            if self.shows_q:
                logq.append(log_probs(law_BV).gather(1, best_B[:, None]))
            if seen_BV is not None:
                seen_BV.scatter_(1, token_B[:, None], True)
            drafted.append(token_B)
        if laws:
            laws.append(torch.full_like(laws[0], float("-inf")))  # the last token has no children, hence no law
        return chain(
            torch.stack(drafted, 1),
            score_BN=torch.cat(logq, 1) if logq else None,
            logq_BMV=torch.stack(laws, 1) if laws else None,
        )

    def _tree(self, context: Context, noise: DraftNoise | None) -> DraftTree:
        num_rows = self._root_B.shape[0]
        seen_BWV = None if self._seen_BV is None else self._seen_BV[:, None]
        state_NS = self._net.next_state(self._root_B, None)
        logits = self._net.logits(context, state_NS)
        priority_BW = logits.new_zeros(num_rows, 1, dtype=torch.promote_types(logits.dtype, torch.float32))
        tokens: list[Tensor] = []
        levels: list[Expansion] = []
        wide = context
        for depth in range(1, self._depth + 1):
            scores_BWV = self._processed(logits.view(num_rows, priority_BW.shape[1], -1), seen_BWV)
            noise_BV = None if noise is None else self._noise(noise, depth)
            grown = expand(priority_BW, scores_BWV, noise_BV, width=self._width, branch=self._branch)
            token_BW = self._vocabulary.to_target(grown.index_BW)
            tokens.append(token_BW)
            levels.append(grown)
            if depth == self._depth:
                break
            parent_N = self._flat(grown.parent_BW, priority_BW.shape[1])
            if seen_BWV is not None:
                seen_BWV = seen_BWV.flatten(0, 1)[parent_N].scatter(1, token_BW.view(-1, 1), True)
                seen_BWV = seen_BWV.view(num_rows, -1, seen_BWV.shape[-1])
            if priority_BW.shape[1] != grown.priority_BW.shape[1]:
                wide = context.widened(grown.priority_BW.shape[1])
            priority_BW = grown.priority_BW
            state_NS = self._net.next_state(token_BW.view(-1), state_NS.index_select(0, parent_N))
            logits = self._net.logits(wide, state_NS)
        return grow(
            tokens,
            [level.parent_BW for level in levels],
            [level.priority_BW for level in levels],
            [level.logq_BW for level in levels],
            max_nodes=self._budget,
            all_live=self._all_live,
        ).tree

    def _flat(self, parent_BW: Tensor, num_beams: int) -> Tensor:
        """Beams of all rows in one line: index of each one's parent among them, (B * W,)."""
        num_rows = parent_BW.shape[0]
        if num_rows > 1:
            parent_BW = parent_BW + torch.arange(0, num_rows * num_beams, num_beams, device=parent_BW.device)[:, None]
        return parent_BW.reshape(-1)

    def _processed(self, logits: Tensor, seen_V: Tensor | None) -> Tensor:
        scores = self._vocabulary.scores(logits, self._target, seen_V)
        if 0 < self._top_k < scores.shape[-1]:
            kth = scores.topk(self._top_k, dim=-1).values[..., -1:]
            scores = scores.masked_fill(scores < kth, float("-inf"))
        return scores

    def _noise(self, noise: DraftNoise, depth: int) -> Tensor:
        noise_BV = self._vocabulary.noise(noise.at_depth(depth))
        assert noise_BV is not None
        return noise_BV

    def _law_over_target(self, logq_BV: Tensor) -> Tensor:
        ids = self._vocabulary.ids
        if ids is None:
            return logq_BV
        return logq_BV.new_full((logq_BV.shape[0], self._target.vocab_size), float("-inf")).index_copy(1, ids, logq_BV)

    def commit(self, commit: Commit) -> None:
        hidden_BCKD, num_B = commit.hidden_BCKD, commit.num_accepted_B
        assert hidden_BCKD is not None, "the final states are tapped"
        num_rows, num_columns = commit.tokens_BC.shape
        last_B = num_B if num_rows == 1 else num_B + self._row_starts(num_rows, num_columns, num_B.device)
        self._root_B = commit.tokens_BC.reshape(-1).index_select(0, last_B)
        self._context_BH = hidden_BCKD[:, :, 0].reshape(-1, hidden_BCKD.shape[-1]).index_select(0, last_B)
        if self._seen_BV is not None:
            places = torch.arange(num_columns, device=num_B.device)
            # Padding repeats column 0, which is always committed.
            kept_BC = torch.where(places <= num_B[:, None], commit.tokens_BC, commit.tokens_BC[:, :1])
            self._seen_BV.scatter_(1, kept_BC, True)

    @staticmethod
    def _row_starts(num_rows: int, stride: int, device: torch.device) -> Tensor:
        return torch.arange(0, num_rows * stride, stride, device=device)

    def keep(self, rows: list[int]) -> None:
        self._root_B = self._root_B[rows]
        self._context_BH = self._context_BH[rows]
        if self._seen_BV is not None:
            self._seen_BV = self._seen_BV[rows]


def build(options: Options, target: TargetView, inner: Drafter | None = None) -> Drafter:
    """Loads `weights`. Raises UsageError (made for another width or vocabulary, wrong tensors) and EnvironmentFailed
    (no such folder, unreadable)."""
    folder = checkpoint.resolve(cast("str", options["weights"]), NAME)
    found = checkpoint.load(folder, method=NAME)
    checkpoint.check_fits(found, target, folder=folder)
    network = ReDrafterNetwork(Architecture.read(found.architecture, where=str(folder / checkpoint.CONFIG)))
    checkpoint.load_state(network, found.state, folder=folder)
    checkpoint.as_dtype(network, target)
    drafter = ReDrafter(network, target, options)
    drafter.weights_hash = found.weights_hash
    drafter.trained_on = found.target.weights_hash
    drafter.trained_quantisation = found.target.quantisation
    return drafter
