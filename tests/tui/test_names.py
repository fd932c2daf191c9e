"""Names of competitors where there is no room for them whole: whoever stands beside each other is told apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from specbench.store.ingest import ingest
from specbench.tui import draw_figures, draw_race
from specbench.tui.figures import summed
from specbench.tui.lines import Line, plain
from specbench.tui.marks import symbol
from specbench.tui.names import short
from specbench.tui.views.accept import AcceptView
from specbench.tui.views.race import RaceView
from specbench.tui.widgets.canvas import Canvas
from specbench.tui.widgets.lane_pane import LanePane
from tests.store.synthetic import AUTOREGRESSIVE, Competitor, make_manifest, run_events, write_run
from tests.tui.screens import an_app, drive, raced, screen_text, settled

GRID = [f"draft_model[depth={depth}]" for depth in (2, 4, 8)]
CONTROL = "autoregressive#2"
GRID_RUN = "20260105-demo-grid"


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `--grid draft_model.depth=2,4,8` with its control."""
    store = tmp_path_factory.mktemp("grid")
    competitors = (
        AUTOREGRESSIVE,
        Competitor(label=CONTROL, kind="baseline", is_control=True),
        *(Competitor(label=label, depth=3, alpha=0.7, draft_s=1e-4, verify_s=1.1e-3) for label in GRID),
    )
    manifest = make_manifest(competitors, run_id=GRID_RUN, num_questions=4, repeats=1)
    folder = write_run(store / "runs" / GRID_RUN, manifest, run_events(manifest, competitors))
    ingest(store / "specbench.duckdb", folder)
    return store


@pytest.mark.parametrize(
    ("width", "told"),
    [
        (21, ["autoregressive", CONTROL, *GRID]),
        (14, ["autoregressive", "autor…essive#2", "draft…depth=2]", "draft…depth=4]", "draft…depth=8]"]),
        (10, ["autoregre…", "aut…sive#2", "dra…pth=2]", "dra…pth=4]", "dra…pth=8]"]),
        (5, ["auto…", "a…e#2", "d…=2]", "d…=4]", "d…=8]"]),
    ],
)
def test_options_and_numbers_at_the_end_of_a_name_outlast_its_middle(width: int, told: list[str]) -> None:
    names = ["autoregressive", CONTROL, *GRID]
    assert [short(name, width, names) for name in names] == told


def test_names_that_differ_at_neither_end_are_cut_where_they_differ() -> None:
    names = [f"draft_model[depth={depth},beam_width=2,branch=3]" for depth in (2, 4)]
    assert [short(name, 14, names) for name in names] == ["d…del[depth=2…", "d…del[depth=4…"]
    # And where no cut says all: by their places.
    names = [f"model[{'x' * 20}{a}{'x' * 20}{b}{'x' * 20}]" for a in (1, 2) for b in (1, 2)]
    assert [short(name, 8, names) for name in names] == ["mode…(1)", "mode…(2)", "mode…(3)", "mode…(4)"]


@given(st.lists(st.text(st.characters(), max_size=30), min_size=1, max_size=6, unique=True), st.integers(0, 24))
def test_a_short_name_fits_and_a_name_that_fits_is_whole(names: list[str], width: int) -> None:
    for name in names:
        found = short(name, width, names)
        assert cell_len(found) <= width
        assert "…" in found or width < 2 or found == short(name, 1000, names)


@given(st.lists(st.integers(1, 999), min_size=2, max_size=8, unique=True), st.integers(6, 24), st.booleans())
def test_names_of_a_grid_are_different_at_any_width_that_holds_what_differs(
    values: list[int], width: int, is_last: bool
) -> None:
    names = [f"draft_model[depth={each}]" if is_last else f"ctc[frames={each},beams=3]" for each in values]
    assert len({short(name, width, names) for name in names}) == len(names)


def _heads(rows: list[Line]) -> list[str]:
    """What stands beside a method's symbol."""
    signs = {symbol(place) for place in range(len(GRID) + 2)}
    return [row[1].text.strip() for row in rows if row and row[0].text.strip() in signs]


@pytest.mark.parametrize("width", [30, 38, 48, 76, 100, 118])
def test_every_figure_of_a_grid_tells_its_competitors_apart(grid: Path, width: int) -> None:
    found = summed(grid, GRID_RUN)
    summary = found.summary
    lines = {
        "acceptance": draw_figures.acceptance_lines(summary, found.positions, unit="conditional", width=width),
        "survival": draw_figures.survival_lines(summary, width),
        "forest": draw_figures.forest_lines(summary, width),
        "waterfall": draw_figures.waterfall_lines(summary, width),
        "batches": draw_figures.batch_lines(summary, [], width),
    }
    for name, rows in lines.items():
        heads = _heads(rows)
        # The forest names a method once for each category.
        assert name == "forest" or len(set(heads)) == len(heads), (name, heads)
        assert {head[-2:] for head in heads if head.startswith("d")} == {"2]", "4]", "8]"}, (name, heads)
    _, worst = draw_figures.worst_rows(summary, found.worst, width)
    assert len(set(_heads([row for _, row in worst]))) == 3


@pytest.mark.parametrize("size", [(80, 24), (100, 30), (120, 36)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_lanes_of_a_grid_are_told_apart_on_the_screen(grid: Path, size: tuple[int, int]) -> None:
    """All that differed was what was cut: four lanes of `draft_mode…`."""

    async def body() -> None:
        app = an_app(grid, GRID_RUN)
        async with app.run_test(size=size) as pilot:
            view = await raced(app, pilot)
            assert isinstance(view, RaceView) and view.race is not None
            view._chose(["autoregressive", *GRID])
            await pilot.press("G")
            await settled(pilot, lambda: bool(view.figures))
            await pilot.pause(0.2)
            titles = [str(pane.border_title) for pane in view.query(LanePane) if pane.lane is not None]
            names = [title.split()[1] for title in titles]
            assert len(set(names)) == 4 and [name[-2:] for name in names[1:]] == ["2]", "4]", "8]"], titles
            race, seconds = view.race, view.race.position()
            strap = plain(draw_race.speedup_strap(race, view.figures, size[0] - 2))
            assert strap.count("±") == 3 and not strap.rstrip().endswith("…"), strap
            for words in ("2] ", "4] ", "8] "):
                assert words in strap, strap
            width = size[0] // 2 - 4
            for rows in (
                draw_race.speedup_lines(race, view.figures, width),
                draw_race.cost_lines(race, view.figures, width),
                draw_race.clock_lines(race, seconds, size[0] - 4),
            ):
                heads = _heads(rows)
                assert len(heads) >= 4 and len(set(heads)) == len(heads), heads
            await pilot.press("4")
            await settled(pilot, lambda: isinstance(app.screen, AcceptView) and app.screen.summed is not None)
            await pilot.pause(0.2)
            for pane in ("#survival", "#worst"):
                words = app.screen.query_one(pane, Canvas).text()
                for end in ("=2]", "=4]", "=8]"):
                    assert end in words, words
            assert "=2]" in screen_text(app)

    drive(body)
