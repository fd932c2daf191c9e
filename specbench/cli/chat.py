"""`specbench chat`: talk to a target with any method; tokens show how they came."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from specbench import paths
from specbench.bench.defaults import DEMO_TARGETS
from specbench.bench.request import Rule
from specbench.cli import options
from specbench.cli.failures import note
from specbench.cli.help import Sections, examples, new_app
from specbench.cli.options import HOW, WHAT, option
from specbench.cli.text import visible
from specbench.cli.typed import checked, read_line
from specbench.errors import UsageError, did_you_mean
from specbench.quantisation import check_quantisation

if TYPE_CHECKING:
    from specbench.chat.commands import Talk
    from specbench.chat.conversation import Conversation

app = new_app()


@app.command(
    cls=Sections,
    epilog=examples(
        "specbench chat --method redrafter",
        "specbench chat --target ./my-model --method draft_model --set draft_model.model=./my-draft",
        "echo 'What is 12 times 7?' | specbench chat --method prompt_lookup",
        after="/help lists what can be typed. Exit codes: 0 ok, 2 usage, 3 environment.",
    ),
)
def chat(
    target: Annotated[str, option("--target", WHAT, "MODEL", "Hub id, folder, or `demo` (default).")] = "demo",
    method: Annotated[str, option("--method", WHAT, "NAME", "Who drafts; default: nobody.")] = "autoregressive",
    set_: options.Settings = None,
    system: Annotated[str, option("--system", WHAT, "TEXT", "What the target is told first.")] = "",
    template: Annotated[str, option("--template", WHAT, "NAME", "`chat` (the target's own) or a plain one.")] = "chat",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=1, rich_help_panel=HOW)] = 256,
    temperature: Annotated[float, option("--temperature", HOW, "T", "0 = greedy (default).")] = 0.0,
    top_k: Annotated[int, option("--top-k", HOW, "K", "0 = off.")] = 0,
    top_p: Annotated[float, option("--top-p", HOW, "P", "1 = off.")] = 1.0,
    min_p: Annotated[float, option("--min-p", HOW, "P", "0 = off.")] = 0.0,
    repetition_penalty: Annotated[float, option("--repetition-penalty", HOW, "R", "1 = off.")] = 1.0,
    rule: Annotated[str, option("--rule", HOW, "RULE", "coupled (default), rejection, or typical.")] = "coupled",
    seed: Annotated[int, option("--seed", HOW, "N", "Of sampling; default 0.")] = 0,
    dtype: options.TargetDtype = None,
    quantisation: options.Quantisation = None,
    device: options.Device = None,
    threads: options.Threads = None,
    trust_remote_code: options.TrustRemoteCode = False,
    methods_dir: options.MethodsDirs = None,
    store: options.Store = None,
    pipe: Annotated[bool, typer.Option("--pipe", hidden=True)] = False,
) -> None:
    """Talk to a target. What was drafted and accepted is marked by its depth, the target's own tokens by ◆.

    Answers go to stdout, all else to stderr. Nothing is stored unless /save is typed, and nothing is a benchmark.
    """
    given = options.settings(set_)
    checked(system, what="the system prompt", where="--system", try_="--system TEXT, or /set system=TEXT later")
    check_quantisation(quantisation)
    if rule not in get_args(Rule):
        raise UsageError(f"{rule!r} is no acceptance rule", where="--rule", try_=did_you_mean(rule, get_args(Rule)))
    is_demo = target in DEMO_TARGETS
    # Refused here, before 2 s of torch.
    options.chosen(given, method, target_is_demo=is_demo, methods_dirs=tuple(methods_dir or ()), named_by="--method")
    said: dict[str, dict[str, str]] = {}
    for item in given:
        said.setdefault(item.method, {})[item.option] = item.value
    if not pipe:
        note(f"loading {visible(target)} …")
    # 2 s of torch, after everything that can be refused without it.
    from specbench import api
    from specbench.chat.conversation import Conversation, Settings
    from specbench.sampling import Sampling

    settings = Settings(
        method=method,
        said=said,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty
        ),
        rule=cast("Rule", rule),
        seed=seed,
        system=system,
        template=template,
    )
    lm = api.load(
        target,
        device=device or "auto",
        dtype=dtype or "auto",
        threads=threads,
        quantisation=quantisation or "none",
        trust_remote_code=trust_remote_code,
    )
    conversation = Conversation(lm, settings, target_is_demo=is_demo, methods_dirs=tuple(methods_dir or ()))
    conversation.measure_pace()
    default_file = _default_file(store)
    if pipe:
        from specbench.cli.chat_pipe import serve

        serve(conversation, default_file)
    else:
        _talk(conversation, default_file)


def _default_file(store: Path | None) -> Callable[[], Path]:
    return lambda: paths.exports_dir(store) / f"chat-{time.strftime('%Y%m%d-%H%M%S')}.json"


def _talk(conversation: Conversation, default_file: Callable[[], Path]) -> None:
    from specbench.chat.commands import Talk
    from specbench.cli.chat_terminal import Terminal

    front = Terminal(conversation)
    talk = Talk(conversation, front, default_file=default_file)
    is_interactive = sys.stdin.isatty()
    if is_interactive:
        import readline  # noqa: F401 - editing and history for input()
    front.greet()
    while True:
        try:
            line = _ask() if is_interactive else _next_line()
        except UsageError as error:
            talk.tell(error)
            continue
        except EOFError:
            break
        except KeyboardInterrupt:
            front.note("\n/quit or Ctrl-D leaves")
            continue
        with _stopping(talk):
            if not talk.handle(line):
                break


def _ask() -> str:
    """A typed line. The prompt is narration: where stdout is a file or a pipe it would stand among the answers."""
    try:
        if sys.stdout.isatty():
            return input("› ")
        print("› ", end="", file=sys.stderr, flush=True)  # noqa: T201
        return input()
    except UnicodeDecodeError as error:
        raise UsageError("this line is not UTF-8 text", try_="type it again, in UTF-8") from error


def _next_line() -> str:
    line = read_line(command="chat")
    if not line:
        raise EOFError
    return line


@contextmanager
def _stopping(talk: Talk) -> Iterator[None]:
    """Ctrl-C ends the answer between two steps; a second one, where a step does not end, ends the program."""

    def asked(number: int, frame: FrameType | None) -> None:
        if talk.conversation.is_stop_asked:
            raise KeyboardInterrupt
        talk.conversation.is_stop_asked = True

    before = signal.signal(signal.SIGINT, asked)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        talk.conversation.is_stop_asked = False
