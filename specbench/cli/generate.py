"""`specbench generate PROMPT|-`: one answer by one method, with what it cost."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from specbench.bench.defaults import DEMO_TARGETS
from specbench.cli import options
from specbench.cli.failures import note
from specbench.cli.help import examples, new_app
from specbench.cli.text import show, show_json
from specbench.cli.typed import checked, read_stdin
from specbench.errors import UsageError
from specbench.quantisation import CHOICES, check_quantisation

app = new_app()


@app.command(
    epilog=examples(
        'specbench generate "What is 12 times 7?" --method draft_model',
        "specbench generate - --max-new-tokens 64 --json < prompt.txt",
        after="Exit codes: 0 ok, 2 usage, 3 environment, 130 interrupted.",
    )
)
def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT|-", help="The prompt, or - to read it from stdin.")],
    target: Annotated[str, typer.Option("--target", metavar="MODEL", help="Hub id, folder, or `demo`.")] = "demo",
    method: Annotated[str, typer.Option("--method", metavar="NAME", help="See specbench methods.")] = "autoregressive",
    set_: options.Settings = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=1)] = 256,
    temperature: Annotated[float, typer.Option("--temperature", metavar="T", min=0.0, help="0 = greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option("--top-k", metavar="K", min=0, help="0 = off.")] = 0,
    top_p: Annotated[float, typer.Option("--top-p", metavar="P", min=0.0, max=1.0, help="1 = off.")] = 1.0,
    min_p: Annotated[float, typer.Option("--min-p", metavar="P", min=0.0, max=1.0, help="0 = off.")] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option("--repetition-penalty", metavar="R", min=0.01, help="1 = off.")
    ] = 1.0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0)] = 0,
    dtype: Annotated[str, typer.Option("--dtype", metavar="TYPE")] = "auto",
    quantisation: Annotated[
        str, typer.Option("--quantisation", metavar="NAME", help=f"{', '.join(CHOICES)}.")
    ] = "none",
    device: Annotated[str, typer.Option("--device", metavar="DEVICE")] = "auto",
    threads: Annotated[int | None, typer.Option("--threads", metavar="N", min=1)] = None,
    template: Annotated[
        str | None, typer.Option("--template", metavar="NAME", help="`chat` (the target's own) or a named plain one.")
    ] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code")] = False,
    methods_dir: options.MethodsDirs = None,
    as_json: options.Json = False,
) -> None:
    """Answer one prompt. The text goes to stdout, what it cost to stderr."""
    options.silence_followers()
    if prompt == "-":
        text = read_stdin(command="generate -")
    else:
        text = checked(prompt, what="the prompt", where="PROMPT", try_="specbench generate - reads it from a file")
    if not text.strip():
        raise UsageError("the prompt is empty", where="PROMPT", try_='specbench generate "Hello"')
    check_quantisation(quantisation)
    given = options.settings(set_)
    is_demo = target in DEMO_TARGETS
    # Refused here, before 2 s of torch.
    options.chosen(given, method, target_is_demo=is_demo, methods_dirs=tuple(methods_dir or ()), named_by="--method")
    # 2 s of torch, after everything that can be refused without it.
    from specbench import api

    answer = api.generate(
        text,
        target=target,
        method=method,
        options={
            item.option if item.method == method else f"{item.method}.{item.option}": item.value for item in given
        },
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        dtype=dtype,
        quantisation=quantisation,
        device=device,
        threads=threads,
        template=template,
        trust_remote_code=trust_remote_code,
        methods_dirs=tuple(methods_dir or ()),
    )
    if as_json:
        show_json({"schema": 1, **dataclasses.asdict(answer)})
        return
    show(answer.text)
    cost = f"{answer.num_new_tokens} tokens in {answer.total_s:.2f} s and {answer.num_steps} steps"
    note(f"{cost}; ended by {answer.finish_reason}")
