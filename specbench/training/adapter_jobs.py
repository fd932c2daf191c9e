"""Learning from an adapter store without a target: its answers hold the target's laws, so the draft model is enough."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from specbench.adapt import adapter as files
from specbench.adapt import candidate as candidates
from specbench.adapt.adaptation import Adaptation, InUse
from specbench.adapt.domains import NO_DOMAIN
from specbench.adapt.lora import LoraLayers, LoraShape
from specbench.adapt.plan import LearningPlan
from specbench.adapt.versions import AdapterStore
from specbench.errors import UsageError, did_you_mean
from specbench.lm.cached_lm import CachedLM
from specbench.lm.load import load_lm, pick_device, pick_dtype
from specbench.method import Rule
from specbench.store.words import count
from specbench.training.rounds import Round, learn


@dataclass(frozen=True, kw_only=True)
class StoreStats:
    """What an adapter store's answers show, per domain and depth. Counts; a ratio is made where it is shown."""

    num_answers: int
    num_held_out: int
    num_positions: int
    num_bytes: int
    accepted_at: tuple[int, ...]
    """Positions accepted, by depth (index 0 = depth 1)."""
    tried_at: tuple[int, ...]
    overlap_sum: float
    """Of sum min(p, q) over positions."""
    tail_sum: float
    """Of the target's mass outside the kept entries: how much of it the laws leave open."""
    by_domain: Mapping[str, tuple[int, int]]
    """Accepted and tried positions."""


def stats_of(store: AdapterStore) -> StoreStats:
    """Read every answer once. Raises EnvironmentFailed for a damaged file."""
    from specbench.adapt.memory import is_held_out

    num = held = positions = 0
    accepted_at: list[int] = []
    tried_at: list[int] = []
    overlap_sum = tail_sum = 0.0
    by_domain: dict[str, tuple[int, int]] = {}
    for observed in store.rows.read():
        num += 1
        held += is_held_out(observed)
        positions += observed.num_positions
        accepted = observed.accepted_N
        for depth in range(1, int(observed.depth_N.max()) + 1):
            if depth > len(tried_at):
                tried_at.append(0)
                accepted_at.append(0)
            here = observed.depth_N == depth
            tried_at[depth - 1] += int(here.sum())
            accepted_at[depth - 1] += int((here & accepted).sum())
        overlap_sum += float(observed.overlap_N.double().sum())
        assert observed.target.log_tail_R is not None
        tail_sum += float(observed.target.log_tail_R.double().exp().sum())
        yes, tried = by_domain.get(observed.domain, (0, 0))
        by_domain[observed.domain] = (yes + int(accepted.sum()), tried + observed.num_positions)
    return StoreStats(
        num_answers=num,
        num_held_out=held,
        num_positions=positions,
        num_bytes=store.rows.num_bytes(),
        accepted_at=tuple(accepted_at),
        tried_at=tuple(tried_at),
        overlap_sum=overlap_sum,
        tail_sum=tail_sum,
        by_domain=by_domain,
    )


def load_draft(options: Mapping[str, Any], *, device: str = "auto") -> CachedLM:
    """The draft model that `model` names, in the type that `dtype` says."""
    where, dtype = pick_device(device), str(options["dtype"])
    return load_lm(
        str(options["model"]),
        device=where,
        dtype=pick_dtype(dtype, where),
        quantisation=str(options["quantisation"]),
        quantisation_said_by="adaptive_lora.quantisation",
    )


def open_adaptation(
    lm: CachedLM,
    store: AdapterStore,
    options: Mapping[str, Any],
    *,
    temperature: float,
    rule: Rule = "coupled",
    domain: str = "",
    version: int | None = None,
    num_shared: int | None = None,
    num_ids: int | None = None,
) -> Adaptation:
    """The store's answers of one domain in memory, its active adapter (or this version) in use, and what was learnt
    beyond it to go on from. num_shared: ids that target and draft model both know; None: all of the draft model's.
    num_ids: of the target; None: as many as the draft model's."""
    number = store.active(domain) if version is None else version
    first = store.load(number, base_hash=lm.weights_hash) if number else None
    shape = LoraShape.from_options(options) if first is None else first.shape
    adaptation = Adaptation(
        lm,
        LoraLayers(lm.model, shape, seed=int(options["seed"])),
        LearningPlan.from_options(options),
        num_shared=lm.vocab_size if num_shared is None else min(num_shared, lm.vocab_size),
        num_ids=lm.vocab_size if num_ids is None else num_ids,
        temperature=temperature,
        rule=rule,
        picks=options["draft"],
        collector=None,
        domains="category",
        capacity=int(options["capacity"]),
        seed=int(options["seed"]),
        store=store,
    )
    adaptation.layers.attach()
    if first is not None:
        adaptation.swap(domain, InUse(number=number, weights=first.weights, parent=InUse()))
    memory = adaptation.domain(domain).memory
    for observed in store.rows.read():
        if observed.domain == domain:
            memory.add(observed)
    learnt = candidates.load(store.folder, domain, base_hash=lm.weights_hash, began=number)
    if learnt is not None and candidates.fits(learnt, adaptation.layers.weights(), alpha=shape.alpha):
        adaptation.domain(domain).candidate = learnt
    return adaptation


def train_store(
    store: AdapterStore,
    options: Mapping[str, Any],
    *,
    temperature: float,
    domain: str = "",
    device: str = "auto",
    threads: int | None = None,
    into: Path | None = None,
    version: int | None = None,
    num_new: int | None = None,
    num_shared: int | None = None,
    num_ids: int | None = None,
    rule: Rule = "coupled",
) -> Round:
    """One round from everything a store holds, from its active adapter or another version. into: the store for what
    comes of it; this one is then only read, and another process may be writing it. num_new: the last so many answers
    that are not held out are new, the others were learnt from before; None: all are new. temperature, rule and the
    option `draft`: how answers will be drawn and drafts picked and accepted, by which the candidate is judged.

    Raises UsageError where there is nothing to learn from.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    written = store if into is None else AdapterStore(into)
    with written.writing():
        lm = load_draft(options, device=device)
        adaptation = open_adaptation(
            lm,
            store,
            options,
            temperature=temperature,
            rule=rule,
            domain=domain,
            version=version,
            num_shared=num_shared,
            num_ids=num_ids,
        )
        adaptation.store = written
        memory = adaptation.domain(domain).memory
        if num_new is not None:
            memory.learnt_but(num_new)
        if not memory.new:
            raise _nothing_new(store, domain, num_held_out=len(memory.held_out))
        # A round beside a run stands still while other methods are timed: its budget is of the time in which it runs.
        found = learn(adaptation, domain, clock=time.perf_counter if into is None else time.thread_time)
        candidates.save(written.folder, domain, adaptation.domain(domain).candidate, base_hash=lm.weights_hash)
        return found


def _nothing_new(store: AdapterStore, domain: str, *, num_held_out: int) -> UsageError:
    """Why a domain's round has nothing to learn from: its answers are held out, or the store has those of others."""
    others: dict[str, int] = {}
    for observed in store.rows.read():
        if observed.domain != domain:
            others[observed.domain] = others.get(observed.domain, 0) + 1
    if num_held_out or not others:
        return UsageError(
            f"nothing to learn from: {num_held_out} answers are held out, none is left",
            where=str(store.folder),
            try_="specbench adapt collect SUITE --store DIR",
        )
    named = ", ".join(f"{name or NO_DOMAIN} ({count(num, 'answer')})" for name, num in sorted(others.items()))
    nearest = did_you_mean(domain, [name for name in others if name]) if domain else ""
    first = min(others)
    return UsageError(
        f"nothing to learn from: no answer is of {f'domain {domain!r}' if domain else 'no domain'}; the store's are of "
        f"{named}",
        where="--domain",
        try_=nearest or (f"--domain {shlex.quote(first)}" if first else "leave --domain out"),
    )


def import_adapter(source: Path, store: AdapterStore, options: Mapping[str, Any], *, device: str = "auto") -> int:
    """Another program's adapter as a version of the store, checked against the draft model -> its number."""
    lm = load_draft(options, device=device)
    found = files.import_foreign(source, base=lm.name, base_hash=lm.weights_hash)
    layers = LoraLayers(lm.model, found.shape)
    layers.set(found.weights)  # raises for shapes and layers that do not fit
    with store.writing():
        return store.add(found)
