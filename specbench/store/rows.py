"""From the views' facts to one method's row: every field but its rank, and the reasons why it has none. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from specbench.metrics import Interval, Speedup, efficiency_interval, is_implausible, is_too_noisy, leviathan
from specbench.store.control import failure
from specbench.store.facts import Facts, Row
from specbench.store.records import (
    BaselineMeter,
    CategoryRow,
    Equality,
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
    label = method["method"]
    totals = facts.totals.get((label, None), {})
    water = facts.waterfall.get((label, None), {})
    verdicts = facts.verdicts.get((label, None), {})
    is_baseline = label == facts.baseline
    speedup = facts.speedups.get(label, _UNPAIRED)
    is_paired = speedup.num_units > 0
    equality = _equality(verdicts)
    row = MethodRow(
        method=label,
        name=method["name"],
        title=method["title"],
        kind=method["kind"],
        is_control=method["is_control"],
        num_parameters=method["num_parameters"],
        num_questions=verdicts.get("num_questions", 0),
        num_repeats=totals.get("num_repeats", 0),
        num_failed=_num_failed(facts, label),
        num_new_tokens=totals.get("num_new_tokens", 0),
        num_steps=totals.get("num_steps", 0),
        tokens_per_s=totals.get("tokens_per_s"),
        speedup=(1.0 if is_baseline else speedup.geometric_mean) if is_paired else None,
        speedup_ci=None if is_baseline else speedup.interval,
        speedup_total=(1.0 if is_baseline else speedup.ratio_of_totals) if is_paired else None,
        speedup_decode=1.0 if is_baseline and is_paired else water.get("speedup_decode"),
        acceptance_length=totals.get("acceptance_length"),
        acceptance_length_macro=facts.macro.get(label, {}).get("acceptance_length_macro"),
        acceptance_by_position=_positions(facts.positions.get(label, [])),
        learn_s=facts.learn_s.get(label),
        speedup_serial=_serial(facts.learn_s.get(label), totals, speedup.ratio_of_totals if is_paired else None),
        efficiency=water.get("efficiency"),
        efficiency_ci=None if is_baseline else _efficiency_interval(facts, label),
        phase_s=_phases(totals),
        waterfall=_waterfall(water),
        theory=_theory(facts.theory.get(label)),
        meter=_meter(facts.meter.get(label)),
        joules_per_token=facts.energy.get(label, {}).get("joules_per_token"),
        equality=equality,
        accuracy=verdicts.get("accuracy"),
        lossless=not _is_lossy(facts, method["kind"]) and (equality is None or equality.bug == 0),
        carry=facts.run["carry"],
        ranked=False,
        rank=None,
        tied_with=(),
        by_category=tuple(_category_rows(facts, label)),
        notes=(),
    )
    reasons = _reasons_not_to_rank(facts, row, speedup, is_competitor=method["is_ranked"])
    noise = _noise(row)
    # Beside methods that may not be ranked there is nothing to rank the baseline against either.
    can_rank = not reasons and facts.run["rule"] != "typical"
    failed_control = failure(facts.control) if can_rank and not noise else ""
    if failed_control:
        reasons = [f"control failed: {failed_control} in this run, so nothing in it is ranked"]
    return dataclasses.replace(
        row,
        ranked=can_rank and not noise and not failed_control,
        control_failed=bool(failed_control),
        too_noisy=can_rank and bool(noise),
        notes=(
            *reasons,
            *noise,
            *_remarks(row, is_lossy=_is_lossy(facts, row.kind)),
            *_learning(row, learns_beside=label in facts.learn_beside),
            *_execution(facts, label),
            *method["notes"],
        ),
    )


def _is_lossy(facts: Facts, kind: str) -> bool:
    """The baseline drafts nothing, so that no rule can take anything from it."""
    return facts.run["rule"] == "typical" and kind != "baseline"


def _reasons_not_to_rank(facts: Facts, row: MethodRow, speedup: Speedup, *, is_competitor: bool) -> list[str]:
    """Those that more questions or repeats would not remove."""
    reasons = []
    is_lossy = _is_lossy(facts, row.kind)
    if row.is_control:
        reasons.append("A/A control: the baseline under a second name, shown and not ranked")
    elif not is_competitor:
        reasons.append("not ranked: a control, not a competitor")
    if is_lossy:
        reasons.append("not ranked: the acceptance rule `typical` is lossy")
    elif row.equality is not None and row.equality.bug:
        differ = "1 answer differs" if row.equality.bug == 1 else f"{row.equality.bug} answers differ"
        reasons.append(f"not ranked: {differ} from the reference beyond rounding (bug)")
    if speedup.num_units == 0:
        reasons.append("not ranked: nothing that the baseline finished as well")
    elif speedup.num_units == 1:
        reasons.append(f"not ranked: one {unit(facts.run['batch_size'])} gives no interval")
    if row.efficiency_ci is not None and is_implausible(row.efficiency_ci):
        low, high = row.efficiency_ci
        reasons.append(
            f"implausible: efficiency {low:.2f} to {high:.2f}, but one engine cannot gain more than it accepts"
        )
    if facts.is_slow_baseline():
        share = facts.meter[facts.baseline or ""]["share"]
        reasons.append(f"not ranked: the baseline is slow, {share:.0%} of the device's measured bandwidth")
    return reasons


def _noise(row: MethodRow) -> tuple[str, ...]:
    if row.speedup is None or row.speedup_ci is None or not is_too_noisy(row.speedup, row.speedup_ci):
        return ()
    half = (row.speedup_ci.high - row.speedup_ci.low) / 2 / row.speedup
    return (f"too noisy here: the interval is ±{half:.0%} wide",)


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
    """A row that was not run as its run says."""
    if label not in facts.not_captured:
        if label not in facts.single_steps:
            return []
        number = count(facts.single_steps[label]["num_steps"], "timed step")
        return [f"{number} met no graph and ran operator by operator"]
    why = facts.not_captured[label]["reason"]
    return ["its steps ran operator by operator, they could not be captured" + (f": {why}" if why else "")]


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


def _equality(verdicts: Row) -> Equality | None:
    if not verdicts.get("num_judged"):
        return None
    return Equality(**{field.name: verdicts[field.name] for field in dataclasses.fields(Equality)})


def _num_failed(facts: Facts, label: str) -> int:
    return int(facts.failures.get((label, None), {}).get("num_failed", 0))


def _efficiency_interval(facts: Facts, label: str) -> Interval | None:
    table = facts.pairs.of_method(label)
    if len(table.units) < 2:
        return None
    return efficiency_interval(
        seconds_U=table.decode_s_UK[:, 0],
        num_steps_U=table.num_steps_UK[:, 0],
        base_seconds_U=table.base_decode_s_UK[:, 0],
        base_tokens_U=table.base_decode_tokens_UK[:, 0],
        bootstrap=facts.bootstrap_of(len(table.units)),
    )


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
