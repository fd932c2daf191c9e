"""`specbench adapt collect`: answers of a suite decoded for what they show, observed into an adapter store."""

from __future__ import annotations

from dataclasses import dataclass

from specbench import suite
from specbench.adapt.observed import prompt_digest
from specbench.adapt.versions import AdapterStore
from specbench.bench.asked import refuse_system_domains
from specbench.bench.competitors import competitors
from specbench.bench.contestants import make_contestant
from specbench.bench.defaults import with_defaults
from specbench.bench.request import Progress, RunRequest
from specbench.bench.session import Session
from specbench.errors import UsageError

METHOD = "adaptive_lora"


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What a collection came to."""

    num_answers: int
    num_skipped: int
    """Questions whose prompt the store holds already: an interrupted collection goes on where it stopped."""
    num_positions: int
    domains: tuple[str, ...]
    """Of all answers of the store, '' where they are not told apart: a round learns from those of one."""
    warning: str
    """Why it stopped keeping; empty where it kept everything."""


def collect(request: RunRequest, store: AdapterStore, progress: Progress) -> Collected:
    """Decode first turns of a suite once, in its order, with the store's active adapter; nothing is timed or learnt.

    request: its only method is METHOD with `store` set. Raises SpecbenchError as a run does.
    """
    assert request.suite is not None
    loaded = suite.load_suite(request.suite, data_dirs=request.data)
    filled = with_defaults(request, loaded.defaults).request
    if filled.limit is not None:
        assert filled.seed is not None
        loaded = loaded.limited(filled.limit, seed=filled.seed)
    chosen = next(each for each in competitors(filled) if each.card.name == METHOD)
    refuse_system_domains([chosen])
    with store.writing():
        session = Session(filled, loaded)
        drafter = make_contestant(session, chosen).drafter
        adaptation = drafter.adaptation
        if adaptation is None:
            raise UsageError("nothing is collected with collect=false", where=f"{METHOD}.collect", try_="leave it out")
        adaptation.store = store
        known: set[bytes] = set()
        domains: set[str] = set()
        for observed in store.rows.read():
            known.add(observed.prompt_digest())
            domains.add(observed.domain)
        num_answers = num_skipped = num_positions = 0
        progress.plan(num_groups=len(loaded.questions), num_done=0, title=f"collect {loaded.name}")
        for question in loaded.questions:
            cell = session.cell(question, 0)
            if prompt_digest(cell.prompt) in known:
                num_skipped += 1
                continue
            result = session.generate(drafter, [cell], with_reference=False)
            num_positions += adaptation.gather()
            domains.update(each.domain for each in adaptation.last)
            num_answers += 1
            progress.group_done(
                method=METHOD,
                question=question.question_id,
                seconds=result.total_s,
                num_tokens=len(result.generations[0].tokens),
                failed=False,
            )
            if store.rows.warning:
                break
    return Collected(
        num_answers=num_answers,
        num_skipped=num_skipped,
        num_positions=num_positions,
        domains=tuple(sorted(domains)),
        warning=store.rows.warning,
    )
