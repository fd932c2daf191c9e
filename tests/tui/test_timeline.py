"""Where each token came from and when, from the journal alone; and the clock that replays it."""

from __future__ import annotations

import time
from pathlib import Path

from specbench.events import GenerationStarted, Steps, to_line
from specbench.tui.clock import ReplayClock
from specbench.tui.index import RunIndex
from specbench.tui.marks import Kind
from specbench.tui.timeline import Timeline, load_timeline
from tests.store.crafted import crafted_answer, crafted_group, crafted_steps
from tests.store.synthetic import AUTOREGRESSIVE, CHAIN, make_manifest, write_run, write_synthetic


def _timeline(folder: Path, group: int = 0, row: int = 0) -> Timeline:
    index = RunIndex(folder)
    index.advance()
    return load_timeline(folder, index.groups[group], index.groups[group].rows[row])


def test_tokens_carry_the_depth_they_were_accepted_at(tmp_path: Path) -> None:
    """Three drafted and two accepted: depths 1 and 2, then the target's own; a step without a draft is plain."""
    manifest = make_manifest((AUTOREGRESSIVE, CHAIN), num_questions=1, repeats=1)
    folder = write_run(tmp_path / "run-a", manifest, crafted_group(manifest, 1, [(3, 2, 0), (0, 0, 0), (2, 0, 0)]))
    timeline = _timeline(folder, 1)
    assert [(token.kind, token.depth) for token in timeline.tokens] == [
        (Kind.PLAIN, 0),
        (Kind.DRAFTED, 1),
        (Kind.DRAFTED, 2),
        (Kind.BONUS, 0),
        (Kind.PLAIN, 0),
        (Kind.BONUS, 0),
    ]
    assert [token.id for token in timeline.tokens] == [100, 101, 102, 103, 104, 105]


def test_a_cut_step_keeps_only_what_was_kept(tmp_path: Path) -> None:
    """Two accepted, the second and the bonus cut by a stop: one drafted token stays."""
    manifest = make_manifest((AUTOREGRESSIVE, CHAIN), num_questions=1, repeats=1)
    folder = write_run(tmp_path / "run-a", manifest, crafted_group(manifest, 1, [(3, 2, 2)]))
    assert [token.kind for token in _timeline(folder, 1).tokens] == [Kind.PLAIN, Kind.DRAFTED]


def test_the_first_token_is_missing_until_the_answer_has_ended(tmp_path: Path) -> None:
    """No step holds the prefill's token, so a live pane must not name one."""
    manifest = make_manifest((AUTOREGRESSIVE, CHAIN), num_questions=1, repeats=1)
    steps = crafted_steps([(3, 1, 0)])
    started = GenerationStarted(
        group=1, row=0, method="draft_model", question_id="81", category="writing", turn=0, repeat=0,
        num_prompt_tokens=3, began_s=1.0,
    )  # fmt: skip
    folder = write_run(tmp_path / "run-a", manifest, iter([started, Steps(group=1, rows=tuple(steps))]))
    index = RunIndex(folder)
    index.advance()
    timeline = load_timeline(folder, index.groups[1], index.groups[1].rows[0])
    assert timeline.tokens[0].kind is Kind.MISSING
    with (folder / "events.jsonl").open("a", encoding="ascii") as file:
        file.write(to_line(crafted_answer(manifest, 1, steps)) + "\n")
    index.advance()
    assert timeline.extend(folder, index.groups[1])
    assert timeline.tokens[0] == (100, Kind.PLAIN, 0, -1)


def test_rows_of_a_batch_are_told_apart_and_share_their_steps_seconds(tmp_path: Path) -> None:
    folder = write_synthetic(tmp_path / "run-a", (AUTOREGRESSIVE, CHAIN), num_questions=2, batch_size=2, repeats=1)
    first, second = _timeline(folder, 1, 0), _timeline(folder, 1, 1)
    assert [token.id for token in first.tokens] != [token.id for token in second.tokens]
    assert len(first.tokens) == len(second.tokens) == 40
    assert all(step.verify_s > 0 for step in second.steps)


def test_time_moves_tokens_step_by_step(tmp_path: Path) -> None:
    manifest = make_manifest((AUTOREGRESSIVE, CHAIN), num_questions=1, repeats=1)
    folder = write_run(tmp_path / "run-a", manifest, crafted_group(manifest, 1, [(3, 2, 0), (3, 0, 0)], prefill_s=0.5))
    timeline = _timeline(folder, 1)
    assert [timeline.tokens_at(at) for at in (0.0, 0.5, 0.99, 1.0, 1.5, 2.0, 9.0)] == [0, 1, 1, 4, 4, 5, 5]
    assert timeline.next_event(0.0) == 0.5
    assert timeline.next_event(0.5) == 1.0
    assert timeline.next_event(2.0) is None
    assert timeline.event_before(2.0) == 1.0
    assert timeline.event_before(1.0) == 0.5
    assert timeline.event_before(0.5) == 0.0
    assert timeline.acceptance_length_at(1.0) == 3.0
    assert timeline.acceptance_length_at(2.0) == 2.0
    assert timeline.acceptance_length_at(0.5) is None


def test_seeking_in_a_long_answer_takes_less_than_a_tenth_of_a_second(tmp_path: Path) -> None:
    manifest = make_manifest((AUTOREGRESSIVE, CHAIN), num_questions=1, repeats=1)
    folder = write_run(tmp_path / "run-a", manifest, crafted_group(manifest, 1, [(1, 1, 0)] * 50_000))
    timeline = _timeline(folder, 1)
    began = time.process_time()
    for at in range(0, 50_000, 500):
        timeline.tokens_at(float(at))
    assert time.process_time() - began < 0.1


def test_the_clock_plays_pauses_seeks_and_stops_at_the_end() -> None:
    wall = [100.0]
    clock = ReplayClock(now=lambda: wall[0])
    clock.set_duration(10.0)
    clock.play()
    wall[0] += 2.0
    assert clock.position() == 2.0
    clock.change_speed(+1)
    wall[0] += 1.0
    assert clock.position() == 4.0
    clock.pause()
    wall[0] += 50.0
    assert clock.position() == 4.0
    clock.seek(9.0)
    clock.play()
    wall[0] += 50.0
    assert clock.position() == 10.0 and not clock.is_playing
    clock.play()
    assert clock.position() == 0.0


def test_speed_stays_between_its_ends() -> None:
    clock = ReplayClock(now=lambda: 0.0)
    for _ in range(20):
        clock.change_speed(-1)
    assert clock.speed == 0.1
    for _ in range(20):
        clock.change_speed(+1)
    assert clock.speed == 16.0
