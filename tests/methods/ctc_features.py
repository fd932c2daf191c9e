"""A tiny random target and packed texts for the tests of the CTC drafter."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from specbench import registry
from specbench.engine.decode import Engine
from specbench.lm.cached_lm import CachedLM
from specbench.lm.packed import continue_all, head_logits, packed_states
from specbench.losses import Law, whole_law
from specbench.method import Commit, Drafter, Request, TargetView
from specbench.recipe import Features, Recipe
from specbench.sampling import Sampling
from tests.helpers import VOCAB, tiny_lm

WIDTH = 32


class HeadTeacher:
    """The target's laws, from states by its head."""

    def __init__(self, lm: CachedLM, states_ND: Tensor) -> None:
        self._lm = lm
        self._states_ND = states_ND

    def law(self, index_N: Tensor) -> Law:
        return whole_law(head_logits(self._lm, self._states_ND[index_N]))


def small_lm() -> CachedLM:
    """float64, width 32, vocabulary 64."""
    return tiny_lm("llama", seed=3)


def view_of(lm: CachedLM, *, sampling: Sampling | None = None, max_batch: int = 4, max_len: int = 96) -> TargetView:
    return Engine(lm, sampling=sampling or Sampling(), max_batch=max_batch, max_len=max_len).view()


def texts(seed: int = 0, *, rows: int = 2, tokens: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, documents, learnable): two documents a row and padding at the end; a prompt that is not learnt."""
    generator = torch.Generator().manual_seed(seed)
    tokens_BT = torch.randint(0, VOCAB, (rows, tokens), generator=generator)
    document_BT = torch.zeros_like(tokens_BT)
    document_BT[:, tokens // 2 :] = 1
    document_BT[0, -2:] = -1
    learn_BT = document_BT >= 0
    learn_BT[:, :2] = False
    return tokens_BT, document_BT, learn_BT


def features_of(lm: CachedLM, tokens_BT: Tensor, document_BT: Tensor, learn_BT: Tensor, *, seq: int = 0) -> Features:
    """seq: continuation tokens, 0 for none."""
    states_BTKD = packed_states(lm, tokens_BT, document_BT, ("final",))
    flat, continuations = states_BTKD[:, :, 0].flatten(0, 1), None
    if seq:
        continuations, states_BTFD = continue_all(lm, tokens_BT, document_BT, length=seq)
        flat = torch.cat([flat, states_BTFD.flatten(0, 2)])
    return Features(
        tokens_BT=tokens_BT,
        document_BT=document_BT,
        learn_BT=learn_BT,
        states_BTKD=states_BTKD,
        teacher=HeadTeacher(lm, flat),
        continuations=continuations,
    )


def recipe_of(target: TargetView, *, seed: int = 0, **changed: Any) -> Recipe:
    """A fresh recipe in float64, options at their defaults but for what is changed."""
    card = registry.card("ctc")
    options = {name: option.default for name, option in card.training.items()}
    assert set(changed) <= set(options), set(changed) - set(options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        recipe = registry.load_recipe("ctc")({**options, **changed}, target)
    recipe.module.double()
    return recipe


def drafting(**changed: Any) -> dict[str, Any]:
    """The card's drafting options but for what is changed."""
    options = {name: option.default for name, option in registry.card("ctc").options.items()}
    assert set(changed) <= set(options), set(changed) - set(options)
    return {**options, **changed}


class Walk:
    """Rows of random tokens and states, and a walk over them: prefill, then commits of random length with padding."""

    def __init__(self, drafter: Drafter, lengths: list[int], *, seed: int = 0) -> None:
        self._drafter = drafter
        self._generator = torch.Generator().manual_seed(seed)
        self._rng = random.Random(seed)
        self.tokens = [self._ids(length) for length in lengths]
        self.states = [self._some_states(length) for length in lengths]
        drafter.begin([Request(key=row, prompt=(1,), max_new_tokens=9) for row in range(len(lengths))])
        for row, length in enumerate(lengths):
            cut = self._rng.randint(1, length)
            for start, end in ((0, cut), (cut, length)):
                if end > start:
                    drafter.prefill(row, self.tokens[row][start:end], self.states[row][start:end, None], start)
        roots = self._ids(len(lengths))
        drafter.start([length + 1 for length in lengths], roots)
        self._append([roots[row, None] for row in range(len(lengths))])

    def _ids(self, num: int) -> Tensor:
        return torch.randint(0, VOCAB, (num,), generator=self._generator)

    def _some_states(self, num: int) -> Tensor:
        return torch.randn(num, WIDTH, generator=self._generator, dtype=torch.float64)

    def _append(self, new: list[Tensor]) -> None:
        self.tokens = [torch.cat([tokens, more]) for tokens, more in zip(self.tokens, new, strict=True)]

    def commit(self, width: int) -> None:
        """Every row another number of accepted tokens; columns past the bonus are rubbish."""
        num_rows = len(self.tokens)
        accepted = [self._rng.randrange(width) for _ in range(num_rows)]
        tokens_BC = torch.stack([self._ids(width) for _ in range(num_rows)])
        hidden_BCD = torch.stack([self._some_states(width) for _ in range(num_rows)])
        for row, count in enumerate(accepted):
            self.states[row] = torch.cat([self.states[row], hidden_BCD[row, : count + 1]])
        self._drafter.commit(
            Commit(
                num_accepted_B=torch.tensor(accepted),
                path_BP=torch.zeros(num_rows, width - 1, dtype=torch.long),
                tokens_BC=tokens_BC,
                hidden_BCKD=hidden_BCD[:, :, None],
                tokens=[],
                finished=[],
            )
        )
        self._append([tokens_BC[row, : count + 1] for row, count in enumerate(accepted)])

    def keep(self, rows: list[int]) -> None:
        self.tokens, self.states = [self.tokens[row] for row in rows], [self.states[row] for row in rows]
        self._drafter.keep(rows)
