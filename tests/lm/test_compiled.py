"""A compiled forward is the same forward: trees, ragged rows, windows, caps and sinks, and the states methods read.

Families are traced without code being generated (backend aot_eager), which shows everything but inductor's
own arithmetic; one goes through inductor.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from torch._inductor.async_compile import AsyncCompile

from specbench import paths
from specbench.engine.decode import Engine
from specbench.engine.stop import Stop
from specbench.errors import UsageError
from specbench.lm.cached_lm import CachedLM
from specbench.sampling import Sampling
from specbench.tree import from_lists
from tests.helpers import CPU, NoDrafter, RefDrafter, requests_for, tiny_lm

FAMILIES = [("gemma2", False), ("granite", True)]
"""Compiled by layers or whole. Windows and soft caps, in attention and behind the head; scaled logits."""
STOP = Stop(ids=frozenset({3, 17, 31, 40}))


def _compiled(family: str, *, is_whole: bool = False, backend: str = "aot_eager", **shape: Any) -> CachedLM:
    torch.compiler.reset()
    lm = tiny_lm(family, **shape)
    lm.compile(is_whole=is_whole, backend=backend)
    return lm


def _engine(lm: CachedLM, sampling: Sampling) -> Engine:
    return Engine(lm, sampling=sampling, max_batch=4, max_len=64, max_nodes=12, stop=STOP, prefill_chunk=8)


@pytest.mark.parametrize(("family", "is_whole"), FAMILIES)
def test_a_compiled_target_writes_the_text_of_the_target(family: str, is_whole: bool) -> None:
    requests = requests_for()
    answers = _engine(tiny_lm(family), Sampling(temperature=1.0)).generate(NoDrafter(), requests).generations
    tokens = [each.tokens for each in answers]
    engine = _engine(_compiled(family, is_whole=is_whole), Sampling(temperature=1.0))
    for drafter in (NoDrafter(), RefDrafter(tokens, kind="tree", seed=2)):
        assert [each.tokens for each in engine.generate(drafter, requests).generations] == tokens
    assert engine.lm.compile_s > 0


def test_the_yardstick_of_rounding_is_not_compiled_and_what_follows_it_is() -> None:
    """A compiled forward attends through our cache, which has no part in what rounding alone makes."""
    plain, compiled = tiny_lm("granite"), _compiled("granite")
    ids = [1, 2, 3, 4, 8, 9, 5, 7]
    assert compiled.own_spread(ids, num_last=3) == plain.own_spread(ids, num_last=3)
    assert compiled.is_compiled and compiled.compile_s == 0
    compiled.allocate(max_batch=1, max_len=40, max_nodes=8)
    compiled.begin(1)
    compiled.prefill(0, torch.tensor(ids))
    assert compiled.compile_s > 0


def _read(lm: CachedLM) -> tuple[Tensor, Tensor]:
    """Logits and tapped states of a tree behind a text of as many tokens as it has slots: one shape to compile."""
    lm.allocate(max_batch=1, max_len=40, max_nodes=8)
    lm.begin(1)
    lm.prefill(0, torch.tensor([1, 2, 3, 4, 8, 9]))
    tree = from_lists([[3, 5, 7, 9, 4]], [[-1, 0, 1, 2, -1]], device=CPU)
    verified = lm.verify(torch.tensor([6]), tree)
    assert verified.hidden_BMKD is not None
    return verified.logits_BMV, verified.hidden_BMKD


def test_what_one_layer_is_compiled_to_serves_all_of_them() -> None:
    """And methods that read states between the layers find them there."""
    num_compiled = []
    for num_layers in (3, 6):
        shape: dict[str, Any] = {"num_hidden_layers": num_layers}
        plain, compiled = tiny_lm("llama", **shape), _compiled("llama", backend="eager", **shape)
        found = []
        for lm in (plain, compiled):
            lm.tap((0, num_layers - 1, "final"))
            before = counters["stats"]["unique_graphs"]
            found.append(_read(lm))
        num_compiled.append(counters["stats"]["unique_graphs"] - before)
        # Layers that read the same states are one product, whose sums may be taken in another order.
        torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)
    assert num_compiled[0] == num_compiled[1] > 0


def test_a_target_that_is_no_longer_compiled_has_its_own_forwards_again() -> None:
    lm = tiny_lm("llama")
    modules = [lm.model.model, *lm.model.model.layers, lm.final_norm]
    own = [each.forward for each in modules]
    for is_whole in (True, False):
        lm.compile(is_whole=is_whole, backend="eager")
        lm.run_uncompiled()
        assert [each.forward for each in modules] == own


@inductor.patch({"compile_threads": 1})
def test_what_inductor_makes_of_a_tree_is_what_torch_makes_of_it() -> None:
    """float32: sums are taken in another order."""
    # One thread starts no processes that load torch to compile there.
    few: dict[str, Any] = {"dtype": torch.float32, "num_hidden_layers": 1}
    plain, compiled = tiny_lm("llama", **few), _compiled("llama", is_whole=True, backend="inductor", **few)
    found = []
    for lm in (plain, compiled):
        lm.tap(("final",))
        found.append(_read(lm))
    for mine, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert compiled.is_compiled and compiled.compile_s > 0


@pytest.mark.parametrize("is_whole", [False, True])
def test_what_was_compiled_is_found_again_where_specbench_keeps_it(
    is_whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but the folder is forgotten in between, as between two runs. With a GPU's options: nothing is frozen.
    No C++ is compiled, which takes seconds and has a cache of its own: kernels compute nothing here."""
    compile_as_ever = torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward, **how: compile_as_ever(forward, **{**how, "options": None}))
    monkeypatch.setattr(AsyncCompile, "cpp_pybinding", lambda *_: lambda *_: None)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "where an earlier test had it")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    found = []
    for _ in range(2):
        compiled = _compiled("llama", is_whole=is_whole, backend="inductor", dtype=torch.float32, num_hidden_layers=1)
        counters.clear()
        compiled.allocate(max_batch=1, max_len=40, max_nodes=8)
        compiled.begin(1)
        with inductor.patch({"cpp.vec_isa_ok": True}):
            compiled.prefill(0, torch.tensor([1, 2, 3, 4]))
        graphs, traces = counters["inductor"], counters["aot_autograd"]
        found.append([graphs["fxgraph_cache_miss"] > 0, graphs["fxgraph_cache_hit"] > 0])
        found.append([traces["autograd_cache_miss"] > 0, traces["autograd_cache_hit"] > 0])
        assert not graphs["fxgraph_cache_bypass"] and not traces["autograd_cache_bypass"]
    missed, hit = [True, False], [False, True]
    assert found == [missed, missed, hit, hit], "first call, second call: inductor's graphs, then what was traced"
    assert {"fxgraph", "aotautograd"} <= {each.name for each in (paths.cache_dir() / "compiled").iterdir()}


def test_a_method_that_reads_layers_is_refused_by_a_target_that_is_compiled_whole() -> None:
    lm = _compiled("llama", is_whole=True)
    with pytest.raises(UsageError, match="between the target's layers"):
        lm.tap((0, "final"))


@pytest.mark.parametrize("is_met_before", [False, True])
def test_decoders_that_are_called_with_unnamed_arguments_are_compiled_too(is_met_before: bool) -> None:
    """gpt2's model names none of its ids; so does no call of ours once decoder and head were seen to be all."""
    torch.compiler.reset()
    lm, plain = tiny_lm("gpt2"), tiny_lm("gpt2")
    lm.tap(("final",))
    plain.tap(("final",))
    if is_met_before:
        _read(lm)
    lm.compile(backend="eager")
    counters.clear()
    torch.testing.assert_close(_read(lm), _read(plain), rtol=1e-12, atol=1e-12)
    assert counters["stats"]["unique_graphs"] > 0 and lm.compile_s > 0
    assert lm._shortcut._is_exact, "and by the shortest way"
