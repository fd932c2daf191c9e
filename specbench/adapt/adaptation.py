"""The learning side of an adapted draft model: what it observes, which adapter it drafts with, how it goes back.

The drafter feeds it inside steps and never waits for it. Whoever has time between requests calls `gather`, and a round
of learning (`specbench.training.rounds`) may then `swap` adapters. Nothing here can change a text: the acceptance rule
takes whatever was drafted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from specbench.adapt import candidate as candidates
from specbench.adapt.candidate import Candidate
from specbench.adapt.collector import Collector
from specbench.adapt.domains import Domains, domain_of
from specbench.adapt.lora import LoraLayers
from specbench.adapt.memory import Memory
from specbench.adapt.observed import Observed
from specbench.adapt.plan import LearningPlan
from specbench.adapt.versions import AdapterStore
from specbench.lm.cached_lm import CachedLM
from specbench.lm.chain import Picks
from specbench.method import Rule


@dataclass(frozen=True, kw_only=True)
class Live:
    """Tried and accepted positions of one domain, exponentially forgotten, and what they were before the last swap."""

    num_tried: float = 0.0
    num_accepted: float = 0.0
    since_swap: int = 0
    """Tried positions under the adapter in use, and the answers they are of."""
    answers_since: int = 0
    squares: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Of answers, as they weigh: sums of accepted², accepted x tried, tried²."""
    before: float | None = None
    """Moving acceptance under the adapter before it; None: nothing to compare with."""
    before_tried: float = 0.0
    """Positions that it weighs."""
    before_variance: float = 0.0
    """`variance` then."""
    best: float = 0.0
    """Highest moving acceptance since the last round."""

    @property
    def acceptance(self) -> float | None:
        """Accepted of tried, bonus in neither; None before anything was tried."""
        return self.num_accepted / self.num_tried if self.num_tried else None

    @property
    def variance(self) -> float:
        """Of `acceptance`, a ratio of sums over answers: positions of one answer are accepted or not together, and one
        text that repeats itself holds a hundred of them. 0 where there are no answers to tell it by."""
        rate = self.acceptance
        if rate is None:
            return 0.0
        yes, both, all_tried = self.squares
        return max(0.0, yes - 2 * rate * both + rate * rate * all_tried) / self.num_tried**2

    def seen(self, *, tried: int, accepted: int, memory: int) -> Live:
        """An answer more; `memory` positions weigh about as much as all before them."""
        keep = max(0.0, 1.0 - tried / memory)
        found = replace(
            self,
            num_tried=self.num_tried * keep + tried,
            num_accepted=self.num_accepted * keep + accepted,
            since_swap=self.since_swap + tried,
            answers_since=self.answers_since + 1,
            squares=(
                self.squares[0] * keep**2 + accepted**2,
                self.squares[1] * keep**2 + accepted * tried,
                self.squares[2] * keep**2 + tried**2,
            ),
        )
        rate = found.acceptance
        is_settled = found.num_tried >= memory / 2
        return replace(found, best=max(found.best, rate)) if is_settled and rate is not None else found

    def swapped(self) -> Live:
        """Another adapter from here on."""
        return Live(before=self.acceptance, before_tried=self.num_tried, before_variance=self.variance, best=self.best)

    def answered(self) -> Live:
        """A round was begun: a fall of the acceptance so far is no reason for another."""
        return replace(self, best=self.acceptance or 0.0)


@dataclass(frozen=True, kw_only=True)
class InUse:
    """An adapter that is drafted with. number: its version in the store; 0 = the base. weights None: the base."""

    number: int = 0
    weights: Mapping[str, Tensor] | None = None
    parent: InUse | None = None
    """What was drafted with before, for a rollback."""


@dataclass
class Domain:
    """One kind of prompt: its answers, its adapter, how it goes."""

    memory: Memory
    in_use: InUse = field(default_factory=InUse)
    live: Live = field(default_factory=Live)
    candidate: Candidate | None = None
    """What the rounds so far came to; the next one goes on from it, drafted with or not."""
    num_rounds: int = 0
    judged: dict[Observed, tuple[float, float]] = field(default_factory=dict)
    """Expected acceptances of held-out answers under the adapter in use, summed over their positions."""


class Adaptation:
    """Of one drafter. Under `domains=one` all prompts are one domain, ''."""

    def __init__(
        self,
        lm: CachedLM,
        layers: LoraLayers,
        plan: LearningPlan,
        *,
        num_shared: int,
        num_ids: int,
        temperature: float,
        rule: Rule,
        picks: Picks,
        collector: Collector | None,
        domains: Domains = "one",
        capacity: int = 2000,
        seed: int = 0,
        store: AdapterStore | None = None,
    ) -> None:
        """num_ids: of the target. temperature, rule and picks: how answers are drawn and drafts picked and accepted,
        which decides what a held-out acceptance is. collector: None observes
        nothing (opted out). store: where answers and versions are kept; None: in memory alone."""
        self.lm = lm
        self.layers = layers
        self.plan = plan
        self.num_shared = num_shared
        self.num_ids = num_ids
        self.temperature = temperature
        self.rule: Rule = rule
        self.picks: Picks = picks
        self.collector = collector
        self.store = store
        self.split_by = domains
        self.seed = seed
        self.swaps = 0
        """How often other weights came into use; a drafter that sees it change reads its texts again."""
        self._capacity = capacity
        self._domains: dict[str, Domain] = {}
        self.loaded: InUse = InUse()
        """What the layers draft with now."""
        self._current = ""
        """The domain it is of."""
        self._told_warning = False
        self.last: tuple[Observed, ...] = ()
        """What the last `gather` took in, positions seen before included."""
        self.domain("")

    # --- domains -----------------------------------------------------------------------------------------------------

    def domain_of(self, *, category: str = "", system: str = "") -> str:
        """The name of the domain that a prompt belongs to here."""
        return domain_of(self.split_by, category=category, system=system)

    def domain(self, name: str) -> Domain:
        """Made at its first use, from the adapter that all domains begin with."""
        found = self._domains.get(name)
        if found is None:
            first = self._domains.get("")
            found = Domain(memory=Memory(capacity=self._capacity, seed=self.seed))
            if first is not None:
                found.in_use = InUse(number=first.in_use.number, weights=first.in_use.weights)
            self._domains[name] = found
        return found

    def domains(self) -> Sequence[str]:
        """Those seen so far."""
        return list(self._domains)

    # --- adapters ----------------------------------------------------------------------------------------------------

    def use(self, domain: str) -> None:
        """Draft with this domain's adapter. Nothing happens where it is the one in use."""
        wanted = self.domain(domain).in_use
        if wanted.weights is not self.loaded.weights:
            self.layers.set(wanted.weights)
            self.swaps += 1
        self.loaded = wanted
        self._current = domain

    def swap(self, domain: str, in_use: InUse) -> None:
        """From now on this domain drafts with another adapter."""
        found = self.domain(domain)
        found.in_use = in_use
        found.judged = {}
        found.live = found.live.swapped()
        if domain == self._current:
            self.use(domain)

    # --- what was observed -------------------------------------------------------------------------------------------

    def saw(self, domain: str, *, tried: int, accepted: int) -> None:
        """Counts of a finished answer."""
        found = self.domain(domain)
        found.live = found.live.seen(tried=tried, accepted=accepted, memory=self.plan.watch_positions)

    def gather(self) -> int:
        """Between requests: laws of what the steps left behind, into memory and file -> new positions."""
        if self.collector is None:
            return 0
        num = 0
        self.last = tuple(self.collector.settle())
        for observed in self.last:
            new = self.domain(observed.domain).memory.add(observed)
            if new is not None:
                num += new.num_positions
                if self.store is not None:
                    self.store.rows.append(new)
        return num

    def remember(self) -> int:
        """What the store holds from before this process: answers to learn from again and to judge by, and what was
        learnt beyond the versions in use -> answers. Raises EnvironmentFailed where a file is damaged."""
        assert self.store is not None, "there is something to remember"
        num = 0
        for observed in self.store.rows.read():
            num += self.domain(observed.domain if self.split_by != "one" else "").memory.add(observed) is not None
        for name, domain in self._domains.items():
            domain.memory.learnt()
            learnt = candidates.load(
                self.store.folder, name, base_hash=self.lm.weights_hash, began=domain.in_use.number
            )
            if learnt is not None and candidates.fits(learnt, self.layers.weights(), alpha=self.layers.shape.alpha):
                domain.candidate = learnt
        return num

    def keep_candidates(self) -> None:
        """For `remember`. Raises EnvironmentFailed where the disk refuses."""
        if self.store is not None:
            for name, domain in self._domains.items():
                candidates.save(self.store.folder, name, domain.candidate, base_hash=self.lm.weights_hash)

    def warning(self) -> str:
        """Why answers are no longer kept on disk; told once."""
        if self.store is None or self._told_warning or not self.store.rows.warning:
            return ""
        self._told_warning = True
        return self.store.rows.warning

    # --- back to a known state ---------------------------------------------------------------------------------------

    def snapshot(self) -> object:
        """Everything that learning changes. What is on disk is a record and stays."""
        return {name: _copy(domain) for name, domain in self._domains.items()}

    def restore(self, snapshot: object) -> None:
        """Back to `snapshot`, bit by bit; what the steps left behind since is forgotten."""
        assert isinstance(snapshot, dict), "a snapshot of this adaptation"
        known: dict[str, Any] = snapshot
        self._domains = {name: _copy(domain) for name, domain in known.items()}
        if self.collector is not None:
            self.collector.forget()
        self.use("")


def _copy(domain: Domain) -> Domain:
    return Domain(
        memory=domain.memory.copy(),
        in_use=domain.in_use,
        live=domain.live,
        candidate=domain.candidate,
        num_rounds=domain.num_rounds,
        judged=dict(domain.judged),
    )
