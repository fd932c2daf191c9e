"""How many tokens of cache a question needs, and an explicit --max-len held against it before a target is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from specbench import suite
from specbench.bench.request import RunRequest
from specbench.errors import UsageError
from specbench.lm.load import load_tokenizer
from specbench.store.words import count
from specbench.suite import LoadedSuite, Question
from specbench.suite.templates import Message, Tokenizer


def render_turn(
    tokenizer: Tokenizer, question: Question, turn: int, answers: Sequence[str], template: str
) -> tuple[int, ...]:
    """The prompt of a turn (0 = the first) behind the answers to the turns before it, as ids."""
    messages: list[Message] = []
    for place in range(turn + 1):
        messages.append({"role": "user", "content": question.turns[place]})
        if place < turn:
            messages.append({"role": "assistant", "content": answers[place]})
    return tuple(suite.render(tokenizer, messages, template))


def most_tokens(tokenizer: Tokenizer, question: Question, num_first: int, max_new_tokens: int, template: str) -> int:
    """Prompt and answer of the last turn at their longest. num_first: tokens of the first turn's prompt."""
    tokens = num_first + max_new_tokens
    for text in question.turns[1:]:
        alone = suite.render(tokenizer, [{"role": "user", "content": text}], template)
        # An answer's text may be tokenised again into more ids than were generated: three for a stray byte.
        tokens += len(alone) + 3 * max_new_tokens + 16
    return tokens


def check_max_len(request: RunRequest, loaded: LoadedSuite, say: Callable[[str], None]) -> None:
    """Hold --max-len, where it is given, against every question; only the target's tokenizer is read.

    Raises UsageError where the first turn of one does not fit: its need is known, and what the largest one is too. What
    later turns need depends on the answers before them: `say` is told where they may not fit.
    """
    if request.max_len is None:
        return
    assert request.target is not None and request.max_new_tokens is not None
    tokenizer = load_tokenizer(request.target, trust_remote_code=request.trust_remote_code)
    if tokenizer is None:
        return  # load_target refuses such a target
    template, num_new = request.template or "chat", request.max_new_tokens
    num_first = {q.question_id: len(render_turn(tokenizer, q, 0, (), template)) for q in loaded.questions}
    too_long = [name for name, number in num_first.items() if number + num_new > request.max_len]
    if too_long:
        longest = max(too_long, key=lambda name: num_first[name])
        needed = num_first[longest] + num_new
        raise UsageError(
            f"--max-len {request.max_len} is too short for {count(len(too_long), 'question')} of {loaded.name}: the "
            f"longest, {longest}, has a prompt of {num_first[longest]} tokens + {num_new} new ones = {needed}",
            where=f"--max-len {request.max_len}",
            try_=f"--max-len {needed}, or leave it out: the cache is as long as the questions need",
        )
    most = {
        q.question_id: most_tokens(tokenizer, q, num_first[q.question_id], num_new, template)
        for q in loaded.questions
        if len(q.turns) > 1
    }
    if most and max(most.values()) > request.max_len:
        longest = max(most, key=lambda name: most[name])
        say(
            f"--max-len {request.max_len}: later turns behind long answers may not fit and then fail; "
            f"that of {longest} needs up to {most[longest]}"
        )
