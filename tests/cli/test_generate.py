"""`specbench generate`: the prompt reaches the engine whole, the answer cannot command the terminal."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

import specbench as package


@dataclasses.dataclass
class Answer:
    """The fields of specbench.api.Answer that the command prints."""

    text: str = "Eighty-four."
    num_new_tokens: int = 7
    num_steps: int = 3
    total_s: float = 0.5
    finish_reason: str = "stop_id"


class FakeApi(types.ModuleType):
    """specbench.api without torch."""

    def __init__(self) -> None:
        super().__init__("specbench.api")
        self.answer = Answer()
        self.asked: dict[str, Any] = {}

    def generate(self, prompt: str, **options: Any) -> Answer:
        self.asked = {"prompt": prompt, **options}
        return self.answer


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    fake = FakeApi()
    monkeypatch.setitem(sys.modules, "specbench.api", fake)
    monkeypatch.setattr(package, "api", fake, raising=False)
    return fake


def test_the_answer_goes_to_stdout_and_its_cost_to_stderr(specbench: Callable[..., Any], api: FakeApi) -> None:
    ran = specbench("generate", "12 x 7?", "--method", "draft_model", "--set", "draft_model.model=a=b", "--top-k", "5")
    assert ran.code == 0 and ran.out == "Eighty-four.\n"
    assert "7 tokens in 0.50 s and 3 steps" in ran.err
    asked = {name: api.asked[name] for name in ("prompt", "method", "options", "top_k", "target")}
    assert asked == {
        "prompt": "12 x 7?",
        "method": "draft_model",
        "options": {"model": "a=b"},
        "top_k": 5,
        "target": "demo",
    }


def test_a_dash_reads_the_prompt_from_stdin(
    specbench: Callable[..., Any], api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nlong\r\nprompt \xc3\xa9")))
    assert specbench("generate", "-").code == 0
    assert api.asked["prompt"] == "a\nlong\nprompt é"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_a_prompt_that_is_not_utf_8_is_a_usage_error_whatever_the_locale(
    specbench: Callable[..., Any], api: FakeApi, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    """From stdin by its bytes, as an argument by the surrogates that Python makes of them."""
    bytes_in = io.TextIOWrapper(io.BytesIO("zwölf é".encode("latin-1")), encoding=encoding, errors="surrogateescape")
    monkeypatch.setattr(sys, "stdin", bytes_in)
    ran = specbench("generate", "-")
    assert ran.code == 2 and "stdin is not UTF-8 text (byte 2)" in ran.err
    assert "iconv -f latin1 -t utf-8 FILE | specbench generate -" in ran.err
    ran = specbench("generate", b"\xc3\xa9 zw\xf6lf".decode("utf-8", "surrogateescape"))
    assert ran.code == 2 and "the prompt is not UTF-8 text (byte 5)" in ran.err and "PROMPT" in ran.err
    assert api.asked == {}


def test_model_text_cannot_command_the_terminal_but_json_keeps_it(specbench: Callable[..., Any], api: FakeApi) -> None:
    api.answer = Answer(text="\x1b]0;owned\x07 [bold]x\u202e")
    assert specbench("generate", "hi").out == "\\x1b]0;owned\\x07 [bold]x\\u202e\n"
    assert json.loads(specbench("generate", "hi", "--json").out)["text"] == "\x1b]0;owned\x07 [bold]x\u202e"


def test_an_empty_prompt_and_a_setting_of_another_method_are_refused(
    specbench: Callable[..., Any], api: FakeApi
) -> None:
    assert specbench("generate", "  ").code == 2
    ran = specbench("generate", "hi", "--set", "prompt_lookup.num_tokens=3")
    assert ran.code == 2 and "--method prompt_lookup" in ran.err
    assert api.asked == {}


def test_the_command_asks_the_real_api_for_nothing_it_does_not_take(
    specbench: Callable[..., Any], api: FakeApi
) -> None:
    """The fake takes anything; the real signature must know every keyword the command uses."""
    import inspect

    assert specbench("generate", "hi").code == 0
    used = set(api.asked)
    del sys.modules["specbench.api"]
    # 2 s of torch, to read a signature.
    from specbench.api import generate

    assert used <= set(inspect.signature(generate).parameters)
