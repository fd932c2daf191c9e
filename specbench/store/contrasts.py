"""What one option is worth: competitors of a run that differ in one option only, question by question. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from specbench.metrics import Bootstrap, Interval, log_ratio_intervals, ratio_interval
from specbench.store.facts import Facts, Row
from specbench.store.pairs import PairTable
from specbench.store.records import Contrast


def contrasts(facts: Facts) -> list[Contrast]:
    """Every competitor beside the first one in the plan that has the same method and all but one option in common:
    `--grid redrafter.draft=plain,shared-noise` says what the noise gains over `plain`."""
    found: list[Contrast] = []
    options = {row["method"]: _options(row) for row in facts.methods}
    for place, row in enumerate(facts.methods):
        for base in facts.methods[:place]:
            if base["name"] != row["name"] or row["is_control"] or base["is_control"]:
                continue
            differing = _differing(options[base["method"]], options[row["method"]])
            if len(differing) != 1:
                continue
            (name,) = differing
            if any(each.method == row["method"] and each.option == name for each in found):
                continue  # against the first value of the option alone
            pair = facts.pairs.select(methods=_columns(facts.pairs, [base["method"], row["method"]]))
            made = _contrast(facts, pair, name, options[base["method"]].get(name), options[row["method"]].get(name))
            if made is not None:
                found.append(made)
    return found


def _options(row: Row) -> dict[str, object]:
    options = row["options"]
    found = json.loads(options) if isinstance(options, str) else options
    assert isinstance(found, dict)
    return found


def _differing(one: dict[str, object], other: dict[str, object]) -> list[str]:
    return [name for name in dict.fromkeys((*one, *other)) if one.get(name) != other.get(name)]


def _columns(table: PairTable, methods: Sequence[str]) -> list[int]:
    return [table.methods.index(method) for method in methods]


def _contrast(facts: Facts, pair: PairTable, option: str, base_value: object, value: object) -> Contrast | None:
    """pair: the two columns, base first. None where no unit was finished by both."""
    both = np.flatnonzero(~np.isnan(pair.seconds_UK).any(axis=1))
    if not both.size:
        return None
    pair = pair.select(units=[int(unit) for unit in both])
    bootstrap = facts.bootstrap_of(len(pair.units))
    logs_UK = pair.logs_UK()
    speed_ci = log_ratio_intervals(logs_UK[:, ::-1], bootstrap)[0, 1]
    return Contrast(
        method=pair.methods[1],
        base=pair.methods[0],
        option=option,
        value=_word(value),
        base_value=_word(base_value),
        num_units=len(pair.units),
        acceptance_ratio=_acceptance_ratio(pair),
        acceptance_ratio_ci=_acceptance_interval(pair, bootstrap) if len(pair.units) > 1 else None,
        speed_ratio=float(np.exp((logs_UK[:, 1] - logs_UK[:, 0]).mean())),
        speed_ratio_ci=Interval(*map(float, np.exp(speed_ci))) if speed_ci else None,
    )


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _acceptance_ratio(pair: PairTable) -> float | None:
    """tau of the second column / tau of the first, both pooled over steps; None where one never stepped."""
    tokens_K, steps_K = pair.decode_tokens_UK.sum(axis=0), pair.num_steps_UK.sum(axis=0)
    if not (tokens_K.all() and steps_K.all()):
        return None
    return float((tokens_K[1] / steps_K[1]) / (tokens_K[0] / steps_K[0]))


def _acceptance_interval(pair: PairTable, bootstrap: Bootstrap) -> Interval | None:
    """A ratio of totals, as tau is pooled; resampled by unit, both columns together."""
    tokens_RK, steps_RK = bootstrap.sums(pair.decode_tokens_UK), bootstrap.sums(pair.num_steps_UK)
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample of answers without a decode step has no tau
        return ratio_interval((tokens_RK[:, 1] / steps_RK[:, 1]) / (tokens_RK[:, 0] / steps_RK[:, 0]), len(pair.units))
