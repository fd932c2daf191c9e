"""The slow, plain reading of what the tensors compute: frames as lists of probabilities, prefixes as tuples.

A frame is a list of probabilities; its last entry is the blank's. U frames, V tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

Frame = Sequence[float]
Prefix = tuple[int, ...]


def collapse(path: Sequence[int], *, blank: int) -> Prefix:
    """Repeats merged, then blanks removed: (a, a, blank, a) -> (a, a)."""
    return tuple(token for token, _ in itertools.groupby(path) if token != blank)


def outputs(frames: Sequence[Frame]) -> dict[Prefix, float]:
    """Probability of every output, by walking through all alignments: (V + 1) ** U of them."""
    size = len(frames[0])
    law: dict[Prefix, float] = {}
    for path in itertools.product(range(size), repeat=len(frames)):
        chance = 1.0
        for frame, token in zip(frames, path, strict=True):
            chance *= frame[token]
        output = collapse(path, blank=size - 1)
        law[output] = law.get(output, 0.0) + chance
    return law


def begins_with(law: dict[Prefix, float], prefix: Prefix) -> float:
    """Probability that the output begins with the prefix."""
    return sum(chance for output, chance in law.items() if output[: len(prefix)] == prefix)


def marginal(frames: Sequence[Frame], prefix: Prefix) -> float:
    """The same by Graves' recursion, one frame after the other."""
    if not prefix:
        return 1.0
    blank, label = _forward(frames, prefix[:-1])
    return _first_said(frames, prefix, blank, label)


def _first_said(frames: Sequence[Frame], prefix: Prefix, blank: list[float], label: list[float]) -> float:
    repeats = len(prefix) > 1 and prefix[-1] == prefix[-2]
    return sum(frame[prefix[-1]] * (blank[u] + (0.0 if repeats else label[u])) for u, frame in enumerate(frames))


def _forward(frames: Sequence[Frame], prefix: Prefix) -> tuple[list[float], list[float]]:
    """(blank, label): P(frames before u say the prefix and end in a blank, or in its last token), u = 0 .. U - 1."""
    blanks, labels = [], []
    if prefix:
        blank_of_rest, label_of_rest = _forward(frames, prefix[:-1])
    blank, label = (0.0, 0.0) if prefix else (1.0, 0.0)
    for u, frame in enumerate(frames):
        blanks.append(blank)
        labels.append(label)
        said = 0.0
        if prefix:
            repeats = len(prefix) > 1 and prefix[-1] == prefix[-2]
            before = blank_of_rest[u] + (0.0 if repeats else label_of_rest[u])
            said = frame[prefix[-1]] * (before + label)
        blank, label = frame[-1] * (blank + label), said
    return blanks, labels


def prefix_search(frames: Sequence[Frame], *, depth: int, width: int, top_k: int = 0) -> list[tuple[Prefix, float]]:
    """The `width` most probable beginnings per depth that extend those of the depth before, best first, with their
    marginals; top_k: only tokens among the k best of some frame."""
    size = len(frames[0]) - 1
    allowed = set(range(size))
    if top_k:
        allowed = {token for frame in frames for token in sorted(range(size), key=lambda v: -frame[v])[:top_k]}
    found: list[tuple[Prefix, float]] = []
    beams: list[Prefix] = [()]
    for _ in range(depth):
        grown = [(*beam, token) for beam in beams for token in allowed]
        ranked = sorted(((prefix, marginal(frames, prefix)) for prefix in grown), key=lambda pair: -pair[1])
        beams = [prefix for prefix, _ in ranked[:width]]
        found += ranked[:width]
    return found
