"""`load_documents`: a dataset's name or path -> tokenised documents with masks, kept on disk for the next time."""

from __future__ import annotations

import hashlib
import json
import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specbench.data import kept
from specbench.data.columns import Columns
from specbench.data.counts import Counts
from specbench.data.documents import Documents
from specbench.data.examples import ExampleSet, Found, Tally, open_examples
from specbench.data.rendering import Refused, Rendered, Renderer
from specbench.errors import UsageError

MIN_TOKENS = 3
"""Anchor, root and one label: fewer tokens teach nothing."""
_SAY_EVERY_S = 10.0


def load_documents(
    spec: str,
    *,
    tokenizer: Any,
    max_len: int,
    seed: int,
    columns: Columns | str | None = None,
    template: str | None = None,
    assistant_only: bool = True,
    limit: int | None = None,
    data_dirs: Sequence[Path] = (),
    stop_ids: Iterable[int] = (),
    offline: bool = False,
    say: Callable[[str], None] | None = None,
) -> Documents:
    """Tokenise a dataset under the target's template.

    spec: a name of `specbench data ls`, a file, a folder of `data generate`, or a hub id OWNER/NAME[:CONFIG][:SPLIT].
    max_len: longer documents are cut there. assistant_only: only answers are learnt; False: everything is. limit: read
    this many rows, drawn by seed (which matters for nothing else here). stop_ids: what ends an answer; default the
    tokenizer's end token. say: told how far it is, every 10 s.

    Rows that carry ids made by this tokenizer and template (written by `data generate`) are taken as they are.
    Raises UsageError (unknown, malformed, wrong columns, nothing left) or EnvironmentFailed (not to be had).
    """
    if max_len < MIN_TOKENS:
        raise UsageError(f"documents of {max_len} tokens hold nothing to learn", where="--max-len")
    chosen = open_examples(spec, columns=columns, limit=limit, seed=seed, data_dirs=data_dirs, offline=offline)
    if chosen.columns.kind == "prompts":
        raise UsageError(
            f"{spec} holds prompts without answers",
            where=chosen.located.where,
            try_=f"specbench data generate --dataset {spec} --target TARGET --out DIR, then train on DIR; "
            "or --columns prompt=…,response=…",
        )
    renderer = Renderer.of(tokenizer, template=template or "chat", stop_ids=stop_ids)
    identity = {
        "format": kept.FORMAT,
        "examples": chosen.identity,
        "rendering": renderer.fingerprint,
        "max_len": max_len,
        "assistant_only": assistant_only,
    }
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    found = kept.find(fingerprint)
    if found is not None:
        return found
    builder = Builder(max_len=max_len, assistant_only=assistant_only)
    tally = Tally()
    said = time.monotonic()
    for item in chosen.examples(tally):
        rendered = _rendered(item, renderer)
        if isinstance(rendered, Refused):
            tally.unusable[rendered.reason] += 1
            continue
        builder.add(rendered, is_text=not item.example.messages)
        if say is not None and time.monotonic() - said > _SAY_EVERY_S:
            said = time.monotonic()
            say(f"{spec}: {tally.num_read:,} rows read, {len(builder.tokens):,} tokens")
    documents = builder.finish(
        name=chosen.located.name,
        counts=_counts(tally, chosen),
        fingerprint=fingerprint,
        source=chosen.located.where,
        licence=chosen.located.licence,
        notes=chosen.notes,
    )
    if not len(documents):
        raise _nothing_left(documents, tally)
    return kept.keep(documents)


class Builder:
    """Collects documents; what teaches nothing is left out and counted."""

    def __init__(self, *, max_len: int, assistant_only: bool = True) -> None:
        self._max_len = max_len
        self._assistant_only = assistant_only
        # Machine integers: a list of a large set's tokens would take eight times the memory.
        self.tokens = array("i")
        self._learn = array("b")
        self._starts = array("q", [0])
        self._prompt_lengths = array("q")
        self._answer_lengths = array("q")
        self._asked = array("b")
        self._seen: set[bytes] = set()
        self.num_too_short = self.num_nothing = self.num_truncated = self.num_repeated = 0

    def add(self, rendered: Rendered, *, is_text: bool = False) -> None:
        """One document."""
        digest = hashlib.sha256(array("i", rendered.ids).tobytes()).digest()
        if digest in self._seen:
            self.num_repeated += 1
            return
        self._seen.add(digest)
        ids, is_answer = rendered.ids[: self._max_len], rendered.is_answer[: self._max_len]
        learn = is_answer if self._assistant_only else [True] * len(ids)
        if len(ids) < MIN_TOKENS:
            self.num_too_short += 1
            return
        # A label needs an anchor and a root before it.
        if not any(learn[2:]):
            self.num_nothing += 1
            return
        self.num_truncated += len(rendered.ids) > self._max_len
        start = 0 if is_text else next((at for at, flag in enumerate(is_answer) if flag), len(ids))
        stop = next((at for at in range(start, len(ids)) if not is_answer[at]), len(ids))
        self.tokens.extend(ids)
        self._learn.extend(learn)
        self._starts.append(len(self.tokens))
        self._prompt_lengths.append(start)
        self._answer_lengths.append(stop - start)
        self._asked.append(rendered.is_asked)

    def finish(
        self, *, name: str, counts: Counts, fingerprint: str, source: str, licence: str, notes: tuple[str, ...]
    ) -> Documents:
        """counts: of what never came here; the builder's own are added."""
        learn_N = np.array(self._learn, dtype=np.bool_)
        return Documents(
            name=name,
            tokens_N=np.array(self.tokens, dtype=np.int32),
            learn_N=learn_N,
            start_of=np.array(self._starts, dtype=np.int64),
            prompt_length_of=np.array(self._prompt_lengths, dtype=np.int64),
            answer_length_of=np.array(self._answer_lengths, dtype=np.int64),
            asked_of=np.array(self._asked, dtype=np.bool_),
            counts=Counts(
                num_read=counts.num_read,
                num_kept=len(self._prompt_lengths),
                num_contaminated=counts.num_contaminated,
                unread_suites=counts.unread_suites,
                unusable=counts.unusable,
                num_repeated=counts.num_repeated + self.num_repeated,
                num_too_short=self.num_too_short,
                num_nothing_to_learn=self.num_nothing,
                num_truncated=self.num_truncated,
                num_tokens=len(self.tokens),
                num_learnt=int(learn_N.sum()),
            ),
            fingerprint=fingerprint,
            source=source,
            licence=licence,
            notes=notes,
        )


def _rendered(item: Found, renderer: Renderer) -> Rendered | Refused:
    if not item.example.messages:
        return renderer.text(item.example.text)
    exact = _exact(item.values, renderer.key)
    return renderer.conversation(item.example.messages) if exact is None else exact


def _exact(values: Mapping[str, Any], key: str) -> Rendered | None:
    """The ids a target was asked with and those it wrote, where this tokenizer and template made them.

    The text alone would not do: what a model writes need not be what its tokenizer makes of the text, and whether it
    stopped by itself is not in the text at all.
    """
    if values.get("rendering") != key:
        return None
    prompt, answer = values["prompt_ids"], values["answer_ids"]
    return Rendered([*prompt, *answer], [False] * len(prompt) + [True] * len(answer))


def _counts(tally: Tally, chosen: ExampleSet) -> Counts:
    return Counts(
        num_read=tally.num_read,
        num_contaminated=dict(tally.contaminated),
        unread_suites=dict(chosen.known.unread),
        unusable=dict(tally.unusable),
    )


def _nothing_left(documents: Documents, tally: Tally) -> UsageError:
    counts = documents.counts
    reasons = [tally.why_nothing] if tally.why_nothing else []
    if counts.num_nothing_to_learn:
        reasons.append(f"{counts.num_nothing_to_learn} have no answer inside the length limit")
    if counts.num_too_short:
        reasons.append(f"{counts.num_too_short} are shorter than {MIN_TOKENS} tokens")
    return UsageError(
        f"nothing of {documents.name} is left to learn: {'; '.join(reasons) or 'it is empty'}",
        where=documents.source,
        try_="longer documents, prompts learnt too, or other columns; specbench data show DATASET says what is dropped",
    )
