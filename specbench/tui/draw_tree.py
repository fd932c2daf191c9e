"""A traced step as lines: the tree with q, p and verdicts, one node, the target's top-5, the cost. No Textual."""

from __future__ import annotations

from typing import NamedTuple

from rich.cells import cell_len

from specbench.store.traces import Law, Trace, TracedStep
from specbench.store.words import count
from specbench.tui.lines import BARS, Line, Span, bar, cell, fit, line, wrap
from specbench.tui.marks import BONUS_MARK
from specbench.tui.sanitise import HIDDEN, visible
from specbench.tui.tree import ROOT, Row, Words, rows_of

_SMALL = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_SIGNS = {
    "accepted": ("✓ accepted", "good"),
    "rejected": ("✗ rejected", "bad"),
    "unreached": ("· not reached", "dim"),
    "cut": ("✓ behind the end", "dim"),
}
_NUMBER = 6
"""Cells of q and of p."""


class At(NamedTuple):
    """A place in a trace."""

    words: Words
    number: int
    """Of the step, 0-based."""

    @property
    def trace(self) -> Trace:
        """The trace."""
        return self.words.trace

    @property
    def step(self) -> TracedStep:
        """The step."""
        return self.trace.steps[self.number]


def share(value: float | None) -> str:
    """A probability in few cells: `.62`, `1.0`, `<.01`; `–` where there is none."""
    if value is None:
        return "–"
    if value < 0.005:
        return "<.01"
    return "1.0" if value >= 0.995 else f"{value:.2f}"[1:]


def token_text(text: str) -> str:
    """A token on its own: its spaces would not be seen, nor what `visible` leaves out."""
    shown = visible(text) or (HIDDEN if text else "")
    body = shown.lstrip(" ")
    return "␣" * (len(shown) - len(body)) + body if body else "␣" * len(shown)


def tree_rows(at: At, width: int, *, pruned: bool) -> tuple[list[Line], list[tuple[str, Line]]]:
    """Head, and a row per node with its place as key."""
    verdicts = width >= 54
    found = rows_of(at.step, pruned=pruned)
    most = max(12, width - 2 * _NUMBER - (18 if verdicts else 3))
    # No wider than the widest token wants: what is left tells what was chosen instead.
    wanted = max(cell_len(row.lead) + cell_len(_name(at, row)) for row in found)
    room = min(most, max(24, wanted + 1))
    head = cell("", room) + f"{'q':>{_NUMBER}}{'p':>{_NUMBER}}" + ("  verdict" if verdicts else "")
    return [fit((Span(head, "bold"),), width)], [
        (str(row.place), fit(_row(at, row, room, verdicts=verdicts), width)) for row in found
    ]


def _name(at: At, row: Row) -> str:
    """`³ ␣of`, `◆ ,`, or the root's last words."""
    if row.place == ROOT:
        return f"● “{visible(at.words.root(at.number).lstrip())}”"
    text = token_text(at.words.node(at.number, row.place))
    if row.place == len(at.step.nodes):
        return f"{BONUS_MARK} {text}"
    return f"{str(row.depth).translate(_SMALL)} {text}"


def _row(at: At, row: Row, room: int, *, verdicts: bool) -> Line:
    step = at.step
    if row.place == ROOT:
        return line(Span(cell(_name(at, row), room)))
    lead = row.lead
    if cell_len(lead) > room - 10:
        # Deeper than the pane is wide: the branches nearest to the token stay.
        lead = "…" + lead[cell_len(lead) - (room - 11) :]
    name = cell(_name(at, row), max(1, room - cell_len(lead)))
    if row.place == len(step.nodes):
        law = _law_over(step, row.place)
        p = next((p for token, p in law.top if token == step.bonus), None)
        sign = "◆ the target's own" if step.nodes else "◆ no draft"
        if step.num_truncated:
            sign = "◆ behind the end"
        numbers = f"{'–':>{_NUMBER}}{share(p):>{_NUMBER}}"
        return (Span(lead, "dim"), Span(name, "bold"), Span(numbers), Span(f"  {sign}" if verdicts else " ◆", "warn"))
    node = step.nodes[row.place]
    words, style = _SIGNS[node.verdict]
    numbers = f"{share(node.q):>{_NUMBER}}{share(node.p):>{_NUMBER}}"
    if node.verdict == "rejected" and verdicts:
        words += _instead(at, node.parent)
    return (
        Span(lead, "dim"),
        Span(name, "dim" if node.verdict == "unreached" else ""),
        Span(numbers),
        Span(f"  {words}" if verdicts else f" {words[0]}", style),
    )


def _instead(at: At, parent: int) -> str:
    chosen = at.step.laws[parent + 1].chosen
    return f": “{token_text(at.words.text(at.number, parent, chosen))}”"


def _law_over(step: TracedStep, place: int) -> Law:
    """The law that judged a node, or the bonus; behind the root for the root itself."""
    if place == ROOT:
        return step.laws[0]
    if place == len(step.nodes):
        path = step.path()
        return step.laws[path[-1] + 1 if path else 0]
    return step.laws[step.nodes[place].parent + 1]


def _judge(step: TracedStep, place: int) -> int:
    """The node behind which the law of `_law_over` stands."""
    if place == ROOT:
        return ROOT
    if place == len(step.nodes):
        return (step.path() or [ROOT])[-1]
    return step.nodes[place].parent


def node_lines(at: At, place: int, width: int) -> list[Line]:
    """One node in words: numbers, rank, and why it was or was not kept."""
    step = at.step
    if place == ROOT:
        found = [line(f"{len(step.nodes)} drafted, {step.num_accepted} accepted")]
        why = f"the last token before step {at.number + 1}"
    elif place >= len(step.nodes):
        found = [line(f"token {step.bonus}")]
        why = "the target's own token, where the accepted path ends"
    else:
        node = step.nodes[place]
        siblings = [n for n, each in enumerate(step.nodes) if each.parent == node.parent]
        num_below = sum(each.parent == place for each in step.nodes)
        # Acceptance keeps a drafted token with probability min(1, p/q) at most: the pair says how far off it was.
        ratio = f" · p/q {node.p / node.q:.2f}" if node.q else ""
        found = [
            line(f"token {node.token} · choice {siblings.index(place) + 1} of {len(siblings)}"),
            line(f"q {share(node.q)} · p {share(node.p)}{ratio}"),
            line(count(num_below, "child").replace("childs", "children")),
        ]
        why = _why(at, place)
    return [*found, *wrap(why, width)]


def _why(at: At, place: int) -> str:
    node, head = at.step.nodes[place], at.trace.head
    if node.verdict == "accepted":
        return "✓ the target chose it too"
    if node.verdict == "cut":
        return "✓ chosen too, but the answer had ended before it"
    if node.verdict == "unreached":
        return "· its parent was not accepted, so nobody asked"
    chosen = _instead(at, node.parent).removeprefix(": ")
    if head.temperature == 0:
        return f"✗ the target's first choice here is {chosen}"
    if head.rule == "rejection":
        return f"✗ its test failed; the step went on with {chosen}"
    drew = "kept" if head.rule == "typical" else "drew, with the noise of this position,"
    return f"✗ the target {drew} {chosen}"


def top_lines(at: At, place: int, width: int) -> list[Line]:
    """The target's five most probable tokens in this node's place, the chosen one marked."""
    step, judge = at.step, _judge(at.step, place)
    law = _law_over(step, place)
    names = {token: token_text(at.words.text(at.number, judge, token)) for token, _ in law.top}
    longest = min(max(map(cell_len, names.values()), default=1), max(4, width // 2))
    found: list[Line] = []
    for token, p in law.top:
        mark = "▸" if token == law.chosen else " "
        room = max(1, width - longest - 9)
        found.append(
            line(f"{mark} {cell(names[token], longest)} ", Span(f"{share(p):>4} "), Span(bar(p, room), "accent"))
        )
    if law.chosen not in names:
        chosen = token_text(at.words.text(at.number, judge, law.chosen))
        found.append(line(f"▸ {chosen}", Span("  chosen, not among the five", "dim")))
    return found


def cost_lines(at: At, width: int) -> list[Line]:
    """The step's time in the timed run; a replay's own times mean nothing."""
    step = at.step
    if step.cost is None:
        return wrap("The replay drafted otherwise than the timed run: its steps have no cost.", width, "warn")
    total = sum(step.cost)
    room = max(1, width - 18)
    found: list[Line] = []
    for name, seconds in zip(("draft", "verify", "accept", "commit"), step.cost, strict=True):
        part = seconds / total if total else 0.0
        found.append(line(f"{name:<7}{1000 * seconds:7.2f} ms ", Span(bar(part, room), "accent")))
    kept = len(step.kept())
    if kept and total:
        each = 1000 * total / kept
        found.append(line(f"{count(kept, 'token')} / {1000 * total:.2f} ms = {each:.2f} ms each"))
    return found


def strip_lines(at: At, place: int, width: int) -> list[Line]:
    """Node, law and cost on few lines, for small screens."""
    step, judge = at.step, _judge(at.step, place)
    law = _law_over(step, place)
    parts = [f"“{token_text(at.words.text(at.number, judge, token))}” {share(p)}" for token, p in law.top]
    found = [
        fit(line(Span("top-5  ", "bold"), "  ".join(parts)), width),
    ]
    if step.cost is not None:
        names = ("draft", "verify", "accept", "commit")
        words = "  ".join(f"{name} {1000 * each:.2f}" for name, each in zip(names, step.cost, strict=True))
        found.append(fit(line(Span("ms     ", "bold"), words), width))
    told = _why(at, place) if 0 <= place < len(step.nodes) else ""
    return [*found, *([fit(line(told), width)] if told else [])]


def lengths_line(trace: Trace, number: int, width: int) -> Line:
    """Accepted tokens of every step as bars, this one in brackets; the window moves with it."""
    most = max((step.num_accepted for step in trace.steps), default=0)
    bars = [" " if not most else BARS[round(7 * step.num_accepted / most)] for step in trace.steps]
    head = "accepted by step  "
    room = max(3, width - len(head) - 2)
    first = min(max(0, number - room // 2), max(0, len(bars) - room))
    last = first + room
    return (
        Span(head, "dim"),
        Span("".join(bars[first:number])),
        Span(f"[{bars[number]}]", "key"),
        Span("".join(bars[number + 1 : last])),
    )


def headline(at: At) -> str:
    """`method · question q turn 1 · step 37/112 · 60 drafted, 4 accepted + 1`."""
    head, step = at.trace.head, at.step
    depth = max((row.depth for row in rows_of(step) if row.place < len(step.nodes)), default=0)
    own = 0 if step.num_truncated else 1
    kept = f"{step.num_accepted} accepted" + (" + the target's own" if own else "")
    return (
        f"{head.method} · {head.question_id} turn {head.turn + 1} · step {at.number + 1}/{len(at.trace.steps)} · "
        f"{count(len(step.nodes), 'node')} drafted, {depth} deep · {kept}"
    )


def mismatch(trace: Trace) -> list[str]:
    """What does not agree between replay and timed run, and what may be why; empty where all does."""
    head = trace.head
    found = []
    if not head.matches:
        found.append(f"the replay is another answer than the timed run's: token {head.first_difference} differs")
    elif not head.drafts_match:
        found.append("the replay has the timed run's tokens, but other drafts: its steps have no cost")
    if found:
        why = f"changed since: {', '.join(head.changed)}" if head.changed else "nothing that is recorded has changed"
        found.append(why)
    return found


def as_text(at: At, *, width: int = 100, pruned: bool = False) -> list[Line]:
    """A step for stdout, the clipboard and files."""
    head, rows = tree_rows(at, width, pruned=pruned)
    found: list[Line] = [line(headline(at)), (), *head, *(row for _, row in rows), ()]
    found.append(line(Span("the target's top-5 where the accepted path ends", "bold")))
    found += [*top_lines(at, len(at.step.nodes), min(width, 60)), ()]
    found.append(line(Span("cost in the timed run", "bold")))
    return [*found, *cost_lines(at, min(width, 60))]


def summary(trace: Trace) -> list[Line]:
    """A trace in a few lines: which answer, whether it is the timed one, how drafts fared."""
    head = trace.head
    nodes = [node for step in trace.steps for node in step.nodes]
    counts = {verdict: sum(node.verdict == verdict for node in nodes) for verdict in _SIGNS}
    agrees = "the timed run's tokens and drafts" if head.matches and head.drafts_match else "NOT the timed run's"
    found = [
        line(f"{head.method} on {head.question_id}, turn {head.turn + 1}, repeat {head.repeat + 1} of {head.run_id}"),
        line(f"{count(len(head.tokens), 'token')} in {count(len(trace.steps), 'step')}: {agrees}"),
    ]
    if nodes:
        words = ", ".join(f"{number} {_SIGNS[verdict][0][2:]}" for verdict, number in counts.items() if number)
        found.append(line(f"{count(len(nodes), 'node')} drafted: {words}"))
        known = [node for node in nodes if node.q is not None and node.verdict in ("accepted", "rejected")]
        if known:
            overlap = sum(min(node.p, node.q or 0.0) for node in known) / len(known)
            found.append(line(f"mean of min(p, q) over the {len(known)} nodes asked about: {overlap:.2f}"))
    return found


def untraced_lines(command: str, width: int) -> list[Line]:
    """In place of a tree: how to come by one."""
    return [
        line(Span("This answer has no trace yet.", "bold")),
        (),
        line(Span("t", "key"), " replays it once, untimed, and keeps every step's tree."),
        *wrap(
            "It loads the target, so it takes seconds for a small one; the run's figures stay as they are.",
            width,
            "dim",
        ),
        (),
        *wrap(f"the same in a shell: {command}", width, "dim"),
    ]


def marks_lines() -> list[Line]:
    """What the signs of this screen mean, for its help."""
    return [
        line(Span("What is shown", "bold")),
        line("q   the drafter's probability of a token given its parent; – where the method has no law of its own"),
        line("p   the target's, after temperature and filters; at temperature 0 its own at temperature 1"),
        line("✓ accepted   ✗ rejected: asked, another token chosen   · not reached: its parent was not accepted"),
        line("▸ what the acceptance rule chose      ◆ the target's own token, where the accepted path ends"),
        *wrap("Beams and the tries of CTC drafters stand as they were verified: merged where they begin alike.", 96),
    ]
