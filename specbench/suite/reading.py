"""From what a user typed to a checked `SuiteFile`: packaged names, YAML and JSONL paths, errors with file and line.

No torch. YAML is only ever read with the safe loader.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import yaml
from pydantic import ValidationError

from specbench import paths
from specbench.errors import EnvironmentFailed, UsageError, did_you_mean
from specbench.suite.schema import Source, SuiteFile

YAML_SUFFIXES = (".yaml", ".yml")
JSONL_SUFFIXES = (".jsonl",)


def packaged_names() -> tuple[str, ...]:
    """Names of the suites that ship with specbench, sorted."""
    return tuple(sorted(path.stem for path in paths.packaged_suites().glob("*.yaml")))


def resolve_spec(spec: str) -> Path:
    """The file that `spec` means: a YAML or JSONL path, a packaged name, or `suites/NAME.yaml`.

    `suites/NAME.yaml` is the packaged suite where no such file exists, so that the same command works in any folder.
    Raises UsageError naming the nearest suite.
    """
    path = Path(spec)
    if not spec.strip():
        raise UsageError("the suite's name is empty", where="SUITE", try_="specbench suites")
    if len(path.name) > 255:
        raise UsageError(f"no suite has a name of {len(path.name)} characters", try_="specbench suites")
    if path.is_file() and path.suffix in YAML_SUFFIXES + JSONL_SUFFIXES:
        return path
    names = packaged_names()
    is_packaged_path = path.parent == Path("suites") and path.suffix in YAML_SUFFIXES
    name = path.stem if is_packaged_path else spec
    if name in names:
        return paths.packaged_suites() / f"{name}.yaml"
    if path.is_file():
        raise UsageError(
            f"{spec} is neither a YAML nor a JSONL file",
            try_="name it .yaml (a suite) or .jsonl (one question a line: `turns` or `prompt`)",
        )
    if path.is_dir():
        raise UsageError(f"{spec} is a folder, not a suite", try_="specbench suites")
    is_path = len(path.parts) > 1 or path.suffix in YAML_SUFFIXES + JSONL_SUFFIXES
    what = f"there is no file {spec!r}" if is_path else f"there is no suite {spec!r}"
    hint = did_you_mean(path.stem if path.suffix else name, names)
    raise UsageError(f"{what}; {hint}", try_="specbench suites")


def read_text(path: Path) -> str:
    """The file as UTF-8 (a byte order mark is dropped). Raises UsageError or EnvironmentFailed naming it."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8 text (byte {error.start})", where=str(path)) from error
    except OSError as error:
        raise EnvironmentFailed(f"cannot read {path}: {error.strerror}", where=str(path)) from error


def read_suite_file(path: Path) -> SuiteFile:
    """A YAML suite, or a plain JSONL of questions as the suite that its name says. Raises UsageError with file:line."""
    if path.suffix in JSONL_SUFFIXES:
        # Its own file is its only source; an absolute path wins over every folder of the search path.
        source = Source(local=str(path.resolve()))
        return SuiteFile.model_construct(name=path.stem, title=path.name, licence="", sources=(source,))
    return parse_suite(read_text(path), origin=str(path))


def parse_suite(text: str, *, origin: str) -> SuiteFile:
    """Check a suite's YAML. `origin` is the file's name in messages. Raises UsageError naming key and line."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"not valid YAML: {error.problem}", where=f"{origin}:{line}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"not valid YAML: {error}", where=origin) from error
    if not isinstance(raw, dict) or root is None:
        raise UsageError("a suite file is a YAML mapping (name:, title:, licence:, sources: ...)", where=origin)
    _refuse_repeated_keys(root, origin)
    try:
        return SuiteFile.model_validate(raw)
    except ValidationError as error:
        _raise_with_line(error, root, origin)


def _refuse_repeated_keys(root: yaml.Node, origin: str) -> None:
    """YAML keeps the last of two equal keys without a word; here the second is an error."""
    stack, visited = [root], set()
    while stack:
        node = stack.pop()
        if id(node) in visited:  # an alias: already looked at
            continue
        visited.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys: set[str] = set()
            for key, value in node.value:
                if key.value in keys:
                    raise UsageError(f"key {key.value!r} appears twice", where=f"{origin}:{key.start_mark.line + 1}")
                keys.add(str(key.value))
                stack.append(value)
        elif isinstance(node, yaml.SequenceNode):
            stack.extend(node.value)


def _raise_with_line(error: ValidationError, root: yaml.Node, origin: str) -> NoReturn:
    problems = error.errors(include_url=False)
    first = problems[0]
    place = tuple(first["loc"])
    context: dict[str, Any] = first.get("ctx") or {}
    if first["type"] == "unknown_key":
        place = (*place, context["key"])
    key = ".".join(str(part) for part in first["loc"] if not _is_branch(part))
    what = first["msg"] if not key else f"{key}: {first['msg']}"
    if len(problems) > 1:
        what += f" (and {len(problems) - 1} more)"
    raise UsageError(what, where=f"{origin}:{_line_of(root, place)}", try_="suites/README.md lists the keys") from error


def _is_branch(part: object) -> bool:
    """Pydantic names the branch of a union inside the place (`literal['ready']`): that is no key of the YAML."""
    return isinstance(part, str) and "[" in part


def _line_of(root: yaml.Node, place: tuple[Any, ...]) -> int:
    """1-based line of the deepest part of `place` that the file has."""
    node, line = root, root.start_mark.line
    for part in place:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if found is None:
                continue
            line, node = found[0].start_mark.line, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
    return int(line) + 1
