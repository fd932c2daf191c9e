"""Before a benchmark: would this draft model pay on this target? A probe of acceptance and cost, and theory's answer.

Two expectations per chain length. Leviathan's counts a verification of K + 1 tokens as one target step, which holds
where a step is bound by reading weights; the other uses the verification times measured here: choose K by that one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

from specbench.card import Card
from specbench.engine.answer import Generation
from specbench.engine.clock import clock_for
from specbench.engine.decode import Engine
from specbench.engine.graphs import Backend, Capturing
from specbench.engine.stop import Stop
from specbench.errors import UsageError
from specbench.findings import Finding
from specbench.lm.cached_lm import CachedLM
from specbench.method import Build, Drafter, DraftNoise, DraftTree, Options, Request
from specbench.metrics import expected_tokens, leviathan
from specbench.sampling import Sampling, sequence_key
from specbench.tree import chain

MAX_TOKENS = 8
"""Longest chain an expectation is given for."""
_REPEATS = 15
"""Verifications timed per length; the median is kept."""
_CAPTURED_STEPS = 8
_CAPTURED_TURNS = 3
"""Generations per length, and steps of each where nothing of the draft is right."""


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """Speed-ups over autoregression to expect of a chain of num_tokens, prefill left out."""

    num_tokens: int
    leviathan: float
    """(1 - alpha^(K + 1)) / ((1 - alpha)(K c + 1)): Leviathan 2023, Theorem 3.8."""
    from_parts: float
    """Expected tokens x seconds of a target step / (K x seconds of a draft token + seconds of verifying K + 1)."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What was measured, greedily, and what it promises."""

    alpha: float
    """Accepted / tried draft positions."""
    num_tried: int
    c: float
    """Seconds of a drafted token / seconds of a target step of one token (medians)."""
    draft_token_s: float
    target_step_s: float
    expectations: tuple[Expectation, ...]
    """For K = 1 .. 8."""

    @property
    def best(self) -> Expectation:
        """The length with the highest expectation from measured parts."""
        return max(self.expectations, key=lambda each: each.from_parts)

    @property
    def expected_speedup(self) -> float:
        """Of the best length; below 1 the pair is slower than autoregression at every length."""
        return self.best.from_parts


def probe(
    target: CachedLM,
    build: Build,
    options: Options,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: frozenset[int] = frozenset(),
    max_new_tokens: int = 64,
    graphs: Backend | None = None,
) -> Probe:
    """Run the method, a chain drafter, and autoregression greedily over the prompts (the first one twice, to warm up).
    graphs: what captures steps where a run would capture them.

    Raises UsageError when the method drafts nothing on these prompts, or its trees are no chains.
    """
    max_len = max(len(prompt) for prompt in prompts) + max_new_tokens
    sampling, stop = Sampling(), Stop(ids=stop_ids)
    drafter = build(options, Engine(target, sampling=sampling, max_len=max_len, stop=stop).view())
    engine = Engine(
        target,
        sampling=sampling,
        max_len=max_len,
        max_nodes=max(drafter.max_nodes, MAX_TOKENS),
        stop=stop,
        graphs=graphs,
    )
    alone = Fixed(target.device)
    drafted, plain = [], []
    for place, prompt in enumerate([prompts[0], *prompts]):
        request = Request(
            key=sequence_key(seed=0, question_id=str(place), turn=0),
            prompt=tuple(prompt),
            max_new_tokens=max_new_tokens,
        )
        capturing: Capturing = "none" if place else "all"
        pair = [engine.generate(each, [request], capturing=capturing).generations[0] for each in (drafter, alone)]
        if place > 0:
            drafted.append(pair[0])
            plain.append(pair[1])
    num_accepted, num_tried, draft_token_s = _read_drafted(drafted)
    steps = [step for each in plain for step in each.steps]
    target_step_s = median(step.verify_s + step.accept_s + step.commit_s for step in steps)
    verify_s = median(step.verify_s for step in steps)
    costs = verification_costs(engine, prompts[0], range(MAX_TOKENS + 1))
    alpha, c = num_accepted / num_tried, draft_token_s / target_step_s
    return Probe(
        alpha=alpha,
        num_tried=num_tried,
        c=c,
        draft_token_s=draft_token_s,
        target_step_s=target_step_s,
        expectations=tuple(
            Expectation(
                num_tokens=num,
                leviathan=leviathan(alpha=alpha, gamma=num, c=c),
                from_parts=expected_tokens(alpha, num)
                * target_step_s
                / (num * draft_token_s + target_step_s + (costs[num] - 1.0) * verify_s),
            )
            for num in range(1, MAX_TOKENS + 1)
        ),
    )


def findings(result: Probe, card: Card) -> list[Finding]:
    """The probe as lines of a check-up of the card's method: no line names an option that the method would refuse."""
    lengths = ", ".join(f"{each.num_tokens}: {each.from_parts:.2f}" for each in result.expectations)
    theory = ", ".join(f"{each.num_tokens}: {each.leviathan:.2f}" for each in result.expectations)
    pays = result.expected_speedup > 1.0
    is_chosen = "num_tokens" in card.options
    by = "num_tokens" if is_chosen else "tokens drafted"
    best = f"num_tokens={result.best.num_tokens}" if is_chosen else f"{result.best.num_tokens} tokens drafted"
    is_adaptive = {"adaptive", "cost_ratio"} <= card.options.keys()
    return [
        Finding(
            name="acceptance alpha", state="ok", what=f"{result.alpha:.3f} of {result.num_tried} positions, greedy"
        ),
        Finding(
            name="cost ratio c",
            state="ok",
            what=f"{result.c:.3f}: {result.draft_token_s * 1e3:.2f} ms a drafted token, "
            f"{result.target_step_s * 1e3:.2f} ms a target step",
            remedy=f"with adaptive=true give cost_ratio={result.c:.3f}" if is_adaptive else "",
        ),
        Finding(name=f"theory's speed-up by {by}", state="ok", what=f"{theory} (a verification counted as one step)"),
        Finding(
            name=f"speed-up to expect by {by}",
            state="ok" if pays else "warning",
            what=f"{lengths}; best {result.expected_speedup:.2f} at {best}",
            consequence="" if pays else "slower than autoregression at every length on this machine",
            remedy="" if pays else _what_would_pay(card),
        ),
    ]


def _what_would_pay(card: Card) -> str:
    if "draft_model" in card.requires:
        return "a smaller draft model, or one closer to the target"
    if "weights" in card.requires:
        return "a smaller drafter, or one that learnt more of the target's answers"
    return "another method (specbench methods lists them)"


class Fixed(Drafter):
    """Always the same tree of num_nodes copies of one token, a chain or nodes with two children each: what verifying it
    costs, and nothing else. With no nodes it is autoregression, whose method this room may not import."""

    capturable = True

    def __init__(self, device: torch.device, *, num_nodes: int = 0, as_tree: bool = False, token: int = 0) -> None:
        self.max_nodes = num_nodes
        self._tree = _shape(torch.tensor([token], device=device), num_nodes, as_tree=as_tree)
        self._num_rows = 1

    def start(self, len_B: list[int], root_B: Tensor) -> None:
        self._num_rows = len(len_B)

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        tree, num_rows = self._tree, self._num_rows
        tokens_BN = tree.tokens_BN.expand(num_rows, -1)
        if tree.is_chain:
            return chain(tokens_BN)
        return replace(tree, tokens_BN=tokens_BN, parents_BN=tree.parents_BN.expand(num_rows, -1))

    def keep(self, rows: list[int]) -> None:
        self._num_rows = len(rows)


def _read_drafted(generations: Sequence[Generation]) -> tuple[int, int, float]:
    """(accepted, tried, median seconds per drafted token); steps cut by a stop say nothing about the draft."""
    steps = [step for each in generations for step in each.steps if step.num_nodes and not step.num_truncated]
    if not steps:
        raise UsageError("the method drafted nothing on the probe's prompts", try_="longer prompts, or another method")
    if any(step.depth != step.num_nodes for step in steps):
        raise UsageError("the probe's theory is about chains, and this method drafts trees", try_="specbench run")
    num_accepted = sum(step.num_accepted for step in steps)
    num_tried = sum(min(step.num_accepted + 1, step.num_nodes) for step in steps)
    return num_accepted, num_tried, median(step.draft_s / step.num_nodes for step in steps)


def verification_costs(
    engine: Engine, context: Sequence[int], counts: Sequence[int], *, as_tree: bool = False
) -> list[float]:
    """Seconds of verifying each number of draft nodes behind the context / seconds of verifying none; medians.

    Measured as the engine decodes: captured where it captures, operator by operator where it does not. as_tree: nodes
    with two children each, a mask of their own, instead of a chain. The lengths take turns, so that a machine that
    slows down meanwhile slows all of them. The engine must have room for them.
    """
    seconds = (_eager_s if engine.graphs is None else _captured_s)(engine, context, (0, *counts), as_tree=as_tree)
    medians = [median(times) for times in seconds]
    return [each / medians[0] for each in medians[1:]]


def _eager_s(engine: Engine, context: Sequence[int], counts: Sequence[int], *, as_tree: bool) -> list[list[float]]:
    target = engine.lm
    clock = clock_for(target.device)
    ids = torch.tensor(list(context), device=target.device)
    target.begin(1)
    target.prefill(0, ids)
    root_B = ids[-1:]
    trees = [_shape(root_B, num, as_tree=as_tree) for num in counts]
    seconds: list[list[float]] = [[] for _ in trees]
    for _ in range(_REPEATS + 1):
        for times, tree in zip(seconds, trees, strict=True):
            clock.finish()
            start = clock.mark()
            target.verify(root_B, tree)
            times.append(clock.seconds(start, clock.mark()))
    return [times[1:] for times in seconds]


def _captured_s(engine: Engine, context: Sequence[int], counts: Sequence[int], *, as_tree: bool) -> list[list[float]]:
    """Short generations behind the context; their steps' own times."""
    assert engine.graphs is not None
    lm, max_len = engine.lm, engine.max_len
    # An engine of its own: where an answer would stop is no matter here.
    own = Engine(
        lm, sampling=engine.sampling, max_len=max_len, max_nodes=engine.max_nodes, graphs=engine.graphs.backend
    )
    prompt = tuple(context[: max(max_len - _CAPTURED_STEPS - 1, 1)])
    request = Request(key=0, prompt=prompt, max_new_tokens=min(_CAPTURED_STEPS + 1, max_len - len(prompt)))
    fixed = [Fixed(lm.device, num_nodes=num, as_tree=as_tree, token=prompt[-1]) for num in counts]
    seconds: list[list[float]] = [[] for _ in fixed]
    for turn in range(_CAPTURED_TURNS + 1):
        for times, drafter in zip(seconds, fixed, strict=True):
            capturing: Capturing = "none" if turn else "all"
            steps = own.generate(drafter, [request], capturing=capturing).generations[0].steps
            times += [step.verify_s for step in steps if turn]
    return seconds


def _shape(root_B: Tensor, num_nodes: int, *, as_tree: bool) -> DraftTree:
    tokens_BN = root_B[None].expand(1, num_nodes)
    if not as_tree or num_nodes < 2:
        return chain(tokens_BN)
    # Nodes 0 and 1 hang on the root, node i on node i // 2 - 1.
    parents_BN = torch.arange(num_nodes, device=root_B.device)[None] // 2 - 1
    return DraftTree(tokens_BN=tokens_BN, parents_BN=parents_BN, max_depth=num_nodes.bit_length())
