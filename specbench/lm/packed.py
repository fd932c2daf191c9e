"""The frozen target over whole texts: states for training, of documents packed behind each other, without a cache.

Documents never see each other: positions start anew and the mask is block-diagonal, in every layer, sliding windows
included, because the masks are ours (`visibility.Forward`). No gradient is kept, but the results may take part in one.

B rows, T tokens a row, S slots of a forward, F continuation tokens, K taps, D hidden, V vocabulary, N any number.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from specbench.errors import UsageError
from specbench.lm import attention, facts, visibility
from specbench.lm.cached_lm import CachedLM
from specbench.lm.stops import stop_ids_of
from specbench.lm.taps import decoder_of
from specbench.method import Tap
from specbench.recipe import Continuations
from specbench.tree import Topology

_PROBE = 8
"""Tokens of the text on which `head_logits` is held against the whole model."""


class _Visible(visibility.Forward):
    """A forward without a cache: slot i sees slot j where `sees_BSS` says so."""

    def __init__(self, sees_BSS: Tensor, positions_BS: Tensor, dtype: torch.dtype) -> None:
        shape = Topology(depth_BM=positions_BS, sees_BMM=sees_BSS)
        super().__init__(shape, is_chain=False, max_depth=0, dtype=dtype)
        self._longest = int(positions_BS.max())

    @property
    def longest(self) -> int:
        return self._longest

    @property
    def length_B(self) -> Tensor:
        return self.topology.depth_BM.new_zeros(self.topology.depth_BM.shape[0])

    def _make_bias(self, window: int | None) -> Tensor:
        sees = self.topology.sees_BMM
        if window is not None:
            place = self.topology.depth_BM
            sees = sees & (place[:, :, None] - place[:, None, :] < window)
        return visibility.as_bias(sees, self.dtype)[:, None]


def positions_of(document_BT: Tensor) -> Tensor:
    """Place of each token in its own document: int64 (B, T); padding is a document of its own."""
    num_tokens = document_BT.shape[1]
    place_T = torch.arange(num_tokens, device=document_BT.device)
    is_first = torch.ones_like(document_BT, dtype=torch.bool)
    is_first[:, 1:] = document_BT[:, 1:] != document_BT[:, :-1]
    start_BT = torch.where(is_first, place_T, 0).cummax(1).values
    return place_T - start_BT


def _same_document(document_BT: Tensor) -> Tensor:
    """bool (B, T, T): token i sees token j of its own document, j <= i. Padding sees padding: no row is empty."""
    num_tokens = document_BT.shape[1]
    causal = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=document_BT.device).tril()
    return causal & (document_BT[:, :, None] == document_BT[:, None, :])


def _read(lm: CachedLM, tokens_BS: Tensor, positions_BS: Tensor, sees_BSS: Tensor, taps: tuple[Tap, ...]) -> Tensor:
    if lm.num_processes > 1:
        raise UsageError(
            "texts are read by a target in one process, not by one that is split over several",
            where="torchrun",
            try_="the same command without torchrun",
        )
    facts.check_positions(int(positions_BS.max()) + 1, config=lm.config, name=lm.name)
    forward = _Visible(sees_BSS, positions_BS, lm.dtype)
    with lm.tapped(taps), attention.use(forward):
        decoder_of(lm.model)(input_ids=tokens_BS, position_ids=positions_BS, past_key_values=None, use_cache=False)
        states = lm.take_taps()
    assert states is not None, "at least one tap is asked for"
    return states


_forward = torch.no_grad()(_read)


def packed_logits(lm: CachedLM, tokens_BT: Tensor, document_BT: Tensor, index_N: Tensor) -> Tensor:
    """Logits (N, V) after the tokens at these flat indices (b * T + t) of packed documents, with gradient into
    whatever of the model asks for it: how a draft model itself learns."""
    head = _head_of(lm, None)
    states = _read(lm, tokens_BT, positions_of(document_BT), _same_document(document_BT), ("final",))
    return head(states[:, :, 0].flatten(0, 1)[index_N])


def packed_states(lm: CachedLM, tokens_BT: Tensor, document_BT: Tensor, taps: tuple[Tap, ...]) -> Tensor:
    """Tapped states of packed documents, (B, T, K, D) in the target's dtype. document_BT as in `recipe.Features`.

    Raises UsageError for a document longer than the target's context.
    """
    return _forward(lm, tokens_BT, positions_of(document_BT), _same_document(document_BT), taps)


@torch.no_grad()
def continue_all(lm: CachedLM, tokens_BT: Tensor, document_BT: Tensor, *, length: int) -> tuple[Continuations, Tensor]:
    """After every position of every document the `length` tokens the target would write greedily (local distillation,
    Zhang 2024), and the final states after each of them: (B, T, F, D).

    `length` forwards: continuation (t, i) sees its document up to t and its own (t, 0 .. i). Past steps are computed
    again, so forward i reads (1 + i) * T slots. Memory grows with (length * T) ** 2: short rows, few of them.
    """
    num_rows, num_tokens = tokens_BT.shape
    device = tokens_BT.device
    place_BT = positions_of(document_BT)
    text = _same_document(document_BT)
    own = torch.eye(num_tokens, dtype=torch.bool, device=device).expand(num_rows, -1, -1)
    tokens, states = [tokens_BT], []
    head = _head_of(lm, tokens_BT[:, :_PROBE])
    for step in range(length + 1):
        # Block (i, j) of the mask: level i sees level j <= i of its own chain; level 0 is the text itself.
        blocks = [
            [text if column == 0 else own if column <= row else torch.zeros_like(own) for column in range(step + 1)]
            for row in range(step + 1)
        ]
        sees = torch.cat([torch.cat(line, dim=2) for line in blocks], dim=1)
        positions = torch.cat([place_BT + level for level in range(step + 1)], dim=1)
        final = _forward(lm, torch.cat(tokens, dim=1), positions, sees, ("final",))[:, -num_tokens:, 0]
        if step:
            states.append(final)
        if step < length:
            tokens.append(_argmax(head, final))
    return continuations_of(lm, torch.stack(tokens[1:], dim=2)), torch.stack(states, dim=2)


def continuations_of(lm: CachedLM, tokens_BTF: Tensor) -> Continuations:
    """These tokens, valid up to and including the first that ends an answer of this target."""
    stops = torch.tensor(sorted(stop_ids_of(lm)), dtype=torch.long, device=tokens_BTF.device)
    is_stop = torch.isin(tokens_BTF, stops).long()
    return Continuations(tokens_BTF, is_stop.cumsum(2) == is_stop)


def _argmax(head: Callable[[Tensor], Tensor], states_BTD: Tensor, chunk: int = 1024) -> Tensor:
    flat = states_BTD.flatten(0, 1)
    return torch.cat([head(part).argmax(-1) for part in flat.split(chunk)]).view(states_BTD.shape[:2])


# --- from states to the model's own logits ---------------------------------------------------------------------------


def head_logits(lm: CachedLM, states_ND: Tensor) -> Tensor:
    """The logits (N, V) the whole model makes of these final states: head, and the scaling or soft-capping that some
    families apply behind it.

    Which of them applies is found out once per model, against the model's own forward. Raises UsageError for a model
    whose logits are none of the known functions of its final state.
    """
    return _head_of(lm, None)(states_ND)


def _candidates(lm: CachedLM) -> list[Callable[[Tensor], Tensor]]:
    head, config = lm.lm_head, lm.config
    divisor = getattr(config, "logits_scaling", None)
    factor = getattr(config, "logit_scale", None)
    cap = getattr(config, "final_logit_softcapping", None)

    def plain(states: Tensor) -> Tensor:
        logits: Tensor = head(states)
        return logits

    found: list[Callable[[Tensor], Tensor]] = [plain]
    if divisor:
        found.append(lambda states: plain(states) / divisor)
    if factor:
        found.append(lambda states: plain(states) * factor)
    if cap:
        found.append(lambda states: torch.tanh(plain(states) / cap) * cap)
    return found


@torch.no_grad()
def _head_of(lm: CachedLM, probe_BT: Tensor | None) -> Callable[[Tensor], Tensor]:
    if lm.known_head is not None:
        return lm.known_head
    if probe_BT is None:
        probe_BT = torch.arange(_PROBE, device=lm.device)[None] % lm.vocab_size
    num_tokens = probe_BT.shape[1]
    document = torch.zeros_like(probe_BT)
    positions = positions_of(document)
    with lm.tapped(("final",)), attention.use(_Visible(_same_document(document), positions, lm.dtype)):
        logits = lm.model(input_ids=probe_BT, position_ids=positions, past_key_values=None, use_cache=False).logits
        states = lm.take_taps()
    assert states is not None and num_tokens
    tolerance = 1e-9 if lm.dtype == torch.float64 else 1e-3
    for candidate in _candidates(lm):
        if torch.allclose(candidate(states[:, :, 0]), logits.to(lm.dtype), rtol=tolerance, atol=tolerance):
            lm.known_head = candidate
            return candidate
    raise UsageError(
        f"the logits of {lm.name} are no known function of its final state, so its laws cannot be taught",
        try_="--loss ce, which needs none",
    )
