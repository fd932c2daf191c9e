"""`specbench demo --adapt`: something to see within a minute, offline, on the embedded models."""

from __future__ import annotations

from typing import Annotated

import typer

from specbench.cli import options
from specbench.cli.failures import note
from specbench.cli.help import examples, new_app
from specbench.cli.text import show, show_json, visible
from specbench.errors import UsageError

app = new_app()
KINDS = ("gsm8k", "roleplay", "codegen")


@app.command(
    epilog=examples(
        "specbench demo --adapt",
        "specbench demo --adapt --kind codegen --seconds 120 --json",
        after="`specbench run demo` measures every ready method. Exit codes: 0 ok, 2 usage, 3 environment.",
    )
)
def demo(
    adapt: Annotated[
        bool, typer.Option("--adapt", help="The draft model learns one kind of prompt from what the target rejects.")
    ] = False,
    kind: Annotated[str, typer.Option("--kind", metavar="NAME", help=f"Learnt: {', '.join(KINDS)}.")] = KINDS[0],
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="S", min=5.0, help="About so long: fewer prompts where it is slow.")
    ] = 60.0,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="T", min=0.0, help="0 = greedy (default).")
    ] = 0.0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of prompts, sampling and learning.")] = 0,
    as_json: options.Json = False,
) -> None:
    """A short adaptation: acceptance on held-out prompts before and after, with an interval. It may well not rise."""
    if not adapt:
        raise UsageError(
            "which demo?",
            where="demo",
            try_="specbench demo --adapt, or specbench run demo for the comparison of methods",
        )
    if kind not in KINDS:
        raise UsageError(f"{kind!r} is no kind of the embedded prompts", where="--kind", try_=", ".join(KINDS))
    # 3 s of torch and accelerate, after what can be refused without them.
    from specbench.bench.adapt_demo import DemoPlan, adapt_demo, to_json, words_of
    from specbench.bench.defaults import DEMO_THREADS
    from specbench.bench.session import set_threads

    set_threads(DEMO_THREADS)
    plan = DemoPlan(kind=kind, most_s=seconds, temperature=temperature, seed=seed)
    outcome = adapt_demo(plan, lambda text: note(visible(text)))
    if as_json:
        show_json(to_json(outcome))
        return
    for words in words_of(outcome):
        show(words)
