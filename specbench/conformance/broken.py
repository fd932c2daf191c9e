"""What a check raises when a method breaks a promise."""

from __future__ import annotations


class BrokenPromise(Exception):
    """A drafter or its text differs from what the protocol demands; the message says how."""
