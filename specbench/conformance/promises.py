"""What every method must keep, a promise each: a sentence where it is kept, BrokenPromise where it is not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from torch import nn

from specbench.conformance.broken import BrokenPromise
from specbench.conformance.stands import Stand, Stands, engine_like
from specbench.conformance.targets import chi_square_p, cyclic_target, enumerated_law, marginal, successor, table_target
from specbench.conformance.watch import Guarded, SetAside
from specbench.conformance.weights import NUM_STEPS
from specbench.engine.answer import Generation, NotFinite
from specbench.engine.decode import Engine
from specbench.engine.recorded import RecordedGraphs
from specbench.engine.stop import Stop
from specbench.method import Drafter
from specbench.sampling import Sampling

P_VALUE = 1e-4
"""A right rule falls below it once in ten thousand methods; keys are fixed, so the same method always gets the same
value."""
GREEDY = Sampling()
DRAWN = Sampling(temperature=1.0)
PROCESSED = Sampling(temperature=0.8, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.2)


class Promises:
    """Asks one method, on its stands."""

    def __init__(self, stands: Stands) -> None:
        self._stands = stands

    def builds(self) -> str:
        drafter = self._stands.stand(self._stands.targets[0], GREEDY, has_answers=False).drafter
        learnt = "".join(
            f"; weights made for the check: {NUM_STEPS} steps moved the loss from {made.first_loss:.3g} to "
            f"{made.last_loss:.3g}"
            for made in self._stands.made.values()
        )
        return f"up to {drafter.max_nodes} nodes a step, {drafter.num_parameters()} parameters of its own{learnt}"

    def text(self, sampling: Sampling) -> str:
        """Alone and in a ragged batch: the tokens, the reasons to stop and the counts are autoregression's."""
        num_tokens = num_accepted = num_drafts = 0
        for lm in self._stands.targets:
            free = self._stands.stand(lm, sampling)
            stand = self._stands.stand(lm, sampling, stop=Stop(ids=frozenset({_token_inside(free.answers)})))
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
            stand = self._stands.stand(lm, GREEDY, prompts=[tuple(cycle)] * 2, stop=stop, max_new_tokens=length)
            for places in ([0], [0, 1]):
                generations = stand.generate(places)
                _demand_text(stand, places, generations, lm.name)
                num_cut += sum(step.num_truncated for each in generations for step in each.steps)
        return f"ends at the same token; {num_cut} accepted tokens behind a stop were cut"

    def forgets(self) -> str:
        """The second generation of a prompt, after others, drafts as the first did; so does one after `restore`."""
        for sampling in (GREEDY, DRAWN):
            stand = self._stands.stand(self._stands.targets[0], sampling, has_answers=False)
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

    def recovers(self) -> str:
        """A question on which every embedding is NaN, and one on which all but the target's are: the same prompts draft
        afterwards as they did before."""
        stand = self._stands.stand(self._stands.targets[0], GREEDY, max_new_tokens=7, has_answers=False)
        cases: list[tuple[Engine, Drafter]] = [(stand.engine, stand.drafter)]
        if stand.drafter.capturable:
            engine = engine_like(stand.engine, graphs=RecordedGraphs())
            cases.append((engine, Guarded(self._stands.drafter(engine))))
        # A long prompt leaves NaN where shorter texts have slots behind a mask.
        longest = max(stand.requests, key=lambda request: len(request.prompt))
        num_compared = 0
        for engine, drafter in cases:
            for requests in (stand.requests[2:3], stand.requests[:3]):
                snapshot = drafter.snapshot()
                seen = []
                for spared in (None, engine.lm.embed_tokens, None):
                    found = engine.generate(drafter, requests).generations
                    # Captured steps call no Python that could keep their drafts.
                    seen.append((list(map(_kept, found)), stand.drafter.drafts if drafter is stand.drafter else []))
                    drafter.restore(snapshot)
                    with _embeddings_of_nan(but=spared), suppress(NotFinite):
                        engine.generate(drafter, [longest] * len(requests))
                    drafter.restore(snapshot)
                if seen[1] != seen[0] or seen[2] != seen[0]:
                    raise BrokenPromise(
                        f"batch {len(requests)}: the same prompts draft differently after a question whose numbers "
                        "were NaN: erase() or is_finite() leaves something out"
                    )
                num_compared += len(requests)
        return f"{num_compared} rows draft the same after questions of NaN"

    def batches(self) -> str:
        """A row drafts in a batch what it drafts alone: `keep` gathered its state, and neighbours do not leak into
        it."""
        for lm in self._stands.targets:
            stand = self._stands.stand(lm, DRAWN, has_answers=False)
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
        stand = self._stands.stand(self._stands.targets[0], DRAWN, has_answers=False)
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
        for sampling in (GREEDY, DRAWN):
            stand = self._stands.stand(self._stands.targets[0], sampling)
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
        for sampling in (GREEDY, PROCESSED):
            stand = self._stands.stand(self._stands.targets[0], sampling)
            if not stand.drafter.capturable:
                return "not asked: the method drafts on the host"
            engine = engine_like(stand.engine, graphs=RecordedGraphs())
            drafter = Guarded(self._stands.drafter(engine))
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
        if not self._stands.can_take_any_target:
            return "not asked: needs a target of four tokens, and the method has weights for another"
        lm, prompt = table_target(), (0, 1, 2, 3, 0, 1, 2, 3, 0, 1)
        answers: list[tuple[int, ...]] = []
        num_rows = 300
        for group in range(num_groups):
            stand = self._stands.stand(
                lm, DRAWN, prompts=[prompt] * num_rows, rule="rejection", max_new_tokens=3, has_answers=False,
                first_id=group * num_rows,
            )  # fmt: skip
            # Longer answers are cut: the law is that of the first three tokens.
            answers += [each.tokens[:3] for each in stand.generate(range(num_rows))]
        law = enumerated_law(lm.logits_VV, DRAWN, length=3, first=prompt[-1])
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


@contextmanager
def _embeddings_of_nan(*, but: nn.Module | None) -> Iterator[None]:
    """Every table of embeddings, a draft model's as well, gives NaN; `but` this one."""

    def spoil(module: nn.Module, _inputs: Any, output: Any) -> Any:
        is_hit = isinstance(module, nn.Embedding) and module is not but
        return output * float("nan") if is_hit else output

    handle = nn.modules.module.register_module_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()


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


def _demand_text(stand: Stand, places: Sequence[int], found: Sequence[Generation], target: str) -> None:
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
