"""A conversation's adapter: learnt between answers, trained, looked at, loaded and set aside by command.

`adapt=on` learns; without it an adapter is drafted with as it is. Where a store is named this process holds it, answers
are observed into it and versions come from it; without one all of it is gone with the conversation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specbench import paths, registry
from specbench.adapt.adaptation import Adaptation, InUse
from specbench.adapt.domains import domain_of
from specbench.adapt.versions import VERSIONS, AdapterStore
from specbench.errors import SpecbenchError, UsageError
from specbench.store.words import count

if TYPE_CHECKING:
    from specbench.chat.conversation import Conversation
    from specbench.training.rounds import Round


class Held:
    """The adapter store that this conversation learns into."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._lock = ExitStack()

    def take(self, adaptation: Adaptation | None) -> None:
        """Hold this one's store and no other, and remember what earlier conversations left there. Raises UsageError
        while another process adapts there, EnvironmentFailed where a file of it is damaged; then the one held before is
        kept."""
        store = adaptation.store if adaptation is not None else None
        folder = None if store is None else store.folder.resolve()
        with ExitStack() as lock:
            if store is not None and folder != self._folder:
                lock.enter_context(store.writing())
            if adaptation is not None and store is not None:
                adaptation.remember()
            if folder == self._folder:
                return
            self._lock.close()
            self._folder, self._lock = folder, lock.pop_all()


def has_adapter(talk: Conversation) -> bool:
    """Whether the method that answers is of a kind that drafts with one."""
    return "adapter" in registry.card(talk.settings.method, methods_dirs=talk.methods_dirs).options


def learn_between(talk: Conversation) -> Iterator[str]:
    """After an answer: what it showed is taken in, and learnt from where it is due. What is to be said of it, each
    sentence before the work it tells of where that may take seconds."""
    adaptation = talk.adaptation
    if adaptation is None:
        return
    from specbench.training.rounds import between_requests, due  # accelerate, only where something learns

    adaptation.gather()
    why = due(adaptation, _here(talk, adaptation))
    if why:
        yield f"learning from the answers so far ({why}) …"
    for found in between_requests(adaptation):
        yield words_of(found)
    if why:
        yield from _kept(adaptation)
    warning = adaptation.warning()
    if warning:
        yield f"⚠ {warning}"


def _kept(adaptation: Adaptation) -> Iterator[str]:
    """For the next conversation; a disk that refuses ends no conversation."""
    try:
        adaptation.keep_candidates()
    except SpecbenchError as error:
        yield f"⚠ {error.what}: the next conversation learns on from the version in use"


def train(talk: Conversation) -> str:
    """One round now -> what came of it. Raises UsageError where nothing can be learnt."""
    from specbench.training.rounds import learn  # accelerate, only where something learns

    adaptation = _learning(talk)
    adaptation.gather()
    here = _here(talk, adaptation)
    memory = adaptation.domain(here).memory
    if not memory.new and memory.old:
        memory.renew()  # by hand: those of earlier rounds and conversations once more
    if not memory.new:
        what = f"nothing new to learn from: {count(memory.num_positions, 'position')} observed so far"
        if memory.held_out and not memory.old:
            what += f", {count(len(memory.held_out), 'answer')} of them held out to judge by"
        raise UsageError(what, try_="ask something, then /train")
    return "\n".join([words_of(learn(adaptation, here)), *_kept(adaptation)])


def load(talk: Conversation, word: str) -> str:
    """Draft with a version of the store. Raises UsageError (no such version, another base, another shape)."""
    _needs_adapter(talk)
    if not word.isdigit():
        raise UsageError(f"{word!r} is no version" if word else "which version?", where="/load", try_=_known(talk))
    number = int(word)
    if number == 0:
        return unload(talk)
    adaptation = talk.adaptation
    store = _store(talk)
    if adaptation is None:
        _set(talk, adapter=str(store.path(number)))
        return f"version {number} is drafted with"
    found = store.load(number, base_hash=adaptation.lm.weights_hash)
    if found.shape != adaptation.layers.shape:
        raise UsageError(
            f"version {number} has another shape (rank {found.shape.rank}) than the one that learns here "
            f"(rank {adaptation.layers.shape.rank})",
            where="/load",
            try_=f"/set {talk.settings.method}.adapt=off, then /load {number}",
        )
    here = _here(talk, adaptation)
    store.activate(number, here)
    _use(adaptation, here, InUse(number=number, weights=found.weights))
    return f"version {number} is drafted with, and learnt on from"


def unload(talk: Conversation) -> str:
    """Draft with the draft model itself. Raises UsageError where no adapter is drafted with."""
    _needs_adapter(talk)
    adaptation = talk.adaptation
    if adaptation is None:
        if not any(_said(talk).get(name) for name in ("adapter", "store")):
            raise UsageError("no adapter is drafted with", where="/unload", try_="/adapter-info")
        talk.adapter_folder = talk.adapter_folder or str(_said(talk).get("store", ""))
        _set(talk, adapter="", store="")
        return "no adapter is drafted with"
    here = _here(talk, adaptation)
    if adaptation.domain(here).in_use.weights is None:
        raise UsageError("no adapter is drafted with", where="/unload", try_="/adapter-info")
    if adaptation.store is not None:
        adaptation.store.activate(0, here)
    _use(adaptation, here, InUse())
    return "no adapter is drafted with; what is observed from now on is learnt from the draft model itself"


def info(talk: Conversation) -> list[str]:
    """What is drafted with, what was observed and learnt, and which versions there are. Raises UsageError."""
    _needs_adapter(talk)
    adaptation, found = talk.adaptation, [adapter_words(talk)]
    if adaptation is not None:
        here = _here(talk, adaptation)
        shape, domain = adaptation.layers.shape, adaptation.domain(here)
        found += [f"of prompts under this conversation's system prompt: {here}"] if here else []
        num = sum(tensor.numel() for tensor in adaptation.layers.weights().values())
        found.append(f"rank {shape.rank}, alpha {shape.alpha:g}, {num:,} numbers on {', '.join(shape.targets)}")
        memory, plan = domain.memory, adaptation.plan
        found.append(
            f"observed: {count(memory.num_positions, 'position')}, {memory.num_new_positions} of them not learnt from "
            f"yet; {count(len(memory.held_out), 'answer')} held out, {plan.min_held_out} needed to judge an adapter"
        )
        when = f"after {plan.after_positions} new positions, or by /train" if plan.after_positions else "by /train"
        found.append(f"{count(domain.num_rounds, 'round')} of learning so far; the next {when}")
    try:
        store = _store(talk)
    except UsageError:
        found.append(f"kept in memory alone: /set {talk.settings.method}.store=DIR keeps answers and versions")
        return found
    found.append(f"store {store.folder}: {_known(talk)}")
    return found


def adapter_words(talk: Conversation) -> str:
    """What is drafted with, in one line, for `/stats` too."""
    adaptation = talk.adaptation
    if adaptation is None:
        said = [note for note in talk.notes if note.startswith("drafts with adapter")]
        return f"adapter: {said[0] if said else 'none'}; it does not learn (/set {talk.settings.method}.adapt=on)"
    domain = adaptation.domain(_here(talk, adaptation))
    number = domain.in_use.number
    which = "none, the draft model itself" if domain.in_use.weights is None else f"version {number}"
    live = domain.live.acceptance
    shown = "" if live is None else f"; moving acceptance {live:.3f} of tried positions"
    return f"adapter: {which}{shown}; it learns between answers"


def words_of(found: Round) -> str:
    """A round's outcome in a sentence."""
    learnt = f" ({count(found.num_steps, 'step')}, {found.seconds:.1f} s)" if found.num_steps else ""
    now = f"version {found.version}" if found.version else "no adapter"
    return f"{found.outcome}: {found.why}{learnt}; {now} is drafted with"


# --- helpers ---------------------------------------------------------------------------------------------------------


def _needs_adapter(talk: Conversation) -> None:
    if not has_adapter(talk):
        raise UsageError(
            f"method {talk.settings.method!r} drafts with no adapter", try_="/method adaptive_lora, or /method for all"
        )


def _learning(talk: Conversation) -> Adaptation:
    _needs_adapter(talk)
    if talk.adaptation is None:
        method = talk.settings.method
        raise UsageError(
            "nothing is observed in this conversation, so nothing can be learnt from it",
            try_=f"/set {method}.adapt=on {method}.collect=on",
        )
    return talk.adaptation


def _here(talk: Conversation, adaptation: Adaptation) -> str:
    """The domain of what is said in this conversation."""
    return adaptation.domain_of(system=talk.settings.system)


def _use(adaptation: Adaptation, here: str, wanted: InUse) -> None:
    """Chosen by hand, so no way back is taken by itself, and no candidate of another line is learnt on."""
    adaptation.swap(here, wanted)
    domain = adaptation.domain(here)
    domain.candidate = None
    domain.live = replace(domain.live, before=None)


def _said(talk: Conversation) -> dict[str, str]:
    return dict(talk.settings.said.get(talk.settings.method, {}))


def _set(talk: Conversation, **options: Any) -> None:
    said = {method: dict(given) for method, given in talk.settings.said.items()}
    said.setdefault(talk.settings.method, {}).update(options)
    talk.change(said=said)


def _store(talk: Conversation) -> AdapterStore:
    """Raises UsageError where none is named."""
    adaptation = talk.adaptation
    if adaptation is not None and adaptation.store is not None:
        return adaptation.store
    folder = str(_said(talk).get("store", "")) or talk.adapter_folder
    if not folder:
        raise UsageError(
            "no adapter store is named, so there are no versions",
            try_=f"/set {talk.settings.method}.store=DIR (results/adapters is that of specbench adapt)",
        )
    return AdapterStore(paths.expanded(folder))


def _known(talk: Conversation) -> str:
    """`versions 1, 2*`; * is the one drafted with under this conversation's system prompt."""
    store = _store(talk)
    # Fixed adapters are drafted with by domain as well: what the options say, not what learns.
    here = domain_of(_said(talk).get("domains", "one"), system=talk.settings.system)
    active = store.active(here)
    numbers = store.numbers()
    if not numbers:
        return "no version yet"
    named = ", ".join(f"{number}{'*' if number == active else ''}" for number in numbers)
    return f"{'version' if len(numbers) == 1 else 'versions'} {named} in {store.folder / VERSIONS}"
