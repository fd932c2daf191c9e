"""One table of keys: bindings, footer, help and palette come from it, and every key does something."""

from __future__ import annotations

import importlib

import pytest
from textual.binding import Binding

from specbench.tui import actions
from specbench.tui.app import _LATER, SpecbenchApp
from specbench.tui.lines import plain, plain_text, width_of
from specbench.tui.views.base import View
from specbench.tui.views.home import HomeView
from specbench.tui.views.launch import LaunchForm


def _view(name: str) -> type[View]:
    if name == "home":
        return HomeView
    module, cls = _LATER[name]
    found = getattr(importlib.import_module(f"specbench.tui.views.{module}"), cls)
    assert issubclass(found, View)
    return found


@pytest.mark.parametrize("name", actions.EVERYWHERE)
def test_every_action_of_a_view_is_a_method_of_its_class(name: str) -> None:
    """A key that does nothing must not exist."""
    missing = [action.name for action in actions.actions_of(name) if not hasattr(_view(name), f"action_{action.name}")]
    assert missing == []


@pytest.mark.parametrize("name", actions.EVERYWHERE)
def test_every_view_binds_what_the_table_gives_it(name: str) -> None:
    bound = {key: binding.action for binding in _view(name).BINDINGS for key in binding.key.split(",")}  # type: ignore[union-attr]
    for action in actions.actions_of(name):
        for key in action.keys:
            assert bound[key] == action.name


@pytest.mark.parametrize("name", actions.EVERYWHERE)
def test_no_key_means_two_things_in_one_view(name: str) -> None:
    keys = [key for action in actions.actions_of(name) for key in action.keys]
    assert len(keys) == len(set(keys))


def test_a_key_means_one_thing_everywhere_but_space() -> None:
    """space plays in time and marks in lists, as in every player and every list."""
    meanings: dict[str, set[str]] = {}
    for action in actions.ACTIONS:
        for key in action.keys:
            meanings.setdefault(key, set()).add(action.name)
    assert {key for key, names in meanings.items() if len(names) > 1} == {"space"}


def test_the_form_gives_no_key_a_second_meaning_and_none_that_does_nothing() -> None:
    """Letters are typed there: its keys are its own or mean what they mean on every screen."""
    bound = [each for each in LaunchForm.BINDINGS if isinstance(each, Binding)]
    keys = [key for each in bound for key in each.key.split(",")]
    assert len(keys) == len(set(keys)) and len(bound) == len(LaunchForm.BINDINGS)
    for each in bound:
        owner, _, name = each.action.rpartition(".")
        assert hasattr(SpecbenchApp if owner == "app" else LaunchForm, f"action_{name}"), each
    meanings = {key: action.name for action in actions.ACTIONS for key in action.keys}
    assert all(meanings.get(key, each.action) == each.action for each in bound for key in each.key.split(","))


@pytest.mark.parametrize("width", [80, 100, 120, 200])
@pytest.mark.parametrize("name", actions.EVERYWHERE)
def test_the_footer_fits_and_ends_with_help(name: str, width: int) -> None:
    row = actions.footer(name, width)
    assert width_of(row) <= width
    assert plain(row).rstrip().endswith("? Help  ^p All")


@pytest.mark.parametrize("name", actions.EVERYWHERE)
def test_help_names_every_action(name: str) -> None:
    words = plain_text(actions.help_lines(name))
    assert all(action.help in words for action in actions.actions_of(name))


def test_no_binding_needs_what_terminals_swallow() -> None:
    """tmux, macOS and editors keep alt and ctrl+shift for themselves."""
    keys = [key for action in actions.ACTIONS for key in action.keys]
    assert not [key for key in keys if "alt" in key or "shift+" in key]
