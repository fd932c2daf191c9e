"""The request's data set -> documents to learn from and documents held out.

`self` and `self:NAME` have the target answer the prompts of a data set itself (Zhang 2024: what a drafter must foresee
is the target's text, not the data's). `demo` is `self:demo`: the embedded prompts come without answers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator

from specbench.data import Prompts, load_documents, load_prompts
from specbench.data.documents import Documents
from specbench.errors import UsageError
from specbench.lm.cached_lm import CachedLM
from specbench.lm.stops import stop_ids_of
from specbench.sampling import Sampling
from specbench.training.corpus import Corpus
from specbench.training.defaults import Settled
from specbench.training.record import target_name
from specbench.training.request import TrainProgress

_DEFAULT_PROMPTS = "demo"
_SELF = "self"


def load_corpus(request: Settled, lm: CachedLM, progress: TrainProgress, accelerator: Accelerator) -> Corpus:
    """Every process gets the same; the main one makes it. A dry run decodes nothing: where the target has yet to write
    the answers, the corpus is what they come to at most. Raises as `specbench.data` does."""
    box: list[Documents | bool | None] = [None, False]
    if accelerator.is_main_process:
        unwritten = _unwritten_documents(request, lm) if request.dry_run else None
        box = [read_documents(request, lm, progress) if unwritten is None else unwritten, unwritten is not None]
    if accelerator.num_processes > 1:
        torch.distributed.broadcast_object_list(box, src=0)
    documents, is_unwritten = box[0], bool(box[1])
    assert isinstance(documents, Documents) and request.eval_documents is not None and request.seed is not None
    require(documents, least=2, why="one is held out, to judge by")
    # A third at most: a small data set is for learning.
    held_out = max(1, min(request.eval_documents, len(documents) // 3))
    parts = documents.split(held_out, seed=request.data_seed)
    if not is_unwritten:
        for line in (*documents.notes, *documents.counts.lines()):
            progress.say(line)
    return Corpus(
        name=documents.name,
        train=parts.train,
        held_out=parts.held_out,
        facts=facts_of(documents),
        notes=documents.notes if is_unwritten else (),
        is_unwritten=is_unwritten,
    )


def require(documents: Documents, *, least: int, why: str) -> None:
    """Raises UsageError where there are fewer."""
    if len(documents) < least:
        found = "1 document" if len(documents) == 1 else f"{len(documents)} documents"
        raise UsageError(
            f"data set {documents.name!r} has {found}, and at least {least} are needed: {why}",
            where="--dataset",
            try_="a larger data set; specbench data show DATASET says which rows are dropped and why",
        )


def facts_of(documents: Documents) -> dict[str, object]:
    """What train.json says of a data set."""
    return {
        "source": documents.source,
        "licence": documents.licence,
        "fingerprint": documents.fingerprint,
        "counts": documents.counts.as_dict(),
        "notes": list(documents.notes),
    }


def read_documents(request: Settled, lm: CachedLM, progress: TrainProgress) -> Documents:
    """All documents of the filled request's data set; under `self` the target writes their answers first."""
    assert lm.tokenizer is not None, "load_target refuses a target without a tokenizer"
    found = prompts_to_answer(request)
    if found is None:
        return load_documents(
            request.dataset,
            tokenizer=lm.tokenizer,
            max_len=request.max_length,
            seed=request.data_seed,
            columns=request.columns,
            template=request.template,
            assistant_only=request.assistant_only,
            limit=request.documents,
            data_dirs=request.data,
            stop_ids=stop_ids_of(lm),
            say=progress.say,
        )
    # torch comes with it
    from specbench.data.writing import write_responses

    progress.say(f"{lm.name} answers {len(found.prompts):,} prompts of {found.name}")
    written = write_responses(
        lm,
        found.prompts,
        **_asked(request),
        max_len=request.max_length,
    )
    # A published drafter says what it comes from: whose prompts were answered, and under which licence they are.
    source = f"written by {target_name(request.target)} to prompts of {found.name}"
    return replace(written, source=source, licence=found.licence)


def _asked(request: Settled) -> dict[str, Any]:
    """What answers of the target itself depend on, beside target and prompts."""
    return {
        "sampling": Sampling(temperature=request.response_temperature),
        "max_new_tokens": request.response_tokens,
        "seed": request.seed,
        "template": request.template,
    }


def _unwritten_documents(request: Settled, lm: CachedLM) -> Documents | None:
    """What `read_documents` would have the target write, at most; None where nothing is left for it to write. Raises as
    it does."""
    found = prompts_to_answer(request)
    if found is None:
        return None
    # torch comes with it
    from specbench.data.writing import unwritten_responses

    documents = unwritten_responses(lm, found.prompts, **_asked(request), max_len=request.max_length)
    if documents is None:
        return None
    note = (
        f"{lm.name} has yet to answer {len(found.prompts):,} prompts of {found.name}: "
        f"every answer counts as {request.response_tokens} tokens, the most it may have"
    )
    return replace(documents, notes=(note,))


def prompts_to_answer(request: Settled) -> Prompts | None:
    """What the target answers itself under the request's data set; None for one with answers of its own. Raises
    UsageError where prompts were to be learnt, too."""
    prompts_of = _self_prompts(request.dataset)
    if prompts_of is None:
        return None
    if not request.assistant_only:
        raise UsageError(
            "what the target wrote itself is learnt, not its prompts",
            where="--no-assistant-only",
            try_=f"--dataset {prompts_of} without {_SELF}:, where it has answers",
        )
    return load_prompts(
        prompts_of, seed=request.data_seed, columns=request.columns, limit=request.documents, data_dirs=request.data
    )


def _self_prompts(dataset: str) -> str | None:
    """Whose prompts the target answers itself; None for a data set with answers of its own."""
    if dataset in (_SELF, _DEFAULT_PROMPTS):
        return _DEFAULT_PROMPTS
    kind, colon, name = dataset.partition(":")
    return name if colon and kind == _SELF else None
