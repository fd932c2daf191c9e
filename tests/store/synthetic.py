"""Run folders made of arithmetic instead of a model: a manifest and a journal that keep every invariant.

`python -m tests.store.synthetic FOLDER --steps 1000000` writes a big one. No torch.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from specbench.events import (
    SCHEMA,
    Event,
    GenerationFinished,
    GenerationStarted,
    Measured,
    ReferenceFinished,
    RunFinished,
    RunStarted,
    StepRow,
    Steps,
    to_line,
)
from specbench.manifest import (
    DeviceRecord,
    GroupRecord,
    Manifest,
    MethodRecord,
    QuestionRecord,
    SamplingRecord,
    SuiteRecord,
    TargetRecord,
    write_manifest,
)

AR_S = 1e-3
"""Seconds of one autoregressive step of the imaginary target."""


@dataclass(frozen=True, kw_only=True)
class Competitor:
    """A method by what it does to a step: drafts `depth` tokens, each accepted with `alpha` if all before were."""

    label: str
    kind: str = "chain"
    depth: int = 0
    alpha: float = 0.0
    draft_s: float = 0.0
    """Seconds of drafting per drafted token."""
    verify_s: float = AR_S
    """Seconds of one verification."""
    siblings: int = 1
    """Children per node: above 1 a tree, whose accepted ranks vary."""
    is_control: bool = False
    options: tuple[tuple[str, object], ...] = ()
    """Beside `depth`."""


AUTOREGRESSIVE = Competitor(label="autoregressive", kind="baseline")
CONTROL = Competitor(label="autoregressive#2", kind="baseline", is_control=True)
CHAIN = Competitor(label="draft_model", depth=4, alpha=0.7, draft_s=0.1 * AR_S, verify_s=1.1 * AR_S)
TREE = Competitor(label="tree", kind="tree", depth=6, alpha=0.75, draft_s=0.1 * AR_S, verify_s=1.3 * AR_S, siblings=3)
SLOW = Competitor(label="slow", depth=2, alpha=0.2, draft_s=0.5 * AR_S, verify_s=1.1 * AR_S)
COMPETITORS = (AUTOREGRESSIVE, CONTROL, CHAIN, TREE, SLOW)


def make_manifest(
    competitors: Sequence[Competitor] = COMPETITORS,
    *,
    run_id: str = "run-a",
    num_questions: int = 4,
    num_turns: int = 1,
    repeats: int = 3,
    batch_size: int = 1,
    categories: Sequence[str] = ("writing", "math"),
    **changes: object,
) -> Manifest:
    """A plan: every question, turn, repeat and method, in that nesting. `changes` replace fields of the Manifest."""
    questions = tuple(
        QuestionRecord(
            question_id=str(81 + index),
            category=categories[index % len(categories)],
            num_turns=num_turns,
            prompt_hash=f"{index:064x}",
        )
        for index in range(num_questions)
    )
    ids = [question.question_id for question in questions]
    batches = [tuple(ids[start : start + batch_size]) for start in range(0, len(ids), batch_size)]
    plan = [
        (method.label, repeat, turn, batch)
        for batch in batches
        for turn in range(num_turns)
        for repeat in range(repeats)
        for method in competitors
    ]
    manifest = Manifest(
        run_id=run_id,
        created="2026-01-02T03:04:05+00:00",
        command=("specbench", "run", "demo"),
        suite=SuiteRecord(
            name="demo",
            hash="5" * 64,
            source="demo.yaml",
            template="chat",
            num_questions=num_questions,
            has_answers=False,
        ),
        target=TargetRecord(
            name="tiny",
            weights_hash="7" * 64,
            model_type="llama",
            num_parameters=1_000_000,
            dtype="float32",
            vocab_size=4096,
            weight_bytes_per_token=4_000_000,
            cache_bytes_per_token=1_000,
        ),
        device=DeviceRecord(kind="cpu", name="imaginary", threads=1, attention="reference", copy_bandwidth=8e9),
        sampling=SamplingRecord(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0),
        rule="coupled",
        seed=0,
        batch_size=batch_size,
        repeats=repeats,
        max_new_tokens=64,
        carry="none",
        methods=tuple(
            MethodRecord(
                label=method.label,
                name=method.label.partition("#")[0].partition("[")[0],
                title=method.label.replace("_", " ").title(),
                kind=method.kind,
                options={"depth": method.depth} | dict(method.options),
                num_parameters=0 if method.kind == "baseline" else 100_000,
                is_control=method.is_control,
            )
            for method in competitors
        ),
        questions=questions,
        groups=tuple(
            GroupRecord(group=index, method=label, repeat=repeat, turn=turn, question_ids=batch)
            for index, (label, repeat, turn, batch) in enumerate(plan)
        ),
        provenance={"git": "none"},
    )
    return manifest.model_copy(update=changes)


def group_events(
    manifest: Manifest, record: GroupRecord, competitor: Competitor, *, num_tokens: int, seed: int = 0
) -> Iterator[Event]:
    """One group from its start to its last answer. Seeded by (seed, group); ids depend on the question alone."""
    rng = np.random.default_rng((seed, record.group))
    category = {question.question_id: question.category for question in manifest.questions}
    labels = [
        {
            "group": record.group,
            "row": row,
            "method": record.method,
            "question_id": question_id,
            "category": category[question_id],
            "turn": record.turn,
            "repeat": record.repeat,
            "num_prompt_tokens": 20,
        }
        for row, question_id in enumerate(record.question_ids)
    ]
    for label in labels:
        yield GenerationStarted(**label)
    answers = [_answer(question_id, record.turn, num_tokens) for question_id in record.question_ids]
    steps = _steps(competitor, answers, rng)
    for start in range(0, len(steps), 64):
        yield Steps(group=record.group, rows=tuple(steps[start : start + 64]))
    prefill_s = 5e-3
    decode_s = steps[-1].end_s - prefill_s if steps else 0.0
    for row, label in enumerate(labels):
        is_first = row == 0
        sums = [sum(values) if is_first else 0.0 for values in zip(*(step[-4:] for step in steps), strict=True)]
        draft_s, verify_s, accept_s, commit_s = sums or [0.0] * 4
        yield GenerationFinished(
            **label,
            tokens=answers[row],
            text=f"answer to {label['question_id']} <b>& more</b>",
            finish_reason="length",
            num_steps=sum(step.row == row for step in steps),
            prefill_s=prefill_s if is_first else 0.0,
            decode_s=decode_s if is_first else 0.0,
            total_s=prefill_s + decode_s + 1e-4 if is_first else 0.0,
            draft_s=draft_s,
            verify_s=verify_s,
            accept_s=accept_s,
            commit_s=commit_s,
            journal_s=1e-6 if is_first else 0.0,
            equality="identical",
            first_difference=None,
            gap=None,
            correct=None,
        )


def run_events(
    manifest: Manifest, competitors: Sequence[Competitor] = COMPETITORS, *, num_tokens: int = 40, seed: int = 0
) -> Iterator[Event]:
    """The journal of an uninterrupted run."""
    yield RunStarted(schema=SCHEMA, run_id=manifest.run_id, time=manifest.created, pid=1, resumed=False)
    for question in manifest.questions:
        for turn in range(question.num_turns):
            yield ReferenceFinished(
                question_id=question.question_id,
                turn=turn,
                num_prompt_tokens=20,
                tokens=_answer(question.question_id, turn, num_tokens),
                text="reference",
                finish_reason="length",
            )
    yield Measured(name="noise_floor", value=1e-6, unit="logit")
    by_label = {competitor.label: competitor for competitor in competitors}
    for record in manifest.groups:
        yield from group_events(manifest, record, by_label[record.method], num_tokens=num_tokens, seed=seed)
    yield RunFinished(state="finished", time="2026-01-02T04:04:05+00:00")


def write_run(folder: Path, manifest: Manifest, events: Iterator[Event]) -> Path:
    """manifest.json and events.jsonl, without a Journal's syncs and lock."""
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder, manifest)
    with (folder / "events.jsonl").open("w", encoding="ascii") as file:
        file.writelines(to_line(event) + "\n" for event in events)
    return folder


def write_synthetic(
    folder: Path,
    competitors: Sequence[Competitor] = COMPETITORS,
    *,
    num_tokens: int = 40,
    seed: int = 0,
    **plan: object,
) -> Path:
    """A whole run in `folder`; `plan` goes to make_manifest."""
    manifest = make_manifest(competitors, **plan)  # type: ignore[arg-type]
    return write_run(folder, manifest, run_events(manifest, competitors, num_tokens=num_tokens, seed=seed))


def write_big(folder: Path, *, num_steps: int, run_id: str = "big") -> Path:
    """About num_steps steps: 80 questions, two turns, three repeats, five methods, eight categories."""
    # Two baselines of one token a step, three methods of 2.77, 3.47 and 1.24: 3.46 steps for each token of an answer.
    num_tokens = round(num_steps / (80 * 2 * 3) / 3.44)
    categories = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
    return write_synthetic(
        folder, run_id=run_id, num_questions=80, num_turns=2, num_tokens=num_tokens, categories=categories
    )


def _answer(question_id: str, turn: int, num_tokens: int) -> tuple[int, ...]:
    rng = np.random.default_rng((int(question_id), turn))
    return tuple(rng.integers(4, 4096, num_tokens).tolist())


def _steps(competitor: Competitor, answers: Sequence[tuple[int, ...]], rng: np.random.Generator) -> list[StepRow]:
    """All rows in lockstep; phase seconds on the first live row. End times count from the group's start."""
    num_kept = [1] * len(answers)
    num_steps = [0] * len(answers)
    now_s = 5e-3
    rows: list[StepRow] = []
    while True:
        live = [row for row, answer in enumerate(answers) if num_kept[row] < len(answer)]
        if not live:
            return rows
        noise = 1.0 + 0.02 * float(rng.standard_normal())
        draft_s = competitor.draft_s * competitor.depth * noise
        verify_s, accept_s, commit_s = competitor.verify_s * noise, 0.01 * AR_S, 0.01 * AR_S
        now_s += draft_s + verify_s + accept_s + commit_s + 1e-6
        for row in live:
            draws = rng.random(competitor.depth) < competitor.alpha
            num_accepted = int(np.argmin(draws)) if not draws.all() else competitor.depth
            num_left = len(answers[row]) - num_kept[row]
            num_truncated = max(0, num_accepted + 1 - num_left)
            end = num_kept[row] + num_accepted + 1 - num_truncated
            first = row == live[0]
            rows.append(
                StepRow(
                    row=row,
                    step=num_steps[row],
                    end_s=now_s,
                    num_nodes=competitor.depth * competitor.siblings,
                    depth=competitor.depth,
                    num_accepted=num_accepted,
                    num_committed=num_accepted + 1,
                    num_truncated=num_truncated,
                    ranks=tuple(rng.integers(0, competitor.siblings, num_accepted).tolist()),
                    tokens=answers[row][num_kept[row] : end],
                    draft_s=draft_s if first else 0.0,
                    verify_s=verify_s if first else 0.0,
                    accept_s=accept_s if first else 0.0,
                    commit_s=commit_s if first else 0.0,
                )
            )
            num_kept[row] = end
            num_steps[row] += 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=1_000_000)
    chosen = parser.parse_args()
    began = time.perf_counter()
    write_big(chosen.folder, num_steps=chosen.steps)
    print(f"{chosen.folder} in {time.perf_counter() - began:.1f} s")
