"""Numbers with their nouns, for the sentences of store, bench and report."""

from __future__ import annotations


def count(number: int, noun: str) -> str:
    """`1 question`, `80 questions`, `1 group of questions`, `2 groups of questions`."""
    first, space, rest = noun.partition(" of ")
    return f"{number} {first}{'' if number == 1 else 's'}{space}{rest}"


def unit(batch_size: int) -> str:
    """What is paired and resampled: a question alone, or the group that was decoded with it."""
    return "question" if batch_size == 1 else "group of questions"
