"""A draft model that learns from the target's verdicts: the chain or tree of `specbench.lm.draft_model` under a LoRA
adapter.

Without an adapter and with `adapt` off it is the draft model itself, layer for layer. An adapter is trained between
requests, never here (`specbench.training.rounds`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from specbench.adapt import adapter as files
from specbench.adapt.adaptation import Adaptation, InUse
from specbench.adapt.adapter import Adapter
from specbench.adapt.collector import Collector, Reached
from specbench.adapt.domains import SYSTEM, Domains, domain_of
from specbench.adapt.lora import LoraLayers, LoraShape
from specbench.adapt.plan import LearningPlan
from specbench.adapt.versions import AdapterStore
from specbench.errors import UsageError
from specbench.lm.cached_lm import CachedLM
from specbench.lm.chain import ChainDrafter
from specbench.lm.draft_model import load_draft
from specbench.lm.draft_tree import TreeDrafter
from specbench.method import Commit, Drafter, DraftNoise, DraftTree, Options, Request, TargetView


class _Snapshot(NamedTuple):
    evidence: object
    learnt: object


class AdaptiveDrafter(ChainDrafter):
    """A chain drafter that observes while it works. Only made where something is adapted."""

    def __init__(self, lm: CachedLM, target: TargetView, *, learns: Adaptation, **draft: Any) -> None:
        super().__init__(lm, target, **draft)
        self.adaptation = learns
        self._learns = learns
        self.carries = "stream"
        self.wants_target = learns.collector is not None
        # What is observed is kept by the host; graphs of the target's step are made all the same.
        self.capturable = False
        self._texts: list[list[int]] = []
        self._domains: list[str] = []
        self._used = ""
        """The domain whose adapter drafts now."""
        self._logits: list[Tensor] = []
        self._drafted: DraftTree | None = None
        self._room_B: list[int] = []
        """How deep each row's draft may be accepted."""
        self._num_swaps = learns.swaps
        if learns.collector is not None:
            self._tell = self._logits.append

    # --- a group begins ----------------------------------------------------------------------------------------------

    def begin(self, requests: Sequence[Request]) -> None:
        learns = self._learns
        self._domains = [learns.domain_of(category=request.domain, system=request.system) for request in requests]
        # A batch of several kinds is drafted with what all began with.
        self._used = self._domains[0] if len(set(self._domains)) == 1 else ""
        learns.use(self._used)
        self._num_swaps = learns.swaps
        super().begin(requests)
        self._texts = [list(request.prompt) for request in requests]
        self._logits.clear()
        if learns.collector is not None:
            longest = max(request.max_new_tokens for request in requests)
            prompts = [request.prompt for request in requests]
            number = learns.loaded.number
            learns.collector.begin(prompts, self._domains, max_new_tokens=longest, version=number)

    def start(self, len_B: list[int], root_B: Tensor) -> None:
        super().start(len_B, root_B)
        roots = root_B.tolist()
        for text, root in zip(self._texts, roots, strict=True):
            text.append(root)
        if self._learns.collector is not None:
            self._learns.collector.start(roots)

    # --- a step ------------------------------------------------------------------------------------------------------

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        if self._num_swaps != self._learns.swaps:
            # Other weights in mid-sequence: keys and values of the old ones are worth nothing.
            self._num_swaps = self._learns.swaps
            self.reread(self._texts)
        self._logits.clear()
        self._room_B = [self._room(row) for row in range(len(self._texts))]
        self._drafted = super().draft(noise)
        return self._drafted

    def commit(self, commit: Commit) -> None:
        if self._drafted is not None:
            self._observe(commit, self._drafted)
        super().commit(commit)

    def follow(self, commit: Commit, is_own: list[bool]) -> None:
        # Whose draft stood there is not ours to learn from.
        self._logits.clear()
        self._extend(commit)
        if self._learns.collector is not None:
            self._learns.collector.step(commit, [0] * len(self._texts), self._reached)
        super().follow(commit, is_own)

    def _observe(self, commit: Commit, tree: DraftTree) -> None:
        num_B = self._tried(commit, tree)
        rows = zip(self._domains, commit.tokens, commit.finished, num_B, strict=True)
        for domain, tokens, ends, num in rows:
            # A row that ends is cut at its stop: what was accepted behind it is not known here. Drafts of another
            # adapter say nothing about a domain's own.
            if num and not ends and domain == self._used:
                self._learns.saw(domain, tried=min(len(tokens), num), accepted=len(tokens) - 1)
        if self._learns.collector is not None:
            self._learns.collector.step(commit, num_B, self._reached)
        self._extend(commit)

    def _tried(self, commit: Commit, tree: DraftTree) -> list[int]:
        """Of each row, positions with a drafted token of which the target's verdict is known, the first rejection
        included; those behind an answer's end may be among them."""
        return [min(tree.num_nodes, room) for room in self._room_B]

    def _reached(self, row: int, num: int) -> Reached:
        """The first `num` of them."""
        assert self._drafted is not None, "a draft comes first"
        return Reached(slice(0, num), [each[row] for each in self._logits[:num]], self._drafted.tokens_BN[row, :num])

    def _extend(self, commit: Commit) -> None:
        for text, tokens in zip(self._texts, commit.tokens, strict=True):
            text += tokens

    def keep(self, rows: list[int]) -> None:
        super().keep(rows)
        self._texts = [self._texts[row] for row in rows]
        self._domains = [self._domains[row] for row in rows]
        if self._learns.collector is not None:
            self._learns.collector.keep(rows)

    # --- state that outlives a generation ----------------------------------------------------------------------------

    def snapshot(self) -> object:
        return _Snapshot(super().snapshot(), self._learns.snapshot())

    def restore(self, snapshot: object) -> None:
        assert isinstance(snapshot, _Snapshot), "a snapshot of this drafter holds what it learnt"
        super().restore(snapshot.evidence)
        self._learns.restore(snapshot.learnt)


class AdaptiveTreeDrafter(AdaptiveDrafter, TreeDrafter):
    """The same over a tree: of all its nodes those behind the text's own tokens are observed, the accepted path and the
    first child that stood where it ended. Siblings share one context and so one law; nodes beside the path stand behind
    other texts."""

    _walked: list[tuple[list[int], int]]
    """Of each row: accepted nodes, the first node drafted behind the last of them (-1: none)."""

    def _tried(self, commit: Commit, tree: DraftTree) -> list[int]:
        parents, paths = tree.parents_BN.tolist(), commit.path_BP.tolist()
        valid = [[True] * tree.num_nodes] * len(paths) if tree.valid_BN is None else tree.valid_BN.tolist()
        self._walked = []
        for row, padded in enumerate(paths):
            path = [node for node in padded if node >= 0]
            last = path[-1] if path else -1
            behind = (node for node, of in enumerate(parents[row]) if of == last and valid[row][node])
            self._walked.append((path, next(behind, -1)))
        self._beam_BP = self._beams(commit.path_BP)
        return [len(path) + (child >= 0) for path, child in self._walked]

    def _reached(self, row: int, num: int) -> Reached:
        assert self._drafted is not None, "a draft comes first"
        path, child = self._walked[row]
        slots = torch.tensor([0, *(node + 1 for node in path)][:num], device=self._target.device)
        beams = [0, *self._beam_BP[row].tolist()][:num]
        # Copies: a depth holds the laws of all its beams.
        logits = [each[row, beam].clone() for each, beam in zip(self._logits, beams, strict=False)]
        nodes = torch.tensor([*path, child][:num], device=self._target.device)
        return Reached(slots, logits, self._drafted.tokens_BN[row].index_select(0, nodes))


class DomainDrafter(ChainDrafter):
    """Drafts under fixed adapters, one per domain; nothing is observed."""

    def __init__(
        self,
        lm: CachedLM,
        target: TargetView,
        layers: LoraLayers,
        first: _First | None,
        own: Mapping[str, _First],
        *,
        domains: str,
        **draft: Any,
    ) -> None:
        super().__init__(lm, target, **draft)
        self._by = domains
        self._layers = layers
        self._weights = {"": None if first is None else first.in_use.weights}
        self._weights |= {name: found.in_use.weights for name, found in own.items()}
        self._used = ""

    def begin(self, requests: Sequence[Request]) -> None:
        names = [domain_of(self._by, category=request.domain, system=request.system) for request in requests]
        domains = {name if name in self._weights else "" for name in names}
        wanted = domains.pop() if len(domains) == 1 else ""
        if wanted != self._used:
            # Written where captured steps read them; a group begins with nothing of the one before.
            self._layers.set(self._weights[wanted])
            self._used = wanted
        super().begin(requests)


class DomainTreeDrafter(DomainDrafter, TreeDrafter):
    """The same over a tree."""


def build(options: Options, target: TargetView, inner: Drafter | None = None) -> Drafter:
    """Loads `model` on the target's device, and an adapter where one is named or the store has an active one.

    Raises UsageError (another vocabulary, a chain's option beside a tree, an adapter of another base, a layer that is
    not there), EnvironmentFailed (no weights, a damaged adapter).
    """
    draft = load_draft(options, target, method="adaptive_lora")
    lm, notes = draft.lm, draft.notes
    folder = str(options["store"])
    store = AdapterStore(Path(folder).expanduser(), max_bytes=int(options["max_mb"]) << 20) if folder else None
    first = _first_adapter(str(options["adapter"]), store, lm)
    domains: Domains = options["domains"]
    by_domain = domains != "one"
    own = _own_adapters(store, lm) if by_domain and store is not None and not options["adapter"] else {}
    learns = bool(options["adapt"]) and bool(options["collect"])
    if learns and options["adapter"]:
        raise UsageError(
            "a named adapter is no version of a store, so nothing can learn on from it",
            where="adaptive_lora.adapter",
            try_="--set adaptive_lora.store=STORE with that version active (specbench adapt import), or adapt=false",
        )
    if not learns and not by_domain and first is None and store is not None:
        _refuse_unread(store)
    adapters = [found.adapter for found in (first, *own.values()) if found is not None and found.adapter is not None]
    if not learns and not adapters:
        return draft.drafter(target)
    # An adapter that is there has its own shape; options that say otherwise are not for it.
    shape = adapters[0].shape if adapters else LoraShape.from_options(options)
    _refuse_another(shape, first, own)
    layers = LoraLayers(lm.model, shape, seed=int(options["seed"]))
    layers.attach()
    if first is not None and first.adapter is not None:
        layers.set(first.adapter.weights)
        notes = (*notes, f"drafts with adapter {first.name}")
    if own:
        named = ", ".join(f"{found.name} for {name}" for name, found in own.items())
        notes = (*notes, f"drafts with adapters of their own: {named}")
    if by_domain:
        notes = (*notes, "a batch of several domains is drafted with what all begin with")
    weights_hash = _all_hashes(lm, first, own)
    if not learns:
        if own:
            kind = DomainDrafter if draft.tree is None else DomainTreeDrafter
            fixed: ChainDrafter = kind(lm, target, layers, first, own, domains=domains, **draft.arguments())
        else:
            fixed = draft.drafter(target)
        fixed.notes = notes
        fixed.weights_hash = weights_hash
        return fixed
    adaptation = Adaptation(
        lm,
        layers,
        LearningPlan.from_options(options),
        num_shared=draft.chain["num_shared"],
        num_ids=target.vocab_size,
        temperature=target.sampling.temperature,
        rule=target.rule,
        picks=options["draft"],
        collector=Collector(
            top_k=int(options["top_k"]), per_answer=int(options["per_answer"]), num_shared=draft.chain["num_shared"]
        ),
        domains=domains,
        capacity=int(options["capacity"]),
        seed=int(options["seed"]),
        store=store,
    )
    if first is not None:
        adaptation.swap("", first.in_use)
    for name, found in own.items():
        adaptation.swap(name, found.in_use)
    learner = AdaptiveDrafter if draft.tree is None else AdaptiveTreeDrafter
    drafter = learner(lm, target, learns=adaptation, **draft.arguments())
    how = (
        "in a process beside its answers, on the same cores: what that takes is in their times"
        if options["learning"] == "concurrent"
        else "between answers: what that takes is told beside their times"
    )
    drafter.notes = (*notes, f"its adapter learns {how}")
    drafter.weights_hash = weights_hash
    return drafter


class _First(NamedTuple):
    """What drafting begins with."""

    adapter: Adapter | None
    """None: the base, chosen by hand or by a rollback."""
    number: int
    name: str

    @property
    def in_use(self) -> InUse:
        return InUse(number=self.number, weights=None if self.adapter is None else self.adapter.weights, parent=InUse())


def _first_adapter(named: str, store: AdapterStore | None, lm: CachedLM) -> _First | None:
    if named:
        folder = Path(named).expanduser()
        return _First(files.load(folder, base_hash=lm.weights_hash), 0, folder.name)
    number = store.active() if store is not None else 0
    if store is None or not number:
        return None
    return _First(store.load(number, base_hash=lm.weights_hash), number, f"version {number}")


def _own_adapters(store: AdapterStore, lm: CachedLM) -> dict[str, _First]:
    """Of the domains that have a version of their own, or were put back to none."""
    found = {}
    for name, numbers in store.history().items():
        if name and numbers:
            number = numbers[-1]
            adapter = store.load(number, base_hash=lm.weights_hash) if number else None
            found[name] = _First(adapter, number, f"version {number}" if number else "none")
    return found


def _refuse_unread(store: AdapterStore) -> None:
    """Nobody names a store to draft with the draft model alone. Raises UsageError."""
    names = [name for name, numbers in store.history().items() if name and numbers and numbers[-1]]
    if names:
        how = "system" if all(name.startswith(SYSTEM) for name in names) else "category"
        raise UsageError(
            f"the store's adapters are of domains ({', '.join(sorted(names))}), and none is of all prompts",
            where="adaptive_lora.store",
            try_=f"--set adaptive_lora.domains={how}, or specbench adapt activate VERSION for all prompts",
        )


def _refuse_another(shape: LoraShape, first: _First | None, own: Mapping[str, _First]) -> None:
    """All are set into the same matrices. Raises UsageError."""
    for name, found in {"": first, **own}.items():
        if found is not None and found.adapter is not None and found.adapter.shape != shape:
            its = found.adapter.shape
            raise UsageError(
                f"adapters of one store have different shapes: {found.name} for {name or 'all'} has rank {its.rank}, "
                f"alpha {its.alpha:g} on {', '.join(its.targets)}; another has rank {shape.rank}, alpha "
                f"{shape.alpha:g} on {', '.join(shape.targets)}",
                where="adaptive_lora.store",
                try_="specbench adapt activate VERSION --domain NAME, of one shape; or a store for each",
            )


def _all_hashes(lm: CachedLM, first: _First | None, own: Mapping[str, _First]) -> str:
    """Of everything that may draft: a resumed run begins with the same."""
    parts = [lm.weights_hash]
    if first is not None and first.adapter is not None:
        parts.append(first.adapter.weights_hash)
    for name, found in sorted(own.items()):
        parts.append(f"{name}={found.adapter.weights_hash if found.adapter is not None else 'none'}")
    return "+".join(parts)
