"""The cache: written in place, read as views, compacted by at most the accepted path, allocated once."""

from __future__ import annotations

import pytest
import torch

from specbench import tree as trees
from specbench.engine.decode import Engine
from specbench.lm.kv_cache import KVCache
from specbench.sampling import Sampling
from tests.helpers import CPU, NoDrafter, RefDrafter, requests_for, tiny_lm, tokens_of


def _cache(*, rows: int = 2, slots: int = 12) -> KVCache:
    cache = KVCache(num_layers=1, max_rows=rows, num_slots=slots)
    cache.begin(rows)
    return cache


def _write(cache: KVCache, values: list[list[float]]) -> torch.Tensor:
    """One head of one dimension: the number itself is the key."""
    states = torch.tensor(values, dtype=torch.float32)[:, None, :, None]
    keys, _ = cache.update(states, states + 100, 0)
    return keys


def _keys(cache: KVCache, row: int, num: int) -> list[float]:
    return cache.layers[0].keys[row, 0, :num, 0].tolist()


def test_keys_are_handed_out_as_views_of_the_one_buffer() -> None:
    """A copy of the context per step would make a step's cost grow with the text."""
    cache = _cache(rows=1)
    cache.open_row(0, 3)
    first = _write(cache, [[1, 2, 3]])
    cache.advance(0, 3)
    cache.open_all(2, CPU)
    second = _write(cache, [[4, 5]])
    assert first.data_ptr() == second.data_ptr() == cache.layers[0].keys.data_ptr()
    assert second.flatten().tolist() == [1, 2, 3, 4, 5]


def test_ragged_rows_are_written_behind_their_own_lengths() -> None:
    cache = _cache()
    for row, values in enumerate([[1, 2, 3, 4], [5, 6]]):
        cache.open_row(row, len(values))
        _write(cache, [values])
        cache.advance(row, len(values))
    cache.open_all(2, CPU)
    seen = _write(cache, [[7, 8], [9, 10]])
    assert seen.shape[2] == 6
    assert _keys(cache, 0, 6) == [1, 2, 3, 4, 7, 8]
    assert _keys(cache, 1, 4) == [5, 6, 9, 10]


def test_compaction_moves_the_accepted_nodes_and_nothing_else() -> None:
    """Root and nodes 2 and 5 of row 0 (slots 3, 6), the root and node 0 of row 1 (slot 1): five others stay unread."""
    cache = _cache()
    for row, values in enumerate([[1, 2], [3]]):
        cache.open_row(row, len(values))
        _write(cache, [values])
        cache.advance(row, len(values))
    cache.open_all(7, CPU)
    _write(cache, [[10, 11, 12, 13, 14, 15, 16], [20, 21, 22, 23, 24, 25, 26]])
    cache.compact(torch.tensor([[0, 3, 6], [0, 1, 0]]))
    assert _keys(cache, 0, 5) == [1, 2, 10, 13, 16]
    assert _keys(cache, 1, 3) == [3, 20, 21]
    assert cache.layers[0].values[0, 0, :5, 0].tolist() == [101, 102, 110, 113, 116]
    assert _keys(cache, 0, 9)[5:] == [13, 14, 15, 16], "slots behind the path are untouched"
    cache.advance(0, 3)
    cache.advance(1, 2)
    assert cache.lengths == [5, 3]


def test_compaction_survives_overlapping_moves() -> None:
    cache = _cache(rows=1)
    cache.open_row(0, 6)
    _write(cache, [[0, 1, 2, 3, 4, 5]])
    cache.compact(torch.tensor([[0, 2, 3, 5]]))
    assert _keys(cache, 0, 4) == [0, 2, 3, 5]


def test_rows_that_stay_keep_their_keys() -> None:
    cache = _cache(rows=3)
    for row, values in enumerate([[1, 2], [3, 4, 5], [6]]):
        cache.open_row(row, len(values))
        _write(cache, [values])
        cache.advance(row, len(values))
    cache.keep([1, 2])
    assert cache.lengths == [3, 1]
    assert _keys(cache, 0, 3) == [3, 4, 5] and _keys(cache, 1, 1) == [6]


def test_more_than_the_cache_holds_is_our_fault_not_a_wrong_answer() -> None:
    cache = _cache(rows=1, slots=4)
    cache.open_row(0, 4)
    with pytest.raises(AssertionError, match="cache slot 5 of 4"):
        cache.open_row(0, 5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_a_prompt_in_chunks_is_the_prompt_in_one_piece(family: str) -> None:
    """Logits, tapped states and every later step."""
    lm = tiny_lm(family)
    lm.tap((0, "final"))
    prompt = torch.tensor(tokens_of(3, 40))
    found = []
    for chunk in (40, 16, 7, 1):
        lm.allocate(max_batch=1, max_len=64, max_nodes=4)
        lm.begin(1)
        states = []
        for offset in range(0, 40, chunk):
            logits, hidden = lm.prefill(0, prompt[offset : offset + chunk])
            assert hidden is not None
            states.append(hidden)
        after = lm.verify(torch.tensor([5]), trees.from_lists([[1, 2]], [[-1, -1]], device=CPU)).logits_BMV
        found.append((logits, torch.cat(states), after))
    for other in found[1:]:
        for one, piece in zip(found[0], other, strict=True):
            torch.testing.assert_close(piece, one, atol=1e-11, rtol=1e-11)


def test_buffers_are_allocated_once_over_many_generations() -> None:
    lm = tiny_lm("llama")
    engine = Engine(lm, sampling=Sampling(), max_batch=2, max_len=64, max_nodes=12)
    requests = requests_for([[1, 2, 3], [4, 5, 6, 7]], max_new_tokens=12)
    answers = [generation.tokens for generation in engine.generate(NoDrafter(), requests).generations]
    before = [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in lm.cache.layers]
    num_bytes = lm.cache.num_bytes()
    for seed in range(20):
        drafter = RefDrafter(answers, kind="tree" if seed % 2 else "chain", seed=seed)
        engine.generate(drafter, requests[: 1 + seed % 2])
        Engine(lm, sampling=Sampling(), max_batch=1, max_len=40, max_nodes=4)  # smaller: nothing to grow
    assert before == [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in lm.cache.layers]
    assert lm.cache.num_bytes() == num_bytes
    # layers, keys and values, rows, key heads, slots, head size, bytes of float64
    assert num_bytes == 2 * 2 * 2 * 2 * (64 + 12 + 1) * 8 * 8
    assert lm.cache_bytes_per_token() == 2 * 2 * 2 * 8 * 8


def test_truncating_a_row_forgets_its_tail() -> None:
    lm = tiny_lm("llama")
    lm.allocate(max_batch=1, max_len=40, max_nodes=2)
    lm.begin(1)
    ids = torch.tensor(tokens_of(5, 12))
    lm.prefill(0, ids)
    lm.truncate(0, 6)
    again, _ = lm.prefill(0, ids[6:])
    lm.begin(1)
    fresh, _ = lm.prefill(0, ids)
    torch.testing.assert_close(again, fresh, atol=1e-11, rtol=1e-11)
    with pytest.raises(AssertionError, match="cannot truncate"):
        lm.truncate(0, 13)


@pytest.mark.parametrize("name", ["get_max_length", "get_max_cache_shape"])
def test_every_release_of_transformers_5_finds_the_length_under_its_name(name: str) -> None:
    """Each is abstract in some: a layer without it cannot be made there."""
    assert getattr(_cache(slots=12).layers[0], name)() == 12
