"""What the journal says of one group: events made from the plan, the prompts and the engine's result. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from specbench.bench.equality import Verdict
from specbench.bench.reference import ReferenceAnswer
from specbench.bench.session import Cell, WarmUp
from specbench.engine.answer import Generation, GroupResult
from specbench.events import GenerationFailed, GenerationFinished, GenerationStarted, Measured, ReferenceFinished
from specbench.manifest import GroupRecord


def _labels(group: GroupRecord, row: int, *, category: str) -> dict[str, Any]:
    return {
        "group": group.group,
        "row": row,
        "method": group.method,
        "question_id": group.question_ids[row],
        "category": category,
        "turn": group.turn,
        "repeat": group.repeat,
    }


def referred(question_id: str, turn: int, answer: ReferenceAnswer) -> ReferenceFinished:
    """What the target alone wrote; of an answer that has no error."""
    return ReferenceFinished(
        question_id=question_id,
        turn=turn,
        num_prompt_tokens=len(answer.prompt),
        tokens=answer.tokens,
        text=answer.text,
        finish_reason=answer.finish_reason,
    )


def warmed_up(label: str, warmed: Sequence[WarmUp]) -> Measured:
    """Over all sizes of its groups; `detail` is empty where step time settled at each."""
    detail = "; ".join(each.unsettled for each in warmed if each.unsettled)
    seconds = sum(each.seconds for each in warmed)
    return Measured(name="warm_up_s", value=seconds, unit="s", method=label, detail=detail)


def started(group: GroupRecord, row: int, cell: Cell) -> GenerationStarted:
    """To be written just before the timed region opens: it takes the time."""
    labels = _labels(group, row, category=cell.question.category)
    return GenerationStarted(**labels, num_prompt_tokens=len(cell.prompt), began_s=time.time())


def failed(group: GroupRecord, row: int, *, category: str, error: str) -> GenerationFailed:
    """The question has no number, but a reason."""
    return GenerationFailed(**_labels(group, row, category=category), error=error)


def finished(
    group: GroupRecord,
    row: int,
    cell: Cell,
    generation: Generation,
    *,
    result: GroupResult,
    text: str,
    verdict: Verdict | None,
    correct: bool | None,
) -> GenerationFinished:
    """The group's seconds stand on row 0, so that plain sums are right; verdict: None where nothing is promised."""
    share = 1.0 if row == 0 else 0.0
    return GenerationFinished(
        **_labels(group, row, category=cell.question.category),
        num_prompt_tokens=len(cell.prompt),
        tokens=generation.tokens,
        text=text,
        finish_reason=generation.finish_reason,
        num_steps=len(generation.steps),
        prefill_s=result.prefill_s * share,
        decode_s=result.decode_s * share,
        total_s=result.total_s * share,
        draft_s=result.draft_s * share,
        verify_s=result.verify_s * share,
        accept_s=result.accept_s * share,
        commit_s=result.commit_s * share,
        journal_s=result.journal_s * share,
        equality=None if verdict is None else verdict.verdict,
        first_difference=None if verdict is None else verdict.first_difference,
        gap=None if verdict is None else verdict.gap,
        correct=correct,
    )
