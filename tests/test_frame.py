"""The frame: the wheel holds what the program looks for, pins cover what is declared, make says what to do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def declared() -> list[str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["dev"]]


UNPINNED = {"triton"}
"""CUDA builds of torch demand a version of their own; on a CPU it only interprets kernels for the tests."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned_without_build_tags_or_hosts() -> None:
    lines = [line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    pinned = {normal(line.partition("==")[0]) for line in lines}
    for requirement in declared():
        assert normal(re.split(r"[<>=\[;! ]", requirement)[0]) in pinned | UNPINNED, requirement


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: setuptools leaves a build folder behind."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("specbench", "methods", "suites"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source / name)
    pip_wheel = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*pip_wheel, "-w", str(out), str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [built] = out.glob("*.whl")
    return built


def test_the_wheel_holds_code_cards_suites_pages_and_weights(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    for folder, pattern, where in (
        ("specbench", "**/*.py", "specbench"),
        ("specbench/store", "*.sql", "specbench/store"),
        ("specbench/report", "*.*", "specbench/report"),
        ("specbench/demo", "**/*.*", "specbench/demo"),
        ("methods", "*/method.yaml", "methods"),
        ("methods", "**/*.py", "methods"),
        ("suites", "*.yaml", "specbench/suites"),
    ):
        root = REPOSITORY / folder
        found = [path for path in root.glob(pattern) if path.is_file() and "__pycache__" not in path.parts]
        assert found, f"nothing in {folder} matches {pattern}"
        missing = [str(path) for path in found if f"{where}/{path.relative_to(root).as_posix()}" not in inside]
        assert not missing


def test_an_installed_wheel_finds_its_methods_and_suites_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = (
        "from specbench import paths, registry, suite\n"
        f"assert paths.PACKAGE.is_relative_to({str(site)!r}), paths.PACKAGE\n"
        "print(*suite.packaged_names())\n"
        "print(*(f'{entry.name}{entry.error}' for entry in registry.cards() if entry.source == 'specbench'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "PYTHONPATH": str(site)},
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    suites, methods = done.stdout.splitlines()
    assert {"demo", "mtbench", "gsm8k"} <= set(suites.split())
    assert methods.split() == sorted(path.parent.name for path in REPOSITORY.glob("methods/*/method.yaml"))


def make(folder: Path, path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`make` with only the programs in `path`."""
    program = shutil.which("make")
    assert program is not None
    return subprocess.run(
        [program, *words], cwd=folder, env={"PATH": str(path)}, capture_output=True, text=True, check=False
    )


@pytest.fixture
def bare(tmp_path: Path) -> tuple[Path, Path]:
    """A checkout of the frame alone, and a PATH with a shell's tools and no Python."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    checkout, programs = tmp_path / "checkout", tmp_path / "bin"
    checkout.mkdir()
    programs.mkdir()
    for name in ("Makefile", "pyproject.toml", "setup.py", "constraints.txt"):
        shutil.copy(REPOSITORY / name, checkout / name)
    for name in ("sh", "cat", "cksum", "cut", "rm", "touch"):
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    return checkout, programs


def fake_python(programs: Path, name: str, *, version: str, accepts: str) -> None:
    """A Python that answers --version, and exits 0 for `-c` scripts that contain one of the accepted words."""
    file = programs / name
    file.write_text(
        f'#!/bin/sh\ncase "$*" in --version) echo "Python {version}";; {accepts}) exit 0;; *) exit 1;; esac\n'
    )
    file.chmod(0o755)


def test_make_without_any_python_says_what_to_install(bare: tuple[Path, Path]) -> None:
    ran = make(*bare, "demo")
    assert ran.returncode != 0
    assert "needs Python 3.11 or newer" in ran.stderr and "apt install" in ran.stderr and "brew install" in ran.stderr


def test_make_with_an_old_python_names_its_version(bare: tuple[Path, Path]) -> None:
    fake_python(bare[1], "python3", version="3.9.2", accepts="nothing")
    ran = make(*bare, "test")
    assert ran.returncode != 0 and "Python 3.9.2" in ran.stderr and "make PYTHON=" in ran.stderr
    assert ran.stderr.count("make PYTHON=/path/to/python3.11 test") == 1


def test_make_takes_the_newest_python_that_is_new_enough(bare: tuple[Path, Path]) -> None:
    fake_python(bare[1], "python3", version="3.9.2", accepts="nothing")
    fake_python(bare[1], "python3.12", version="3.12.1", accepts="*version_info*")
    ran = make(*bare, "test")
    assert "python3.12 cannot make virtual environments" in ran.stderr and "apt install python3-venv" in ran.stderr


def test_the_test_runner_names_what_it_skipped_in_its_last_line(tmp_path: Path) -> None:
    """With an empty PATH there is no browser and no tmux, whatever this machine has."""
    shutil.copy(REPOSITORY / "tests" / "conftest.py", tmp_path / "conftest.py")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  chromium: c\n  tmux: t\n  shared: s\n")
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.chromium\ndef test_page(): pass\n"
        "@pytest.mark.tmux\ndef test_screen(): pass\n"
        "def test_browser(chromium): pass\n"
        "def test_plain(): pass\n"
    )
    environment = {**os.environ, "PATH": str(tmp_path), "SPECBENCH_SHARED": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    ran = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
    last, before = ran.stdout.splitlines()[-1], ran.stdout.splitlines()[-2]
    assert "1 passed, 3 skipped" in before
    assert last.startswith("tests not run here: 2 need chromium (apt install chromium")
    assert "1 need tmux (apt install tmux / brew install tmux)" in last


def run_ci(programs: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`.ci/run` with a `make` that fails at the targets named in FAILS, and only the programs in `programs`."""
    programs.mkdir(exist_ok=True)
    for name in ("bash", "dirname"):
        found = shutil.which(name)
        assert found is not None
        if not (programs / name).exists():
            (programs / name).symlink_to(found)
    program = programs / "make"
    program.write_text(
        '#!/bin/bash\necho "made $*"\nfor target in $FAILS; do [[ $* == *$target* ]] && exit 7; done\nexit 0\n'
    )
    program.chmod(0o755)
    return subprocess.run(
        [str(programs / "bash"), str(REPOSITORY / ".ci" / "run")],
        env={"PATH": str(programs), "FAILS": "", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_ci_fails_without_browser_and_tmux_unless_told_by_hand(tmp_path: Path) -> None:
    refused = run_ci(tmp_path / "bin")
    assert refused.returncode == 1 and "made" not in refused.stdout
    assert "missing: chromium, tmux" in refused.stderr and "SPECBENCH_ALLOW_SKIP=1" in refused.stderr
    assert run_ci(tmp_path / "bin", SPECBENCH_ALLOW_SKIP="1").returncode == 0


@pytest.mark.parametrize(("fails", "code"), [("", 0), ("lint", 1), ("test", 7), ("lint test", 7), ("install", 1)])
def test_ci_runs_lint_and_tests_and_passes_their_failure_on(tmp_path: Path, fails: str, code: int) -> None:
    ran = run_ci(tmp_path / "bin", SPECBENCH_ALLOW_SKIP="1", FAILS=fails)
    assert ran.returncode == code
    if fails != "install":
        assert "lint" in ran.stdout and ran.stdout.splitlines()[-1].endswith("test")


def test_ci_is_executable() -> None:
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)
