"""`specbench data`: list the datasets, show what a target would learn from one, have a target write answers.

Listing loads no torch; `show` loads the target's tokenizer, never its weights.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from specbench.cli import options
from specbench.cli.failures import note
from specbench.cli.help import Sections, examples, new_app, refuse_early_options
from specbench.cli.text import Column, show, show_json, show_table, visible
from specbench.errors import UsageError
from specbench.quantisation import CHOICES

app = new_app(help="List datasets, show what is learnt of them, generate answers.")

_HOW_MUCH = "Answers"
_Dataset = Annotated[
    str,
    typer.Argument(metavar="DATASET", help="A name, a file, a folder of `generate`, or OWNER/NAME[:CONFIG][:SPLIT]."),
]
_Columns = Annotated[
    str | None,
    typer.Option("--columns", metavar="MAP", help="prompt=A+B,response=C | messages=A | conversations=A | text=A."),
]
_Data = Annotated[list[Path] | None, typer.Option("--data", metavar="DIR", help="Folder with data files; repeatable.")]
_Offline = Annotated[bool, typer.Option("--offline", help="Download nothing.")]
_Template = Annotated[
    str, typer.Option("--template", metavar="NAME", help="chat (the target's), plain, alpaca or vicuna.")
]
_Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Draws the subset, and the answers.")]
_SAY_EVERY_S = 5.0


@app.callback(invoke_without_command=True)
def default(context: typer.Context, data: _Data = None, as_json: options.Json = False) -> None:
    """List datasets, show what is learnt of them, generate answers. Without a command: ls."""
    if context.invoked_subcommand is None:
        _list(data or [], as_json=as_json)
    else:
        refuse_early_options(context, data, as_json)


@app.command("ls")
def ls(data: _Data = None, as_json: options.Json = False) -> None:
    """Every named dataset: rows, licence, and where it comes from."""
    _list(data or [], as_json=as_json)


@app.command("show")
def show_documents(
    dataset: _Dataset,
    target: Annotated[
        str, typer.Option("--target", metavar="MODEL", help="Whose tokenizer: id, folder or demo.")
    ] = "demo",
    columns: _Columns = None,
    template: _Template = "chat",
    all_text: Annotated[bool, typer.Option("--all-text/--assistant-only", help="Learn from prompts too.")] = False,
    max_len: Annotated[int, typer.Option("--max-len", metavar="N", min=3, help="Documents are cut here.")] = 2048,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Rows to read.")] = 200,
    rows: Annotated[int, typer.Option("--rows", metavar="N", min=0, help="Documents to print.")] = 2,
    seed: _Seed = 0,
    data: _Data = None,
    offline: _Offline = False,
    as_json: options.Json = False,
) -> None:
    """What a target would learn: counts of what is kept, masked, cut and dropped, and a few documents.

    Learnt text stands between ⟦ and ⟧.
    """
    # numpy and pydantic, 0.4 s: only here
    from specbench.data import load_documents, parse_columns

    mapping = parse_columns(columns) if columns else None
    tokenizer = _tokenizer(target, offline=offline)
    documents = load_documents(
        dataset,
        tokenizer=tokenizer,
        max_len=max_len,
        seed=seed,
        columns=mapping,
        template=template,
        assistant_only=not all_text,
        limit=limit,
        data_dirs=data or [],
        offline=offline,
        say=note,
    )
    shown = [documents[index] for index in range(min(rows, len(documents)))]
    if as_json:
        show_json(
            {
                "name": documents.name,
                "source": documents.source,
                "licence": documents.licence,
                "fingerprint": documents.fingerprint,
                "target": target,
                "template": template,
                "counts": documents.counts.as_dict(),
                "notes": list(documents.notes),
                "documents": [dataclasses.asdict(document) for document in shown],
            }
        )
        return
    _narrate(documents.notes)
    show(f"{documents.name}, from {documents.source}")
    for line in documents.counts.lines():
        show(line)
    for document in shown:
        show(f"\n── {len(document.ids)} tokens, {sum(document.learn)} learnt")
        show("\n".join(f"   {line}" for line in _marked(tokenizer, document.ids, document.learn).split("\n")))


@app.command(
    "generate",
    cls=Sections,
    epilog=examples(
        "specbench data generate --dataset demo --out answers",
        "specbench data generate --dataset ultrachat --target ID --device-groups 0:1:2:3 --out answers",
        "specbench train --method redrafter --dataset answers",
        after="The same command resumes a killed one. Exit codes: 0 ok, 2 usage, 3 environment, 130 interrupted.",
    ),
)
def generate(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder of the answers.", rich_help_panel=options.WHERE)
    ],
    dataset: Annotated[
        str, typer.Option("--dataset", metavar="DATASET", help="Whose prompts.", rich_help_panel=options.WHAT)
    ] = "demo",
    target: Annotated[
        str, typer.Option("--target", metavar="MODEL", help="Hub id, folder, or demo.", rich_help_panel=options.WHAT)
    ] = "demo",
    columns: Annotated[
        str | None,
        typer.Option("--columns", metavar="MAP", help="prompt=A+B | messages=A.", rich_help_panel=options.WHAT),
    ] = None,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Of demo: the held-out prompts.", rich_help_panel=options.WHAT)
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Rows to read.", rich_help_panel=options.WHAT)
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", metavar="N", min=1, rich_help_panel=_HOW_MUCH)
    ] = 256,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="T", min=0.0, help="0 = greedy.", rich_help_panel=_HOW_MUCH)
    ] = 0.0,
    top_k: Annotated[int, typer.Option("--top-k", metavar="K", help="0 = off.", rich_help_panel=_HOW_MUCH)] = 0,
    top_p: Annotated[float, typer.Option("--top-p", metavar="P", help="1 = off.", rich_help_panel=_HOW_MUCH)] = 1.0,
    min_p: Annotated[float, typer.Option("--min-p", metavar="P", help="0 = off.", rich_help_panel=_HOW_MUCH)] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option("--repetition-penalty", metavar="R", help="1 = off.", rich_help_panel=_HOW_MUCH)
    ] = 1.0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, rich_help_panel=_HOW_MUCH)] = 0,
    template: Annotated[
        str,
        typer.Option("--template", metavar="NAME", help="chat, plain, alpaca or vicuna.", rich_help_panel=options.HOW),
    ] = "chat",
    backend: Annotated[
        str, typer.Option("--backend", metavar="NAME", help="specbench, or vllm.", rich_help_panel=options.HOW)
    ] = "specbench",
    dtype: Annotated[str, typer.Option("--dtype", metavar="TYPE", rich_help_panel=options.HOW)] = "auto",
    quantisation: Annotated[
        str,
        typer.Option("--quantisation", metavar="NAME", help=f"{', '.join(CHOICES)}.", rich_help_panel=options.HOW),
    ] = "none",
    device: Annotated[str, typer.Option("--device", metavar="DEVICE", rich_help_panel=options.HOW)] = "auto",
    device_groups: Annotated[
        str | None,
        typer.Option(
            "--device-groups",
            metavar="A:B",
            help="One process a group of visible CUDA devices: 0:1, or 0,1:2,3 with vllm.",
            rich_help_panel=options.HOW,
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option("--processes", metavar="N", min=1, help="Without groups.", rich_help_panel=options.HOW)
    ] = 1,
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="B", min=1, help="Prompts at a time.", rich_help_panel=options.HOW)
    ] = 8,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, help="A process's.", rich_help_panel=options.HOW)
    ] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", rich_help_panel=options.HOW)] = False,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data", metavar="DIR", help="Folder with data files; repeatable.", rich_help_panel=options.WHERE
        ),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Download nothing.", rich_help_panel=options.WHERE)
    ] = False,
    as_json: options.Json = False,
) -> None:
    """The target answers a dataset's prompts: the text that a drafter of it learns from best, kept id for id."""
    if backend not in ("specbench", "vllm"):
        raise UsageError(f"--backend {backend!r} is not known", where="--backend", try_="specbench or vllm")
    # numpy and pydantic, 0.4 s: only here
    from specbench.bench.defaults import DEMO_TARGETS, DEMO_THREADS
    from specbench.data import parse_columns
    from specbench.data.generating import GenerateRequest, num_done, parse_device_groups
    from specbench.data.generating import generate as write

    request = GenerateRequest(
        target=target,
        dataset=dataset,
        out=out,
        columns=parse_columns(columns) if columns else None,
        part="held_out" if held_out else "train",
        limit=limit,
        seed=seed,
        template=template,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        max_new_tokens=max_new_tokens,
        backend="vllm" if backend == "vllm" else "specbench",
        dtype=dtype,
        quantisation=quantisation,
        device=device,
        device_groups=parse_device_groups(device_groups) if device_groups else (),
        processes=processes,
        batch_size=batch_size,
        threads=DEMO_THREADS if threads is None and target in DEMO_TARGETS else threads,
        trust_remote_code=trust_remote_code,
        data_dirs=tuple(data or ()),
        offline=offline,
    )
    try:
        done = write(request, progress=_Progress())
    except KeyboardInterrupt as stopped:
        num_kept = num_done(out)
        if not num_kept:
            raise
        answers = "answer is" if num_kept == 1 else "answers are"
        note(f"interrupted; {num_kept:,} finished {answers} kept in {visible(str(out))}. The same command goes on")
        raise typer.Exit(130) from stopped
    _narrate((*done.notes, *_about_prompts(done)))
    if as_json:
        show_json(
            {
                "schema": 1,
                "out": str(done.out),
                "file": str(done.file),
                "prompts": done.prompts.as_dict(),
                "num_resumed": done.num_resumed,
                "num_too_long": done.num_too_long,
                "statistics": dataclasses.asdict(done.statistics),
            }
        )
        return
    for line in done.statistics.lines():
        show(line)
    show(f"{done.file}")


class _Progress:
    """A line on stderr every few seconds: how many, how fast, how long still."""

    def __init__(self) -> None:
        self._start = self._said = time.monotonic()
        self._first: int | None = None

    def __call__(self, num_done: int, num_wanted: int, num_tokens: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = num_done
        if now - self._said < _SAY_EVERY_S and num_done < num_wanted:
            return
        self._said = now
        spent = max(now - self._start, 1e-9)
        new = num_done - self._first
        left = f", {(num_wanted - num_done) / new * spent:.0f} s left" if new and num_done < num_wanted else ""
        note(f"{num_done:,} of {num_wanted:,} answers, {num_tokens / spent:,.0f} tokens/s{left}")


def _about_prompts(done: Any) -> list[str]:
    counts = done.prompts
    lines = [f"{counts.num_kept:,} prompts of {counts.num_read:,} rows", *counts.lines()[1:]]
    if done.num_resumed:
        answers = "answer was" if done.num_resumed == 1 else "answers were"
        lines.append(f"{done.num_resumed:,} {answers} there already")
    if done.num_too_long:
        lines.append(f"{done.num_too_long:,} prompts are too long for the target's context and have no answer")
    return lines


def _list(data: list[Path], *, as_json: bool) -> None:
    # pydantic and numpy, 0.4 s: not for --help
    from specbench.data import survey

    found = survey(data)
    if as_json:
        show_json([dataclasses.asdict(status) for status in found])
        return
    origin = {"hub": "{} (downloaded at first use)", "downloaded": "{} (downloaded)", "missing": "missing: {}"}
    rows = [
        [
            status.name,
            "?" if status.num_rows is None else str(status.num_rows),
            status.licence,
            origin.get(status.state, "{}").format(status.where or status.note),
            status.title,
        ]
        for status in found
    ]
    columns = [Column("dataset"), Column("rows", right=True), Column("licence"), Column("from"), Column("title")]
    show_table(columns, rows)
    _narrate([f"{status.name}: {status.note}" for status in found if status.note and status.state != "missing"])


def _tokenizer(target: str, *, offline: bool) -> Any:
    from specbench.cli.suites import load_tokenizer

    return load_tokenizer(target, offline=offline)


def _marked(tokenizer: Any, ids: tuple[int, ...], learn: tuple[bool, ...]) -> str:
    """The document's text, what is learnt in brackets."""
    pieces = []
    start = 0
    while start < len(ids):
        end = next((at for at in range(start, len(ids)) if learn[at] != learn[start]), len(ids))
        text = tokenizer.decode(list(ids[start:end]))
        pieces.append(f"⟦{text}⟧" if learn[start] else text)
        start = end
    return "".join(pieces)


def _narrate(texts: Any) -> None:
    for text in texts:
        note(visible(text))
