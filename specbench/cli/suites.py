"""`specbench suites`: list the suites and where each would come from, show rendered prompts, download one.

Listing and fetching load no torch; `show` loads the target's tokenizer, never its weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specbench import paths
from specbench.cli.failures import note
from specbench.cli.help import examples, new_app
from specbench.cli.text import Column, show, show_json, show_table, visible
from specbench.errors import EnvironmentFailed, UsageError
from specbench.suite import LoadedSuite, Question, SuiteStatus, fetch_suite, load_suite, render, render_text, survey

if TYPE_CHECKING:
    from specbench.suite.templates import Tokenizer

app = new_app(
    help="List the suites, show their prompts, download one. Without a command: ls.",
    epilog=examples("specbench suites --data ./data", "specbench suites show gsm8k --limit 3"),
)

_Suite = Annotated[str, typer.Argument(metavar="SUITE", help="A name, a YAML, or a JSONL of questions.")]
_Data = Annotated[list[Path] | None, typer.Option("--data", metavar="DIR", help="Folder with suite files; repeatable.")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON value on stdout.")]

_SHORT_HASH = 12


@app.callback(invoke_without_command=True)
def default(context: typer.Context, data: _Data = None, as_json: _Json = False) -> None:
    if context.invoked_subcommand is None:
        _list(data or [], as_json=as_json)
    elif data or as_json:
        # They would be dropped without a word: the command below has its own.
        raise UsageError(f"options stand after the command: specbench suites {context.invoked_subcommand} --data …")


@app.command("ls", epilog=examples("specbench suites ls", "specbench suites ls --data ./data --json"))
def ls(data: _Data = None, as_json: _Json = False) -> None:
    """Every suite: number of questions, hash of their content, and where they come from."""
    _list(data or [], as_json=as_json)


@app.command(
    "show",
    epilog=examples(
        "specbench suites show mtbench --limit 1 --target ./my-model", "specbench suites show mine.jsonl --json"
    ),
)
def show_prompts(
    suite: _Suite,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", help="How many questions: the subset that `run` takes.")
    ] = 3,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Draws the subset.")] = 0,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="MODEL", help="Whose tokenizer: id, folder or demo. [default: the suite's]"),
    ] = None,
    template: Annotated[
        str, typer.Option("--template", metavar="NAME", help="chat (the target's), plain, alpaca or vicuna.")
    ] = "chat",
    data: _Data = None,
    offline: Annotated[bool, typer.Option("--offline", help="Download nothing.")] = False,
    as_json: _Json = False,
) -> None:
    """Questions as the target sees them, special tokens included."""
    loaded = load_suite(suite, data_dirs=data or [], limit=limit, seed=seed, offline=offline)
    _narrate(loaded)
    name = target or loaded.defaults.target
    tokenizer = load_tokenizer(name, offline=offline)
    questions = [_rendered(tokenizer, question, template) for question in loaded.questions]
    if as_json:
        about = {**_about(loaded), "target": name, "template": template, "questions": questions}
        show_json(about)
        return
    show(f"{loaded.name}: {len(questions)} of {loaded.num_available} questions, from {loaded.source}")
    show(f"target {name}, template {template}")
    for item in questions:
        show(f"\n── {item['question_id']} · {item['category']} · {item['num_prompt_tokens']} tokens")
        show(_indented(item["prompt"]))
        for number, turn in enumerate(item["turns"][1:], start=2):
            show(f"   turn {number}, after the answer:")
            show(_indented(turn))
        if item["reference"]:
            show("   reference:")
            show(_indented("\n".join(item["reference"])))


@app.command("fetch", epilog=examples("specbench suites fetch gsm8k", "specbench suites fetch alpaca --json"))
def fetch(suite: _Suite, as_json: _Json = False) -> None:
    """Download a suite from the Hugging Face hub; record its hash, or check it against the recorded one."""
    loaded = fetch_suite(suite)
    _narrate(loaded)
    if as_json:
        show_json(_about(loaded))
        return
    show(f"{loaded.name}: {loaded.num_available} questions, {loaded.content_hash[:_SHORT_HASH]}, from {loaded.source}")


def _list(data: list[Path], *, as_json: bool) -> None:
    found = survey(data)
    if as_json:
        show_json([_status_facts(status) for status in found])
        return
    columns = [Column("suite"), Column("questions", right=True), Column("hash"), Column("from"), Column("title")]
    show_table(columns, [_status_row(status) for status in found])
    for status in found:
        if status.state in ("missing", "unreadable"):
            note(visible(f"{status.name}: {status.help or status.where}"))


def _status_row(status: SuiteStatus) -> list[str]:
    origin = {
        "inline": status.where,
        "local": status.where,
        "downloaded": f"{status.where} (downloaded)",
        "hub": f"{status.where} (downloaded at first use)",
        "missing": f"missing: {status.where}",
        "unreadable": "unreadable: see below",
    }[status.state]
    count = "?" if status.num_questions is None else str(status.num_questions)
    return [status.name, count, (status.content_hash or "-")[:_SHORT_HASH], origin, status.title]


def _status_facts(status: SuiteStatus) -> dict[str, Any]:
    return {
        "name": status.name,
        "title": status.title,
        "licence": status.licence,
        "num_questions": status.num_questions,
        "hash": status.content_hash,
        "state": status.state,
        "where": status.where,
        "help": status.help,
    }


def _about(loaded: LoadedSuite) -> dict[str, Any]:
    return {
        "name": loaded.name,
        "title": loaded.title,
        "licence": loaded.licence,
        "num_questions": loaded.num_available,
        "hash": loaded.content_hash,
        "source": loaded.source,
        "has_answers": loaded.has_answers,
    }


def _rendered(tokenizer: Tokenizer, question: Question, template: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question.turns[0]}]
    return {
        "question_id": question.question_id,
        "category": question.category,
        "turns": list(question.turns),
        "reference": list(question.reference),
        "prompt": render_text(tokenizer, messages, template),
        "num_prompt_tokens": len(render(tokenizer, messages, template)),
    }


def load_tokenizer(target: str, *, offline: bool) -> Tokenizer:
    """The tokenizer alone: a hub id's weights are not downloaded for it."""
    from transformers import AutoTokenizer  # 2 s, and it brings torch

    place = paths.DEMO_MODELS.get(target, target)
    try:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(str(place), local_files_only=offline)
    except (OSError, ValueError, KeyError) as error:
        raise EnvironmentFailed(
            f"no tokenizer for target {target!r}: {str(error).splitlines()[0]}",
            where=str(place),
            try_="--target with a folder that holds tokenizer.json, a hub id, or demo",
        ) from error
    return tokenizer


def _narrate(loaded: LoadedSuite) -> None:
    for text in loaded.notes:
        note(visible(text))


def _indented(text: str) -> str:
    return "\n".join(f"   {line}" for line in text.split("\n"))
