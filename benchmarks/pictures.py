"""The README's pictures, made by the program itself from stored runs: the comparison table (SVG), the page and a race
of the viewer (PNG, Chromium)."""

from __future__ import annotations

import argparse
import asyncio
import io
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from specbench import paths
from specbench.report.page import write_leaderboard
from specbench.report.table import print_summary
from specbench.store.db import open_store
from specbench.store.summary import run_ids, summarise
from specbench.tui.app import SpecbenchApp
from specbench.tui.marks import Mode
from specbench.tui.views.race import RaceView
from specbench.tui.widgets.token_view import TokenView


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--store", type=Path, default=None)
    made.add_argument(
        "--run", default=None, help="the run of all pictures; by default the newest, and every run for the page"
    )
    made.add_argument("--out", type=Path, default=Path("results/pictures"))
    args = made.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    store = paths.store_file(args.store)
    with open_store(store, read_only=True) as connection:
        summary = summarise(connection, args.run or run_ids(connection)[0])
    console = Console(record=True, width=112, file=io.StringIO(), force_terminal=True)
    print_summary(summary, console)
    svg = console.export_svg(title=f"specbench run {summary.suite}", clear=False)
    (args.out / "table.svg").write_text(_without_fonts(svg), encoding="utf-8")
    browser = find_browser()
    with tempfile.TemporaryDirectory() as folder:
        board = write_leaderboard(store, Path(folder) / "board.html", run_ids=[args.run] if args.run else None)
        photograph(browser, board, args.out / "board.png", size=(1280, 1500))
        race = Path(folder) / "race.svg"
        race.write_text(_without_fonts(asyncio.run(_race(args.store, summary.run_id))), encoding="utf-8")
        photograph(browser, race, args.out / "race.png", size=(1482, 928))


async def _race(store: Path | None, run_id: str) -> str:
    """`specbench tui RUN` at 120 x 36, the fifth question, paused at 45 % of the race."""
    app = SpecbenchApp(store, run_id, theme="dark")
    async with app.run_test(size=(120, 36)) as pilot:
        while not isinstance(app.screen, RaceView) or app.screen.race is None:
            await pilot.pause(0.1)
        view, race = app.screen, app.screen.race
        for pane in view.query(TokenView):
            pane.set_mode(Mode.BOTH)
        race.go(min(4, len(race.questions) - 1))
        race.clock.pause()
        race.clock.seek(0.45 * race.clock.duration)
        view.draw_now()
        await pilot.pause(0.5)
        return app.export_screenshot(title="specbench tui")


def _without_fonts(svg: str) -> str:
    """rich's and Textual's SVGs ask a font server for their font; the reader's own monospace font will do."""
    return re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)


def find_browser() -> str:
    """Chromium's path. Ends the process where there is none."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        sys.exit("the page's picture needs Chromium: apt install chromium")
    return found


def photograph(browser: str, page: Path, out: Path, *, size: tuple[int, int]) -> None:
    subprocess.run(
        [
            browser,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--hide-scrollbars",
            "--virtual-time-budget=8000",
            f"--user-data-dir={page.parent}/profile",
            f"--window-size={size[0]},{size[1]}",
            f"--screenshot={out.resolve()}",
            page.resolve().as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )


if __name__ == "__main__":
    main()
