"""`--dry-run`: what would be measured, and for how long at most."""

from __future__ import annotations

from collections.abc import Sequence

from specbench.bench.contestants import Contestant, plan_of
from specbench.bench.request import PlanSummary, RunOutcome
from specbench.bench.session import Session


def dry_run(session: Session, contestants: Sequence[Contestant]) -> RunOutcome:
    """The plan, with the time it would take at most, from a few measured target steps."""
    groups = plan_of(session, contestants)
    cell = session.cell(session.shortest(), 0)
    baseline = contestants[0].drafter
    session.warm_up(baseline, [cell], with_reference=False)
    was, session.max_new_tokens = session.max_new_tokens, min(session.max_new_tokens, 24)
    result = session.generate(baseline, [cell], with_reference=False)
    session.max_new_tokens = was
    num_tokens = max(len(result.generations[0].tokens) - 1, 1)
    step_s = result.decode_s / num_tokens
    request = session.request
    assert request.repeats is not None
    num_references = sum(len(question.turns) for question in session.suite.questions)
    seconds = (len(groups) + num_references) * (result.prefill_s + step_s * session.max_new_tokens)
    plan = PlanSummary(
        suite=session.suite.name,
        target=request.target or "",
        device=str(session.lm.device),
        dtype=str(session.lm.dtype).removeprefix("torch."),
        quantisation=session.lm.quantisation,
        methods=tuple(contestant.competitor.label for contestant in contestants),
        num_questions=len(session.suite.questions),
        num_repeats=request.repeats,
        num_groups=len(groups),
        max_new_tokens=session.max_new_tokens,
        estimated_s=seconds,
        estimate_basis=(
            f"at most: every answer {session.max_new_tokens} tokens long, {step_s * 1e3:.2f} ms a token as measured now"
        ),
    )
    return RunOutcome(run_id="", state="planned", summary=None, plan=plan)
