"""`main`: run one command and turn whatever comes out of it into an exit code and, where it failed, one message.

Exit codes: 0 ok, 1 a check failed (or a defect of specbench), 2 usage or configuration, 3 environment, 130 interrupted.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from typer import Abort, TyperException

from specbench import paths
from specbench.cli import failures
from specbench.cli.app import root_command
from specbench.errors import EnvironmentFailed, SpecbenchError, UsageError

_YOUNG = 20_000
"""Objects that come into being between two garbage collections. Python's own 700 make loading torch and transformers,
a million objects that all stay, 0.9 s of 8 longer (a run of two questions, measured); what is timed is never
collected in."""

_ENVIRONMENT = {
    errno.EACCES: ("no permission for", "--store DIR and -o FILE choose another place; ls -ld shows who may write"),
    errno.EPERM: ("no permission for", "--store DIR and -o FILE choose another place; ls -ld shows who may write"),
    errno.EROFS: ("read-only file system:", "--store DIR and -o FILE choose another place"),
    errno.ENOSPC: ("the disk is full:", "df -h; --store DIR chooses another place; what was written stays usable"),
    errno.EDQUOT: ("the disk quota is used up:", "--store DIR chooses another place; what was written stays usable"),
}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The `specbench` command. argv: without the program's name; default sys.argv."""
    gc.set_threshold(_YOUNG)
    for stream in (sys.stdout, sys.stderr):
        # An ASCII or broken locale must not turn a printed name into a crash.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    args = list(sys.argv[1:] if argv is None else argv)
    code = _run(args)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _mute_stdout()
    sys.exit(code)


def _run(args: list[str]) -> int:
    as_json = "--json" in args
    try:
        result = root_command().main(args=args, prog_name="specbench", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except SpecbenchError as error:
        return _fail(error, args, as_json=as_json)
    except (Abort, KeyboardInterrupt):
        failures.note("interrupted before there was a result")
        return 130
    except TyperException as error:
        return _fail(_usage_error(error), args, as_json=as_json)
    except BrokenPipeError:
        # The reader (`| head`) has what it wanted.
        _mute_stdout()
        return 0
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):
            _mute_stdout()
            return 0
        raise
    except OSError as error:
        if error.errno not in _ENVIRONMENT:
            return _crash(error, args, as_json=as_json)
        what, remedy = _ENVIRONMENT[error.errno]
        place = str(error.filename or "")
        if place and _is_in_cache(Path(place)):
            remedy = "SPECBENCH_CACHE=DIR specbench … keeps its cache in another place, one that you may write to"
        known = EnvironmentFailed(f"{what} {place or error.strerror}", where=place, try_=remedy)
        return _fail(known, args, as_json=as_json, cause=error)
    # The front end is where a defect of ours becomes a message.
    except Exception as error:  # noqa: BLE001
        return _crash(error, args, as_json=as_json)


def _is_in_cache(place: Path) -> bool:
    """A part of the cache folder, or a folder above it that had to be made for it: no option of a command moves it."""
    cache = paths.cache_dir().absolute()
    return place.absolute().is_relative_to(cache) or cache.is_relative_to(place.absolute())


def _fail(error: SpecbenchError, args: list[str], *, as_json: bool, cause: BaseException | None = None) -> int:
    failures.show(error, as_json=as_json)
    if "--debug" in args:
        failures.print_traceback(cause or error)
    return error.exit_code


def _crash(error: Exception, args: list[str], *, as_json: bool) -> int:
    """A defect of specbench: one message, the traceback in a file (or here, under --debug)."""
    where = "" if "--debug" in args else failures.write_traceback(error)
    known = SpecbenchError(
        f"specbench failed unexpectedly: {type(error).__name__}: {error}",
        where=where,
        try_="the same command as `specbench --debug …` shows the traceback; please report it",
    )
    failures.show(known, as_json=as_json, exit_code=1)
    if "--debug" in args:
        failures.print_traceback(error)
    return 1


def _usage_error(error: TyperException) -> UsageError:
    """A wrong command or option as parsed by Typer, in the shape of every other error."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "specbench"
    return UsageError(error.format_message(), where=path, try_=f"{path} --help")


def _mute_stdout() -> None:
    """Nobody reads stdout any more: what is left in its buffer goes nowhere, instead of failing at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
