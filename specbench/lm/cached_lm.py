"""A Hugging Face causal LM, unmodified, that prefills, verifies trees and rolls back.

Shape legend: B rows, T prompt tokens, N draft nodes, M = N + 1 slots (root first), C = P + 1, K taps, D hidden, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specbench.errors import UsageError
from specbench.lm import attention, facts, visibility
from specbench.lm.compiled import CompiledDecoder
from specbench.lm.kv_cache import KVCache
from specbench.lm.quantised import full_precision_copy
from specbench.lm.rounding import Spread, own_logits, own_spread
from specbench.lm.shortcut import Shortcut
from specbench.lm.taps import TapRecorder
from specbench.tree import DraftTree, Topology, chain, topology


@dataclass(frozen=True, kw_only=True)
class Verified:
    """logits_BMV: row i predicts the token after slot i (slot 0 = root). hidden_BMKD: tapped states, None without
    taps."""

    logits_BMV: Tensor
    hidden_BMKD: Tensor | None


class CachedLM:
    """One model, one cache. All methods run under inference mode."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        name: str,
        tokenizer: PreTrainedTokenizerBase | None = None,
        weights_hash: str = "",
        quantisation: str = "none",
        notes: tuple[str, ...] = (),
        is_capturable: bool = True,
        attention_asked: str = "auto",
    ) -> None:
        """quantisation: as recorded, 'none' where the weights are plain. notes: what every row of this target says.
        is_capturable: fit for CUDA graphs, as far as its weights are concerned. attention_asked: the choice it was
        loaded under, which a draft model follows."""
        self.model: PreTrainedModel = model.eval()
        self.name = name
        self.tokenizer = tokenizer
        self.weights_hash = weights_hash
        self.quantisation = quantisation
        self.notes = notes
        self.is_capturable = is_capturable
        self.attention_asked = attention_asked
        self.config = model.config.get_text_config()
        self.device = model.device
        self.dtype = model.dtype
        self.vocab_size = int(model.get_output_embeddings().weight.shape[0])
        self.num_processes = 1
        """Over how many the target is split (`lm.parallel`)."""
        self.attention_used: set[str] = set()
        self.known_head: Callable[[Tensor], Tensor] | None = None
        """Final states -> logits, once `packed.head_logits` has found it out."""
        attention.silence_padding_warning(model)
        self._taps = TapRecorder(model)
        self._shortcut = Shortcut(model)
        self._compiled: CompiledDecoder | None = None
        self._cache: KVCache | None = None
        self._fp32: PreTrainedModel | None = None
        self._max_position = facts.num_positions(self.config)

    # --- room ------------------------------------------------------------------------------------------------------

    @property
    def context_length(self) -> int | None:
        """Positions the model was built for; None where its config does not say."""
        return self._max_position or None

    def allocate(self, *, max_batch: int, max_len: int, max_nodes: int) -> None:
        """Make (or keep) a cache of max_batch rows of max_len tokens plus max_nodes draft nodes. Grows only."""
        slots = max_len + max_nodes + 1
        if self._cache is not None and self._cache.max_rows >= max_batch and self._cache.num_slots >= slots:
            return
        if self._cache is not None:
            max_batch = max(max_batch, self._cache.max_rows)
            slots = max(slots, self._cache.num_slots)
            self._cache = None
        self._cache = KVCache(num_layers=self.config.num_hidden_layers, max_rows=max_batch, num_slots=slots)

    def release(self) -> None:
        """Give the cache back: the next `allocate` makes one of its own size."""
        self._cache = None

    @property
    def cache(self) -> KVCache:
        assert self._cache is not None, "allocate() comes first"
        return self._cache

    @property
    def lengths(self) -> list[int]:
        """Cached (committed) tokens per row."""
        return self.cache.lengths

    def begin(self, num_rows: int) -> None:
        """Forget all rows; num_rows empty ones."""
        self.cache.begin(num_rows)

    # --- compiling ---------------------------------------------------------------------------------------------------

    def compile(self, *, is_whole: bool = False, backend: str = "inductor") -> None:
        """Forwards that prefill and verify go through torch.compile from now on, layer by layer or whole; each new
        shape takes its time once (`compile_s`)."""
        self.run_uncompiled()
        self._compiled = CompiledDecoder(self.model, is_whole=is_whole, backend=backend)

    def run_uncompiled(self) -> None:
        """Forwards go as they did before `compile`."""
        if self._compiled is not None:
            self._compiled.remove()
            self._compiled = None

    @contextmanager
    def uncompiled(self) -> Iterator[None]:
        """Inside the block forwards go as they did before `compile`; nothing is compiled anew behind it."""
        if self._compiled is None:
            yield
            return
        self._compiled.remove()
        try:
            yield
        finally:
            self._compiled.install()

    @property
    def is_compiled(self) -> bool:
        """See `compile`."""
        return self._compiled is not None

    @property
    def is_compiled_whole(self) -> bool:
        """Whether what stands between its layers is compiled as well, and its layers show nothing."""
        return self._compiled is not None and self._compiled.is_whole

    @property
    def compile_s(self) -> float:
        """Seconds that forwards of new shapes have taken so far."""
        return 0.0 if self._compiled is None else self._compiled.compile_s

    # --- forwards --------------------------------------------------------------------------------------------------

    def tap(self, taps: tuple[int | str, ...]) -> None:
        """Record these layers' outputs in every forward from now on; () records nothing. Raises UsageError for layers
        of a target that is compiled whole."""
        self._taps.set(taps)
        if self.is_compiled_whole and self._taps.has_layers:
            raise UsageError(
                "this method reads states between the target's layers, which one that is compiled whole does not show",
                where="--compile",
                try_="--compile off" if self.device.type == "cpu" else "--compile on",
            )

    @contextmanager
    def tapped(self, taps: tuple[int | str, ...]) -> Iterator[None]:
        """Record these layers' outputs inside the block; whatever was tapped before is tapped again behind it."""
        before = self._taps.taps
        self._taps.set(taps)
        try:
            yield
        finally:
            self._taps.set(before)

    def take_taps(self) -> Tensor | None:
        """(B, M, K, D) of the last forward inside `tapped`."""
        return self._taps.take()

    @torch.inference_mode()
    def prefill(self, row: int, tokens_T: Tensor) -> tuple[Tensor, Tensor | None]:
        """Append tokens to one row -> (logits (V,) after the last of them, tapped hidden_TKD or None)."""
        num_tokens = tokens_T.shape[0]
        start = self.cache.lengths[row]
        self.cache.open_row(row, num_tokens)
        tree = chain(tokens_T[None, 1:])
        logits, hidden = self._forward(
            tokens_T[None], topology(tree), [start], is_chain=True, max_depth=num_tokens - 1, keep=1
        )
        self.cache.advance(row, num_tokens)
        return logits[0, -1], None if hidden is None else hidden[0]

    @torch.inference_mode()
    def verify(self, root_B: Tensor, tree: DraftTree) -> Verified:
        """One forward over root and draft of every row. Nothing is committed: `commit` or the next forward decides."""
        tokens_BM = torch.cat([root_B[:, None], tree.tokens_BN], dim=1) if tree.num_nodes else root_B[:, None]
        self.cache.open_all(tokens_BM.shape[1], self.device)
        logits, hidden = self._forward(
            tokens_BM, topology(tree), self.cache.lengths, is_chain=tree.is_chain, max_depth=tree.max_depth, keep=0
        )
        return Verified(logits_BMV=logits, hidden_BMKD=hidden)

    @torch.inference_mode()
    def append(self, tokens_BM: Tensor, num_B: list[int]) -> Tensor:
        """Append the first num_B[b] >= 1 tokens of each row -> logits (B, V) after the last of them.

        A row's further columns are padding: computed, never kept. `truncate` takes tokens back.
        """
        num_rows, num_columns = tokens_BM.shape
        self.cache.open_all(num_columns, self.device)
        is_even = min(num_B) == num_columns
        shape = topology(chain(tokens_BM[:, 1:]))
        logits, _ = self._forward(
            tokens_BM, shape, self.cache.lengths, is_chain=True, max_depth=num_columns - 1, keep=1 if is_even else 0
        )
        for row, count in enumerate(num_B):
            self.cache.advance(row, count)
        if is_even:
            return logits[:, -1]
        return logits[torch.arange(num_rows, device=self.device), torch.tensor(num_B, device=self.device) - 1]

    @torch.inference_mode()
    def verify_behind(self, root_B: Tensor, tree: DraftTree, length_B: Tensor, *, span: int) -> Verified:
        """`verify` behind rows whose lengths only the device knows (committed tokens, root excluded): a step that is
        captured. span: slots of the cache that are read; length_B + M may not pass it."""
        tokens_BM = torch.cat([root_B[:, None], tree.tokens_BN], dim=1) if tree.num_nodes else root_B[:, None]
        logits, hidden = self._behind(tokens_BM, tree, length_B, span=span, keep=0)
        return Verified(logits_BMV=logits, hidden_BMKD=hidden)

    @torch.inference_mode()
    def read_behind(self, tokens_BM: Tensor, length_B: Tensor, *, span: int) -> Tensor:
        """Put M tokens behind rows whose lengths only the device knows -> logits (B, V) after the last one."""
        logits, _ = self._behind(tokens_BM, chain(tokens_BM[:, 1:]), length_B, span=span, keep=1)
        return logits[:, -1]

    @torch.inference_mode()
    def read_level(self, tokens_BW: Tensor, levels: Topology, *, max_depth: int) -> Tensor:
        """One more level of a tree whose earlier levels were read before -> logits (B, W, V) after each of its nodes.

        levels: of all nodes read so far, this level's last; depth 0 is that of the root's children, whose root is
        committed. Nothing is committed: `commit_levels` decides.
        """
        num_before = levels.depth_BM.shape[1] - tokens_BW.shape[1]
        self.cache.open_all(tokens_BW.shape[1], self.device, behind=num_before)
        logits, _ = self._forward(tokens_BW, levels, self.cache.lengths, is_chain=False, max_depth=max_depth, keep=0)
        return logits

    @torch.inference_mode()
    def read_level_behind(
        self, tokens_BW: Tensor, levels: Topology, length_B: Tensor, *, span: int, max_depth: int
    ) -> Tensor:
        """`read_level` behind rows whose lengths (root included) only the device knows."""
        num_before = levels.depth_BM.shape[1] - tokens_BW.shape[1]
        self.cache.open_behind(length_B + num_before, tokens_BW.shape[1], span=span)
        forward = visibility.DeviceForward(
            levels, length_B, span=span, is_chain=False, max_depth=max_depth, dtype=self.dtype
        )
        logits, _ = self._run(tokens_BW, self._positions_behind(levels, length_B, tokens_BW, span), forward, keep=0)
        return logits

    def _behind(
        self, tokens_BM: Tensor, tree: DraftTree, length_B: Tensor, *, span: int, keep: int
    ) -> tuple[Tensor, Tensor | None]:
        shape = topology(tree)
        self.cache.open_behind(length_B, tokens_BM.shape[1], span=span)
        forward = visibility.DeviceForward(
            shape, length_B, span=span, is_chain=tree.is_chain, max_depth=tree.max_depth, dtype=self.dtype
        )
        return self._run(tokens_BM, self._positions_behind(shape, length_B, tokens_BM, span), forward, keep=keep)

    def _positions_behind(self, shape: Topology, length_B: Tensor, tokens_BM: Tensor, span: int) -> Tensor:
        positions_BM = shape.depth_BM[:, -tokens_BM.shape[1] :] + length_B[:, None]
        if self._max_position and span >= self._max_position:
            positions_BM = positions_BM.clamp(max=self._max_position - 1)
        return positions_BM

    def _forward(
        self, tokens_BM: Tensor, shape: Topology, lengths: list[int], *, is_chain: bool, max_depth: int, keep: int
    ) -> tuple[Tensor, Tensor | None]:
        forward = visibility.HostForward(shape, lengths, is_chain=is_chain, max_depth=max_depth, dtype=self.dtype)
        depth_BM = shape.depth_BM[:, -tokens_BM.shape[1] :]
        if len(lengths) == 1:
            positions_BM = depth_BM + lengths[0]
        else:
            positions_BM = depth_BM + torch.tensor(lengths, device=self.device)[:, None]
        if self._max_position and max(lengths) + max_depth >= self._max_position:
            # Nodes past the model's last position can never be committed (the engine stops before), but learned
            # position tables must not be read out of range for them.
            positions_BM = positions_BM.clamp(max=self._max_position - 1)
        return self._run(tokens_BM, positions_BM, forward, keep=keep)

    def _run(
        self, tokens_BM: Tensor, positions_BM: Tensor, forward: visibility.Forward, *, keep: int
    ) -> tuple[Tensor, Tensor | None]:
        forward.cache = self.cache
        with attention.use(forward):
            logits = self._shortcut.logits(tokens_BM, positions_BM, self.cache, keep=keep)
        self.attention_used |= forward.implementations
        return logits, self._taps.take()

    def fresh_logits(self, tokens: Sequence[int], *, full_precision: bool) -> Tensor:
        """Logits (V,) after these tokens from transformers' own attention and no cache: slow, to judge answers by.

        full_precision: in at least fp32, from a copy made once where the target runs in less or is quantised (then of
        the weights its layers stand for); a target split over processes has no such copy and answers in its own dtype.
        """
        model = self._full_precision_model() if full_precision and self.num_processes == 1 else self.model
        return own_logits(model, torch.tensor(list(tokens), device=self.device))

    def own_spread(self, tokens: Sequence[int], *, num_last: int) -> Spread:
        """`rounding.own_spread` of this model, uncompiled."""
        with self.uncompiled():
            return own_spread(self.model, torch.tensor(list(tokens), device=self.device), num_last=num_last)

    def _full_precision_model(self) -> PreTrainedModel:
        if self.dtype in (torch.float32, torch.float64) and self.quantisation == "none":
            return self.model
        if self._fp32 is None:
            with self.uncompiled():  # the forwards put in their modules' place would run this model's modules
                self._fp32 = full_precision_copy(self.model)
        return self._fp32

    # --- rollback --------------------------------------------------------------------------------------------------

    def commit_behind(self, tree: DraftTree, path_BP: Tensor, length_B: Tensor) -> None:
        """`commit` where the device alone knows the lengths: moves the accepted path into place and counts nothing."""
        if not tree.is_chain:
            self.cache.compact(_path_slots(path_BP), length_B)

    def commit(self, num_accepted: list[int], tree: DraftTree, path_BP: Tensor) -> None:
        """Keep root and accepted path of each row, forget the rest. path_BP: accepted nodes, -1 padded."""
        if not tree.is_chain:
            self.cache.compact(_path_slots(path_BP))
        for row, count in enumerate(num_accepted):
            self.cache.advance(row, count + 1)

    def commit_levels(self, num_kept: list[int], path_BP: Tensor) -> None:
        """Keep this path of nodes that `read_level` read, forget the others. path_BP: as those are numbered, level by
        level; -1 padded. num_kept: how many of it each row keeps."""
        self.cache.compact(_path_slots(path_BP), torch.tensor(self.lengths, device=self.device) - 1)
        for row, count in enumerate(num_kept):
            self.cache.advance(row, count)

    def commit_levels_behind(self, path_BP: Tensor, length_B: Tensor) -> None:
        """`commit_levels` where the device alone knows the lengths (root included)."""
        self.cache.compact(_path_slots(path_BP), length_B - 1)

    def truncate(self, row: int, length: int) -> None:
        """Forget everything of a row after its first `length` tokens."""
        assert 0 <= length <= self.cache.lengths[row], f"cannot truncate {self.cache.lengths[row]} tokens to {length}"
        self.cache.lengths[row] = length

    def keep(self, rows: list[int], *, used: int | None = None) -> None:
        """Rows leave the batch; new row i is old row rows[i]. used: slots to copy where `lengths` are not up to
        date."""
        self.cache.keep(rows, used=used)

    def erase(self) -> None:
        """Zero the whole cache: after a forward that was not finite."""
        self.cache.erase()

    # --- facts -----------------------------------------------------------------------------------------------------

    @property
    def embed_tokens(self) -> nn.Module:
        module: nn.Module = self.model.get_input_embeddings()
        return module

    @property
    def lm_head(self) -> nn.Module:
        module: nn.Module = self.model.get_output_embeddings()
        return module

    @property
    def final_norm(self) -> nn.Module | None:
        """The norm whose output the head reads, where the decoder exposes one under a usual name."""
        return facts.final_norm(self.model)

    def num_parameters(self) -> int:
        """`facts.num_parameters`."""
        return facts.num_parameters(self.model)

    def weight_bytes_per_token(self) -> int:
        """`facts.weight_bytes_per_token`."""
        return facts.weight_bytes_per_token(self.model, self.config)

    def cache_bytes_per_token(self) -> int:
        """Key and value bytes of one cached token, all layers; 0 before the first forward."""
        if self._cache is None:
            return 0
        return self.num_processes * self._cache.num_bytes() // (self._cache.max_rows * self._cache.num_slots)


def _path_slots(path_BP: Tensor) -> Tensor:
    """(B, C) slots behind a row's length: the root's, the accepted nodes', padding 0."""
    return torch.cat([path_BP.new_zeros(path_BP.shape[0], 1), (path_BP + 1).clamp(min=0)], dim=1)
