"""The viewer's end of a conversation: `specbench chat` as a process, spoken to over pipes. No Textual, no torch.

The protocol is that of `specbench.cli.chat_pipe`: a JSON object a line. Reading never blocks.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from specbench.errors import EnvironmentFailed
from specbench.manifest import Manifest, MethodRecord
from specbench.tui import spawning

_MOST_BYTES = 1 << 18
"""Of one look."""


def words_for(manifest: Manifest | None, *, store: Path | None) -> list[str]:
    """The command that talks to a run's target with its first method that drafts, under all the options of that row;
    without a run, to the demo."""
    words = ["chat"]
    if manifest is None:
        words += ["--target", "demo", "--method", "prompt_lookup"]
    else:
        recorded = manifest.provenance.get("request")
        request: Mapping[str, Any] = recorded if isinstance(recorded, dict) else {}
        words += ["--target", str(request.get("target") or manifest.target.name)]
        row = next((each for each in manifest.methods if each.kind != "baseline" and each.is_ranked), None)
        words += ["--method", row.name if row is not None else "autoregressive"]
        words += _settings(row, request) if row is not None else []
        for option in ("device", "dtype", "threads", "quantisation"):
            if request.get(option) not in (None, "auto", "none"):
                words += [f"--{option}", str(request[option])]
        for folder in request.get("methods_dirs") or ():
            words += ["--methods-dir", str(folder)]
    return words + ([] if store is None else ["--store", str(store)])


def _settings(row: MethodRecord, request: Mapping[str, Any]) -> list[str]:
    """`--set` for every option of the row, wherever it came from: --set, --grid, --variant, or a default of then. Those
    of a wrapped method stand among them under its name."""
    typed = _typed_paths(request)
    words: list[str] = []
    for key, value in row.options.items():
        owner, dot, option = key.rpartition(".")
        owner = owner if dot else row.name
        # Nothing is how the command line leaves an option as it is: it takes no empty value.
        if value is not None and value != "":
            words += ["--set", f"{owner}.{option}={_findable(str(value), typed.get((owner, option), ()))}"]
    return words


def _typed_paths(request: Mapping[str, Any]) -> dict[tuple[str, str], list[str]]:
    """By method and option, the paths that were typed; the request holds them in full, a row as they were typed."""
    found: dict[tuple[str, str], list[str]] = {}
    said = [(owner, option, value) for owner, option, value in request.get("settings") or ()]
    said += [(owner, option, value) for owner, option, values in request.get("grid") or () for value in values]
    said += [
        (owner, option, value) for owner, options, *_ in request.get("variants") or () for option, value in options
    ]
    for owner, option, value in said:
        if PurePath(value).is_absolute():
            found.setdefault((owner, option), []).append(value)
    return found


def _findable(value: str, typed: Sequence[str]) -> str:
    """The typed path that ends as the value does: this process may stand in another folder than the run did."""
    end = tuple(part for part in PurePath(value).parts if part != "..")
    return next((path for path in typed if end and PurePath(path).parts[-len(end) :] == end), value)


class Talking:
    """A started process. words: as from `words_for`."""

    def __init__(self, words: list[str]) -> None:
        self.command = shlex.join(["specbench", *words])
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the conversation
        self._rest = b""
        # A session of its own: the terminal's Ctrl-C is not meant for it. It ends when its input does.
        self._process = spawning.popen(
            [sys.executable, "-m", "specbench", *words, "--pipe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def send(self, line: str) -> None:
        """A message or a `/command`. Raises EnvironmentFailed where nobody listens any more."""
        self._write({"line": line})

    def stop(self) -> None:
        """The answer under way ends at its next step."""
        self._write({"stop": True})

    def _write(self, body: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(body).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise EnvironmentFailed(f"the conversation's process is gone: {self.last_words()}") from error

    def read(self) -> list[dict[str, Any]]:
        """What was said since the last look."""
        assert self._process.stdout is not None
        try:
            data = os.read(self._process.stdout.fileno(), _MOST_BYTES)
        except BlockingIOError:
            return []
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    @property
    def is_over(self) -> bool:
        """The process has ended."""
        return self._process.poll() is not None

    def last_words(self) -> str:
        """The error it ended with, on one line."""
        self._complaints.seek(0)
        lines = self._complaints.read().decode("utf-8", errors="replace").strip().splitlines()
        first = next((place for place, row in enumerate(lines) if row.startswith("✗")), len(lines) - 1)
        return " · ".join(row.strip() for row in lines[max(0, first) : first + 3]) or "it said nothing"

    def close(self) -> None:
        """The end of the input; a step that takes long is not waited for."""
        assert self._process.stdin is not None and self._process.stdout is not None
        # It may have gone before: what was still to be written to it is of no use then.
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.terminate()
        self._process.stdout.close()
        self._process.wait()
        self._complaints.close()
