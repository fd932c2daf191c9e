"""Triton's interpreter looks its language through at every call of a device function, a third of what it takes: here
what is to be looked at is found once."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import pytest


@cache
def _builtins_of(package: Any) -> tuple[str, ...]:
    import triton.language as tl

    return tuple(name for name, member in inspect.getmembers(package) if tl.core.is_builtin(member))


@pytest.fixture(autouse=True)
def _language_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where this Triton has the function; what it patches stays the same."""
    try:
        import triton.language as tl
        from triton.runtime import interpreter
    except ImportError:
        return
    if not hasattr(interpreter, "_patch_builtin") or not hasattr(interpreter, "_patch_attr"):
        return
    for package in (tl, tl.core, tl.tensor, tl.math, tl.core.tensor, tl.core.tensor_descriptor_base):
        _builtins_of(package)  # before anything is patched: what is patched is no builtin any more

    def patch(package: Any, builder: Any, scope: Any) -> None:
        for name in _builtins_of(package):
            member = getattr(package, name)
            if tl.core.is_builtin(member):
                interpreter._patch_attr(package, name, member, builder, scope)

    monkeypatch.setattr(interpreter, "_patch_builtin", patch)
