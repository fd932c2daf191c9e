"""Text that comes from outside, as arguments and on stdin: UTF-8, or refused by the byte that is not."""

from __future__ import annotations

import io
import sys

from specbench.errors import UsageError

_CONVERT = "iconv -f latin1 -t utf-8 FILE | specbench "


def read_stdin(*, command: str) -> str:
    """All of stdin, line ends as `\\n`. command: what it is for, as in `generate -`. Raises UsageError."""
    # The bytes: how sys.stdin decodes goes by the locale, and under some it lets anything pass as surrogates.
    text = _decoded(sys.stdin.buffer.read(), what="stdin", command=command)
    return io.IncrementalNewlineDecoder(None, translate=True).decode(text, final=True)


def read_line(*, command: str) -> str:
    """The next line of stdin with its end; '' where there is none. Raises UsageError; the lines after it are
    whole."""
    return _decoded(sys.stdin.buffer.readline(), what="this line of stdin", command=command)


def checked(text: str, *, what: str, where: str, try_: str) -> str:
    """An argument as it is. Raises UsageError where its bytes were no UTF-8: Python hands them over as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        place = len(text[: error.start].encode())
        raise UsageError(f"{what} is not UTF-8 text (byte {place})", where=where, try_=try_) from error
    return text


def _decoded(data: bytes, *, what: str, command: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{what} is not UTF-8 text (byte {error.start})", where=f"specbench {command}", try_=_CONVERT + command
        ) from error
