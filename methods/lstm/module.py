"""The two cells of the LSTM speculator. `sum_lstm`, the published one, with z = a E_g[x], a = `token_weight`:

    s_0 = h, or rms(h) / sqrt(2)      h = the target's final state that predicted the root, c_0 = 0
    u_g = P_g s_i + z_g               g in forget, input, output, cell; x = the root, then the tokens drafted
    c_{i+1} = sig(u_forget) c_i + sig(u_input) GELU(N_c(u_cell))
    s_{i+1} = sig(u_output) GELU(N_s(c_{i+1}))
    logits_i = H s_{i+1}

and `sum_rnn`, the MLP speculator generalised: s_{i+1} = GELU(N(P s_i + z)). N is an RMS norm with a bias, GELU is
exact. P of depth 0 reads the target's state, of all others the cell's own.

N positions, H target's width, d state's width, V target's vocabulary, W drafter's vocabulary, G tables (4 or 1).
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.lstm.architecture import Architecture
from specbench.blocks import DraftVocabulary, TargetHead, check_width
from specbench.method import TargetView

EPSILON = 1e-6
GATES = ("forget", "input", "output", "cell")
"""Order of the rows of a fused projection and of the columns of a fused table."""


class State(NamedTuple):
    """What a branch carries from depth to depth. hidden_ND: s_i (N, H at depth 0, else d). cell_ND: c_i, None = 0."""

    hidden_ND: Tensor
    cell_ND: Tensor | None

    def select(self, index_M: Tensor) -> State:
        """Copies of the rows `index_M`: each branch goes on with its parent's state."""
        cell = None if self.cell_ND is None else self.cell_ND.index_select(0, index_M)
        return State(self.hidden_ND.index_select(0, index_M), cell)


class BiasedRMSNorm(nn.Module):
    """w x / sqrt(mean(x^2) + 1e-6) + b: no mean is taken off, unlike in a layer norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], None, EPSILON) * self.weight + self.bias


class Table(nn.Module):
    """Token -> row of `num * width` numbers: a learnt table; a learnt one of few columns and a map; or the target's
    frozen table and a map."""

    weight: nn.Parameter | None
    map: nn.Parameter | None

    def __init__(self, architecture: Architecture, *, width: int, num: int = 1) -> None:
        super().__init__()
        kind, rank = architecture.embedding, architecture.embedding_rank
        self._width = width
        columns = {"own": num * width, "factored": rank, "target": 0}[kind]
        inner = {"own": 0, "factored": rank, "target": architecture.embed_size}[kind]
        self.weight = nn.Parameter(torch.empty(architecture.vocab_size, columns)) if columns else None
        self.map = nn.Parameter(torch.empty(num * width, inner)) if inner else None
        self._borrowed: Tensor | None = None

    def borrow(self, weight_VE: Tensor) -> None:
        """The target's table: read, never registered, trained or saved."""
        self._borrowed = weight_VE.detach()

    def reset_parameters(self) -> None:
        """So that a row has numbers of standard deviation 1 / sqrt(width), which `token_weight` counts on."""
        rows = self._rows()
        if self.map is None:
            nn.init.normal_(rows, std=min(rows.shape[0], self._width) ** -0.5)
            return
        if self.weight is not None:
            nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)
            nn.init.normal_(self.map, std=self._width**-0.5)
            return
        size = rows.float().square().mean().sqrt().clamp(min=1e-6).item()
        nn.init.normal_(self.map, std=(self._width * rows.shape[1]) ** -0.5 / size)

    def _rows(self) -> Tensor:
        rows = self.weight if self.weight is not None else self._borrowed
        assert rows is not None, "a borrowed table is read before `borrow`"
        return rows

    def forward(self, ids_N: Tensor) -> Tensor:
        rows = F.embedding(ids_N, self._rows())
        return rows if self.map is None else F.linear(rows.to(self.map.dtype), self.map)


class Head(nn.Module):
    """State (N, d) -> logits (N, W): a learnt matrix, or a learnt map to the target's width and its frozen head.

    The map is there even where d = H: a gated GELU is almost never negative, and the target's head expects states that
    are.
    """

    weight: nn.Parameter | None
    map: nn.Parameter | None

    def __init__(self, architecture: Architecture, *, size: int) -> None:
        super().__init__()
        width = architecture.inner_dim[-1]
        is_own = architecture.head == "own"
        self.weight = nn.Parameter(torch.empty(size, width)) if is_own else None
        self.map = None if is_own else nn.Parameter(torch.empty(architecture.hidden_size, width))
        self._borrowed: TargetHead | None = None

    def borrow(self, head: TargetHead) -> None:
        """The target's head over the drafter's vocabulary."""
        self._borrowed = head

    def matrix(self) -> tuple[Tensor, Tensor | None]:
        """All of it as one matrix (W, d) and its bias (W,), as it is now."""
        if self.weight is not None:
            return self.weight.detach(), None
        assert self.map is not None and self._borrowed is not None, "a borrowed head is read before `borrow`"
        weight, bias = self._borrowed.matrix()
        return weight.to(self.map.dtype) @ self.map.detach(), bias

    def reset_parameters(self) -> None:
        """As all matrices of the published drafters."""
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=min(parameter.shape) ** -0.5)

    def forward(self, state_ND: Tensor) -> Tensor:
        if self.weight is not None:
            return F.linear(state_ND, self.weight)
        assert self.map is not None and self._borrowed is not None, "a borrowed head is read before `borrow`"
        return self._borrowed(F.linear(state_ND, self.map))


class Speculator(nn.Module):
    """What both cells share. Weights are uninitialised until `reset_parameters` or a checkpoint fills them."""

    head: nn.ModuleList

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.vocabulary = DraftVocabulary(architecture.vocab_size, num=architecture.trimmed)

    def start(self, hidden_NH: Tensor) -> State:
        """s_0 of the target's states."""
        hidden_NH = hidden_NH.to(self.dtype)
        if self.architecture.scale_input:
            hidden_NH = F.rms_norm(hidden_NH, hidden_NH.shape[-1:], None, EPSILON) * 2**-0.5
        return State(hidden_NH, None)

    def step(self, depth: int, tokens_N: Tensor, state: State) -> State:
        """s_{depth + 1} after reading these tokens (the root at depth 0)."""
        raise NotImplementedError

    def logits(self, depth: int, state: State) -> Tensor:
        """(N, W) of the state that `step(depth, ...)` returned."""
        logits: Tensor = self.head_of(depth)(state.hidden_ND)
        return logits

    def head_of(self, depth: int) -> Head:
        """This depth's head."""
        head = self.head[self.architecture.weights_of(depth)]
        assert isinstance(head, Head)
        return head

    def borrow(self, target: TargetView) -> None:
        """Hand in what is the target's, after building. Raises UsageError where the target's embedding has another
        width than the one the map was made for."""
        head = TargetHead(target, self.vocabulary) if self.architecture.head == "target" else None
        table: Tensor = target.embed_tokens.weight  # type: ignore[assignment]
        for module in self.modules():
            if isinstance(module, Head) and head is not None:
                module.borrow(head)
            if isinstance(module, Table) and module.weight is None:
                check_width(
                    "lstm", wanted=self.architecture.embed_size, width=target.embed_width, option="lstm.embedding"
                )
                module.borrow(table)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Matrices ~ N(0, 1 / min(shape)), norms 1 and 0, as published; from torch's global generator."""
        for module in self.modules():
            if isinstance(module, Table | Head):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=min(module.weight.shape) ** -0.5)

    @property
    def dtype(self) -> torch.dtype:
        """What the cell computes in."""
        return next(self.parameters()).dtype


class SumLSTM(Speculator):
    """One cell for all depths; the four projections of a depth are one matrix."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        width = architecture.inner_dim[0]
        self.width = width
        self.token_weight = architecture.token_weight
        self.embedding = Table(architecture, width=width, num=architecture.num_gate_tables)
        self.projections = nn.ParameterList(
            [
                nn.Parameter(torch.empty(len(GATES) * width, width if depth else architecture.hidden_size))
                for depth in range(architecture.num_projections)
            ]
        )
        self.cell_norm = BiasedRMSNorm(width)
        self.state_norm = BiasedRMSNorm(width)
        self.head = nn.ModuleList([Head(architecture, size=self.vocabulary.size)])

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        for projection in self.projections:
            nn.init.normal_(projection, std=min(self.width, projection.shape[1]) ** -0.5)

    def step(self, depth: int, tokens_N: Tensor, state: State) -> State:
        projection, width = self.projections[min(depth, 1)], self.width
        # There is nothing to forget at depth 0: those rows are neither read nor taught.
        num_gates = len(GATES) if state.cell_ND is not None else len(GATES) - 1
        projected = F.linear(state.hidden_ND, projection[-num_gates * width :]).unflatten(-1, (num_gates, width))
        tokens = self.embedding(tokens_N).unflatten(-1, (-1, width))
        if tokens.shape[1] > 1:
            tokens = tokens[:, -num_gates:]
        gates_NGd = torch.add(projected, tokens, alpha=self.token_weight)
        *forget, admit, emit = torch.sigmoid(gates_NGd[:, :-1]).unbind(1)
        cell = admit * F.gelu(self.cell_norm(gates_NGd[:, -1]))
        if state.cell_ND is not None:
            cell = torch.addcmul(cell, forget[0], state.cell_ND)
        return State(emit * F.gelu(self.state_norm(cell)), cell)


class SumRNN(Speculator):
    """The plain recurrence; names and nesting of the parts are those of its checkpoints.

    A further stage of `emb` and `proj` is norm, GELU, matrix; of `ln` it is GELU, matrix, norm. The norm of a stage is
    as wide as what it reads.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        arch = architecture
        self._token_weight = arch.token_weight
        self.emb = nn.ModuleList(
            nn.Sequential(Table(arch, width=arch.emb_dim[0]), *_before(arch.emb_dim)) for _ in range(arch.num_weights)
        )
        self.proj = nn.ModuleList(
            nn.Sequential(
                nn.Linear(arch.inner_dim[-1] if depth else arch.hidden_size, arch.proj_dim[0], bias=False),
                *_before(arch.proj_dim),
            )
            for depth in range(arch.num_projections)
        )
        self.ln = nn.ModuleList(
            nn.Sequential(BiasedRMSNorm(arch.inner_dim[0]), *_after(arch.inner_dim)) for _ in range(arch.num_weights)
        )
        self.head = nn.ModuleList(Head(arch, size=self.vocabulary.size) for _ in range(arch.num_weights))

    def step(self, depth: int, tokens_N: Tensor, state: State) -> State:
        which = self.architecture.weights_of(depth)
        projected = self.proj[self.architecture.projection_of(depth)](state.hidden_ND)
        summed = torch.add(projected, self.emb[which](tokens_N), alpha=self._token_weight)
        return State(F.gelu(self.ln[which](summed)), None)


def _before(widths: tuple[int, ...]) -> list[nn.Module]:
    stages: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        stages += [BiasedRMSNorm(wide), nn.GELU(), nn.Linear(wide, narrow, bias=False)]
    return stages


def _after(widths: tuple[int, ...]) -> list[nn.Module]:
    stages: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        stages += [nn.GELU(), nn.Linear(wide, narrow, bias=False), BiasedRMSNorm(narrow)]
    return stages


def make_speculator(architecture: Architecture) -> Speculator:
    """The architecture's cell, weights unfilled."""
    return SumLSTM(architecture) if architecture.method == "sum_lstm" else SumRNN(architecture)
