"""Figures that a page cites from `results/` stand there: measured anew, they change in both places."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "results"
PAGES = sorted(
    path.relative_to(REPOSITORY)
    for path in (REPOSITORY / "README.md", *(REPOSITORY / "methods").glob("*/README.md"), *RESULTS.glob("*/README.md"))
)
METHODS = ("autoregressive", "prompt_lookup", "draft_model")

_FIGURE = re.compile(r"(?P<middle>[+-]?\d[\d.]*) (?:\| )?\[(?P<low>[+-]?[\d.]+), (?P<high>[+-]?[\d.]+)\]")
"""`1.57 [1.52, 1.60]`, also of a published table: `1.94× | [1.78, 2.12]`."""
_SOURCE = re.compile(r"\bresults/(\w+)(?:/(\w+)\.md)?")

Figure = tuple[Decimal, Decimal, Decimal]


def figures(text: str) -> set[Figure]:
    """Every figure with its interval or range; `1.6` and `1.60` are equal, but remember their digits."""
    found = _FIGURE.finditer(re.sub(r"\s+", " ", text.replace("×", "")))
    return {(Decimal(each["middle"]), Decimal(each["low"]), Decimal(each["high"])) for each in found}


def is_rounded(told: Figure, measured: Figure) -> bool:
    """What is told is what was measured, to the digits that are told."""
    halves = (Decimal((0, (5,), int(each.as_tuple().exponent) - 1)) for each in told)
    return all(abs(one - other) <= half for one, other, half in zip(told, measured, halves, strict=True))


def parts(text: str) -> Iterator[str]:
    """Paragraphs; a table belongs to the paragraph before it that ends with a colon."""
    blocks = re.split(r"\n\s*\n", text)
    for place, block in enumerate(blocks):
        follows = blocks[place + 1] if place + 1 < len(blocks) and block.rstrip().endswith(":") else ""
        yield f"{block}\n{follows}" if follows.lstrip().startswith("|") else block


def held(folder: str, page: str | None) -> set[Figure]:
    """What a folder of results, or one of its pages, holds: as published, and as a run's summary has it."""
    paths = [RESULTS / folder / f"{page}.md"] if page else sorted((RESULTS / folder).glob("*.md"))
    found = {figure for path in paths for figure in figures(path.read_text(encoding="utf-8"))}
    return found if page else found | {figure for row in rows_of(folder) if (figure := speedup_of(row)) is not None}


def rows_of(folder: str) -> Iterator[dict[str, Any]]:
    for path in sorted((RESULTS / folder).glob("*.json")):
        body = json.loads(path.read_text(encoding="utf-8"))
        yield from (row for row in body.get("rows", ()) if "speedup_ci" in row) if isinstance(body, dict) else ()


def speedup_of(row: dict[str, Any]) -> Figure | None:
    if row["speedup_ci"] is None:
        return None
    middle, low, high = (Decimal(f"{value:.2f}") for value in (row["speedup"], *row["speedup_ci"]))
    return middle, low, high


def test_figures_are_found_as_they_are_written() -> None:
    assert figures("1.57 [1.52, 1.6] x peer, +0.1 [-0.2,\n+0.3]; | 1.94× | [1.78, 2.12] |") == {
        (Decimal("1.57"), Decimal("1.52"), Decimal("1.60")),
        (Decimal("0.1"), Decimal("-0.2"), Decimal("0.3")),
        (Decimal("1.94"), Decimal("1.78"), Decimal("2.12")),
    }
    [told], [measured] = figures("-0.176 [-0.227, -0.130]"), figures("-0.1762 [-0.2267, -0.1295]")
    assert is_rounded(told, measured) and not is_rounded(measured, told)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_what_stands_beside_the_name_of_a_result_stands_in_it(page: Path) -> None:
    """`peers.md` was measured anew; two methods' pages went on citing 1.43 and 1.48 from it."""
    for part in parts((REPOSITORY / page).read_text(encoding="utf-8")):
        sources = _SOURCE.findall(part)
        if not sources or not figures(part):
            continue
        known = {figure for folder, name in sources for figure in held(folder, name or None)}
        unknown = [told for told in figures(part) if not any(is_rounded(told, each) for each in known)]
        assert not unknown, f"{page}: {unknown} in none of {sorted(set(sources))}"


def peers() -> dict[str, str]:
    """specbench's sides of `peers.md` by method: the ratio as it is written there."""
    rows = json.loads((RESULTS / "benchmarks" / "peers.json").read_text(encoding="utf-8"))["rows"]
    return {row["side"].split()[1]: row["against"].split()[0] for row in rows if row["side"].startswith("specbench")}


def shares() -> dict[str, str]:
    """Everything outside the forwards, per cent of a step, by method."""
    conditions = json.loads((RESULTS / "benchmarks" / "step_cost.json").read_text(encoding="utf-8"))["conditions"]
    found: dict[str, str] = conditions["share_of_a_step_outside_the_forwards"]
    return {method: share.rstrip("%") for method, share in found.items()}


@pytest.mark.parametrize("method", [method for method in METHODS if method != "autoregressive"])
def test_a_method_s_page_tells_its_own_ratio_and_its_own_share_of_a_step(method: str) -> None:
    text = " ".join((REPOSITORY / "methods" / method / "README.md").read_text(encoding="utf-8").split())
    assert re.findall(r"([\d.]+) \[[^]]+\] times transformers'", text) == [peers()[method]]
    assert re.findall(r"Everything outside [^.]+? is ([\d.]+) % of a step", text) == [shares()[method]]


def test_the_readme_tells_the_ratios_and_shares_of_the_benchmarks() -> None:
    text = " ".join((REPOSITORY / "README.md").read_text(encoding="utf-8").split())
    told = dict(re.findall(r"(\w+) ([\d.]+) times", text[text.index("transformers' own `generate`") :][:300]))
    assert told == peers() and told.keys() == set(METHODS)
    [(least, most)] = re.findall(r"(\d) to (\d) % of a step lies outside the two forwards", text)
    rounded = sorted(round(float(share)) for share in shares().values())
    assert (int(least), int(most)) in {(rounded[0], rounded[-1]), (rounded[0], rounded[-1] + 1)}


def test_the_page_of_the_benchmarks_tells_what_was_measured() -> None:
    lines = (RESULTS / "benchmarks" / "README.md").read_text(encoding="utf-8").splitlines()
    told = {method: figures(line) for line in lines for method in METHODS if line.startswith(f"| {method} at least")}
    rows = json.loads((RESULTS / "benchmarks" / "peers.json").read_text(encoding="utf-8"))["rows"]
    sides = {row["side"].removeprefix("specbench "): figures(row["against"]) for row in rows if row["against"]}
    assert told == sides and told.keys() == set(METHODS)
    found = re.findall(r"([\d.]+) % (autoregressive|prompt_lookup|draft_model)", "\n".join(lines))
    assert {method: share for share, method in found} == shares()


SUITES = ("mtbench", "gsm8k", "alpaca")
LABELS = {
    "README.md": {
        "suffix": "suffix",
        "prompt_lookup": "prompt_lookup",
        "hybrid: suffix over ctc (eagle)": "hybrid(ctc)[ctc.weights=final/eagle-s0",
        "hybrid: suffix over ctc (nar)": "hybrid(ctc)[ctc.weights=final/nar-s0",
        "ctc, released form (eagle)": "ctc[weights=final/eagle-s0",
        "redrafter": "redrafter[weights=final/redrafter-s0]",
        "lstm": "lstm[weights=final/lstm-s0]",
        "ctc, parallel frames (nar)": "ctc[weights=final/nar-s0",
        "draft_model, K = 4": "draft_model",
        "A/A control": "autoregressive#2",
    },
    "methods/ctc/README.md": {"`eagle`": "ctc[weights=final/eagle-s0", "`nar`": "ctc[weights=final/nar-s0"},
    **{
        f"methods/{name}/README.md": {str(seed): f"{name}[weights=final/{name}-s{seed}]" for seed in range(3)}
        for name in ("redrafter", "lstm")
    },
}
"""What begins a row of a page's table over the three suites, and its method begins with in `results/cpu`."""


@pytest.mark.parametrize("page", LABELS)
def test_a_table_over_the_three_suites_holds_their_runs_speed_ups(page: str) -> None:
    lines = (REPOSITORY / page).read_text(encoding="utf-8").splitlines()
    runs = [json.loads((RESULTS / "cpu" / f"{suite}.json").read_text(encoding="utf-8"))["rows"] for suite in SUITES]
    for name, label in LABELS[page].items():
        [line] = [line for line in lines if re.match(rf"\| {re.escape(name)}( \(.*?\))? \|", line)]
        told = [figures(cell) for cell in line.split("|")]
        measured = [{speedup_of(row) for row in rows if row["method"].startswith(label)} for rows in runs]
        assert [cell for cell in told if cell] == measured, line
