"""Hand-made summaries: small, with numbers that can be checked by eye."""

from __future__ import annotations

import dataclasses
from typing import Any

from specbench.metrics import Interval
from specbench.report.board import RunRecord
from specbench.store.records import (
    BaselineMeter,
    CategoryRow,
    Contrast,
    Control,
    Equality,
    ExternalRow,
    MethodRow,
    PhaseSeconds,
    Positions,
    RunSummary,
    Waterfall,
)
from tests.store.synthetic import Competitor, make_manifest

AR_S = 0.010
"""Seconds of one baseline step in every sample."""


def method_row(
    method: str = "draft_model",
    *,
    speedup: float | None = 1.6,
    half: float = 0.04,
    tau: float = 2.8,
    rank: int | None = 1,
    tied_with: tuple[str, ...] = (),
    **changes: Any,
) -> MethodRow:
    """A drafting row whose interval is speedup +- half and whose step costs what the speed-up says."""
    assert speedup is None or speedup > 0
    decode = (speedup or 1.0) * 1.05
    step_s = tau * AR_S / decode
    parts = {"verify_s": 0.6, "draft_s": 0.3, "accept_s": 0.04, "commit_s": 0.03, "other_s": 0.03}
    interval = None if speedup is None else Interval(speedup - half, speedup + half)
    survival = tuple(round(0.75**depth, 4) for depth in range(1, 6))
    row = MethodRow(
        method=method,
        name=method.split("[")[0].split("#")[0],
        title=method.title(),
        kind="chain",
        is_control=False,
        num_parameters=430_000,
        num_questions=80,
        num_repeats=3,
        num_units=80,
        num_failed=0,
        num_new_tokens=12_345,
        num_steps=4_400,
        tokens_per_s=100.0 * (speedup or 1.0),
        speedup=speedup,
        speedup_ci=interval,
        speedup_total=speedup,
        speedup_decode=decode,
        acceptance_length=tau,
        acceptance_length_macro=tau,
        acceptance_by_position=Positions(
            conditional=(0.75,) * 5, survival=survival, proposed=(1.0, 0.9, 0.6, 0.2, 0.04)
        ),
        efficiency=decode / tau,
        efficiency_ci=Interval(decode / tau - 0.02, decode / tau + 0.02),
        phase_s=PhaseSeconds(prefill=1.0, draft=3.0, verify=6.0, accept=0.4, commit=0.3, other=0.3),
        waterfall=Waterfall(
            ar_s=AR_S,
            step_s=step_s,
            other_share=0.03,
            bound_speedup=tau * AR_S / (0.9 * step_s),
            **{name: share * step_s for name, share in parts.items()},
        ),
        theory=None,
        meter=None,
        equality=Equality(identical=480, tie=0, numeric=0, bug=0),
        accuracy=None,
        lossless=True,
        carry="none",
        ranked=rank is not None,
        rank=rank,
        tied_with=tied_with,
        by_category=tuple(
            CategoryRow(
                category=name,
                num_questions=10,
                num_new_tokens=1_500,
                tokens_per_s=100.0,
                speedup=(speedup or 1.0) * factor,
                speedup_ci=Interval((speedup or 1.0) * factor - 2 * half, (speedup or 1.0) * factor + 2 * half),
                speedup_total=(speedup or 1.0) * factor,
                acceptance_length=tau * factor,
                accuracy=None,
                too_noisy=False,
            )
            for name, factor in (("coding", 1.15), ("writing", 0.9), ("reasoning", 1.0))
        ),
        notes=(),
    )
    return dataclasses.replace(row, **changes)


def baseline_row(**changes: Any) -> MethodRow:
    """The autoregressive row: 1.0 by definition, no drafts."""
    row = method_row(
        "autoregressive",
        speedup=1.0,
        tau=1.0,
        rank=None,
        kind="baseline",
        acceptance_by_position=Positions(conditional=(), survival=(), proposed=()),
        efficiency=1.0,
        efficiency_ci=None,
        speedup_decode=1.0,
        num_parameters=0,
        by_category=(),
        meter=BaselineMeter(num_bytes=10**11, bytes_per_s=1.23e10, copy_bandwidth=2.0e10, share=0.615),
        waterfall=Waterfall(
            ar_s=AR_S,
            verify_s=0.96 * AR_S,
            draft_s=0.0,
            accept_s=0.02 * AR_S,
            commit_s=0.01 * AR_S,
            other_s=0.01 * AR_S,
            step_s=AR_S,
            other_share=0.01,
            bound_speedup=1.04,
        ),
    )
    return dataclasses.replace(row, speedup_ci=None, **changes)


def contrast(**changes: Any) -> Contrast:
    """A draft with the target's noise beside one without."""
    found = Contrast(
        method="redrafter[draft=shared-noise]",
        base="redrafter[draft=plain]",
        option="draft",
        value="shared-noise",
        base_value="plain",
        num_units=80,
        acceptance_ratio=1.213,
        acceptance_ratio_ci=Interval(1.181, 1.247),
        speed_ratio=1.14,
        speed_ratio_ci=Interval(1.09, 1.19),
    )
    return dataclasses.replace(found, **changes)


def control_row() -> MethodRow:
    """Autoregression a second time."""
    return dataclasses.replace(
        baseline_row(),
        method="autoregressive#2",
        is_control=True,
        speedup=1.002,
        speedup_ci=Interval(0.991, 1.012),
        meter=None,
    )


def summary(*rows: MethodRow, **changes: Any) -> RunSummary:
    """A finished run of `rows` (by default one drafter) beside the baseline and its control."""
    found = RunSummary(
        schema=1,
        run_id="20261121-0335-ab12",
        created="2026-11-21T03:35:00Z",
        state="finished",
        suite="mtbench",
        suite_hash="a" * 64,
        num_questions=80,
        target="tiny-instruct",
        target_hash="b" * 64,
        model_type="llama",
        num_parameters=8_100_000,
        quantisation="none",
        device="Example CPU",
        device_kind="cpu",
        dtype="float32",
        threads=1,
        attention="sdpa",
        execution="operators",
        batch_size=1,
        max_new_tokens=256,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        repetition_penalty=1.0,
        rule="coupled",
        carry="none",
        stop=(),
        seed=0,
        repeats=3,
        rows=(baseline_row(), control_row(), *(rows or (method_row(),))),
        control=Control(method="autoregressive#2", speedup=1.002, speedup_ci=Interval(0.991, 1.012), passed=True),
        notes=(),
    )
    return dataclasses.replace(found, **changes)


def failed(found: RunSummary) -> RunSummary:
    """The same run with every generation failed: no row has a number, the baseline's neither."""
    none = {"speedup": None, "speedup_ci": None, "tokens_per_s": None, "num_failed": 240, "ranked": False, "rank": None}
    none |= {"efficiency": None, "acceptance_length": None, "phase_s": None, "waterfall": None, "meter": None}
    nothing = Control(method="autoregressive#2", speedup=None, speedup_ci=None, passed=None)
    return dataclasses.replace(found, rows=tuple(dataclasses.replace(r, **none) for r in found.rows), control=nothing)


def record(found: RunSummary, **changes: Any) -> RunRecord:
    """The summary with a manifest of the same methods and number of questions."""
    competitors = [Competitor(label=row.method, kind=row.kind, is_control=row.is_control) for row in found.rows]
    manifest = make_manifest(competitors, run_id=found.run_id, num_questions=found.num_questions, **changes)
    return RunRecord(summary=found, manifest=manifest)


def external_row(**changes: Any) -> ExternalRow:
    """One imported answer file with its baseline."""
    row = ExternalRow(
        import_id="e1",
        suite="MT-bench",
        target="vicuna-7b",
        method="their_method",
        model_id="their-model",
        source="answers.jsonl",
        num_questions=80,
        num_turns=160,
        num_new_tokens=58_000,
        num_steps=16_700,
        tokens_per_s=85.1,
        tokens_per_step=3.47,
        base_tokens_per_s=30.0,
        speedup=2.84,
        speedup_ci=Interval(2.71, 2.97),
        speedup_total=2.83,
        num_paired_questions=80,
        ranked=False,
        notes=("time includes prefill",),
    )
    return dataclasses.replace(row, **changes)
