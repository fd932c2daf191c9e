"""Names of a run's methods where there is no room for them whole. No Textual.

Competitors of a grid differ in their last cells (`draft_model[depth=2]`, `draft_model[depth=4]`), a control in its very
last (`autoregressive#2`): cut at the end they would all be the same name.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from rich.cells import cell_len, set_cell_size

from specbench.tui.sanitise import visible


def short(name: str, width: int, among: Sequence[str] = ()) -> str:
    """The name in at most `width` cells, `…` where something was cut. among: the names that stand beside it, itself or
    not; as long as there is any way to, it stays different from theirs."""
    return _told_apart(tuple(dict.fromkeys((*among, name))), width)[name]


@lru_cache(maxsize=256)
def _told_apart(names: tuple[str, ...], width: int) -> dict[str, str]:
    """A short name for each."""
    clean = {name: visible(name) for name in names}
    if width < 2:
        return {name: set_cell_size(text, width) if cell_len(text) > width else text for name, text in clean.items()}
    usual = (width - 1) * 2 // 5
    # What a name ends in matters where options or a number stand there; the beginning of other names says more.
    cuts = [{name: _cut(text, width, usual if text[-1:] == "]" or "#" in text else width - 1)
             for name, text in clean.items()}]  # fmt: skip
    heads = sorted(range(width), key=lambda head: abs(head - usual))
    cuts += [{name: _cut(text, width, head) for name, text in clean.items()} for head in heads]
    # What differs may stand in the middle of both: the first cells, then a window on the rest.
    longest = max(map(len, clean.values()))
    cuts += [{name: _window(text, width, at) for name, text in clean.items()} for at in range(1, longest)]
    cuts.append({name: _numbered(text, width, number) for number, (name, text) in enumerate(clean.items(), start=1)})
    return next((cut for cut in cuts if len(set(cut.values())) == len(cut)), cuts[0])


def _cut(text: str, width: int, head: int) -> str:
    """`head` cells, `…`, and its last ones."""
    if cell_len(text) <= width:
        return text
    tail = text[len(set_cell_size(text, head).rstrip()) :]
    while cell_len(tail) > width - 1 - head:
        tail = tail[1:]
    return set_cell_size(text, head) + "…" + tail


def _window(text: str, width: int, at: int) -> str:
    """Its first cell, `…`, its characters from `at` on, `…`."""
    if cell_len(text) <= width or width < 4:
        return _cut(text, width, width - 1)
    return set_cell_size(text, 1) + "…" + set_cell_size(text[at:], width - 3).rstrip() + "…"


def _numbered(text: str, width: int, number: int) -> str:
    """By its place among the names, where no cut of them differs."""
    words = f"({number})"
    if cell_len(text) <= width or len(words) >= width:
        return _cut(text, width, width - 1)
    return set_cell_size(text, width - 1 - len(words)) + "…" + words
