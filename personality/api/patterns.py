"""Clients' regular expressions and shell patterns, matched in time that grows with the text alone.

The syntax is RE2's, as in Docker's own filters. Python's re has no place here: by backtracking, one pattern of a few
bytes could keep the event loop, and so everybody, waiting for years.
"""

from __future__ import annotations

from typing import Protocol

import re2

from personality.errors import DockerError


class Pattern(Protocol):
    """What is used of a compiled expression."""

    def search(self, text: str) -> object | None: ...
    def fullmatch(self, text: str) -> object | None: ...


_OPTIONS = re2.Options()
_OPTIONS.log_errors = False


def expression(text: str, what: str) -> Pattern:
    """A regular expression. Raises DockerError 400, about `what`, when it is broken."""
    try:
        compiled: Pattern = re2.compile(text, options=_OPTIONS)
    except re2.error as error:
        reason = error.args[0] if error.args else b""
        said = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise DockerError(400, f"{what}: {said}") from error
    return compiled


def glob(pattern: str) -> Pattern:
    """A shell pattern whose wildcards stop at slashes. Raises DockerError 400 when it is broken."""
    parts: list[str] = []
    position = 0
    while position < len(pattern):
        character = pattern[position]
        position += 1
        if character in "*?":
            parts.append("[^/]*" if character == "*" else "[^/]")
        elif character == "\\" and position < len(pattern):
            parts.append(re2.escape(pattern[position]))
            position += 1
        elif character == "[":
            end = pattern.find("]", position + 1)
            if end < 0:
                raise DockerError(400, f"invalid pattern '{pattern}': a bracket is not closed")
            parts.append(_character_class(pattern[position:end]))
            position = end + 1
        else:
            parts.append(re2.escape(character))
    return expression("".join(parts), f"invalid pattern '{pattern}'")


def _character_class(inside: str) -> str:
    negated = inside.startswith("^")
    escaped = "".join(f"\\{each}" if each in "\\[]^&~|" else each for each in inside.removeprefix("^"))
    return f"[{'^' if negated else ''}{escaped}]"
