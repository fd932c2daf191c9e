"""The figures of `gpu.py` that hold the engine against transformers, each by hand: no model runs, nothing is timed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu_peers
from specbench.engine.answer import GroupResult
from tests.e2e.gpu_fakes import FakeShared, answers, bench_on, fake_engine, rows_of, step

FOUND = {"copy": {"bytes_per_s": 1e6}}
"""A copy of a megabyte a second."""
TOTAL_S = {"compiled": 0.02, "as it is": 0.04}
"""Of an answer, the prompt included: the median of three rounds."""
STEP_S = {"compiled": 0.0016, "as it is": 0.002}


def _timed(engine: Any, drafter: Any, asked: Any) -> list[GroupResult]:
    """Steps of which all but a tenth of a millisecond is the forward, between answers of odd lengths."""
    each = STEP_S[engine.way]
    steps = [step(place * each, verify_s=each - 1e-4) for place in range(1, 5)]
    totals = (0.001, TOTAL_S[engine.way], 9.0)
    return [answers(steps, decode_s=4 * each, total_s=total) for total in totals]


def _share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_peers, "shared_target", FakeShared)
    monkeypatch.setattr(gpu_peers, "engine_for", fake_engine)
    monkeypatch.setattr(gpu_peers, "timed", _timed)


def test_generate_takes_so_many_times_as_long_as_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    _share(monkeypatch)
    monkeypatch.setattr(gpu_peers, "_generate_s", lambda *_: 0.1)
    assert rows_of(gpu_peers.transformers_generate(bench_on(), FOUND)) == [
        (f"against generate, eager (specbench compiled; {gpu_peers.SAME})", "5.00", ">= 4"),
        (f"against generate, eager (specbench as it is; {gpu_peers.SAME})", "2.50", ""),
    ]


def test_the_baseline_s_bytes_are_held_against_the_copy_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step reads 1000 bytes of weights and, half-way, 36 tokens of 10 bytes: in 1.6 ms, at 0.85 MB a second."""
    _share(monkeypatch)
    monkeypatch.setattr(gpu_peers, "_static_s", lambda *_: 0.03)
    assert rows_of(gpu_peers.compiled(bench_on(), FOUND)) == [
        ("8B, B = 1, 1k, compiled: tokens/s", "625.0", "about 240"),
        ("share of the copy's bandwidth, compiled", "85.0%", ">= 85 %"),
        ("step outside the target's forward, compiled", "6.2%", "<= 3 %"),  # 0.1 of 1.6 ms
        ("8B, B = 1, 1k, as it is: tokens/s", "500.0", ""),
        ("share of the copy's bandwidth, as it is", "68.0%", ""),
        ("step outside the target's forward, as it is", "5.0%", ""),
        ("compiling took, s", "7", ""),
        (
            f"against generate, compiled with a static cache (specbench compiled; {gpu_peers.SAME})",
            "1.50",
            ">= 1.2",
        ),
    ]


def test_the_way_that_writes_an_answer_sooner_is_held_against_the_static_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever has the faster step."""
    _share(monkeypatch)
    monkeypatch.setattr(gpu_peers, "_static_s", lambda *_: 0.03)
    monkeypatch.setitem(TOTAL_S, "as it is", 0.01)
    *_, (what, measured, asked) = rows_of(gpu_peers.compiled(bench_on(), FOUND))
    assert "(specbench as it is; " in what and (measured, asked) == ("3.00", ">= 1.2")


def test_a_forward_alone_is_told_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    shared, taken = FakeShared(bench_on(attention_name="some")), iter([0.004, 0.005, 0.003, 1.0])
    lm: Any = shared.lm
    lm.allocate = lm.begin = lm.prefill = lambda *_, **__: None
    monkeypatch.setattr(gpu_peers, "shared_target", lambda bench: shared)
    monkeypatch.setattr(gpu_peers, "repeated_s", lambda bench, runs: next(taken))
    monkeypatch.setattr(shared, "compile", lambda *, is_whole: 44.0)
    demanded: list[str] = []
    monkeypatch.setattr(gpu_peers, "demand_attention", lambda lm, name: demanded.append(name))
    assert rows_of(gpu_peers.whole(shared.bench, FOUND)) == [
        ("one token's forward alone, ms: compiled", "4.000", ""),
        ("one token's forward alone, ms: as it is", "5.000", ""),
        ("one token's forward alone, ms: compiled whole", "3.000", ""),
        ("compiling layer by layer, whole: s", "7, 44", ""),
    ]
    assert demanded == [shared.bench.attention_name]


def test_transformers_loops_take_the_median_of_three_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([3.0, 1.0, 2.0] * 2)
    monkeypatch.setattr(gpu_peers, "seconds_of", lambda bench, run: next(taken))
    monkeypatch.setattr(gpu_peers, "_generate", lambda *_, **__: None)
    monkeypatch.setattr(gpu_peers, "StaticCache", lambda **_: SimpleNamespace(reset=lambda: None))
    model, ids = SimpleNamespace(config=None), torch.zeros(1, 4)
    assert gpu_peers._generate_s(bench_on(), model, ids, 2) == 2.0
    assert gpu_peers._static_s(bench_on(), model, ids, 2) == 2.0


def test_acceptance_is_told_of_rounds_that_had_room_for_all_of_their_tokens() -> None:
    """Behind the first of 12 tokens 11 are left, then 8 and 5: the third round drafts for fewer than five and one."""
    steps = [step(num_nodes=5, num_accepted=each) for each in (2, 2, 4)]
    assert gpu_peers.our_acceptance(answers(steps)) == pytest.approx(4 / 10)
    rounds = [gpu_peers._Round(length, 5) for length in (21, 24, 27)]
    assert gpu_peers._their_acceptance(rounds, length=32) == pytest.approx(4 / 10)


def test_assisted_generation_takes_so_many_times_as_long_as_the_engine() -> None:
    """20 tokens of a prompt and 12 of an answer. Two rounds of five drafted tokens were accepted by 2 and 3 here, by 2
    and 2 there; a step of 10 s has 9.5 s of forwards; 3300 bytes for 3000 that are held."""
    steps = [
        step(10.0 * place, draft_s=1.5, verify_s=8.0, num_nodes=5, num_accepted=each)
        for place, each in enumerate((2, 3, 3), start=1)
    ]
    ours = [answers(steps, total_s=total) for total in (1.0, 2.0, 9.0)]
    rounds = [gpu_peers._Round(length, 5) for length in (21, 24, 27)]
    found = gpu_peers._assisted_figures(
        ours, text=[5, 7, 7, 8, *[7] * 8], rounds=rounds, theirs_s=7.0, num_prompt=20, peak=3300, held=3000
    )
    assert rows_of(found) == [
        ("acceptance per drafted token, here and in transformers", "0.500, 0.400", "0.6 to 0.9, within 0.02"),
        ("common prefix of their texts", "3 of 12", "12"),
        (f"against assisted generation (both as it is; {gpu_peers.SAME})", "3.50", ">= 3"),
        ("step outside both forwards, chain of 5", "5.0%", "<= 3 %"),
        ("peak memory / (weights + cache + drafter)", "1.10", "<= 1.10"),
    ]
    assert found["tau"] == pytest.approx(11 / 3)
