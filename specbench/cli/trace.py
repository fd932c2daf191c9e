"""`specbench trace RUN QUESTION`: replay one stored answer, untimed, and keep what was seen at every step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from specbench import paths
from specbench.cli import options
from specbench.cli.failures import note
from specbench.cli.help import Sections, examples, new_app
from specbench.cli.options import HOW, OUTPUT, WHAT, WHERE, option
from specbench.cli.text import console, show, show_json, visible
from specbench.errors import UsageError
from specbench.manifest import Manifest, read_manifest
from specbench.store.traces import (
    Trace,
    Which,
    find_group,
    head_as_json,
    read_trace,
    step_as_json,
    trace_file,
    write_trace,
)

app = new_app()


@app.command(
    cls=Sections,
    epilog=examples(
        "specbench trace RUN",
        "specbench trace RUN gsm8k-12 --method redrafter --step 3",
        after="Exit codes: 0 ok, 1 the replay is another answer than the timed run's, 2 usage, 3 environment.",
    ),
)
def trace(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run: its id, its beginning or end, or its folder.")],
    question: Annotated[
        str | None, typer.Argument(metavar="[QUESTION]", help="A question's id; default: the first one.")
    ] = None,
    method: Annotated[
        str | None, option("--method", WHAT, "LABEL", "As in the run's table; may be left out where there is one.")
    ] = None,
    turn: Annotated[int, option("--turn", WHAT, "N", "1 = the first (default).")] = 1,
    repeat: Annotated[int, option("--repeat", WHAT, "N", "1 = the first (default).")] = 1,
    step: Annotated[int | None, option("--step", OUTPUT, "N", "Print this step as a tree; 1 = the first.")] = None,
    pruned: Annotated[bool, option("--pruned", OUTPUT, "", "Without nodes that were not reached.")] = False,
    again: Annotated[bool, option("--again", HOW, "", "Replay even where a trace is there already.")] = False,
    device: Annotated[str | None, option("--device", WHERE, "DEVICE", "Another than the run's.")] = None,
    data: options.DataDirs = None,
    store: options.Store = None,
    methods_dir: options.MethodsDirs = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Replay one stored answer with the engine that gave it, and keep every step: the drafted tree with q, the target's
    p and top-5, what was accepted, and the step's cost in the timed run. Nothing is timed, nothing is ranked."""
    from specbench.tui.workspace import Workspace

    workspace = Workspace(store)
    run_id = workspace.resolve(run)
    folder = paths.run_dir(workspace.store, run_id)
    manifest = read_manifest(folder)
    which = _which(manifest, question, method, turn=turn, repeat=repeat)
    group, row = find_group(manifest, which)
    path = trace_file(folder, group.group, row)
    if path.exists() and not again:
        found = read_trace(path)
    else:
        # 2 s of torch, after everything that can be refused without it.
        from specbench.bench import trace as replaying

        found = replaying.trace(
            workspace.store,
            manifest,
            which,
            overrides=replaying.Overrides(
                device=device,
                data=tuple(data or ()),
                methods_dirs=tuple(methods_dir or ()),
                trust_remote_code=trust_remote_code,
            ),
            say=lambda words: note(visible(words)),
        )
        path = write_trace(folder, found)
    if step is not None and not 1 <= step <= len(found.steps):
        raise UsageError(f"the answer has {len(found.steps)} steps, not {step}", where="--step", try_="--step 1")
    _print(manifest, found, path, step=step, pruned=pruned, as_json=as_json)
    if not found.head.matches:
        raise typer.Exit(1)


def _which(manifest: Manifest, question: str | None, method: str | None, *, turn: int, repeat: int) -> Which:
    if method is None:
        drafting = [each.label for each in manifest.methods if each.kind != "baseline"]
        if len(drafting) != 1:
            raise UsageError(
                f"run {manifest.run_id} has several methods: {', '.join(drafting) or 'only the baseline'}",
                where="--method",
                try_=f"--method {drafting[0] if drafting else manifest.methods[0].label}",
            )
        method = drafting[0]
    return Which(method, question or manifest.questions[0].question_id, turn - 1, repeat - 1)


def _print(manifest: Manifest, trace: Trace, path: Path, *, step: int | None, pruned: bool, as_json: bool) -> None:
    from specbench.tui import draw_tree
    from specbench.tui.detokenise import tokenizer_of
    from specbench.tui.lines import plain
    from specbench.tui.tree import Words

    for words in draw_tree.mismatch(trace):
        note(f"✗ {visible(words)}")
    if as_json:
        steps = trace.steps if step is None else [trace.steps[step - 1]]
        show_json({"schema": 1, **head_as_json(trace.head), "path": str(path), "steps": list(map(step_as_json, steps))})
        return
    found = tokenizer_of(manifest)
    if found.why_not:
        note(visible(found.why_not))
    if step is not None:
        out = console()
        width = out.width if out.is_terminal else 100
        for row in draw_tree.as_text(draw_tree.At(Words(trace, found.tokenizer), step - 1), width=width, pruned=pruned):
            show(plain(row).rstrip())
        return
    for row in draw_tree.summary(trace):
        show(plain(row))
    note(f"kept in {path}. A step as a tree: the same with --step N")
