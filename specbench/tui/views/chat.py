"""Chat: talk to a target with any method, in a process beside the viewer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Input

from specbench.errors import SpecbenchError
from specbench.manifest import read_manifest
from specbench.report import text
from specbench.store.files import holder
from specbench.tui import sharing
from specbench.tui.layout import Shown
from specbench.tui.lines import Line, Span, line, sparkline, wrap
from specbench.tui.marks import Kind
from specbench.tui.talking import Talking, words_for
from specbench.tui.views.base import View
from specbench.tui.widgets.canvas import Canvas, LineView
from specbench.tui.widgets.chat_log import ChatLog

_LOOK_EVERY_S = 0.1
_KINDS = {"plain": Kind.PLAIN, "drafted": Kind.DRAFTED, "bonus": Kind.BONUS}


class ChatView(View):
    """The conversation, beside it this reply and what is set, below it the line to write in."""

    view: ClassVar[str] = "chat"

    DEFAULT_CSS = """
    ChatView #body { height: 1fr; }
    ChatView #upper { height: 1fr; }
    ChatView #log { width: 1fr; border: round $secondary; padding: 0 1; }
    ChatView #log:focus { border: heavy $accent; }
    ChatView #beside { width: 38; }
    ChatView #reply { height: 13; }
    ChatView #settings { height: 1fr; }
    ChatView #line { height: 1; scrollbar-size: 0 0; padding: 0 2; display: none; }
    ChatView.-narrow #beside { display: none; }
    ChatView.-narrow #line { display: block; }
    ChatView #message { height: 3; border: round $secondary; background: $background; }
    ChatView #message:focus { border: heavy $accent; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.talking: Talking | None = None
        self.state: dict[str, Any] = {}
        """As the process told it last."""
        self.figures: dict[str, Any] = {}
        """Of the last answer."""
        self.is_ready = False
        self.is_answering = False
        self._is_open = False
        """An answer has begun in the log."""

    def body(self) -> Iterable[Widget]:
        with Vertical(id="body"):
            with Horizontal(id="upper"):
                yield ChatLog(id="log", mode=self.main.marks)
                with Vertical(id="beside"):
                    yield Canvas(self._reply, title="This reply", id="reply", classes="pane")
                    yield Canvas(self._settings, title="Settings: /set, /method", id="settings", classes="pane")
            yield Canvas(self._line, id="line")
            yield Input(id="message", placeholder="enter loads a target")

    def on_mount(self) -> None:
        self.query_one("#line").can_focus = False
        self.query_one("#log", ChatLog).set_title("Conversation")
        self.query_one("#message", Input).border_title = Content("Message, or /help")
        self._say_how_to_begin()
        self.query_one("#log").focus()
        self.set_interval(_LOOK_EVERY_S, self._look)

    def on_unmount(self) -> None:
        if self.talking is not None:
            self.talking.close()

    # --- the process --------------------------------------------------------------------------------------------------

    def _words(self) -> list[str]:
        run_id = self.workspace.run_id
        manifest = read_manifest(self.workspace.folder(run_id)) if run_id else None
        return words_for(manifest, store=self.workspace.store)

    def _say_how_to_begin(self) -> None:
        log = self.query_one("#log", ChatLog)
        log.note("Nobody is listening yet: enter loads the target of the run that is open, or the demo.", "")
        log.note("It is a process beside this viewer and ends with it. Nothing said here is a measurement.", "")

    def _start(self) -> None:
        run_id = self.workspace.run_id
        try:
            if run_id and holder(self.workspace.folder(run_id)) is not None:
                self.say("the run that is open is being measured: talking beside it would slow it", style="warn")
                return
            # It need not be the one that is open: a target is loaded, and every core is wanted for it.
            if self._would_slow():
                return
            self.talking = Talking(self._words())
        except (SpecbenchError, OSError) as error:
            self.fail(error if isinstance(error, SpecbenchError) else SpecbenchError(f"it cannot be started: {error}"))
            return
        self.is_ready = self.is_answering = self._is_open = False
        log = self.query_one("#log", ChatLog)
        log.clear()
        log.note(f"loading: {self.talking.command} …", "")
        self.query_one("#message", Input).placeholder = "being loaded …"
        self.refresh_words()

    def _would_slow(self) -> bool:
        live = self.workspace.live_here()
        if live:
            self.say(f"{live} runs on this machine: talking beside it would slow it", style="warn")
        return bool(live)

    def _look(self) -> None:
        if self.talking is None:
            return
        for event in self.talking.read():
            self._take(event)
        if self.talking.is_over:
            told = self.talking.last_words() if not self.is_ready or self.is_answering else "as it was asked to"
            self.talking.close()
            self.talking = None
            self.is_ready = self.is_answering = False
            self.query_one("#log", ChatLog).note(f"the conversation's process has ended: {told}", "warn")
            self.query_one("#message", Input).placeholder = "enter loads a target"
            self.refresh_words()

    def _take(self, event: dict[str, Any]) -> None:
        log = self.query_one("#log", ChatLog)
        match event["e"]:
            case "ready":
                self.state, self.is_ready = event, True
                for each in event["notes"]:
                    log.note(f"⚠ {each}", "warn")
                self.query_one("#message", Input).placeholder = ""
                log.note(f"{event['target']} listens. {self._pace_words()}", "")
                if self.is_current:
                    self.query_one("#message").focus()
            case "changed":
                self.state = event
                if not event["num_messages"]:
                    self.figures = {}
            case "note":
                log.note(event["text"], event["style"])
            case "tokens":
                if not self._is_open:
                    log.answer(str(self.state["settings"]["method"]))
                    self._is_open = True
                log.tokens([Shown(words, _KINDS[source], depth) for words, source, depth in event["tokens"]])
                self.figures = event["figures"]
            case "ended":
                if event["rest"]:
                    log.tokens([Shown(event["rest"], Kind.PLAIN, 0)])
                self.figures, self._is_open = event["figures"], False
                log.note(self._reply_words() + (" · stopped" if event["finish_reason"] == "stopped" else ""), "")
            case "idle":
                self.is_answering = False
            case kind:
                raise AssertionError(f"the conversation's process said {kind!r}")
        for name in ("#reply", "#settings", "#line"):
            self.query_one(name, Canvas).redraw()
        self.refresh_words()

    # --- drawing ------------------------------------------------------------------------------------------------------

    def headline(self) -> str:
        if self.talking is None:
            return "not a measurement · enter loads a target"
        if not self.is_ready:
            return "loading …"
        settings = self.state["settings"]
        doing = "answering; x stops" if self.is_answering else "listening"
        return (
            f"{self.state['target']} · {settings['method']} · T {settings['temperature']:g} · "
            f"max {settings['max_new_tokens']} · {doing} · not a measurement"
        )

    def _pace_words(self) -> str:
        pace = self.state.get("pace")
        if not pace:
            return ""
        return (
            f"Plain decoding: {text.rate(1 / pace['step_s'])} tok/s, the mean of {pace['num_steps']} steps behind a "
            "short prompt; /eval compares on the answer itself."
        )

    def _reply_words(self) -> str:
        found = self.figures
        parts = [f"{found['num_tokens']} tokens", f"{found['num_steps']} steps"]
        parts += [f"τ {text.two(found['acceptance_length'])}", f"{text.rate(found['tokens_per_s'])} tok/s"]
        if found["times_pace"] is not None and self.state["settings"]["method"] != "autoregressive":
            parts.append(f"{text.times(found['times_pace'])} plain (est.)")
        return " · ".join(parts)

    def _reply(self, width: int, height: int) -> Sequence[Line]:
        found = self.figures
        if not found:
            return wrap("No answer yet.", width, "dim")
        rows: list[Line] = [
            line(f"tokens      {found['num_tokens']}"),
            line(f"steps       {found['num_steps']}"),
            line(f"τ           {text.two(found['acceptance_length'])}"),
            line(f"tok/s       {text.rate(found['tokens_per_s'])}"),
            line(f"vs plain    {text.times(found['times_pace'])} (estimate)"),
        ]
        if found["num_drafted"]:
            rows.append(line(f"accepted    {found['num_accepted']} of {found['num_drafted']}"))
            rows.append(line("by step     ", Span(sparkline(found["lengths"], max(1, width - 12), low=0), "accent")))
            pairs = zip(found["accepted_at"], found["asked_at"], strict=True)
            rates = [f"α{k} {a / n:.2f}" for k, (a, n) in enumerate(pairs, start=1) if n]
            rows += wrap("  ".join(rates), width)
        if found["decode_s"]:
            shares = [100 * found[name] / found["decode_s"] for name in ("draft_s", "verify_s")]
            rows.append(line(f"draft {shares[0]:.0f} %  verify {shares[1]:.0f} %"))
        return rows

    def _settings(self, width: int, height: int) -> Sequence[Line]:
        rows: list[Line] = []
        for name, value in self.state.get("settings", {}).items():
            rows += wrap(f"{name}={value}", width)
        return rows

    def _line(self, width: int, height: int) -> Sequence[Line]:
        return [line(self._reply_words())] if self.figures and self.state else [line(Span("no answer yet", "dim"))]

    # --- keys ---------------------------------------------------------------------------------------------------------

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if self.talking is None:
            self._start()
            return
        words = event.value.strip()
        if not words:
            return
        if not self.is_ready or self.is_answering:
            self.say("it is still busy: x stops an answer (after esc)", style="warn")
            return
        # What only looks or writes is as good as nothing; what decodes or learns is not.
        is_work = not words.startswith("/") or words.split()[0] in ("/eval", "/train")
        if is_work and self._would_slow():
            return
        log = self.query_one("#log", ChatLog)
        try:
            self.talking.send(words)
        except SpecbenchError as error:
            self.fail(error)
            return
        if words == "/clear":
            log.clear()
        log.message(words)
        self.is_answering, self._is_open = True, False
        event.input.value = ""
        self.say("")

    def action_open(self) -> None:
        """Write; the first time, load."""
        if self.talking is None:
            self._start()
        else:
            self.query_one("#message").focus()

    def action_stop(self) -> None:
        if self.talking is None or not self.is_answering:
            self.say("nothing is being answered", style="warn")
            return
        try:
            self.talking.stop()
        except SpecbenchError as error:
            self.fail(error)
            return
        if not self._is_open:
            # Before its first token, /eval and /train do not look at it: what they do is finished first.
            self.say("asked to stop; what is being done now (reading, learning, /eval) is finished first", style="")

    def action_marks(self) -> None:
        self.main.marks = self.main.marks.next()
        self.query_one("#log", ChatLog).set_mode(self.main.marks)
        self.say(f"tokens: {self.main.marks.value}")

    def key_escape(self) -> None:
        if self.focused is self.query_one("#message"):
            # Out of the line: single letters are keys again.
            self.query_one("#log").focus()
        else:
            super().key_escape()

    def copied(self) -> str:
        log = self.query_one("#log", ChatLog)
        if self.focused is log and log.answer_text():
            return log.answer_text()
        return self.focused.text() if isinstance(self.focused, LineView) else ""

    def exports(self) -> list[Path]:
        words = self.query_one("#log", ChatLog).text()
        return [*super().exports(), sharing.write_text(self.workspace.store, "chat", ".txt", words)]

    def explain(self) -> list[Line]:
        return [
            line("esc leaves the line, so that single letters are keys; enter goes back to it"),
            line("¹²³  drafted, and accepted at that depth      ◆  the target's own token behind a draft"),
            line("vs plain  decoding rate ÷ that of plain decoding, measured once when the target was loaded"),
            line("What outlives an answer (suffix tries) lives on here, as under --carry stream."),
        ]
