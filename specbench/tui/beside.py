"""Starting something beside a live run of this machine: said first, done when its key is pressed again. No Textual."""

from __future__ import annotations


def warning(live: str, does: str, *, key: str) -> str:
    """live: the run's id, or the process that is about to begin one. does: what the key does after all, `starts it`.

    Empty where nothing is live. Who shows it does so when the key is pressed while it still stands there: another run,
    or another command, is another warning.
    """
    if not live:
        return ""
    return (
        f"{live} runs on this machine: two at once slow each other and spoil what is measured; "
        f"{key} again {does} all the same"
    )
