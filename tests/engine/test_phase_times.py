"""What a phase takes is booked as that phase's, however steps run: the time of a pause is found where the pause is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from specbench.engine import accept
from specbench.engine.decode import Engine
from specbench.engine.recorded import RecordedGraphs
from specbench.lm.cached_lm import CachedLM
from specbench.method import Commit, DraftNoise, DraftTree
from specbench.sampling import Sampling
from tests.helpers import NoDrafter, requests_for, tiny_lm

PAUSE_S = 0.01
EVENTS = "Triton is not installed"
HOWS: dict[str, Callable[[], RecordedGraphs | None]] = {
    "step by step": lambda: None,
    "drafted on the host": RecordedGraphs,
    "captured whole": RecordedGraphs,
    "drafted on the host, timed by events": lambda: RecordedGraphs(why_phased=EVENTS),
    "captured whole, timed by events": lambda: RecordedGraphs(why_phased=EVENTS),
}


@torch.library.custom_op("specbench_tests::pause", mutates_args={"slots"}, device_types="cpu")
def pause(slots: Tensor) -> None:
    """An operator, so that graphs hold it and a replay takes its time too."""
    time.sleep(PAUSE_S)


def wait() -> None:
    pause(torch.zeros(1))


def around(function: Callable[..., Any], *, before: bool = True, after: bool = True) -> Callable[..., Any]:
    def slow(*args: Any, **rest: Any) -> Any:
        if before:
            wait()
        found = function(*args, **rest)
        if after:
            wait()
        return found

    return slow


class SlowDrafter(NoDrafter):
    """Drafts two nodes side by side, so that something is moved when they are accepted. slow: its phase that pauses."""

    max_nodes = 2

    def __init__(self, *, capturable: bool, slow: str) -> None:
        self.capturable = capturable
        self._slow = slow

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        tokens_BN = torch.tensor([[5, 6]]).expand(self._num_rows, -1)
        if self._slow == "draft":
            wait()
            wait()
        return DraftTree(tokens_BN=tokens_BN, parents_BN=torch.full_like(tokens_BN, -1), max_depth=1)

    def commit(self, commit: Commit) -> None:
        if self._slow == "commit":
            wait()


@pytest.fixture
def slowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[CachedLM, str], None]]:
    """Makes one phase of a target's steps pause twice, at its beginning and at its end; `draft` and the end of `commit`
    are the drafter's."""

    def slow(lm: CachedLM, phase: str) -> None:
        match phase:
            case "verify":
                for name in ("verify", "verify_behind"):
                    monkeypatch.setattr(lm, name, around(getattr(lm, name)))
            case "accept":
                monkeypatch.setattr(accept, "coupled", around(accept.coupled, after=False))
                monkeypatch.setattr(accept, "walk", around(accept.walk, before=False))
            case "commit":
                for name in ("commit", "commit_behind"):
                    monkeypatch.setattr(lm, name, around(getattr(lm, name), after=False))
            case "prefill":
                monkeypatch.setattr(lm, "prefill", around(lm.prefill))

    yield slow


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("phase", ["draft", "verify", "accept", "commit"])
def test_a_phase_that_takes_longer_is_the_one_that_shows_it(
    phase: str, how: str, slowed: Callable[[CachedLM, str], None]
) -> None:
    """Overheads and predicted speed-ups are read off these four."""
    lm = tiny_lm()
    slowed(lm, phase)
    engine = Engine(lm, sampling=Sampling(), max_len=64, max_nodes=2, graphs=HOWS[how]())
    drafter = SlowDrafter(capturable=how.startswith("captured"), slow=phase)
    [request] = requests_for([(1, 2, 5)], max_new_tokens=4)
    for _ in range(1 if engine.graphs is None else 2):  # captured, then replayed
        steps = engine.generate(drafter, [request]).generations[0].steps
        assert len(steps) >= 2
        for step in steps:
            assert getattr(step, f"{phase}_s") >= 2 * PAUSE_S
    assert engine.graphs is None or engine.graphs.num_graphs(drafter) > 0


@pytest.mark.parametrize("how", HOWS)
def test_the_first_step_ends_behind_the_prompt(how: str, slowed: Callable[[CachedLM, str], None]) -> None:
    """Ends count from the generation's beginning, its prefill included: the time to a token is read off them."""
    lm = tiny_lm()
    slowed(lm, "prefill")
    engine = Engine(lm, sampling=Sampling(), max_len=64, max_nodes=2, graphs=HOWS[how]())
    drafter = SlowDrafter(capturable=how.startswith("captured"), slow="")
    for _ in range(2):
        result = engine.generate(drafter, requests_for([(1, 2, 5)], max_new_tokens=4))
        first = result.generations[0].steps[0]
        assert result.prefill_s >= 2 * PAUSE_S
        assert first.end_s >= 2 * PAUSE_S + first.draft_s + first.verify_s + first.accept_s + first.commit_s
