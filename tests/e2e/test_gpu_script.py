"""The script for GPUs runs from end to end on a CPU with toy shapes, so that borrowed time on a card is not lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_pair, gpu_peers, gpu_timing
from benchmarks.gpu_models import BIG, Bench, Plain, make_decisive, make_model
from specbench.engine import graphs
from specbench.engine.answer import GroupResult
from specbench.engine.graphs import Graph, Step
from specbench.engine.recorded import RecordedGraphs
from specbench.lm import attention
from tests.e2e.gpu_fakes import tiny_target
from tests.helpers import CPU

REPOSITORY = Path(__file__).resolve().parents[2]


ISSUED = (
    "| about 240 |", "share of the copy's bandwidth", "| >= 85 % |", "verify 16 nodes / decode 1", "| <= 1.05 |",
    "verify 64 nodes / decode 1", "| <= 1.15 |", "step outside the target's forward", "step outside both forwards",
    "| <= 3 % |", "depth 4, rate 0.6", "depth 8, rate 0.9", "| >= 0.95 |", "against generate, eager", "| >= 4 |",
    "against generate, compiled with a static cache", "| >= 1.2 |", "against assisted generation", "| >= 3 |",
    "0.6 to 0.9, within 0.02", "B = 1: slowest step / (bytes / bandwidth)", "B = 16: slowest step", "| <= 1.3 |",
    "peak memory / (weights + cache + drafter)", "| <= 1.10 |", "times taken by stamps against not | ", "| <= 1 % |",
    "whole: one token's forward alone, ms: compiled whole",
)  # fmt: skip
"""What the engine is asked for, and the limits beside it."""


def test_every_part_of_the_script_runs_with_toy_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, which has loaded torch; that the script starts as one is seen where there is no GPU."""
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path), "--small"])
    assert gpu.main() == 0, capsys.readouterr().err[-2000:]
    found = json.loads((tmp_path / "rehearsal.json").read_text(encoding="utf-8"))
    assert found["conditions"]["is_rehearsal"] and not (tmp_path / "gpu.json").exists()
    assert not [name for name, part in found.items() if "failed" in part or "left_out" in part]
    assert len(found["parity"]["same"]) == 3
    assert all(prefix == [32, 32] for prefix in found["parity"]["same"].values())
    assert [list(found[name]["raw"]) for name in ("compiled", "verify", "oracle")] == [["compiled", "as it is"]] * 3
    faster = max(found["oracle"]["raw"].values(), key=len)
    assert len(faster) == 7, "six cells and the step of what they are held against"
    taus = {name: each["tau"] for name, each in faster.items() if name != "step_s"}
    assert taus["8, 0.6"] < taus["8, 0.9"], "forced acceptance decides how many tokens a step commits"
    printed = (tmp_path / "rehearsal.md").read_text(encoding="utf-8")
    assert "no measurement" in printed
    for asked in ISSUED:
        assert any(asked in line for line in printed.splitlines()), f"asked for and not in the table: {asked}"


class _Refusing(RecordedGraphs):
    def run_and_capture(self, step: Step) -> tuple[Any, Graph | None, str]:
        return step(), None, "operation not permitted when stream is capturing"


def _bench(backend: Any = RecordedGraphs, dtype: torch.dtype = torch.float32) -> Bench:
    return Bench(
        device=CPU, dtype=dtype, is_small=True, attention_name=attention.SDPA, backend=backend
    )  # fmt: skip


def _timed(backend: Any, **options: Any) -> list[GroupResult]:
    bench, lm = _bench(backend), tiny_target()
    asked = gpu_timing.requests(bench, num=1, prompt=8, new=8, vocab_size=lm.vocab_size)
    return gpu_timing.timed(gpu_timing.engine_for(bench, lm, prompt=8, new=8, **options), Plain(CPU), asked, rounds=1)


def test_a_figure_of_graphs_is_refused_where_there_were_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(_timed(RecordedGraphs)) == 1
    with pytest.raises(gpu_timing.NotCaptured, match="cannot be captured: operation not permitted"):
        _timed(_Refusing)
    assert len(_timed(_Refusing, graphs=None)) == 1, "asked for without graphs, on purpose"
    with pytest.raises(gpu_timing.NotCaptured, match="not permitted"):
        gpu_timing.repeated_s(_bench(_Refusing), [lambda: None] * 3)
    assert gpu_timing.repeated_s(_bench(), [lambda: torch.ones(1) + 1] * 3) > 0
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 0)
    with pytest.raises(gpu_timing.NotCaptured, match="7 timed steps met no graph"):
        _timed(RecordedGraphs)


def test_a_kernel_that_does_not_run_costs_its_figures_not_the_whole_script() -> None:
    def refuses(config: Any, *, device: torch.device, dtype: torch.dtype, most_nodes: int) -> str:
        is_bad = config.num_attention_heads == 14 and dtype == torch.bfloat16
        return "the Triton kernel is wrong here" if is_bad else ""

    found = gpu.attention_for("auto", CPU, why_wrong=refuses)
    why = "qwen2.5-0.5b, torch.bfloat16: the Triton kernel is wrong here"
    assert found == (attention.SDPA, attention.TRITON, why)
    assert gpu.attention_for("auto", CPU, why_wrong=lambda *_, **__: "") == (attention.TRITON, attention.TRITON, "")
    assert gpu.attention_for("triton", CPU, why_wrong=refuses)[:2] == (attention.TRITON,) * 2, "asked for by name"


def test_a_kernel_that_fails_in_float32_alone_is_left_out_there_alone() -> None:
    def refuses(config: Any, *, device: torch.device, dtype: torch.dtype, most_nodes: int) -> str:
        return "out of shared memory" if dtype == torch.float32 else ""

    name, float32, note = gpu.attention_for("auto", CPU, why_wrong=refuses)
    assert (name, float32) == (attention.TRITON, attention.SDPA) and "torch.float32: out of shared memory" in note
    bench = Bench(
        device=CPU, dtype=torch.bfloat16, is_small=True, attention_name=name, attention_float32=float32, backend=None
    )
    assert bench.attention_for(torch.bfloat16) == attention.TRITON
    assert make_model(bench, BIG, dtype=torch.float32).config._attn_implementation == attention.SDPA


def test_large_trees_are_tried_once_in_the_shapes_that_verify_them() -> None:
    tried: list[tuple[int, str, int]] = []

    def watches(config: Any, *, device: torch.device, dtype: torch.dtype, most_nodes: int) -> str:
        tried.append((config.num_hidden_layers, str(dtype), most_nodes))
        return ""

    gpu.attention_for("auto", CPU, why_wrong=watches)
    assert (32, "torch.bfloat16", 128) in tried and len(tried) == 4
    assert {most for layers, _, most in tried if layers != 32} == {16}


def test_no_rounding_decides_what_a_decisive_target_writes() -> None:
    """In bf16, where logits of a random model tie: five slots at once give what one slot at a time gave."""
    model = make_model(_bench(dtype=torch.bfloat16), "llama-3.1-8b")
    make_decisive(model)
    ids = torch.arange(40)[None]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        top = model(input_ids=ids).logits[0].float().topk(2).values
    gap = (top[:, 0] - top[:, 1]) / top[:, 0]
    assert float(gap.min()) > 0.2, "rounding moves a bf16 logit by a hundredth"


def test_no_rounding_decides_where_target_and_draft_disagree() -> None:
    """In bf16: each level of tokens changes the target's mind or leaves it, at every scale, with room to spare."""
    model, ids = make_model(_bench(dtype=torch.bfloat16), BIG), torch.arange(512)[None]
    gpu_pair.give_second_thoughts(model, num_layers=2)
    draft = gpu_pair.cut_after(model, 2)
    for each in (model, draft):
        each.set_attn_implementation("eager")
    shares = []
    # At the first scale too many disagree: nothing is measured there.
    for allowed in (0.01, 0.05, 0.05):
        with torch.no_grad():
            tops = [each(input_ids=ids).logits[0].float().topk(2) for each in (model, draft)]
        for top in tops:
            gap = (top.values[:, 0] - top.values[:, 1]) / top.values[:, 0]
            assert float(gap.min()) > allowed, "rounding moves a bf16 logit by half a hundredth"
        shares.append(int((tops[0].indices[:, 0] != tops[1].indices[:, 0]).sum()))
        gpu_pair.scale_skipped(model, 2, 1 / gpu_pair.STEP)
    assert shares == [102, 51, 0], "of 512 tokens: both levels, the higher one, none"


def test_both_programs_accept_the_same_of_the_same_text_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_peers, "allocated_bytes", lambda bench: 1_000)
    monkeypatch.setattr(gpu_peers, "peak_bytes", lambda bench: 500_000)
    found = gpu_peers.assisted(_bench(dtype=torch.bfloat16), {})
    ours, theirs = found["acceptance"]
    assert abs(ours - theirs) <= 0.02 and 0.6 <= ours <= 0.9 and 0.6 <= theirs <= 0.9
    assert found["num_same"] == 96 and found["tau"] > 3.5
    assert found["peak_bytes"] == 499_000, "less what lay there before"
    # 188,992 weights, 118 slots of four layers; of the draft's two layers a slot for each token and a few more.
    caches = found["held_bytes"] - 2 * 188_992 - 118 * 512
    assert 112 * 256 <= caches < 128 * 256


def test_the_skipped_layers_are_scaled_until_acceptance_is_where_it_is_asked_for() -> None:
    model = make_model(_bench(), BIG)
    before = model.get_decoder().layers[3].mlp.down_proj.weight.clone()
    kept = model.get_decoder().layers[1].mlp.down_proj.weight.clone()
    found = iter([0.45, 0.55, 0.7])
    assert gpu_pair.calibrate(model, 2, acceptance=lambda: next(found)) == 1 / 16
    assert torch.equal(model.get_decoder().layers[3].mlp.down_proj.weight, before / 16)
    assert torch.equal(model.get_decoder().layers[1].mlp.down_proj.weight, kept)
    with pytest.raises(RuntimeError, match="no scale of the skipped layers"):
        gpu_pair.calibrate(model, 2, acceptance=lambda: 0.95)


def test_what_lies_outside_the_forwards_is_the_share_of_the_steps_own_time() -> None:
    """By hand: three steps that end at 1, 3 and 5 s, of which the last two spent 1.5 and 1.7 s in their forwards."""
    parts = ((1.0, 0.1, 0.1), (3.0, 0.5, 1.0), (5.0, 0.7, 1.0))
    steps = [SimpleNamespace(end_s=end, draft_s=draft, verify_s=verify) for end, draft, verify in parts]
    result: Any = SimpleNamespace(generations=[SimpleNamespace(steps=steps)])
    assert gpu_timing.outside([result], "draft_s", "verify_s") == pytest.approx(0.2)
    assert gpu_timing.outside([result], "verify_s") == pytest.approx(0.5)


def test_when_its_time_is_over_the_script_stops_and_says_what_it_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A part that would swallow exceptions does not swallow the end of the time."""

    def sleeps(bench: Bench, found: dict[str, Any]) -> dict[str, Any]:
        while True:
            with suppress(Exception):
                time.sleep(30)

    quick = gpu.Part(lambda *_: {"rows": [gpu_timing.row("it", "ran")]}, 1)
    endless = gpu.Part(sleeps, 1)
    monkeypatch.setattr(gpu, "PARTS", {"quick": quick, "endless": endless, "never": endless})
    monkeypatch.setattr(gpu, "LEAST_S", 0.1)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--small", "--out", str(tmp_path), "--seconds", "6"])
    start = time.perf_counter()
    assert gpu.main() == 0
    assert time.perf_counter() - start < 20
    printed = capsys.readouterr().out
    assert "| quick: it | ran | |" in printed.replace("|  |", "| |")
    assert "| endless | left out: cut off" in printed
    assert "| never | left out: it may take 0 s, and " in printed and " of 6 s were left" in printed
    assert "left_out" in json.loads((tmp_path / "rehearsal.json").read_text(encoding="utf-8"))["never"]


def test_forced_acceptance_that_was_not_forced_is_no_figure() -> None:
    def results(committed: list[int]) -> list[GroupResult]:
        steps = [SimpleNamespace(num_nodes=4, num_committed=num, num_truncated=0) for num in committed]
        return [SimpleNamespace(generations=[SimpleNamespace(steps=steps)])]  # type: ignore[list-item]

    # Survival 0.75, 0.56, 0.42, 0.32 of 4: 3.05 tokens a step.
    fair = [1] * 25 + [2] * 19 + [3] * 14 + [4] * 10 + [5] * 32
    assert gpu_timing.demand_tau(results(fair), rate=0.75, depth=4) == pytest.approx(3.05, abs=0.01)
    with pytest.raises(RuntimeError, match=r"tau 1\.00 where 3\.05"):
        gpu_timing.demand_tau(results([1] * 100), rate=0.75, depth=4)


ABSENT = ("pydantic", "pydantic_core", "duckdb", "plotly", "textual", "datasets")
"""Packages that an image for torch may lack, as the one that the script is meant for does."""


def test_time_that_is_over_is_told_again_where_the_first_word_was_lost() -> None:
    lost = []
    with pytest.raises(gpu.OutOfTime), gpu.at_most(0.05, again_s=0.05):
        try:
            time.sleep(5)
        except gpu.OutOfTime:  # as Python does where it is raised inside a finaliser
            lost.append(1)
        time.sleep(5)
    assert lost == [1]


def test_without_a_gpu_the_script_says_how_to_rehearse(tmp_path: Path) -> None:
    """As a program, with the packages of the image on which it is to run."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    lines = [
        "import os, runpy, sys",
        f"sys.modules.update(dict.fromkeys({ABSENT!r}))",
        f"sys.argv = ['gpu.py', '--out', {str(tmp_path)!r}]",
        "try: runpy.run_path('benchmarks/gpu.py', run_name='__main__')",
        "finally: print(os.environ['TORCH_CUDNN_SDPA_DEPRIORITIZED'])",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    environment.pop("TORCH_CUDNN_SDPA_DEPRIORITIZED", None)
    ran = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=REPOSITORY, env=environment, capture_output=True, text=True,
        timeout=400, check=False,
    )  # fmt: skip
    assert ran.returncode == 1
    assert "--small" in ran.stderr and "Traceback" not in ran.stderr
    assert ran.stdout == "1\n", "said before torch is loaded"
