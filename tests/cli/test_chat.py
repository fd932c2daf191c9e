"""`specbench chat` on a terminal, on pipes and for a viewer."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from specbench.tui.talking import Talking
from tests.bench.conftest import save_tiny_target


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    return save_tiny_target(tmp_path_factory.mktemp("target"))


class _Screen(io.StringIO):
    """A stdout that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_piped_lines_are_answered_on_stdout_and_nothing_else_is(specbench, target, monkeypatch):
    lines = io.TextIOWrapper(io.BytesIO(b"abc abc abc\n/stats\n/nonsense\n"))
    monkeypatch.setattr(sys, "stdin", lines)
    ran = specbench("chat", "--target", str(target), "--method", "prompt_lookup", "--max-new-tokens", "8")
    assert ran.code == 0
    assert ran.out and "tok/s" not in ran.out and "\x1b" not in ran.out and "◆" not in ran.out
    assert "plain decoding" in ran.err and "prefill" in ran.err and "no command '/nonsense'" in ran.err


class _Keyboard(io.TextIOWrapper):
    """A stdin that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_prompts_stand_among_the_answers_on_a_terminal_only(specbench, target, monkeypatch):
    """`specbench chat > answers.txt`, typed at a terminal: the file holds answers."""
    monkeypatch.setattr(sys, "stdin", _Keyboard(io.BytesIO(b"abc\n/stats\n"), encoding="utf-8"))
    ran = specbench("chat", "--target", str(target), "--max-new-tokens", "4")
    assert ran.code == 0 and "›" not in ran.out and ran.out.count("\n") == 1
    assert ran.err.count("› ") == 3  # two lines and the end of the input


def test_a_typed_line_that_is_not_utf_8_is_told(specbench, target, monkeypatch):
    monkeypatch.setattr(sys, "stdin", _Keyboard(io.BytesIO(b"zw\xf6lf\n"), encoding="utf-8"))
    ran = specbench("chat", "--target", str(target), "--max-new-tokens", "4")
    assert ran.code == 0 and ran.out == "" and "✗ this line is not UTF-8 text" in ran.err


def test_a_piped_line_that_is_not_utf_8_is_told_and_the_next_one_is_answered(specbench, target, monkeypatch):
    lines = io.TextIOWrapper(io.BytesIO(b"zw\xf6lf\n/stats\nabc\n"), encoding="ascii", errors="surrogateescape")
    monkeypatch.setattr(sys, "stdin", lines)
    ran = specbench("chat", "--target", str(target), "--max-new-tokens", "4")
    assert ran.code == 0 and ran.out.count("\n") == 1
    assert "✗ this line of stdin is not UTF-8 text (byte 2)" in ran.err and "iconv -f latin1" in ran.err
    assert "there is no answer yet" in ran.err


def test_a_system_prompt_that_is_not_utf_8_is_refused_before_torch(specbench):
    ran = specbench("chat", "--system", b"zw\xf6lf".decode("utf-8", "surrogateescape"))
    assert ran.code == 2 and "the system prompt is not UTF-8 text (byte 2)" in ran.err


@pytest.mark.parametrize(
    ("environ", "colours"),
    [({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False)],
)
def test_marks_tell_tokens_apart_with_and_without_colour(target, monkeypatch, environ, colours):
    """Colour is never the only carrier; NO_COLOR takes it away and leaves underlines and bold."""
    import torch

    from specbench.chat.commands import Talk
    from specbench.chat.conversation import Conversation, Settings
    from specbench.cli.chat_terminal import Terminal
    from specbench.lm.load import load_lm

    for name in ("NO_COLOR", "COLORTERM", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    screen = _Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    lm = load_lm(str(target), device=torch.device("cpu"), dtype=torch.float64, attention_name="auto")
    settings = Settings(method="prompt_lookup", max_new_tokens=24)
    conversation = Conversation(lm, settings, target_is_demo=False)
    conversation.measure_pace()
    talk = Talk(conversation, Terminal(conversation), default_file=Path)
    talk.handle("abc abc abc abc abc abc abc")
    text = screen.getvalue()
    assert "◆" in text or "¹" in text
    assert ("\x1b[38;2" in text or "\x1b[48;2" in text or ";48;2" in text) is colours
    assert "\x1b[" in text


def test_a_viewer_talks_over_pipes_and_the_end_of_the_input_is_the_end(target):
    """The process as the Chat screen starts it: ready, tokens, ended, idle; a wrong line is a note."""
    words = [
        "chat",
        "--target",
        str(target),
        "--method",
        "prompt_lookup",
        "--max-new-tokens",
        "8",
        "--dtype",
        "float64",
    ]
    talking = Talking(words)
    seen: list[dict] = []

    def wait_for(kind: str) -> dict:
        import time

        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            for event in talking.read():
                seen.append(event)
                if event["e"] == kind:
                    return event
            assert not talking.is_over, talking.last_words()
            time.sleep(0.05)
        raise AssertionError(f"no {kind}: {seen}")

    ready = wait_for("ready")
    assert ready["settings"]["method"] == "prompt_lookup" and ready["pace"]["num_steps"] == 32
    talking.send("abc abc abc")
    wait_for("idle")
    kinds = [event["e"] for event in seen]
    assert kinds.index("tokens") < kinds.index("ended") < kinds.index("changed")
    ended = next(event for event in seen if event["e"] == "ended")
    shown = [token for event in seen if event["e"] == "tokens" for token in event["tokens"]]
    assert len(shown) == ended["figures"]["num_tokens"] == 8
    assert {source for _, source, _ in shown} <= {"plain", "drafted", "bonus"}
    talking.send("/set nothing")
    assert wait_for("note")["style"] == "bad"
    talking.close()
    assert talking.is_over


def test_the_error_that_ends_the_process_is_what_the_viewer_can_show():
    talking = Talking(["chat", "--method", "prompt_lokup"])
    talking._process.wait(timeout=120)
    assert talking.is_over and talking.last_words().startswith("✗") and "prompt_lokup" in talking.last_words()
    talking.close()


def test_options_that_are_wrong_are_refused_before_torch(specbench):
    assert "did you mean" in specbench("chat", "--method", "prompt_lokup").err
    assert specbench("chat", "--set", "suffix.max_tokens=3").code == 2


def test_the_command_is_the_one_that_help_names():
    words = [sys.executable, "-m", "specbench", "chat", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    assert "--system" in done.stdout and "--pipe" not in done.stdout
