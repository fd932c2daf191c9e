"""A run in which one method learns and its like beside it does not: promotions, a way back, a round that was kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from specbench.events import AdapterRound, Event, GenerationFinished, Measured, RunStarted
from specbench.manifest import Manifest
from specbench.store.ingest import ingest
from specbench.store.observed import ObservedLog
from tests.store.synthetic import AUTOREGRESSIVE, CHAIN, group_events, make_manifest, run_events, write_run
from tests.store.test_observed import a_round, answer

LEARNING = "20260104-demo-learning"
OFF = dataclasses.replace(CHAIN, label="adaptive_lora[adapt=off]", alpha=0.5)
ON = dataclasses.replace(CHAIN, label="adaptive_lora[adapt=on]", alpha=0.5)
_THREE = (AUTOREGRESSIVE, OFF, ON)
_BETTER = 0.08
"""What each promoted version adds to the chance of a drafted token."""


def _rounds(label: str) -> dict[tuple[int, int], AdapterRound]:
    """By repeat and the number of the answer they come after."""
    judged = {"acceptance_before": 0.51, "acceptance_after": 0.58, "gain_low": 0.02, "gain_high": 0.12}
    nothing = dict.fromkeys(("acceptance_before", "acceptance_after", "gain_low", "gain_high"))
    kept = {"outcome": "kept", "why": "3 held-out answers, 8 are needed to judge: it learns on", "num_held_out": 3}
    back = {"outcome": "rolled back", "why": "live acceptance 0.412 under version 2, 0.583 before it", "seconds": 0.0}
    found = {}
    for repeat, first in ((0, 1), (1, 3)):
        found[repeat, 4] = a_round(0, method=label, version=0, previous=0, **kept, **nothing)
        found[repeat, 8] = a_round(0, method=label, version=first, previous=0, **judged)
        found[repeat, 15] = a_round(0, method=label, version=first + 1, previous=first, **judged)
        if repeat == 0:
            found[repeat, 20] = a_round(0, method=label, version=first, previous=first + 1, **back, **nothing)
    return found


def _events(manifest: Manifest, log: ObservedLog) -> Iterator[Event]:
    rounds, num_answers, version = _rounds(ON.label), {0: 0, 1: 0}, {0: 0, 1: 0}
    head = list(run_events(manifest, _THREE))
    yield from (event for event in head if isinstance(event, RunStarted | Measured))
    for record in manifest.groups:
        competitor = next(each for each in _THREE if each.label == record.method)
        if competitor is ON:
            steps = {0: 0, 1: 1, 2: -1, 3: 1, 4: 2}[version[record.repeat]]
            competitor = dataclasses.replace(ON, alpha=ON.alpha + _BETTER * steps)
        for event in group_events(manifest, record, competitor, num_tokens=40):
            yield event
            if not isinstance(event, GenerationFinished) or record.method != ON.label:
                continue
            yield Measured(name="learn_s", value=0.01, unit="s", method=record.method)
            log.append([answer(record.group, version=version[record.repeat], num=6)])
            num_answers[record.repeat] += 1
            change = rounds.get((record.repeat, num_answers[record.repeat]))
            if change is not None:
                version[record.repeat] = change.version
                yield dataclasses.replace(change, group=record.group)
    yield head[-1]


def write_learning(store: Path) -> Path:
    """The run's folder, ingested into `store`."""
    manifest = make_manifest(_THREE, run_id=LEARNING, num_questions=24, repeats=2, carry="stream")
    folder = store / "runs" / LEARNING
    folder.mkdir(parents=True)
    write_run(folder, manifest, _events(manifest, ObservedLog(folder)))
    ingest(store / "specbench.duckdb", folder)
    return folder
