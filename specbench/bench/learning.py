"""Methods that learn between requests: where their files lie, when they learn, and what it cost.

A round of learning takes cores that answers could have had. `serial`: rounds stand between answers, their seconds
beside the run's as `learn_s`, and every table shows the speed-up once without them and once with them on the method's
clock. `concurrent`: a round runs in a process beside the method's own answers, whose times then hold what it takes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from specbench.adapt.observed import Observed
from specbench.adapt.versions import AdapterStore
from specbench.bench.contestants import Contestant
from specbench.errors import EnvironmentFailed
from specbench.events import AdapterRound, Measured
from specbench.store.journal import Journal
from specbench.store.observed import ObservedAnswer, ObservedLog

if TYPE_CHECKING:
    from specbench.bench.round_process import Learner, RoundProcess
    from specbench.training.rounds import Round


class _Say(Protocol):
    def __call__(self, text: str, /) -> None: ...


@contextmanager
def adapter_stores(contestants: Sequence[Contestant], folder: Path) -> Iterator[None]:
    """Gives every method that learns a store of its own beside the journal, unless one was named, and holds it. Raises
    UsageError where another process adapts in it."""
    with ExitStack() as stack:
        for contestant in contestants:
            adaptation = contestant.drafter.adaptation
            if adaptation is None:
                continue
            if adaptation.store is None:
                name = re.sub(r"[^A-Za-z0-9_.=-]+", "_", contestant.competitor.label)
                adaptation.store = AdapterStore(
                    folder / "adapters" / name, max_bytes=int(contestant.competitor.options["max_mb"]) << 20
                )
            stack.enter_context(adaptation.store.writing())
        yield


class Learning:
    """Of all methods of a run."""

    def __init__(self, say: _Say, observed: ObservedLog) -> None:
        """observed: where positions are recorded; answers and laws go to each method's own store."""
        self._say = say
        self._observed = observed
        self._told_warning = False
        self._beside: dict[str, RoundProcess] = {}
        self._learners: dict[str, Learner] = {}

    @contextmanager
    def answering(self, contestant: Contestant) -> Iterator[None]:
        """Around a timed group of this method: its concurrent round, and no other's, may run."""
        process = self._beside.get(contestant.competitor.label)
        if process is None:
            yield
            return
        process.go_on()
        try:
            yield
        finally:
            process.pause()

    def between(self, contestant: Contestant, group: int, journal: Journal, *, is_regrown: bool = False) -> None:
        """After a group: what was observed is taken in, and learnt where it is due. is_regrown: the stream of a resumed
        run until its interruption, whose rounds are serial, and whose seconds and positions were told before."""
        adaptation = contestant.drafter.adaptation
        if adaptation is None:
            return
        from specbench.training.rounds import between_requests  # accelerate, only where something learns

        label, device = contestant.competitor.label, adaptation.lm.device
        is_concurrent = contestant.competitor.choice.options.get("learning") == "concurrent" and not is_regrown
        in_use = {name: adaptation.domain(name).in_use.number for name in adaptation.domains()}
        start = time.perf_counter()
        rounds = self._beside_answers(contestant) if is_concurrent else between_requests(adaptation)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
        warning = adaptation.warning()
        if warning:
            self._say(f"{label}: {warning}")
        if not is_regrown:
            journal.write(Measured(name="learn_s", value=seconds, unit="s", method=label))
            self._record(group, adaptation.last)
        for each in rounds:
            if not is_regrown:
                domain = f" ({each.domain})" if each.domain else ""
                self._say(f"{label}{domain}: {each.outcome}: {each.why}; {each.num_steps} steps, {each.seconds:.1f} s")
            journal.write(
                AdapterRound(
                    group=group,
                    method=label,
                    domain=each.domain,
                    outcome=each.outcome,
                    why=each.why,
                    version=each.version,
                    # A domain that was met for the first time began with the one that all begin with.
                    previous=in_use.get(each.domain, in_use[""]),
                    seconds=each.seconds,
                    num_steps=each.num_steps,
                    num_positions=each.num_positions,
                    num_held_out=each.num_held_out,
                    acceptance_before=each.before,
                    acceptance_after=each.after,
                    gain_low=None if each.gain is None else each.gain.low,
                    gain_high=None if each.gain is None else each.gain.high,
                    is_concurrent=is_concurrent,
                    is_regrown=is_regrown,
                    width_before=each.width_before,
                    width_after=each.width_after,
                )
            )
            in_use[each.domain] = each.version

    def _record(self, group: int, answers: Sequence[Observed]) -> None:
        self._observed.append(
            [
                ObservedAnswer(
                    group=group,
                    row=each.row,
                    domain=each.domain,
                    version=each.version,
                    position=each.position_N.tolist(),
                    depth=each.depth_N.tolist(),
                    accepted=each.accepted_N.int().tolist(),
                    overlap=each.overlap_N.tolist(),
                )
                for each in answers
            ]
        )
        if self._observed.warning and not self._told_warning:
            self._told_warning = True
            self._say(self._observed.warning)

    def _beside_answers(self, contestant: Contestant) -> list[Round]:
        """One process a method: the round that ended, and the next one begun where it is due."""
        from specbench.bench.round_process import RoundProcess
        from specbench.training.rounds import dropped, due, rolled_back

        adaptation, choice = contestant.drafter.adaptation, contestant.competitor.choice
        assert adaptation is not None
        label, found = contestant.competitor.label, []
        adaptation.gather()
        process = self._beside.get(label)
        if process is not None and process.is_over:
            found.append(process.finish())
            del self._beside[label]
        for name in adaptation.domains():
            back = rolled_back(adaptation, name)
            if back is not None:
                found.append(back)
            if label not in self._beside and due(adaptation, name):
                try:
                    self._beside[label] = RoundProcess(adaptation, name, choice.options, self._learner(label))
                except (EnvironmentFailed, OSError) as error:  # a full disk ends a round, not the run
                    found.append(dropped(name, adaptation.domain(name), getattr(error, "what", str(error))))
                # A round that could not even begin counts as one, or a full disk would be tried after every answer.
                adaptation.domain(name).memory.learnt()
                adaptation.domain(name).live = adaptation.domain(name).live.answered()
        return found

    def _learner(self, label: str) -> Learner:
        """The method's process: begun with its first round, and anew where it died."""
        from specbench.bench.round_process import Learner

        learner = self._learners.get(label)
        if learner is None or learner.is_dead:
            self._end(label)
            learner = self._learners[label] = Learner()
        return learner

    def _end(self, label: str) -> None:
        """A round under way is over without a word, its process gone."""
        learner, process = self._learners.pop(label, None), self._beside.pop(label, None)
        if learner is not None:
            learner.kill()
        if process is not None:
            process.forget()

    def forget(self, contestant: Contestant) -> None:
        """The method goes back to its beginning: a round under way is of a stream that is no more."""
        self._end(contestant.competitor.label)

    def close(self) -> None:
        """No process outlives the run."""
        for label in list(self._learners):
            self._end(label)
