"""A target over several processes (transformers' tensor parallelism): one leads, the others mirror it.

`torchrun --nproc-per-node N -m specbench run ...` starts N processes of the same command. All of them load their share
of the target; then rank 0 alone goes on, drafts, accepts and writes, and tells the others every call of the target
before it makes it: a header of integers over gloo and the token ids over the target's own device. The others keep the
same cache, make the same calls, take part in the layers' sums and throw the results away.

Drafters live on rank 0 and read embedding and head as whole copies.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from specbench.errors import EnvironmentFailed, UsageError
from specbench.lm.cached_lm import CachedLM, Verified
from specbench.lm.rounding import Spread
from specbench.tree import DraftTree

_HEADER: Final = 8


class Call(IntEnum):
    """What the leader does next."""

    STOP = 0
    ALLOCATE = 1
    BEGIN = 2
    PREFILL = 3
    VERIFY = 4
    APPEND = 5
    COMMIT = 6
    TRUNCATE = 7
    KEEP = 8
    ERASE = 9
    FRESH_LOGITS = 10
    OWN_SPREAD = 11


def num_processes() -> int:
    """Processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE") or "1")


def rank() -> int:
    """This process's place among them."""
    return int(os.environ.get("RANK") or "0")


def own_device(device: torch.device) -> torch.device:
    """The one of a machine's devices that this process takes."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK") or "0")) if device.type == "cuda" else device


def check_is_first() -> None:
    """Raises UsageError for a second split target: the other processes mirror the first until the program ends."""
    if dist.is_initialized():
        raise UsageError(
            "a program has one target that is split over processes",
            where="torchrun",
            try_="one `specbench run` per torchrun",
        )


class Channel:
    """Calls from the leader to the others. The header is on the host, whose shapes everybody must know first."""

    def __init__(self, device: torch.device) -> None:
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        self._device = device
        self._host = dist.new_group(backend="gloo")

    def tell(self, call: Call, numbers: Sequence[int] = (), payload: Tensor | None = None) -> None:
        """Leader: this call comes next. payload: int64, flat, on the device."""
        size = 0 if payload is None else payload.numel()
        header = [call, size, *numbers]
        dist.broadcast(torch.tensor(header + [0] * (_HEADER - len(header))), src=0, group=self._host)
        if payload is not None and size:
            dist.broadcast(payload.to(device=self._device, dtype=torch.int64).contiguous(), src=0)

    def listen(self) -> tuple[Call, list[int], Tensor]:
        """The others: (call, numbers, payload)."""
        header = torch.zeros(_HEADER, dtype=torch.int64)
        dist.broadcast(header, src=0, group=self._host)
        call, size, *numbers = header.tolist()
        payload = torch.zeros(size, dtype=torch.int64, device=self._device)
        if size:
            dist.broadcast(payload, src=0)
        return Call(call), numbers, payload


class LeadingLM(CachedLM):
    """Rank 0's: every call that touches model or cache is told to the others first."""

    def __init__(self, model: PreTrainedModel, *, channel: Channel, **facts: Any) -> None:
        super().__init__(model, **facts)
        self.num_processes = num_processes()
        self._channel = channel
        self._embed_tokens = _whole(super().embed_tokens)
        self._lm_head = _whole(super().lm_head)
        self._is_open = True
        atexit.register(self.close)

    def close(self) -> None:
        """Let the others go; the program ends."""
        if self._is_open:
            self._is_open = False
            self._channel.tell(Call.STOP)
            dist.destroy_process_group()

    @property
    def embed_tokens(self) -> nn.Module:
        return self._embed_tokens

    @property
    def lm_head(self) -> nn.Module:
        return self._lm_head

    def allocate(self, *, max_batch: int, max_len: int, max_nodes: int) -> None:
        self._channel.tell(Call.ALLOCATE, [max_batch, max_len, max_nodes])
        super().allocate(max_batch=max_batch, max_len=max_len, max_nodes=max_nodes)

    def begin(self, num_rows: int) -> None:
        self._channel.tell(Call.BEGIN, [num_rows])
        super().begin(num_rows)

    def prefill(self, row: int, tokens_T: Tensor) -> tuple[Tensor, Tensor | None]:
        self._channel.tell(Call.PREFILL, [row], tokens_T)
        return super().prefill(row, tokens_T)

    def verify(self, root_B: Tensor, tree: DraftTree) -> Verified:
        parts = torch.cat([root_B, tree.tokens_BN.flatten(), tree.parents_BN.flatten()])
        self._channel.tell(Call.VERIFY, [root_B.shape[0], tree.num_nodes, tree.max_depth, int(tree.is_chain)], parts)
        return super().verify(root_B, tree)

    def append(self, tokens_BM: Tensor, num_B: list[int]) -> Tensor:
        parts = torch.cat([tokens_BM.flatten(), torch.tensor(num_B, device=tokens_BM.device)])
        self._channel.tell(Call.APPEND, list(tokens_BM.shape), parts)
        return super().append(tokens_BM, num_B)

    def commit(self, num_accepted: list[int], tree: DraftTree, path_BP: Tensor) -> None:
        parts = torch.cat([torch.tensor(num_accepted, device=path_BP.device), path_BP.flatten()])
        self._channel.tell(Call.COMMIT, [*path_BP.shape, int(tree.is_chain)], parts)
        super().commit(num_accepted, tree, path_BP)

    def truncate(self, row: int, length: int) -> None:
        self._channel.tell(Call.TRUNCATE, [row, length])
        super().truncate(row, length)

    def keep(self, rows: list[int], *, used: int | None = None) -> None:
        assert used is None, "steps of a split target are not captured"
        self._channel.tell(Call.KEEP, [len(rows)], torch.tensor(rows, dtype=torch.int64))
        super().keep(rows)

    def erase(self) -> None:
        self._channel.tell(Call.ERASE)
        super().erase()

    def fresh_logits(self, tokens: Sequence[int], *, full_precision: bool) -> Tensor:
        self._channel.tell(Call.FRESH_LOGITS, [int(full_precision)], torch.tensor(list(tokens)))
        return super().fresh_logits(tokens, full_precision=full_precision)

    def own_spread(self, tokens: Sequence[int], *, num_last: int) -> Spread:
        self._channel.tell(Call.OWN_SPREAD, [num_last], torch.tensor(list(tokens)))
        return super().own_spread(tokens, num_last=num_last)


def lead_or_follow(model: PreTrainedModel, *, device: torch.device, facts: dict[str, Any]) -> CachedLM:
    """This process's share of a target -> the whole of it, on rank 0. The others mirror it until it ends, and end the
    program. Raises EnvironmentFailed where transformers has no plan for the architecture."""
    check_can_be_split(model, facts["name"])
    channel = Channel(device)
    gather_whole(model)
    if rank() == 0:
        return LeadingLM(model, channel=channel, **facts)
    follow(CachedLM(model, **facts), channel)
    dist.destroy_process_group()
    raise SystemExit(0)


def follow(lm: CachedLM, channel: Channel) -> None:
    """The others: do what the leader does until it stops."""
    while True:
        call, numbers, payload = channel.listen()
        if call is Call.STOP:
            return
        _mirror(lm, call, numbers, payload)


def _mirror(lm: CachedLM, call: Call, numbers: list[int], payload: Tensor) -> None:
    match call:
        case Call.ALLOCATE:
            lm.allocate(max_batch=numbers[0], max_len=numbers[1], max_nodes=numbers[2])
        case Call.BEGIN:
            lm.begin(numbers[0])
        case Call.PREFILL:
            lm.prefill(numbers[0], payload)
        case Call.VERIFY:
            rows, nodes, max_depth, is_chain = numbers[:4]
            root, tokens, parents = payload.split([rows, rows * nodes, rows * nodes])
            tree = DraftTree(
                tokens_BN=tokens.view(rows, nodes),
                parents_BN=parents.view(rows, nodes),
                max_depth=max_depth,
                is_chain=bool(is_chain),
            )
            lm.verify(root, tree)
        case Call.APPEND:
            rows, columns = numbers[:2]
            lm.append(payload[: rows * columns].view(rows, columns), payload[rows * columns :].tolist())
        case Call.COMMIT:
            rows, columns, is_chain = numbers[:3]
            nothing = payload.new_zeros(rows, 0)
            lm.commit(
                payload[:rows].tolist(),
                DraftTree(tokens_BN=nothing, parents_BN=nothing, max_depth=0, is_chain=bool(is_chain)),
                payload[rows:].view(rows, columns),
            )
        case Call.TRUNCATE:
            lm.truncate(numbers[0], numbers[1])
        case Call.KEEP:
            lm.keep(payload.tolist())
        case Call.ERASE:
            lm.erase()
        case Call.FRESH_LOGITS:
            lm.fresh_logits(payload.tolist(), full_precision=bool(numbers[0]))
        case Call.OWN_SPREAD:
            lm.own_spread(payload.tolist(), num_last=numbers[0])
        case Call.STOP:
            raise AssertionError("a stop is not mirrored")


def gather_whole(model: PreTrainedModel) -> None:
    """All processes together: embedding and head become whole where they were cut, on rank 0 for good. Must be called
    by every process, in the same order."""
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert getattr(module, "bias", None) is None, "a cut head with a bias: drafters would read it without"
        weight: Any = module.weight
        if hasattr(weight, "full_tensor"):
            whole: Tensor = weight.full_tensor().detach()
            if rank() == 0:
                module.specbench_whole = whole


def _whole(module: nn.Module) -> nn.Module:
    """The module as drafters read it: alone, with all its rows."""
    weight: Tensor | None = getattr(module, "specbench_whole", None)
    if weight is None:
        return module
    if isinstance(module, nn.Embedding):
        table: nn.Embedding = nn.Embedding.from_pretrained(weight, freeze=True)
        return table
    found = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    found.weight = nn.Parameter(weight, requires_grad=False)
    return found


def check_can_be_split(model: PreTrainedModel, name: str) -> None:
    """Raises EnvironmentFailed where transformers has no plan for this architecture."""
    if not getattr(model, "_tp_plan", None):
        raise EnvironmentFailed(
            f"transformers has no tensor-parallel plan for {name} ({model.config.model_type})",
            where="torchrun",
            try_="specbench run without torchrun, on one device",
        )
