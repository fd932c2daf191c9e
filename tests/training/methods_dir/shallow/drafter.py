"""Drafts a chain: head i's first choice after the state that predicted the root."""

from __future__ import annotations

import torch

from specbench import checkpoint
from specbench.method import Commit, Drafter, DraftNoise, DraftTree, Options, TargetView
from specbench.tree import chain

from .heads import Heads


class ShallowDrafter(Drafter):
    taps = ("final",)

    def __init__(self, module: Heads, target: TargetView) -> None:
        self._module = module
        self._dtype = next(module.parameters()).dtype
        self.max_nodes = len(module.heads)
        self._last: dict[int, torch.Tensor] = {}
        self._state_BD = torch.empty(0)

    def prefill(self, row: int, tokens_T: torch.Tensor, hidden_TKD: torch.Tensor | None, offset: int) -> None:
        assert hidden_TKD is not None
        self._last[row] = hidden_TKD[-1, 0]

    def start(self, len_B: list[int], root_B: torch.Tensor) -> None:
        self._state_BD = torch.stack([self._last[row] for row in range(len(len_B))])

    @torch.no_grad()
    def draft(self, noise: DraftNoise | None) -> DraftTree:
        was = self._module.training
        self._module.eval()
        state = self._state_BD.to(self._dtype)
        tokens = [self._module(state, depth).argmax(-1) for depth in range(self.max_nodes)]
        self._module.train(was)
        return chain(torch.stack(tokens, 1))

    def commit(self, commit: Commit) -> None:
        assert commit.hidden_BCKD is not None
        rows = torch.arange(len(commit.tokens))
        self._state_BD = commit.hidden_BCKD[rows, commit.num_accepted_B, 0]

    def keep(self, rows: list[int]) -> None:
        self._state_BD = self._state_BD[rows]

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._module.parameters())


def build(options: Options, target: TargetView, inner: Drafter | None = None) -> Drafter:
    folder = checkpoint.resolve(str(options["weights"]), "shallow")
    found = checkpoint.load(folder, method="shallow")
    checkpoint.check_fits(found, target, folder=folder)
    module = Heads(**found.architecture)
    checkpoint.load_state(module, found.state, folder=folder)
    checkpoint.as_dtype(module, target)
    drafter = ShallowDrafter(module, target)
    drafter.weights_hash, drafter.trained_on = found.weights_hash, found.target.weights_hash
    drafter.trained_quantisation = found.target.quantisation
    return drafter
