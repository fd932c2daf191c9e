"""What a run is asked to do, settled as far as it can be without a target: suite, defaults, methods, contradictions.

No torch: whatever is refused here is refused at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specbench import suite
from specbench.bench import resume
from specbench.bench.competitors import Competitor, competitors
from specbench.bench.defaults import with_defaults
from specbench.bench.request import Progress, RunRequest
from specbench.errors import UsageError
from specbench.manifest import Manifest
from specbench.suite import LoadedSuite


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request with nothing left open, its questions and its competitors."""

    request: RunRequest
    suite: LoadedSuite
    competitors: tuple[Competitor, ...]
    resumed: Manifest | None
    """Of the run that goes on; None: a new one."""


def ask(request: RunRequest, progress: Progress) -> Asked:
    """Fill the request, read its suite, choose its methods. Raises SpecbenchError for what no run can be made of."""
    resumed: Manifest | None = None
    if request.resume is not None:
        resumed = resume.manifest_to_resume(request.store, request.resume)
        request = resume.request_from(resumed, request)
    assert request.suite is not None, "RunRequest demands a suite or a run to resume"
    loaded = suite.load_suite(request.suite, data_dirs=request.data)
    filled = with_defaults(request, loaded.defaults)
    request = filled.request
    if request.rule == "typical" and request.temperature == 0:
        raise UsageError("rule 'typical' needs a temperature above 0", try_="--temperature 0.7, or --rule coupled")
    if request.limit is not None:
        assert request.seed is not None
        loaded = loaded.limited(request.limit, seed=request.seed)
    for note in (*loaded.notes, *filled.left_out):
        progress.say(note)
    chosen = competitors(request)
    if resumed is None:
        refuse_system_domains(chosen)
    else:
        chosen = resume.as_named(chosen, resumed)
    return Asked(request=request, suite=loaded, competitors=chosen, resumed=resumed)


def refuse_system_domains(chosen: Sequence[Competitor]) -> None:
    """Raises UsageError where an adapter per system prompt is asked for: a suite's questions have none, so that all of
    them would share one without a word."""
    for competitor in chosen:
        for name, value in competitor.options.items():
            if value == "system" and name.rpartition(".")[2] == "domains":
                method = name.rpartition(".")[0] or competitor.card.name
                raise UsageError(
                    f"{method}.domains=system keeps an adapter per system prompt, and no question of a suite has one",
                    where=f"--set {method}.domains=system",
                    try_=f"--set {method}.domains=category; system prompts are those of `specbench chat`",
                )
