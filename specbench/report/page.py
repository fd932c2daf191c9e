"""The leaderboard: one offline HTML file that carries its data, its code and its chart library.

`board` decides what stands beside what; the .html, .css and .js files here are the page; this file puts them together.
The library (4.8 MB) travels gzipped in base64 and is inflated by the page when a figure comes near the screen, or all
go to a printer.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from specbench import __version__
from specbench.errors import EnvironmentFailed
from specbench.manifest import Manifest
from specbench.report.board import RunRecord, build_board
from specbench.report.table import to_text
from specbench.report.text import count, printable
from specbench.store.files import write_whole
from specbench.store.records import ExternalRow

ASSETS = Path(__file__).resolve().parent
SCRIPTS = ("tables.js", "charts.js", "streams.js", "inflate.js", "figures.js", "page.js")
PAGE_LIMIT_BYTES = 2_450_000
"""The promise is 2.5 MB; older runs are left out, and named, before it breaks."""


def write_leaderboard(store_path: Path, out: Path, *, run_ids: Sequence[str] | None = None) -> Path:
    """Write the page of a store's runs (all where none is chosen) to `out`; returns it. Seconds, mostly the bootstrap.

    A store that is not there yet, or is empty, gives a page that says so. Raises UsageError for an unknown run,
    StoreBusy and EnvironmentFailed as the store does, EnvironmentFailed where `out` cannot be written.
    """
    # duckdb: 60 ms, only for commands that read the store
    from specbench.store.db import open_store
    from specbench.store.external import external_rows
    from specbench.store.streams import stream_curves
    from specbench.store.summary import run_ids as stored_runs
    from specbench.store.summary import summarise

    records: list[RunRecord] = []
    externals: tuple[ExternalRow, ...] = ()
    if store_path.exists() or run_ids:
        with open_store(store_path, read_only=True) as connection:
            for run_id in run_ids or stored_runs(connection):
                summary = summarise(connection, run_id)
                found = connection.execute("SELECT manifest FROM runs WHERE run_id = ?", [run_id]).fetchone()
                assert found is not None, f"{run_id} was summed up, so it is in the store"
                manifest = Manifest.model_validate_json(found[0])
                streams = stream_curves(connection, run_id)
                records.append(RunRecord(summary=summary, manifest=manifest, streams=streams))
            externals = external_rows(connection)
    page = render_page(records, externals, source=store_path.name, made=datetime.now(UTC))
    remedy = "specbench leaderboard -o FILE, in a folder that can be written and on a disk with room"
    write_whole(out, page.html, try_=remedy)
    return out


class Page(NamedTuple):
    """The finished page and what had to stay outside it."""

    html: str
    left_out: tuple[str, ...]
    """Ids of runs that did not fit, newest first."""


def render_page(
    records: Sequence[RunRecord],
    externals: Sequence[ExternalRow],
    *,
    source: str,
    made: datetime,
    limit: int = PAGE_LIMIT_BYTES,
) -> Page:
    """The whole page as text. source: name of the store's file, without its folder. At most `limit` bytes.

    Raises EnvironmentFailed when not even the newest run fits.
    """
    newest_first = sorted(records, key=lambda record: (record.summary.created, record.summary.run_id), reverse=True)
    kept = len(newest_first)
    library = _library() if newest_first else None
    while True:
        left_out = tuple(record.summary.run_id for record in newest_first[kept:])
        board = build_board(newest_first[:kept], externals)
        board["left_out"] = _left_out(left_out)
        page = _fill(board, newest_first[:kept], library, source=source, made=made)
        if len(page.encode()) <= limit:
            return Page(page, left_out)
        if kept <= 1:
            raise EnvironmentFailed(
                f"the page would be larger than {limit} bytes with one run in it",
                where=source,
                try_="specbench leaderboard --run RUN_ID",
            )
        kept = min(kept - 1, int(kept * 0.9))


def _left_out(run_ids: Sequence[str]) -> str:
    if not run_ids:
        return ""
    shown = ", ".join(map(printable, run_ids[:20])) + (" and older ones" if len(run_ids) > 20 else "")
    where = "`specbench leaderboard --run ID` draws chosen ones"
    return f"{count(len(run_ids), 'older run')} left out, to keep the page small: {shown}; {where}."


class _Library(NamedTuple):
    script: str
    notice: str


def _library() -> _Library:
    from plotly.offline import get_plotlyjs, get_plotlyjs_version  # 0.1 s, only for a page with figures

    source = get_plotlyjs()
    packed = base64.b64encode(gzip.compress(source.encode(), 9, mtime=0)).decode()
    copyright_line = re.search(r"Copyright[^\n*]*", source[:1000])
    if copyright_line is None:
        raise EnvironmentFailed(
            "the installed plotly carries no licence notice", try_="pip install --force-reinstall plotly"
        )
    notice = _asset("library_notice.html")
    notice = notice.replace("@@version@@", html.escape(get_plotlyjs_version()))
    notice = notice.replace("@@copyright@@", html.escape(copyright_line.group().strip()))
    # text/plain: a data block that the browser keeps and never runs.
    return _Library(f'<script type="text/plain" id="library">{packed}</script>', notice)


def _fill(
    board: dict[str, Any], records: Sequence[RunRecord], library: _Library | None, *, source: str, made: datetime
) -> str:
    data = embed_json(board)
    parts = {
        "generator": html.escape(f"specbench {__version__}"),
        "css": _asset("page.css"),
        "script": "\n".join(_asset(name) for name in SCRIPTS),
        "definitions": _asset("definitions.html"),
        "plain": html.escape("\n".join(to_text(record.summary) for record in records) or "No measured run yet."),
        "made": made.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "source": html.escape(source),
        "digest": hashlib.sha256(data.encode()).hexdigest()[:16],
        "data": data,
        "library": library.script if library else "",
        "licence": library.notice if library else "",
    }
    # One pass: what is filled in is never read as a template again, whatever a model is called.
    return re.sub(r"@@(\w+)@@", lambda match: parts[match.group(1)], _asset("page.html"))


def embed_json(value: object) -> str:
    """JSON that can stand in a <script> element: nothing in it can close the element or open a comment."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8").rstrip("\n")
