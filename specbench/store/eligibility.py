"""Whether a row may be ranked, and if not, why. The table, `results compare` and `results ls` ask here. No torch."""

from __future__ import annotations

from dataclasses import dataclass, fields

from specbench.metrics import is_implausible, is_too_noisy
from specbench.store.control import failure
from specbench.store.facts import Facts, Row
from specbench.store.records import Equality
from specbench.store.words import unit


@dataclass(frozen=True, kw_only=True)
class Eligibility:
    """Of one method of a run."""

    ranked: bool
    control_failed: bool
    """The run's A/A control failed, and nothing of the row's own keeps it from a rank but perhaps its noise."""
    too_noisy: bool
    """Nothing but the width of its interval does."""
    reasons: tuple[str, ...]
    """Sentences of which each begins with its class and a colon: `not ranked: …`, `too noisy here: …`."""


def eligibility_of(facts: Facts, method: Row) -> Eligibility:
    """method: its row of `methods`."""
    own = _own_reasons(facts, method)
    noise = _noise(facts, method["method"])
    # Beside methods that may not be ranked there is nothing to rank the baseline against either.
    can_rank = not own and facts.run["rule"] != "typical"
    failed = failure(facts.control) if can_rank else ""
    if failed:
        own = [f"control failed: {failed} in this run, so nothing in it is ranked"]
    return Eligibility(
        ranked=can_rank and not noise and not failed,
        control_failed=bool(failed),
        too_noisy=can_rank and bool(noise) and not failed,
        reasons=(*own, *noise),
    )


def equality_of(verdicts: Row) -> Equality | None:
    """verdicts: the method's row of that view; None where nothing was judged."""
    if not verdicts.get("num_judged"):
        return None
    return Equality(**{field.name: verdicts[field.name] for field in fields(Equality)})


def _own_reasons(facts: Facts, method: Row) -> list[str]:
    """Those that more questions or repeats would not remove."""
    label = method["method"]
    reasons = []
    if method["is_control"]:
        reasons.append("A/A control: the baseline under a second name, shown and not ranked")
    elif not method["is_ranked"]:
        reasons.append("not ranked: a control, not a competitor")
    equality = equality_of(facts.verdicts.get((label, None), {}))
    if facts.is_lossy(method["kind"]):
        reasons.append("not ranked: the acceptance rule `typical` is lossy")
    elif equality is not None and equality.bug:
        differ = "1 answer differs" if equality.bug == 1 else f"{equality.bug} answers differ"
        reasons.append(f"not ranked: {differ} from the reference beyond rounding (bug)")
    num_units = facts.speedups[label].num_units if label in facts.speedups else 0
    noun = unit(facts.run["batch_size"])
    if num_units == 0 and (label, None) in facts.totals and facts.unpaired.get(label, {}).get("num_units"):
        reasons.append(f"not ranked: it finished no {noun} as far as the baseline did")
    elif num_units == 0:
        reasons.append("not ranked: nothing that the baseline finished as well")
    elif num_units == 1:
        reasons.append(f"not ranked: one {noun} gives no interval")
    efficiency = facts.efficiency_ci(label)
    if efficiency is not None and is_implausible(efficiency):
        low, high = efficiency
        reasons.append(
            f"implausible: efficiency {low:.2f} to {high:.2f}, but one engine cannot gain more than it accepts"
        )
    if facts.is_slow_baseline():
        share = facts.meter[facts.baseline or ""]["share"]
        reasons.append(f"not ranked: the baseline is slow, {share:.0%} of the device's measured bandwidth")
    return [*reasons, *_graphs(facts, label)]


def _graphs(facts: Facts, label: str) -> list[str]:
    """Steps that ran operator by operator where steps are graphs: a speed-up would compare two ways of running."""
    reasons = []
    if facts.is_refused_as_baseline(label):
        return []
    if facts.has_too_few_graphs(label):
        found = facts.single_steps[label]
        if label in facts.not_captured:
            why = facts.not_captured[label]["reason"]
            said = "its steps could not be captured and ran operator by operator" + (f": {why}" if why else "")
        else:
            num = f"{found['num_steps']} of its {found['num_timed']} timed steps"
            said = f"{num} met no graph and ran operator by operator"
        reasons.append(f"not ranked: {said} (with --graphs off all steps of a run do)")
    baseline = facts.baseline
    if baseline is not None and label != baseline and facts.has_too_few_graphs(baseline):
        found = facts.single_steps[baseline]
        share = f"{found['num_steps']} of its {found['num_timed']} timed steps"
        reasons.append(f"not ranked: the baseline ran operator by operator in {share}")
    return reasons


def _noise(facts: Facts, label: str) -> tuple[str, ...]:
    found = facts.speedups.get(label)
    if label == facts.baseline or found is None or found.interval is None:
        return ()
    if not is_too_noisy(found.geometric_mean, found.interval):
        return ()
    half = (found.interval.high - found.interval.low) / 2 / found.geometric_mean
    return (f"too noisy here: the interval is ±{half:.0%} wide",)
