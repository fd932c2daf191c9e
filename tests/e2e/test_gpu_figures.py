"""The figures of `gpu.py` that say how fast the engine is, each by hand: whole parts on measurements that are made up.

A ratio turned upside down would stand beside its limit on borrowed time, and nobody would have the card to see it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu_checks, gpu_parts, gpu_shared, gpu_timing
from benchmarks.gpu_models import Guess, Plain
from specbench.engine.answer import GroupResult
from tests.e2e.gpu_fakes import FakeShared, FakeTarget, answers, bench_on, fake_engine, fake_target, rows_of, step

FOUND = {"copy": {"bytes_per_s": 1000.0}}
"""A copy of 1000 bytes a second."""


def _share(monkeypatch: pytest.MonkeyPatch, timed: Any) -> None:
    """The parts of `gpu_parts` on a shared target, with `timed` for what engines take."""
    shared: list[FakeShared] = []

    def shared_target(bench: Any) -> FakeShared:
        shared[:] = shared or [FakeShared(bench)]
        return shared[0]

    monkeypatch.setattr(gpu_parts, "shared_target", shared_target)
    monkeypatch.setattr(gpu_parts, "target", fake_target)
    monkeypatch.setattr(gpu_parts, "engine_for", fake_engine)
    monkeypatch.setattr(gpu_parts, "timed", timed)


# --- what a figure is made of ----------------------------------------------------------------------------------------


def test_seconds_of_a_step_are_those_of_the_decode_and_the_median_of_the_rounds() -> None:
    rounds = [answers([step()] * 4, decode_s=seconds, total_s=99) for seconds in (2.0, 4.0, 36.0)]
    assert gpu_timing.step_s(rounds) == 1.0


def test_seconds_of_a_token_count_those_of_all_rows_but_the_prefill_s() -> None:
    """Three rows of two steps of two tokens: 12 tokens."""
    rounds = [answers([step(num_accepted=1)] * 2, decode_s=seconds, num_rows=3) for seconds in (6.0, 3.0, 60.0)]
    assert gpu_timing.token_s(rounds) == 0.5


def test_tokens_of_a_step_are_those_that_were_kept() -> None:
    steps = [step(num_accepted=3), step(num_accepted=2, num_truncated=2)]
    assert gpu_timing.tau([answers(steps), answers(steps[:1])]) == pytest.approx(9 / 3)


def test_a_phase_takes_the_median_over_all_steps() -> None:
    rounds = [answers([step(verify_s=2), step(verify_s=50)]), answers([step(verify_s=3)])]
    assert gpu_timing.phase_s(rounds, "verify_s") == 3


def test_a_step_is_as_fast_as_in_its_fastest_round_and_has_all_of_its_phases() -> None:
    one = answers([step(draft_s=1, verify_s=2, accept_s=4, commit_s=8), step(verify_s=5)])
    other = answers([step(verify_s=20), step(verify_s=3, accept_s=1)])
    assert gpu_timing.fastest_steps([one, other]) == [15, 4]


def test_held_are_the_weights_once_and_every_cache_once() -> None:
    lm: Any = FakeTarget()
    assert gpu_timing.weight_bytes(lm) == 1000
    assert gpu_timing.held_bytes(lm) == 1500 and gpu_timing.held_bytes(lm, lm) == 2000


def test_memory_is_the_peak_for_each_byte_that_is_held() -> None:
    assert gpu_timing.memory_share(3300, 3000) == "1.10"
    assert gpu_timing.memory_share(0, 3000) == "no reading on a CPU"


def test_the_faster_way_is_the_one_that_takes_less() -> None:
    assert gpu_shared.faster({"compiled": 1.0, "as it is": 2.0}) == "compiled"
    assert gpu_shared.faster({"compiled": 2.0, "as it is": 1.0}) == "as it is"


def test_what_is_replayed_together_is_counted_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best of five replays of four runs."""
    taken = iter([12.0, 9.0, 8.0, 30.0, 11.0])
    graph = SimpleNamespace(replay=lambda: None)
    bench = bench_on(backend=lambda: SimpleNamespace(run_and_capture=lambda step: (None, graph, "")))
    monkeypatch.setattr(gpu_timing, "device_s", lambda bench, run: next(taken))
    assert gpu_timing.repeated_s(bench, [lambda: None] * 4) == 2.0


def test_seconds_of_one_of_several_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    def seconds_of(bench: Any, run: Any) -> float:
        run()
        return 6.0

    monkeypatch.setattr(gpu_timing, "seconds_of", seconds_of)
    assert gpu_timing.device_s(bench_on(), lambda: ran.append(1), num=3) == 2.0 and len(ran) == 3


# --- checks ----------------------------------------------------------------------------------------------------------


def test_a_common_prefix_ends_at_the_first_token_that_differs() -> None:
    assert gpu_checks._common((1, 2, 3), (1, 2, 4)) == 2 and gpu_checks._common((1, 2), (1, 2, 3)) == 2


def test_what_taking_times_costs_is_its_share_of_a_generation_without() -> None:
    walls = {"none": [1.0, 2.0, 9.0], "events": [2.2, 2.1, 9.0], "stamps": [2.02, 1.0, 3.0]}
    verify_s = {"none": 9.0, "events": 3.0, "stamps": 2.0}
    texts: dict[str, tuple[int, ...]] = dict.fromkeys(walls, (1, 2))
    assert rows_of({"rows": gpu_checks._timer_rows(walls, verify_s, texts, has_timer=True)}) == [
        ("whole generation, times taken by stamps against not", "+1.00%", "<= 1 %"),
        ("whole generation, times taken by events against not", "+10.00%", ""),
        ("a verification by events / by stamps", "1.500", "about 1"),
        ("texts with times and without", "the same", "the same"),
    ]
    del walls["stamps"]
    texts["events"] = (1, 3)
    assert rows_of({"rows": gpu_checks._timer_rows(walls, verify_s, texts, has_timer=False)}) == [
        ("whole generation, times taken by events against not", "+10.00%", "<= 1 %"),
        ("texts with times and without", "NOT the same", "the same"),
    ]


def test_a_copy_reads_and_writes_every_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([5e-6, 4.194304e-6, 1e-5, 1.0, 2.0, 0.5])
    monkeypatch.setattr(gpu_checks, "device_s", lambda bench, run, num: next(taken))
    found = gpu_checks.copy_bandwidth(bench_on(), {})
    assert gpu_timing.bandwidth({"copy": found}) == pytest.approx(2e12), "4 MiB read and written in 4.19 us"
    assert rows_of(found) == [("copy, GB/s", "2000", "")]


# --- how fast --------------------------------------------------------------------------------------------------------

VERIFY_S = {
    "compiled": {0: 2.0, 4: 2.05, 8: 2.1, 16: 2.2, 32: 2.3, 64: 2.5},
    "as it is": {0: 4.0, 16: 5.0, 64: 7.0},
}


def test_a_verification_is_held_against_the_decode_of_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step ends half a second after its verification; the first one is an odd one."""

    def timed(engine: Any, drafter: Any, asked: Any) -> list[GroupResult]:
        assert isinstance(drafter, Guess) == (engine.nodes > 0) and drafter.max_nodes == engine.nodes
        seconds = VERIFY_S[engine.way][engine.nodes]
        ends = (1.0, 1.5 + seconds, 2.0 + 2 * seconds)
        return [answers([step(end, verify_s=part) for end, part in zip(ends, (50.0, seconds, seconds), strict=True)])]

    _share(monkeypatch, timed)
    assert rows_of(gpu_parts.verify(bench_on(), FOUND)) == [
        ("verify 4 nodes / decode 1, compiled", "1.025", ""),
        ("verify 8 nodes / decode 1, compiled", "1.050", ""),
        ("verify 16 nodes / decode 1, compiled", "1.100", "<= 1.05"),
        ("verify 32 nodes / decode 1, compiled", "1.150", ""),
        ("verify 64 nodes / decode 1, compiled", "1.250", "<= 1.15"),
        ("step outside the forward, 16 nodes, compiled", "18.5%", "<= 3 %"),  # 0.5 of 2.7
        ("verify 16 nodes / decode 1, as it is", "1.250", ""),
        ("verify 64 nodes / decode 1, as it is", "1.750", ""),
        ("step outside the forward, 16 nodes, as it is", "9.1%", ""),  # 0.5 of 5.5
    ]


def test_forced_acceptance_is_held_against_what_its_own_parts_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Depth 4: 2.5 tokens a step of 1.25 s in its forwards, 1.5 s in all, where one token takes 1 s: 2 times is
    allowed, and 1.67 is had. Depth 8: 4 tokens of 1.6 s and 2 s: 2.5 and 2."""

    def timed(engine: Any, drafter: Any, asked: Any) -> list[GroupResult]:
        if isinstance(drafter, Plain):
            base_s = {"compiled": 1.0, "as it is": 2.0}[engine.way]
            return [answers([step(verify_s=0.9)] * 100, decode_s=100 * base_s)]
        assert drafter.depth == engine.nodes and asked[0].reference[:2] == (5, 7)
        if drafter.depth == 4:
            steps = [step(draft_s=0.25, verify_s=1.0, num_accepted=each) for each in (1, 2)] * 10
            return [answers(steps, decode_s=20 * 1.5)]
        return [answers([step(draft_s=0.4, verify_s=1.2, num_accepted=3)] * 20, decode_s=20 * 2.0)]

    _share(monkeypatch, timed)
    monkeypatch.setattr(gpu_parts, "OracleDrafter", lambda view, rate, depth: SimpleNamespace(rate=rate, depth=depth))
    monkeypatch.setattr(gpu_parts, "demand_tau", lambda results, *, rate, depth: rate + depth)
    found = gpu_parts.oracle(bench_on(), FOUND)
    four = "tau 2.50, speed-up 1.67, compiled, of what it allows"
    eight = "tau 4.00, speed-up 2.00, compiled, of what it allows"
    assert rows_of(found) == [
        *((f"depth 4, rate {rate}: {four}", "0.833", ">= 0.95") for rate in (0.6, 0.75, 0.9)),
        *((f"depth 8, rate {rate}: {eight}", "0.800", ">= 0.95") for rate in (0.6, 0.75, 0.9)),
        ("depth 4, rate 0.75: tau 2.50, speed-up 3.33, as it is, of what it allows", "0.833", ""),
        ("depth 8, rate 0.75: tau 4.00, speed-up 4.00, as it is, of what it allows", "0.800", ""),
    ]
    cell = found["raw"]["compiled"]["4, 0.9"]
    assert cell == pytest.approx({"tau": 2.5, "expected_tau": 4.9, "speedup": 1 / 0.6, "bound": 2.0})


def test_a_long_context_is_held_against_every_row_s_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of 1024 tokens reads 1000 + 10 (1024 + 1) bytes first, 16 rows of 128 read 1000 + 160 (128 + 1); 350 of
    the bytes at the peak lay there before, and 1500 are held."""
    first_s = {1: 11.25, 16: 21.64}
    more_s = {1: 11.26, 16: 21.80}

    def timed(engine: Any, drafter: Any, asked: Any, *, rounds: int) -> list[GroupResult]:
        assert rounds == (2 if engine.way == "compiled" else 1) and len(asked) == engine.rows
        slow = {"compiled": 1.0, "as it is": 2.0}[engine.way]
        steps = [(1.2, 1.1), (1.5, 1.0)][:rounds]
        return [
            answers(
                [
                    step(verify_s=first_s[engine.rows] * one * slow),
                    step(verify_s=more_s[engine.rows] * two * slow),
                ]
            )
            for one, two in steps
        ]

    _share(monkeypatch, timed)
    monkeypatch.setattr(FakeShared, "each_way", lambda self, run: {way: run(way) for way in ("compiled", "as it is")})
    for name, value in (("peak_bytes", 2000), ("allocated_bytes", 1350), ("reset_peak", None)):
        monkeypatch.setattr(gpu_parts, name, lambda bench, value=value: value)
    found = gpu_parts.long_context(bench_on(torch.device("cuda")), FOUND)
    wanted = []
    for what in ("1024 tokens, B = 1", "128 tokens, B = 16"):
        each = f"{what}: slowest step / (bytes / bandwidth), each the fastest of 2, compiled"
        wanted += [
            (each, "1.20 (median 1.10, once 1.50)", "<= 1.3"),
            (f"{what}: peak memory / (weights + cache), compiled", "1.10", "<= 1.10"),
            (
                f"{what}: slowest step / (bytes / bandwidth), read once, as it is",
                "2.40 (median 2.30, once 2.40)",
                "",
            ),
            (f"{what}: peak memory / (weights + cache), as it is", "1.10", ""),
        ]
    assert rows_of(found) == wanted


@pytest.mark.parametrize(
    ("drafted_per_s", "where"),
    [
        ({1: 20, 2: 25, 4: 30}, "at B = 4"),
        ({1: 20, 2: 15, 4: 50}, "at B = 2"),
        ({1: 20, 2: 25, 4: 50}, "nowhere up to B = 4"),
    ],
)
def test_drafting_stops_paying_at_the_first_batch_where_it_is_slower(
    drafted_per_s: dict[int, float], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_per_s = {1: 10, 2: 20, 4: 40}

    def timed(engine: Any, drafter: Any, asked: Any, *, rounds: int) -> list[GroupResult]:
        rate = (plain_per_s if isinstance(drafter, Plain) else drafted_per_s)[engine.rows]
        return [answers([step()] * 30, decode_s=30 * engine.rows / rate, num_rows=engine.rows)]

    _share(monkeypatch, timed)
    monkeypatch.setattr(gpu_parts, "OracleDrafter", lambda view, rate, depth: SimpleNamespace(rate=rate, depth=depth))
    monkeypatch.setattr(gpu_parts, "demand_tau", lambda *_, **__: None)
    assert rows_of(gpu_parts.batch(bench_on(), FOUND)) == [
        *(
            (f"B = {num}: tokens/s plain, drafted, as it is", f"{plain_per_s[num]}, {drafted_per_s[num]}", "")
            for num in (1, 2, 4)
        ),
        ("drafting 4 tokens, 0.75 of them right, stops paying", where, ""),
    ]


def test_a_small_target_s_graphs_are_worth_what_steps_took_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step reads 1000 + 10 (16 + 4) bytes and takes 2 s captured, 5 s one by one."""

    def timed(engine: Any, drafter: Any, asked: Any, *, rounds: int) -> list[GroupResult]:
        return [answers([step()] * 8, decode_s=8 * (5.0 if hasattr(engine, "graphs") else 2.0))]

    _share(monkeypatch, timed)
    found = rows_of(gpu_parts.small_targets(bench_on(), FOUND))
    assert found[:2] == [
        ("qwen2.5-0.5b: captured against one by one, as it is", "2.50", ""),
        ("qwen2.5-0.5b: share of the copy's bandwidth, as it is", "60.0%", ""),
    ]
    assert len(found) == 4
