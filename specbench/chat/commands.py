"""What is typed: a message, or a `/command`. The same for the terminal and for the screen; nothing is printed here."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast, get_args

from specbench import paths, registry
from specbench.bench.request import Rule, parse_setting
from specbench.chat import adapter
from specbench.chat.conversation import BASELINE, Conversation
from specbench.chat.reply import Evaluation, Figures, Heard, Reply, figures_of
from specbench.errors import SpecbenchError, UsageError, did_you_mean
from specbench.events import StepRow
from specbench.store.files import cannot_write
from specbench.store.words import count

STUCK_STEPS = 20
"""Steps in a row that drafted and had nothing accepted, after which it is said."""

HELP = (
    ("/method [NAME]", "which method answers; without a name: which there are"),
    ("/set [NAME=VALUE …]", "settings: temperature, top_k, top_p, min_p, repetition_penalty, max_new_tokens, rule,"),
    ("", "seed, system, and METHOD.OPTION=VALUE; without one: what is set"),
    ("/stats", "the last answer in figures"),
    ("/eval", "the last answer again, with and without the method: speed-up, and whether the texts are equal"),
    ("/train", "learn now from what the answers so far showed; adaptive_lora with adapt=on learns by itself, too"),
    ("/adapter-info", "the adapter that is drafted with, what was observed, which versions there are"),
    ("/load VERSION", "draft with a version of the adapter store"),
    ("/unload", "draft without an adapter"),
    ("/clear", "forget the conversation"),
    ("/save [FILE]", "write it as JSON; default chat-DATE.json"),
    ("/help", "this list"),
    ("/quit", "leave; Ctrl-D too. Ctrl-C stops an answer"),
)
_COMMANDS = tuple(head.split(" ")[0] for head, _ in HELP if head)
_SAMPLING = {"temperature": float, "top_k": int, "top_p": float, "min_p": float, "repetition_penalty": float}
_WHOLE = {"max_new_tokens": int, "seed": int}
_ENDED = {
    "stop_id": "ended by the target's stop token",
    "stop_string": "ended by a stop string",
    "length": "cut at max_new_tokens",
    "stopped": "stopped by you",
}
_RULES = get_args(Rule)


class Front(Protocol):
    """Who shows it."""

    def note(self, text: str, style: str = "") -> None:
        """A line of narration. style: good, warn, bad or none."""
        ...

    def heard(self, tokens: Sequence[Heard], figures: Figures) -> None:
        """Tokens as they come, and the answer's figures so far."""
        ...

    def ended(self, reply: Reply) -> None:
        """The answer is whole, or was stopped."""
        ...

    def changed(self) -> None:
        """Settings, method or history are others now."""
        ...


class Talk:
    """Lines in; a front is told what comes of them."""

    def __init__(self, conversation: Conversation, front: Front, *, default_file: Callable[[], Path]) -> None:
        self.conversation = conversation
        self._front = front
        self._default_file = default_file

    def handle(self, line: str) -> bool:
        """One line; False where it ends the conversation. What is wrong is told, never raised."""
        line = line.strip()
        if not line:
            return True
        try:
            if any("\ud800" <= char <= "\udfff" for char in line):
                # A terminal's bytes that are no UTF-8, or half a pair in JSON: no tokenizer takes them.
                raise UsageError("this line is not valid Unicode", try_="type it again, in UTF-8")
            if line.startswith("/"):
                return self._command(line)
            self._say(line)
        except SpecbenchError as error:
            self.tell(error)
        return True

    def tell(self, error: SpecbenchError) -> None:
        """What is wrong with a line, and what to type instead."""
        parts = [error.what, *([f"try: {error.try_}"] if error.try_ else [])]
        self._front.note("✗ " + " · ".join(parts), "bad")

    def _command(self, line: str) -> bool:
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        match name:
            case "/quit" | "/exit":
                return False
            case "/help":
                for head, text in HELP:
                    self._front.note(f"{head:<20} {text}")
            case "/method":
                self._method(rest)
            case "/set":
                self._set(rest)
            case "/stats":
                self._stats()
            case "/eval":
                self._evaluate()
            case "/train":
                self._front.note("learning …")
                self._adapted(adapter.train(self.conversation))
            case "/adapter-info":
                for words in adapter.info(self.conversation):
                    self._front.note(words)
            case "/load":
                self._adapted(adapter.load(self.conversation, rest))
            case "/unload":
                self._adapted(adapter.unload(self.conversation))
            case "/clear":
                self.conversation.clear()
                self._front.note("forgotten: the conversation, and what the method remembered of it", "good")
                self._front.changed()
            case "/save":
                self._save(paths.expanded(rest, where="/save") if rest else self._default_file())
            case _:
                raise UsageError(f"no command {name!r}", try_=did_you_mean(name, _COMMANDS))
        return True

    def _adapted(self, words: str) -> None:
        self._front.note(words, "good")
        self._front.changed()

    # --- answers ------------------------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        told_stuck = False

        def told(tokens: Sequence[Heard], rows: Sequence[StepRow], prefill_s: float) -> None:
            nonlocal told_stuck
            figures = figures_of(rows, prefill_s=prefill_s)
            self._front.heard(tokens, figures)
            drafted = [row for row in rows if row.num_nodes][-STUCK_STEPS:]
            if not told_stuck and len(drafted) == STUCK_STEPS and not any(row.num_accepted for row in drafted):
                told_stuck = True

        reply = self.conversation.reply(text, told)
        self._front.ended(reply)
        words = self.why_nothing(reply.figures, was_stuck=told_stuck)
        if words:
            self._front.note(words, "warn")
        for words in adapter.learn_between(self.conversation):
            self._front.note(words, "warn" if words.startswith("⚠") else "")
        self._front.changed()

    def why_nothing(self, figures: Figures, *, was_stuck: bool = False) -> str:
        """Why no speculation happened; empty where it did, or none was asked for."""
        name = self.conversation.settings.method
        if name == BASELINE or not figures.num_steps or (figures.num_accepted and not was_stuck):
            return ""
        if not figures.num_drafted:
            return (
                f"⚠ {name} drafted nothing in {count(figures.num_steps, 'step')}: it found nothing to go on. Methods "
                "that copy need text that repeats; /method names the others"
            )
        head = f"⚠ none of {count(figures.num_drafted, 'drafted token')} was accepted"
        if was_stuck and figures.num_accepted:
            head = f"⚠ nothing was accepted in {STUCK_STEPS} steps in a row"
        reasons = [note for note in self.conversation.notes if "trained on" in note]
        if reasons:
            return f"{head}: {'; '.join(reasons)}"
        return (
            f"{head}: draft and target disagree on this text. specbench eval measures the drafter, /method changes it"
        )

    def _evaluate(self) -> None:
        talk = self.conversation
        if talk.settings.method == BASELINE:
            raise UsageError("autoregression against itself is no evaluation", try_="/method NAME, ask, then /eval")
        self._front.note("answering again: autoregression, method, method, autoregression …")
        found = talk.evaluate()
        self._front.note(evaluation_words(found, is_exact=self._is_exact()), self._verdict(found))

    def _is_exact(self) -> bool:
        settings = self.conversation.settings
        return settings.rule == "coupled" or (settings.sampling.is_greedy and settings.rule == "rejection")

    def _verdict(self, found: Evaluation) -> str:
        return "good" if found.first_difference is None or not self._is_exact() else "bad"

    def _stats(self) -> None:
        talk = self.conversation
        if not talk.replies:
            raise UsageError("there is no answer yet", try_="say something first")
        reply = talk.replies[-1]
        for words in stats_words(reply, talk):
            self._front.note(words)
        if adapter.has_adapter(talk):
            self._front.note(adapter.adapter_words(talk))

    # --- settings -----------------------------------------------------------------------------------------------------

    def _method(self, name: str) -> None:
        talk = self.conversation
        if not name:
            for entry in registry.cards(methods_dirs=talk.methods_dirs):
                mark = "▸" if entry.name == talk.settings.method else " "
                told = entry.card.summary if entry.card is not None else f"broken: {entry.error}"
                self._front.note(f"{mark} {entry.name:<16} {told}")
            return
        lost = talk.change(method=name)
        self._front.note(f"{name} answers from now on" + "".join(f"; {note}" for note in talk.notes), "good")
        self._gone(lost)
        self._front.changed()

    def _set(self, rest: str) -> None:
        if not rest:
            for name, value in settings_of(self.conversation).items():
                self._front.note(f"{name}={value}")
            return
        try:
            words = shlex.split(rest)
        except ValueError as error:
            raise UsageError(f"{rest!r}: {error}", where="/set", try_="close the quotation") from error
        if len(words) == 2 and "=" not in rest:
            # As in `/set temperature 0.7`.
            words = ["=".join(words)]
        changes: dict[str, Any] = {}
        for word in words:
            self._one(word, changes)
        lost = self.conversation.change(**changes)
        self._front.note(f"set {' '.join(words)}", "good")
        self._gone(lost)
        self._front.changed()

    def _gone(self, lost: str) -> None:
        if lost:
            self._front.note(f"⚠ {lost}", "warn")

    def _one(self, word: str, changes: dict[str, Any]) -> None:
        settings = self.conversation.settings
        name, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"{word!r} is not NAME=VALUE", where="/set", try_="/set temperature=0.7")
        if name in _SAMPLING:
            sampling = changes.get("sampling", settings.sampling)
            changes["sampling"] = replace(sampling, **{name: _number(name, value, _SAMPLING[name])})
        elif name in _WHOLE:
            changes[name] = _number(name, value, int)
            if changes[name] < (1 if name == "max_new_tokens" else 0):
                raise UsageError(f"{name} {value} is out of range", where="/set", try_="/set max_new_tokens=256")
        elif name == "rule":
            if value not in _RULES:
                raise UsageError(f"{value!r} is no rule", where="/set", try_=did_you_mean(value, _RULES))
            changes["rule"] = cast("Rule", value)
        elif name == "system":
            changes["system"] = value
        elif "." in name:
            item = parse_setting(word, where="/set")
            card = registry.card(item.method, methods_dirs=self.conversation.methods_dirs, named_by="/set")
            registry.check_options(card, {item.option: item.value})
            said = {method: dict(options) for method, options in changes.get("said", settings.said).items()}
            said.setdefault(item.method, {})[item.option] = item.value
            changes["said"] = said
        else:
            known = (*_SAMPLING, *_WHOLE, "rule", "system", "METHOD.OPTION")
            raise UsageError(f"no setting {name!r}", where="/set", try_=did_you_mean(name, known))

    # --- keeping ------------------------------------------------------------------------------------------------------

    def _save(self, path: Path) -> None:
        talk = self.conversation
        body = {
            "schema": 1,
            "target": talk.lm.name,
            "settings": settings_of(talk),
            "pace_s": talk.pace.step_s if talk.pace is not None else None,
            "messages": talk.messages,
            "replies": [
                {"finish_reason": reply.finish_reason, **reply.figures.as_json(talk.pace)} for reply in talk.replies
            ],
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                json.dump(body, file, indent=1)
        except FileExistsError as error:
            raise UsageError(f"{path} is there already", try_="/save ANOTHER.json") from error
        except OSError as error:
            raise cannot_write(path, error, try_="/save PATH, one that you may write to") from error
        self._front.note(f"written to {path}", "good")


def _number(name: str, value: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(value)
    except ValueError as error:
        raise UsageError(f"{value!r} is no number for {name}", where="/set", try_=f"/set {name}=1") from error


def settings_of(talk: Conversation) -> dict[str, Any]:
    """Everything `/set` and `/method` can change, by the names they use."""
    settings = talk.settings
    return {
        "method": settings.method,
        **{name: getattr(settings.sampling, name) for name in _SAMPLING},
        "rule": settings.rule,
        "max_new_tokens": settings.max_new_tokens,
        "seed": settings.seed,
        "system": settings.system,
        **{f"{method}.{name}": value for method, options in settings.said.items() for name, value in options.items()},
    }


def figures_words(figures: Figures, talk: Conversation) -> str:
    """`31 tokens · 12 steps · τ 2.50 · 71.8 tok/s · 2.4× plain decoding`."""
    parts = [count(figures.num_tokens, "token"), count(figures.num_steps, "step")]
    if figures.acceptance_length is not None:
        parts.append(f"τ {figures.acceptance_length:.2f}")
    if figures.tokens_per_s is not None:
        parts.append(f"{figures.tokens_per_s:.1f} tok/s")
    times = figures.against(talk.pace)
    if times is not None and talk.settings.method != BASELINE:
        parts.append(f"{times:.2f}× the pace of plain decoding (estimate)")
    return " · ".join(parts)


def stats_words(reply: Reply, talk: Conversation) -> list[str]:
    """The last answer, line by line; where the pace comes from is said."""
    figures = reply.figures
    found = [
        f"{talk.settings.method} on {talk.lm.name}: {figures_words(figures, talk)}; {_ENDED[reply.finish_reason]}",
        f"prompt {count(reply.num_prompt_tokens, 'token')}, prefill {1000 * figures.prefill_s:.0f} ms; "
        "tok/s are of decoding, the prefill left out",
    ]
    if figures.num_drafted:
        share = figures.num_accepted / figures.num_drafted
        found.append(f"drafted {figures.num_drafted}, accepted {figures.num_accepted} ({100 * share:.0f} %)")
        places = zip(figures.accepted_at, figures.asked_at, strict=True)
        by_depth = [f"α{k} {accepted / asked:.2f}" for k, (accepted, asked) in enumerate(places, start=1) if asked]
        found.append("accepted where the one before was: " + "  ".join(by_depth))
    if figures.decode_s > 0 and figures.num_steps:
        draft, verify = (100 * part / figures.decode_s for part in (figures.draft_s, figures.verify_s))
        found.append(f"of a step, drafting is {draft:.0f} %, verification {verify:.0f} %")
    if talk.pace is not None:
        found.append(
            f"plain decoding: {1 / talk.pace.step_s:.1f} tok/s, the mean of {talk.pace.num_steps} steps behind a short "
            "prompt when the target was loaded; /eval measures it on this answer"
        )
    return found


def evaluation_words(found: Evaluation, *, is_exact: bool) -> str:
    """Speed and equality in one sentence, with what it rests on."""
    low, high = min(found.plain_s) / max(found.method_s), max(found.plain_s) / min(found.method_s)
    speed = (
        f"{found.method}: {found.speedup:.2f}× as fast as autoregression on this answer, prefill included "
        f"({low:.2f} to {high:.2f} between single pairs; two of each, no interval)"
    )
    if found.first_difference is None:
        return f"{speed}; the texts are equal, token by token"
    if not is_exact:
        return f"{speed}; the texts differ, as this rule allows"
    return (
        f"✗ {speed}; the texts DIFFER from token {found.first_difference} on: specbench run tells rounding from a bug"
    )
