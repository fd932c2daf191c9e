"""The race's boxes as lines: speed-ups so far, phase costs, the race clock, a lane's last step. No Textual."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from specbench.metrics import Interval
from specbench.report import text
from specbench.tui.lines import BARS, Line, Span, cell, fit, line, width_of
from specbench.tui.marks import METHOD_COLOURS, symbol
from specbench.tui.names import short
from specbench.tui.race import STUCK_STEPS, Lane, Race
from specbench.tui.sofar import MethodSoFar
from specbench.tui.timeline import Step


def method_style(position: int) -> str:
    """A method's colour by its place in the plan, the same in every view."""
    return f"method{position % len(METHOD_COLOURS)}"


def method_name(method: str, position: int, width: int, among: Sequence[str]) -> Line:
    """`● redrafter`, in its colour. among: all methods of the run, from which it stays different where it is cut."""
    # The last cell is a gap: whatever follows a cut name must not look like a part of it.
    room = max(1, width - 3)
    return (Span(f"{symbol(position)} ", method_style(position)), Span(cell(short(method, room, among), room) + " "))


def forest(value: float, interval: Interval | None, *, low: float, high: float, width: int) -> str:
    """`   │  ├──●──┤ ` on a scale: a bar of the interval, a dot for the estimate, a line where nothing is gained."""
    cells = [" "] * width

    def place(at: float) -> int:
        return min(width - 1, max(0, round((at - low) / (high - low) * (width - 1))))

    if low <= 1.0 <= high:
        cells[place(1.0)] = "│"
    if interval is not None:
        for at in range(place(interval.low), place(interval.high) + 1):
            cells[at] = "─"
        cells[place(interval.low)], cells[place(interval.high)] = "├", "┤"
    cells[place(value)] = "●"
    return "".join(cells)


def scale_of(figures: Sequence[MethodSoFar]) -> tuple[float, float]:
    """Ends of a scale that holds 1 and every interval."""
    ends = [1.0]
    for figure in figures:
        if figure.speedup is not None:
            ends.append(figure.speedup.geometric_mean)
            ends += list(figure.speedup.interval or ())
    low, high = min(ends), max(ends)
    margin = max(0.05, 0.05 * (high - low))
    return low - margin, high + margin


def speedup_lines(race: Race, figures: Mapping[str, MethodSoFar], width: int) -> list[Line]:
    """A row per method of the run, those in the race first."""
    if not figures:
        return [line(Span("No answer has ended yet.", "dim"))]
    raced = [lane.method for lane in race.lanes]
    ordered = [*raced, *(method for method in figures if method not in raced)]
    low, high = scale_of(list(figures.values()))
    positions = {method.label: place for place, method in enumerate(race.manifest.methods)}
    # Interval and estimate take 21 cells; names get a third of the rest.
    names = max(8, min(max(map(len, figures)) + 3, (width - 22) // 2))
    room = width - names - 22
    found: list[Line] = []
    for method in ordered:
        figure = figures[method]
        head = method_name(method, positions[method], names, race.methods)
        if figure.speedup is not None:
            shape = forest(
                figure.speedup.geometric_mean, figure.speedup.interval, low=low, high=high, width=max(1, room)
            )
            words = f" {text.times(figure.speedup.geometric_mean):>6} {text.interval(figure.speedup.interval):>14}"
        elif figure.num_tokens and method == baseline_of(race):
            shape = forest(1.0, None, low=low, high=high, width=max(1, room))
            words = f"  1.00× {'baseline':>14}"
        else:
            shape, words = " " * max(1, room), f" {'':>6} {'no pair yet' if figure.num_tokens else 'waits':>14}"
        style = "" if method in raced else "dim"
        found.append(fit((*head, Span(shape if room > 4 else "", style), Span(words, style)), width))
    return found


def baseline_of(race: Race) -> str:
    """The method the others are divided by; empty where there is none."""
    return next((m.label for m in race.manifest.methods if m.kind == "baseline" and not m.is_control), "")


def speedup_strap(race: Race, figures: Mapping[str, MethodSoFar], width: int) -> Line:
    """All of it on one line, for small screens. Names give way before the last lane's figure is cut off."""
    tries = (_strap(race, figures, names) for names in range(10, 4, -1))
    found = next((row for row in tries if width_of(row) <= width), _strap(race, figures, 5))
    return fit(found, width)


def _strap(race: Race, figures: Mapping[str, MethodSoFar], names: int) -> Line:
    parts: list[Span] = [Span(" ")]
    for lane in race.lanes:
        figure = figures.get(lane.method)
        name = short(lane.method, names, race.methods)
        gap = "  " if len(parts) > 1 else ""
        parts.append(Span(f"{gap}{symbol(lane.position)} ", method_style(lane.position)))
        if figure is None or (figure.speedup is None and lane.method != baseline_of(race)):
            parts.append(Span(f"{name} –"))
            continue
        value = 1.0 if figure.speedup is None else figure.speedup.geometric_mean
        interval = None if figure.speedup is None else figure.speedup.interval
        spread = f"±{(interval.high - interval.low) / 2:.2f}" if interval is not None else ""
        parts.append(Span(f"{name} {value:.2f}{spread}"))
    return line(*parts)


_COSTS = (
    ("draft", 6, 0), ("verify", 7, 0), ("accept", 7, 3), ("commit", 7, 4), ("other", 6, 2), ("step", 7, 0),
    ("τ", 6, 5), ("ms/token", 9, 6),
)  # fmt: skip
"""Columns of the costs: name, cells, and in which order they leave where it is narrow (highest first, 0 never)."""


def cost_lines(race: Race, figures: Mapping[str, MethodSoFar], width: int) -> list[Line]:
    """Mean milliseconds of a step by phase, over all answers so far, and what a step buys. other: wall clock that no
    phase claims; ms/token: end to end."""
    longest = max((len(lane.method) for lane in race.lanes), default=8) + 3
    shown = list(_COSTS)
    while width - sum(size for _, size, _ in shown) < min(longest, 14) and any(leaves for *_, leaves in shown):
        shown.remove(max(shown, key=lambda column: column[2]))
    names = max(8, min(longest, width - sum(size for _, size, _ in shown)))
    head = " " * names + "".join(f"{word:>{size}}" for word, size, _ in shown)
    found: list[Line] = [fit((Span(head, "bold"),), width)]
    for lane in race.lanes:
        figure = figures.get(lane.method)
        row = method_name(lane.method, lane.position, names, race.methods)
        if figure is None or not figure.num_steps:
            found.append((*row, Span("  no answer yet", "dim")))
            continue
        numbers = _costs(figure)
        words = "".join(f"{numbers[word]:>{size}.2f}" for word, size, _ in shown)
        found.append(fit((*row, Span(words)), width))
    return found


def _costs(figure: MethodSoFar) -> dict[str, float]:
    """By the columns' names; milliseconds but for τ."""
    parts = {"draft": figure.draft_s, "verify": figure.verify_s, "accept": figure.accept_s, "commit": figure.commit_s}
    seconds = parts | {"other": figure.decode_s - sum(parts.values()), "step": figure.decode_s}
    found = {name: 1000 * value / figure.num_steps for name, value in seconds.items()}
    found["τ"] = figure.acceptance_length or 0.0
    found["ms/token"] = 1000 * figure.total_s / figure.num_tokens
    return found


def step_boxes(step: Step) -> str:
    """`■■□ 2/3`: drafted levels, those accepted filled. Which tokens the others held, the journal does not say."""
    if not step.num_nodes:
        return "no draft"
    filled, empty = min(step.num_accepted, 12), min(step.depth - step.num_accepted, 12)
    return f"{'■' * filled}{'□' * empty} {step.num_accepted}/{step.depth}"


def lane_lines(lane: Lane, seconds: float, width: int) -> list[Line]:
    """Two lines under a lane: its last step, its counts."""
    if lane.timeline is None:
        return [(), ()]
    done = lane.timeline.steps_at(seconds)
    if lane.is_stuck_at(seconds):
        first: Line = (Span(f"⚠ nothing accepted in {STUCK_STEPS} steps", "warn"),)
    elif done:
        step = lane.timeline.steps[done - 1]
        milliseconds = 1000 * (step.end_s - step.begin_s)
        # What does not fit loses its words first, then its milliseconds; the boxes stay.
        choices = [f"last step {step_boxes(step)} {milliseconds:.1f} ms", f"{step_boxes(step)} {milliseconds:.1f} ms"]
        first = line(next((words for words in choices if len(words) <= width), step_boxes(step)))
    else:
        first = line(Span("prefill", "dim"))
    num_tokens = lane.timeline.tokens_at(seconds)
    tau = lane.timeline.acceptance_length_at(seconds)
    words = f"{num_tokens} tokens · {done} steps · τ {text.two(tau)}"
    short = f"{num_tokens} tok · τ {text.two(tau)}"
    return [fit(first, width), fit(line(words if len(words) <= width else short), width)]


def lane_rate(lane: Lane, seconds: float) -> str:
    """Tokens per second of this answer up to the moment, prefill included."""
    if lane.timeline is None:
        return ""
    until = min(seconds, lane.timeline.end_s)
    tokens = lane.timeline.tokens_at(seconds)
    return f"{text.rate(tokens / until)} tok/s" if tokens and until > 0 else ""


def _scale(duration: float, width: int) -> str:
    """Ticks at whole steps of 1, 2 or 5 times a power of ten, as many as have room."""
    step = next(
        (unit * base for base in (0.01, 0.1, 1.0, 10.0, 100.0) for unit in (1, 2, 5) if duration / (unit * base) <= 8),
        1000.0,
    )
    cells = [" "] * width
    tick = 0
    while tick * step <= duration and duration > 0:
        place = round(tick * step / duration * (width - 1))
        for at, char in enumerate(f"{tick * step:g}s"):
            if place + at < width:
                cells[place + at] = char
        tick += 1
    return "".join(cells)


def clock_lines(race: Race, seconds: float, width: int) -> list[Line]:
    """Tokens over time, a row per lane on one scale: what has been, `│` now, `·` what is still to come."""
    duration = race.clock.duration
    if duration <= 0:
        return [line(Span("Nothing has been measured on this question yet.", "dim"))]
    names = max(8, min(max((len(lane.method) for lane in race.lanes), default=8) + 3, width // 4))
    room = max(1, width - names - 1)
    found: list[Line] = [(Span(" " * names + " "), Span(_scale(duration, room), "dim"))]
    now = min(room - 1, round(seconds / duration * (room - 1)))
    peak = max((_densest(lane, duration, room) for lane in race.lanes), default=1)
    for lane in race.lanes:
        head = method_name(lane.method, lane.position, names, race.methods)
        if lane.timeline is None:
            found.append((*head, Span(" "), Span(cell("waits for its turn", room), "dim")))
            continue
        found.append(
            (*head, Span(" "), Span(_lane_clock(lane, duration, now, peak, room), method_style(lane.position)))
        )
    return found


def _lane_clock(lane: Lane, duration: float, now: int, peak: int, room: int) -> str:
    """now: the cell the clock stands in."""
    assert lane.timeline is not None
    end = round(lane.timeline.end_s / duration * (room - 1))
    cells = [" "] * room
    for at, count in enumerate(_density(lane, duration, room)[: min(now, end + 1)]):
        cells[at] = _bar(count, peak)
    cells[now + 1 : end + 1] = "·" * max(0, end - now)
    words = " ● live" if lane.state == "live" else f" {lane.timeline.end_s:.2f} s"
    start = end + 1 if now <= end else max(end + 1, now + 1) if end + 1 + len(words) > now else end + 1
    for at, char in enumerate(words):
        if start + len(words) <= room:
            cells[start + at] = char
    cells[now] = "│"
    return "".join(cells)


def _bar(count: int, peak: int) -> str:
    return " " if not count else BARS[min(7, max(0, round(8 * count / max(1, peak)) - 1))]


def _density(lane: Lane, duration: float, room: int) -> list[int]:
    assert lane.timeline is not None
    edges = [lane.timeline.tokens_at(duration * place / room) for place in range(room + 1)]
    return [b - a for a, b in pairwise(edges)]


def _densest(lane: Lane, duration: float, room: int) -> int:
    return max(_density(lane, duration, room), default=1) if lane.timeline is not None else 1


def clock_strap(race: Race, seconds: float, width: int) -> Line:
    """The clock on one line: `0s───1s───│2s···3s`."""
    duration = race.clock.duration
    if duration <= 0:
        return line(Span(" nothing measured on this question yet", "dim"))
    room = max(1, width - 2)
    now = min(room - 1, round(seconds / duration * (room - 1)))
    scale = _scale(duration, room)
    past = "".join("─" if char == " " else char for char in scale[:now])
    future = "".join("·" if char == " " else char for char in scale[now + 1 :])
    return (Span(" "), Span(past, "accent"), Span("│", "key"), Span(future, "dim"))


def header(race: Race, seconds: float) -> str:
    """What is shown, in one line."""
    question = race.question
    place = f"{question.question_id} turn {question.turn + 1} ({question.category})"
    number = f"{race.place + 1}/{len(race.questions)}"
    repeat = f" · repeat {race.repeat + 1}/{race.manifest.repeats}" if race.manifest.repeats > 1 else ""
    if race.is_following:
        mode = "● LIVE"
    elif race.clock.is_playing:
        mode = f"▶ {race.clock.speed:g}×"
    else:
        mode = f"‖ paused {race.clock.speed:g}×"
    return f"question {place} · {number}{repeat} · {mode} {seconds:.2f} of {race.clock.duration:.2f} s"


def live_note(race: Race) -> str:
    """What is being measured, where it is not one of the lanes."""
    latest = race.index.latest
    if latest is None or latest.ending is not None or race.live_lane() is not None:
        return ""
    return f"now measuring {latest.method} on {latest.question_id}"


def progress(race: Race) -> str:
    """`412 of 5280 answers`."""
    return f"{race.index.num_ended} of {race.num_planned} answers"


def export_text(race: Race, seconds: float, figures: Mapping[str, MethodSoFar], answers: Mapping[str, str]) -> str:
    """The race as a text file: what was answered, how fast, with which intervals."""
    rows = [f"{race.manifest.run_id}: {header(race, seconds)}", ""]
    rows += ["".join(span.text for span in row).rstrip() for row in speedup_lines(race, figures, 100)]
    rows.append("")
    rows += ["".join(span.text for span in row).rstrip() for row in cost_lines(race, figures, 100)]
    for method, answer in answers.items():
        rows += ["", f"--- {method} ---", answer]
    return "\n".join(rows) + "\n"
