"""Which attention ran in what `gpu.py` times: a figure of another one than it is said to be of is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from transformers import PreTrainedModel

from specbench.lm import attention
from specbench.lm.cached_lm import CachedLM, Verified
from specbench.method import DraftTree


class WatchedLM(CachedLM):
    """Remembers of the forwards of its steps which attention ran in them, apart from what prompts went through. A graph
    replays the forward that was seen when it was captured."""

    def __init__(self, model: PreTrainedModel, *, name: str) -> None:
        super().__init__(model, name=name)
        self.used_in_steps: dict[int, set[str]] = {}
        """By the slots of a forward: those of a verification are root and draft. Names as in `attention_used`."""

    def verify(self, root_B: Tensor, tree: DraftTree) -> Verified:
        with self._watching(tree.num_nodes + 1):
            return super().verify(root_B, tree)

    def verify_behind(self, root_B: Tensor, tree: DraftTree, length_B: Tensor, *, span: int) -> Verified:
        with self._watching(tree.num_nodes + 1):
            return super().verify_behind(root_B, tree, length_B, span=span)

    def append(self, tokens_BM: Tensor, num_B: list[int]) -> Tensor:
        with self._watching(tokens_BM.shape[1]):
            return super().append(tokens_BM, num_B)

    def read_behind(self, tokens_BM: Tensor, length_B: Tensor, *, span: int) -> Tensor:
        with self._watching(tokens_BM.shape[1]):
            return super().read_behind(tokens_BM, length_B, span=span)

    @contextmanager
    def _watching(self, num_slots: int) -> Iterator[None]:
        before, self.attention_used = self.attention_used, set()
        try:
            yield
            self.used_in_steps.setdefault(num_slots, set()).update(self.attention_used)
        finally:
            self.attention_used |= before


class WrongAttention(RuntimeError):
    """Another attention ran than the one that the figure is of."""


_USED = {attention.PLAIN: "plain", attention.SDPA: "sdpa", attention.TRITON: "triton"}


def demand_attention(lm: WatchedLM, name: str) -> None:
    """Raises WrongAttention where a step's forward so far was not this implementation's, or none was seen, or a prompt
    went through another one. A prompt's chunks go through SDPA under Triton's as well."""
    what = f"{lm.name}: {name} was asked for, and "
    if not lm.used_in_steps:
        raise WrongAttention(f"{what}no step ran")
    for num_slots, used in sorted(lm.used_in_steps.items()):
        if used != {_USED[name]}:
            raise WrongAttention(f"{what}what ran was {_told(used)} (slots of the forward: {num_slots})")
    allowed = {_USED[name], "sdpa"} if name == attention.TRITON else {_USED[name]}
    if lm.attention_used - allowed:
        raise WrongAttention(f"{what}what ran was {_told(lm.attention_used)}")


def _told(used: set[str]) -> str:
    return " and ".join(sorted(used)) or "nothing"
