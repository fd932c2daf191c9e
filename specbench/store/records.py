"""A run, summed up: the frozen dataclasses that `specbench run --json`, `results show` and the page all read. No torch.

Ratios come from views.sql, intervals from metrics.py; here they are only put side by side (see summarise.py for how).
Field names are the JSON's: `to_json` adds nothing and renames nothing.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from specbench.metrics import Interval

SUMMARY_SCHEMA = 1
"""`schema` of the JSON object; scripts may rely on it."""


@dataclass(frozen=True, kw_only=True)
class Positions:
    """Acceptance by depth; index 0 = depth 1. Empty for a method that drafts nothing."""

    conditional: tuple[float | None, ...]
    """P(k accepted | k-1 accepted, k proposed); None where no step got so far."""
    survival: tuple[float, ...]
    """Steps with at least k accepted / all steps not cut before k."""
    proposed: tuple[float, ...]
    """Share of those steps that proposed depth k."""


@dataclass(frozen=True, kw_only=True)
class PhaseSeconds:
    """Sums over timed generations. other: wall clock that no phase claims."""

    prefill: float
    draft: float
    verify: float
    accept: float
    commit: float
    other: float


@dataclass(frozen=True, kw_only=True)
class Equality:
    """Numbers of generations (question x turn x repeat) by how they compare with the reference (measurement 12)."""

    identical: int
    tie: int
    numeric: int
    bug: int


@dataclass(frozen=True, kw_only=True)
class Waterfall:
    """Seconds per sequence-step; the five terms sum to step_s. speedup_decode = acceptance_length * ar_s / step_s."""

    ar_s: float
    """The baseline's decode seconds per token."""
    draft_s: float
    verify_s: float
    accept_s: float
    commit_s: float
    other_s: float
    step_s: float
    other_share: float
    """other_s / step_s: above 0.03 the phases do not explain the step (measurement 13)."""
    bound_speedup: float | None
    """What draft and verify alone would allow."""


@dataclass(frozen=True, kw_only=True)
class Theory:
    """Leviathan et al. 2023 with a chain's own measured parts."""

    alpha: float
    """Acceptance rate over every tested position."""
    gamma: float
    """Mean proposed length."""
    c: float
    """Seconds per drafted token in baseline steps."""
    expected_speedup: float


@dataclass(frozen=True, kw_only=True)
class BaselineMeter:
    """How near the baseline is to the memory's speed (measurement 11)."""

    num_bytes: int
    """num_rounds x weight bytes + context tokens x cache bytes."""
    bytes_per_s: float
    copy_bandwidth: float | None
    """Bytes/s of a plain copy measured in this run; None where it was not measured."""
    share: float | None


@dataclass(frozen=True, kw_only=True)
class CategoryRow:
    """One method in one category of the suite (not shown at batch > 1)."""

    category: str
    num_questions: int
    num_new_tokens: int
    tokens_per_s: float
    speedup: float | None
    speedup_ci: Interval | None
    speedup_total: float | None
    acceptance_length: float | None
    accuracy: float | None
    too_noisy: bool


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """One method of a run. Speed-ups are against this run's own autoregressive row."""

    method: str
    """The label, unique in the run."""
    name: str
    title: str
    kind: str
    """'baseline', 'chain' or 'tree'."""
    is_control: bool
    num_parameters: int
    num_questions: int
    """With an answer."""
    num_repeats: int
    num_units: int
    """Questions (groups at batch > 1) that its speed-up rests on: those it finished as far as the baseline did."""
    num_failed: int
    num_new_tokens: int
    num_steps: int
    tokens_per_s: float | None
    """New tokens / end-to-end seconds, all repeats; None where nothing finished."""
    speedup: float | None
    """End to end, geometric mean over questions (groups at batch > 1). 1.0 for the baseline; None where unpaired."""
    speedup_ci: Interval | None
    """95 % bootstrap over questions; None for the baseline and where fewer than two questions were paired."""
    speedup_total: float | None
    """Ratio of totals, end to end."""
    speedup_decode: float | None
    """Ratio of totals, decode only: what efficiency and the waterfall explain."""
    acceptance_length: float | None
    """Tokens kept per step, bonus included, pooled over steps."""
    acceptance_length_macro: float | None
    """The mean of the categories' values."""
    acceptance_by_position: Positions
    learn_s: float | None = None
    """Seconds of learning between answers (of handing over, where rounds run beside them), in none of the others'
    figures; None where nothing learns."""
    speedup_serial: float | None = None
    """speedup_total with learn_s on the method's clock; None where nothing learns."""
    efficiency: float | None
    """speedup_decode / acceptance_length."""
    efficiency_ci: Interval | None
    phase_s: PhaseSeconds | None
    waterfall: Waterfall | None
    theory: Theory | None
    """Chains only."""
    meter: BaselineMeter | None
    """The baseline and its control only."""
    joules_per_token: float | None = None
    """GPU energy / new tokens, end to end, by the card's own counter; None where nothing counted it."""
    equality: Equality | None
    """None under `rejection` at temperature > 0."""
    accuracy: float | None
    lossless: bool
    carry: str
    ranked: bool
    control_failed: bool = False
    """The run's A/A control failed; but for that and perhaps its noise the row would have a rank."""
    too_noisy: bool = False
    """Nothing but the width of its interval takes its rank: more questions or repeats would bring one."""
    reasons: tuple[str, ...] = ()
    """Why it has no rank, each with its class first (`not ranked: …`); also the first of `notes`."""
    rank: int | None
    """1 + the number of ranked methods that are told apart as faster: pairwise, not corrected for their number; None
    where not ranked."""
    tied_with: tuple[str, ...]
    """Ranked methods whose paired log-ratio with this one has an interval that contains 0."""
    by_category: tuple[CategoryRow, ...]
    notes: tuple[str, ...]
    """Its reasons, and whatever else a reader must know; one sentence each."""


@dataclass(frozen=True, kw_only=True)
class Control:
    """Autoregression twice under two names (measurement 7)."""

    method: str
    speedup: float | None
    speedup_ci: Interval | None
    passed: bool | None
    """The interval contains 1; None where there is no interval."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Two competitors of one run that differ in one option alone: what that option is worth."""

    method: str
    """Label of the one with `value`."""
    base: str
    """Label of the first one in the plan, with `base_value`."""
    option: str
    value: str
    base_value: str
    num_units: int
    """Questions (groups at batch > 1) both finished."""
    acceptance_ratio: float | None
    """tau of `method` / tau of `base`, each pooled over steps; None where one made no step."""
    acceptance_ratio_ci: Interval | None
    speed_ratio: float
    """Speed-up of `method` / speed-up of `base`, end to end, geometric mean over the questions."""
    speed_ratio_ci: Interval | None


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What `specbench run --json` prints."""

    schema: int
    run_id: str
    created: str
    state: str
    suite: str
    suite_hash: str
    num_questions: int
    """Planned."""
    target: str
    target_hash: str
    model_type: str
    num_parameters: int
    quantisation: str
    device: str
    device_kind: str
    dtype: str
    threads: int
    attention: str
    execution: str
    """Steps as operators or graphs; `, compiled` or `, compiled by layers`."""
    batch_size: int
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    rule: str
    carry: str
    stop: tuple[str, ...]
    """Strings that end an answer, sorted."""
    seed: int
    repeats: int
    rows: tuple[MethodRow, ...]
    """In the order of the plan."""
    control: Control | None
    """None where the run has no control."""
    notes: tuple[str, ...]
    contrasts: tuple[Contrast, ...] = ()
    """Pairs that differ in one option, in the order of the plan."""


@dataclass(frozen=True, kw_only=True)
class ExternalRow:
    """Somebody else's answer file, in that tool's own counting. Shown beside measured rows, never ranked with them."""

    import_id: str
    suite: str
    target: str
    method: str
    model_id: str
    source: str
    """File name."""
    num_questions: int
    num_turns: int
    num_new_tokens: int
    num_steps: int
    tokens_per_s: float
    tokens_per_step: float | None
    """None where the file records no step: an answer that ended with the prefill's token has none."""
    base_tokens_per_s: float | None
    speedup: float | None
    """Geometric mean over the questions both files have; None without a baseline file."""
    speedup_ci: Interval | None
    speedup_total: float | None
    """(tokens / seconds) / (baseline tokens / seconds), each side over its whole file."""
    num_paired_questions: int
    ranked: bool
    """Always False."""
    notes: tuple[str, ...]


def to_json(value: Any) -> Any:
    """Dataclasses to plain dicts and lists, field names kept; an Interval becomes [low, high].

    Takes any dataclass of this room (RunSummary, Comparison, ExternalSummary, ...).
    """
    if isinstance(value, Interval):
        return [value.low, value.high]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return to_json(value._asdict())
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return value


class Stored(NamedTuple):
    """A run's row in the store. Ingested again after it went on, it is another one."""

    state: str
    num_answers: int


@dataclass(frozen=True, kw_only=True)
class RunEntry:
    """One line of `specbench results ls`."""

    run_id: str
    created: str
    """ISO 8601, UTC; '' where the manifest is damaged."""
    suite: str
    target: str
    state: str
    """running | finished | interrupted | failed | lost (no last word, process gone) | unknown (streamed from another
    machine, of which nothing is heard) | damaged (unreadable manifest)."""
    has_journal: bool
    """False for a run that only the store remembers."""
    is_stored: bool
    """Its speed-ups can be read: `results ingest` makes it so."""
    speedups: dict[str, float]
    """Geometric means by method; empty until ingested. Intervals: `results show`."""
    unranked: dict[str, str] = field(default_factory=dict)
    """Of the methods that the run's table does not rank, why; empty where the list was asked for without ranks."""
    kind: Literal["run", "train"] = "run"
    """What made the folder; a training's `suite` is its data set."""
    headline: str = ""
    """A training's best figure so far."""
    num_answers: int = 0
    """Timed generations that finished; 0 until ingested."""
    failed: tuple[str, ...] = ()
    """Methods, baseline and control among them, whose timed generations all failed; empty until ingested."""
    stored_state: str = ""
    """When it was ingested; `state` is the folder's, now. Empty until then."""

    @property
    def stored(self) -> Stored | None:
        """Its row in the store; None until ingested."""
        return Stored(self.stored_state, self.num_answers) if self.is_stored else None


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Runs, newest first, and what kept them from being shown whole."""

    runs: tuple[RunEntry, ...]
    notes: tuple[str, ...]
