"""Traces made of a synthetic journal: drafts that agree with its counts, laws by arithmetic. No torch."""

from __future__ import annotations

from pathlib import Path

from specbench.events import StepRow
from specbench.manifest import read_manifest
from specbench.store.attempts import attempt_of
from specbench.store.traces import (
    Cost,
    Law,
    Node,
    Trace,
    TracedStep,
    TraceHead,
    Verdict,
    Which,
    find_group,
    write_trace,
)


def traced_step(row: StepRow, *, siblings: int = 1) -> TracedStep:
    """Depth by depth `siblings` nodes below the accepted one; deeper ones hang from the first that was rejected."""
    nodes: list[Node] = []
    above, on_path = -1, True
    for depth in range(row.depth):
        accepted = on_path and depth < row.num_accepted
        first = len(nodes)
        for rank in range(siblings):
            here = accepted and rank == (row.ranks[depth] if depth < len(row.ranks) else 0)
            verdict: Verdict = "accepted" if here else "rejected" if on_path else "unreached"
            if here and depth >= len(row.tokens):
                verdict = "cut"
            token = row.tokens[depth] if here and depth < len(row.tokens) else 1000 + 10 * depth + rank
            nodes.append(Node(token, above, 0.5 / (rank + 1), 0.8 if here else 0.05, verdict))
            if here:
                above = len(nodes) - 1
        if on_path and not accepted:
            on_path, above = False, first
        elif not on_path:
            above = first
    bonus = row.tokens[row.num_accepted] if row.num_accepted < len(row.tokens) else 7
    chosen = {-1: bonus}
    chosen |= dict.fromkeys(range(len(nodes)), bonus)
    for node in nodes:
        if node.verdict in ("accepted", "cut"):
            chosen[node.parent] = node.token
    laws = [Law(chosen[slot - 1], ((chosen[slot - 1], 0.8), (5, 0.1), (6, 0.05))) for slot in range(len(nodes) + 1)]
    return TracedStep(
        step=row.step,
        nodes=tuple(nodes),
        laws=tuple(laws),
        bonus=bonus,
        num_accepted=row.num_accepted,
        num_truncated=row.num_truncated,
        cost=Cost(*row[-4:]),
    )


def write_traced(folder: Path, which: Which, *, siblings: int = 1, matches: bool = True) -> Trace:
    """The trace of an answer of a synthetic run, in its folder."""
    manifest = read_manifest(folder)
    group, row = find_group(manifest, which)
    attempt = attempt_of(folder, group.group)
    assert attempt is not None
    answer = attempt.finished[row]
    rows = [StepRow(*each) for each in attempt.rows if each[0] == row]
    head = TraceHead(
        run_id=manifest.run_id,
        group=group.group,
        row=row,
        method=which.method,
        question_id=which.question_id,
        category=answer.category,
        turn=which.turn,
        repeat=which.repeat,
        rule=manifest.rule,
        temperature=manifest.sampling.temperature,
        made="2026-01-02T05:00:00+00:00",
        tokens=answer.tokens,
        matches=matches,
        first_difference=None if matches else 3,
        drafts_match=matches,
        changed=() if matches else ("torch (1.0 then, 2.0 now)",),
    )
    steps = tuple(traced_step(each._replace(tokens=tuple(each.tokens)), siblings=siblings) for each in rows)
    found = Trace(head=head, steps=steps)
    write_trace(folder, found)
    return found
