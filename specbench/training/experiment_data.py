"""Documents of an experiment: each data set is read once and cut into a part to learn from, one to choose by and one
that only evaluations see."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from specbench.data import Prompts, kept
from specbench.data.documents import Documents
from specbench.data.rendering import Renderer
from specbench.lm.cached_lm import CachedLM
from specbench.lm.stops import stop_ids_of
from specbench.quantisation import NONE
from specbench.training.corpus import Corpus
from specbench.training.defaults import Settled, settle
from specbench.training.documents import facts_of, prompts_to_answer, read_documents, require
from specbench.training.experiment_plan import DATA_SEED, Evaluation, Reading, Training
from specbench.training.request import TrainProgress, TrainRequest
from specbench.training.setup import load_target, make_accelerator, threads_of


class Parts(NamedTuple):
    """Of one data set; no prompt stands in two of them."""

    learn: Documents | None
    """None where nothing is trained on it."""
    choose: Documents | None
    evaluate: Documents


class Library:
    """Reads each data set when a cell first needs it."""

    def __init__(self, progress: TrainProgress) -> None:
        self._progress = progress
        self._known: dict[Reading, Parts] = {}

    def corpus(self, training: Training) -> Corpus:
        """What a training reads. Raises as `specbench.data` does."""
        parts = self._parts(training.reading, training.request)
        assert parts.learn is not None and parts.choose is not None, "a training's reading is one to learn from"
        learn = _subset(parts.learn, training)
        if training.request.assistant_only is False:
            # Every token of the very documents whose answers the other trainings learn.
            learn_N = np.ones_like(learn.learn_N)
            learn = replace(learn, learn_N=learn_N, counts=replace(learn.counts, num_learnt=len(learn_N)))
        return Corpus(name=learn.name, train=learn, held_out=parts.choose, facts=facts_of(learn), notes=learn.notes)

    def evaluated(self, evaluation: Evaluation) -> Documents:
        """What an evaluation reads."""
        found = self._parts(evaluation.reading, evaluation.request).evaluate
        # Not the source that a drafter's provenance names: none of these documents was learnt.
        return replace(found, source=f"{found.source} (held out)")

    def num_learnt(self, evaluation: Evaluation, training: Training) -> int:
        """Evaluated documents whose prompt the training learnt: those of one data set never, but two may share some."""
        learnt = {document.prompt or document.ids for document in self.corpus(training).train}
        return sum((document.prompt or document.ids) in learnt for document in self.evaluated(evaluation))

    def _parts(self, reading: Reading, request: TrainRequest) -> Parts:
        if reading not in self._known:
            self._progress.say(f"documents of {reading.dataset}")
            documents = self._read(reading, request)
            for line in (*documents.notes, *documents.counts.lines()):
                self._progress.say(line)
            self._known[reading] = cut(documents, reading)
        return self._known[reading]

    def _read(self, reading: Reading, request: TrainRequest) -> Documents:
        settled = settle(
            replace(
                request,
                dataset=reading.dataset,
                columns=reading.columns,
                template=reading.template,
                documents=reading.limit,
                assistant_only=True,
                max_length=reading.max_length,
                response_tokens=reading.response_tokens,
                response_temperature=reading.response_temperature,
                seed=DATA_SEED,
            )
        )
        threads_of(settled)
        lm = load_target(settled, make_accelerator(settled))
        if lm.context_length is not None:
            settled = replace(settled, max_length=min(settled.max_length, lm.context_length))
        prompts = prompts_to_answer(settled)
        if prompts is None:
            return read_documents(settled, lm, self._progress)
        # What the target wrote is kept: minutes to hours that a resumed experiment need not spend again.
        key = _fingerprint(settled, lm, prompts)
        found = kept.find(key)
        return found or kept.keep(replace(read_documents(settled, lm, self._progress), fingerprint=key))


def cut(documents: Documents, reading: Reading) -> Parts:
    """A sixth at most for each held-out part, but one document: a small data set is for learning. Raises UsageError
    where there are not three."""
    if not reading.learns:
        return Parts(None, None, documents)
    require(documents, least=3, why="one is learnt, one chooses, one is for evaluations")
    held_out = max(1, min(reading.held_out, len(documents) // 6))
    rest, evaluate = documents.split(held_out, seed=DATA_SEED)
    learn, choose = rest.split(held_out, seed=DATA_SEED + 1)
    return Parts(learn, choose, evaluate)


def _subset(documents: Documents, training: Training) -> Documents:
    """`documents` and `share` of a training: a smaller one is part of each larger one."""
    most, limit = training.request.documents, training.reading.limit
    num = len(documents)
    if most is not None and (limit is None or most < limit):
        num = min(num, most)
    num = max(1, round(num * training.share))
    if num == len(documents):
        return documents
    order = np.random.default_rng(DATA_SEED).permutation(len(documents))
    return documents.take(sorted(int(index) for index in order[:num]))


def _fingerprint(settled: Settled, lm: CachedLM, prompts: Prompts) -> str:
    """Of all that the documents depend on: what was asked (clean of the suites' questions), in which form, of whom."""
    renderer = Renderer.of(lm.tokenizer, template=settled.template, stop_ids=stop_ids_of(lm))
    identity = {
        "format": kept.FORMAT,
        "written_by": lm.weights_hash,
        "dtype": str(lm.dtype),
        # Left out where there is none: what was written before there was any is still the same.
        **({} if lm.quantisation == NONE else {"quantisation": lm.quantisation}),
        "device": lm.device.type,
        "rendering": renderer.key,
        "stop_ids": sorted(renderer.stop_ids),
        "prompts": [prompts.name, prompts.content_hash],
        "tokens": settled.response_tokens,
        "temperature": settled.response_temperature,
        "max_length": settled.max_length,
        "seed": settled.seed,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
