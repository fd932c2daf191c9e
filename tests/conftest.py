"""What every test gets: one torch thread, no network, its own cache, results and configuration folder.

Markers: `chromium` and `tmux` need a program, `shared` needs the data folder; each is skipped with its reason where
it is absent, and the last line of the session names what was skipped and how to get it.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

# Before anything imports torch or huggingface_hub: both read these once, at import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if not Path("/dev/nvidiactl").exists():
    # Kernels run in Triton's interpreter, which it decides when it is imported.
    os.environ["TRITON_INTERPRET"] = "1"

REPOSITORY = Path(__file__).resolve().parent.parent


def _fast_folder() -> Path | None:
    """A folder in memory that is large enough and runs the programs that tests write; None where there is none."""
    folder = Path("/dev/shm")
    if not os.access(folder, os.W_OK):
        return None
    found = os.statvfs(folder)
    return folder if found.f_bavail * found.f_frsize > 4 << 30 and not found.f_flag & os.ST_NOEXEC else None


if folder := _fast_folder():
    # Journals and stores are synced to the disk after every answer: milliseconds each, thousands of times, of folders
    # that are thrown away (0.4 GB in all).
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(folder))

_REMEDY = {
    "chromium": "apt install chromium / brew install --cask chromium",
    "tmux": "apt install tmux / brew install tmux",
    "shared": "set SPECBENCH_SHARED to the data folder",
}


def find_chromium() -> str | None:
    """The browser's executable under any of its usual names."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


def find_shared() -> Path | None:
    """The data folder: $SPECBENCH_SHARED (itself, or its `data`), else `shared/data` beside the checkout."""
    root = Path(os.environ.get("SPECBENCH_SHARED") or REPOSITORY.parent / "shared")
    return next((folder for folder in (root / "data", root) if (folder / "suites").is_dir()), None)


_WORKER_BYTES = 3 << 30
"""What a worker may come to, with the processes that it starts."""

_PRESENT = {"chromium": find_chromium, "tmux": lambda: shutil.which("tmux"), "shared": find_shared}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: a worker more than there are cores, for screens and browsers wait a third of their time; and no more
    than fit into memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores + 1, psutil.virtual_memory().available // _WORKER_BYTES))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run; a test that asks for the `shared` or `chromium` fixture needs no marker."""
    absent = {need for need, find in _PRESENT.items() if find() is None}
    for item in items:
        wanted = {mark.name for mark in item.iter_markers()} | set(getattr(item, "fixturenames", ()))
        for need in sorted(absent & wanted):
            item.add_marker(pytest.mark.skip(reason=f"needs {need}: {_REMEDY[need]}"))


def pytest_unconfigure(config: pytest.Config) -> None:
    """After pytest's own summary, one line: what was not run here, and what would make it run."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput"):
        return
    counts: Counter[str] = Counter()
    for report in reporter.stats.get("skipped", []):
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else ""
        counts.update(need for need in _REMEDY if reason.startswith(f"Skipped: needs {need}:"))
    if counts:
        parts = [f"{number} need {need} ({_REMEDY[need]})" for need, number in sorted(counts.items())]
        print("tests not run here: " + "; ".join(parts))


@pytest.fixture(autouse=True, scope="session")
def loaded_stays() -> Iterator[Callable[[], None]]:
    """Full garbage collections look at what has come since: torch and what is loaded with it are a million objects,
    0.3 s each time, and a run, and a race that is opened, collect before they begin. Both let go of everything at
    their end; here every tenth time. Given is the real letting go."""
    unfreeze, asked = gc.unfreeze, 0

    def seldom() -> None:
        nonlocal asked
        asked += 1
        if asked % 10 == 0:
            unfreeze()

    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)  # as in `specbench` itself
    gc.unfreeze = seldom
    yield unfreeze
    gc.unfreeze = unfreeze


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache, results or configuration."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("SPECBENCH_CACHE", str(home / "cache"))
    monkeypatch.setenv("SPECBENCH_RESULTS", str(home / "results"))
    (home / "config.yaml").write_text("")
    monkeypatch.setenv("SPECBENCH_CONFIG", str(home / "config.yaml"))
    monkeypatch.delenv("SPECBENCH_DATA", raising=False)


@pytest.fixture
def shared() -> Path:
    """The read-only data folder (suites, small models, recorded runs); the test is skipped where there is none."""
    folder = find_shared()
    if folder is None:
        pytest.skip(f"needs shared: {_REMEDY['shared']}")
    return folder


@pytest.fixture
def chromium() -> str:
    """Path of a headless-capable Chromium; the test is skipped where there is none."""
    found = find_chromium()
    if found is None:
        pytest.skip(f"needs chromium: {_REMEDY['chromium']}")
    return found


class Ran(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


def run_inside(capsys: pytest.CaptureFixture[str], words: Sequence[str]) -> Ran:
    """A command in the test's own process."""
    from specbench.cli import main

    with pytest.raises(SystemExit) as ended:
        main(words)
    captured = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return Ran(ended.value.code, captured.out, captured.err)


@pytest.fixture
def specbench(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """`specbench("run", "demo")`, inside the test's process -> exit code, stdout, stderr."""
    return lambda *words: run_inside(capsys, words)
