"""The conversation over pipes, for a viewer: a JSON object a line, both ways.

In: {"line": TEXT}, {"stop": true}. Out, by `e`: ready, tokens, ended, note, changed. The end of the input is the end.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from specbench.chat.commands import Talk, settings_of
from specbench.chat.conversation import Conversation
from specbench.chat.reply import Figures, Heard, Reply
from specbench.tui.detokenise import Pieces

if TYPE_CHECKING:
    pass


class Pipe:
    """A front (see `chat.commands.Front`) whose lines a viewer reads."""

    def __init__(self, conversation: Conversation, out: TextIO) -> None:
        self._talk = conversation
        self._out = out
        self._pieces = Pieces.of(self._talk.tokenizer)

    def send(self, kind: str, **body: Any) -> None:
        """One line, on its way at once."""
        self._out.write(json.dumps({"e": kind, **body}) + "\n")
        self._out.flush()

    def state(self) -> dict[str, Any]:
        """What is set, and how long the conversation is."""
        pace = self._talk.pace
        return {
            "target": self._talk.lm.name,
            "settings": settings_of(self._talk),
            "pace": None if pace is None else {"step_s": pace.step_s, "num_steps": pace.num_steps},
            "notes": self._talk.notes,
            "num_messages": len(self._talk.messages),
        }

    def note(self, text: str, style: str = "") -> None:
        self.send("note", text=text, style=style)

    def heard(self, tokens: Sequence[Heard], figures: Figures) -> None:
        shown = [(self._pieces.add(each.token), each.source, each.depth) for each in tokens]
        self.send("tokens", tokens=shown, figures=figures.as_json(self._talk.pace))

    def ended(self, reply: Reply) -> None:
        self.send(
            "ended",
            rest=self._pieces.rest(),
            finish_reason=reply.finish_reason,
            figures=reply.figures.as_json(self._talk.pace),
        )
        self._pieces = Pieces.of(self._talk.tokenizer)

    def changed(self) -> None:
        self.send("changed", **self.state())


def serve(conversation: Conversation, default_file: Callable[[], Path]) -> None:
    """Until the viewer goes."""
    # Whatever a library prints must not stand between two lines.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    front = Pipe(conversation, out)
    talk = Talk(conversation, front, default_file=default_file)
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    # A thread, because a stop must be heard while an answer is under way; it only reads.
    threading.Thread(target=_read, args=(conversation, lines), daemon=True).start()
    front.send("ready", **front.state())
    while (line := lines.get()) is not None:
        if not talk.handle(line):
            return
        front.send("idle")


def _read(conversation: Conversation, lines: queue.SimpleQueue[str | None]) -> None:
    for row in sys.stdin:
        asked = json.loads(row)
        if asked.get("stop"):
            conversation.is_stop_asked = True
        else:
            lines.put(str(asked["line"]))
    conversation.is_stop_asked = True
    lines.put(None)
