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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specbench.errors import EnvironmentFailed
from specbench.manifest import Manifest
from specbench.tui import spawning

_MOST_BYTES = 1 << 18
"""Of one look."""


def words_for(manifest: Manifest | None, *, store: Path | None) -> list[str]:
    """The command that talks to a run's target with its first method that drafts; without a run, to the demo."""
    words = ["chat"]
    if manifest is None:
        words += ["--target", "demo", "--method", "prompt_lookup"]
    else:
        recorded = manifest.provenance.get("request")
        request: Mapping[str, Any] = recorded if isinstance(recorded, dict) else {}
        words += ["--target", str(request.get("target") or manifest.target.name)]
        drafting = [method for method in manifest.methods if method.kind != "baseline" and method.is_ranked]
        method = drafting[0].name if drafting else "autoregressive"
        words += ["--method", method]
        for owner, name, value in request.get("settings") or ():
            if owner == method:
                words += ["--set", f"{owner}.{name}={value}"]
        for option in ("device", "dtype", "threads", "quantisation"):
            if request.get(option) not in (None, "auto", "none"):
                words += [f"--{option}", str(request[option])]
        for folder in request.get("methods_dirs") or ():
            words += ["--methods-dir", str(folder)]
    return words + ([] if store is None else ["--store", str(store)])


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
