"""The Triton kernel against the definition, in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from specbench.lm import attention, visibility
from specbench.lm.packed import packed_logits
from specbench.tree import DraftTree, chain, topology
from tests.helpers import tiny_lm

pytest.importorskip("triton", reason="Triton is not installed: pip install triton (Linux)")

import triton

from specbench.lm import tree_kernel
from specbench.lm.tree_kernel import ancestor_bits, num_shares, tree_attention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def random_tree(num_rows: int, num_nodes: int, generator: torch.Generator) -> DraftTree:
    """Parents anywhere before their children."""
    parents = torch.stack(
        [
            torch.tensor([int(torch.randint(-1, node, (1,), generator=generator)) for node in range(num_nodes)])
            for _ in range(num_rows)
        ]
    )
    return DraftTree(tokens_BN=torch.zeros_like(parents), parents_BN=parents, max_depth=num_nodes)


def assert_as_the_reference(
    lengths: list[int],
    tree: DraftTree,
    *,
    heads: int = 4,
    kv_heads: int = 2,
    width: int = 64,
    dtype: torch.dtype = torch.float32,
    window: int | None = None,
    cap: float | None = None,
    has_sink: bool = False,
    shares: int | None = None,
    garbage: float = 1e4,
) -> None:
    """Random queries and a cache whose unused slots hold garbage."""
    generator = torch.Generator().manual_seed(0)
    shape, num_rows = topology(tree), len(lengths)
    num_slots = tree.num_nodes + 1
    room = max(lengths) + num_slots

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(dtype)

    query = draw(num_rows, num_slots, heads, width).transpose(1, 2)
    # Buffers are longer than what is read, as the cache's are.
    keys, values = (draw(num_rows, kv_heads, room + 7, width)[:, :, :room] for _ in range(2))
    for row, length in enumerate(lengths):
        keys[row, :, length + num_slots :] = garbage
        values[row, :, length + num_slots :] = garbage
    sink = draw(heads) if has_sink else None
    forward = visibility.HostForward(shape, lengths, is_chain=tree.is_chain, max_depth=tree.max_depth, dtype=dtype)
    with attention.use(forward):
        wanted, _ = attention.plain_attention(
            nn.Module(), query.float(), keys.float(), values.float(), None, sliding_window=window, softcap=cap,
            s_aux=None if sink is None else sink.float(),
        )  # fmt: skip
    found = tree_attention(
        query.to(DEVICE), keys.to(DEVICE), values.to(DEVICE),
        length_B=torch.tensor(lengths, dtype=torch.int32, device=DEVICE),
        depth_BM=shape.depth_BM.int().contiguous().to(DEVICE),
        bits_BMW=ancestor_bits(shape.sees_BMM).to(DEVICE),
        scale=width**-0.5, window=window, cap=cap, sink_H=None if sink is None else sink.to(DEVICE), shares=shares,
    )  # fmt: skip
    assert found.dtype == dtype and found.shape == wanted.shape
    error = (found.cpu().float() - wanted).norm() / wanted.norm()
    assert float(error) < TOLERANCE[dtype]


TREES: list[tuple[str, Callable[[torch.Generator], DraftTree]]] = [
    ("nothing drafted", lambda _: chain(torch.zeros(2, 0, dtype=torch.long))),
    ("a chain", lambda _: chain(torch.zeros(2, 5, dtype=torch.long))),
    ("a tree", lambda generator: random_tree(2, 20, generator)),
    ("a tree of more words than one", lambda generator: random_tree(2, 70, generator)),
]


@pytest.mark.parametrize(("name", "make"), TREES, ids=[name for name, _ in TREES])
@pytest.mark.parametrize("shares", [1, 3])
def test_it_computes_what_the_plain_reference_does_for_ragged_rows(
    name: str, make: Callable[[torch.Generator], DraftTree], shares: int
) -> None:
    assert_as_the_reference([150, 7], make(torch.Generator().manual_seed(1)), shares=shares)


@pytest.mark.parametrize("width", [64, 80, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_head_size_and_type(width: int, dtype: torch.dtype) -> None:
    assert_as_the_reference(
        [70], random_tree(1, 9, torch.Generator().manual_seed(2)), width=width, dtype=dtype, shares=2
    )


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (8, 2), (12, 1)])
def test_every_grouping_of_heads(heads: int, kv_heads: int) -> None:
    assert_as_the_reference(
        [33, 64], random_tree(2, 12, torch.Generator().manual_seed(3)), heads=heads, kv_heads=kv_heads, shares=2
    )


@pytest.mark.parametrize(
    "what",
    [{"window": 20}, {"window": 3}, {"window": 100}, {"cap": 5.0}, {"has_sink": True}, {"window": 9, "cap": 2.0}],
    ids=str,
)
def test_windows_soft_caps_and_sinks(what: dict[str, Any]) -> None:
    assert_as_the_reference([40, 3], random_tree(2, 10, torch.Generator().manual_seed(4)), shares=3, **what)


def test_the_largest_tree_and_an_empty_cache() -> None:
    assert_as_the_reference([0, 90], random_tree(2, 128, torch.Generator().manual_seed(5)), shares=2)
    with pytest.raises(AssertionError, match="130 slots"):
        assert_as_the_reference([5], random_tree(1, 129, torch.Generator().manual_seed(5)))


def test_shares_without_a_token_weigh_nothing() -> None:
    assert_as_the_reference([3], chain(torch.zeros(1, 4, dtype=torch.long)), shares=8)


def test_bits_are_the_visibility() -> None:
    shape = topology(random_tree(2, 100, torch.Generator().manual_seed(6)))
    bits = ancestor_bits(shape.sees_BMM)
    for slot in (0, 1, 40, 100):
        for other in range(101):
            seen = (int(bits[1, slot, other // 32]) >> (other % 32)) & 1
            assert bool(seen) == bool(shape.sees_BMM[1, slot, other])


def test_shares_fill_the_card_and_are_no_shorter_than_a_block() -> None:
    assert num_shares(1000, 4096, 132) == 1
    assert num_shares(8, 4096, 132) == 33
    assert num_shares(8, 100, 132) == 2
    assert num_shares(1, 1 << 20, 132) == 64


@pytest.mark.parametrize("programs", [1, 8, 16, 24, 40, 80, 133, 200, 264])
def test_no_share_waits_for_another_to_end(programs: int) -> None:
    """Two programs a multiprocessor, at once or one behind the other. 64 nodes on eight key heads of four queries are
    40 programs without shares."""
    shares = num_shares(programs, 1 << 20, 132)
    assert programs * shares <= 2 * 132
    assert shares == 64 or programs * (shares + 1) > 2 * 132, "and the card is as full as it gets"


@pytest.mark.parametrize("shares", [1, 3, 5, 7])
def test_any_number_of_shares_gives_the_reference(shares: int) -> None:
    assert_as_the_reference([330, 65], random_tree(2, 6, torch.Generator().manual_seed(8)), shares=shares)


def test_a_cache_of_more_than_32k_tokens() -> None:
    """As many shares as there ever are; the last block is not full and the last shares hold the tree alone."""
    nodes = chain(torch.zeros(1, 3, dtype=torch.long))
    assert_as_the_reference([33_000], nodes, heads=1, kv_heads=1, shares=tree_kernel._MOST_SHARES)


LENGTHS = [90, 7]


def _attend(cache: Tensor, *, heads: int = 2, window: int | None) -> Tensor:
    """Random queries of 21 slots, always the same, behind LENGTHS tokens. cache (2, B, 1, S, d): keys and values."""
    tree = random_tree(2, 20, torch.Generator().manual_seed(1))
    shape, width = topology(tree), cache.shape[4]
    query = torch.randn(2, heads, 21, width, generator=torch.Generator().manual_seed(7))
    return tree_attention(
        query.to(DEVICE), cache[0].to(DEVICE), cache[1].to(DEVICE),
        length_B=torch.tensor(LENGTHS, dtype=torch.int32, device=DEVICE),
        depth_BM=shape.depth_BM.int().contiguous().to(DEVICE), bits_BMW=ancestor_bits(shape.sees_BMM).to(DEVICE),
        scale=width**-0.5, window=window, shares=2,
    )  # fmt: skip


def _is_needed(room: int, window: int | None) -> Tensor:
    """bool (B, S): the committed tokens that any slot may see, and the tree behind them."""
    slots, lengths_B1 = torch.arange(room), torch.tensor(LENGTHS)[:, None]
    first_B1 = torch.zeros_like(lengths_B1) if window is None else lengths_B1 - window + 1
    return (slots >= first_B1) & (slots < lengths_B1 + 21)


@pytest.mark.parametrize("window", [None, 20])
def test_a_nan_behind_the_tree_or_before_the_window_reaches_no_output(window: int | None) -> None:
    """Memory that was never written may hold one, and 0 times a NaN is a NaN."""
    cache = torch.randn(2, 2, 1, 130, 64, generator=torch.Generator().manual_seed(0))
    found = []
    for garbage in (1e4, float("nan")):
        cache[:, :, 0][:, ~_is_needed(130, window)] = garbage
        found.append(_attend(cache, window=window))
    assert bool(found[1].isfinite().all()) and torch.equal(*found)


@contextmanager
def _counted_loads(buffer: Tensor, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tensor]:
    """Inside, the interpreter counts how often kernels load each element of `buffer` -> int64 of its shape."""
    from triton.runtime.interpreter import interpreter_builder

    assert buffer.is_contiguous() and buffer.device.type == "cpu"
    counts, load = torch.zeros(buffer.shape, dtype=torch.long), interpreter_builder.create_masked_load

    def counting(pointers: Any, mask: Any, *rest: Any) -> Any:
        at = (pointers.data[mask.data].astype(np.int64) - buffer.data_ptr()) // buffer.element_size()
        inside = at[(at >= 0) & (at < buffer.numel())]
        counts.view(-1).add_(torch.from_numpy(np.bincount(inside, minlength=buffer.numel())))
        return load(pointers, mask, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(interpreter_builder, "create_masked_load", counting)
        yield counts


@pytest.mark.skipif(not tree_kernel.INTERPRETED, reason="loads are counted in Triton's interpreter: TRITON_INTERPRET=1")
@pytest.mark.parametrize(("window", "heads", "num_blocks"), [(None, 4, 2), (20, 2, 1)])
def test_keys_and_values_are_loaded_once_a_block_of_queries_and_nothing_else_is(
    window: int | None, heads: int, num_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes are what a step at batch 1 takes its time for. 21 slots of two queries fill a block of 64, of four two."""
    cache = torch.randn(2, 2, 1, 130, 64, generator=torch.Generator().manual_seed(0))
    with _counted_loads(cache, monkeypatch) as counts:
        _attend(cache, heads=heads, window=window)
    wanted_BS = _is_needed(130, window) * num_blocks
    assert torch.equal(counts, wanted_BS[None, :, None, :, None].expand_as(counts))


def test_a_text_that_grows_meets_few_kernels() -> None:
    """Each constant is compiled on its own, for a second or more: no kernel holds the number of shares."""
    for kernel in (tree_kernel._attend, tree_kernel._merge):
        parameters = inspect.signature(kernel.fn).parameters
        assert parameters["num_shares"].annotation is inspect.Parameter.empty
        assert parameters["GROUP"].annotation == "tl.constexpr"
    found = {triton.next_power_of_2(num_shares(8, length, 132)) for length in range(1, 33_000)}
    assert found == {1, 2, 4, 8, 16, 32, 64}, "what `_merge` is compiled for"


def test_a_forward_that_is_learnt_from_has_its_gradient() -> None:
    """The kernel has none, and a draft model whose attention lost it would learn all the same, wrongly."""
    lm = tiny_lm("llama", attention_name=attention.TRITON, dtype=torch.float32)
    layer = lm.model.get_parameter("model.layers.0.self_attn.q_proj.weight")
    layer.requires_grad_(True)
    tokens = torch.arange(12)[None]
    packed_logits(lm, tokens, torch.zeros_like(tokens), torch.arange(12)).logsumexp(-1).sum().backward()
    assert layer.grad is not None and float(layer.grad.abs().sum()) > 0


@pytest.mark.parametrize(
    ("num_slots", "taken"), [(1, "triton"), (33, "triton"), (129, "triton"), (130, "sdpa"), (512, "sdpa")]
)
def test_drafts_of_up_to_128_nodes_take_the_kernel_and_chunks_of_prompts_do_not(num_slots: int, taken: str) -> None:
    """A tree that silently went through torch's attention would be timed as the kernel's."""
    tree = chain(torch.zeros(1, num_slots - 1, dtype=torch.long, device=DEVICE))
    forward = visibility.HostForward(topology(tree), [20], is_chain=True, max_depth=num_slots - 1, dtype=torch.float32)
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(1, 2, num_slots, 16, generator=draw).to(DEVICE)
    keys, values = (torch.randn(1, 1, 20 + num_slots, 16, generator=draw).to(DEVICE) for _ in range(2))
    with attention.use(forward):
        found, _ = attention.triton_attention(nn.Module(), query, keys, values, None)
        assert forward.implementations == {taken}
        wanted, _ = attention.plain_attention(nn.Module(), query, keys, values, None)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
