"""`specbench results`: what was measured. Lists, shows, compares, exports, imports, rebuilds the store."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from specbench import paths
from specbench.cli import options
from specbench.cli.failures import note
from specbench.cli.failures import show as show_failure
from specbench.cli.help import examples, new_app, refuse_early_options
from specbench.cli.results_list import show_runs
from specbench.cli.text import Column, console, show, show_json, show_table, visible
from specbench.errors import UsageError

app = new_app(
    help="List, show, compare, export and import runs. Without a command: ls.",
    epilog=examples("specbench results ls", "specbench results show 20260101T120000-mtbench"),
)

_Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, see specbench results ls.")]


class Format(StrEnum):
    """What `export` writes."""

    answers = "answers"
    json = "json"
    csv = "csv"
    parquet = "parquet"
    markdown = "markdown"


@app.callback(invoke_without_command=True)
def results(context: typer.Context, store: options.Store = None, as_json: options.Json = False) -> None:
    if context.invoked_subcommand is None:
        show_runs(store, as_json=as_json)
    else:
        refuse_early_options(context, store, as_json)


@app.command("ls", epilog=examples("specbench results ls", "specbench results ls --store ./results --json"))
def list_results(store: options.Store = None, as_json: options.Json = False) -> None:
    """Runs, newest first, the running and the broken ones too."""
    show_runs(store, as_json=as_json)


@app.command("show", epilog=examples("specbench results show RUN", "specbench results show RUN --json"))
def show_run(run: _Run, store: options.Store = None, as_json: options.Json = False) -> None:
    """One run's comparison table, as `specbench run` printed it."""
    # 0.1 s of DuckDB and numpy, not for --help.
    from specbench.report.table import print_summary
    from specbench.store.db import open_store
    from specbench.store.records import to_json
    from specbench.store.summary import summarise

    with open_store(paths.store_file(store), read_only=True) as connection:
        summary = summarise(connection, run)
    if as_json:
        show_json(to_json(summary))
    else:
        print_summary(summary, console())


@app.command(
    epilog=examples("specbench results compare RUN1 RUN2", "specbench results compare RUN1 RUN2 RUN3 --json"),
)
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN…", help="Two or more runs of like conditions.")],
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Runs beside each other, paired by question; refused where their conditions differ."""
    from specbench.report import text
    from specbench.store.compare import compare as compare_runs
    from specbench.store.db import open_store
    from specbench.store.records import to_json
    from specbench.store.words import unit

    with open_store(paths.store_file(store), read_only=True) as connection:
        found = compare_runs(connection, runs)
    if as_json:
        show_json({"schema": 1, **to_json(found)})
        return
    shared = text.count(found.num_units, unit(found.conditions["batch_size"]))
    show(f"{found.conditions['suite']} on {found.conditions['target']}, {shared} in common")
    show_table(
        [
            Column("run"),
            Column("method"),
            Column("speed-up", right=True),
            Column("95 % interval", right=True),
            Column(""),
        ],
        [
            (
                e.run_id,
                e.method,
                text.times(e.speedup),
                text.interval(e.speedup_ci),
                e.rank_words,
            )
            for e in found.entries
        ],
    )
    for line in found.notes:
        note(visible(line))
    show("")
    show_table(
        [
            Column("first"),
            Column("second"),
            Column("ratio", right=True),
            Column("95 % interval", right=True),
            Column(""),
        ],
        [
            (
                f"{pair.first.method} ({pair.first.run_id})",
                f"{pair.second.method} ({pair.second.run_id})",
                text.times(pair.ratio),
                text.interval(pair.ratio_ci),
                "tied" if pair.tied else "" if pair.ranked else "not ranked",
            )
            for pair in found.pairs
        ],
    )
    for drift in found.drift:
        interval = text.interval(drift.ratio_ci)
        took = f"took {text.times(drift.ratio)} the first run's time ({interval})"
        note(f"baseline of {visible(drift.run_id)} {took}: that is {drift.cause}, not a method")


@app.command(
    epilog=examples(
        "specbench results export RUN --format answers --method prompt_lookup -o answers.jsonl",
        "specbench results export RUN --format parquet -o tables/",
    ),
)
def export(
    run: _Run,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="PATH", help="A file; for parquet a folder.")],
    kind: Annotated[Format, typer.Option("--format", help="answers is Spec-Bench's schema.")] = Format.json,
    method: Annotated[str | None, typer.Option("--method", metavar="NAME", help="Whose answers.")] = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Write a run as files: answers for other tools, the summary, a line per group, or whole tables."""
    from specbench.store import export as exporting
    from specbench.store.db import open_store

    if (method is not None) != (kind is Format.answers):
        raise UsageError(
            "--method and --format answers go together: an answer file holds one method",
            where="--method",
            try_=f"specbench results export {run} --format answers --method NAME -o {out}",
        )
    written: tuple[Path, ...] = (out,)
    with open_store(paths.store_file(store), read_only=True) as connection:
        match kind:
            case Format.answers:
                assert method is not None, "checked above"
                exporting.export_answers(connection, run, method, out)
                if said := exporting.failed_turns(connection, run, method):
                    note(visible(said))
            case Format.json:
                exporting.export_json(connection, run, out)
            case Format.csv:
                exporting.export_csv(connection, run, out)
            case Format.parquet:
                written = exporting.export_parquet(connection, run, out)
            case Format.markdown:
                from specbench.report.table import to_markdown
                from specbench.store.summary import summarise

                _write(out, to_markdown(summarise(connection, run)))
    if as_json:
        show_json({"schema": 1, "run_id": run, "files": [str(path) for path in written]})
        return
    for path in written:
        show(str(path))


@app.command(
    "import",
    epilog=examples(
        "specbench results import ctc.jsonl --baseline vanilla.jsonl --suite mt_bench --method ctc --target vicuna-7b",
        "specbench results import --remove ID",
    ),
)
def import_file(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Spec-Bench, EAGLE, Medusa or CTC answers.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option("--suite", metavar="NAME", help="What the questions are called here.")
    ] = None,
    method: Annotated[str | None, typer.Option("--method", metavar="NAME")] = None,
    target: Annotated[str | None, typer.Option("--target", metavar="NAME", help="Whose answers these are.")] = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", metavar="FILE", help="The plain-decoding answers of the same session.")
    ] = None,
    remove: Annotated[
        str | None, typer.Option("--remove", metavar="ID", help="Forget an imported file; results ls names the ids.")
    ] = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Read another tool's answer file. Its rows are marked external and never ranked with measured ones."""
    from specbench.report import text
    from specbench.store.external import import_answers
    from specbench.store.records import to_json

    if remove is not None:
        if any(value is not None for value in (file, suite, method, target, baseline)):
            raise UsageError(
                "--remove takes an id and nothing else",
                where="--remove",
                try_=f"specbench results import --remove {remove}",
            )
        _forget_import(remove, store, as_json=as_json)
        return
    if file is None or suite is None or method is None or target is None:
        given = {"FILE": file, "--suite": suite, "--method": method, "--target": target}
        missing = ", ".join(name for name, value in given.items() if value is None)
        raise UsageError(
            f"an import needs FILE, --suite, --method and --target; not given: {missing}",
            try_="specbench results import FILE.jsonl --suite NAME --method NAME --target NAME",
        )
    row = import_answers(paths.store_file(store), file, baseline=baseline, suite=suite, method=method, target=target)
    if as_json:
        show_json({"schema": 1, **to_json(row)})
        return
    show_table(
        [
            *(Column("suite"), Column("target"), Column("method"), Column("questions", right=True)),
            *(Column("tokens/s", right=True), Column("tokens/step", right=True), Column("speed-up", right=True)),
        ],
        [
            (
                *(row.suite, row.target, row.method, str(row.num_questions)),
                *(text.rate(row.tokens_per_s), text.two(row.tokens_per_step), text.times(row.speedup)),
            )
        ],
    )
    for sentence in row.notes:
        note(visible(sentence))
    note(f"to forget it: specbench results import --remove {row.import_id}")


def _forget_import(import_id: str, store: Path | None, *, as_json: bool) -> None:
    from specbench.store.db import open_store
    from specbench.store.external import remove_import

    file = paths.store_file(store)
    with open_store(file, read_only=True):
        pass  # where there is no store there is no import: opening it for writing would make one
    with open_store(file) as connection:
        remove_import(connection, import_id)
    if as_json:
        show_json({"schema": 1, "removed": import_id})
    else:
        note(f"import {visible(import_id)} is forgotten; its file is untouched")


@app.command(epilog=examples("specbench results ingest", "specbench results ingest RUN --store ./results"))
def ingest(
    runs: Annotated[list[str] | None, typer.Argument(metavar="[RUN]…", help="Default: every run folder.")] = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Put journals into the store, whole or not at all. A deleted store is rebuilt this way, but for imported files.

    A damaged folder is named, the others go in, and the command exits 3 (1 where counts cannot be).
    """
    from specbench.store.rebuilding import ingest_all
    from specbench.store.training import training_folders

    folders = [paths.run_dir(store, run) for run in runs or ()]
    if not folders:
        root = paths.run_dir(store, "")
        folders = sorted({*(path.parent for path in root.glob("*/manifest.json")), *training_folders(root)})
    if not folders:
        raise UsageError(
            f"no run under {paths.run_dir(store, '')}", where="--store", try_="specbench run demo, or --store PATH"
        )
    done = ingest_all(paths.store_file(store), folders)
    if len(folders) == len(done.refused) == 1:
        raise done.refused[0].error
    if as_json:
        of_training = [{"run_id": e.run_id, "state": e.state, "num_steps": len(e.steps)} for e in done.trainings]
        show_json([*(dataclasses.asdict(each) for each in done.runs), *of_training])
    else:
        show_table(
            [Column("run"), Column("state"), Column("generations", right=True), Column("steps", right=True)],
            [
                *((each.run_id, each.state, str(each.num_generations), str(each.num_steps)) for each in done.runs),
                *((each.run_id, each.state, "", str(len(each.steps))) for each in done.trainings),
            ],
        )
    for each in done.refused:
        note(f"✗ {each.folder.name} stays out of the store")
        show_failure(each.error, as_json=False)
    if done.refused:
        raise typer.Exit(max(each.error.exit_code for each in done.refused))


@app.command(epilog=examples("specbench results plot RUN", "specbench results plot RUN -o curves.html --json"))
def plot(
    run: _Run,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Default: curves.html in the run's folder.")
    ] = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """A run's curves as one offline page: of a training, or of a measurement in which a method learns."""
    from specbench.report.training_page import lines_of, write_training_page
    from specbench.store.training import is_training, read_training

    folder = paths.run_dir(store, run)
    if (folder / "manifest.json").exists() and not is_training(folder):
        _plot_streams(run, out or folder / "curves.html", store, as_json=as_json)
        return
    training = read_training(folder)
    written = write_training_page(training, out or folder / "curves.html")
    if as_json:
        show_json({"schema": 1, "run_id": run, "files": [str(written)]})
        return
    for line in lines_of(training):
        show(line)
    show(str(written))


def _plot_streams(run: str, out: Path, store: Path | None, *, as_json: bool) -> None:
    """Of a measurement: what its learning methods' acceptance did along their streams."""
    from specbench.report.stream_page import lines_of, write_stream_page
    from specbench.store.db import open_store
    from specbench.store.records import to_json
    from specbench.store.streams import stream_curves
    from specbench.store.summary import summarise

    with open_store(paths.store_file(store), read_only=True) as connection:
        summary, curves = summarise(connection, run), stream_curves(connection, run)
    if not curves:
        raise UsageError(
            f"{run} is a measurement in which nothing learns: it has no curves",
            where="RUN",
            try_=f"specbench leaderboard --run {run}",
        )
    written = write_stream_page(summary, curves, out)
    if as_json:
        show_json({"schema": 1, "run_id": run, "files": [str(written)], "streams": to_json(curves)})
        return
    for each in lines_of(curves):
        show(each)
    show(str(written))


def _write(out: Path, text: str) -> None:
    from specbench.store.export import ELSEWHERE
    from specbench.store.files import cannot_write

    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise cannot_write(out, error, try_=ELSEWHERE) from error
