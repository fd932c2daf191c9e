"""Traces: what an untimed replay of one answer saw at every step, kept beside the run's journal. No torch, no DuckDB.

`traces/GROUP-ROW.jsonl` in the run's folder: the head, then a line per step. A file is written whole or not at all, and
holds ids and numbers only: a viewer turns ids into text.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from specbench.errors import EnvironmentFailed, UsageError, did_you_mean
from specbench.manifest import GroupRecord, Manifest
from specbench.store.files import write_whole

VERSION = 1
"""Of the file; a reader refuses a newer one."""
Verdict = Literal["accepted", "rejected", "unreached", "cut"]
"""rejected: its parent was accepted (or is the root), and the rule chose another token there. unreached: its parent was
not accepted. cut: accepted, behind the answer's end."""


class Node(NamedTuple):
    """A drafted token."""

    token: int
    parent: int
    """Index of the parent node, -1 = the root; parents come first, siblings in draft order."""
    q: float | None
    """The drafter's probability of it given its parent; None where the method has no law."""
    p: float
    """The target's, after all processors; at temperature 0 its own at temperature 1."""
    verdict: Verdict


class Law(NamedTuple):
    """What the target makes of one slot."""

    chosen: int
    """The rule's token there."""
    top: tuple[tuple[int, float], ...]
    """Its most probable tokens, best first."""


class Cost(NamedTuple):
    """Seconds of the step in the timed run, of its whole batch."""

    draft_s: float
    verify_s: float
    accept_s: float
    commit_s: float


@dataclass(frozen=True, kw_only=True)
class TracedStep:
    """One round. laws[0] stands behind the root, laws[i + 1] behind node i."""

    step: int
    """0-based, as in the journal."""
    nodes: tuple[Node, ...]
    laws: tuple[Law, ...]
    bonus: int
    """The rule's token where the accepted path ends."""
    num_accepted: int
    num_truncated: int
    """Of accepted tokens and bonus: cut by the answer's end."""
    cost: Cost | None
    """None where the replay's drafts are not those of the timed run."""

    def path(self) -> list[int]:
        """Nodes of the accepted path, root first, those behind the answer's end included."""
        return [place for place, node in enumerate(self.nodes) if node.verdict in ("accepted", "cut")]

    def kept(self) -> list[int]:
        """Tokens this step added to the answer."""
        tokens = [self.nodes[node].token for node in self.path()] + [self.bonus]
        return tokens[: len(tokens) - self.num_truncated]

    def ghosts(self) -> list[int]:
        """Nodes of the best rejected path: the first rejected node, then first children."""
        found: list[int] = []
        for place, node in enumerate(self.nodes):
            wanted = node.verdict == "rejected" if not found else node.parent == found[-1]
            if wanted:
                found.append(place)
        return found


@dataclass(frozen=True, kw_only=True)
class TraceHead:
    """Which answer, and whether the replay is that answer."""

    run_id: str
    group: int
    row: int
    method: str
    question_id: str
    category: str
    turn: int
    """0-based."""
    repeat: int
    """0-based."""
    rule: str
    temperature: float
    made: str
    """ISO 8601, UTC."""
    tokens: tuple[int, ...]
    """The replayed answer; the first is the prefill's, of no step."""
    matches: bool
    """These are the journal's tokens."""
    first_difference: int | None
    """Index of the first token that is not the journal's."""
    drafts_match: bool
    """Every step drafted and accepted as many tokens as the timed one: only then have steps a cost."""
    changed: tuple[str, ...]
    """What is not as it was in the timed run, in words."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One file."""

    head: TraceHead
    steps: tuple[TracedStep, ...]


class Which(NamedTuple):
    """The answer that is meant."""

    method: str
    """Its label in the run."""
    question_id: str
    turn: int
    repeat: int


def find_group(manifest: Manifest, which: Which) -> tuple[GroupRecord, int]:
    """The group of the plan that holds the answer, and its row. Raises UsageError naming what there is."""
    for option, given, known in (
        ("--method", which.method, [method.label for method in manifest.methods]),
        ("QUESTION", which.question_id, [question.question_id for question in manifest.questions]),
    ):
        if given not in known:
            raise UsageError(f"run {manifest.run_id} has no {given!r}", where=option, try_=did_you_mean(given, known))
    for group in manifest.groups:
        if (group.method, group.turn, group.repeat) == which[:1] + which[
            2:
        ] and which.question_id in group.question_ids:
            return group, group.question_ids.index(which.question_id)
    turns = max(group.turn for group in manifest.groups if which.question_id in group.question_ids) + 1
    raise UsageError(
        f"the plan has no turn {which.turn + 1}, repeat {which.repeat + 1} of question {which.question_id!r}",
        where="--turn, --repeat",
        try_=f"turns 1 to {turns}, repeats 1 to {manifest.repeats}",
    )


def trace_file(folder: Path, group: int, row: int) -> Path:
    """Where the trace of an answer lies in its run's folder."""
    return folder / "traces" / f"{group}-{row}.jsonl"


def write_trace(folder: Path, trace: Trace) -> Path:
    """Atomically, in the place of an older one."""
    path = trace_file(folder, trace.head.group, trace.head.row)
    lines = [{"e": "trace", "version": VERSION, **dataclasses.asdict(trace.head)}, *map(_step_line, trace.steps)]
    text = "".join(json.dumps(each, separators=(",", ":")) + "\n" for each in lines)
    write_whole(path, text, try_="free some space, or make the folder writable")
    return path


def read_trace(path: Path) -> Trace:
    """Raises EnvironmentFailed naming the file where it is missing, damaged or newer than this program."""
    again = "make it again: specbench trace … --again"
    try:
        first, *rest = path.read_text(encoding="ascii").splitlines()
        body = json.loads(first)
        if body.pop("e") != "trace":
            raise ValueError("it is no trace")
        version = body.pop("version")
        if version > VERSION:
            raise EnvironmentFailed(
                f"the trace was written by a newer specbench (version {version}, this one reads {VERSION})",
                where=str(path),
                try_=again,
            )
        body["tokens"], body["changed"] = tuple(body["tokens"]), tuple(body["changed"])
        return Trace(head=TraceHead(**body), steps=tuple(_step(json.loads(line)) for line in rest))
    except FileNotFoundError as error:
        raise EnvironmentFailed("there is no trace of this answer", where=str(path), try_="specbench trace") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise EnvironmentFailed(f"the trace is damaged: {error}", where=str(path), try_=again) from error


def head_as_json(head: TraceHead) -> dict[str, Any]:
    """Every field."""
    return dataclasses.asdict(head)


def step_as_json(step: TracedStep) -> dict[str, Any]:
    """For people who read JSON: names instead of places."""
    return {
        "step": step.step,
        "num_accepted": step.num_accepted,
        "num_truncated": step.num_truncated,
        "bonus": step.bonus,
        "cost": None if step.cost is None else step.cost._asdict(),
        "root": {"chosen": step.laws[0].chosen, "top": step.laws[0].top},
        "nodes": [
            node._asdict() | {"chosen": law.chosen, "top": law.top}
            for node, law in zip(step.nodes, step.laws[1:], strict=True)
        ],
    }


def _step_line(step: TracedStep) -> dict[str, Any]:
    return {
        "e": "traced_step",
        "step": step.step,
        "nodes": step.nodes,
        "laws": step.laws,
        "bonus": step.bonus,
        "num_accepted": step.num_accepted,
        "num_truncated": step.num_truncated,
        "cost": step.cost,
    }


def _step(body: dict[str, Any]) -> TracedStep:
    if body.pop("e") != "traced_step":
        raise ValueError("a line is no step")
    body["nodes"] = tuple(Node(*node) for node in body["nodes"])
    body["laws"] = tuple(Law(chosen, _pairs(top)) for chosen, top in body["laws"])
    body["cost"] = None if body["cost"] is None else Cost(*body["cost"])
    return TracedStep(**body)


def _pairs(values: Sequence[Sequence[Any]]) -> tuple[tuple[int, float], ...]:
    return tuple((int(token), float(p)) for token, p in values)
