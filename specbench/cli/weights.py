"""`specbench weights`: a trained drafter in another program's layout, both ways, and on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from specbench.cli.failures import note
from specbench.cli.help import new_app
from specbench.cli.options import MethodsDirs
from specbench.cli.text import show, show_json, visible

app = new_app(help="Write and read other programs' checkpoint layouts of trained drafters.")

_Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A drafter's folder.")]
_Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to make; must be new.")]
_Layout = Annotated[
    str | None,
    typer.Option(
        "--layout",
        metavar="NAME",
        help="specbench weights layouts METHOD lists them; to be said where there are several of other programs.",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="One JSON value on stdout.")]


@app.callback()
def default() -> None:
    """Write and read other programs' checkpoint layouts of trained drafters."""


@app.command("layouts")
def list_layouts(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="A trained method.")],
    methods_dirs: MethodsDirs = None,
    as_json: _Json = False,
) -> None:
    """The layouts a method can be written in and read from."""
    from specbench.weights import NATIVE, layouts  # 2 s of torch, only for commands that touch weights

    found = layouts(method, methods_dirs=methods_dirs or [])
    rows = [{"name": NATIVE, "summary": "specbench's own, with a model card: what the Hub gets"}]
    rows += [{"name": each.name, "summary": each.summary} for each in found.values()]
    if as_json:
        show_json(rows)
        return
    for row in rows:
        show(f"{row['name']:<12} {row['summary']}")


@app.command("export")
def export(
    folder: _Folder,
    out: _Out,
    layout: _Layout = None,
    push_to: Annotated[
        str | None, typer.Option("--push", metavar="ID", help="Upload the folder to this Hub repository.")
    ] = None,
    methods_dirs: MethodsDirs = None,
    as_json: _Json = False,
) -> None:
    """A drafter in a layout another program loads, with a model card; the serving command where there is one."""
    from specbench.weights import export_weights, push  # 2 s of torch, only for commands that touch weights

    again = push_to is not None
    made = export_weights(folder, layout=layout, out=out, methods_dirs=methods_dirs or [], again=again)
    address = None if push_to is None else push(made.folder, push_to)
    if as_json:
        show_json(
            {"folder": str(made.folder), "layout": made.layout, "num_tensors": made.num_tensors,
             "serving": made.serving or None, "pushed_to": address}
        )  # fmt: skip
        return
    show(f"{made.folder}: {made.num_tensors} tensors in layout {made.layout}")
    if made.serving:
        show(f"serve with  {made.serving}")
    if address:
        show(f"pushed to  {address}")


@app.command("import")
def import_(
    folder: _Folder,
    method: Annotated[str, typer.Option("--method", metavar="NAME", help="The method whose drafter it is.")],
    out: _Out,
    layout: _Layout = None,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="MODEL", help="What it was trained for: checked, and recorded by hash."),
    ] = None,
    methods_dirs: MethodsDirs = None,
    as_json: _Json = False,
) -> None:
    """Another program's checkpoint (safetensors) as a drafter of ours."""
    from specbench.weights import import_weights  # 2 s of torch, only for commands that touch weights

    made = import_weights(folder, method=method, layout=layout, target=target, out=out, methods_dirs=methods_dirs or [])
    for text in made.notes:
        note(visible(text))
    if target is None:
        note("the target is not known: rows will say so. --target MODEL records it")
    if as_json:
        show_json(
            {"folder": str(made.folder), "method": made.method, "layout": made.layout,
             "num_parameters": made.num_parameters, "notes": list(made.notes)}
        )  # fmt: skip
        return
    show(f"{made.folder}: {made.num_parameters:,} parameters from layout {made.layout}")
    show(f"run it with  specbench run SUITE --methods {made.method} --set {made.method}.weights={made.folder}")
