"""Every family of the architecture page: tree verification equals plain full forwards of transformers' own code.

The oracle never touches specbench: one ordinary eager forward without cache per path. transformers' eager attention
takes its softmax in float32 even for float64 models, and rotary tables are float32, so float64 agrees to about 1e-6
(measured: at most
3e-7); float32 to 5e-6 (measured: at most 1.2e-6). The logits have a spread of about 1, and a slip of one cache slot
moves them by at
least 2e-4.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from specbench import tree as trees
from specbench.errors import UsageError
from specbench.lm import attention, visibility
from specbench.lm.cached_lm import CachedLM
from tests.helpers import CPU, FAMILIES, plain_logits, tiny_lm, tiny_model, tokens_of

TOLERANCE = {torch.float64: 1e-6, torch.float32: 5e-6}

TOKENS = [[5, 9, 6, 7, 8, 6], [3, 4, 2]]
PARENTS = [[-1, -1, 0, 1, 1, 3], [-1, 0, -1]]
"""Row 0: two children of the root; node 1 has two, one of which has a child. Row 1: a shorter tree, padded.

    0: root - 5 - 6         1: root - 3 - 4
            \\ 9 - 7 - 6            \\ 2
                 \\ 8
"""
PATH = [[1, 3, 5], [2]]
"""What is committed: paths that are not contiguous in the tree's slots, of different lengths."""


def _open(lm: CachedLM, rows: Sequence[list[int]]) -> None:
    """A cache of these rows, all but each row's last token (the root) prefilled."""
    lm.allocate(max_batch=len(rows), max_len=80, max_nodes=8)
    lm.begin(len(rows))
    for row, ids in enumerate(rows):
        lm.prefill(row, torch.tensor(ids[:-1]))


def _verify(lm: CachedLM, rows: Sequence[list[int]], tokens: list[list[int]], parents: list[list[int]]) -> torch.Tensor:
    roots = torch.tensor([ids[-1] for ids in rows])
    return lm.verify(roots, trees.from_lists(tokens, parents, device=CPU)).logits_BMV


def _oracle(lm: CachedLM, ids: list[int], tokens: list[int], parents: list[int]) -> torch.Tensor:
    """(M, V): after the root, then after every node's own path."""
    return torch.stack([plain_logits(lm, ids + path)[-1] for path in [[], *trees.paths(tokens, parents)]])


def _commit(lm: CachedLM, rows: list[list[int]], bonus: list[int]) -> None:
    """Accept PATH in the last verified tree and append the bonus token to the committed text."""
    tree = trees.from_lists(TOKENS[: len(rows)], PARENTS[: len(rows)], device=CPU)
    width = max(len(path) for path in PATH[: len(rows)])
    paths = torch.tensor([path + [-1] * (width - len(path)) for path in PATH[: len(rows)]])
    lm.commit([len(path) for path in PATH[: len(rows)]], tree, paths)
    for row, ids in enumerate(rows):
        ids += [TOKENS[row][node] for node in PATH[row]] + [bonus[row]]


def _assert_verifies(
    lm: CachedLM, rows: Sequence[list[int]], tokens: list[list[int]], parents: list[list[int]]
) -> None:
    ours = _verify(lm, rows, tokens, parents)
    for row, ids in enumerate(rows):
        expected = _oracle(lm, ids, tokens[row], parents[row])
        tolerance = TOLERANCE[lm.dtype]
        torch.testing.assert_close(ours[row, : len(expected)], expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("name", [attention.PLAIN, attention.SDPA])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tree_is_verified_as_path_by_path_forwards_before_and_after_a_compaction(
    family: str, name: str, dtype: torch.dtype
) -> None:
    """Two ragged rows, contexts beyond every sliding window; after a commit the next tree stands on the committed
    text."""
    lm = tiny_lm(family, attention_name=name, dtype=dtype)
    rows = [tokens_of(1, 21), tokens_of(2, 13)]
    _open(lm, rows)
    _assert_verifies(lm, rows, TOKENS, PARENTS)
    _commit(lm, rows, bonus=[11, 12])
    assert lm.lengths == [len(ids) - 1 for ids in rows]
    _assert_verifies(lm, rows, [[1, 2], [2, 3, 4, 5]], [[-1, -1], [-1, 0, 0, 2]])


@pytest.mark.parametrize("name", [attention.PLAIN, attention.SDPA])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_row_alone_is_verified_too(family: str, name: str) -> None:
    """Batch 1 takes its own way through masks and slots: trees, chains, and the plain step of the baseline."""
    lm = tiny_lm(family, attention_name=name)
    rows = [tokens_of(1, 21)]
    _open(lm, rows)
    _assert_verifies(lm, rows, [[]], [[]])
    _assert_verifies(lm, rows, [[4, 9, 2]], [[-1, 0, 1]])
    _assert_verifies(lm, rows, TOKENS[:1], PARENTS[:1])
    _commit(lm, rows, bonus=[11])
    _assert_verifies(lm, rows, TOKENS[:1], PARENTS[:1])


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "mistral", "gpt2"])
def test_a_tree_is_verified_by_the_triton_kernel(family: str) -> None:
    """Soft caps, sinks, windows shorter than the context, heads of 8 numbers; also after a compaction, and one row."""
    pytest.importorskip("triton", reason="Triton is not installed: pip install triton (Linux)")
    lm = tiny_lm(family, attention_name=attention.TRITON, dtype=torch.float32)
    rows = [tokens_of(1, 13), tokens_of(2, 10)]  # the windows are of 8; the interpreter takes its time for every token
    _open(lm, rows)
    _assert_verifies(lm, rows, TOKENS, PARENTS)
    _commit(lm, rows, bonus=[11, 12])
    _assert_verifies(lm, rows, [[1, 2], [2, 3, 4, 5]], [[-1, -1], [-1, 0, 0, 2]])
    _open(lm, rows[:1])
    _assert_verifies(lm, rows[:1], [[]], [[]])
    _assert_verifies(lm, rows[:1], [[4, 9, 2]], [[-1, 0, 1]])
    assert lm.attention_used == {"triton"}


@pytest.mark.parametrize("name", [attention.PLAIN, attention.SDPA])
def test_windows_are_honoured_while_a_context_grows_past_them(name: str) -> None:
    """From shorter than the window to three times its length, the mask switches on at the right token."""
    lm = tiny_lm("mistral", attention_name=name)
    for length in (2, 5, 6, 7, 8, 9, 10, 24):
        rows = [tokens_of(length, length), tokens_of(length + 50, 3)]
        _open(lm, rows)
        _assert_verifies(lm, rows, TOKENS, PARENTS)
        _open(lm, rows[:1])
        _assert_verifies(lm, rows[:1], TOKENS[:1], PARENTS[:1])


@pytest.mark.parametrize(
    ("family", "changed"),
    [
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"sliding_window": 64}),
        ("mistral", {"sliding_window": None}),
        ("phi3", {"sliding_window": None}),
        ("starcoder2", {"sliding_window": None}),
        ("gpt_oss", {"sliding_window": 64}),
        ("gemma3", {"sliding_window": 64}),
        ("qwen2", {"use_sliding_window": False, "layer_types": ["full_attention", "full_attention"]}),
    ],
)
def test_soft_caps_and_windows_change_the_logits_of_these_models(family: str, changed: dict[str, object]) -> None:
    """The comparison above would be empty if a window never bit or a cap never bent: same weights, option off, other
    logits."""
    ids = tokens_of(1, 30)
    on, off = plain_logits(tiny_lm(family), ids)[-1], plain_logits(tiny_lm(family, **changed), ids)[-1]
    assert (on - off).abs().max() > 100 * TOLERANCE[torch.float64]


def test_sinks_change_the_logits_of_gpt_oss() -> None:
    lm = tiny_lm("gpt_oss")
    ids = tokens_of(1, 12)
    with_sinks = plain_logits(lm, ids)[-1]
    with torch.no_grad():
        for name, parameter in lm.model.named_parameters():
            if name.endswith("sinks"):
                parameter.fill_(-1e4)
    assert (with_sinks - plain_logits(lm, ids)[-1]).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_slip_of_one_cache_slot_is_seen(family: str) -> None:
    """The control: the same comparison fails when one key stands one slot off, so it can fail."""
    lm = tiny_lm(family)
    rows = [tokens_of(1, 21)]
    _open(lm, rows)
    with torch.inference_mode():
        for layer in lm.cache.layers:
            layer.keys[0, :, 18] = layer.keys[0, :, 17].clone()
            layer.values[0, :, 18] = layer.values[0, :, 17].clone()
    with pytest.raises(AssertionError, match="not close"):
        _assert_verifies(lm, rows, TOKENS[:1], PARENTS[:1])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_commit_that_moves_nothing_is_seen_at_the_next_step(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second control: without compaction the tree after a non-contiguous path stands on wrong keys."""
    lm = tiny_lm(family)
    rows = [tokens_of(1, 21)]
    _open(lm, rows)
    _assert_verifies(lm, rows, TOKENS[:1], PARENTS[:1])
    monkeypatch.setattr(lm.cache, "compact", lambda *args, **kwargs: None)
    _commit(lm, rows, bonus=[11])
    with pytest.raises(AssertionError, match="not close"):
        _assert_verifies(lm, rows, TOKENS[:1], PARENTS[:1])


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_nodes_past_the_last_position_leave_the_others_right(family: str) -> None:
    """A draft may reach beyond a learned position table; what can be committed is still right."""
    lm = tiny_lm(family)
    ids = tokens_of(4, 126)
    lm.allocate(max_batch=1, max_len=128, max_nodes=6)
    lm.begin(1)
    lm.prefill(0, torch.tensor(ids[:-1]))
    ours = _verify(lm, [ids], [[3, 5, 7, 9, 4]], [[-1, 0, 1, 2, -1]])[0]
    expected = _oracle(lm, ids, [3, 5], [-1, 0])
    torch.testing.assert_close(ours[:3], expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours[5], plain_logits(lm, [*ids, 4])[-1], atol=1e-6, rtol=1e-6)


def test_longrope_serves_its_original_length_only() -> None:
    """Beyond it the frequencies of all positions would depend on how far a draft reaches: the text would not be the
    target's."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
    }
    lm = tiny_lm("phi3", rope_parameters=rope, original_max_position_embeddings=32)
    assert lm.context_length == 32
    ids = tokens_of(4, 30)
    lm.allocate(max_batch=1, max_len=64, max_nodes=6)
    lm.begin(1)
    lm.prefill(0, torch.tensor(ids[:-1]))
    ours = _verify(lm, [ids], [[3, 5, 7, 9, 4]], [[-1, 0, 1, 2, -1]])[0]
    torch.testing.assert_close(ours[:2], _oracle(lm, ids, [3], [-1]), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("function", [attention.plain_attention, attention.sdpa_attention])
def test_an_argument_the_attention_does_not_understand_is_an_error(function: attention._Function) -> None:
    """Never ignored: an unknown argument is a feature of the model that would silently be missing."""
    shape = trees.topology(trees.empty(1, CPU))
    forward = visibility.HostForward(shape, [0], is_chain=True, max_depth=0, dtype=torch.float32)
    x = torch.randn(1, 2, 1, 4, generator=torch.Generator().manual_seed(0))
    with attention.use(forward):
        function(torch.nn.Module(), x, x, x, None, position_ids=torch.zeros(1, 1), alibi=None)
        with pytest.raises(NotImplementedError, match="alibi"):
            function(torch.nn.Module(), x, x, x, None, alibi=torch.ones(1))
        with pytest.raises(NotImplementedError, match="dropout"):
            function(torch.nn.Module(), x, x, x, None, dropout=0.1)
        with pytest.raises(UsageError, match=r"mask of its own.*\n.*where.*\n.*install -U transformers"):
            function(torch.nn.Module(), x, x, x, torch.zeros(1, 1, 1, 1))
    with pytest.raises(AssertionError, match="CachedLM"):
        function(torch.nn.Module(), x, x, x, None)


def test_the_mask_follows_its_definition() -> None:
    """Brute force over rows, slots and windows: committed tokens, own ancestors, and at most `window` positions
    back."""
    tree = trees.from_lists(TOKENS, PARENTS, device=CPU)
    shape = trees.topology(tree)
    lengths = [5, 3]
    for window in (None, 1, 2, 4, 100):
        seen = visibility.visible(
            shape, torch.tensor(lengths), span=max(lengths) + shape.depth_BM.shape[1], window=window
        )
        for row, length in enumerate(lengths):
            ancestors = _ancestor_slots(PARENTS[row], seen.shape[1])
            for slot in range(seen.shape[1]):
                wanted = set(range(length)) | {length + other for other in ancestors[slot]}
                if window is not None:
                    here = length + len(ancestors[slot]) - 1
                    position = {length + other: length + len(ancestors[other]) - 1 for other in ancestors[slot]}
                    wanted = {key for key in wanted if here - position.get(key, key) < window}
                assert set(seen[row, slot].nonzero().flatten().tolist()) == wanted, (window, row, slot)


def _ancestor_slots(parents: list[int], num_slots: int) -> list[set[int]]:
    """Each slot with its ancestors; padding hangs under the root."""
    padded = [*parents, *[-1] * (num_slots - 1 - len(parents))]
    out: list[set[int]] = [{0}]
    for node, parent in enumerate(padded):
        out.append(out[parent + 1] | {node + 1})
    return out


def test_transformers_own_sdpa_agrees_to_float64_rounding() -> None:
    """Against an oracle without float32 inside its softmax the agreement is a million times tighter."""
    for family in ("llama", "gpt2", "mistral", "opt"):
        lm = tiny_lm(family)
        rows = [tokens_of(1, 21)]
        _open(lm, rows)
        ours = _verify(lm, rows, TOKENS[:1], PARENTS[:1])[0]
        twin = tiny_model(family, attention_name="sdpa")
        for slot, path in enumerate([[], *trees.paths(TOKENS[0], PARENTS[0])]):
            with torch.inference_mode():
                expected = twin(input_ids=torch.tensor([rows[0] + path]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(ours[slot], expected, atol=1e-12, rtol=1e-12)
