"""Everything a run can say, as frozen dataclasses; one JSON line each in the journal. No torch.

A *generation* is one answer: method x question x turn x repeat. A *group* is the generations decoded together
(one, at batch size 1): seconds belong to groups, tokens to generations. Times are seconds from a monotonic clock.
Journals hold counts and seconds only; every ratio is computed later, in one place (`store/views.sql`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

SCHEMA = 5
"""Version of manifest.json and events.jsonl; a reader refuses a newer one. In 1 generations did not say when they
began, in 2 rounds of learning were readings without a lineage, in 3 their figures had no width, in 4 a resumed training
did not say which of its steps still stand."""


class StepRow(NamedTuple):
    """One draft/verify/accept/commit round of one sequence.

    Phase seconds belong to the whole batched step and stand on its first live row only (zero on the others), so that
    plain sums are right at any batch size.
    """

    row: int
    """Index of the generation within its group."""
    step: int
    """0-based within the generation; the prefill's token belongs to no step."""
    end_s: float
    """End of the step, seconds since the group's start."""
    num_nodes: int
    """Valid draft nodes proposed, root excluded."""
    depth: int
    """Longest valid proposed path, root excluded; 0 = a plain target step."""
    num_accepted: int
    """Accepted draft nodes, bonus excluded."""
    num_committed: int
    """num_accepted + 1, before truncation."""
    num_truncated: int
    """Committed tokens cut by a stop id, a stop string or max_new_tokens."""
    ranks: tuple[int, ...]
    """For each accepted node its 0-based place among its siblings."""
    tokens: tuple[int, ...]
    """Ids kept from this step: num_committed - num_truncated of them."""
    draft_s: float
    verify_s: float
    accept_s: float
    commit_s: float


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base: `kind` names the event in the journal."""

    kind: ClassVar[str] = ""


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    """First line of a journal, and again (resumed=True) at every resume. The plan itself is in manifest.json."""

    kind: ClassVar[str] = "run_started"
    schema: int
    run_id: str
    time: str
    """ISO 8601, UTC."""
    pid: int
    resumed: bool
    behind: int | None = None
    """Of a resumed training: the step of the state it goes on from, 0 where none was saved. What its journal says of
    later steps is of steps that it no longer has. None elsewhere."""


@dataclass(frozen=True, kw_only=True)
class ReferenceFinished(Event):
    """One answer of the untimed autoregressive pass that equality and `oracle` read (measurement 10)."""

    kind: ClassVar[str] = "reference_finished"
    question_id: str
    turn: int
    num_prompt_tokens: int
    tokens: tuple[int, ...]
    text: str
    finish_reason: str


@dataclass(frozen=True, kw_only=True)
class GenerationStarted(Event):
    """Written before the timed region opens."""

    kind: ClassVar[str] = "generation_started"
    group: int
    """Index of the group in the plan; a resumed run repeats none that finished."""
    row: int
    method: str
    """The method's label in this run: the name, or name[option=value] under `--grid`, or `autoregressive#2` (the A/A
    control)."""
    question_id: str
    category: str
    turn: int
    repeat: int
    num_prompt_tokens: int
    began_s: float | None = None
    """Unix time just before the timed region, to find the machine's state by; None in journals of schema 1."""


@dataclass(frozen=True, kw_only=True)
class Steps(Event):
    """Steps of one group since the last flush (at most every 100 ms)."""

    kind: ClassVar[str] = "steps"
    group: int
    rows: tuple[StepRow, ...]


@dataclass(frozen=True, kw_only=True)
class GenerationFinished(Event):
    """One answer, with its counts, its group's seconds (on row 0 only; 0.0 on the others) and its equality verdict."""

    kind: ClassVar[str] = "generation_finished"
    group: int
    row: int
    method: str
    question_id: str
    category: str
    turn: int
    repeat: int
    num_prompt_tokens: int
    tokens: tuple[int, ...]
    text: str
    finish_reason: str
    """'stop_id', 'stop_string' or 'length'."""
    num_steps: int
    prefill_s: float
    """From the start of the prompt's forward to the first token, drafter's prefill included."""
    decode_s: float
    total_s: float
    """Wall clock of the group's generation, prefill included."""
    draft_s: float
    verify_s: float
    accept_s: float
    commit_s: float
    journal_s: float
    """Seconds spent recording steps inside the timed region."""
    equality: str | None
    """'identical', 'tie', 'numeric', 'bug'; None where the rule promises no equality (`rejection` at T > 0)."""
    first_difference: int | None
    """Index of the first output token that differs from the reference."""
    gap: float | None
    """Difference of the two tokens' processed scores (+ noise) in a fresh full-prefix fp32 forward (measurement 12)."""
    correct: bool | None
    """Exact match with the suite's answer, where it has one."""


@dataclass(frozen=True, kw_only=True)
class GenerationFailed(Event):
    """A question that could not be answered: an error, never a number (measurement 19)."""

    kind: ClassVar[str] = "generation_failed"
    group: int
    row: int
    method: str
    question_id: str
    category: str
    turn: int
    repeat: int
    error: str


@dataclass(frozen=True, kw_only=True)
class Measured(Event):
    """A named reading of the machine or the engine: `noise_floor`, `rounding`, `copy_bandwidth`, `warm_up_s`, ..."""

    kind: ClassVar[str] = "measured"
    name: str
    value: float
    unit: str
    method: str = ""
    detail: str = ""
    """Why, where the number alone does not say."""


@dataclass(frozen=True, kw_only=True)
class AdapterRound(Event):
    """What became of a method's adapter between two of its groups: a round of learning, or a way back."""

    kind: ClassVar[str] = "adapter_round"
    group: int
    """After this group's answers, before the method's next ones."""
    method: str
    domain: str
    outcome: str
    """'promoted', 'kept' (it drafts as before and learns on), 'dropped' or 'rolled back'."""
    why: str
    version: int
    """Drafted with from here on; 0 = the draft model itself."""
    previous: int
    """Drafted with until here: of a promoted version its parent."""
    seconds: float
    """Learning, judging and writing together."""
    num_steps: int
    num_positions: int
    """New ones since the round before."""
    num_held_out: int
    acceptance_before: float | None
    """Expected, teacher-forced, on held-out positions, under `previous`; None where nothing was judged."""
    acceptance_after: float | None
    """Under the candidate."""
    gain_low: float | None
    """95 % bootstrap interval, over answers, of after - before."""
    gain_high: float | None
    is_concurrent: bool
    """In a process beside the method's answers."""
    is_regrown: bool = False
    """Of a resumed run: the stream until its interruption, decoded again untimed."""
    width_before: float | None = None
    """acceptance_before is an upper bound and lies at most so far above: what the laws' tails, of which only the mass
    is kept, may have in common. 0 at temperature 0; None where nothing was judged, and before schema 4."""
    width_after: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrainStep(Event):
    """One optimiser step of a training, all processes together. A resumed training repeats the steps after its last
    saved state: of two events with one step the later one counts."""

    kind: ClassVar[str] = "train_step"
    step: int
    """Steps done, this one included."""
    epoch: float
    num_tokens: int
    """Text tokens read so far."""
    seconds: float
    """Of training so far, evaluations included."""
    num_anchors: int
    loss: float
    """Per anchor."""
    lr: float
    grad_norm: float
    """Before clipping."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """The loss's named terms, where it has several: per anchor."""


@dataclass(frozen=True, kw_only=True)
class TrainEval(Event):
    """Counts of one evaluation on held-out documents (index 0 = depth 0) and of the simulated run on held-out
    prompts."""

    kind: ClassVar[str] = "train_eval"
    step: int
    num: tuple[int, ...]
    """Labels per depth."""
    loss: tuple[float, ...]
    """Summed loss per depth; labels that the drafter cannot say count with the mean of the others."""
    correct: tuple[tuple[int, ...], ...]
    """[depth][r]: labels among the first r + 1 choices."""
    whole: tuple[int, ...]
    """Anchors whose labels up to this depth all exist."""
    right: tuple[int, ...]
    """Those whose first choices up to this depth are all right."""
    num_steps: int
    """Of the simulated run; 0 where no prompt was asked for."""
    num_new_tokens: int
    accepted_at: tuple[int, ...]
    proposed_at: tuple[int, ...]
    seconds: float
    """The evaluation itself."""
    is_best: bool
    parts: Mapping[str, float] = field(default_factory=dict)
    """As in TrainStep, on the held-out documents."""


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """what: 'state' (resumable), 'best' (in the run's folder) or 'drafter' (the finished one)."""

    kind: ClassVar[str] = "checkpoint_saved"
    step: int
    what: str


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    """Last line of a journal that was not killed. state: 'finished', 'interrupted' or 'failed'."""

    kind: ClassVar[str] = "run_finished"
    state: str
    time: str
    message: str = ""


_KINDS: dict[str, type[Event]] = {
    cls.kind: cls
    for cls in (
        RunStarted,
        ReferenceFinished,
        GenerationStarted,
        Steps,
        GenerationFinished,
        GenerationFailed,
        Measured,
        AdapterRound,
        TrainStep,
        TrainEval,
        CheckpointSaved,
        RunFinished,
    )
}


def to_line(event: Event) -> str:
    """One JSON object, no newline inside, `e` first. Seconds of steps are written to the nanosecond."""
    if isinstance(event, Steps):
        return _steps_line(event)
    body: dict[str, Any] = {"e": event.kind}
    for each in dataclasses.fields(event):
        body[each.name] = getattr(event, each.name)
    return json.dumps(body, separators=(",", ":"), ensure_ascii=True)


def _steps_line(event: Steps) -> str:
    """The one line that is written inside timed regions: by hand in half of json.dumps' time, which spends it on the
    shortest digits of a double."""
    rows = ",".join(
        [
            f"[{row},{step},{end_s:.9f},{nodes},{depth},{accepted},{committed},{cut},"
            f"[{','.join(map(str, ranks)) if ranks else ''}],[{','.join(map(str, tokens))}],"
            f"{draft_s:.9f},{verify_s:.9f},{accept_s:.9f},{commit_s:.9f}]"
            for row, step, end_s, nodes, depth, accepted, committed, cut, ranks, tokens,
            draft_s, verify_s, accept_s, commit_s in event.rows
        ]
    )  # fmt: skip
    return f'{{"e":"steps","group":{event.group},"rows":[{rows}]}}'


def from_line(line: str) -> Event:
    """The inverse of `to_line`. Raises ValueError on a torn or unknown line (the caller names file and line)."""
    body = json.loads(line)
    if not isinstance(body, dict):
        raise ValueError("not a JSON object")
    kind = body.pop("e", None)
    cls = _KINDS.get(kind)
    if cls is None:
        raise ValueError(f"unknown event kind {kind!r}")
    if cls is Steps:
        body["rows"] = tuple(_step_row(row) for row in body["rows"])
    if "tokens" in body:
        body["tokens"] = tuple(body["tokens"])
    if cls is TrainEval:
        body = {name: _frozen(value) for name, value in body.items()}
    try:
        return cls(**body)
    except TypeError as error:
        raise ValueError(f"{kind}: {error}") from error


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _step_row(values: list[Any]) -> StepRow:
    row = StepRow(*values)
    return row._replace(ranks=tuple(row.ranks), tokens=tuple(row.tokens))
