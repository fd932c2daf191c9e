"""Pieces of text: what each token added, however its bytes are cut."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specbench.paths import DEMO_MODELS
from specbench.tui.detokenise import Pieces, find_tokenizer

_DEMO = find_tokenizer("demo", {}).tokenizer


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40).filter(lambda text: text.isprintable()))
def test_pieces_join_to_the_text(text: str) -> None:
    """Emoji and CJK are several byte tokens: none may be lost or doubled."""
    assert _DEMO is not None
    ids = _DEMO.encode(text, add_special_tokens=False).ids
    pieces = Pieces(_DEMO)
    assert "".join(pieces.all(ids)) + pieces.rest() == _DEMO.decode(ids, skip_special_tokens=False)
    assert pieces.rest() == ""


def test_bytes_that_never_become_a_character_do_not_hold_the_rest_back() -> None:
    """A model may write broken UTF-8 for ever; what stands behind it must still appear."""
    assert _DEMO is not None
    snowman = _DEMO.encode("☃", add_special_tokens=False).ids
    letter = _DEMO.encode("a", add_special_tokens=False).ids
    broken = [snowman[0]] * 9 + letter
    assert "".join(Pieces(_DEMO).all(broken)).endswith("a")


def test_without_a_tokenizer_tokens_are_numbers_and_the_reason_is_said(tmp_path: Path) -> None:
    found = find_tokenizer("nobody/nothing", {"target": str(tmp_path)})
    assert found.tokenizer is None and "nobody/nothing" in found.why_not
    assert Pieces(None).all([17, -1]) == ["⟨17⟩", "…"]


def test_a_damaged_tokenizer_is_said_and_not_raised(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    found = find_tokenizer("x", {"target": str(tmp_path)})
    assert found.tokenizer is None and "cannot be read" in found.why_not


def test_the_hubs_cache_is_read_by_its_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer.json").write_bytes((DEMO_MODELS["demo"] / "tokenizer.json").read_bytes())
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert find_tokenizer("org/name", {"target": "org/name"}).tokenizer is not None


def test_an_answer_cut_inside_a_character_shows_what_there_is_of_it() -> None:
    assert _DEMO is not None
    ids = _DEMO.encode("a☃", add_special_tokens=False).ids
    pieces = Pieces(_DEMO)
    assert pieces.all(ids[:-1])[-1] == ""
    assert pieces.rest() == "\ufffd"
