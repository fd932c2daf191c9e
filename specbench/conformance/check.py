"""What every method must keep, from one body: `specbench methods check NAME` and the tests run it.

The method runs on tiny random targets in float64, where its text must equal seeded autoregression token for token; a
draft model it asks for is made on the spot. So are trained weights, by the method's own recipe, unless some are named:
then the method is run on the target they belong to.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from specbench import registry
from specbench.card import MADE_HERE, Card
from specbench.conformance.broken import BrokenPromise
from specbench.conformance.targets import (
    ARCHITECTURES,
    chi_square_p,
    cyclic_target,
    enumerated_law,
    marginal,
    random_target,
    save_draft_of,
    successor,
    table_target,
)
from specbench.conformance.watch import Guarded, PlainDrafter, SetAside, Watched
from specbench.conformance.weights import NUM_STEPS, Made, make_weights
from specbench.engine.answer import Generation
from specbench.engine.decode import Engine
from specbench.engine.graphs import Backend
from specbench.engine.recorded import RecordedGraphs
from specbench.engine.stop import Stop
from specbench.errors import SpecbenchError, UsageError
from specbench.findings import Finding
from specbench.lm.cached_lm import CachedLM
from specbench.method import Request, Rule, TargetView
from specbench.sampling import Sampling, sequence_key

MAX_BATCH = 4
P_VALUE = 1e-4
"""A right rule falls below it once in ten thousand methods; keys are fixed, so the same method always gets the same
value."""

_GREEDY = Sampling()
_DRAWN = Sampling(temperature=1.0)
_PROCESSED = Sampling(temperature=0.8, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.2)
_PROMPTS: tuple[tuple[int, ...], ...] = ((1, 2, 5, 0, 0, 5, 6), (9,) * 13, (4, 5), (7, 8, 9, 10) * 4)
"""Ragged; repeated tokens; id 0 inside."""


@dataclass(frozen=True, kw_only=True)
class _Stand:
    """One target under one sampling with the method's drafter built for it, and the answers it must reach."""

    engine: Engine
    drafter: Watched
    requests: tuple[Request, ...]
    answers: tuple[Generation, ...]

    def generate(self, places: Sequence[int], *, chunk: int | None = None) -> list[Generation]:
        engine = self.engine if chunk is None else _engine_like(self.engine, chunk=chunk)
        return list(engine.generate(self.drafter, [self.requests[place] for place in places]).generations)


class _Checker:
    """Builds stands for one method and asks it to keep each promise. Drafts of every run are inspected on the way."""

    def __init__(
        self,
        choice: registry.Choice,
        targets: Sequence[CachedLM],
        scratch: Path,
        *,
        methods_dirs: Sequence[Path],
        training: Mapping[str, Any] | None = None,
    ) -> None:
        self._choice = choice
        self._methods_dirs = methods_dirs
        self._targets = targets
        self._scratch = scratch
        self._requires = choice.requires
        self._can_take_any_target = not _names_weights(choice)
        self._training = dict(training or {})
        self._made: dict[Path, Made] = {}

    # --- building ----------------------------------------------------------------------------------------------------

    def _made_for(self, choice: registry.Choice, lm: CachedLM) -> registry.Choice:
        """The choice, `model` and `weights` replaced by ones made for this target where a card asks for them."""
        inner = None if choice.inner is None else self._made_for(choice.inner, lm)
        if choice.options.get("weights") == MADE_HERE:
            folder = self._scratch / f"{choice.card.name}-{lm.name}"
            if folder not in self._made:
                self._made[folder] = make_weights(
                    choice.card, lm, folder, training=self._training, methods_dirs=tuple(self._methods_dirs)
                )
            choice = replace(choice, options={**choice.options, "weights": str(folder)})
        if "draft_model" not in choice.card.requires or not self._can_take_any_target:
            return replace(choice, inner=inner)
        folder = self._scratch / lm.name
        if not folder.exists():
            save_draft_of(lm, folder)
        return replace(choice, options={**choice.options, "model": str(folder)}, inner=inner)

    def _build_drafter(self, lm: CachedLM, view: TargetView) -> Watched:
        drafter = registry.build(self._made_for(self._choice, lm), view, methods_dirs=self._methods_dirs)
        return Watched(drafter, vocab_size=lm.vocab_size)

    def stand(
        self,
        lm: CachedLM,
        sampling: Sampling,
        *,
        prompts: Sequence[tuple[int, ...]] = _PROMPTS,
        stop: Stop | None = None,
        rule: Rule = "coupled",
        max_new_tokens: int = 16,
        has_answers: bool = True,
        first_id: int = 0,
    ) -> _Stand:
        """has_answers: make the autoregressive answers first; always done for methods that replay them."""
        max_len = max(len(prompt) for prompt in prompts) + max_new_tokens + len(_PROMPTS)
        engine = Engine(
            lm,
            sampling=sampling,
            rule=rule,
            max_batch=max(MAX_BATCH, len(prompts)),
            max_len=max_len,
            stop=stop,
        )
        requests = tuple(
            Request(
                key=sequence_key(seed=0, question_id=str(first_id + place), turn=0),
                prompt=prompt,
                # Different lengths, so that rows leave a batch at different steps.
                max_new_tokens=max_new_tokens + place % len(_PROMPTS),
            )
            for place, prompt in enumerate(prompts)
        )
        wants_reference = "reference" in self._requires
        answers: tuple[Generation, ...] = ()
        if has_answers or wants_reference:
            answers = engine.generate(PlainDrafter(engine.view()), requests).generations
        if wants_reference:
            requests = tuple(
                replace(request, reference=answer.tokens) for request, answer in zip(requests, answers, strict=True)
            )
        drafter = self._build_drafter(lm, engine.view())
        engine.reserve(drafter.max_nodes)
        return _Stand(engine=engine, drafter=drafter, requests=requests, answers=answers)

    # --- promises ----------------------------------------------------------------------------------------------------

    def builds(self) -> str:
        drafter = self.stand(self._targets[0], _GREEDY, has_answers=False).drafter
        learnt = "".join(
            f"; weights made for the check: {NUM_STEPS} steps moved the loss from {made.first_loss:.3g} to "
            f"{made.last_loss:.3g}"
            for made in self._made.values()
        )
        return f"up to {drafter.max_nodes} nodes a step, {drafter.num_parameters()} parameters of its own{learnt}"

    def text(self, sampling: Sampling) -> str:
        """Alone and in a ragged batch: the tokens, the reasons to stop and the counts are autoregression's."""
        num_tokens = num_accepted = num_drafts = 0
        for lm in self._targets:
            free = self.stand(lm, sampling)
            stand = self.stand(lm, sampling, stop=Stop(ids=frozenset({_token_inside(free.answers)})))
            everyone = range(len(stand.requests))
            for places in (everyone, *([place] for place in everyone)):
                generations = stand.generate(places)
                _demand_text(stand, places, generations, lm.name)
                num_tokens += sum(len(each.tokens) for each in generations)
                num_accepted += sum(step.num_accepted for each in generations for step in each.steps)
            num_drafts += stand.drafter.num_drafts
        return f"{num_tokens} tokens equal, {num_accepted} of them drafted, {num_drafts} drafts well-formed"

    def stops(self) -> str:
        """On a text that can be foreseen: a stop id and the length limit, both inside accepted runs where there are
        any."""
        lm = cyclic_target()
        start = 1
        cycle = [start]
        while len(cycle) < 50:
            cycle.append(successor(cycle[-1]))
        num_cut = 0
        for length, place in ((12, None), (30, 17), (30, 18), (30, 20)):
            stop = Stop(ids=frozenset() if place is None else frozenset({cycle[(50 + place) % 46]}))
            stand = self.stand(lm, _GREEDY, prompts=[tuple(cycle)] * 2, stop=stop, max_new_tokens=length)
            for places in ([0], [0, 1]):
                generations = stand.generate(places)
                _demand_text(stand, places, generations, lm.name)
                num_cut += sum(step.num_truncated for each in generations for step in each.steps)
        return f"ends at the same token; {num_cut} accepted tokens behind a stop were cut"

    def forgets(self) -> str:
        """The second generation of a prompt, after others, drafts as the first did; so does one after `restore`."""
        for sampling in (_GREEDY, _DRAWN):
            stand = self.stand(self._targets[0], sampling, has_answers=False)
            drafter = stand.drafter
            snapshot = drafter.snapshot()
            seen = []
            for _ in range(3):
                drafter.restore(snapshot)
                stand.generate([0])
                seen.append(list(drafter.drafts))
                stand.generate([1, 2])
                stand.generate([3])
            if drafter.carries == "nothing":
                stand.generate([0])
                seen.append(list(drafter.drafts))
            for again in seen[1:]:
                step = next(
                    (step for step, pair in enumerate(zip(seen[0], again, strict=False)) if pair[0] != pair[1]), None
                )
                if step is not None or len(seen[0]) != len(again):
                    what = "restore(snapshot)" if drafter.carries == "stream" else "begin()"
                    raise BrokenPromise(
                        f"the same prompt drafts differently after others at step {step}: {what} forgets too little"
                    )
        return "the same prompt drafts the same tree after others"

    def batches(self) -> str:
        """A row drafts in a batch what it drafts alone: `keep` gathered its state, and neighbours do not leak into
        it."""
        for lm in self._targets:
            stand = self.stand(lm, _DRAWN, has_answers=False)
            if stand.drafter.carries == "stream":
                return "not asked: the method learns across rows (carries stream)"
            together = [_accepted(each) for each in stand.generate(range(len(stand.requests)))]
            for place, accepted in enumerate(together):
                alone = _accepted(stand.generate([place])[0])
                if alone != accepted:
                    raise BrokenPromise(
                        f"{lm.name}: row {place} accepts {accepted} per step in a batch and {alone} alone"
                    )
        return "every row accepts the same in a batch and alone"

    def chunks(self) -> str:
        """The prompt's chunks leave no trace in the drafts."""
        stand = self.stand(self._targets[0], _DRAWN, has_answers=False)
        snapshot = stand.drafter.snapshot()
        seen = []
        for chunk in (512, 5, 1):
            stand.drafter.restore(snapshot)
            stand.generate([3], chunk=chunk)
            seen.append(list(stand.drafter.drafts))
        if seen[0] != seen[1] or seen[0] != seen[2]:
            raise BrokenPromise("drafts depend on the size of the prefill's chunks")
        return "drafts do not depend on prefill chunks"

    def follows(self) -> str:
        """Drafts set aside by a method that wraps this one leave no trace: the next ones are those of the same text."""
        num_compared = 0
        for sampling in (_GREEDY, _DRAWN):
            stand = self.stand(self._targets[0], sampling)
            if stand.drafter.carries == "stream":
                return "not asked: the method learns from its own drafts (carries stream)"
            answers = [answer.tokens for answer in stand.answers]
            plain, disturbed = (
                SetAside(stand.drafter, answers, device=stand.engine.lm.device, is_disturbed=is_disturbed)
                for is_disturbed in (False, True)
            )
            stand.engine.reserve(disturbed.max_nodes)
            for drafter in (plain, disturbed):
                generations = stand.engine.generate(drafter, stand.requests).generations
                _demand_text(stand, range(len(stand.requests)), generations, stand.engine.lm.name)
            for where in sorted(plain.seen.keys() & disturbed.seen.keys()):
                if plain.seen[where] != disturbed.seen[where]:
                    raise BrokenPromise(
                        f"row {where[0]} drafts differently at token {where[1]} after tokens it did not draft: "
                        "follow() loses its place"
                    )
            num_compared += len(plain.seen.keys() & disturbed.seen.keys())
        return f"{num_compared} drafts are the same after tokens that others drafted"

    def captures(self) -> str:
        """Steps captured once and replayed without Python commit what the same steps commit one by one."""
        num_graphs = 0
        for sampling in (_GREEDY, _PROCESSED):
            stand = self.stand(self._targets[0], sampling)
            if not stand.drafter.capturable:
                return "not asked: the method drafts on the host"
            engine = _engine_like(stand.engine, graphs=RecordedGraphs())
            choice = self._made_for(self._choice, engine.lm)
            drafter = Guarded(registry.build(choice, engine.view(), methods_dirs=self._methods_dirs))
            everyone = range(len(stand.requests))
            for places in (everyone, [0], everyone):
                wanted = [_kept(each) for each in stand.generate(places)]
                found = list(engine.generate(drafter, [stand.requests[place] for place in places]).generations)
                _demand_text(stand, places, found, f"{engine.lm.name}, captured")
                if [_kept(each) for each in found] != wanted:
                    raise BrokenPromise("captured steps accept other drafts: `carried` or `hold` leaves something out")
            assert engine.graphs is not None
            if engine.graphs.refusal(drafter):
                raise BrokenPromise(f"the method says capturable, but {engine.graphs.refusal(drafter)}")
            num_graphs += engine.graphs.num_graphs(drafter)
        return f"{num_graphs} graphs accept what single steps accept"

    def rejection(self, num_groups: int) -> str:
        """Law of three tokens of a vocabulary of four under the rule `rejection`, jointly and each, by chi-square."""
        if not self._can_take_any_target:
            return "not asked: needs a target of four tokens, and the method has weights for another"
        lm, prompt = table_target(), (0, 1, 2, 3, 0, 1, 2, 3, 0, 1)
        answers: list[tuple[int, ...]] = []
        num_rows = 300
        for group in range(num_groups):
            stand = self.stand(
                lm, _DRAWN, prompts=[prompt] * num_rows, rule="rejection", max_new_tokens=3, has_answers=False,
                first_id=group * num_rows,
            )  # fmt: skip
            # Longer answers are cut: the law is that of the first three tokens.
            answers += [each.tokens[:3] for each in stand.generate(range(num_rows))]
        law = enumerated_law(lm.logits_VV, _DRAWN, length=3, first=prompt[-1])
        p_values = [chi_square_p(answers, law)]
        for place in (1, 2):  # token 0 is the prefill's, drawn without a draft
            p_values.append(chi_square_p([(answer[place],) for answer in answers], marginal(law, place)))
        p = min(1.0, len(p_values) * min(p_values))  # Bonferroni
        if p < P_VALUE:
            raise BrokenPromise(
                f"{len(answers)} answers have p = {p:.2g} under the target's law (at least {P_VALUE} is asked)"
            )
        smallest = min(p_values)
        return (
            f"{len(answers)} answers follow the target's law (smallest of {len(p_values)} chi-square p: {smallest:.2g})"
        )


def check_method(
    name: str,
    *,
    target: str | None = None,
    options: Mapping[str, Any] | None = None,
    methods_dirs: Sequence[Path] = (),
    quick: bool = False,
    training: Mapping[str, Any] | None = None,
) -> list[Finding]:
    """Every promise as a finding; with a `target` followed by a short probe of what the method would gain on it.

    options: as for `registry.check_options`; those of a wrapped method as `NAME.OPTION`. quick: one architecture and a
    third of the chi-square's draws. training: options of `specbench train` for weights that are made here, because the
    method requires some and none are named. Raises UsageError (unknown method or option; weights named without their
    target) and what `load_lm` raises.
    """
    said = registry.by_method(name, options or {})
    choice = _chosen(name, said, target_is_demo=target == "demo", methods_dirs=methods_dirs)
    card = choice.card
    targets = [random_target(architecture) for architecture in ARCHITECTURES[: 1 if quick else None]]
    has_weights = _names_weights(choice)
    if has_weights:
        targets = [_own_target(card, target)]
    with tempfile.TemporaryDirectory(prefix="specbench-check-") as scratch:
        checker = _Checker(choice, targets, Path(scratch), methods_dirs=methods_dirs, training=training)
        promises: list[tuple[str, Callable[[], str]]] = [
            ("greedy text", lambda: checker.text(_GREEDY)),
            ("seeded text", lambda: checker.text(_DRAWN)),
            ("seeded text, all processors", lambda: checker.text(_PROCESSED)),
            ("forgets", checker.forgets),
            ("batches", checker.batches),
            ("prefill chunks", checker.chunks),
            ("follows", checker.follows),
            ("captured steps", checker.captures),
            ("rejection law", lambda: checker.rejection(1 if quick else 3)),
        ]
        if not has_weights:
            promises.insert(3, ("stops", checker.stops))
        findings = [_keeps("builds", checker.builds)]
        if findings[0].state == "ok":
            findings += [_keeps(title, promise) for title, promise in promises]
    if target is not None and "weights" in choice.requires and not has_weights:
        findings.append(
            Finding(name="speed-up to expect", state="ok", what=f"not asked: no weights are named for {target}")
        )
    elif target is not None and all(finding.state != "failed" for finding in findings):
        from specbench.conformance.gain import (
            expected_gain,
        )  # the suites and a real model, only where a target is named

        findings += expected_gain(card, registry.load(name, methods_dirs=methods_dirs), choice.options, target=target)
    return findings


def _chosen(
    name: str, said: Mapping[str, Mapping[str, Any]], *, target_is_demo: bool, methods_dirs: Sequence[Path]
) -> registry.Choice:
    """`registry.choose`; draft models and weights nobody named are made by the checker: no reason not to be ready."""
    given = {method: dict(values) for method, values in said.items()}
    for _ in range(2):  # the method, then what it wraps
        for method, values in given.items():
            card = registry.card(method, methods_dirs=methods_dirs)
            for need, option in (("draft_model", "model"), ("weights", "weights")):
                is_named = values.get(option) is not None or (target_is_demo and option in card.demo)
                if need in card.requires and not is_named:
                    values[option] = MADE_HERE
        found = registry.card(name, methods_dirs=methods_dirs)
        if found.wraps:
            given.setdefault(str(given[name].get("inner", found.options["inner"].default)), {})
    return registry.choose(name, given, target_is_demo=target_is_demo, methods_dirs=methods_dirs)


def _names_weights(choice: registry.Choice) -> bool:
    """Whether the method, or the one it wraps, comes with weights for one target."""
    own = "weights" in choice.card.requires and choice.options.get("weights") != MADE_HERE
    return own or (choice.inner is not None and _names_weights(choice.inner))


def _own_target(card: Card, target: str | None) -> CachedLM:
    """The target the method's weights belong to, in float64."""
    from specbench.lm.load import load_lm, pick_device  # half a second of hub code, only for trained methods

    if target is None:
        raise UsageError(
            f"{card.name} needs trained weights, which belong to one target",
            try_=f"specbench methods check {card.name} --target MODEL",
        )
    return load_lm(target, device=pick_device("cpu"), dtype=torch.float64)


def _keeps(title: str, promise: Callable[[], str]) -> Finding:
    try:
        return Finding(name=title, state="ok", what=promise())
    except BrokenPromise as broken:
        return Finding(name=title, state="failed", what=str(broken), consequence="its numbers cannot be trusted")
    except SpecbenchError as error:
        return Finding(name=title, state="failed", what=error.what, remedy=error.try_)
    # Somebody else's code: whatever it raises is a promise not kept, and the other promises are still worth asking for.
    except Exception as error:  # noqa: BLE001
        what = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
        return Finding(name=title, state="failed", what=what, consequence="the method cannot finish a generation")


def _engine_like(engine: Engine, *, chunk: int = 512, graphs: Backend | None = None) -> Engine:
    return Engine(
        engine.lm, sampling=engine.sampling, rule=engine.rule, max_batch=engine.max_batch, max_len=engine.max_len,
        max_nodes=engine.max_nodes, prefill_chunk=chunk, stop=engine.stop, graphs=graphs,
    )  # fmt: skip


def _token_inside(answers: Sequence[Generation]) -> int:
    """A token that first stands about two thirds into the first answer: a stop id that bites there."""
    tokens = answers[0].tokens
    later = range(2 * len(tokens) // 3, len(tokens))
    return tokens[next((place for place in later if tokens[place] not in tokens[:place]), len(tokens) - 1)]


def _accepted(generation: Generation) -> list[int]:
    return [step.num_accepted for step in generation.steps]


def _kept(generation: Generation) -> list[int]:
    """Tokens of each step; a captured draft may reach past an answer's end, where the last step is cut."""
    return [step.num_committed - step.num_truncated for step in generation.steps]


def _demand_text(stand: _Stand, places: Sequence[int], found: Sequence[Generation], target: str) -> None:
    for place, generation in zip(places, found, strict=True):
        answer, batch = stand.answers[place], len(places)
        if generation.tokens != answer.tokens:
            pairs = zip(generation.tokens, answer.tokens, strict=False)
            first = next(
                (at for at, pair in enumerate(pairs) if pair[0] != pair[1]),
                min(len(generation.tokens), len(answer.tokens)),
            )
            raise BrokenPromise(f"{target}, batch {batch}, row {place}: differs from autoregression at token {first}")
        if generation.finish_reason != answer.finish_reason:
            raise BrokenPromise(
                f"{target}, batch {batch}, row {place}: ends by {generation.finish_reason}, not {answer.finish_reason}"
            )
        _demand_counts(generation, target)


def _demand_counts(generation: Generation, target: str) -> None:
    """Measurement 14, per generation."""
    steps = generation.steps
    length = 1 + sum(step.num_committed - step.num_truncated for step in steps)
    adds_up = length == len(generation.tokens) and all(
        step.num_committed == step.num_accepted + 1 and step.num_accepted <= step.depth <= step.num_nodes
        for step in steps
    )
    if not adds_up:
        raise BrokenPromise(
            f"{target}: the counts of {len(steps)} steps do not add up to {len(generation.tokens)} tokens"
        )
