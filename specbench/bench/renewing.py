"""A reference that an earlier run kept, and that an answer of this run differs from: held against the target itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from specbench.bench import entries
from specbench.bench.competitors import BASELINE
from specbench.bench.session import Cell, Session
from specbench.manifest import GroupRecord
from specbench.method import Drafter
from specbench.store.journal import Journal


def renew(
    session: Session,
    baseline: Drafter,
    journal: Journal,
    group: GroupRecord,
    cell: Cell,
    tokens: Sequence[int],
    *,
    say: Callable[[str], None],
) -> None:
    """Before an answer is judged: writes the reference anew where it is a kept one that does not hold here.

    In the first repeat only, when no later turn has been asked yet: those continue it. Untimed, between two groups.
    Under rules that promise no equality only plain decoding is a reason for doubt.
    """
    promises = session.engine.rule == "coupled" or (session.engine.rule == "rejection" and session.sampling.is_greedy)
    if group.repeat or not (promises or group.method == BASELINE):
        return
    renewed = session.renewed_references(baseline, cell, tokens)
    for where, answer in renewed.items():
        if not answer.error:
            journal.write(entries.referred(*where, answer))
    if renewed:
        place = f"question {cell.question.question_id}, turn {cell.turn + 1}"
        say(f"{place}: the kept reference is not what the target writes here; it is written anew")
