"""A journal's events as columns for DuckDB: what of a run is stored, and in which form. No torch.

Steps arrive by the million, so they go from parsed JSON into flat machine arrays without an object per row.
"""

from __future__ import annotations

import dataclasses
import json
from array import array
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa

from specbench.events import AdapterRound, GenerationFailed, GenerationFinished, Measured, ReferenceFinished
from specbench.manifest import GroupRecord, Manifest
from specbench.store.attempts import Attempt
from specbench.store.device import DeviceLog
from specbench.store.invariants import InvariantViolation, check_counts
from specbench.store.observed import ObservedAnswer

_STEP_INTS = ("row_index", "step", "num_nodes", "depth", "num_accepted", "num_committed", "num_truncated")
_STEP_SECONDS = ("end_s", "draft_s", "verify_s", "accept_s", "commit_s")
_GROUP_SECONDS = ("prefill_s", "decode_s", "total_s", "draft_s", "verify_s", "accept_s", "commit_s", "journal_s")
_TYPES = {"tokens": pa.list_(pa.int32())}
# A column of nothing but None would have no type.
_ROUND_FIGURES = ("acceptance_before", "acceptance_after", "gain_low", "gain_high", "width_before", "width_after")
_ROUND_TYPES = dict.fromkeys(_ROUND_FIGURES, pa.float64())


class StepColumns:
    """The steps of finished generations, column by column."""

    def __init__(self) -> None:
        self._group = array("i")
        self._ints = {name: array("i") for name in _STEP_INTS}
        self._seconds = {name: array("d") for name in _STEP_SECONDS}
        self._rank_ends = array("i", [0])
        self._ranks = array("H")
        self._range_of: dict[int, range] = {}
        self._superseded: list[range] = []

    def __len__(self) -> int:
        return sum(map(len, self._range_of.values()))

    def put(self, group: int, rows: Sequence[Sequence[Any]]) -> None:
        """Takes a group's steps, dropping those of an earlier attempt.

        rows: fields in StepRow's order; ids are left out, the generation has them.
        """
        if group in self._range_of:
            self._superseded.append(self._range_of.pop(group))
        if not rows:
            return
        self._range_of[group] = range(len(self._group), len(self._group) + len(rows))
        row, step, end, nodes, depth, accepted, committed, truncated, ranks, _, *phases = zip(*rows, strict=True)
        self._group.extend([group] * len(rows))
        for name, ints in zip(_STEP_INTS, (row, step, nodes, depth, accepted, committed, truncated), strict=True):
            self._ints[name].extend(ints)
        for name, seconds in zip(_STEP_SECONDS, (end, *phases), strict=True):
            self._seconds[name].extend(seconds)
        num_ranks = len(self._ranks)
        for of_step in ranks:
            self._ranks.extend(of_step)
            num_ranks += len(of_step)
            self._rank_ends.append(num_ranks)

    def table(self, run_id: str) -> pa.Table:
        """The `steps` table; the arrays are handed over without a copy, unless something was superseded."""
        columns: dict[str, pa.Array] = {"group_id": _flat(self._group, pa.int32())}
        columns |= {name: _flat(values, pa.int32()) for name, values in self._ints.items()}
        columns |= {name: _flat(values, pa.float64()) for name, values in self._seconds.items()}
        columns["ranks"] = pa.ListArray.from_arrays(_flat(self._rank_ends, pa.int32()), _flat(self._ranks, pa.uint16()))
        columns["run_id"] = _repeated(run_id, len(self._group))
        table = pa.table(columns)
        if self._superseded:
            table = table.take(list(chain.from_iterable(self._range_of.values())))
        return table


class RunColumns:
    """Everything of a run but the manifest, as it is fed: complete attempts, reference answers, measurements."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._plan: Mapping[int, GroupRecord] = {record.group: record for record in manifest.groups}
        self._groups: dict[int, dict[str, Any]] = {}
        self._generations: dict[int, list[dict[str, Any]]] = {}
        self._failures: dict[int, list[dict[str, Any]]] = {}
        self._references: dict[tuple[str, int], dict[str, Any]] = {}
        self._measurements: list[dict[str, Any]] = []
        self._device = DeviceLog([], [], {}, [])
        self._observed: dict[tuple[int, int], ObservedAnswer] = {}
        self._rounds: list[dict[str, Any]] = []
        self.steps = StepColumns()

    def add_attempt(self, attempt: Attempt) -> None:
        """Checks its finished generations (InvariantViolation) and takes them; steps of failed ones are dropped.

        A later complete attempt at the same group replaces an earlier one.
        """
        group = attempt.group
        rows_of: dict[int, list[list[Any]]] = {row: [] for row in attempt.finished}
        for step in attempt.rows:
            if step[0] in rows_of:
                rows_of[step[0]].append(step)
        for row, generation in attempt.finished.items():
            check_counts(generation, rows_of[row], run_id=self._manifest.run_id)
        self._groups[group] = self._group(attempt)
        self._generations[group] = [_generation(generation) for _, generation in sorted(attempt.finished.items())]
        self._failures[group] = [_failure(failed) for _, failed in sorted(attempt.failed.items())]
        self.steps.put(group, [step for _, steps in sorted(rows_of.items()) for step in steps])

    def add_reference(self, event: ReferenceFinished) -> None:
        """A resumed run may make the reference pass again: the last one counts."""
        self._references[event.question_id, event.turn] = {
            "question_id": event.question_id,
            "turn": event.turn,
            "num_prompt_tokens": event.num_prompt_tokens,
            "tokens": event.tokens,
            "text": event.text,
            "finish_reason": event.finish_reason,
        }

    def add_measurement(self, event: Measured) -> None:
        """In the journal's order."""
        self._measurements.append(
            {
                "position": len(self._measurements),
                "name": event.name,
                "value": event.value,
                "unit": event.unit,
                "method": event.method,
                "detail": event.detail,
            }
        )

    def add_device(self, log: DeviceLog) -> None:
        """The machine's state during the run."""
        self._device = log

    def add_round(self, event: AdapterRound) -> None:
        """In the journal's order."""
        body = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
        self._rounds.append({"position": len(self._rounds), "group_id": body.pop("group"), **body})

    def add_observed(self, answers: Sequence[ObservedAnswer]) -> None:
        """Of a group that was measured again the last line counts."""
        self._observed = {(each.group, each.row): each for each in answers}

    def num_generations(self) -> int:
        """Finished ones."""
        return sum(map(len, self._generations.values()))

    def num_failures(self) -> int:
        """Failed ones."""
        return sum(map(len, self._failures.values()))

    def tables(self) -> dict[str, pa.Table]:
        """Table name -> rows to insert; empty ones are left out."""
        run_id = self._manifest.run_id
        lists: dict[str, list[dict[str, Any]]] = {
            "groups": list(self._groups.values()),
            "generations": list(chain.from_iterable(self._generations.values())),
            "failures": list(chain.from_iterable(self._failures.values())),
            "reference_answers": list(self._references.values()),
            "measurements": self._measurements,
            "device_sampler": self._device.samplers,
            "device_sample": self._device.samples,
            "group_energy": list(self._device.energy.values()),
            "observed": self._observed_rows(),
            "methods": [
                record.model_dump(exclude={"label", "options", "num_compiled"})
                | {"method": record.label, "position": position, "options": json.dumps(record.options)}
                for position, record in enumerate(self._manifest.methods)
            ],
            "questions": [
                record.model_dump() | {"position": position} for position, record in enumerate(self._manifest.questions)
            ],
        }
        tables = {name: _table(run_id, rows) for name, rows in lists.items() if rows}
        if self._rounds:
            tables["adapter_rounds"] = _table(run_id, self._rounds, _ROUND_TYPES)
        if len(self.steps):
            tables["steps"] = self.steps.table(run_id)
        return tables

    def _observed_rows(self) -> list[dict[str, Any]]:
        """A row per position of the answers that finished. Raises InvariantViolation for one outside its answer."""
        rows = []
        for generation in chain.from_iterable(self._generations.values()):
            group, row = generation["group_id"], generation["row_index"]
            answer = self._observed.get((group, row))
            if answer is None:
                continue
            first = generation["num_prompt_tokens"]
            inside = range(first + 1, first + len(generation["tokens"]))
            if any(position not in inside for position in answer.position):
                raise InvariantViolation(
                    f"run {self._manifest.run_id}, group {group} row {row}: an observed position is not in its answer"
                )
            for position, depth, accepted, overlap in zip(*answer[4:], strict=True):
                rows.append(
                    {
                        "group_id": group,
                        "row_index": row,
                        "domain": answer.domain,
                        "version": answer.version,
                        "position": position,
                        "depth": depth,
                        "is_accepted": bool(accepted),
                        "overlap": float(overlap),
                    }
                )
        return rows

    def _group(self, attempt: Attempt) -> dict[str, Any]:
        record = self._plan[attempt.group]
        ended: list[GenerationFinished | GenerationFailed] = [*attempt.finished.values(), *attempt.failed.values()]
        categories = {event.category for event in ended}
        seconds = {
            name: sum(getattr(generation, name) for generation in attempt.finished.values()) for name in _GROUP_SECONDS
        }
        total_s = seconds["total_s"]
        if len(attempt.finished) == len(record.question_ids) and not total_s > 0:
            raise InvariantViolation(
                f"run {self._manifest.run_id}: group {attempt.group} ({record.method}) finished in {total_s} s"
            )
        return {
            "group_id": attempt.group,
            "method": record.method,
            "turn": record.turn,
            "repeat": record.repeat,
            "unit": "|".join(record.question_ids),
            "category": categories.pop() if len(categories) == 1 else "mixed",
            "num_rows": len(record.question_ids),
            "num_finished": len(attempt.finished),
            "num_failed": len(attempt.failed),
            "began_s": attempt.began_s,
            **seconds,
        }


def _where(event: GenerationFinished | GenerationFailed) -> dict[str, Any]:
    return {
        "group_id": event.group,
        "row_index": event.row,
        "method": event.method,
        "question_id": event.question_id,
        "category": event.category,
        "turn": event.turn,
        "repeat": event.repeat,
    }


def _generation(event: GenerationFinished) -> dict[str, Any]:
    return {
        **_where(event),
        "num_prompt_tokens": event.num_prompt_tokens,
        "num_new_tokens": len(event.tokens),
        "num_steps": event.num_steps,
        "finish_reason": event.finish_reason,
        "equality": event.equality,
        "first_difference": event.first_difference,
        "gap": event.gap,
        "correct": event.correct,
        "tokens": event.tokens,
        "text": event.text,
    }


def _failure(event: GenerationFailed) -> dict[str, Any]:
    return {
        **_where(event),
        "error": event.error,
    }


def _table(run_id: str, rows: Sequence[Mapping[str, Any]], types: Mapping[str, pa.DataType] = _TYPES) -> pa.Table:
    columns = {name: pa.array([row[name] for row in rows], type=types.get(name)) for name in rows[0]}
    return pa.table(columns | {"run_id": _repeated(run_id, len(rows))})


def _flat(values: array[Any], kind: pa.DataType) -> pa.Array:
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def _repeated(value: str, number: int) -> pa.Array:
    zeros = pa.Array.from_buffers(pa.int32(), number, [None, pa.py_buffer(bytes(4 * number))])
    return pa.DictionaryArray.from_arrays(zeros, pa.array([value]))
