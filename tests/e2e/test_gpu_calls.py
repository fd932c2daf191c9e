"""What several calls of the script for GPUs make together, and what makes a figure of it one of something else."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import PreTrainedModel

from benchmarks import gpu, gpu_checks, gpu_models, gpu_peers, gpu_shared, gpu_timing
from benchmarks.gpu_attention import WatchedLM, WrongAttention, demand_attention
from benchmarks.gpu_models import BIG, PUBLISHED, Bench, Plain, make_model, small_copy
from specbench.engine.recorded import RecordedGraphs
from specbench.lm import attention
from tests.e2e.gpu_fakes import tiny_target
from tests.helpers import CPU

REPOSITORY = Path(__file__).resolve().parents[2]


def _bench(*, is_small: bool = True) -> Bench:
    return Bench(
        device=CPU, dtype=torch.float32, is_small=is_small, attention_name=attention.SDPA, backend=RecordedGraphs
    )


# --- several calls ---------------------------------------------------------------------------------------------------


def _part(value: str, **facts: Any) -> gpu.Part:
    return gpu.Part(lambda *_: {"rows": [gpu_timing.row("it", value)], "bytes_per_s": 1.0}, 1, **facts)


def _call(monkeypatch: pytest.MonkeyPatch, out: Path, parts: dict[str, gpu.Part], *words: str) -> dict[str, Any]:
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--small", "--out", str(out), *words])
    gpu.main()
    found: dict[str, Any] = json.loads((out / "rehearsal.json").read_text(encoding="utf-8"))
    return found


def test_a_later_call_adds_its_parts_and_replaces_those_it_measures_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = "2026-01-01 10:00:00"
    monkeypatch.setattr(gpu.time, "strftime", lambda *_: now)
    parts = {"one": _part("first"), "two": _part("first")}
    _call(monkeypatch, tmp_path, parts, "--parts", "one", "two")
    now = "2026-01-01 11:00:00"
    found = _call(monkeypatch, tmp_path, {**parts, "two": _part("second")}, "--parts", "two")
    assert [found[name]["rows"][0]["measured"] for name in ("one", "two")] == ["first", "second"]
    printed = (tmp_path / "rehearsal.md").read_text(encoding="utf-8")
    assert "2026-01-01 10:00:00 UTC: one; 2026-01-01 11:00:00 UTC: two" in printed, "which call measured what"
    parts = {name: _part("third") for name in ("one", "two", "three")}
    found = _call(monkeypatch, tmp_path, parts, "--missing")
    assert [found[name]["rows"][0]["measured"] for name in parts] == ["first", "second", "third"]


def test_a_part_that_is_left_out_takes_no_figure_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _call(monkeypatch, tmp_path, {"one": _part("first")})
    found = _call(monkeypatch, tmp_path, {"one": _part("second")}, "--seconds", "1")
    assert found["one"]["rows"][0]["measured"] == "first"


def test_figures_of_other_conditions_are_moved_aside_not_mixed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _call(monkeypatch, tmp_path, {"one": _part("first")})
    monkeypatch.setattr(gpu.transformers, "__version__", "4.0")
    found = _call(monkeypatch, tmp_path, {"two": _part("second")})
    assert "one" not in found
    [aside] = tmp_path.glob("rehearsal-*.json")
    assert json.loads(aside.read_text(encoding="utf-8")) == before and aside.with_suffix(".md").exists()
    assert f"differs in transformers: kept as {aside}" in capsys.readouterr().out


def test_what_is_held_against_the_copy_has_the_copy_of_its_own_call() -> None:
    assert gpu.to_run(["verify", "compiled"]) == ["copy", "compiled", "verify"]
    assert gpu.to_run(["verify"]) == ["verify"]
    with pytest.raises(RuntimeError, match="no copy was measured"):
        gpu_timing.bandwidth({"copy": {"left_out": "no time"}})


def test_a_part_that_would_not_fit_is_left_out_and_a_shorter_one_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "needed", lambda part, bench: part.seconds)
    parts = {"large": _part("ran")._replace(seconds=60), "little": _part("ran")}
    found = _call(monkeypatch, tmp_path, parts, "--seconds", "30")
    assert found["large"]["left_out"].startswith("it may take 60 s, and ") and "rows" in found["little"]


def test_one_call_holds_every_part_in_nine_minutes() -> None:
    """By the parts' own guesses. 30 s: loading torch and transformers; 40 s: what the checks of the kernels compile."""
    in_order = list(gpu.PARTS.values())
    made = [part.is_shared and (place == 0 or not in_order[place - 1].is_shared) for place, part in enumerate(in_order)]
    needed_s = sum(part.seconds for part in in_order) + gpu.COMPILING_S * sum(made)
    given_s = gpu._arguments([]).seconds
    assert 40 + needed_s <= given_s <= 9 * 60 - 30
    assert gpu.needed(gpu.PARTS["compiled"], _bench(is_small=False)) == gpu.COMPILING_S + gpu.PARTS["compiled"].seconds


@pytest.mark.parametrize("words", [("--attention", "triton"), ("--device", "cuda:1")])
def test_a_rehearsal_refuses_what_it_would_not_do(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu._arguments(["--small", *words])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"not with {' '.join(words)}: leave that out, or leave out --small" in said
    assert gpu._arguments(["--small", "--attention", "sdpa", "--device", "cpu"]).small


# --- what is measured is what is said --------------------------------------------------------------------------------


def test_an_attention_that_is_set_on_one_model_is_not_set_on_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """In published shapes as well, whose configs are shared by all models of a name."""
    monkeypatch.setitem(PUBLISHED, BIG, small_copy(PUBLISHED[BIG]))
    bench = _bench(is_small=False)
    one, other = make_model(bench, BIG), make_model(bench, BIG)
    other.set_attn_implementation(attention.PLAIN)
    assert one.config._attn_implementation == attention.SDPA


def test_a_figure_of_another_attention_is_refused() -> None:
    bench, lm = _bench(), tiny_target(attention.PLAIN)
    with pytest.raises(WrongAttention, match="made for specbench_fused and is set to specbench_plain"):
        gpu_timing.engine_for(bench, lm, prompt=8, new=8)
    lm.model.set_attn_implementation(attention.SDPA)
    with pytest.raises(WrongAttention, match="and no step ran"):
        demand_attention(lm, attention.SDPA)
    asked = gpu_timing.requests(bench, num=1, prompt=8, new=4, vocab_size=lm.vocab_size)
    engine = gpu_timing.engine_for(bench, lm, prompt=8, new=8, graphs=None)
    gpu_timing.timed(engine, Plain(CPU), asked, rounds=1)
    lm.model.set_attn_implementation(attention.PLAIN)
    with pytest.raises(WrongAttention, match=r"what ran was plain and sdpa .*: 1\)"):
        gpu_timing.timed(engine, Plain(CPU), asked, rounds=1)


def test_the_readable_attention_of_the_parity_part_is_the_readable_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second model is set to another attention than the first; if that does nothing, there is no figure."""
    bench = _bench()
    lm = WatchedLM(make_model(bench, "qwen2.5-0.5b"), name="one")
    assert gpu_checks._tree_logits(bench, lm) < 1e-4 and lm.attention_used == {"sdpa"}
    does = PreTrainedModel.set_attn_implementation
    monkeypatch.setattr(
        PreTrainedModel, "set_attn_implementation",
        lambda model, name: None if name == attention.PLAIN else does(model, name),
    )  # fmt: skip
    with pytest.raises(WrongAttention, match="specbench_plain was asked for, and what ran was sdpa"):
        gpu_checks._tree_logits(bench, lm)


@pytest.mark.parametrize("context", [1024, 8192, 32768])
def test_keys_and_values_are_read_from_memory_not_from_a_cache(context: int) -> None:
    """Between two runs over the same set, four times the last cache of an H200 (60 MB) is read."""
    set_bytes = 2 * 8 * (context + 65) * 128 * 2
    num_sets, num_runs = gpu_timing.rotation(set_bytes)
    assert (num_sets - 1) * set_bytes >= 240e6 and num_runs >= max(20, num_sets)
    assert num_sets * set_bytes < 1e9, "and the card has room for them"


def test_transformers_static_cache_is_one_for_all_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one in each makes what was recorded over the old one be recorded again, in timed calls as well."""
    model, made = make_model(_bench(), BIG), []
    model.set_attn_implementation("sdpa")
    ids, plain, texts = torch.arange(8)[None], gpu_peers._generate, []

    class Cache(gpu_peers.StaticCache):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            made.append(self)
            super().__init__(*args, **options)

    def watched(*args: Any, **options: Any) -> torch.Tensor:
        assert options["past_key_values"] is made[0]
        texts.append(plain(*args, **options).tolist())
        return torch.tensor(texts[-1])

    monkeypatch.setattr(gpu_peers, "StaticCache", Cache)
    monkeypatch.setattr(gpu_peers, "_generate", watched)
    assert gpu_peers._static_s(_bench(), model, ids, 6) > 0
    assert len(made) == 1 and len(texts) == 5
    assert all(text == plain(model, ids, 6).tolist() for text in texts), "and remembers nothing of the last text"


def test_workspaces_of_products_do_not_count_as_the_next_model_s_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: called.append(name))
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: called.append("workspaces"), raising=False)
    on_card = Bench(
        device=torch.device("cuda"), dtype=torch.bfloat16, is_small=False, attention_name="", backend=None
    )  # fmt: skip
    gpu_models.free(on_card)
    assert called == ["synchronize", "workspaces", "empty_cache"], "cleared before the allocator gives back"
    monkeypatch.delattr(torch._C, "_cuda_clearCublasWorkspaces")
    gpu_models.free(on_card)


# --- both forwards ---------------------------------------------------------------------------------------------------


def _answer(shared: gpu_shared.Shared) -> Callable[[str], tuple[int, ...]]:
    asked = gpu_timing.requests(shared.bench, num=1, prompt=8, new=8, vocab_size=shared.lm.vocab_size)

    def measure(way: str) -> tuple[int, ...]:
        engine = gpu_timing.engine_for(shared.bench, shared.lm, prompt=8, new=8, **shared.options(way))
        return gpu_timing.timed(engine, Plain(CPU), asked, rounds=1)[0].generations[0].tokens

    return measure


def test_parts_share_one_target_that_is_compiled_once_and_timed_both_ways() -> None:
    bench = _bench()
    torch.compiler.reset()
    counters.clear()
    shared = gpu_shared.shared_target(bench)
    num_compiled = counters["stats"]["unique_graphs"]
    ways = shared.each_way(_answer(shared))
    assert list(ways) == ["compiled", "as it is"] and ways["compiled"] == ways["as it is"]
    assert gpu_shared.shared_target(bench) is shared and shared.why_plain == "" and not shared.rows()
    assert shared.compile_s > 0 and num_compiled > 0
    assert counters["stats"]["unique_graphs"] == num_compiled, "nothing is compiled where something is timed"
    make_model(bench, BIG)
    assert not bench.kept, "another model is not made beside it"


def test_weights_that_are_multiplied_together_are_counted_once_and_stay_where_graphs_read_them() -> None:
    """A compiled forward moves them when it first runs: before anything is captured, and no byte more is held. What
    transformers' loops are given multiplies each by itself."""
    shared = gpu_shared.Shared(_bench())
    model = shared.lm.model
    stored = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in model.parameters()}
    assert len(stored) == len(list(model.parameters())) - 4 * 3, "in four layers five matrices have become two"
    # Embeddings and head; layers of 12,288 in attention, three matrices of 96 x 64 and two norms; the final norm.
    num_weights = 2 * 512 * 64 + 4 * (12288 + 3 * 96 * 64 + 2 * 64) + 64
    assert sum(stored.values()) == gpu_timing.weight_bytes(shared.lm) == 4 * num_weights
    places = [each.data_ptr() for each in model.parameters()]
    shared.each_way(_answer(shared))
    assert [each.data_ptr() for each in model.parameters()] == places
    with shared.as_published() as published:
        assert not any("forward" in vars(each) for each in published.modules())


def test_a_forward_that_cannot_be_compiled_costs_its_figures_not_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*args: Any, **options: Any) -> Any:
        raise RuntimeError("Unsupported: what the compiler does not know\nmore")

    monkeypatch.setattr(torch, "compile", lambda plain, **options: breaks)
    shared = gpu_shared.Shared(_bench())
    assert shared.why_plain == "RuntimeError: Unsupported: what the compiler does not know"
    assert list(shared.each_way(_answer(shared))) == ["as it is"] and shared.is_first("as it is")
    assert shared.rows()[0]["measured"].startswith("none: RuntimeError")
