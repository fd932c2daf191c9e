"""Methods that learn between requests: where their files lie, when they learn, and what it cost.

A round of learning takes cores that answers could have had. Its seconds stand beside the run's as `learn_s`, and every
table shows the speed-up once without them and once with them on the method's clock (serial).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import torch

from specbench.adapt.versions import AdapterStore
from specbench.bench.contestants import Contestant
from specbench.events import Measured
from specbench.store.journal import Journal


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
                adaptation.store = AdapterStore(folder / "adapters" / name)
            stack.enter_context(adaptation.store.writing())
        yield


def learn_between(contestant: Contestant, journal: Journal | None, say: _Say) -> None:
    """After one of its groups: what was observed is taken in, and a round learnt where it is due. journal None: a
    stream that is grown again at a resume, untold."""
    adaptation = contestant.drafter.adaptation
    if adaptation is None:
        return
    from specbench.training.rounds import between_requests  # accelerate, only where something learns

    device = adaptation.lm.device
    start = time.perf_counter()
    rounds = between_requests(adaptation)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    label, warning = contestant.competitor.label, adaptation.warning()
    if warning:
        say(f"{label}: {warning}")
    if journal is None:
        return
    journal.write(Measured(name="learn_s", value=seconds, unit="s", method=label))
    for each in rounds:
        domain = f" ({each.domain})" if each.domain else ""
        say(f"{label}{domain}: {each.outcome}: {each.why}; {each.num_steps} steps, {each.seconds:.1f} s")
        journal.write(Measured(name="adapter_round_s", value=each.seconds, unit="s", method=label))
        if each.before is not None and each.after is not None:
            gain = each.after - each.before
            journal.write(Measured(name="adapter_gain", value=gain, unit="expected acceptance", method=label))
        if each.outcome in ("promoted", "rolled back"):
            journal.write(Measured(name="adapter_version", value=each.version, unit="version", method=label))
