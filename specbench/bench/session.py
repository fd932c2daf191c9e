"""Everything a run holds in memory: target, engine, suite, prompts, reference, drafters.

Built once per command; `bench.run` and `specbench generate` both work on one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import transformers

from specbench import provenance, registry, suite
from specbench.bench import execution
from specbench.bench.competitors import Competitor
from specbench.bench.execution import describe, pick_graphs
from specbench.bench.lengths import most_tokens, render_turn
from specbench.bench.reference import ReferenceAnswer, ReferenceBook
from specbench.bench.request import Progress, RunRequest
from specbench.engine.answer import GroupResult, StepSink
from specbench.engine.decode import Engine
from specbench.engine.graphs import Capturing
from specbench.engine.stop import Stop
from specbench.engine.watched import StepWatch
from specbench.errors import EnvironmentFailed, SpecbenchError, UsageError
from specbench.lm.cached_lm import CachedLM
from specbench.lm.load import load_lm, pick_device, pick_dtype
from specbench.lm.parallel import num_processes, own_device
from specbench.lm.stops import stop_ids_of
from specbench.method import Drafter, Request
from specbench.quantisation import NONE
from specbench.sampling import Sampling, sequence_key
from specbench.suite import LoadedSuite, Question

WARM_UP_TOKENS = 24
_MAX_WARM_UPS = 6
_SETTLED = 0.1
"""Warm-up ends when two successive runs' median step times differ by less than this share."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One question in one turn, ready to be decoded."""

    question: Question
    turn: int
    key: int
    prompt: tuple[int, ...]


class WarmUp(NamedTuple):
    """What warming up took, and whether it was enough."""

    seconds: float
    unsettled: str
    """Empty where step time settled, or nothing takes a step; otherwise by how much it did not."""


def sampling_of(request: RunRequest) -> Sampling:
    """The request's processors; `with_defaults` has filled them."""
    assert request.temperature is not None and request.top_k is not None and request.top_p is not None
    assert request.min_p is not None and request.repetition_penalty is not None
    return Sampling(
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
    )


def set_threads(threads: int | None) -> int:
    """Use this many CPU threads (None: torch's choice) -> how many are in use."""
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def load_target(request: RunRequest) -> CachedLM:
    """The request's target on its device, with a tokenizer. Raises EnvironmentFailed where it has none."""
    assert request.target is not None and request.device is not None and request.dtype is not None
    assert request.quantisation is not None
    device = pick_device(request.device)
    is_split = num_processes() > 1
    if is_split:
        device = own_device(device)
    lm = load_lm(
        request.target,
        device=device,
        dtype=pick_dtype(request.dtype, device),
        attention_name=request.attention or "auto",
        trust_remote_code=request.trust_remote_code,
        is_split=is_split,
        quantisation=request.quantisation,
        will_compile=request.compile in ("on", "whole"),
    )
    if lm.tokenizer is None:
        raise EnvironmentFailed(
            f"target {request.target!r} has no tokenizer files, so no prompt can be made for it",
            try_="put tokenizer.json and tokenizer_config.json beside its weights",
        )
    return lm


class Session:
    """A loaded target and suite under one sampling and rule."""

    def __init__(self, request: RunRequest, loaded: LoadedSuite) -> None:
        assert request.max_new_tokens is not None and request.seed is not None and request.batch_size is not None
        self.request = request
        self.suite = loaded
        self.threads = set_threads(request.threads)
        self.lm = load_target(request)
        assert self.lm.tokenizer is not None
        self.tokenizer = self.lm.tokenizer
        self.template = request.template or "chat"
        self.sampling = sampling_of(request)
        self.graphs = pick_graphs(request.graphs or "auto", self.lm)
        self.max_new_tokens: int = request.max_new_tokens
        self.seed: int = request.seed
        self.num_prompt_tokens = {q.question_id: len(self._render(q, 0, ())) for q in loaded.questions}
        self.engine = Engine(
            self.lm,
            sampling=self.sampling,
            rule=request.rule or "coupled",
            max_batch=request.batch_size,
            max_len=self._needed_len(),
            stop=Stop(ids=stop_ids_of(self.lm), strings=request.stop, decode=self.decode),
            graphs=self.graphs,
        )
        self.compile_switch: str = request.compile or "auto"
        self.references: dict[tuple[str, int], ReferenceAnswer] = {}
        self._book: ReferenceBook | None = None
        self._kept: set[tuple[str, int]] = set()
        """References taken from earlier runs that no answer of this one has made doubtful."""

    def compile_target(self, say: Callable[[str], None]) -> None:
        """As the request wants it; before anything is run. say: told what came of it."""
        execution.compile_target(self.compile_switch, self.lm, say=say, max_len=self.engine.max_len, graphs=self.graphs)

    def compile_models(self, drafter: Drafter) -> None:
        """Those that it drafts with, as the target was (`execution.compile_models`); its row says where not."""
        max_len, graphs = self.engine.max_len, self.graphs
        notes = execution.compile_models(self.compile_switch, self.lm, drafter, max_len=max_len, graphs=graphs)
        drafter.notes = (*drafter.notes, *notes)

    # --- prompts ---------------------------------------------------------------------------------------------------

    def decode(self, tokens: Sequence[int]) -> str:
        """Ids -> text, special tokens left out."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def suite_hash(self) -> str:
        """The identity of the rendered questions (measurement 16)."""
        return suite.rendered_hash(self.tokenizer, self.suite.questions, self.template)

    def _render(self, question: Question, turn: int, answers: Sequence[str]) -> tuple[int, ...]:
        return render_turn(self.tokenizer, question, turn, answers, self.template)

    def _needed_len(self) -> int:
        """Cache length that the longest question can need, bounded by --max-len and the target's context."""
        longest = max(
            most_tokens(self.tokenizer, q, self.num_prompt_tokens[q.question_id], self.max_new_tokens, self.template)
            for q in self.suite.questions
        )
        limits = [length for length in (self.request.max_len, self.lm.context_length) if length is not None]
        return min([longest, *limits])

    def shortest(self) -> Question:
        """The question with the shortest first prompt: fits whenever any does."""
        return min(self.suite.questions, key=lambda question: self.num_prompt_tokens[question.question_id])

    def cell(self, question: Question, turn: int) -> Cell:
        """The question's prompt in this turn, continuing the reference's earlier answers.

        Raises EnvironmentFailed where an earlier turn has no reference answer to continue.
        """
        answers = []
        for earlier in range(turn):
            answer = self.references.get((question.question_id, earlier))
            if answer is None or answer.error:
                why = answer.error if answer else "it was not made"
                raise EnvironmentFailed(f"turn {turn + 1} continues turn {earlier + 1}, which has no answer: {why}")
            answers.append(answer.text)
        return Cell(
            question=question,
            turn=turn,
            key=sequence_key(seed=self.seed, question_id=question.question_id, turn=turn),
            prompt=self._render(question, turn, answers),
        )

    # --- drafters --------------------------------------------------------------------------------------------------

    def build(self, competitor: Competitor) -> Drafter:
        """One competitor's drafter. The cache grows to its node budget."""
        drafter = registry.build(competitor.choice, self.engine.view(), methods_dirs=self.request.methods_dirs)
        self.engine.reserve(drafter.max_nodes)
        return drafter

    def generate(
        self,
        drafter: Drafter,
        cells: Sequence[Cell],
        *,
        with_reference: bool,
        sink: StepSink | None = None,
        capturing: Capturing = "none",
        watch: StepWatch | None = None,
    ) -> GroupResult:
        """Decode cells together. with_reference: the method's card asked for the reference answers. capturing: graphs
        are made where nothing is timed. watch: see `Engine.generate`."""
        requests = []
        for cell in cells:
            answer = self.references.get((cell.question.question_id, cell.turn)) if with_reference else None
            requests.append(
                Request(
                    key=cell.key,
                    prompt=cell.prompt,
                    max_new_tokens=self.max_new_tokens,
                    reference=answer.tokens if answer else None,
                    domain=cell.question.category,
                )
            )
        return self.engine.generate(drafter, requests, sink=sink, capturing=capturing, watch=watch)

    def warm_up(self, drafter: Drafter, cells: Sequence[Cell], *, with_reference: bool) -> WarmUp:
        """Run until step time settles (measurement 7). Nothing of it is recorded."""
        spent, medians = 0.0, list[float]()
        was = self.max_new_tokens
        self.max_new_tokens = min(WARM_UP_TOKENS, was)
        try:
            for trial in range(_MAX_WARM_UPS):
                capturing: Capturing = "met" if trial else "all"
                result = self.generate(drafter, cells, with_reference=with_reference, capturing=capturing)
                spent += result.total_s
                times = sorted(_step_times(result))
                if not times:
                    return WarmUp(spent, "")
                medians.append(times[len(times) // 2])
                if trial and abs(medians[-1] - medians[-2]) <= _SETTLED * medians[-2]:
                    return WarmUp(spent, "")
        finally:
            self.max_new_tokens = was
        last = " and ".join(f"{1e3 * median:.3g}" for median in medians[-2:])
        rows = f" at batch {len(cells)}" if len(cells) > 1 else ""
        return WarmUp(spent, f"steps{rows} still took {last} ms in the last two of {_MAX_WARM_UPS} warm-ups")

    # --- reference -------------------------------------------------------------------------------------------------

    def reference_identity(self) -> dict[str, Any]:
        """Everything an answer of the target alone depends on, beside its prompt."""
        return {
            "weights": self.lm.weights_hash,
            "dtype": str(self.lm.dtype),
            "quantisation": self.lm.quantisation,
            "device": [provenance.device_name(self.lm.device.type, self.lm.device.index), self.lm.num_processes],
            "threads": self.threads,
            "attention": str(self.lm.model.config._attn_implementation),
            "execution": describe(self.lm, self.graphs),
            "specbench": provenance.decoding_hash(),
            "versions": [torch.__version__, transformers.__version__, *self._quantiser_versions()],
            "sampling": dataclasses.asdict(self.sampling),
            "seed": self.seed,
            "max_new_tokens": self.max_new_tokens,
            "stop": [sorted(self.engine.stop.ids), list(self.engine.stop.strings)],
        }

    def _quantiser_versions(self) -> list[str | None]:
        """What rounded the weights; nothing where nothing did."""
        names = () if self.lm.quantisation == NONE else provenance.QUANTISERS
        return [provenance.version_of(name) for name in names]

    def make_references(self, baseline: Drafter, progress: Progress) -> None:
        """The untimed autoregressive pass over all questions and turns; answers kept from earlier runs are reused.

        A question that cannot be answered keeps its error and is told here, once: no method is asked it.
        """
        book = self._book = ReferenceBook(self.reference_identity())
        for question in self.suite.questions:
            for turn in range(len(question.turns)):
                answer = self.references[question.question_id, turn] = self._refer(baseline, question, turn, book)
                # Later turns are refused for the first one's sake.
                if answer.error and (turn == 0 or not self.references[question.question_id, turn - 1].error):
                    name = question.question_id
                    progress.say(f"question {name}, turn {turn + 1}: not asked of the methods: {answer.error}")
        if book.warning:
            progress.say(book.warning)
        if not any(not answer.error for answer in self.references.values()):
            raise UsageError(
                f"no question of {self.suite.name} can be answered by {self.lm.name} with these lengths",
                try_="--max-new-tokens with a smaller number, or a target with a longer context",
            )

    def renewed_references(
        self, baseline: Drafter, cell: Cell, tokens: Sequence[int]
    ) -> dict[tuple[str, int], ReferenceAnswer]:
        """Of a first answer that differs from a reference which an earlier run kept: what the target writes here and
        now. Empty where it writes the same.

        Another machine of the same name may round otherwise, and the cache folder is anybody's. Later turns continue
        this one, so theirs are renewed with it: before a later turn is asked. Untimed, between two groups.
        """
        where = (cell.question.question_id, cell.turn)
        if where not in self._kept or tuple(tokens) == self.references[where].tokens:
            return {}
        self._kept.discard(where)
        answer = self._reference_answer(baseline, cell)
        if answer.tokens == self.references[where].tokens:
            return {}
        assert self._book is not None, "a reference was kept in a book"
        self._book.keep(answer, question_id=where[0], turn=where[1])
        renewed = {where: answer}
        self.references |= renewed
        for turn in range(cell.turn + 1, len(cell.question.turns)):
            later = self._refer(baseline, cell.question, turn, self._book)
            renewed[where[0], turn] = self.references[where[0], turn] = later
        return renewed

    def _refer(self, baseline: Drafter, question: Question, turn: int, book: ReferenceBook) -> ReferenceAnswer:
        """One answer of the target alone, from the book where it stands there, or why there is none."""
        where = (question.question_id, turn)
        self._kept.discard(where)
        try:
            cell = self.cell(question, turn)
            # A run with a longer cache may have kept an answer that no method of this one has room to write.
            self.engine.check_fits(len(cell.prompt), self.max_new_tokens)
            answer = book.find(cell.prompt, question_id=question.question_id, turn=turn)
            if answer is not None:
                self._kept.add(where)
                return answer
            answer = self._reference_answer(baseline, cell)
            book.keep(answer, question_id=question.question_id, turn=turn)
        except SpecbenchError as error:
            return ReferenceAnswer(prompt=(), tokens=(), text="", finish_reason="", error=str(error.what))
        return answer

    def _reference_answer(self, baseline: Drafter, cell: Cell) -> ReferenceAnswer:
        [generation] = self.generate(baseline, [cell], with_reference=False).generations
        return ReferenceAnswer(
            prompt=cell.prompt,
            tokens=generation.tokens,
            text=self.decode(generation.tokens),
            finish_reason=generation.finish_reason,
        )


def _step_times(result: GroupResult) -> list[float]:
    """Seconds of each step of a group. A batched step's phases stand on its first live row: over rows, most are 0."""
    seconds: dict[float, float] = {}
    for generation in result.generations:
        for step in generation.steps:
            phases = step.draft_s + step.verify_s + step.accept_s + step.commit_s
            seconds[step.end_s] = seconds.get(step.end_s, 0.0) + phases
    return list(seconds.values())
