"""From the views' facts to one method's row: every field but its rank, and the reasons why it has none. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from specbench.metrics import Speedup, is_too_noisy, leviathan
from specbench.store.eligibility import eligibility_of, equality_of
from specbench.store.facts import Facts, Row
from specbench.store.records import (
    BaselineMeter,
    CategoryRow,
    MethodRow,
    PhaseSeconds,
    Positions,
    Theory,
    Waterfall,
)
from specbench.store.words import count, unit

UNEXPLAINED = 0.03
"""Phases must explain a step within 3 % (measurement 13)."""
_UNPAIRED = Speedup(float("nan"), None, 0, float("nan"))


def method_row(facts: Facts, method: Row) -> MethodRow:
    """A row without its rank; `notes` and `ranked` are final."""
    found = eligibility_of(facts, method)
    label = method["method"]
    totals = facts.totals.get((label, None), {})
    water = facts.waterfall.get((label, None), {})
    verdicts = facts.verdicts.get((label, None), {})
    is_baseline = label == facts.baseline
    speedup = facts.speedups.get(label, _UNPAIRED)
    is_paired = speedup.num_units > 0
    equality = equality_of(verdicts)
    row = MethodRow(
        method=label,
        name=method["name"],
        title=method["title"],
        kind=method["kind"],
        is_control=method["is_control"],
        num_parameters=method["num_parameters"],
        num_questions=verdicts.get("num_questions", 0),
        num_repeats=totals.get("num_repeats", 0),
        num_units=speedup.num_units,
        num_failed=_num_failed(facts, label),
        num_new_tokens=totals.get("num_new_tokens", 0),
        num_steps=totals.get("num_steps", 0),
        tokens_per_s=totals.get("tokens_per_s"),
        speedup=(1.0 if is_baseline else speedup.geometric_mean) if is_paired else None,
        speedup_ci=None if is_baseline else speedup.interval,
        speedup_total=(1.0 if is_baseline else speedup.ratio_of_totals) if is_paired else None,
        # Where every answer is the prefill's token nothing was decoded.
        speedup_decode=(
            1.0 if is_baseline and is_paired and totals["num_decode_tokens"] else water.get("speedup_decode")
        ),
        acceptance_length=totals.get("acceptance_length"),
        acceptance_length_macro=facts.macro.get(label, {}).get("acceptance_length_macro"),
        acceptance_by_position=_positions(facts.positions.get(label, [])),
        learn_s=facts.learn_s.get(label),
        speedup_serial=_serial(facts.learn_s.get(label), totals, speedup.ratio_of_totals if is_paired else None),
        efficiency=water.get("efficiency"),
        efficiency_ci=facts.efficiency_ci(label),
        phase_s=_phases(totals),
        waterfall=_waterfall(water),
        theory=_theory(facts.theory.get(label)),
        meter=_meter(facts.meter.get(label)),
        joules_per_token=facts.energy.get(label, {}).get("joules_per_token"),
        equality=equality,
        accuracy=verdicts.get("accuracy"),
        # Of a method without an answer nothing was seen to be equal.
        lossless=bool(totals) and not facts.is_lossy(method["kind"]) and (equality is None or equality.bug == 0),
        carry=facts.run["carry"],
        ranked=found.ranked,
        control_failed=found.control_failed,
        too_noisy=found.too_noisy,
        reasons=found.reasons,
        rank=None,
        tied_with=(),
        by_category=tuple(_category_rows(facts, label)),
        notes=(),
    )
    return dataclasses.replace(
        row,
        notes=(
            *found.reasons,
            *_coverage(facts, row),
            *_remarks(row, is_lossy=facts.is_lossy(row.kind)),
            *_learning(row, learns_beside=label in facts.learn_beside),
            *_execution(facts, label),
            *_own_numbers(facts, label),
            *method["notes"],
        ),
    )


def _coverage(facts: Facts, row: MethodRow) -> list[str]:
    """What of its answers is in no ratio, because the other side has nothing to set beside them."""
    found = facts.unpaired.get(row.method, {})
    num_left, num_failed = found.get("num_units", 0), found.get("num_failed_units", 0)
    noun = unit(facts.run["batch_size"])
    remarks = []
    if num_left and row.num_units:
        parts = {"in which it failed": num_failed, "not measured to the end": num_left - num_failed}
        why = " and ".join(f"{number} {words}" for words, number in parts.items() if number)
        total = count(row.num_units + num_left, noun)
        remarks.append(f"its speed-up rests on {row.num_units} of {total}: left out whole are {why}")
    if lone := found.get("num_lone_cells", 0):
        stands = "stands" if lone == 1 else "stand"
        remarks.append(f"{lone} of its timed generations {stands} in no speed-up: the baseline failed there")
    return remarks


def _remarks(row: MethodRow, *, is_lossy: bool) -> list[str]:
    remarks = []
    if row.num_failed:
        are = "it is" if row.num_failed == 1 else "they are"
        remarks.append(f"{count(row.num_failed, 'generation')} failed; {are} in no number of this row")
    if row.equality is not None:
        same, tie, numeric, bug = dataclasses.astuple(row.equality)
        if is_lossy and tie + numeric + bug:
            num_other = tie + numeric + bug
            differ = f"{count(num_other + same, 'answer')} {'differs' if num_other == 1 else 'differ'}"
            remarks.append(f"{num_other} of {differ} from the reference, as a lossy rule may")
        elif tie + numeric:
            remarks.append(f"{count(tie, 'tie')} and {count(numeric, 'numeric difference')} from the reference")
    if row.waterfall is not None and row.waterfall.other_share > UNEXPLAINED:
        remarks.append(f"{row.waterfall.other_share:.1%} of decode time lies outside the timed phases")
    return remarks


def _learning(row: MethodRow, *, learns_beside: bool) -> list[str]:
    """What learning took, and on which clock that is."""
    if row.learn_s is None or row.speedup_serial is None or row.speedup_total is None:
        return []
    ratio = f"the ratio of totals is {row.speedup_serial:.2f} instead of {row.speedup_total:.2f}"
    if learns_beside:
        return [
            "learnt beside its answers (concurrent): what rounds took of the cores is in its own times; handing over "
            f"to them took {row.learn_s:.1f} s between answers, with which on its clock {ratio}"
        ]
    return [f"learnt for {row.learn_s:.1f} s between answers; with that on its clock (serial) {ratio}"]


def _execution(facts: Facts, label: str) -> list[str]:
    """A row that was not run as its run says, but may be ranked; `eligibility` tells of the others."""
    unsettled = [f"not warm when timing began: {facts.unsettled[label]}"] if label in facts.unsettled else []
    return unsettled + _without_graphs(facts, label)


def _without_graphs(facts: Facts, label: str) -> list[str]:
    if facts.has_too_few_graphs(label) and not facts.is_refused_as_baseline(label):
        return []
    if label not in facts.not_captured:
        if label not in facts.single_steps:
            return []
        found = facts.single_steps[label]
        number = f"{found['num_steps']} of {count(found['num_timed'], 'timed step')}"
        return [f"{number} met no graph and ran operator by operator"]
    why = facts.not_captured[label]["reason"]
    return ["its steps ran operator by operator, they could not be captured" + (f": {why}" if why else "")]


def _own_numbers(facts: Facts, label: str) -> list[str]:
    """A drafter that drafted from no numbers: its text is right all the same, its acceptance says nothing of it."""
    if label not in facts.drafts_not_finite:
        return []
    number = count(facts.drafts_not_finite[label]["num_generations"], "generation")
    return [f"its own numbers were NaN or infinite in {number}, which it drafted from nonsense: try a wider dtype"]


def _answers_s(totals: Row) -> float:
    """End-to-end seconds of all its answers."""
    return float(totals["num_new_tokens"] / totals["tokens_per_s"])


def _serial(learn_s: float | None, totals: Row, speedup_total: float | None) -> float | None:
    """The ratio of totals as if the method had learnt on its own clock."""
    if learn_s is None or speedup_total is None or not totals.get("tokens_per_s"):
        return None
    answers_s = _answers_s(totals)
    return speedup_total * answers_s / (answers_s + learn_s)


def _positions(rows: Sequence[Row]) -> Positions:
    return Positions(
        conditional=tuple(row["conditional"] for row in rows),
        survival=tuple(row["survival"] for row in rows),
        proposed=tuple(row["proposed"] for row in rows),
    )


def _phases(totals: Row) -> PhaseSeconds | None:
    if not totals:
        return None
    names = [field.name for field in dataclasses.fields(PhaseSeconds)]
    return PhaseSeconds(**{name: totals[f"{name}_s"] for name in names})


def _waterfall(water: Row) -> Waterfall | None:
    if not water or water["step_s"] is None or water["ar_s"] is None:
        return None
    return Waterfall(**{field.name: water[field.name] for field in dataclasses.fields(Waterfall)})


def _theory(row: Row | None) -> Theory | None:
    if row is None or None in (row["alpha"], row["gamma"], row["c"]):
        return None
    expected = leviathan(alpha=row["alpha"], gamma=row["gamma"], c=row["c"])
    return Theory(alpha=row["alpha"], gamma=row["gamma"], c=row["c"], expected_speedup=expected)


def _meter(row: Row | None) -> BaselineMeter | None:
    if row is None or row["bytes_per_s"] is None:
        return None
    return BaselineMeter(**{field.name: row[field.name] for field in dataclasses.fields(BaselineMeter)})


def _num_failed(facts: Facts, label: str) -> int:
    return int(facts.failures.get((label, None), {}).get("num_failed", 0))


def _category_rows(facts: Facts, label: str) -> list[CategoryRow]:
    rows = []
    for category, speedups in facts.by_category.items():
        totals = facts.totals.get((label, category))
        if totals is None:
            continue
        is_baseline = label == facts.baseline
        found = speedups.get(label, _UNPAIRED)
        is_paired = found.num_units > 0
        interval = None if is_baseline else found.interval
        verdicts = facts.verdicts[label, category]
        rows.append(
            CategoryRow(
                category=category,
                num_questions=verdicts["num_questions"],
                num_new_tokens=totals["num_new_tokens"],
                tokens_per_s=totals["tokens_per_s"],
                speedup=(1.0 if is_baseline else found.geometric_mean) if is_paired else None,
                speedup_ci=interval,
                speedup_total=(1.0 if is_baseline else found.ratio_of_totals) if is_paired else None,
                acceptance_length=totals["acceptance_length"],
                accuracy=verdicts["accuracy"],
                too_noisy=interval is not None and is_too_noisy(found.geometric_mean, interval),
            )
        )
    return rows
