"""Where a captured step finds what the last one left: tensors that never move.

R rows at most, B places in use (rows that have ended keep theirs until the batch shrinks), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor

from specbench.engine.choose import test_key
from specbench.engine.stamps import NUM_STAMPS
from specbench.method import Drafter
from specbench.sampling import STREAM_ACCEPT, STREAM_DRAFT, stream_keys

FIRST_STAMP = 1
LATE_STAMP = FIRST_STAMP + NUM_STAMPS
"""Written after the step's numbers have left; it travels with the next step's."""
TABLE = LATE_STAMP + 1
"""Where in `out` the step's table begins. Slot 0: when the generation began."""


class EnginePins:
    """The engine's own. length_R counts cached tokens, which is where the root stands; a row ends at limit_R tokens."""

    def __init__(self, *, max_rows: int, max_nodes: int, vocab_size: int, needs_context: bool, device: torch.device):
        zeros = torch.zeros(max_rows, dtype=torch.long, device=device)
        self.root_R, self.length_R, self.limit_R = zeros.clone(), zeros.clone(), zeros.clone()
        self.is_open_R = torch.zeros(max_rows, dtype=torch.bool, device=device)
        self.accept_keys_R, self.draft_keys_R, self.test_keys_R = zeros.clone(), zeros.clone(), zeros.clone()
        self.seen_RV = torch.zeros(max_rows, vocab_size, dtype=torch.bool, device=device) if needs_context else None
        nodes = max(max_nodes, 1)
        self.tokens_RN = torch.zeros(max_rows, nodes, dtype=torch.long, device=device)
        self.parents_RN = torch.zeros_like(self.tokens_RN)
        self.is_valid_RN = torch.zeros_like(self.tokens_RN, dtype=torch.bool)
        # A table's row: accepted, finite, C tokens, nodes, depth, P ranks; C = P + 1 <= max_nodes + 1.
        width = 4 + (max_nodes + 1) + max_nodes
        self.out = torch.zeros(TABLE + max_rows * width, dtype=torch.long, device=device)
        self.max_nodes = max_nodes

    def fill(
        self,
        root_B: Tensor,
        *,
        lengths: Sequence[int],
        limits: Sequence[int],
        keys: Sequence[int],
        is_rejection: bool,
        seen_BV: Tensor | None,
    ) -> None:
        """Rows that are about to be decoded. lengths, limits: tokens, root included."""
        num, device = len(lengths), root_B.device
        self.root_R[:num] = root_B
        self.length_R[:num] = torch.tensor(lengths, device=device) - 1
        self.limit_R[:num] = torch.tensor(limits, device=device)
        self.is_open_R[:num] = True
        draft_stream = STREAM_DRAFT if is_rejection else STREAM_ACCEPT
        self.accept_keys_R[:num] = torch.tensor(stream_keys(list(keys), STREAM_ACCEPT), device=device)
        self.draft_keys_R[:num] = torch.tensor(stream_keys(list(keys), draft_stream), device=device)
        self.test_keys_R[:num] = torch.tensor([test_key(key) for key in keys], device=device)
        if self.seen_RV is not None and seen_BV is not None:
            self.seen_RV[:num] = seen_BV

    def close(self, place: int) -> None:
        """Its row has ended: steps leave it as it is."""
        self.is_open_R[place] = False
        self.is_valid_RN[place] = False

    def close_behind(self, num: int) -> None:
        """No row stands at places num and up: steps that are captured for more rows write there what nobody reads."""
        self.is_open_R[num:] = False
        self.is_valid_RN[num:] = False
        self.length_R[num:] = 0

    def keep(self, places: list[int]) -> None:
        """Place i takes what stood at places[i]."""
        rows = (self.root_R, self.length_R, self.limit_R, self.is_open_R)
        keys = (self.accept_keys_R, self.draft_keys_R, self.test_keys_R)
        for tensor in (*rows, *keys, *(() if self.seen_RV is None else (self.seen_RV,))):
            tensor[: len(places)] = tensor[places]


class DrafterPins:
    """A drafter's `carried` tensors. Made once per drafter; B may change between uses. Holds no drafter: an engine
    keeps its pins for as long as the drafter is in use elsewhere, and a held one would be in use for ever."""

    def __init__(self, *, max_rows: int) -> None:
        self._max_rows = max_rows
        self._buffers: dict[str, Tensor] = {}
        self._views: dict[str, Tensor] = {}

    def settle(self, drafter: Drafter) -> None:
        """Move what the drafter carries now to its fixed place and let the drafter see it there."""
        self._views = {}
        for name in drafter.carried:
            value: Tensor | None = attrgetter(name)(drafter)
            if value is None:
                continue
            buffer = self._buffers.get(name)
            if buffer is None:
                buffer = self._buffers[name] = value.new_zeros(self._max_rows, *value.shape[1:])
            view = self._views[name] = buffer[: value.shape[0]]
            view.copy_(value.clone())
            _point(drafter, name, view)

    def before(self) -> dict[str, Tensor]:
        """What is carried, before a step changes it in place."""
        return {name: view.clone() for name, view in self._views.items()}

    def after(self, drafter: Drafter, before: dict[str, Tensor], is_alive_B: Tensor) -> None:
        """What the step left goes to its place; rows that have ended get back what they had."""
        for name, view in self._views.items():
            left: Tensor = attrgetter(name)(drafter)
            alive = is_alive_B.view(-1, *[1] * (left.dim() - 1))
            view.copy_(torch.where(alive, left, before[name]))
            _point(drafter, name, view)


def _point(drafter: Drafter, name: str, view: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(attrgetter(owner)(drafter) if owner else drafter, attribute, view)
