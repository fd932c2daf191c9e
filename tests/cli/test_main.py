"""The front end: help, exit codes, errors as text and as JSON, what a crash and a Ctrl-C leave behind."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from specbench import registry, suite
from specbench.errors import CheckFailed, EnvironmentFailed, SpecbenchError, UsageError

COMMANDS = [
    (),
    ("run",),
    ("generate",),
    ("results",),
    ("results", "ls"),
    ("results", "show"),
    ("results", "compare"),
    ("results", "export"),
    ("results", "import"),
    ("results", "ingest"),
    ("leaderboard",),
    ("suites",),
    ("suites", "ls"),
    ("suites", "show"),
    ("suites", "fetch"),
    ("methods",),
    ("methods", "ls"),
    ("methods", "show"),
    ("methods", "check"),
    ("doctor",),
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_commands_help_ends_with_two_examples(
    specbench: Callable[..., Any], words: tuple[str, ...], option: str
) -> None:
    ran = specbench(*words, option)
    assert ran.code == 0 and ran.err == ""
    _, _, after = ran.out.partition("Examples:\n")
    examples = [line for line in after.splitlines() if line.startswith("    specbench ")]
    assert len(examples) == 2, ran.out


@pytest.mark.parametrize("group", ["results", "suites", "methods"])
def test_a_groups_help_says_each_command_to_the_end(specbench: Callable[..., Any], group: str) -> None:
    """Cut with dots, half of them said nothing: `Write a run as files: answers for other tools, the summary, a...`"""
    listed = specbench(group, "--help").out.partition("Commands:\n")[2].partition("Examples:")[0]
    assert listed.strip() and "..." not in listed


def test_no_command_prints_the_help(specbench: Callable[..., Any]) -> None:
    ran = specbench()
    assert ran.code == 0 and ran.out.startswith("Usage: specbench")


def test_version_is_the_packages(specbench: Callable[..., Any]) -> None:
    from specbench import __version__

    assert specbench("--version").out == f"specbench {__version__}\n"


def test_an_unknown_command_names_the_nearest(specbench: Callable[..., Any]) -> None:
    ran = specbench("leaderbord")
    assert ran.code == 2 and "'leaderboard'" in ran.err and ran.out == ""


def test_an_unknown_option_names_the_nearest(specbench: Callable[..., Any]) -> None:
    ran = specbench("run", "demo", "--temprature", "1")
    assert ran.code == 2 and "--temperature" in ran.err


def test_a_usage_error_has_what_where_and_try(specbench: Callable[..., Any]) -> None:
    lines = specbench("run", "demo", "--limit", "0").err.splitlines()
    assert lines[0].startswith("✗ --limit 0 is out of range")
    assert lines[1].split() == ["where", "--limit"]
    assert lines[2].split()[0] == "try"


def test_errors_under_json_are_one_json_object_on_stdout(specbench: Callable[..., Any]) -> None:
    for args in (("run", "demo", "--limit", "0", "--json"), ("run", "--no-such", "--json"), ("nothing", "--json")):
        ran = specbench(*args)
        facts = json.loads(ran.out)
        assert ran.code == facts["exit_code"] == 2
        assert facts["what"] and facts["try"] and "where" in facts


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make `specbench methods` fail deep inside."""

    def raising(**_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(registry, "cards", raising)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CheckFailed("not lossless"), 1),
        (UsageError("wrong"), 2),
        (EnvironmentFailed("no weights"), 3),
        (PermissionError(errno.EACCES, "Permission denied", "/somewhere"), 3),
        (OSError(errno.ENOSPC, "No space left on device", "/full/disk"), 3),
        (OSError(errno.EROFS, "Read-only file system", "/ro"), 3),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_exit_codes(
    specbench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    fail_with(monkeypatch, error)
    ran = specbench("methods")
    assert ran.code == code
    assert "Traceback" not in ran.err
    if isinstance(error, OSError):
        assert str(error.filename) in ran.err and "--store" in ran.err
    if isinstance(error, KeyboardInterrupt):
        assert ran.err.count("interrupted") == 1 and "kept" not in ran.err  # nothing was measured: nothing to keep


@pytest.mark.parametrize("place", ["", "references", "references/a/b.jsonl", ".."])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_what_the_cache_folder_refuses_is_remedied_by_another_one(
    specbench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, place: str
) -> None:
    """No option of a command moves it; folders above it fail where it is to be made."""
    monkeypatch.delenv("SPECBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / ".cache"))
    refused = os.path.normpath(tmp_path / "home" / ".cache" / "specbench" / place)
    fail_with(monkeypatch, OSError(code, "refused", refused))
    ran = specbench("methods")
    assert ran.code == 3 and refused in ran.err and "SPECBENCH_CACHE=DIR" in ran.err and "--store" not in ran.err


def test_a_defect_is_one_message_and_a_traceback_in_a_file(
    specbench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(monkeypatch, ZeroDivisionError("by zero"))
    ran = specbench("methods")
    assert ran.code == 1 and "ZeroDivisionError: by zero" in ran.err and "Traceback" not in ran.err
    [file] = (Path(os.environ["SPECBENCH_CACHE"]) / "failures").glob("*.txt")
    assert str(file) in ran.err and "Traceback" in file.read_text()


def test_a_defect_under_json_is_json_too(specbench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, ZeroDivisionError("by zero"))
    ran = specbench("methods", "--json")
    assert ran.code == json.loads(ran.out)["exit_code"] == 1


def test_debug_shows_the_traceback(specbench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, ZeroDivisionError("by zero"))
    assert "Traceback" in specbench("--debug", "methods").err
    fail_with(monkeypatch, SpecbenchError("known"))
    assert "Traceback" in specbench("--debug", "methods").err


def test_a_defect_on_a_disk_that_takes_no_file_still_tells(
    specbench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    monkeypatch.setenv("SPECBENCH_CACHE", str(blocked))
    fail_with(monkeypatch, ZeroDivisionError("by zero"))
    ran = specbench("methods")
    assert ran.code == 1 and "Traceback" in ran.err


def test_control_characters_in_names_never_reach_the_terminal(specbench: Callable[..., Any]) -> None:
    ran = specbench("run", "demo", "--device", "\x1b[31mred\u202e")
    assert ran.code == 2 and "\x1b" not in ran.err and "\u202e" not in ran.err


def shell(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "specbench", *args],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **variables},
    )


_PROBE = """
import atexit, sys
def report():
    heavy = sorted({"torch", "transformers", "textual"} & set(sys.modules))
    print("LOADED", heavy, file=sys.stderr)
atexit.register(report)
from specbench.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("run", "--help"),
        ("methods",),
        ("methods", "--json"),
        ("suites",),
        ("results", "ls"),
        ("results", "--help"),
        ("adapt", "ls"),
        ("adapt", "--help"),
        ("leaderboard", "--help"),
        ("doctor", "--help"),
    ],
    ids=" ".join,
)
def test_looking_never_loads_torch(words: tuple[str, ...]) -> None:
    """Torch costs 2 s: a list must not."""
    ran = subprocess.run([sys.executable, "-c", _PROBE, *words], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "LOADED []" in ran.stderr


def test_listing_the_versions_of_an_adapter_store_never_loads_torch(tmp_path: Path) -> None:
    """Their lineage is JSON; only weights are tensors."""
    (tmp_path / "versions" / "0001").mkdir(parents=True)
    lineage = {"specbench": 1, "base": "tiny-draft", "base_hash": "a" * 64, "num_positions": 321, "created": "2026"}
    (tmp_path / "versions" / "0001" / "lineage.json").write_text(json.dumps(lineage))
    words = ("adapt", "ls", "--store", str(tmp_path))
    ran = subprocess.run([sys.executable, "-c", _PROBE, *words], capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and "321" in ran.stdout
    assert ran.stderr.strip() == "LOADED []"


def test_help_loads_neither_rich_nor_pydantic_nor_duckdb() -> None:
    """What keeps `specbench --help` under 0.2 s."""
    probe = _PROBE.replace('"torch"', '"torch", "rich", "pydantic", "duckdb", "plotly", "yaml"')
    ran = subprocess.run([sys.executable, "-c", probe, "--help"], capture_output=True, text=True, check=False)
    assert "LOADED []" in ran.stderr


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = f"{sys.executable} -m specbench suites --json | head -c 1"
    ran = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and ran.stderr == ""


def test_an_ascii_locale_is_no_crash() -> None:
    ran = shell("run", "demo", "--limit", "0", LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert ran.returncode == 2 and "out of range" in ran.stderr


def test_the_suites_listing_needs_no_network(specbench: Callable[..., Any]) -> None:
    assert set(suite.packaged_names()) <= {each["name"] for each in json.loads(specbench("suites", "--json").out)}
