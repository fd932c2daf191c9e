"""Which adapter a prompt belongs to, where there are several: one per category of a suite, or one per system prompt."""

from __future__ import annotations

import hashlib
from typing import Literal

Domains = Literal["one", "category", "system"]
SYSTEM = "system-"
NO_DOMAIN = "none (--domain left out)"
"""How '' is told among names."""
_DIGITS = 12


def domain_of(by: str, *, category: str = "", system: str = "") -> str:
    """The name of a prompt's domain; '' is the one that all others begin with.

    category: the suite's, as it is written. system: of the system prompt, `system-` and 12 digits of its SHA-256 (it
    may be long, and confidential); a prompt without one belongs to ''.
    """
    if by == "category":
        return category
    if by == "system" and system:
        return SYSTEM + hashlib.sha256(system.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
    return ""
