"""What trained drafters share: the words they may say, heads and embeddings that are their own or the target's.

V target vocabulary, W drafter's vocabulary (W <= V), E width of the head's input, D target's hidden size, N positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from specbench.errors import UsageError
from specbench.linear import FrozenLinear, stored
from specbench.losses import Law
from specbench.method import TargetView
from specbench.sampling import process

HeadKind = Literal["own", "target"]

TABLE_BYTES = 64 << 20
"""Most that a drafter's products of all tokens, made once instead of at every draft, may take."""


class DraftVocabulary(nn.Module):
    """Which of the target's tokens a drafter can say: all of them, or the `ids` of a trimmed head.

    ids is a buffer (saved with the weights as `ids`), ascending int64 (W,); None = all V. `num` instead of ids: room
    for so many, chosen later by `set_ids` or by loading weights; until then nothing can be asked of it.
    """

    ids: Tensor | None
    index_V: Tensor | None

    def __init__(self, size: int, ids: Tensor | None = None, *, num: int = 0) -> None:
        super().__init__()
        self.target_size = size
        room = num if ids is None else ids.shape[0]
        is_trimmed = 0 < room < size
        self.is_chosen = not is_trimmed
        self.version = 0
        """Counts the choices: whatever was gathered by the words is gathered again when it moved."""
        self.register_buffer("ids", torch.zeros(room, dtype=torch.long) if is_trimmed else None)
        index = torch.full((size,), -1, dtype=torch.long) if is_trimmed else None
        self.register_buffer("index_V", index, persistent=False)
        if is_trimmed and ids is not None:
            self.set_ids(ids)

    def set_ids(self, ids: Tensor) -> None:
        """Choose the words: ascending, distinct target ids (W,), as many as there is room for."""
        assert self.ids is not None and ids.shape == self.ids.shape, "the room was made for another number of ids"
        self.ids.copy_(ids)
        self._index()

    def choose(self, counts_V: Tensor, target: TargetView) -> None:
        """The most frequent words (`Recipe.see_labels`); nothing where all can be said. Stop ids are always among them:
        one that cannot be said ends every draft too late."""
        if self.ids is not None:
            self.set_ids(frequent_ids(counts_V, self.size, always=target.stop_ids))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """torch.nn.Module's own, which `load_state_dict` calls on every part; the way back follows the loaded ids."""
        super()._load_from_state_dict(*args, **kwargs)
        self._index()

    def _index(self) -> None:
        if self.ids is None or self.index_V is None:
            return
        self.index_V.fill_(-1)
        self.index_V[self.ids] = torch.arange(self.ids.shape[0], device=self.ids.device)
        self.is_chosen = True
        self.version += 1

    @property
    def size(self) -> int:
        """W."""
        return self.target_size if self.ids is None else self.ids.shape[0]

    def to_target(self, index: Tensor) -> Tensor:
        """Drafter's indices -> target ids, any shape."""
        return index if self.ids is None else self.ids[index]

    def to_draft(self, ids: Tensor) -> Tensor:
        """Target ids -> drafter's indices, -1 where a token cannot be said."""
        return ids if self.index_V is None else self.index_V[ids]

    def restrict(self, law: Law) -> Law:
        """A law over the target's vocabulary as one over the drafter's; the mass of what it cannot say is lost.

        Of a whole law W entries are left (ids None); of a cut one the entries that exist, the others being fillers of
        mass 0, and its tail as it is: which tokens that is of is not known. Nothing is renormalised here, see `losses`.
        """
        if self.ids is None or self.index_V is None:
            return law
        if law.ids_RK is None:
            kept = law.logp_RK[:, self.ids]
            lost = (1 - kept.exp().sum(-1)).clamp(min=1e-30)
            return Law(kept, None, None, law.row_N, lost.log())
        index = self.index_V[law.ids_RK]
        known = index >= 0
        lost = law.logp_RK.masked_fill(known, float("-inf")).logsumexp(-1)
        logp = law.logp_RK.masked_fill(~known, float("-inf"))
        return Law(logp, index.clamp(min=0), law.log_tail_R, law.row_N, lost)

    def scores(self, logits: Tensor, target: TargetView, seen_V: Tensor | None = None) -> Tensor:
        """`sampling.process` over the drafter's vocabulary (..., W), as the engine applies it to the target.

        seen_V: as `process` wants it, over the target's vocabulary.
        """
        seen = seen_V if seen_V is None or self.ids is None else seen_V[..., self.ids]
        return process(logits, target.sampling, seen)

    def noise(self, noise_V: Tensor | None) -> Tensor | None:
        """Noise (..., V) over the drafter's vocabulary (..., W)."""
        return noise_V if noise_V is None or self.ids is None else noise_V[..., self.ids]


class SharedLaws:
    """The drafter's share of the target's laws, for `losses.chunked`: one state's law is asked for by up to n depths
    and is made once, where all of them together may be kept; otherwise once a chunk.

    law: `Teacher.law`. state_N: all flat states that will be asked for.
    """

    def __init__(
        self, law: Callable[[Tensor], Law], state_N: Tensor, vocabulary: DraftVocabulary, *, kept: int
    ) -> None:
        self._law: Callable[[Tensor], Law] = lambda index_N: vocabulary.restrict(law(index_N))
        self._distinct = torch.unique(state_N)
        self._whole = self._law(self._distinct) if self._distinct.shape[0] <= kept else None

    def at(self, state_N: Tensor) -> Callable[[slice], Law]:
        """For these of the states, in this order, by slice."""

        def of(where: slice) -> Law:
            if self._whole is not None:
                return self._whole.rows(torch.searchsorted(self._distinct, state_N[where].contiguous()))
            distinct, index = torch.unique(state_N[where], return_inverse=True)
            return self._law(distinct).rows(index)

        return of


def frequent_ids(counts_V: Tensor, size: int, *, always: tuple[int, ...] = ()) -> Tensor:
    """The `size` most frequent target ids (ties: the lower id), `always` included, ascending: a trimmed vocabulary."""
    assert len(always) <= size, "more tokens are forced than there is room for"
    ranked = counts_V.double() - torch.arange(counts_V.shape[0], device=counts_V.device).double() * 1e-9
    if always:
        ranked[list(always)] = float("inf")
    return ranked.topk(min(size, counts_V.shape[0])).indices.sort().values


class TargetHead:
    """The target's own, frozen head over a drafter's vocabulary: (..., D) -> (..., W). Not a module: its weights are
    never trained, saved or counted. It follows the vocabulary when its words are chosen or loaded."""

    def __init__(self, target: TargetView, vocabulary: DraftVocabulary) -> None:
        weight: Tensor = target.lm_head.weight  # type: ignore[assignment]
        bias: Any = getattr(target.lm_head, "bias", None)
        self._whole, self._whole_bias = weight.detach(), None if bias is None else bias.detach()
        self._vocabulary = vocabulary
        self._version = -1
        self._gather()

    def _gather(self) -> None:
        ids, self._version = self._vocabulary.ids, self._vocabulary.version
        weight, bias = self._whole, self._whole_bias
        if ids is not None:
            ids = ids.to(weight.device)
            weight = stored(weight[ids])
            bias = None if bias is None else bias[ids]
        self._weight, self._bias, self._linear = weight, bias, FrozenLinear(weight, bias)

    def matrix(self) -> tuple[Tensor, Tensor | None]:
        """Weight (W, D) and bias (W,) as they are now."""
        if self._version != self._vocabulary.version:
            self._gather()
        return self._weight, self._bias

    def __call__(self, states: Tensor) -> Tensor:
        if self._version != self._vocabulary.version:
            self._gather()
        return self._linear(states.to(self._weight.dtype))


def check_width(name: str, *, wanted: int, width: int, option: str) -> None:
    """Raises UsageError where a drafter that borrows a table of the target's has another width than the table."""
    if wanted != width:
        raise UsageError(
            f"{name} borrows a table of the target of width {width}, but its own width is {wanted}",
            where=option,
            try_=f"{option}={width}, or take a table of its own",
        )


def parameter_report(module: nn.Module) -> dict[str, int]:
    """Parameters by first-level part, and `total`; a parameter used twice counts once."""
    counts: dict[str, int] = {}
    for name, parameter in module.named_parameters():
        part = name.split(".")[0]
        counts[part] = counts.get(part, 0) + parameter.numel()
    return {**counts, "total": sum(counts.values())}
