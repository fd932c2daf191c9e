"""An error as people and scripts see it: what / where / try on stderr, or one JSON object on stdout under `--json`."""

from __future__ import annotations

import sys
import time
import traceback

from specbench import paths
from specbench.cli.text import show_json, visible
from specbench.errors import SpecbenchError


def show(error: SpecbenchError, *, as_json: bool, exit_code: int | None = None) -> None:
    """Print the error. exit_code: where it is not the one of the error's kind."""
    if as_json:
        facts = error.as_dict() | ({} if exit_code is None else {"exit_code": exit_code})
        show_json(facts, indent=None)
        return
    lines = [f"✗ {_indented(error.what)}"]
    for label, text in (("where", error.where), ("try  ", error.try_)):
        if text:
            lines.append(f"  {label}  {_indented(text)}")
    note("\n".join(lines))


def note(text: str) -> None:
    """Narration: complete lines on stderr."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def print_traceback(error: BaseException) -> None:
    """The whole traceback, for `--debug`."""
    note("".join(traceback.format_exception(error)).rstrip())


def write_traceback(error: BaseException) -> str:
    """Write the traceback beside the cache and return the file's name; on a disk that refuses, print it instead."""
    path = paths.cache_dir() / "failures" / time.strftime("%Y%m%dT%H%M%SZ.txt", time.gmtime())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:
        print_traceback(error)
        return ""
    return str(path)


def _indented(text: str) -> str:
    """Later lines stand under the first; control characters of names and model text are made visible."""
    return "\n         ".join(visible(line) for line in text.splitlines())
